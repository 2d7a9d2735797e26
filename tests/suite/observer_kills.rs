//! A pass of the observer is ended by SIGKILL at each of its writes, before and after it took effect, with a second
//! controller beside it; and a process that was taken for dead comes back late. Each decision is applied once.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use system_bus::streams::lane::Lane;
use system_bus::streams::priority::Priority;

use crate::drainer_support::Stage;
use crate::support::{Joelclaw, RedisGate, Side, eventually};

const LONG: Duration = Duration::from_secs(60);
const FAMILY: &str = "content/updated";
const OTHER: &str = "discovery/noted";
const REPORT: &str = "gateway/send.message";

/// What a pass writes: its claim and its end, what it applies, its records and its report.
fn is_write_of_a_pass(command: &[u8]) -> bool {
    let has = |text: &str| command.windows(text.len()).any(|window| window == text.as_bytes());
    let is_write = has("EVALSHA") || has("HSET");
    is_write && (has(":observer:") || has("queue.observe.") || has(REPORT))
}

/// A controller whose model always wants the same: one pause that is allowed, one that is not, and to tell somebody.
fn controller(url: &str) -> Joelclaw {
    let pause = |family: &str| json!({ "kind": "pause_family", "family": family, "ttlMs": 300_000, "reason": "drill" });
    let answer = json!({
        "findings": { "queuePressure": "degraded", "downstreamState": "down", "summary": "a drill" },
        "actions": [pause(FAMILY), pause(OTHER), { "kind": "escalate", "channel": "telegram", "severity": "warn", "message": "look" }],
    });
    let command = json!(["sh", "-c", format!("cat > /dev/null; printf '%s' '{answer}'")]);
    let joelclaw = Joelclaw::new(url).env("SYSTEM_BUS_MODEL_COMMAND", &command.to_string());
    for (key, value) in [
        ("QUEUE_OBSERVER_MODE", "enforce"),
        ("QUEUE_OBSERVER_AUTO_FAMILIES", "content"),
        ("QUEUE_OBSERVER_PROVIDER", "command"),
        ("QUEUE_OBSERVER_QUIET_HOURS", "off"),
        ("QUEUE_DRAINER_ENABLED", "false"),
        ("OTEL_EVENTS_ENABLED", "false"),
    ] {
        joelclaw.env_file_line(key, value);
    }
    joelclaw
}

async fn stage() -> Stage {
    let stage = Stage::start().await;
    stage.emit(FAMILY, 6).await;
    stage.emit(OTHER, 6).await;
    stage
}

async fn gate(stage: &Stage, stop_at: Option<(usize, Side)>) -> RedisGate {
    RedisGate::start(&stage.redis.socket(), stop_at, is_write_of_a_pass).await
}

/// How many writes an undisturbed pass makes.
async fn writes_of_a_pass() -> usize {
    let stage = stage().await;
    let gate = gate(&stage, None).await;
    let controller = controller(&gate.url());
    let mut running = controller.spawn(&["drainer"]);
    passes(&stage, 1).await;
    running.kill_9().await;
    gate.seen()
}

/// Waits until so many passes have ended, and none is open.
async fn passes(stage: &Stage, count: usize) {
    eventually(LONG, || async {
        let ended = stage.facts_of("queue.observe.completed").await.len();
        let keys = [stage.bus.keys.observer("open"), stage.bus.keys.observer("lease")];
        let open = stage.redis.cli(&["EXISTS", &keys[0], &keys[1]]).await;
        if ended >= count && open == "0" { Ok(()) } else { Err(format!("{ended} passes, {open} keys of an open one")) }
    })
    .await;
}

/// What must hold at every moment.
async fn assert_every_pause_ends(stage: &Stage) {
    let pauses = stage.redis.cli(&["HKEYS", &stage.bus.keys.pauses()]).await;
    let expiries = stage.redis.cli(&["ZRANGE", &stage.bus.keys.pause_expiry(), "0", "-1"]).await;
    assert_eq!(pauses, expiries);
}

/// What must hold once passes are over: each decision had one outcome, and the family was paused once.
async fn assert_once(stage: &Stage, at: &str) {
    assert_every_pause_ends(stage).await;
    let mut outcomes: HashMap<String, u32> = HashMap::new();
    let mut applied = 0;
    for fact in stage.facts().await {
        let is_applied = fact.action == "queue.control.applied";
        if is_applied || fact.action == "queue.control.rejected" {
            applied += u32::from(is_applied);
            *outcomes.entry(format!("{} {}", fact.metadata["snapshotId"], fact.metadata["family"])).or_default() += 1;
        }
        if fact.action == "queue.observe.completed" {
            *outcomes.entry(format!("{} ended", fact.metadata["snapshotId"])).or_default() += 1;
        }
    }
    assert_eq!(applied, 1, "{at}: {outcomes:?}");
    assert!(outcomes.values().all(|times| *times == 1), "{at}: {outcomes:?}");
}

async fn reports(stage: &Stage) -> String {
    let lane = Lane::new(REPORT.parse().unwrap(), Priority::P1);
    stage.redis.cli(&["XLEN", &stage.bus.keys.lane(&lane)]).await
}

async fn end_the_lease(stage: &Stage) {
    stage.redis.cli(&["DEL", &stage.bus.keys.observer("lease")]).await;
}

async fn killed(side: Side) {
    let writes = writes_of_a_pass().await;
    assert!(writes >= 7, "{writes}");
    for n in 0..writes {
        let at = format!("{side:?} write {n} of {writes}");
        let stage = stage().await;
        let gate = gate(&stage, Some((n, side))).await;
        let installations = [controller(&gate.url()), controller(&stage.redis.url())];
        let mut first = installations[0].spawn(&["drainer"]);
        gate.reached(LONG).await;
        let mut second = installations[1].spawn(&["drainer"]);
        second.wait_for_line("observer started", LONG).await;
        first.kill_9().await;
        assert_every_pause_ends(&stage).await;
        end_the_lease(&stage).await;
        passes(&stage, 1).await;
        assert_once(&stage, &at).await;
        assert_eq!(reports(&stage).await, "1", "{at}");
        // The cadence goes on.
        stage.redis.cli(&["SET", &stage.bus.keys.observer("last-run"), "0"]).await;
        passes(&stage, 2).await;
        assert_once(&stage, &at).await;
        second.kill_9().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_before_any_write_of_its_pass_leaves_one_application() {
    killed(Side::Before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_after_any_write_of_its_pass_leaves_one_application() {
    killed(Side::After).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_comes_back_late_applies_nothing_twice() {
    let writes = writes_of_a_pass().await;
    for n in 0..writes {
        let at = format!("late with write {n} of {writes}");
        let stage = stage().await;
        let gate = gate(&stage, Some((n, Side::Before))).await;
        let installations = [controller(&gate.url()), controller(&stage.redis.url())];
        let mut first = installations[0].spawn(&["drainer"]);
        gate.reached(LONG).await;
        end_the_lease(&stage).await;
        let mut second = installations[1].spawn(&["drainer"]);
        passes(&stage, 1).await;
        gate.release(LONG).await;
        passes(&stage, 1).await;
        assert_once(&stage, &at).await;
        first.kill_9().await;
        second.kill_9().await;
    }
}

/// The script that applies a decision to the family that may be paused.
fn is_application(command: &[u8]) -> bool {
    let has = |text: &str| command.windows(text.len()).any(|window| window == text.as_bytes());
    has("EVALSHA") && has(":observer:applied") && has(FAMILY) && !has("not_auto_family")
}

async fn before_application(stage: &Stage) -> RedisGate {
    stage.redis.cli(&["SCRIPT", "LOAD", include_str!("../../src/streams/scripts/observe_apply.lua")]).await;
    RedisGate::start(&stage.redis.socket(), Some((0, Side::Before)), is_application).await
}

/// What was refused to the family that may be paused, once the pass has ended.
async fn refusal(stage: &Stage) -> String {
    passes(stage, 1).await;
    assert!(stage.facts_of("queue.control.applied").await.iter().all(|fact| fact.metadata["sourceType"] == "manual"));
    let refused = stage.facts_of("queue.control.rejected").await;
    let ours: Vec<_> = refused.iter().filter(|fact| fact.metadata["family"] == FAMILY).collect();
    assert_eq!(ours.len(), 1, "{refused:?}");
    ours[0].metadata["reason"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_pauses_while_a_pass_is_about_to_keeps_his_pause() {
    let stage = stage().await;
    let gate = before_application(&stage).await;
    let observing = controller(&gate.url());
    let mut observer = observing.spawn(&["drainer"]);
    gate.reached(LONG).await;
    let operator = controller(&stage.redis.url());
    operator.run(&["queue", "pause", FAMILY, "--ttl", "10m", "--reason", "mine", "--json"]).await.assert_success();
    gate.release(LONG).await;
    assert_eq!(refusal(&stage).await, "manual_pause_active");
    let pauses = stage.bus.pauses().await.unwrap();
    assert_eq!(pauses.active[FAMILY].1.as_ref().unwrap().reason, "mine");
    observer.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_switch_stops_the_pass_that_is_running() {
    let stage = stage().await;
    let gate = before_application(&stage).await;
    let observing = controller(&gate.url());
    let mut observer = observing.spawn(&["drainer"]);
    gate.reached(LONG).await;
    let operator = controller(&stage.redis.url());
    operator.run(&["queue", "control", "disable-observer", "--reason", "stop", "--json"]).await.assert_success();
    gate.release(LONG).await;
    assert_eq!(refusal(&stage).await, "kill_switch");
    assert!(stage.bus.pauses().await.unwrap().active.is_empty());
    observer.kill_9().await;
}
