//! The observer of a running process: it answers requests for a look, one at a time, and takes changed settings.

use std::time::Duration;

use serde_json::json;

use crate::drainer_support::Stage;
use crate::support::{Joelclaw, eventually};
use system_bus::streams::records::Fact;

const LONG: Duration = Duration::from_secs(60);
const FAMILY: &str = "content/updated";
const REQUEST: &str = "queue/observer.requested";

async fn fact(stage: &Stage, action: &str, wanted: impl Fn(&Fact) -> bool) -> Fact {
    eventually(LONG, || async {
        let all = stage.facts_of(action).await;
        all.iter().find(|fact| wanted(fact)).cloned().ok_or(format!("{all:?}"))
    })
    .await
}

/// The cadence ran just now: only requests make it look.
async fn no_cadence(stage: &Stage) {
    let now = stage.bus.now_ms().await.unwrap().to_string();
    stage.redis.cli(&["SET", &stage.bus.keys.observer("last-run"), &now]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_requests_at_once_one_looks_and_one_is_skipped_and_nothing_changes() {
    let stage = Stage::start().await;
    stage.emit(FAMILY, 6).await;
    no_cadence(&stage).await;
    let go = stage.redis.dir().join("go");
    let pause = json!({ "kind": "pause_family", "family": FAMILY, "ttlMs": 300_000, "reason": "x" });
    let answer = json!({ "findings": { "queuePressure": "degraded", "downstreamState": "down", "summary": "x" }, "actions": [pause] });
    let script =
        format!("cat > /dev/null; while [ ! -e '{}' ]; do sleep 0.02; done; printf '%s' '{answer}'", go.display());
    let joelclaw = stage.joelclaw("").env("SYSTEM_BUS_MODEL_COMMAND", &json!(["sh", "-c", script]).to_string());
    for (key, value) in [
        ("QUEUE_OBSERVER_MODE", "enforce"),
        ("QUEUE_OBSERVER_AUTO_FAMILIES", "content"),
        ("QUEUE_OBSERVER_PROVIDER", "command"),
        ("QUEUE_OBSERVER_QUIET_HOURS", "off"),
    ] {
        joelclaw.env_file_line(key, value);
    }
    let mut drainer = joelclaw.spawn(&["drainer"]);
    let request = async |reason: &str| {
        let data = json!({ "reason": reason, "requestedBy": "me", "hours": 2 }).to_string();
        let sent = joelclaw.run(&["queue", "emit", REQUEST, "-d", &data, "--json"]).await.assert_success().json();
        sent["result"]["eventId"].as_str().unwrap().to_owned()
    };
    let first = request("first").await;
    eventually(LONG, || async {
        let looks = stage.redis.cli(&["EXISTS", &stage.bus.keys.observer("probe")]).await;
        if looks == "1" { Ok(()) } else { Err("it does not look yet") }
    })
    .await;
    let second = request("second").await;
    let skipped = fact(&stage, "queue.observe.requested", |fact| fact.event_id.as_ref() == Some(&second)).await;
    assert_eq!((&skipped.metadata["status"], &skipped.metadata["reason"]), (&json!("skipped"), &json!("singleton")));
    std::fs::write(&go, "").unwrap();
    let ran = fact(&stage, "queue.observe.requested", |fact| fact.event_id.as_ref() == Some(&first)).await;
    assert_eq!((&ran.metadata["status"], &ran.metadata["requestedBy"]), (&json!("enforce"), &json!("me")), "{ran:?}");
    let done = stage.facts_of("queue.observe.completed").await;
    assert_eq!(done.len(), 1, "{done:?}");
    let of = |key: &str| done[0].metadata[key].clone();
    assert_eq!((of("trigger"), of("wouldApplyCount"), of("finalCount")), (json!("manual"), 1.into(), 0.into()));
    assert!(stage.bus.pauses().await.unwrap().active.is_empty());
    assert!(stage.facts_of("queue.control.applied").await.is_empty());
    assert!(
        stage.facts().await.iter().all(|fact| !fact.metadata.values().any(|value| value == "gateway/send.message"))
    );
    // Both events are done, and tell what became of them.
    fact(&stage, "queue.dispatch.completed", |fact| fact.event_id.as_ref() == Some(&first)).await;
    let seen = joelclaw.run(&["queue", "inspect", &second, "--json"]).await.assert_success().json();
    assert!(seen["result"].to_string().contains("queue.observe.requested"), "{seen:#}");
    drainer.kill_9().await;
}

async fn invalid(stage: &Stage, variable: &str) -> Fact {
    fact(stage, "config.invalid", |fact| fact.metadata["variable"] == variable).await
}

fn hang_up(joelclaw: &Joelclaw, drainer: &crate::support::Running, lines: &[(&str, &str)]) {
    for (key, value) in lines {
        joelclaw.env_file_line(key, value);
    }
    drainer.hang_up();
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_settings_take_effect_without_a_restart_and_wrong_ones_are_told() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_OBSERVER_PROVIDER", "rules");
    let mut drainer = joelclaw.spawn(&["drainer"]);
    drainer.wait_for_line("drainer started", LONG).await;
    assert!(stage.facts_of("queue.observe.started").await.is_empty(), "it is off");
    hang_up(
        &joelclaw,
        &drainer,
        &[("QUEUE_OBSERVER_MODE", "dry-run"), ("QUEUE_OBSERVER_AUTO_FAMILIES", "content,github")],
    );
    let done = fact(&stage, "queue.observe.completed", |_| true).await;
    assert_eq!((&done.metadata["mode"], &done.metadata["autoApplyFamilies"]), (&json!("dry-run"), &json!([FAMILY])));
    let told = invalid(&stage, "QUEUE_OBSERVER_AUTO_FAMILIES").await;
    assert_eq!(told.metadata["item"], "github");
    // A typo is off, and is told.
    hang_up(&joelclaw, &drainer, &[("QUEUE_OBSERVER_MODE", "enforced"), ("QUEUE_OBSERVER_QUIET_HOURS", "night")]);
    let told = invalid(&stage, "QUEUE_OBSERVER_MODE").await;
    assert!(told.metadata["why"].as_str().unwrap().contains("enforced"), "{told:?}");
    invalid(&stage, "QUEUE_OBSERVER_QUIET_HOURS").await;
    let passes = stage.facts_of("queue.observe.started").await.len();
    stage.redis.cli(&["SET", &stage.bus.keys.observer("last-run"), "0"]).await;
    hang_up(&joelclaw, &drainer, &[("QUEUE_OBSERVER_INTERVAL_SECONDS", "5")]);
    invalid(&stage, "QUEUE_OBSERVER_INTERVAL_SECONDS").await;
    assert_eq!(stage.facts_of("queue.observe.started").await.len(), passes, "it is off again");
    drainer.kill_9().await;
}

/// Case 7 of the specification, as a line of NDJSON.
const SETTLED_HOLD: &str = r#"{"snapshotId":"s7","capturedAt":"2026-03-08T12:00:00.000Z","totals":{"depth":30,"byPriority":{"P0":0,"P1":30,"P2":0,"P3":0},"oldestAgeMs":120000,"newestAgeMs":1000},"families":[{"family":"content/updated","total":30,"byPriority":{"P0":0,"P1":30,"P2":0,"P3":0},"oldestAgeMs":120000,"newestAgeMs":1000}],"triage":{"attempts":0,"completed":0,"failed":0,"fallbacks":0,"fallbackByReason":{},"routeMismatches":0,"latencyMs":{"p50":null,"p95":null}},"drainer":{"state":"down","recentDispatches":0,"recentFailures":0,"throughputPerMinute":0},"gateway":{"sleepMode":false,"quietHours":false,"mutedChannels":[]},"control":{"activePauses":[{"family":"content/updated","reason":"drill","source":"observer","mode":"enforce","appliedAt":"2026-03-08T11:58:59.000Z","expiresAt":"2026-03-08T12:03:59.000Z","expiresInMs":239000}]}}"#;

#[tokio::test]
async fn two_policies_are_compared_on_recorded_snapshots() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    let file = |name: &str, text: &str| {
        let path = joelclaw.home().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (now, next) = (file("now.env", "QUEUE_OBSERVER_AUTO_FAMILIES=content\n"), file("next.env", "\n"));
    let replay = ["queue", "observe", "--replay", "-", "--json"];
    let compare = [&replay[..], &["--policy", &now, "--policy", &next, "--fail-on-change"]].concat();
    let told = joelclaw.run_with_stdin(&compare, SETTLED_HOLD.as_bytes()).await.assert_code(1).json();
    let row = &told["result"]["rows"][0];
    assert_eq!((&row["first"]["rule"], &row["now"]["rule"]), (&json!("D4"), &json!("D4")), "{told:#}");
    assert_eq!(row["first"]["wouldApply"][0]["kind"], "resume_family", "{told:#}");
    assert_eq!((&row["now"]["wouldApply"], &row["why"]), (&json!([]), &json!("the two policies differ")));
    let same = [&replay[..], &["--policy", &now, "--policy", &now]].concat();
    let told = joelclaw.run_with_stdin(&same, SETTLED_HOLD.as_bytes()).await.assert_success().json();
    assert_eq!((&told["result"]["same"], &told["result"]["changed"]), (&json!(1), &json!(0)), "{told:#}");
    let wrong = file("wrong.env", "QUEUE_OBSERVER_AUTO_FAMILIES=github\n");
    let bad = [&replay[..], &["--policy", &wrong]].concat();
    joelclaw.run_with_stdin(&bad, SETTLED_HOLD.as_bytes()).await.assert_code(2);
}
