//! The semantics of flow control (protocol section A14), each feature against a clock that the test sets.

use crate::flow_support::{ORPHAN_MS, Stage};
use serde_json::{Value, json};
use system_bus::functions::store::{Mark, Status, Taken};

/// One line of a table: when (ms), what happens, and which runs are called then.
enum Act {
    Emit(&'static str, &'static str, Value),
    End(&'static str),
    Nothing,
}
use Act::{Emit, End, Nothing};

async fn play(stage: &mut Stage, table: Vec<(u64, Act, &[&str])>) {
    for (row, (at, act, expected)) in table.into_iter().enumerate() {
        stage.at(at).await;
        match act {
            Emit(name, n, data) => drop(stage.emit(name, n, data).await),
            End(n) => stage.end(n).await,
            Nothing => {}
        }
        assert_eq!(stage.called().await, expected, "row {row}, at {at} ms");
    }
}

fn some(user: &str) -> Value {
    json!({"user": user})
}

// Concurrency.

#[tokio::test]
async fn a_limit_is_of_calls_and_the_oldest_run_goes_first() {
    let mut stage = Stage::with(&[("f", json!({"concurrency": 1}))]).await;
    for n in ["a", "b", "c"] {
        stage.emit("t/f", n, json!({})).await;
    }
    assert_eq!(stage.called().await, ["a"]);
    // Between its steps the slot is free, but nobody older waits.
    assert!(stage.step("a").await);
    assert!(stage.step("a").await);
    assert_eq!(stage.called().await, [""; 0]);
    stage.end("a").await;
    assert_eq!(stage.called().await, ["b"]);
    assert!(stage.step("b").await);
    stage.end("b").await;
    assert_eq!(stage.called().await, ["c"]);
    stage.end("c").await;
    stage.assert_clean().await;
}

#[tokio::test]
async fn what_sleeps_or_waits_for_a_retry_holds_no_slot() {
    let mut stage = Stage::with(&[("f", json!({"concurrency": 1}))]).await;
    for n in ["a", "b", "c"] {
        stage.emit("t/f", n, json!({})).await;
    }
    assert_eq!(stage.called().await, ["a"]);
    stage.sleep("a", 5_000).await;
    assert_eq!(stage.called().await, ["b"]);
    stage.fail("b", 3_000).await;
    assert_eq!(stage.called().await, ["c"]);
    stage.at(6_000).await;
    // Both are due, and the slot is taken.
    assert_eq!(stage.called().await, [""; 0]);
    stage.end("c").await;
    assert_eq!(stage.called().await, ["a"], "the older one");
    stage.end("a").await;
    assert_eq!(stage.called().await, ["b"]);
    stage.end("b").await;
    stage.assert_clean().await;
}

#[tokio::test]
async fn steps_side_by_side_need_a_slot_each() {
    let mut stage = Stage::with(&[("f", json!({"concurrency": {"limit": 2}}))]).await;
    stage.emit("t/f", "a", json!({})).await;
    assert_eq!(stage.called().await, ["a"]);
    assert!(stage.plan("a", &["p1", "p2", "p3"]).await, "one goes on in the caller's slot");
    let live = stage.runs.live(&stage.run_of("a").await.id).await.unwrap();
    let waiting = live.values().filter(|value| value.contains("|~")).count();
    assert_eq!(waiting, 1, "{live:?}");
    assert_eq!(stage.runs.groups().await.unwrap()[0].held, 2);
}

#[tokio::test]
async fn a_key_has_a_limit_for_each_value() {
    let config = json!({"concurrency": [{"limit": 1, "key": "event.data.user"}]});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "a1", some("a")), &["a1"]),
            (1, Emit("t/f", "a2", some("a")), &[]),
            (2, Emit("t/f", "b1", some("b")), &["b1"]),
            (3, End("b1"), &[]),
            (4, End("a1"), &["a2"]),
            (5, End("a2"), &[]),
        ],
    )
    .await;
    stage.assert_clean().await;
}

#[tokio::test]
async fn two_limits_must_both_admit() {
    let config = json!({"concurrency": [{"limit": 2}, {"limit": 1, "key": "event.data.user"}]});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "a1", some("a")), &["a1"]),
            (1, Emit("t/f", "a2", some("a")), &[]),
            (2, Emit("t/f", "b1", some("b")), &["b1"]),
            (3, Emit("t/f", "c1", some("c")), &[]),
            // A slot of the function is free; a2 is older, but its user's slot is taken.
            (4, End("b1"), &["c1"]),
            (5, End("a1"), &["a2"]),
            (6, End("a2"), &[]),
            (7, End("c1"), &[]),
        ],
    )
    .await;
    stage.assert_clean().await;
}

#[tokio::test]
async fn functions_of_an_account_share_the_slots_of_a_key_each_with_its_own_limit() {
    for (key, other) in [("\"shared\"", "\"other\""), ("granola-mcp", "front-api")] {
        let limit = |limit: u32, key: &str| json!({"concurrency": [{"limit": limit, "scope": "account", "key": key}]});
        let functions = [("f", limit(1, key)), ("g", limit(2, key)), ("h", limit(1, other))];
        let mut stage = Stage::with(&functions).await;
        play(
            &mut stage,
            vec![
                (0, Emit("t/f", "f1", json!({})), &["f1"]),
                (1, Emit("t/f", "f2", json!({})), &[]),
                (2, Emit("t/h", "h1", json!({})), &["h1"]),
                // Its own limit is wider.
                (3, Emit("t/g", "g1", json!({})), &["g1"]),
                (4, Emit("t/g", "g2", json!({})), &[]),
                // One slot is held: too many for f2, not for g2 behind it.
                (5, End("f1"), &["g2"]),
                (6, End("g1"), &[]),
                (7, End("g2"), &["f2"]),
                (8, End("f2"), &[]),
                (9, End("h1"), &[]),
            ],
        )
        .await;
        stage.assert_clean().await;
    }
}

#[tokio::test]
async fn a_limit_of_runs_is_held_from_the_first_call_to_the_end() {
    let mut stage = Stage::with(&[("f", json!({"concurrency": {"fn": [{"limit": 1}]}}))]).await;
    for n in ["a", "b"] {
        stage.emit("t/f", n, json!({})).await;
    }
    assert_eq!(stage.called().await, ["a"]);
    stage.sleep("a", 1_000).await;
    assert_eq!(stage.called().await, [""; 0]);
    stage.at(2_000).await;
    assert_eq!(stage.called().await, ["a"]);
    stage.end("a").await;
    assert_eq!(stage.called().await, ["b"]);
    stage.end("b").await;
    stage.assert_clean().await;
}

#[tokio::test]
async fn a_wider_limit_holds_for_runs_that_wait_already() {
    let mut stage = Stage::with(&[("f", json!({"concurrency": 1}))]).await;
    for n in ["a", "b", "c"] {
        stage.emit("t/f", n, json!({})).await;
    }
    assert_eq!(stage.called().await, ["a"]);
    stage.register(&[("f", json!({"concurrency": 2}))]).await;
    stage.engine.reconcile_flow().await.unwrap();
    assert_eq!(stage.called().await, ["b"]);
    stage.end("a").await;
    assert_eq!(stage.called().await, ["c"]);
}

#[tokio::test]
async fn a_run_that_is_cancelled_leaves_its_slot_and_its_place() {
    let mut stage = Stage::with(&[("f", json!({"concurrency": 1}))]).await;
    for n in ["a", "b", "c"] {
        stage.emit("t/f", n, json!({})).await;
    }
    assert_eq!(stage.called().await, ["a"]);
    stage.engine.cancel(&stage.run_of("b").await.id, "test").await.unwrap();
    stage.engine.cancel(&stage.run_of("a").await.id, "test").await.unwrap();
    assert_eq!(stage.called().await, ["c"]);
    stage.end("c").await;
    stage.assert_clean().await;
}

#[tokio::test]
async fn a_call_of_a_dead_worker_keeps_its_slot_and_is_repeated_after_a_while() {
    let mut stage = Stage::with(&[("f", json!({"concurrency": 1})), ("free", json!({}))]).await;
    stage.emit("t/f", "a", json!({})).await;
    stage.emit("t/f", "b", json!({})).await;
    stage.emit("t/free", "x", json!({})).await;
    assert_eq!(stage.called().await, ["a", "x"]);
    match stage.take_over("a").await {
        Taken::Wait(ms) => assert!(ms > 0 && ms <= ORPHAN_MS, "{ms}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(stage.take_over("x").await, Taken::Begun(_)), "no limit counts it");
    assert_eq!(stage.called().await, [""; 0]);
    stage.at(ORPHAN_MS + 1_000).await;
    assert!(matches!(stage.take_over("a").await, Taken::Begun(_)));
    assert_eq!(stage.called().await, [""; 0], "b still waits");
}

#[tokio::test]
async fn slots_without_a_holder_are_found_and_freed() {
    let mut stage = Stage::with(&[("f", json!({"concurrency": 1}))]).await;
    stage.emit("t/f", "a", json!({})).await;
    stage.emit("t/f", "b", json!({})).await;
    assert_eq!(stage.called().await, ["a"]);
    let group = stage.runs.groups().await.unwrap().remove(0).group;
    let slots = format!("{}:fn:slots:{group}", stage.t.bus.keys.tag());
    stage.t.cmd::<()>(&["SADD", &slots, "GONE|d"]).await;
    stage.end("a").await;
    assert_eq!(stage.called().await, [""; 0]);
    stage.engine.reconcile_flow().await.unwrap();
    assert_eq!(stage.called().await, ["b"]);
}

#[tokio::test]
async fn a_paused_function_gives_up_slots_that_it_shares() {
    let shared = json!({"concurrency": [{"limit": 1, "scope": "account", "key": "\"api\""}]});
    let mut stage = Stage::with(&[("f", shared.clone()), ("g", shared)]).await;
    stage.emit("t/f", "f1", json!({})).await;
    stage.emit("t/g", "g1", json!({})).await;
    // f1 has the slot and is not called yet when the pause comes.
    let family = "inngest/fn:app-f";
    stage.t.cmd::<()>(&["HSET", &stage.t.bus.keys.pauses(), family, "{}"]).await;
    let groups: Vec<String> = stage.runs.groups().await.unwrap().into_iter().map(|group| group.group).collect();
    assert_eq!(stage.runs.hold("app-f", "app", &family.parse().unwrap(), &groups).await.unwrap(), 1);
    assert_eq!(stage.called().await, ["g1"]);
    stage.emit("t/f", "f2", json!({})).await;
    stage.end("g1").await;
    assert_eq!(stage.called().await, [""; 0]);
    assert_eq!(stage.runs.held().await.unwrap(), ["app-f"]);
    stage.t.cmd::<()>(&["HDEL", &stage.t.bus.keys.pauses(), family]).await;
    stage.runs.hold("app-f", "app", &family.parse().unwrap(), &groups).await.unwrap();
    assert_eq!(stage.called().await, ["f1"]);
    stage.end("f1").await;
    assert_eq!(stage.called().await, ["f2"]);
    stage.end("f2").await;
    stage.assert_clean().await;
    assert!(stage.runs.held().await.unwrap().is_empty());
}

// Throttle.

#[tokio::test]
async fn a_throttle_lets_limit_and_burst_go_then_one_per_interval() {
    type Calls = &'static [(u64, &'static [&'static str])];
    const NONE: &[&str] = &[];
    let cases: [(Value, Calls); 3] = [
        (
            json!({"limit": 5, "period": "5s"}),
            &[
                (100, &["1", "2", "3", "4", "5"]),
                (900, NONE),
                (1_100, &["6"]),
                (2_100, &["7"]),
                (2_900, NONE),
                (3_100, &["8"]),
            ],
        ),
        (
            json!({"limit": 2, "period": "4s", "burst": 3}),
            &[
                (100, &["1", "2", "3", "4", "5"]),
                (1_900, NONE),
                (2_200, &["6"]),
                (3_900, NONE),
                (4_200, &["7"]),
                (6_200, &["8"]),
            ],
        ),
        (
            json!({"limit": 1, "period": "2s"}),
            &[
                (100, &["1"]),
                (1_900, NONE),
                (2_200, &["2"]),
                (4_400, &["3"]),
                (14_000, &["4"]),
                (15_900, NONE),
                (16_300, &["5"]),
            ],
        ),
    ];
    for (throttle, table) in cases {
        let mut stage = Stage::with(&[("f", json!({"throttle": throttle.clone()}))]).await;
        stage.at(0).await;
        for n in ["1", "2", "3", "4", "5", "6", "7", "8"] {
            stage.emit("t/f", n, json!({})).await;
        }
        for (at, expected) in table {
            stage.at(*at).await;
            assert_eq!(stage.called().await, *expected, "{throttle} at {at}");
        }
    }
}

#[tokio::test]
async fn a_throttle_counts_starts_not_steps_and_each_key_for_itself() {
    let config = json!({"throttle": {"limit": 1, "period": "10s", "key": "event.data.user"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "a1", some("a")), &["a1"]),
            (10, Emit("t/f", "a2", some("a")), &[]),
            (20, Emit("t/f", "b1", some("b")), &["b1"]),
        ],
    )
    .await;
    stage.sleep("a1", 1_000).await;
    stage.at(2_000).await;
    assert_eq!(stage.called().await, ["a1"], "no start");
    assert!(stage.step("a1").await);
    stage.at(10_500).await;
    assert_eq!(stage.called().await, ["a2"]);
    for n in ["a1", "a2", "b1"] {
        stage.end(n).await;
    }
    stage.assert_clean().await;
}

#[tokio::test]
async fn a_start_is_throttled_only_when_a_slot_is_free_too() {
    let config = json!({"concurrency": 1, "throttle": {"limit": 1, "period": "10s"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    stage.at(0).await;
    for n in ["1", "2", "3"] {
        stage.emit("t/f", n, json!({})).await;
    }
    assert_eq!(stage.called().await, ["1"]);
    // The throttle would let two more go by now; the slot is taken.
    stage.at(35_000).await;
    assert_eq!(stage.called().await, [""; 0]);
    stage.end("1").await;
    assert_eq!(stage.called().await, ["2"]);
    stage.end("2").await;
    assert_eq!(stage.called().await, [""; 0], "what was not used is not saved up");
    stage.at(45_500).await;
    assert_eq!(stage.called().await, ["3"]);
    stage.end("3").await;
    stage.assert_clean().await;
}

// Rate limit and idempotency.

#[tokio::test]
async fn a_rate_limit_admits_exactly_its_number_in_any_period() {
    let config = json!({"rateLimit": {"limit": 3, "period": "60s", "key": "event.data.user"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", some("a")), &["1"]),
            (20_000, Emit("t/f", "2", some("a")), &["2"]),
            (40_000, Emit("t/f", "3", some("a")), &["3"]),
            (41_000, Emit("t/f", "4", some("a")), &[]),
            (41_000, Emit("t/f", "b", some("b")), &["b"]),
            (59_000, Emit("t/f", "5", some("a")), &[]),
            // The first has left the window; what was dropped never was in it.
            (61_000, Emit("t/f", "6", some("a")), &["6"]),
            (62_000, Emit("t/f", "7", some("a")), &[]),
            (81_000, Emit("t/f", "8", some("a")), &["8"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_rate_limit_with_a_false_key_limits_nothing() {
    let config = json!({"rateLimit": {"limit": 1, "period": "60s", "key": "event.data.user == \"a\""}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", some("a")), &["1"]),
            (1, Emit("t/f", "2", some("a")), &[]),
            (2, Emit("t/f", "3", some("b")), &["3"]),
            (3, Emit("t/f", "4", some("b")), &["4"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn an_idempotency_key_runs_once_a_day_and_replaces_a_rate_limit() {
    let config = json!({"idempotency": "event.data.user", "rateLimit": {"limit": 5, "period": "1m"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    const HOUR: u64 = 3_600_000;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", some("a")), &["1"]),
            (1, Emit("t/f", "2", some("a")), &[]),
            (2, Emit("t/f", "3", some("b")), &["3"]),
            (23 * HOUR, Emit("t/f", "4", some("a")), &[]),
            (24 * HOUR + 1_000, Emit("t/f", "5", some("a")), &["5"]),
        ],
    )
    .await;
}

// Debounce.

#[tokio::test]
async fn a_debounce_runs_its_last_event_a_period_after_it_and_not_past_its_timeout() {
    let config = json!({"debounce": {"period": "10s", "timeout": "25s", "key": "event.data.user"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", some("a")), &[]),
            (5_000, Emit("t/f", "2", some("a")), &[]),
            (6_000, Emit("t/f", "b", some("b")), &[]),
            (14_000, Nothing, &[]),
            (15_500, Nothing, &["2"]),
            (16_500, Nothing, &["b"]),
            // A new one, that never comes to rest.
            (20_000, Emit("t/f", "3", some("a")), &[]),
            (28_000, Emit("t/f", "4", some("a")), &[]),
            (36_000, Emit("t/f", "5", some("a")), &[]),
            (43_000, Emit("t/f", "6", some("a")), &[]),
            (44_500, Nothing, &[]),
            (45_500, Nothing, &["6"]),
            (90_000, Nothing, &[]),
        ],
    )
    .await;
    for n in ["2", "b", "6"] {
        stage.end(n).await;
    }
    stage.assert_clean().await;
}

#[tokio::test]
async fn an_older_event_never_replaces_a_newer_one() {
    let mut stage = Stage::with(&[("f", json!({"debounce": {"period": "10s"}}))]).await;
    stage.at(0).await;
    stage.emit_at("t/f", "new", json!({}), Some(9_000)).await;
    stage.emit_at("t/f", "old", json!({}), Some(1_000)).await;
    stage.at(11_000).await;
    assert_eq!(stage.called().await, ["new"]);
}

#[tokio::test]
async fn a_debounce_fires_once_whatever_number_of_servers_look_at_it() {
    let mut stage = Stage::with(&[("f", json!({"debounce": {"period": "1s"}}))]).await;
    let second = stage.second().await;
    stage.at(0).await;
    let first = stage.emit("t/f", "1", json!({})).await;
    let last = stage.emit("t/f", "2", json!({})).await;
    stage.at(2_000).await;
    let (one, other) = tokio::join!(stage.engine.fire_due(), second.fire_due());
    one.unwrap();
    other.unwrap();
    assert_eq!(stage.called().await, ["2"]);
    // The server that took the events died before it could acknowledge them.
    stage.hand_over(&second, &first).await;
    stage.hand_over(&second, &last).await;
    stage.at(9_000).await;
    assert_eq!(stage.called().await, [""; 0]);
}

// Batches.

#[tokio::test]
async fn a_batch_goes_on_when_it_is_full_or_old() {
    let config = json!({"batchEvents": {"maxSize": 3, "timeout": "10s", "key": "event.data.user",
        "if": "event.data.alone != true"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", some("a")), &[]),
            (1_000, Emit("t/f", "b1", some("b")), &[]),
            (2_000, Emit("t/f", "2", some("a")), &[]),
            (3_000, Emit("t/f", "x", json!({"user": "a", "alone": true})), &["x"]),
            (4_000, Emit("t/f", "3", some("a")), &["1+2+3"]),
            (5_000, Emit("t/f", "4", some("a")), &[]),
            (10_500, Nothing, &[]),
            (11_500, Nothing, &["b1"]),
            (15_500, Nothing, &["4"]),
        ],
    )
    .await;
    assert_eq!(stage.run_of("1+2+3").await.event_ids.len(), 3);
    for n in ["x", "1+2+3", "b1", "4"] {
        stage.end(n).await;
    }
    stage.assert_clean().await;
}

#[tokio::test]
async fn an_event_is_one_item_of_one_batch_however_often_it_is_handed_over() {
    let mut stage = Stage::with(&[("f", json!({"batchEvents": {"maxSize": 2, "timeout": "5s"}}))]).await;
    stage.at(0).await;
    let first = stage.emit("t/f", "1", json!({})).await;
    stage.hand_over(&stage.engine, &first).await;
    assert_eq!(stage.called().await, [""; 0]);
    let second = stage.emit("t/f", "2", json!({})).await;
    assert_eq!(stage.called().await, ["1+2"]);
    stage.hand_over(&stage.engine, &first).await;
    stage.hand_over(&stage.engine, &second).await;
    stage.at(6_000).await;
    assert_eq!(stage.called().await, [""; 0]);
}

// Priority.

#[tokio::test]
async fn priority_moves_a_run_by_its_seconds_and_no_further() {
    let ternary = "event.data.user == 'query' ? 100 : event.data.user == 'late' ? -100 : 0";
    let config = json!({"concurrency": 1, "priority": {"run": ternary}});
    let mut stage = Stage::with(&[("f", config)]).await;
    stage.at(0).await;
    for (at, n, user) in [
        (0, "running", "x"),
        (1_000, "first", "x"),
        (50_000, "late", "late"),
        (60_000, "second", "x"),
        (90_000, "query", "query"),
        // 100 s are not enough to come before what waits for 150.
        (155_000, "query2", "query"),
    ] {
        stage.at(at).await;
        stage.emit("t/f", n, some(user)).await;
    }
    assert_eq!(stage.drain().await, ["running", "query", "first", "query2", "second", "late"]);
    stage.assert_clean().await;
}

#[tokio::test]
async fn a_run_of_higher_priority_takes_the_slot_between_two_steps() {
    let config = json!({"concurrency": 1, "priority": {"run": "event.data.user == 'query' ? 100 : 0"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    stage.emit("t/f", "slow", some("x")).await;
    assert_eq!(stage.called().await, ["slow"]);
    stage.emit("t/f", "query", some("query")).await;
    assert!(!stage.step("slow").await, "it makes way");
    assert_eq!(stage.called().await, ["query"]);
    stage.end("query").await;
    assert_eq!(stage.called().await, ["slow"]);
    stage.end("slow").await;
    stage.assert_clean().await;
}

#[tokio::test]
async fn a_priority_without_a_whole_number_is_none() {
    let config = json!({"concurrency": 1, "priority": {"run": "event.data.user"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    for (n, user) in [("1", json!("text")), ("2", json!(1.5)), ("3", json!(null)), ("4", json!(40))] {
        stage.emit("t/f", n, json!({"user": user})).await;
    }
    assert_eq!(stage.drain().await, ["1", "4", "2", "3"]);
}

// Singleton.

#[tokio::test]
async fn a_singleton_skips_while_one_is_live() {
    let config = json!({"singleton": {"key": "event.data.user", "mode": "skip"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", some("a")), &["1"]),
            (1, Emit("t/f", "2", some("a")), &[]),
            (2, Emit("t/f", "b", some("b")), &["b"]),
            (3, End("1"), &[]),
            (4, Emit("t/f", "3", some("a")), &["3"]),
        ],
    )
    .await;
    let skipped = stage.run_of("2").await;
    assert_eq!((skipped.status, skipped.why.as_deref()), (Status::Skipped, Some("singleton")));
    assert!(skipped.ended_ms.is_some());
    assert_eq!(stage.t.actions().await.iter().filter(|action| *action == "function.event.held").count(), 1);
    for n in ["b", "3"] {
        stage.end(n).await;
    }
    stage.assert_clean().await;
}

#[tokio::test]
async fn a_singleton_that_cancels_ends_the_live_run_first() {
    let config = json!({"singleton": {"mode": "cancel"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(&mut stage, vec![(0, Emit("t/f", "1", json!({})), &["1"]), (1, Emit("t/f", "2", json!({})), &["2"])]).await;
    assert_eq!(stage.with_status(Status::Cancelled).await, ["1"]);
    assert_eq!(stage.with_status(Status::Running).await, ["2"]);
    stage.end("2").await;
    stage.assert_clean().await;
}

#[tokio::test]
async fn a_false_singleton_key_is_no_singleton_and_an_unquoted_constant_is_one() {
    let unless = json!({"singleton": {"key": "event.data.user == \"one\"", "mode": "skip"}});
    let constant = json!({"singleton": {"key": "docs-reindex", "mode": "skip"}});
    let mut stage = Stage::with(&[("f", unless), ("g", constant)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", some("x")), &["1"]),
            (1, Emit("t/f", "2", some("x")), &["2"]),
            (2, Emit("t/f", "3", some("one")), &["3"]),
            (3, Emit("t/f", "4", some("one")), &[]),
            (4, Emit("t/g", "5", json!({})), &["5"]),
            (5, Emit("t/g", "6", json!({})), &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_debounced_singleton_that_cancels_fires_once() {
    let config = json!({"debounce": {"period": "1s"}, "singleton": {"mode": "cancel"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", json!({})), &[]),
            (1_500, Nothing, &["1"]),
            (2_000, Emit("t/f", "2", json!({})), &[]),
            (3_500, Nothing, &["2"]),
        ],
    )
    .await;
    assert_eq!(stage.with_status(Status::Cancelled).await, ["1"]);
}

// Timeouts and cancellation.

#[tokio::test]
async fn a_run_that_never_starts_is_cancelled_and_one_that_takes_too_long_too() {
    let config = json!({"concurrency": 1, "timeouts": {"start": "10s", "finish": "30s"}});
    let mut stage = Stage::with(&[("f", config)]).await;
    play(
        &mut stage,
        vec![
            (0, Emit("t/f", "1", json!({})), &["1"]),
            (1_000, Emit("t/f", "2", json!({})), &[]),
            (9_000, Nothing, &[]),
            (11_500, Nothing, &[]),
        ],
    )
    .await;
    assert_eq!(stage.with_status(Status::Cancelled).await, ["2"]);
    stage.at(31_000).await;
    assert_eq!(stage.called().await, [""; 0]);
    assert_eq!(stage.with_status(Status::Cancelled).await, ["1", "2"]);
    stage.assert_clean().await;
}

#[tokio::test]
async fn an_event_cancels_runs_that_wait_for_a_slot_too() {
    let cancel = json!([{"event": "t/stop", "if": "event.data.user == async.data.user", "timeout": "1h"}]);
    let mut stage = Stage::with(&[("f", json!({"concurrency": 1, "cancel": cancel}))]).await;
    stage.at(0).await;
    for (n, user) in [("1", "a"), ("2", "b"), ("3", "a")] {
        stage.emit("t/f", n, some(user)).await;
    }
    assert_eq!(stage.called().await, ["1"]);
    stage.at(1_000).await;
    stage.emit("t/stop", "-", some("a")).await;
    assert_eq!(stage.called().await, ["2"]);
    assert_eq!(stage.with_status(Status::Cancelled).await, ["1", "3"]);
    stage.end("2").await;
    stage.assert_clean().await;
}

// Pause.

#[tokio::test]
async fn events_of_a_paused_function_are_recorded_as_skipped() {
    let mut stage = Stage::with(&[("f", json!({})), ("g", json!({}))]).await;
    stage.runs.set_paused("fn:app-f", Some(&Mark::default())).await.unwrap();
    stage.emit("t/f", "1", json!({})).await;
    stage.emit("t/g", "g", json!({})).await;
    assert_eq!(stage.called().await, ["g"]);
    assert_eq!(stage.run_of("1").await.why.as_deref(), Some("paused"));
    stage.runs.set_paused("fn:app-f", None).await.unwrap();
    stage.runs.set_paused("app:app", Some(&Mark::default())).await.unwrap();
    stage.emit("t/g", "2", json!({})).await;
    assert_eq!(stage.called().await, [""; 0]);
    stage.runs.set_paused("app:app", None).await.unwrap();
    stage.emit("t/f", "3", json!({})).await;
    assert_eq!(stage.called().await, ["3"]);
}

#[tokio::test]
async fn whatever_is_handed_over_twice_does_everything_once() {
    let functions = [
        ("plain", json!({})),
        ("limit", json!({"concurrency": 1})),
        ("throttle", json!({"throttle": {"limit": 1, "period": "1h"}})),
        ("rate", json!({"rateLimit": {"limit": 2, "period": "1h"}})),
        ("single", json!({"singleton": {"mode": "skip"}})),
        ("cancel", json!({"singleton": {"mode": "cancel"}})),
    ];
    for (id, config) in functions {
        let mut stage = Stage::with(&[(id, config)]).await;
        let name = format!("t/{id}");
        let one = stage.emit(&name, "1", json!({})).await;
        stage.hand_over(&stage.engine, &one).await;
        assert_eq!(stage.called().await, ["1"], "{id}");
        stage.hand_over(&stage.engine, &one).await;
        stage.end("1").await;
        stage.hand_over(&stage.engine, &one).await;
        assert_eq!(stage.called().await, [""; 0], "{id}");
        let two = stage.emit(&name, "2", json!({})).await;
        if id == "throttle" {
            continue;
        }
        stage.hand_over(&stage.engine, &two).await;
        assert_eq!(stage.called().await, ["2"], "{id}");
        assert_eq!(stage.with_status(Status::Cancelled).await, [""; 0], "{id}");
    }
}

// The scripts on nothing, and as a loser.

#[tokio::test]
async fn what_is_not_there_is_not_fired_swept_or_held() {
    use system_bus::functions::store::Fired;
    use system_bus::streams::records::Fact;

    let mut stage =
        Stage::with(&[("f", json!({"debounce": {"period": "10s"}, "throttle": {"limit": 1, "period": "1h"}}))]).await;
    for member in ["D|none|", "B|none|", "T|none|", "G|none|", "?"] {
        assert_eq!(stage.runs.fire(member).await.unwrap(), Fired::Nothing, "{member}");
    }
    assert_eq!(stage.runs.sweep("none").await.unwrap(), 0);
    assert_eq!(stage.runs.hold("none", "app", &"inngest/fn:none".parse().unwrap(), &["none".into()]).await.unwrap(), 0);
    let fact = Fact::new("functions", "function.cron.ticked");
    assert_eq!(stage.runs.tick("none|app-f", 1, (2, 2), None, fact).await.unwrap(), None, "no such schedule");
    // Not yet due, and then gone.
    stage.emit("t/f", "1", json!({})).await;
    let group = stage.runs.groups().await.unwrap().remove(0).group;
    let timer = format!("D|{group}|");
    assert_eq!(stage.runs.fire(&timer).await.unwrap(), Fired::Nothing);
    stage.at(11_000).await;
    assert!(matches!(stage.runs.fire(&timer).await.unwrap(), Fired::Went { .. }));
    assert_eq!(stage.runs.fire(&timer).await.unwrap(), Fired::Nothing);
    assert_eq!(stage.called().await, ["1"]);
}
