//! A full Redis is an answer, not a wedge; one that may evict is refused.

use crate::drainer_support;
use crate::support;

use std::time::Duration;

use crate::drainer_support::{Stage, event};
use crate::support::TestRedis;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn appends_are_refused_while_pause_completion_ack_and_drop_go_on() {
    let stage = Stage::on(TestRedis::start_with(&["maxmemory", "8mb"]).await).await;
    let joelclaw = stage.joelclaw("");
    let payload = format!("{{\"x\":\"{}\"}}", "x".repeat(10_000));
    let refused = loop {
        match stage.appender.append((0..20).map(|_| event("work/big", &payload)).collect()).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(refused.to_string().contains("Redis is full"), "{refused}");
    let emit = joelclaw.run(&["queue", "emit", "work/big", "--json"]).await.assert_code(4).json();
    assert_eq!(emit["error"]["code"], "QUEUE_FULL");
    // To the brim, so that nothing is left of the reserve either.
    let mut connection = stage.redis.connection().await;
    while redis::cmd("APPEND").arg("filler").arg("x".repeat(100_000)).query_async::<u64>(&mut connection).await.is_ok()
    {
    }
    joelclaw.run(&["queue", "pause", "work/other", "--reason", "full", "--json"]).await.assert_success();
    joelclaw.run(&["queue", "resume", "work/other", "--json"]).await.assert_success();
    let ack = ["queue", "ack", "--family", "work/big", "--older-than", "1s", "--limit", "5", "--force", "--json"];
    joelclaw.run(&ack).await.assert_success();
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.wait_until_empty(LONG).await;
    redis::cmd("DEL").arg("filler").query_async::<()>(&mut connection).await.unwrap();
    let lane = drainer_support::lane("work/big", system_bus::streams::priority::Priority::P1);
    redis::cmd("XTRIM")
        .arg(stage.bus.keys.lane(&lane))
        .arg("MAXLEN")
        .arg(1)
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
    support::eventually(LONG, || async {
        stage.appender.append(vec![event("work/small", "{}")]).await.map_err(|e| e.to_string())
    })
    .await;
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_may_evict_is_refused_by_name() {
    let stage = Stage::on(TestRedis::start_with(&["maxmemory", "50mb", "maxmemory-policy", "allkeys-lru"]).await).await;
    let joelclaw = stage.joelclaw("");
    let ended = joelclaw.spawn(&["drainer"]).wait_exit(LONG).await;
    assert_eq!(ended.code(), Some(78), "{}", ended.stderr);
    assert!(ended.stdout.contains("maxmemory-policy") && ended.stdout.contains("REDIS_EVICTS"), "{}", ended.stdout);
}
