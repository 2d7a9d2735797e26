//! What a pause explains is never a stall, however long it lasts.

use std::time::Duration;

use crate::drainer_support::Stage;
use crate::support::eventually;
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
async fn a_thousand_waiting_in_paused_families_are_no_stall() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_DRAIN_STALL_AFTER_MS", "1000");
    for family in ["work/one", "work/two"] {
        pause(&stage, family, Duration::from_secs(600)).await;
        stage.emit(family, 500).await;
    }
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    // Time itself is what is tested here: three looks of the watchdog, each of which could end the process.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert!(drainer.is_running(), "{}", drainer.stderr());
    assert!(stage.facts_of("queue.drainer.stalled").await.is_empty());
    assert_eq!(stage.bus.depth().await.unwrap().total, 1_000);
    assert!(stage.sink.received().is_empty());

    for family in ["work/one", "work/two"] {
        pause(&stage, family, Duration::from_millis(200)).await;
    }
    stage.wait_until_empty(LONG).await;
    assert_eq!(stage.sink.received().len(), 1_000, "each once");
    eventually(LONG, || async {
        let expired = stage.facts_of("queue.control.expired").await.len();
        if expired == 2 { Ok(()) } else { Err(expired) }
    })
    .await;
    drainer.kill_9().await;
}
