//! Circuit breakers in the real drainer: what opens one, what it holds, how it closes, and what never opens one.

use std::time::Duration;

use crate::drainer_support::Stage;
use crate::support::{Reply, eventually};
use system_bus::streams::breaker::State;

const LONG: Duration = Duration::from_secs(60);

/// Lets the time come at which an open breaker tries one event.
async fn let_time_pass(stage: &Stage, family: &str) {
    let mut connection = stage.redis.connection().await;
    let key = stage.bus.keys.breaker();
    let text: String = redis::cmd("HGET").arg(&key).arg(family).query_async(&mut connection).await.unwrap();
    let mut circuit: serde_json::Value = serde_json::from_str(&text).unwrap();
    circuit["openUntil"] = 1.into();
    redis::cmd("HSET").arg(&key).arg(family).arg(circuit.to_string()).query_async::<()>(&mut connection).await.unwrap();
}

async fn wait_for(stage: &Stage, family: &str, n: Option<u32>) {
    eventually(LONG, || async {
        let circuits = stage.bus.breakers().await.unwrap();
        let found = circuits.get(family).filter(|circuit| circuit.state == State::Open).map(|circuit| circuit.n);
        if found == n && (n.is_some() || !circuits.contains_key(family)) {
            Ok(())
        } else {
            Err(format!("{circuits:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_opens_it_one_event_is_tried_and_three_close_it() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_DRAINER_CONCURRENCY", "4");
    stage.sink.reply_always(Reply::status(503));
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    let events = stage.emit("work/broken", 40).await;
    wait_for(&stage, "work/broken", Some(0)).await;
    let tried = stage.sink.received().len();
    assert!(tried < 40, "most were never tried: {tried}");

    // What waits is named, with what changes it.
    let last = &events.last().unwrap().entry_id.unwrap().to_string();
    let why = joelclaw.run(&["queue", "why", last, "--json"]).await.assert_success().json();
    assert_eq!(why["result"]["hold"]["kind"], "broken", "{why:#}");
    assert_eq!(why["result"]["command"], "joelclaw queue breaker reset work/broken");

    // The probe fails: one event was tried, no other.
    let before = stage.sink.received().len();
    let_time_pass(&stage, "work/broken").await;
    wait_for(&stage, "work/broken", Some(1)).await;
    assert_eq!(stage.sink.received().len(), before + 1, "one event in flight");

    stage.sink.reply_always(Reply::ok());
    let_time_pass(&stage, "work/broken").await;
    stage.wait_until_empty(LONG).await;
    wait_for(&stage, "work/broken", None).await;
    let completions = stage.completions().await;
    assert_eq!(completions.len(), 40);
    assert!(completions.values().all(|times| *times == 1), "{completions:?}");
    for (action, count) in [("queue.breaker.opened", 2), ("queue.breaker.half_open", 2), ("queue.breaker.closed", 1)] {
        assert_eq!(stage.facts_of(action).await.len(), count, "{action}");
    }
    let first_attempts = stage.sink.received().iter().filter(|r| r.header("x-attempt") == Some("1")).count();
    assert_eq!(first_attempts, 40, "waiting cost no attempt");
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_events_and_one_poison_event_never_open_it() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_DRAIN_MAX_ATTEMPTS", "5");
    stage.sink.reply_always(Reply::status(400));
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    stage.emit("work/rejected", 20).await;
    eventually(LONG, || async {
        let dead = stage.bus.depth().await.unwrap().dead;
        if dead == 20 { Ok(()) } else { Err(dead) }
    })
    .await;
    stage.sink.reply_always(Reply::status(503));
    stage.emit("work/poison", 1).await;
    eventually(LONG, || async {
        let dead = stage.bus.depth().await.unwrap().dead;
        if dead == 21 { Ok(()) } else { Err(dead) }
    })
    .await;
    assert!(stage.bus.breakers().await.unwrap().is_empty());
    assert!(stage.facts_of("queue.breaker.opened").await.is_empty());
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_opens_and_resets_it() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    let opened = joelclaw.run(&["queue", "breaker", "open", "work/a", "--for", "10m", "--json"]).await.assert_success();
    assert_eq!(opened.json()["result"]["state"], "forced_open");
    stage.emit("work/b", 1).await;
    stage.sink.wait_for(1, LONG).await;
    stage.emit("work/a", 3).await;
    let status = joelclaw.run(&["queue", "control", "status", "--json"]).await.assert_success().json();
    assert_eq!(status["result"]["control"]["breakers"][0]["family"], "work/a", "{status:#}");
    joelclaw.run(&["queue", "breaker", "reset", "work/a"]).await.assert_success();
    stage.sink.wait_for(4, LONG).await;
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}
