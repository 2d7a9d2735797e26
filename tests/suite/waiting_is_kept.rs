//! What waits is kept: a day in the lane, without a route, or until its time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::drainer_support::{Stage, event, lane};
use crate::support::eventually;
use system_bus::streams::envelope::Envelope;
use system_bus::streams::json::JsonObject;
use system_bus::streams::priority::Priority;

const LONG: Duration = Duration::from_secs(60);

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn envelope(name: &str, id: &str) -> Vec<u8> {
    let envelope = Envelope {
        v: 1,
        id: id.into(),
        name: name.parse().unwrap(),
        source: "test".into(),
        ts: 1,
        data: JsonObject::default(),
        priority: Priority::P1,
        dedup_key: None,
        trace: None,
        triage: None,
        meta: None,
    };
    envelope.encode().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waited_a_day_is_delivered_and_none_is_acknowledged_for_its_age() {
    let stage = Stage::start().await;
    let lane = lane("work/old", Priority::P1);
    let yesterday = now_ms() - 25 * 3_600_000;
    for n in 0..100 {
        stage.plant(&lane, &format!("{}-0", yesterday + n), &envelope("work/old", &format!("old-{n}"))).await;
    }
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_DRAINER_CONCURRENCY", "1");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    let requests = stage.sink.wait_for(100, LONG).await;
    assert_eq!(requests[0].header("x-event-id"), Some("old-0"), "the oldest first");
    stage.wait_until_empty(LONG).await;
    let replay = stage.facts_of("queue.replay").await;
    assert_eq!(replay[0].metadata["stale_acked"], 0);
    assert_eq!(replay[0].metadata["replayable"], 100);
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_appended_before_the_first_drainer_is_delivered() {
    let stage = Stage::start().await;
    stage.emit("work/early", 500).await;
    let joelclaw = stage.joelclaw("");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.sink.wait_for(500, LONG).await;
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_route_waits_until_one_appears() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    stage.emit("nobody/wants", 3).await;
    // A built-in entry whose handler this process lacks is held just the same.
    stage.emit("content/updated", 1).await;
    stage.emit("work/known", 1).await;
    stage.sink.wait_for(1, LONG).await;
    drainer.wait_for_line("nobody/wants", LONG).await;
    let unrouted = eventually(LONG, || async {
        let facts = stage.facts_of("queue.unrouted").await;
        if facts.len() == 2 { Ok(facts) } else { Err(facts.len()) }
    })
    .await;
    assert!(unrouted.iter().any(|fact| fact.metadata["eventName"] == "nobody/wants"));
    eventually(LONG, || async {
        let total = stage.bus.depth().await.unwrap().total;
        if total == 4 { Ok(()) } else { Err(total) }
    })
    .await;

    let url = stage.sink.url();
    let routes = format!(
        "[[event]]\npattern = \"*\"\nhandler = {{ type = \"http\", target = \"{url}\" }}\n\
         [[event]]\nname = \"content/updated\"\nhandler = {{ type = \"http\", target = \"{url}\" }}\n"
    );
    let joelclaw = joelclaw.registry(&routes);
    stage.sink.wait_for(5, LONG).await;
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
    drop(joelclaw);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_event_is_dispatched_when_its_time_has_come_and_not_before() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    let due = now_ms() + 1_200;
    let mut later = event("work/later", "{}");
    later.at = Some(i64::try_from(due).unwrap());
    let mut tomorrow = event("work/later", "{}");
    tomorrow.at = Some(i64::try_from(due + 86_400_000).unwrap());
    let answers = stage.appender.append(vec![later, tomorrow]).await.unwrap();
    assert!(answers.iter().all(|answer| answer.entry_id.is_none()));
    assert_eq!(stage.bus.depth().await.unwrap().later, 2);
    stage.sink.wait_for(1, LONG).await;
    assert!(now_ms() >= due, "not before its time");
    assert_eq!(stage.bus.depth().await.unwrap().later, 1);
    assert_eq!(stage.sink.received().len(), 1);
    drainer.kill_9().await;
}
