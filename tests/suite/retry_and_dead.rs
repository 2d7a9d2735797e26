//! Failures: retried with growing delay, then dead with the reason, and redriven.

use std::time::Duration;

use crate::drainer_support::{Stage, lane};
use crate::support::{Reply, eventually};
use system_bus::streams::dead::{DeadFilter, DeadLetter, Operator};
use system_bus::streams::priority::Priority;

const LONG: Duration = Duration::from_secs(60);

async fn wait_for_dead(stage: &Stage, count: usize) -> Vec<DeadLetter> {
    eventually(LONG, || async {
        let page = stage.bus.dead_letters(&DeadFilter::default(), None, 100, 1000).await.unwrap();
        if page.letters.len() >= count { Ok(page.letters) } else { Err(page.letters.len()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_always_fails_ends_in_the_dead_letters_and_redrive_delivers_it() {
    let stage = Stage::start().await;
    let url = stage.sink.url();
    let extra = format!(
        "[[event]]\nname = \"work/broken\"\nattempts = 3\n\
         backoff = {{ initial = \"100ms\", multiplier = 3.0, jitter = \"none\" }}\n\
         handler = {{ type = \"http\", target = \"{url}\" }}\n"
    );
    let joelclaw = stage.joelclaw(&extra);
    stage.sink.reply_next((0..3).map(|_| Reply::status(500).body("é".repeat(600))));
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.emit("work/broken", 1).await;
    let letter = wait_for_dead(&stage, 1).await.remove(0);
    let requests = stage.sink.received();
    assert_eq!(requests.len(), 3);
    let waits: Vec<_> = requests.windows(2).map(|pair| pair[1].at.duration_since(pair[0].at)).collect();
    assert!(waits[0] >= Duration::from_millis(100) && waits[1] >= Duration::from_millis(300), "{waits:?}");
    let record = letter.record.as_ref().unwrap();
    assert_eq!((record.reason.as_str(), record.attempts, record.status), ("attempts_exhausted", 3, Some(500)));
    assert_eq!(record.error.chars().filter(|c| *c == 'é').count(), 500);

    let operator = Operator { actor: "test".into(), reason: "mended".into() };
    stage.bus.redrive(&[letter.id], &operator, None).await.unwrap();
    let requests = stage.sink.wait_for(4, LONG).await;
    let (before, after) = (&requests[2], &requests[3]);
    assert_eq!(after.header("x-attempt"), Some("1"));
    assert_eq!(after.header("x-event-id"), before.header("x-event-id"));
    assert_eq!(after.header("idempotency-key"), before.header("idempotency-key"));
    assert_ne!(after.header("x-dispatch-id"), before.header("x-dispatch-id"));
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_is_final_unless_the_entry_says_otherwise_and_retry_after_is_honoured() {
    let stage = Stage::start().await;
    let url = stage.sink.url();
    let extra = format!(
        "[[event]]\nname = \"work/lenient\"\nretry_client_errors = true\n\
         handler = {{ type = \"http\", target = \"{url}\" }}\n"
    );
    let joelclaw = stage.joelclaw(&extra);
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.sink.reply_next([Reply::status(400).body("no")]);
    stage.emit("work/strict", 1).await;
    let letter = wait_for_dead(&stage, 1).await.remove(0);
    assert_eq!(letter.reason(), "rejected");
    assert_eq!(stage.sink.received().len(), 1);

    stage.sink.reply_next([Reply::status(400).body("not yet")]);
    stage.emit("work/lenient", 1).await;
    stage.sink.wait_for(3, LONG).await;

    stage.sink.reply_next([Reply::status(429).header("retry-after", "2")]);
    stage.emit("work/polite", 1).await;
    let requests = stage.sink.wait_for(5, LONG).await;
    let waited = requests[4].at.duration_since(requests[3].at);
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_goes_to_the_dead_letters_and_blocks_nobody() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let lane = lane("work/odd", Priority::P1);
    stage.plant(&lane, "1-1", b"{\"json\":true}").await;
    stage.plant(&lane, "1-2", b"\x81\xa1v\x02").await;
    stage.emit("work/odd", 1).await;
    let mut drainer = joelclaw.spawn(&["drainer"]);
    stage.sink.wait_for(1, LONG).await;
    let letters = wait_for_dead(&stage, 2).await;
    let mut reasons: Vec<_> = letters.iter().map(DeadLetter::reason).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["undecodable", "unsupported_version"]);
    assert!(
        letters.iter().any(|letter| letter.raw_base64.as_deref() == Some("eyJqc29uIjp0cnVlfQ==")),
        "the raw bytes are kept"
    );
    stage.wait_until_empty(LONG).await;
    drainer.kill_9().await;
}
