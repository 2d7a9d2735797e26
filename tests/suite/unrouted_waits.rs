//! An entry whose handler this process can't reach for want of a setting waits; it is not dead.

use std::time::Duration;

use crate::drainer_support::Stage;
use crate::support::eventually;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn an_inngest_event_without_an_inngest_url_is_held_and_not_dead() {
    let stage = Stage::start().await;
    let routes =
        "[[event]]\nname = \"flow/start\"\nattempts = 1\nhandler = { type = \"inngest\", target = \"flow/start\" }\n";
    let joelclaw = stage.joelclaw(routes);
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    stage.emit("flow/start", 3).await;
    let unrouted =
        eventually(LONG, || async { stage.facts_of("queue.unrouted").await.into_iter().next().ok_or("no record yet") })
            .await;
    assert!(unrouted.metadata["reason"].to_string().contains("INNGEST_URL"), "{unrouted:?}");
    // Others go past it. A failed try would have used up its only attempt.
    stage.emit("work/known", 50).await;
    stage.sink.wait_for(50, LONG).await;
    let depth = eventually(LONG, || async {
        let depth = stage.bus.depth().await.unwrap();
        if depth.total == 3 { Ok(depth) } else { Err(depth.total) }
    })
    .await;
    assert_eq!((depth.dead, depth.by_family[0].waiting), (0, 3));
    stage.assert_accounted_for().await;
    assert!(drainer.is_running());
    drainer.kill_9().await;

    // The same entries, once there is a way for them.
    let url = stage.sink.url();
    let joelclaw = joelclaw
        .registry(&format!("[[event]]\npattern = \"*\"\nhandler = {{ type = \"http\", target = \"{url}\" }}\n"));
    let mut drainer = joelclaw.spawn(&["drainer"]);
    let requests = stage.sink.wait_for(53, LONG).await;
    assert!(requests.iter().all(|request| request.header("x-attempt") == Some("1")));
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}
