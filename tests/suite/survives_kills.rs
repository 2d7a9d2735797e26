//! kill -9 of a drainer or of Redis, at the worst moment, loses nothing that was accepted.

use crate::drainer_support;
use std::collections::HashSet;
use std::time::Duration;

use crate::drainer_support::{Stage, event};
use crate::support::{Reply, TestRedis, eventually};
use system_bus::streams::append::{Appender, Settings};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_drainer_killed_in_the_middle_of_10_000_events_loses_none_and_leaves_none_pending() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let emitted: HashSet<String> = stage.emit("work/done", 10_000).await.into_iter().map(|a| a.event_id).collect();
    let mut first = joelclaw.spawn(&["drainer"]);
    stage.sink.wait_for(2_000, LONG).await;
    first.kill_9().await;
    let mut second = joelclaw.spawn(&["drainer"]);
    stage.wait_until_empty(LONG).await;
    let seen: HashSet<String> =
        stage.sink.received().iter().map(|request| request.header("x-event-id").unwrap().to_owned()).collect();
    assert_eq!(seen, emitted);
    let completions = stage.completions().await;
    assert_eq!(completions.len(), 10_000);
    assert!(completions.values().all(|count| *count == 1), "each is completed once in the journal");
    second.terminate();
    second.wait_exit(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_killed_under_aof_always_loses_no_acknowledged_append() {
    let mut stage = Stage::on(TestRedis::start_with(&["appendonly", "yes", "appendfsync", "always"]).await).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let appender = Appender::start(&stage.bus, Settings::default());
        writers.spawn(async move {
            let mut answered = Vec::new();
            for n in 0..10_000 {
                match appender.append(vec![event("work/kept", &format!("{{\"writer\":{writer},\"n\":{n}}}"))]).await {
                    Ok(appended) => answered.extend(appended.into_iter().map(|a| a.event_id)),
                    Err(_) => break,
                }
            }
            answered
        });
    }
    let lane = drainer_support::lane("work/kept", system_bus::streams::priority::Priority::P1);
    eventually(LONG, || async {
        let page = stage.bus.depth().await.map_err(|error| error.to_string())?;
        if page.total > 500 { Ok(()) } else { Err(page.total.to_string()) }
    })
    .await;
    stage.redis.kill_9();
    let mut answered = Vec::new();
    while let Some(done) = writers.join_next().await {
        answered.extend(done.unwrap());
    }
    stage.redis.restart().await;
    let mut connection = stage.redis.connection().await;
    let rows: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
        .arg(stage.bus.keys.lane(&lane))
        .arg("-")
        .arg("+")
        .query_async(&mut connection)
        .await
        .unwrap();
    let stored: HashSet<String> = rows
        .ids
        .iter()
        .map(|row| system_bus::streams::envelope::Envelope::decode(&row.get::<Vec<u8>>("e").unwrap()).unwrap().id)
        .collect();
    assert_eq!(stored.len(), rows.ids.len(), "nothing is stored twice");
    let missing: Vec<_> = answered.iter().filter(|id| !stored.contains(*id)).collect();
    assert!(missing.is_empty(), "{} of {} answered appends are gone", missing.len(), answered.len());
    assert!(!answered.is_empty());
    // The appender recovers by itself, and no failed attempt is remembered.
    stage.emit("work/kept", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_in_flight_while_redis_is_away_are_completed_after_its_return_and_not_run_again() {
    let mut stage = Stage::on(TestRedis::start_with(&["appendonly", "yes", "appendfsync", "always"]).await).await;
    stage.sink.reply_always(Reply::ok().delay(Duration::from_millis(700)));
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_DRAIN_LEASE_MS", "30000");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.emit("work/slow", 16).await;
    stage.sink.wait_for(16, LONG).await;
    stage.redis.kill_9();
    drainer.wait_for_line("Redis can't be reached", LONG).await;
    assert!(drainer.is_running(), "an unreachable Redis is no reason to end");
    stage.redis.restart().await;
    stage.wait_until_empty(LONG).await;
    assert_eq!(stage.sink.received().len(), 16, "no handler ran twice");
    stage.emit("work/slow", 1).await;
    stage.sink.wait_for(17, LONG).await;
    drainer.kill_9().await;
}
