//! An operator's acknowledgement is bounded, leaves live leases alone, and can be undone.
use crate::common_streams::{SESSION, TestBus, event, family, lane, operator};
use std::time::Duration;
use system_bus::streams::look::State;
use system_bus::streams::residue::{AckOptions, Pass};

fn pass() -> Pass {
    Pass { older_than: Duration::ZERO, family: Some(family("a/b")), condition: None, limit: 500 }
}

#[tokio::test]
async fn waiting_and_retrying_entries_go_to_the_trash_and_come_back() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    let first = t.emit(event("a/b")).await;
    t.emit(event("a/b")).await;
    t.emit(event("c/d")).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await;
    t.retry(SESSION, &leased[0], Duration::from_secs(600)).await;
    tokio::time::sleep(Duration::from_millis(3)).await;

    let preview = t.bus.residue(&pass(), None).await.unwrap();
    assert_eq!((preview.by_state[&State::Waiting], preview.by_state[&State::Retry], preview.live_leases), (1, 1, 0));
    assert_eq!(preview.plan_hash, t.bus.residue(&pass(), None).await.unwrap().plan_hash);
    assert!(t.bus.residue(&Pass { limit: 1, ..pass() }, None).await.unwrap().cut);
    assert!(t.bus.residue(&pass(), Some(&|_| false)).await.unwrap().candidates.is_empty());
    let old = Pass { older_than: Duration::from_secs(60), ..pass() };
    assert!(t.bus.residue(&old, None).await.unwrap().candidates.is_empty());

    let options = AckOptions::default();
    let acked = t.bus.operator_ack(&preview.candidates, &options, &operator()).await.unwrap();
    assert_eq!((acked.matched, acked.acked, acked.skipped.len()), (2, 2, 0));
    assert!(acked.undo_until.unwrap() > t.bus.now_ms().await.unwrap());
    assert_eq!(t.bus.depth().await.unwrap().total, 1);
    t.assert_clean().await;
    assert_eq!(t.bus.verify(0).await.unwrap().acked, 2);
    let stream_id = first.entry_id.unwrap().to_string();
    assert!(t.bus.find(&first.event_id).await.unwrap().places.is_empty());
    for id in [&first.event_id, &stream_id] {
        let history = t.bus.history(id, 0, 1000).await.unwrap();
        let (state, entry) = history.ending().unwrap();
        assert_eq!((state, entry.fact.metadata["actor"].as_str()), (State::Acked, Some("op")));
    }
    let twice = t.bus.operator_ack(&preview.candidates, &AckOptions::default(), &operator()).await.unwrap();
    assert_eq!((twice.acked, twice.skipped[0].reason.as_str()), (0, "missing"));

    let restored = t.bus.undo_ack(&options.batch, &operator()).await.unwrap();
    assert_eq!(restored.len(), 2);
    assert!(t.bus.undo_ack(&options.batch, &operator()).await.unwrap().is_empty());
    assert!(t.bus.history(&first.event_id, 0, 1000).await.unwrap().ending().is_none(), "open again");
    let again = t.lease(SESSION, &lane("a/b:p1"), 2).await;
    assert_eq!((again[0].deliveries, again[0].enqueued_ms), (2, first.entry_id.unwrap().ms));
    t.assert_clean().await;
    assert_eq!(t.bus.verify(0).await.unwrap().acked, 0);
}

#[tokio::test]
async fn an_undone_entry_keeps_its_first_append_however_often_it_goes_round() {
    let t = TestBus::start().await;
    let first = t.emit(event("a/b")).await.entry_id.unwrap();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let preview = t.bus.residue(&pass(), None).await.unwrap();
        let options = AckOptions::default();
        t.bus.operator_ack(&preview.candidates, &options, &operator()).await.unwrap();
        assert_eq!(t.bus.undo_ack(&options.batch, &operator()).await.unwrap().len(), 1);
    }
    t.open(SESSION).await;
    assert_eq!(t.lease(SESSION, &lane("a/b:p1"), 1).await[0].enqueued_ms, first.ms);
}

#[tokio::test]
async fn what_was_leased_since_the_preview_is_skipped_unless_forced() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    let entry = t.emit(event("a/b")).await;
    let preview = t.bus.preview(&[(entry.lane.clone(), entry.entry_id.unwrap())]).await.unwrap();
    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await;
    let skipped = t.bus.operator_ack(&preview.candidates, &AckOptions::default(), &operator()).await.unwrap();
    assert_eq!((skipped.acked, skipped.skipped[0].reason.as_str(), skipped.undo_until), (0, "leased", None));
    let young = AckOptions { min_age: Duration::from_secs(60), force: true, ..AckOptions::default() };
    let skipped = t.bus.operator_ack(&preview.candidates, &young, &operator()).await.unwrap();
    assert_eq!(skipped.skipped[0].reason, "too_young");
    let forced = AckOptions { force: true, ..AckOptions::default() };
    assert_eq!(t.bus.operator_ack(&preview.candidates, &forced, &operator()).await.unwrap().acked, 1);
    let ending = system_bus::streams::complete::Ending::Done { forget_failures: false };
    assert_eq!(t.end(SESSION, &leased[0], ending).await.len(), 1, "the handler's completion is refused");
    let verdict = t.bus.verify(0).await.unwrap();
    assert_eq!((verdict.acked, verdict.completed), (1, 0));
    t.assert_clean().await;
}
