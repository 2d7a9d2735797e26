//! Any number of drainers share the work; an entry has at most one live lease.

use std::time::Duration;

use crate::drainer_support::Stage;
use crate::support::{Reply, eventually};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn two_drainers_share_10_000_events_and_complete_each_once() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_DRAIN_LEASE_MS", "30000");
    let mut drainers = [joelclaw.spawn(&["drainer"]), joelclaw.spawn(&["drainer"])];
    for drainer in &mut drainers {
        drainer.wait_for_line("drainer started", LONG).await;
    }
    stage.emit("work/shared", 10_000).await;
    stage.wait_until_empty(LONG).await;
    assert_eq!(stage.sink.received().len(), 10_000, "no handler was called twice");
    let completions = stage.completions().await;
    assert_eq!(completions.len(), 10_000);
    assert!(completions.values().all(|count| *count == 1));
    for drainer in &mut drainers {
        drainer.terminate();
        drainer.wait_exit(LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drainer_that_slept_through_its_lease_cannot_complete_over_a_newer_one() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let mut slow = joelclaw.spawn(&["drainer"]);
    slow.wait_for_line("drainer started", LONG).await;
    stage.sink.reply_next((0..16).map(|_| Reply::ok().delay(Duration::from_secs(1))));
    stage.emit("work/fenced", 16).await;
    stage.sink.wait_for(16, LONG).await;
    slow.stop();
    let mut quick = joelclaw.spawn(&["drainer"]);
    let requests = stage.sink.wait_for(32, LONG).await;
    let attempts: Vec<_> = requests[16..].iter().map(|request| request.header("x-attempt").unwrap()).collect();
    assert!(attempts.iter().all(|attempt| *attempt == "2"), "{attempts:?}");
    stage.wait_until_empty(LONG).await;
    slow.cont();
    slow.wait_for_line("another drainer took over", LONG).await;
    let completions = stage.completions().await;
    assert!(completions.len() == 16 && completions.values().all(|count| *count == 1), "{completions:?}");
    eventually(LONG, || async {
        let lost = stage.facts_of("queue.lease.lost").await;
        if lost.is_empty() { Err("no queue.lease.lost yet") } else { Ok(()) }
    })
    .await;
    slow.kill_9().await;
    quick.kill_9().await;
}
