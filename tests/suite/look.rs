//! Any id leads to the event, and `why` names the one thing that holds it.
use crate::common_streams::{SESSION, TestBus, event, family, lane, operator};
use std::time::Duration;
use system_bus::streams::control::{NewPause, PauseSource};
use system_bus::streams::find::Place;
use system_bus::streams::look::{Hold, ListFilter, Routing, State};
use system_bus::streams::priority::Priority;

const ROUTED: Routing = Routing { is_routed: true, is_ordered: false };

fn filter() -> ListFilter {
    ListFilter { family: None, state: None, priority: None, older_than: None, condition: None, limit: 10, aging: None }
}

#[tokio::test]
async fn every_kind_of_id_and_prefix_resolves() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    let made = t.emit(event("a/b")).await;
    let mut named = event("a/b");
    named.id = Some("order:2026:0001".into());
    let named = t.emit(named).await;
    let place = |appended: &system_bus::streams::append::Appended| {
        vec![Place::Entry(appended.lane.clone(), appended.entry_id.unwrap())]
    };
    let stream_id = made.entry_id.unwrap().to_string();
    for id in [&made.event_id, &stream_id, &made.event_id[..18].to_owned()] {
        assert_eq!(t.bus.find(id).await.unwrap().places, place(&made), "{id}");
    }
    for id in ["order:2026:0001", "order:2026"] {
        assert_eq!(t.bus.find(id).await.unwrap().places, place(&named), "{id}");
    }
    assert_eq!(t.bus.find(&stream_id[..9]).await.unwrap().places.len(), 2);
    assert!(t.bus.find("order").await.unwrap().places.is_empty(), "too short for a prefix");
    let mut later = event("c/d");
    later.at = Some(4_000_000_000_000);
    let later = t.emit(later).await;
    assert!(matches!(t.bus.find(&later.event_id).await.unwrap().places[..], [Place::Later(..)]));

    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await;
    let dead = t.kill(SESSION, &leased[0]).await;
    for id in [&made.event_id, &dead.to_string()] {
        assert_eq!(t.bus.find(id).await.unwrap().places, [Place::Dead(dead)], "{id}");
    }
    t.bus.redrive(&[dead], &operator(), None).await.unwrap();
    assert!(t.bus.find(&made.event_id).await.unwrap().places.len() >= 2, "both entries are listed");
}

#[tokio::test]
async fn a_stream_id_in_two_lanes_is_listed_twice() {
    let t = TestBus::start().await;
    for lane_name in ["a/b:p1", "c/d:p1"] {
        t.emit(event(&lane_name[..3])).await;
        t.cmd::<String>(&["XADD", &t.bus.keys.lane(&lane(lane_name)), "4000000000000-7", "e", "x"]).await;
    }
    assert_eq!(t.bus.find("4000000000000-7").await.unwrap().places.len(), 2);
}

#[tokio::test]
async fn inspect_and_why_follow_an_event_through_its_life() {
    let t = TestBus::start().await;
    let entry = t.emit(event("a/b")).await;
    let second = t.emit(event("a/b")).await;
    let place = Place::Entry(entry.lane.clone(), entry.entry_id.unwrap());
    let routed = |_: &_| ROUTED;
    let why = async || t.bus.why(&place, &routed).await.unwrap();
    let state = async || t.bus.inspect(&place).await.unwrap();

    assert_eq!(state().await.state, State::Waiting);
    assert_eq!(t.bus.why(&place, &|_| Routing::default()).await.unwrap(), Hold::Unrouted);
    assert_eq!(why().await, Hold::NoDrainer);
    t.open(SESSION).await;
    assert_eq!(why().await, Hold::Next);
    let behind = Place::Entry(second.lane.clone(), second.entry_id.unwrap());
    assert_eq!(t.bus.why(&behind, &routed).await.unwrap(), Hold::AheadInLane { n: 1 });
    let pause = NewPause {
        family: family("a/b").into(),
        ttl: Duration::from_secs(60),
        reason: "maintenance".into(),
        source: PauseSource::Manual,
        actor: None,
        shorten: false,
    };
    t.bus.pause(&pause).await.unwrap();
    assert!(matches!(why().await, Hold::Paused { reason: Some(reason), .. } if reason == "maintenance"));
    t.bus.resume(&family("a/b"), PauseSource::Manual, "r", None).await.unwrap();

    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await.remove(0);
    assert!(matches!(why().await, Hold::Leased { owner, .. } if owner == SESSION));
    let lease = state().await.lease.unwrap();
    assert_eq!((lease.fence, lease.expires_ms.is_some()), (1, true));
    let ordered = |_: &_| Routing { is_routed: true, is_ordered: true };
    assert!(matches!(t.bus.why(&behind, &ordered).await.unwrap(), Hold::OrderedBehind { .. }));
    t.expire(SESSION).await;
    assert!(matches!(why().await, Hold::Orphaned { .. }));
    t.open(SESSION).await;
    t.retry(SESSION, &leased, Duration::from_secs(60)).await;
    assert!(matches!(why().await, Hold::Retry { due_ms: Some(_), error: Some(error) } if error == "boom"));
    assert_eq!((state().await.attempts, state().await.failures.unwrap().count), (1, 1));
    t.cmd::<u64>(&["ZADD", &t.bus.keys.due_of(&family("a/b")), "1", &format!("p1|{}", leased.id)]).await;
    let again = t.bus.claim_due(SESSION, &family("a/b"), 9).await.unwrap().remove(0);
    assert_eq!(state().await.lease.unwrap().fence, 2);
    t.kill(SESSION, &again).await;
    assert!(matches!(why().await, Hold::Dead { reason, .. } if reason == "rejected"));
    let second = t.lease(SESSION, &lane("a/b:p1"), 1).await.remove(0);
    t.done(SESSION, &second).await;
    assert_eq!(t.bus.why(&behind, &routed).await.unwrap(), Hold::Done);
    let history = t.bus.history(&entry.event_id, 0, 1000).await.unwrap();
    let actions: Vec<_> = history.entries.iter().map(|entry| entry.fact.action.as_ref()).collect();
    assert_eq!(actions, ["queue.enqueue", "queue.dispatch.failed", "queue.dead"]);
    assert!(t.bus.history(&entry.event_id, 0, 2).await.unwrap().cut);
}

#[tokio::test]
async fn the_list_is_in_dispatch_order_and_filtered() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    let mut ids = Vec::new();
    for (name, priority) in [("a/b", Priority::P3), ("a/b", Priority::P1), ("c/d", Priority::P0), ("c/d", Priority::P1)]
    {
        let mut new = event(name);
        new.priority = priority;
        ids.push(t.emit(new).await.event_id);
        // Equal times are ordered by id, and ids of two lanes say nothing about each other.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let listed = t.bus.list(&filter()).await.unwrap();
    let order: Vec<&String> = listed.iter().filter_map(|line| line.event_id.as_ref()).collect();
    assert_eq!(order, [&ids[2], &ids[1], &ids[3], &ids[0]]);
    assert_eq!(t.bus.list(&ListFilter { limit: 2, ..filter() }).await.unwrap().len(), 2);
    assert_eq!(t.bus.list(&ListFilter { family: Some(family("a/b")), ..filter() }).await.unwrap().len(), 2);
    assert_eq!(t.bus.list(&ListFilter { priority: Some(Priority::P1), ..filter() }).await.unwrap().len(), 2);
    let old = ListFilter { older_than: Some(Duration::from_secs(60)), ..filter() };
    assert!(t.bus.list(&old).await.unwrap().is_empty());
    tokio::time::sleep(Duration::from_millis(5)).await;
    let aged = t.bus.list(&ListFilter { aging: Some(Duration::from_millis(1)), ..filter() }).await.unwrap();
    assert_eq!(aged[1].event_id.as_ref(), Some(&ids[0]), "a P3 that waited long enough competes as P1");
    t.lease(SESSION, &lane("c/d:p0"), 1).await;
    assert_eq!(t.bus.list(&ListFilter { state: Some(State::Leased), ..filter() }).await.unwrap().len(), 1);
    assert_eq!(t.bus.list(&ListFilter { state: Some(State::Waiting), ..filter() }).await.unwrap().len(), 3);
}
