//! Dead letters are listed, redriven and dropped; nobody does it twice.
use crate::common_streams::{SESSION, TestBus, event, family, lane, operator};
use system_bus::streams::dead::{DeadFilter, Redriven};
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::envelope::Envelope;
use system_bus::streams::json::JsonObject;

async fn three_dead(t: &TestBus) -> Vec<EntryId> {
    t.open(SESSION).await;
    let mut dead = Vec::new();
    for _ in 0..3 {
        t.emit(event("a/b")).await;
        let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await;
        dead.push(t.kill(SESSION, &leased[0]).await);
    }
    dead
}

#[tokio::test]
async fn letters_are_listed_newest_first_in_pages_and_filtered() {
    let t = TestBus::start().await;
    let dead = three_dead(&t).await;
    let all = DeadFilter::default();
    let page = t.bus.dead_letters(&all, None, 2, 100).await.unwrap();
    assert_eq!(page.letters.iter().map(|l| l.id).collect::<Vec<_>>(), [dead[2], dead[1]]);
    let page = t.bus.dead_letters(&all, page.next, 2, 100).await.unwrap();
    assert_eq!(page.letters.iter().map(|l| l.id).collect::<Vec<_>>(), [dead[0]]);
    assert_eq!(page.next, None);
    let none = DeadFilter { family: Some(family("x/y")), ..DeadFilter::default() };
    assert!(t.bus.dead_letters(&none, None, 2, 100).await.unwrap().letters.is_empty());
    let rejected = DeadFilter { reason: Some("rejected".into()), ..DeadFilter::default() };
    assert_eq!(t.bus.dead_letters(&rejected, None, 9, 100).await.unwrap().letters.len(), 3);
}

#[tokio::test]
async fn a_letter_is_redriven_once_and_remembers_how_often() {
    let t = TestBus::start().await;
    let dead = three_dead(&t).await;
    let outcomes = t.bus.redrive(&[dead[0], dead[0], EntryId { ms: 1, seq: 1 }], &operator(), None).await.unwrap();
    assert!(matches!(&outcomes[0], Redriven::Sent { lane, .. } if lane == "a/b:p1"));
    assert_eq!(outcomes[1..], [Redriven::Gone, Redriven::Gone]);
    let again = t.lease(SESSION, &lane("a/b:p1"), 1).await.remove(0);
    assert_eq!((again.redrive.as_ref().unwrap().redrives, again.deliveries), (1, 1));
    let id = t.kill(SESSION, &again).await;
    t.bus.redrive(&[id], &operator(), None).await.unwrap();
    let again = t.lease(SESSION, &lane("a/b:p1"), 1).await.remove(0);
    assert_eq!(again.redrive.as_ref().unwrap().redrives, 2);
    t.done(SESSION, &again).await;
    assert_eq!(t.actions().await.iter().filter(|a| *a == "queue.dead.redriven").count(), 2);
    t.assert_clean().await;
    let verdict = t.bus.verify(0).await.unwrap();
    assert_eq!((verdict.accepted, verdict.completed, verdict.dead, verdict.waiting), (3, 1, 2, 0));
}

#[tokio::test]
async fn an_edited_letter_keeps_its_identity() {
    let t = TestBus::start().await;
    let dead = three_dead(&t).await;
    let before = t.bus.dead_letter(dead[0]).await.unwrap().unwrap().event.unwrap();
    let data = JsonObject::parse(r#"{"n":2}"#).unwrap();
    t.bus.redrive(&[dead[0]], &operator(), Some(&data)).await.unwrap();
    let again = t.lease(SESSION, &lane("a/b:p1"), 1).await.remove(0);
    assert_eq!(Envelope::decode(&again.envelope).unwrap(), Envelope { data, ..before });
}

#[tokio::test]
async fn a_dropped_letter_is_gone_and_journaled_once() {
    let t = TestBus::start().await;
    let dead = three_dead(&t).await;
    assert_eq!(t.bus.drop_dead(&dead[..1], &operator()).await.unwrap(), [true]);
    assert_eq!(t.bus.drop_dead(&dead[..2], &operator()).await.unwrap(), [false, true]);
    assert_eq!(t.bus.drop_dead(&[], &operator()).await.unwrap(), [false; 0]);
    assert_eq!(t.bus.redrive(&dead[..1], &operator(), None).await.unwrap(), [Redriven::Gone]);
    assert_eq!(t.actions().await.iter().filter(|a| *a == "queue.dead.dropped").count(), 2);
    t.assert_clean().await;
}

#[tokio::test]
async fn raw_bytes_are_shown_and_can_be_redriven_but_not_edited() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    t.emit(event("a/b")).await;
    t.cmd::<String>(&["XADD", &t.bus.keys.lane(&lane("a/b:p1")), "*", "e", "junk"]).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 2).await.remove(1);
    let id = t.kill(SESSION, &leased).await;
    let letter = t.bus.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(letter.raw_base64.as_deref(), Some("anVuaw=="));
    let edit = JsonObject::default();
    let refused = t.bus.redrive(&[id], &operator(), Some(&edit)).await.unwrap();
    assert!(matches!(refused[0], Redriven::Refused { .. }));
    assert!(matches!(t.bus.redrive(&[id], &operator(), None).await.unwrap()[0], Redriven::Sent { .. }));
}
