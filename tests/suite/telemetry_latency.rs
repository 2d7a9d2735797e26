//! Percentiles from the journal: exact over any window, across restarts and competing followers, and the same bytes
//! after everything was dropped and replayed.
#![allow(clippy::cast_possible_truncation)]

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common_streams::TestBus;
use system_bus::streams::bus::Bus;
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::journal;
use system_bus::streams::records::{DispatchRow, Dispatches, Fact, PackedId, Record};
use system_bus::telemetry::latency::{Recorder, kind, read};
use system_bus::telemetry::projection::{self, Follower, window};
use tokio_util::sync::CancellationToken;

const KEEP: Duration = Duration::from_secs(7 * 86_400);

/// A wait for each number, spread over six orders of magnitude.
fn wait_of(n: u64) -> u64 {
    (n.wrapping_mul(2_654_435_761) % 1_000) * (1 + n % 7) * (1 + n % 97)
}

/// Writes `batches` of 100 dispatches into the journal, 150 ms apart, from `first_ms` on.
async fn dispatches(bus: &Bus, first_ms: u64, from: u64, batches: u64) {
    for batch in from..from + batches {
        let ms = first_ms + batch * 150;
        let row = |n: u64| DispatchRow {
            lane: (n % 2) as u16,
            ms: ms - 1,
            seq: n,
            id: PackedId(format!("e-{n}")),
            handler: 0,
            attempt: 1,
            wait_ms: wait_of(n),
            started_ms: ms,
            duration_us: wait_of(n + 1) + 1,
            promoted_from: None,
            start_known: false,
            trace: None,
        };
        let rows = (batch * 100..batch * 100 + 100).map(row).collect();
        let lanes = vec!["a/one:p1".to_owned(), "a/two:p2".to_owned()];
        let blob = journal::encode(&[
            Record::Dispatch(Dispatches { lanes, handlers: vec![("local".into(), "x".into())], rows }),
            Record::Fact(Fact::new("queue-drainer", "queue.dispatch.failed").failed("no").with("durationMs", 2.5)),
        ]);
        let mut add = redis::cmd("XADD");
        add.arg(bus.keys.journal()).arg(format!("{ms}-0")).arg("b").arg(blob);
        bus.redis.query::<String>(&add).await.unwrap();
    }
}

fn exact(mut values: Vec<u64>, thousandths: u64) -> f64 {
    values.sort_unstable();
    let rank = (values.len() as u64 * thousandths).div_ceil(1000);
    values[rank as usize - 1] as f64
}

async fn assert_exact(bus: &Bus, first_ms: u64, since_ms: u64, batches: u64) {
    let told = window(bus, EntryId { ms: since_ms, seq: 0 }).await.unwrap();
    let counted = (0..batches).filter(|batch| first_ms + batch * 150 >= since_ms);
    let numbers: Vec<u64> = counted.flat_map(|batch| batch * 100..batch * 100 + 100).collect();
    let waits: Vec<u64> = numbers.iter().map(|n| wait_of(*n)).collect();
    let summary = told.summary(kind::WAIT, |_| true);
    assert_eq!(summary.count, waits.len() as u64, "since {since_ms}");
    assert_eq!(told.count("completed", |_, _| true), waits.len() as u64);
    let q = [(500, summary.p50), (950, summary.p95), (990, summary.p99), (999, summary.p999)];
    for (thousandths, told) in q {
        let (told, right) = (told.unwrap(), exact(waits.clone(), thousandths));
        assert!((told - right).abs() <= right * 0.001, "{thousandths}: {told} instead of {right}");
    }
    let one = told.summary(kind::WAIT, |lane| lane == "a/one:p1");
    assert_eq!(one.count, numbers.iter().filter(|n| *n % 2 == 0).count() as u64);
}

/// Every key of the projection with its content.
async fn stored(t: &TestBus) -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for pattern in ["*:latency:*", "*:counts:*"] {
        for key in t.cmd::<Vec<String>>(&["KEYS", pattern]).await {
            let fields = t.bus.redis.query(redis::cmd("HGETALL").arg(&key)).await.unwrap();
            all.insert(key, fields);
        }
    }
    all
}

#[tokio::test]
async fn percentiles_are_exact_across_restarts_and_two_followers_and_the_same_after_a_replay() {
    let t = TestBus::start().await;
    let first_ms = t.bus.now_ms().await.unwrap() / 60_000 * 60_000 - 600_000 + 7;
    dispatches(&t.bus, first_ms, 0, 400).await;
    // Nothing was projected yet: the window folds the journal itself.
    assert_exact(&t.bus, first_ms, 0, 400).await;

    assert!(Follower::new(t.bus.clone(), "one", KEEP).catch_up().await.unwrap());
    dispatches(&t.bus, first_ms, 400, 200).await;
    assert!(!Follower::new(t.bus.clone(), "two", KEEP).catch_up().await.unwrap(), "the first still has the lease");
    // The first is gone without a word; its lease ends.
    t.cmd::<()>(&["DEL", &t.bus.keys.reader_lease("stats")]).await;
    assert!(Follower::new(t.bus.clone(), "two", KEEP).catch_up().await.unwrap());
    dispatches(&t.bus, first_ms, 600, 400).await;
    // The last part is not projected.
    for since in [0, first_ms, first_ms + 150 * 333, first_ms + 59_993, first_ms + 150 * 401, first_ms + 150 * 700 + 1]
    {
        assert_exact(&t.bus, first_ms, since, 1000).await;
    }

    t.cmd::<()>(&["DEL", &t.bus.keys.reader_lease("stats")]).await;
    let (one, two) = (t.bus.separate(), t.bus.separate());
    // Two at once: whatever they do to each other, every batch counts once.
    let (one, two) = tokio::join!(async move { Follower::new(one, "three", KEEP).catch_up().await }, async move {
        Follower::new(two, "four", KEEP).catch_up().await
    });
    assert!(one.unwrap() | two.unwrap());
    assert_exact(&t.bus, first_ms, 0, 1000).await;

    let before = (stored(&t).await, window(&t.bus, EntryId::MIN).await.unwrap().state);
    assert!(before.0.len() >= 10, "{:?}", before.0.keys());
    for key in before.0.keys() {
        t.cmd::<()>(&["DEL", key]).await;
    }
    t.cmd::<()>(&["DEL", &t.bus.keys.cursors(), &t.bus.keys.reader_state("stats"), &t.bus.keys.reader_lease("stats")])
        .await;
    assert_exact(&t.bus, first_ms, 0, 1000).await;
    projection::replay(&t.bus, "five", KEEP).await.unwrap();
    let after = (stored(&t).await, window(&t.bus, EntryId::MIN).await.unwrap().state);
    assert!(before == after);
    // Again, over what is there.
    projection::replay(&t.bus, "six", KEEP).await.unwrap();
    assert!(before.0 == stored(&t).await);
    assert_exact(&t.bus, first_ms, first_ms + 30_000, 1000).await;

    // Minutes that have expired are folded from the journal, and what it no longer has is said to be unknown.
    for key in before.0.keys() {
        t.cmd::<()>(&["DEL", key]).await;
    }
    let told = projection::window_within(&t.bus, EntryId::MIN, Duration::from_millis(1)).await.unwrap();
    assert_eq!(told.count("started", |_, _| true), 100_000);
    assert_eq!(window(&t.bus, EntryId::MIN).await.unwrap().count("started", |_, _| true), 0, "taken as stored");
    let journal = t.bus.keys.journal();
    t.cmd::<u64>(&["XTRIM", &journal, "MAXLEN", "1"]).await;
    let told = projection::window_within(&t.bus, EntryId::MIN, Duration::from_millis(1)).await.unwrap();
    let first = t.bus.journal_batches(EntryId::MIN, EntryId::MAX, 1).await.unwrap()[0].0;
    assert_eq!(told.known_since_ms, first.ms);
}

#[tokio::test]
async fn an_empty_window_has_no_percentiles() {
    let t = TestBus::start().await;
    let now = t.bus.now_ms().await.unwrap();
    for _ in 0..2 {
        let told = window(&t.bus, EntryId { ms: now + 1000, seq: 0 }).await.unwrap();
        assert_eq!(told.summary(kind::WAIT, |_| true), DefaultLow::default_low());
        t.bus.journal([Fact::new("queue", "queue.replay")]).await.unwrap();
        Follower::new(t.bus.clone(), "one", KEEP).catch_up().await.unwrap();
    }
}

/// An empty summary: all `None`, and marked as of little confidence.
trait DefaultLow {
    fn default_low() -> Self;
}

impl DefaultLow for system_bus::telemetry::latency::Summary {
    fn default_low() -> Self {
        Self { low_confidence: true, ..Self::default() }
    }
}

#[tokio::test]
async fn what_is_recorded_directly_is_written_by_its_minute_and_added_up_over_writers() {
    let t = TestBus::start().await;
    let before = t.bus.now_ms().await.unwrap() / 60_000;
    for writer in ["host-1", "host-2"] {
        let stop = CancellationToken::new();
        let (recorder, flusher) = Recorder::new(t.bus.clone(), writer, KEEP);
        for ms in 1..=100 {
            recorder.record(kind::STEP, "app-resize", Duration::from_millis(ms));
        }
        stop.cancel();
        flusher.run(stop).await;
        assert_eq!(recorder.dropped(), 0);
    }
    let after = t.bus.now_ms().await.unwrap() / 60_000;
    let all = read::minutes(&t.bus, kind::STEP, before, after).await.unwrap();
    let summary = all["app-resize"].summary();
    assert_eq!((summary.count, summary.min, summary.max), (200, Some(1.0), Some(100.0)));
    assert!((summary.p50.unwrap() - 50.0).abs() <= 0.05);
}

#[tokio::test]
async fn a_replay_takes_nothing_over_although_the_first_step_of_a_minute_has_no_dispatch() {
    let t = TestBus::start().await;
    let first_ms = t.bus.now_ms().await.unwrap() / 60_000 * 60_000 - 600_000;
    // More than one step of batches that have no latency, then some that have, all of one minute.
    for ms in first_ms..first_ms + 600 {
        let blob = journal::encode_facts([Fact::new("queue", "queue.noted")]);
        let mut add = redis::cmd("XADD");
        add.arg(t.bus.keys.journal()).arg(format!("{ms}-0")).arg("b").arg(blob);
        t.bus.redis.query::<String>(&add).await.unwrap();
    }
    dispatches(&t.bus, first_ms + 1_000, 0, 20).await;
    assert!(Follower::new(t.bus.clone(), "one", KEEP).catch_up().await.unwrap());
    let before = stored(&t).await;
    t.cmd::<()>(&["DEL", &t.bus.keys.reader_lease("stats")]).await;
    projection::replay(&t.bus, "two", KEEP).await.unwrap();
    assert_eq!(before, stored(&t).await);
    assert_exact(&t.bus, first_ms + 1_000, 0, 20).await;
}

/// Batches that the archive has not passed.
async fn behind(bus: &Bus) -> u64 {
    bus.journal_end().await.unwrap().behind(&bus.readers().await.unwrap()["archive"])
}

#[tokio::test]
async fn retention_waits_for_a_required_reader_and_a_cursor_moves_only_from_where_it_is() {
    use system_bus::streams::readers::{Held, Reader, Stretch};
    let t = TestBus::start().await;
    let now = t.bus.now_ms().await.unwrap();
    let reader = |owner: &str| Reader {
        name: "archive",
        owner: owner.into(),
        lease: Duration::from_secs(10),
        is_required: true,
    };
    dispatches(&t.bus, now - 600_000, 0, 300).await;
    let (one, two) = (reader("one"), reader("two"));
    assert!(matches!(t.bus.hold_reader(&one).await.unwrap(), Held::Ours { cursor: EntryId::MIN, .. }));
    assert_eq!(t.bus.hold_reader(&two).await.unwrap(), Held::Theirs("one".into()));
    let to = EntryId { ms: now - 600_000 + 150 * 250, seq: 0 };
    let stretch = |from, to, batches| Stretch { from, to, batches, is_last: false };
    let moved = t.bus.move_reader(&one, stretch(EntryId::MIN, to, 251), "s", &[]).await.unwrap();
    assert!(matches!(moved, Held::Ours { .. }));
    let again = t.bus.move_reader(&one, stretch(EntryId::MIN, EntryId::MAX, 1), "", &[]).await.unwrap();
    assert_eq!(again, Held::Moved(to));
    assert!(
        matches!(t.bus.hold_reader(&one).await.unwrap(), Held::Ours { cursor, state } if cursor == to && state == "s")
    );

    let trimmed = t.bus.trim_journal(Duration::from_secs(1), 1_000_000, false).await.unwrap();
    assert_eq!((trimmed.removed, trimmed.held_by.as_deref()), (250, Some("archive")));
    assert_eq!(behind(&t.bus).await, 49);
    let forced = t.bus.trim_journal(Duration::from_secs(1), 1, true).await.unwrap();
    assert_eq!(forced.held_by, None);

    // What it had not passed is gone in part; at the end its count is right again.
    dispatches(&t.bus, now - 600_000, 300, 10).await;
    let end = t.bus.journal_end().await.unwrap();
    assert!(behind(&t.bus).await > 0 && behind(&t.bus).await <= end.length);
    let last = Stretch { from: to, to: end.id, batches: usize::try_from(end.length).unwrap(), is_last: true };
    assert!(matches!(t.bus.move_reader(&one, last, "", &[]).await.unwrap(), Held::Ours { .. }));
    assert_eq!(t.bus.readers().await.unwrap()["archive"].passed, Some(end.added));
    dispatches(&t.bus, now - 600_000, 310, 3).await;
    assert_eq!(behind(&t.bus).await, 3);
    // Where an operator put it, nobody has counted.
    t.bus.set_reader("archive", to, true).await.unwrap();
    assert_eq!(behind(&t.bus).await, t.bus.journal_end().await.unwrap().length);

    t.bus.release_reader(&one).await.unwrap();
    assert!(matches!(t.bus.hold_reader(&two).await.unwrap(), Held::Ours { .. }));
    t.bus.forget_reader("archive").await.unwrap();
    assert!(t.bus.readers().await.unwrap().is_empty());
}
