//! `fsck` finds each kind of damage, mends it, and is clean the second time.
use crate::common_streams::{SESSION, TestBus, event, lane};
use std::time::Duration;
use system_bus::streams::fsck::WINDOW;

/// Finds exactly `kinds`, repairs what can be, and leaves nothing for a second run.
async fn finds(t: &TestBus, kinds: &[&str]) {
    let mut expected = kinds.to_vec();
    expected.sort_unstable();
    for apply in [false, true] {
        let found = t.bus.fsck(apply, WINDOW).await.unwrap();
        let mut names: Vec<&str> = found.iter().map(|finding| finding.kind).collect();
        names.sort_unstable();
        assert_eq!(names, expected, "{found:#?}");
        for finding in found {
            assert_eq!(finding.repaired, apply && finding.repairable && finding.kind != "lost", "{finding:?}");
        }
    }
    let left = t.bus.fsck(true, WINDOW).await.unwrap();
    assert!(left.is_empty(), "{left:#?}");
}

#[tokio::test]
async fn a_healthy_bus_is_clean_and_nothing_is_lost() {
    let t = TestBus::start().await;
    t.assert_clean().await;
    t.open(SESSION).await;
    for _ in 0..4 {
        t.emit(event("a/b")).await;
    }
    let mut scheduled = event("a/b");
    scheduled.at = Some(4_000_000_000_000);
    t.emit(scheduled).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 3).await;
    t.done(SESSION, &leased[0]).await;
    t.retry(SESSION, &leased[1], Duration::from_secs(60)).await;
    t.kill(SESSION, &leased[2]).await;
    t.assert_clean().await;
    let verdict = t.bus.verify(0).await.unwrap();
    assert_eq!((verdict.accepted, verdict.completed, verdict.dead, verdict.waiting), (5, 1, 1, 3));
}

#[tokio::test]
async fn a_retry_without_its_time_becomes_due() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    t.emit(event("a/b")).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await;
    t.retry(SESSION, &leased[0], Duration::from_secs(60)).await;
    t.cmd::<u64>(&["DEL", &t.bus.keys.due(), &t.bus.keys.due_of(&leased[0].lane.family)]).await;
    finds(&t, &["pending_without_due"]).await;
    assert_eq!(t.bus.claim_due(SESSION, &leased[0].lane.family, 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn left_over_members_and_a_wrong_index_are_put_right() {
    let t = TestBus::start().await;
    let entry = t.emit(event("a/b")).await;
    let family = &entry.lane.family;
    t.cmd::<u64>(&["ZADD", &t.bus.keys.due_of(family), "5", "p1|1-1", "7", "garbage"]).await;
    t.cmd::<u64>(&["HSET", &t.bus.keys.failures_of(family), "p1|2-2", "x"]).await;
    t.cmd::<u64>(&["ZADD", &t.bus.keys.due(), "99", "a/b"]).await;
    // Removing the members leaves nothing to index: the last repair finds its damage gone.
    let found = t.bus.fsck(true, WINDOW).await.unwrap();
    let kinds: Vec<&str> = found.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, ["due_without_entry", "due_without_entry", "failures_without_entry", "due_index"]);
    t.assert_clean().await;
    t.cmd::<u64>(&["ZADD", &t.bus.keys.due(), "99", "a/b"]).await;
    finds(&t, &["due_index"]).await;
}

#[tokio::test]
async fn a_lane_without_group_or_entry_in_the_hash_is_readable_again() {
    let t = TestBus::start().await;
    t.emit(event("a/b")).await;
    let key = t.bus.keys.lane(&lane("a/b:p1"));
    t.cmd::<u64>(&["XGROUP", "DESTROY", &key, "drainer"]).await;
    finds(&t, &["missing_group"]).await;
    t.cmd::<u64>(&["HDEL", &t.bus.keys.lanes(), "a/b:p1"]).await;
    finds(&t, &["unknown_lane"]).await;
    t.open(SESSION).await;
    assert_eq!(t.lease(SESSION, &lane("a/b:p1"), 9).await.len(), 1);
}

#[tokio::test]
async fn an_orphaned_letter_becomes_one_that_can_be_inspected() {
    let t = TestBus::start().await;
    t.cmd::<String>(&["XADD", &t.bus.keys.dead(), "*", "x", "y"]).await;
    finds(&t, &["orphaned_dead"]).await;
    let letters = t.bus.dead_letters(&Default::default(), None, 9, 9).await.unwrap().letters;
    assert_eq!(letters[0].reason(), "orphaned");
}

#[tokio::test]
async fn halves_of_a_scheduled_event_are_told_apart() {
    let t = TestBus::start().await;
    let mut scheduled = event("a/b");
    scheduled.at = Some(4_000_000_000_000);
    t.emit(scheduled.clone()).await;
    t.cmd::<u64>(&["DEL", &t.bus.keys.later()]).await;
    let found = t.bus.fsck(true, WINDOW).await.unwrap();
    assert!(found.iter().any(|finding| finding.kind == "data_without_later" && finding.repaired), "{found:#?}");
    assert_eq!(t.bus.promote_later(9).await.unwrap().0, 1);
    t.cmd::<u64>(&["ZADD", &t.bus.keys.later(), "4000000000000", "a/b:p1|ghost"]).await;
    finds(&t, &["later_without_data"]).await;
    t.assert_clean().await;
}

#[tokio::test]
async fn entries_of_a_consumer_deleted_by_hand_are_appended_again() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    let ids: Vec<String> = vec![t.emit(event("a/b")).await.event_id, t.emit(event("a/b")).await.event_id];
    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await;
    t.cmd::<u64>(&["XGROUP", "DELCONSUMER", &t.bus.keys.lane(&lane("a/b:p1")), "drainer", SESSION]).await;
    assert_eq!(t.bus.verify(0).await.unwrap().lost, 1);
    finds(&t, &["stranded"]).await;
    assert_eq!(t.bus.verify(0).await.unwrap().waiting, 2);
    let again = t.lease(SESSION, &lane("a/b:p1"), 9).await;
    let names: Vec<String> =
        again.iter().map(|l| system_bus::streams::envelope::Envelope::decode(&l.envelope).unwrap().id).collect();
    assert_eq!(names, [ids[1].clone(), ids[0].clone()]);
    assert_ne!(again[1].id, leased[0].id);
}

#[tokio::test]
async fn what_was_deleted_by_hand_is_reported_as_lost_once() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    let waiting = t.emit(event("a/b")).await.entry_id.unwrap();
    let key = t.bus.keys.lane(&lane("a/b:p1"));
    t.cmd::<u64>(&["XDEL", &key, &waiting.to_string()]).await;
    finds(&t, &["lost"]).await;
    t.emit(event("a/b")).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await;
    t.cmd::<u64>(&["XDEL", &key, &leased[0].id.to_string()]).await;
    finds(&t, &["trimmed_pending"]).await;
    assert_eq!(t.bus.verify(0).await.unwrap().lost, 2);
}

#[tokio::test]
async fn a_lease_whose_session_is_gone_without_a_trace_is_reported_only() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    t.emit(event("a/b")).await;
    t.lease(SESSION, &lane("a/b:p1"), 1).await;
    t.cmd::<u64>(&["DEL", &t.bus.keys.sessions()]).await;
    let found = t.bus.fsck(true, WINDOW).await.unwrap();
    assert_eq!((found.len(), found[0].kind, found[0].repaired), (1, "orphaned_lease", false));
    t.open("host-2-b").await;
    assert_eq!(t.bus.reap(SESSION, "host-2-b", &lane("a/b:p1"), 9).await.unwrap().unwrap().entries.len(), 1);
    t.assert_clean().await;
}
