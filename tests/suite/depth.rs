//! Depth is asked of Redis and tells waiting, leased, retrying and scheduled apart.
use crate::common_streams::{SESSION, TestBus, event, family, lane};
use std::time::Duration;
use system_bus::streams::complete::Ending;
use system_bus::streams::control::{NewPause, PauseSource};
use system_bus::streams::priority::Priority;

#[tokio::test]
async fn an_empty_bus_has_no_depth_and_reading_it_writes_nothing() {
    let t = TestBus::start().await;
    let depth = t.bus.depth().await.unwrap();
    assert_eq!((depth.total, depth.oldest_timestamp, depth.by_family.len()), (0, None, 0));
    assert_eq!(t.cmd::<u64>(&["DBSIZE"]).await, 0);
}

#[tokio::test]
async fn every_state_is_counted_once() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    for _ in 0..6 {
        t.emit(event("a/b")).await;
    }
    let mut scheduled = event("a/b");
    scheduled.at = Some(4_000_000_000_000);
    t.emit(scheduled).await;
    let mut low = event("c/d");
    low.priority = Priority::P3;
    t.emit(low).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 4).await;
    t.retry(SESSION, &leased[0], Duration::from_secs(60)).await;
    t.end(SESSION, &leased[1], Ending::HandBack { deliveries: 0 }).await;
    t.done(SESSION, &leased[2]).await;
    let ttl = Duration::from_secs(60);
    let pause = NewPause {
        family: family("c/d").into(),
        ttl,
        reason: "r".into(),
        source: PauseSource::Manual,
        actor: None,
        shorten: false,
    };
    t.bus.pause(&pause).await.unwrap();

    let depth = t.bus.depth().await.unwrap();
    let a = &depth.by_family[0];
    assert_eq!((a.waiting, a.leased, a.orphaned, a.retrying, a.later), (3, 1, 0, 1, 1));
    assert!(depth.by_family[1].paused && depth.by_family[1].waiting == 1);
    assert_eq!((depth.total, depth.by_priority.p1, depth.by_priority.p3, depth.later), (6, 5, 1, 1));
    assert_eq!(depth.oldest_timestamp, Some(leased[0].id.ms));
    let json = serde_json::to_value(&depth).unwrap();
    assert_eq!(json["byPriority"]["P1"], 5);
    assert_eq!(json["byFamily"][0]["oldestAgeMs"], depth.oldest_age_ms.unwrap());

    t.expire(SESSION).await;
    assert_eq!(t.bus.depth().await.unwrap().by_family[0].orphaned, 1);
}

#[tokio::test]
async fn a_hole_in_the_undelivered_part_is_counted_by_hand() {
    let t = TestBus::start().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(t.emit(event("a/b")).await.entry_id.unwrap());
    }
    t.cmd::<u64>(&["XDEL", &t.bus.keys.lane(&lane("a/b:p1")), &ids[2].to_string()]).await;
    let depth = t.bus.depth().await.unwrap();
    assert_eq!((depth.total, depth.at_least), (4, false));
}
