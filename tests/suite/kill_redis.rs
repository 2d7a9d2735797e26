//! A Redis that stands still for a while costs nothing: what ran in the meantime is written down after its return.

use std::time::Duration;

use crate::drainer_support::Stage;
use crate::support::Reply;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_while_redis_stood_still_is_written_after_its_return_and_not_run_again() {
    let stage = Stage::start().await;
    // They end while Redis stands still, also where all that comes before is slow, and shortly before it goes on: a call
    // that is given up and repeated would be written down twice (docs/PROGRESS.md).
    stage.sink.reply_always(Reply::ok().delay(Duration::from_millis(2_400)));
    let joelclaw = stage.joelclaw("");
    // The standstill outlasts the lease: nobody else is there, so the session must still be its own afterwards.
    joelclaw.env_file_line("QUEUE_DRAIN_LEASE_MS", "2000");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.emit("work/slow", 16).await;
    stage.sink.wait_for(16, LONG).await;
    stage.redis.pause();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(drainer.is_running(), "a silent Redis is no reason to end: {}", drainer.stderr());
    stage.redis.resume();
    stage.wait_until_empty(LONG).await;
    assert_eq!(stage.sink.received().len(), 16, "no handler ran twice");
    let completions = stage.completions().await;
    assert!(completions.len() == 16 && completions.values().all(|count| *count == 1), "{completions:?}");
    stage.emit("work/slow", 1).await;
    stage.sink.wait_for(17, LONG).await;
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}
