//! What waits for a retry belongs to no drainer: a kill -9 changes neither its time nor its count.

use std::time::Duration;

use crate::drainer_support::Stage;
use crate::support::{Reply, eventually};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_keeps_its_time_and_its_count_when_the_drainer_is_killed() {
    let stage = Stage::start().await;
    let url = stage.sink.url();
    let joelclaw = stage.joelclaw(&format!(
        "[[event]]\nname = \"work/retried\"\nbackoff = {{ initial = \"2s\", jitter = \"none\" }}\n         handler = {{ type = \"http\", target = \"{url}\" }}\n"
    ));
    stage.sink.reply_next((0..8).map(|_| Reply::status(500)));
    let mut first = joelclaw.spawn(&["drainer"]);
    let family = stage.emit("work/retried", 8).await;
    assert_eq!(family.len(), 8);
    stage.sink.wait_for(8, LONG).await;
    eventually(LONG, || async {
        let depth = stage.bus.depth().await.unwrap();
        if depth.by_family[0].retrying == 8 { Ok(()) } else { Err(format!("{:?}", depth.by_family)) }
    })
    .await;
    let due = stage.bus.keys.due_of(&"work/retried".parse().unwrap());
    let due = ["ZRANGE", due.as_str(), "0", "-1", "WITHSCORES"];
    let before = stage.redis.cli(&due).await;
    first.kill_9().await;
    let mut second = joelclaw.spawn(&["drainer"]);
    second.wait_for_line("drainer started", LONG).await;
    assert_eq!(stage.redis.cli(&due).await, before, "not touched by the one that came after");
    let requests = stage.sink.wait_for(16, LONG).await;
    for request in &requests[8..] {
        let id = request.header("x-event-id");
        let tried = requests[..8].iter().find(|earlier| earlier.header("x-event-id") == id).unwrap();
        assert_eq!(request.header("x-attempt"), Some("2"));
        let waited = request.at.duration_since(tried.at);
        assert!(waited >= Duration::from_secs(2), "{waited:?}");
    }
    stage.wait_until_empty(LONG).await;
    second.kill_9().await;
}
