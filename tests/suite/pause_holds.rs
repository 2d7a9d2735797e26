//! A pause holds its family on every drainer, survives restarts, and hides nothing else.

use std::time::{Duration, Instant};

use crate::drainer_support::Stage;
use crate::support::{Reply, eventually};
use system_bus::streams::control::{NewPause, PauseOutcome, PauseSource};

const LONG: Duration = Duration::from_secs(60);

async fn pause(stage: &Stage, family: &str, ttl: Duration) {
    let new = NewPause {
        family: family.parse().unwrap(),
        ttl,
        reason: "test".into(),
        source: PauseSource::Manual,
        actor: None,
        shorten: true,
    };
    assert!(matches!(stage.bus.pause(&new).await.unwrap(), PauseOutcome::Paused { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_family_with_100_000_entries_ahead_delays_no_other() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    pause(&stage, "work/held", Duration::from_secs(600)).await;
    for _ in 0..20 {
        stage.emit("work/held", 5_000).await;
    }
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    let begin = Instant::now();
    stage.emit("work/free", 10).await;
    let requests = stage.sink.wait_for(10, LONG).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(requests.iter().all(|request| request.header("x-event-name") == Some("work/free")));
    let depth = stage.bus.depth().await.unwrap();
    let held = depth.by_family.iter().find(|family| family.family.as_str() == "work/held").unwrap();
    assert_eq!((held.waiting, held.leased), (100_000, 0), "a pause is not reading");
    // A restart in the middle changes nothing.
    drainer.terminate();
    drainer.wait_exit(LONG).await;
    let mut again = joelclaw.spawn(&["drainer"]);
    again.wait_for_line("drainer started", LONG).await;
    stage.emit("work/free", 1).await;
    stage.sink.wait_for(11, LONG).await;
    eventually(LONG, || async {
        let total = stage.bus.depth().await.unwrap().total;
        if total == 100_000 { Ok(()) } else { Err(total) }
    })
    .await;
    stage.assert_accounted_for().await;
    again.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_drainer_obeys_and_goes_on_after_the_end() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    // The reader is blocked on this very lane when the pause comes.
    stage.emit("work/held", 1).await;
    stage.sink.wait_for(1, LONG).await;
    pause(&stage, "work/held", Duration::from_secs(600)).await;
    stage.emit("work/held", 100).await;
    stage.emit("work/free", 1).await;
    let requests = stage.sink.wait_for(2, LONG).await;
    assert_eq!(requests[1].header("x-event-name"), Some("work/free"));
    // Whatever was read before the pause arrived is handed back without an attempt.
    eventually(LONG, || async {
        let depth = stage.bus.depth().await.unwrap();
        let held = depth.by_family.iter().find(|family| family.family.as_str() == "work/held").unwrap();
        if held.waiting == 100 { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
    assert_eq!(stage.sink.received().len(), 2);
    pause(&stage, "work/held", Duration::from_millis(300)).await;
    let requests = stage.sink.wait_for(102, LONG).await;
    assert!(requests.iter().all(|request| request.header("x-attempt") == Some("1")));
    stage.wait_until_empty(LONG).await;
    let expired = eventually(LONG, || async {
        let facts = stage.facts_of("queue.control.expired").await;
        if facts.is_empty() { Err("no record yet") } else { Ok(facts.len()) }
    })
    .await;
    assert_eq!(expired, 1, "one record, whoever noticed");
    drainer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_of_a_paused_family_wait_and_keep_their_count() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    stage.sink.reply_next([Reply::status(500)]);
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    pause(&stage, "work/other", Duration::from_secs(600)).await;
    stage.emit("work/retried", 1).await;
    stage.sink.wait_for(1, LONG).await;
    pause(&stage, "work/retried", Duration::from_secs(600)).await;
    stage.emit("work/free", 20).await;
    stage.sink.wait_for(21, LONG).await;
    let retried = |stage: &Stage| {
        stage.sink.received().iter().filter(|r| r.header("x-event-name") == Some("work/retried")).count()
    };
    let before = retried(&stage);
    pause(&stage, "work/retried", Duration::from_millis(200)).await;
    stage.wait_until_empty(LONG).await;
    let attempts: Vec<String> = stage
        .sink
        .received()
        .iter()
        .filter(|request| request.header("x-event-name") == Some("work/retried"))
        .map(|request| request.header("x-attempt").unwrap().to_owned())
        .collect();
    assert!(before <= 2 && attempts == ["1", "2"], "{before} {attempts:?}");
    drainer.kill_9().await;
}
