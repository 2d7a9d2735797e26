//! Every script on a real Redis: what it does, on nothing, twice, and as a loser.
use crate::common_streams;
use crate::common_streams::{SESSION, TestBus, dead_record, event, family, lane, operator};
use std::time::Duration;
use system_bus::streams::append::{DuplicateBy, Error as AppendError, MemoryBudget, Once, Settings};
use system_bus::streams::complete::{CompleteError, Completion, Ending};
use system_bus::streams::control::{NewPause, PauseOutcome, PauseSource, ResumeOutcome};
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::json::JsonObject;
use system_bus::streams::lease::Failures;
use system_bus::streams::redis::ScriptCall;
use system_bus::streams::retention::Retain;
use system_bus::streams::scripts::{self, Script};
use system_bus::streams::sessions::Renewal;

const OTHER: &str = "host-2-b";

async fn run<T: redis::FromRedisValue>(t: &TestBus, script: &Script, keys: &[String], args: &[&str]) -> T {
    let mut call = ScriptCall::new(script);
    for key in keys {
        call.push_key(key.as_str());
    }
    for arg in args {
        call.push_arg(*arg);
    }
    t.bus.redis.run(call).await.unwrap()
}

fn pause(source: PauseSource, seconds: u64) -> NewPause {
    NewPause {
        family: family("a/b").into(),
        ttl: Duration::from_secs(seconds),
        reason: "r".into(),
        source,
        actor: None,
        shorten: false,
    }
}

async fn count(t: &TestBus, action: &str) -> usize {
    t.actions().await.iter().filter(|found| *found == action).count()
}

// append.lua

#[tokio::test]
async fn append_answers_a_known_id_with_the_first_entry_and_says_when_the_data_differs() {
    let t = TestBus::start().await;
    let mut new = event("a/b");
    new.id = Some("x-1".into());
    let first = t.emit(new.clone()).await;
    let second = t.emit(new.clone()).await;
    assert_eq!((second.duplicate, second.entry_id), (Some(DuplicateBy::Id), first.entry_id));
    new.data = JsonObject::parse(r#"{"n":2}"#).unwrap();
    t.emit(new.clone()).await;
    let page = t.bus.journal_page(EntryId::MIN, EntryId::MAX, 99).await.unwrap();
    let differs: Vec<_> = page.entries.iter().filter_map(|e| e.fact.metadata.get("dataDiffers")).collect();
    assert_eq!(differs, [&serde_json::json!(false), &serde_json::json!(true)]);
    new.name = family("c/d");
    assert_eq!(t.emit(new).await.duplicate, None, "ids are remembered per family");
    t.assert_clean().await;
}

#[tokio::test]
async fn append_finds_duplicates_within_one_batch() {
    let t = TestBus::start().await;
    let mut named = event("a/b");
    named.id = Some("x-1".into());
    let mut keyed = event("a/b");
    keyed.dedup_key = Some("k".into());
    keyed.dedup_window = Some(Duration::from_secs(60));
    let mut other = keyed.clone();
    other.name = family("c/d");
    let batch = vec![named.clone(), named, keyed.clone(), keyed, other, event("a/b")];
    let answers = t.appender.append(batch).await.unwrap();
    let by: Vec<_> = answers.iter().map(|answer| answer.duplicate).collect();
    assert_eq!(by, [None, Some(DuplicateBy::Id), None, Some(DuplicateBy::Window), None, None]);
    assert_eq!(answers[3].event_id, answers[2].event_id);
    assert_eq!(t.bus.depth().await.unwrap().total, 4);
}

#[tokio::test]
async fn append_honours_windows_and_deliveries_until_they_end() {
    let t = TestBus::start().await;
    let mut keyed = event("a/b");
    keyed.dedup_key = Some("k".into());
    keyed.dedup_window = Some(Duration::from_secs(60));
    let first = t.emit(keyed.clone()).await;
    let again = t.emit(keyed.clone()).await;
    assert_eq!((again.duplicate, again.event_id), (Some(DuplicateBy::Window), first.event_id.clone()));
    // A second id of a hit is remembered: its own repetition gets the same answer.
    keyed.id = Some("second".into());
    assert_eq!(t.emit(keyed.clone()).await.duplicate, Some(DuplicateBy::Window));
    assert_eq!(t.emit(keyed.clone()).await.duplicate, Some(DuplicateBy::Id));
    t.cmd::<u64>(&["DEL", &t.bus.keys.dedup(&family("a/b"), "k")]).await;
    keyed.id = None;
    assert_eq!(t.emit(keyed).await.duplicate, None);
    let mut delivery = event("a/b");
    delivery.once = Some(Once { key: "github:1".into(), window: Duration::from_secs(60) });
    assert_eq!(t.emit(delivery.clone()).await.duplicate, None);
    assert_eq!(t.emit(delivery).await.duplicate, Some(DuplicateBy::Window));
}

#[tokio::test]
async fn append_repeats_the_answers_of_a_call_and_stores_nothing_twice() {
    let t = TestBus::start().await;
    let keys = &t.bus.keys;
    let named = [keys.call("tok"), keys.lanes(), keys.families(), keys.journal(), keys.ready(), keys.wake()];
    let mut all = named.to_vec();
    all.extend([keys.later(), keys.later_data(), keys.lane(&lane("a/b:p1"))]);
    let args = [keys.tag(), "ctl", "", "60000", "0", "10", "128", "1", "2", "1", "a/b:p1", "a/b", "2", "E", "F"];
    let first: String = run(&t, &scripts::APPEND, &all, &args).await;
    assert!(first.ends_with("-0*2"), "two entries in a row are one line: {first}");
    assert_eq!(run::<String>(&t, &scripts::APPEND, &all, &args).await, first);
    assert_eq!(t.cmd::<u64>(&["XLEN", &keys.lane(&lane("a/b:p1"))]).await, 2);
    assert_eq!(t.cmd::<u64>(&["XLEN", &keys.journal()]).await, 1);
}

#[tokio::test]
async fn append_refuses_one_family_too_many_and_leaves_the_others_alone() {
    let t = TestBus::with(Settings { max_families: 2, ..Settings::default() }).await;
    t.emit(event("a/b")).await;
    t.emit(event("c/d")).await;
    let error = t.appender.append(vec![event("a/b"), event("e/f")]).await.unwrap_err();
    assert!(matches!(error, AppendError::TooManyFamilies { name, limit: 2 } if name.as_str() == "e/f"));
    assert_eq!(t.bus.depth().await.unwrap().total, 2, "nothing of the batch was appended");
    t.emit(event("a/b")).await;
}

#[tokio::test]
async fn append_on_a_full_redis_refuses_before_anything_is_written_while_control_goes_on() {
    let t = TestBus::with(Settings { memory_budget: MemoryBudget::Off, ..Settings::default() }).await;
    t.open(SESSION).await;
    t.emit(event("a/b")).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await.remove(0);
    t.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let keys = t.cmd::<u64>(&["DBSIZE"]).await;
    assert!(matches!(t.appender.append(vec![event("x/y")]).await.unwrap_err(), AppendError::Full { .. }));
    assert_eq!(t.cmd::<u64>(&["DBSIZE"]).await, keys);
    assert!(matches!(t.bus.pause(&pause(PauseSource::Manual, 60)).await.unwrap(), PauseOutcome::Paused { .. }));
    t.kill(SESSION, &leased).await;
    t.cmd::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    t.emit(event("x/y")).await;
    t.assert_clean().await;
}

// later.lua

#[tokio::test]
async fn later_moves_what_is_due_once() {
    let t = TestBus::start().await;
    assert_eq!(t.bus.promote_later(9).await.unwrap(), (0, None));
    let mut scheduled = event("a/b");
    scheduled.at = Some(4_000_000_000_000);
    let answer = t.emit(scheduled).await;
    assert_eq!(answer.entry_id, None);
    assert_eq!(t.bus.promote_later(9).await.unwrap(), (0, Some(4_000_000_000_000)));
    t.cmd::<u64>(&["ZADD", &t.bus.keys.later(), "1", &format!("a/b:p1|{}", answer.event_id)]).await;
    assert_eq!(t.bus.promote_later(9).await.unwrap(), (1, None));
    assert_eq!(t.bus.promote_later(9).await.unwrap(), (0, None));
    assert_eq!(t.bus.depth().await.unwrap().total, 1);
    assert_eq!(count(&t, "queue.promoted").await, 1);
    t.assert_clean().await;
}

// complete.lua

#[tokio::test]
async fn complete_refuses_a_fenced_session_and_does_nothing_with_nothing() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    assert!(t.bus.complete(SESSION, &[], &[]).await.unwrap().is_empty());
    t.emit(event("a/b")).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await.remove(0);
    t.cmd::<u64>(&["ZADD", &t.bus.keys.sessions(), "0", SESSION]).await;
    let done = Ending::Done { forget_failures: false };
    let batch = [Completion { lane: leased.lane.clone(), id: leased.id, ending: done }];
    for session in [SESSION, "never-opened"] {
        assert!(matches!(t.bus.complete(session, &batch, &[]).await, Err(CompleteError::Fenced)));
    }
    assert_eq!(t.bus.depth().await.unwrap().total, 1);
}

#[tokio::test]
async fn complete_repeated_writes_no_second_dead_letter_and_takes_nothing_back() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    t.open(OTHER).await;
    for _ in 0..3 {
        t.emit(event("a/b")).await;
    }
    let leased = t.lease(SESSION, &lane("a/b:p1"), 3).await;
    let failures = Failures { count: 1, ..Failures::default() };
    let batch = [
        (0, Ending::Dead(dead_record(&leased[0]))),
        (1, Ending::Retry { delay: Duration::ZERO, failures }),
        (2, Ending::HandBack { deliveries: 0 }),
    ]
    .map(|(i, ending): (usize, _)| Completion { lane: leased[i].lane.clone(), id: leased[i].id, ending });
    t.bus.complete(SESSION, &batch, &[]).await.unwrap();
    let taken = t.bus.claim_due(OTHER, &family("a/b"), 9).await.unwrap();
    let mut fences: Vec<(EntryId, u32)> = taken.iter().map(|leased| (leased.id, leased.deliveries)).collect();
    fences.sort_unstable();
    assert_eq!(fences, [(leased[1].id, 2), (leased[2].id, 1)], "a hand-back charges no attempt");
    t.bus.complete(SESSION, &batch, &[]).await.unwrap();
    assert_eq!(t.bus.dead_count().await.unwrap(), 1);
    assert_eq!(t.bus.claim_due(OTHER, &family("a/b"), 9).await.unwrap().len(), 0);
    let depth = t.bus.depth().await.unwrap();
    assert_eq!((depth.by_family[0].leased, depth.by_family[0].retrying), (2, 0));
}

#[tokio::test]
async fn complete_forgets_failures_with_the_entry() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    t.emit(event("a/b")).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 1).await.remove(0);
    t.retry(SESSION, &leased, Duration::ZERO).await;
    let again = t.bus.claim_due(SESSION, &family("a/b"), 9).await.unwrap().remove(0);
    assert_eq!((again.deliveries, again.failures.error.as_str()), (2, "boom"));
    t.end(SESSION, &again, Ending::Done { forget_failures: true }).await;
    t.assert_clean().await;
}

// due.lua

#[tokio::test]
async fn due_claims_each_retry_once_and_drops_what_is_gone() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    assert!(t.bus.claim_due(SESSION, &family("a/b"), 9).await.unwrap().is_empty());
    for _ in 0..2 {
        t.emit(event("a/b")).await;
    }
    let leased = t.lease(SESSION, &lane("a/b:p1"), 2).await;
    t.retry(SESSION, &leased[0], Duration::from_secs(60)).await;
    t.retry(SESSION, &leased[1], Duration::from_secs(60)).await;
    assert!(t.bus.claim_due(SESSION, &family("a/b"), 9).await.unwrap().is_empty(), "not due yet");
    t.cmd::<u64>(&["XDEL", &t.bus.keys.lane(&lane("a/b:p1")), &leased[1].id.to_string()]).await;
    let due = t.bus.keys.due_of(&family("a/b"));
    let members = [format!("p1|{}", leased[0].id), format!("p1|{}", leased[1].id)];
    t.cmd::<u64>(&["ZADD", &due, "1", &members[0], "1", &members[1], "1", "garbage", "1", "p3|1-1"]).await;
    let loser = t.bus.claim_due("never-opened", &family("a/b"), 9).await.unwrap_err();
    assert_eq!(loser.reply_code(), Some("FENCED"));
    let claimed = t.bus.claim_due(SESSION, &family("a/b"), 9).await.unwrap();
    assert_eq!(claimed.iter().map(|leased| leased.id).collect::<Vec<_>>(), [leased[0].id]);
    assert!(t.bus.claim_due(SESSION, &family("a/b"), 9).await.unwrap().is_empty());
    assert_eq!(t.cmd::<u64>(&["EXISTS", &due, &t.bus.keys.due()]).await, 0);
}

// session.lua, reap.lua

#[tokio::test]
async fn session_once_fenced_never_comes_back() {
    let t = TestBus::start().await;
    let lease = common_streams::LEASE;
    let renew = async |open| t.bus.renew_session(SESSION, open, lease, "{}", &[]).await.unwrap();
    assert_eq!(renew(false).await, Renewal::Lost, "never opened");
    t.open(SESSION).await;
    assert!(matches!(renew(false).await, Renewal::Live { .. }));
    t.expire(SESSION).await;
    assert!(matches!(renew(false).await, Renewal::Live { .. }), "overdue, but nobody has taken over");
    t.cmd::<u64>(&["ZADD", &t.bus.keys.sessions(), "0", SESSION]).await;
    assert_eq!((renew(false).await, renew(true).await), (Renewal::Lost, Renewal::Lost));
    t.bus.forget_session(SESSION).await.unwrap();
    t.bus.forget_session(SESSION).await.unwrap();
    t.bus.close_session(SESSION, false).await.unwrap();
    assert!(t.bus.sessions().await.unwrap().is_empty());
}

#[tokio::test]
async fn session_gives_an_ordered_family_to_one_holder_and_frees_it_from_the_dead() {
    let t = TestBus::start().await;
    let lock = [t.bus.keys.ordered(&family("a/b"))];
    let held = async |session, open| match t
        .bus
        .renew_session(session, open, common_streams::LEASE, "{}", &lock)
        .await
        .unwrap()
    {
        Renewal::Live { ordered, .. } => ordered.len(),
        Renewal::Lost => panic!("lost"),
    };
    assert_eq!((held(SESSION, true).await, held(OTHER, true).await, held(SESSION, false).await), (1, 0, 1));
    t.cmd::<u64>(&["ZADD", &t.bus.keys.sessions(), "0", SESSION]).await;
    assert_eq!(held(OTHER, false).await, 1);
}

#[tokio::test]
async fn reap_takes_only_from_ended_sessions_and_fences_them() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    t.open(OTHER).await;
    t.emit(event("a/b")).await;
    t.emit(event("a/b")).await;
    let leased = t.lease(SESSION, &lane("a/b:p1"), 2).await;
    t.retry(SESSION, &leased[1], Duration::from_secs(60)).await;
    let p1 = lane("a/b:p1");
    for ended in [SESSION, OTHER, "~retry"] {
        assert!(t.bus.reap(ended, OTHER, &p1, 9).await.unwrap().is_none(), "{ended}");
    }
    t.expire(SESSION).await;
    let loser = t.bus.reap(SESSION, "never-opened", &p1, 9).await.unwrap_err();
    assert_eq!(loser.reply_code(), Some("FENCED"));
    let reaped = t.bus.reap(SESSION, OTHER, &p1, 9).await.unwrap().unwrap();
    assert_eq!((reaped.entries.len(), reaped.entries[0].deliveries, reaped.more), (1, 2, false));
    assert!(t.bus.reap(SESSION, OTHER, &p1, 9).await.unwrap().unwrap().entries.is_empty());
    assert!(t.bus.reap(SESSION, OTHER, &lane("x/y:p0"), 9).await.unwrap().unwrap().entries.is_empty());
    let done = Ending::Done { forget_failures: false };
    let batch = [Completion { lane: p1.clone(), id: leased[0].id, ending: done }];
    assert!(matches!(t.bus.complete(SESSION, &batch, &[]).await, Err(CompleteError::Fenced)));
    t.done(OTHER, &reaped.entries[0]).await;
    assert_eq!(t.bus.depth().await.unwrap().by_family[0].retrying, 1, "a retry outlives its session");
    t.assert_clean().await;
}

// pause.lua, resume.lua, expire.lua

#[tokio::test]
async fn pause_is_replaced_by_a_longer_one_and_an_observer_never_touches_a_manual_one() {
    let t = TestBus::start().await;
    assert!(matches!(t.bus.pause(&pause(PauseSource::Manual, 600)).await.unwrap(), PauseOutcome::Paused { .. }));
    let replaced = t.bus.pause(&pause(PauseSource::Manual, 1200)).await.unwrap();
    assert!(
        matches!(replaced, PauseOutcome::Paused { replaced: Some(old), pause } if old.ttl_ms == 600_000 && pause.rev == 2)
    );
    let reason = |outcome| match outcome {
        PauseOutcome::Refused { reason, .. } => reason,
        PauseOutcome::Paused { .. } => "paused".into(),
    };
    assert_eq!(reason(t.bus.pause(&pause(PauseSource::Manual, 60)).await.unwrap()), "shorter_than_manual");
    assert_eq!(reason(t.bus.pause(&pause(PauseSource::Observer, 9999)).await.unwrap()), "manual_pause_active");
    let shorter = NewPause { shorten: true, ..pause(PauseSource::Manual, 60) };
    assert_eq!(reason(t.bus.pause(&shorter).await.unwrap()), "paused");
    let by_observer = t.bus.resume(&family("a/b"), PauseSource::Observer, "r", None).await.unwrap();
    assert_eq!(by_observer, ResumeOutcome::ManualPauseActive);
    let resumed = t.bus.resume(&family("a/b"), PauseSource::Manual, "r", None).await.unwrap();
    assert!(matches!(resumed, ResumeOutcome::Resumed { previous: Some(_) }));
    let twice = t.bus.resume(&family("a/b"), PauseSource::Manual, "r", None).await.unwrap();
    assert_eq!(twice, ResumeOutcome::NotPaused);
    assert_eq!(reason(t.bus.pause(&pause(PauseSource::Observer, 60)).await.unwrap()), "paused");
    assert_eq!(reason(t.bus.pause(&pause(PauseSource::Observer, 60)).await.unwrap()), "already_paused");
    assert!(count(&t, "queue.control.rejected").await >= 3);
}

#[tokio::test]
async fn expire_ends_a_pause_once_however_many_look() {
    let t = TestBus::start().await;
    assert_eq!(t.bus.expire_pauses().await.unwrap(), (0, None));
    t.bus.pause(&pause(PauseSource::Manual, 60)).await.unwrap();
    let (none, next) = t.bus.expire_pauses().await.unwrap();
    assert!(none == 0 && next.is_some());
    t.cmd::<u64>(&["ZADD", &t.bus.keys.pause_expiry(), "1", "a/b"]).await;
    assert!(t.bus.pauses().await.unwrap().active.is_empty());
    let buses = [(); 4].map(|()| t.bus.separate());
    let scans = futures_util::future::join_all(buses.iter().map(|bus| bus.expire_pauses())).await;
    assert_eq!(scans.into_iter().map(|scan| scan.unwrap().0).sum::<usize>(), 1);
    assert_eq!(count(&t, "queue.control.expired").await, 1);
}

#[tokio::test]
async fn expire_leaves_a_pause_that_was_renewed_meanwhile() {
    let t = TestBus::start().await;
    t.bus.pause(&pause(PauseSource::Manual, 60)).await.unwrap();
    t.cmd::<u64>(&["ZADD", &t.bus.keys.pause_expiry(), "1", "a/b"]).await;
    t.bus.pause(&pause(PauseSource::Manual, 60)).await.unwrap();
    assert_eq!(t.bus.expire_pauses().await.unwrap().0, 0);
    assert_eq!(t.bus.pauses().await.unwrap().active.len(), 1);
}

#[tokio::test]
async fn resume_clears_a_record_that_nobody_can_read() {
    let t = TestBus::start().await;
    t.cmd::<u64>(&["HSET", &t.bus.keys.pauses(), "a/b", "{garbage"]).await;
    t.cmd::<u64>(&["ZADD", &t.bus.keys.pause_expiry(), "4000000000000", "a/b"]).await;
    assert!(matches!(t.bus.pauses().await.unwrap().active.get("a/b"), Some((_, None))), "held, but unreadable");
    let refused = t.bus.resume(&family("a/b"), PauseSource::Observer, "r", None).await.unwrap();
    assert_eq!(refused, ResumeOutcome::ManualPauseActive);
    let resumed = t.bus.resume(&family("a/b"), PauseSource::Manual, "r", None).await.unwrap();
    assert_eq!(resumed, ResumeOutcome::Resumed { previous: None });
    assert!(t.bus.pauses().await.unwrap().active.is_empty());
}

// kill_switch.lua

#[tokio::test]
async fn kill_switch_is_never_thrown_without_its_record() {
    let t = TestBus::start().await;
    let throw = async |is_on: bool, lasts: Option<Duration>| t.bus.throw_kill_switch(is_on, lasts, "me", "drill").await;
    throw(true, Some(Duration::from_secs(60))).await.unwrap();
    let key = t.bus.keys.observer("kill");
    assert!(t.cmd::<i64>(&["PTTL", &key]).await > 50_000);
    throw(true, None).await.unwrap();
    assert_eq!(t.cmd::<i64>(&["PTTL", &key]).await, -1, "for good");
    assert_eq!(t.bus.kill_switch().await.unwrap().unwrap()["reason"], "drill");
    throw(false, None).await.unwrap();
    throw(false, None).await.unwrap();
    assert_eq!(t.bus.kill_switch().await.unwrap(), None);
    assert_eq!(count(&t, "queue.control.killswitch").await, 4);
    // Where no record can be written, nothing changes.
    t.cmd::<()>(&["SET", &t.bus.keys.journal(), "not a stream"]).await;
    throw(true, None).await.unwrap_err();
    assert_eq!(t.bus.kill_switch().await.unwrap(), None);
}

// redrive.lua, drop.lua, operator_ack.lua, undo_ack.lua, repair.lua: on nothing; the rest is in their own files

#[tokio::test]
async fn redrive_drop_and_undo_on_nothing_write_nothing() {
    let t = TestBus::start().await;
    let gone = EntryId { ms: 1, seq: 1 };
    t.bus.redrive(&[gone], &operator(), None).await.unwrap();
    t.bus.drop_dead(&[gone], &operator()).await.unwrap();
    t.bus.undo_ack("unknown", &operator()).await.unwrap();
    let keys = &t.bus.keys;
    let named = [keys.dead(), keys.journal(), keys.lanes(), keys.families(), keys.ready(), keys.wake()];
    let redriven: Vec<String> =
        run(&t, &scripts::REDRIVE, &named, &[keys.tag(), "c", "9", "", "1-1", "a/b:p1", "", ""]).await;
    assert_eq!(redriven, [""]);
    let mut undo = named.to_vec();
    undo[0] = keys.trash("unknown");
    let undone: Vec<String> = run(&t, &scripts::UNDO_ACK, &undo, &[keys.tag(), "c", "9", "", "1-1"]).await;
    assert_eq!(undone, [""]);
    assert_eq!(t.cmd::<u64>(&["DBSIZE"]).await, 0);
}

#[tokio::test]
async fn operator_ack_and_repair_on_nothing_write_nothing() {
    let t = TestBus::start().await;
    let (keys, p1) = (&t.bus.keys, lane("a/b:p1"));
    let of = |family| [keys.due_of(&family), keys.failures_of(&family)];
    let [due_of, failures] = of(family("a/b"));
    let ack = [
        keys.lane(&p1),
        due_of.clone(),
        failures.clone(),
        keys.trash("b"),
        keys.sessions(),
        keys.journal(),
        keys.revoked(),
        keys.due(),
    ];
    let args = ["0", "1", "1000", "p1|", "a/b:p1", "a/b", "", "1-1"];
    assert_eq!(run::<Vec<String>>(&t, &scripts::OPERATOR_ACK, &ack, &args).await, ["missing"]);
    let repair = [
        keys.lane(&p1),
        keys.due(),
        due_of,
        failures,
        keys.dead(),
        keys.journal(),
        keys.lanes(),
        keys.later(),
        keys.later_data(),
    ];
    for kind in [
        "pending_without_due",
        "due_without_entry",
        "failures_without_entry",
        "due_index",
        "trimmed_pending",
        "orphaned_dead",
        "later_without_data",
        "data_without_later",
        "stranded",
    ] {
        let args = [kind, "a/b:p1", "a/b", "p1|", "1-1", "", ""];
        assert_eq!(run::<(u8, String)>(&t, &scripts::REPAIR, &repair, &args).await.0, 0, "{kind}");
    }
    assert_eq!(t.cmd::<u64>(&["DBSIZE"]).await, 0);
}

// trim.lua

#[tokio::test]
async fn trim_removes_what_is_done_and_never_what_is_not() {
    let t = TestBus::start().await;
    let p1 = lane("a/b:p1");
    let all = Retain { age: Duration::ZERO, ..Retain::default() };
    assert_eq!(t.bus.trim_lane(&p1, &all, 9).await.unwrap().removed, 0, "no such lane");
    t.open(SESSION).await;
    for _ in 0..6 {
        t.emit(event("a/b")).await;
    }
    assert_eq!(t.bus.trim_lane(&p1, &all, 9).await.unwrap().removed, 0, "nothing was delivered");
    let leased = t.lease(SESSION, &p1, 4).await;
    for entry in [&leased[0], &leased[1], &leased[3]] {
        t.done(SESSION, entry).await;
    }
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(t.bus.trim_lane(&p1, &Retain::default(), 9).await.unwrap().removed, 0, "still within its day");
    let two = Retain { entries: Some(5), ..Retain::default() };
    assert_eq!(t.bus.trim_lane(&p1, &two, 9).await.unwrap().removed, 1);
    let tiny = Retain { bytes: Some(1), ..Retain::default() };
    assert_eq!(t.bus.trim_lane(&p1, &tiny, 9).await.unwrap().removed, 1, "up to the pending one");
    t.done(SESSION, &leased[2]).await;
    assert_eq!(t.bus.trim_lane(&p1, &all, 9).await.unwrap().removed, 2);
    assert_eq!(t.bus.trim_lane(&p1, &all, 9).await.unwrap().removed, 0);
    assert_eq!(t.bus.depth().await.unwrap().total, 2);
    t.assert_clean().await;
}

#[tokio::test]
async fn trim_retires_an_empty_lane_that_nobody_uses_and_append_brings_it_back() {
    let t = TestBus::start().await;
    t.open(SESSION).await;
    t.emit(event("a/b")).await;
    let p1 = lane("a/b:p1");
    let leased = t.lease(SESSION, &p1, 1).await.remove(0);
    t.done(SESSION, &leased).await;
    tokio::time::sleep(Duration::from_millis(3)).await;
    let all = Retain { age: Duration::ZERO, ..Retain::default() };
    let trimmed = t.bus.trim_lane(&p1, &all, 9).await.unwrap();
    assert_eq!((trimmed.removed, trimmed.retired), (1, false));
    t.cmd::<u64>(&["HSET", &t.bus.keys.lanes(), "a/b:p1", "1,1"]).await;
    assert!(t.bus.trim_lane(&p1, &all, 9).await.unwrap().retired);
    assert!(t.bus.lanes().await.unwrap().is_empty());
    t.emit(event("a/b")).await;
    assert_eq!(t.lease(SESSION, &p1, 1).await.len(), 1);
}

// journal.lua

#[tokio::test]
async fn journal_keeps_facts_and_is_trimmed_by_age_and_count() {
    let t = TestBus::start().await;
    assert_eq!(t.bus.trim_journal(Duration::ZERO, 1, false).await.unwrap().removed, 0);
    for _ in 0..300 {
        t.bus.journal([system_bus::streams::records::Fact::new("queue", "queue.note")]).await.unwrap();
    }
    assert_eq!(count(&t, "queue.note").await, 300);
    assert_eq!(t.bus.trim_journal(Duration::from_secs(60), 1_000, false).await.unwrap().removed, 0);
    assert!(
        t.bus.trim_journal(Duration::from_secs(60), 100, false).await.unwrap().removed >= 100,
        "whole nodes of 100"
    );
}

#[tokio::test]
async fn instance_names_the_data_set_once() {
    let t = TestBus::start().await;
    assert_eq!(t.bus.known_instance_id().await.unwrap(), None, "reading doesn't write");
    let first = t.bus.instance_id().await.unwrap();
    assert_eq!(t.bus.instance_id().await.unwrap(), first);
    let keys = [t.bus.keys.meta()];
    assert_eq!(run::<String>(&t, &scripts::INSTANCE, &keys, &["another", "1"]).await, first);
    assert_eq!(t.cmd::<String>(&["HGET", &keys[0], "schema"]).await, "1");
    // What a newer program keeps there is not ours to touch.
    t.cmd::<()>(&["HSET", &keys[0], "schema", "2"]).await;
    let error = t.bus.instance_id().await.unwrap_err();
    assert!(error.to_string().ends_with("has key schema 2; this joelclaw knows 1"), "{error}");
}
