//! Figures and verdicts from the command line, on a real run: `queue stats`, `jobs status`.
// The lint's exemption covers test functions, not their helpers.

use std::time::Duration;

use crate::cli_queue_support::{Story, envelope, failure};
use crate::support::{Joelclaw, eventually};
use serde_json::{Value, json};

const ROUTES: &str = r#"
[[event]]
name = "test/good"
priority = "P1"
handler = { type = "local", target = "noop" }

[[event]]
name = "test/bad"
priority = "P2"
attempts = 1
handler = { type = "command", program = "/bin/sh", args = ["-c", "echo 'not today' >&2; exit 1"] }
"#;

async fn stats(story: &Story, args: &[&str]) -> Value {
    envelope(&story.joelclaw.run(&[&["queue", "stats"], args].concat()).await.assert_success())["result"].clone()
}

/// Waits until so many dispatches ended that way.
async fn reached(story: &Story, outcome: &'static str, count: u64) {
    reached_within(story, outcome, count, Duration::from_secs(20)).await;
}

async fn reached_within(story: &Story, outcome: &'static str, count: u64, limit: Duration) {
    eventually(limit, || async move {
        let told = stats(story, &[]).await["dispatches"][outcome].clone();
        if told == count { Ok(()) } else { Err(told) }
    })
    .await;
}

#[tokio::test]
async fn stats_tell_what_was_dispatched_and_how_long_it_waited_without_its_pauses() {
    let mut story = Story::begin().await;
    story.joelclaw = story.joelclaw.registry(ROUTES);
    let empty = stats(&story, &[]).await;
    assert_eq!(empty["queueLatencyMs"]["count"], 0);
    assert_eq!(empty["queueLatencyMs"]["p95"], Value::Null, "nothing has no percentiles");
    assert_eq!(
        (&empty["dispatches"]["successRate"], &empty["queueLatencyMs"]["withinTarget"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(story.redis.cli(&["DBSIZE"]).await, "0", "reading leaves nothing behind");

    story.pause("test/good", Duration::from_secs(60)).await;
    for _ in 0..40 {
        story.emit("test/good").await;
    }
    story.emit("test/bad").await;
    let drainer = story.joelclaw.spawn(&["drainer"]);
    reached(&story, "failed", 1).await;
    let held = stats(&story, &["--since", "1h"]).await;
    assert_eq!((&held["currentDepth"]["total"], &held["dispatches"]["completed"]), (&json!(40), &json!(0)));
    assert_eq!(held["withQueued"]["count"], 1, "what a pause holds does not wait for us");
    story.joelclaw.run(&["queue", "resume", "test/good"]).await.assert_success();
    reached(&story, "completed", 40).await;

    let told = stats(&story, &["--by", "family"]).await;
    assert_eq!((&told["accepted"], &told["dispatches"]["started"]), (&json!(41), &json!(41)));
    assert_eq!((&told["dispatches"]["terminal"], &told["dispatches"]["dead"]), (&json!(41), &json!(1)));
    assert_eq!(told["deadByReason"], json!([{ "reason": "attempts_exhausted", "count": 1 }]));
    assert_eq!(
        told["eventFamilies"],
        json!([{ "name": "test/good", "count": 40 }, { "name": "test/bad", "count": 1 }])
    );
    assert_eq!(told["recentFailures"][0]["eventName"], "test/bad");
    assert!(told["recentFailures"][0]["error"].as_str().unwrap().contains("not today"));
    let good = told["by"].as_array().unwrap().iter().find(|part| part["name"] == "test/good").unwrap();
    let (wait, active) =
        (good["queueLatencyMs"]["min"].as_f64().unwrap(), good["activeWaitMs"]["max"].as_f64().unwrap());
    assert!(active < wait, "all of a wait was a pause, but for moments: {active} of {wait} ms");
    assert_eq!(told["dispatchOutcomesMs"]["failed"]["count"], 1);

    let later = stats(&story, &["--since", &format!("{}", story.bus.now_ms().await.unwrap() + 1)]).await;
    assert_eq!((&later["dispatches"]["started"], &later["queueLatencyMs"]["p50"]), (&json!(0), &Value::Null));
    let ran = story.joelclaw.run(&["queue", "stats", "--since", "1.5h"]).await.assert_code(2);
    assert_eq!(failure(&ran)["error"]["code"], "INVALID_SINCE");

    let status = envelope(&story.joelclaw.run(&["jobs", "status"]).await.assert_success())["result"].clone();
    assert_eq!((&status["overall"]["status"], &status["drainer"]["status"]), (&json!("degraded"), &json!("degraded")));
    assert!(status["overall"]["reasons"][0]["reason"].as_str().unwrap().contains("dead letters"));
    assert_eq!(status["drainer"]["alive"], 1);
    story.joelclaw.run(&["jobs", "status", "--strict"]).await.assert_code(1);
    drop(drainer);
}

#[tokio::test]
async fn a_backlog_behind_a_pause_is_held_and_without_a_pause_and_a_drainer_it_is_down() {
    let story = Story::begin().await;
    story.pause("content/updated", Duration::from_secs(300)).await;
    for _ in 0..30 {
        story.emit("content/updated").await;
    }
    let status = envelope(&story.joelclaw.run(&["jobs", "status"]).await.assert_success())["result"].clone();
    let summary = "Runtime healthy: queue held (depth 30, 1 pause); drainer healthy; functions healthy.";
    assert_eq!(status["overall"]["summary"], summary);
    assert_eq!((&status["queue"]["depth"], &status["queue"]["heldDepth"]), (&json!(30), &json!(30)));
    assert_eq!(status["queue"]["activePauses"][0]["family"], "content/updated");
    assert_eq!(
        (&status["restate"], &status["dkron"]),
        (&json!({"status": "disabled"}), &json!({"status": "disabled"}))
    );

    story.joelclaw.run(&["queue", "resume", "content/updated"]).await.assert_success();
    let ran = story.joelclaw.run(&["jobs", "status"]).await.assert_code(1);
    let status = ran.json();
    assert_eq!((&status["ok"], &status["error"]), (&json!(false), &Value::Null));
    assert_eq!(status["result"]["queue"]["status"], "degraded");
    assert_eq!(status["result"]["drainer"]["status"], "down");
    story.joelclaw.run(&["jobs", "status", "--exit-zero"]).await.assert_success();
}

#[tokio::test]
async fn jobs_status_has_an_answer_without_redis_and_looks_at_other_runtimes_only_where_configured() {
    let away = Joelclaw::new("unix:///tmp/no-such-redis.sock").env("RESTATE_ADMIN_URL", "http://127.0.0.1:9");
    let status = away.run(&["jobs", "status"]).await.assert_code(1).json();
    let result = &status["result"];
    assert_eq!((&result["overall"]["status"], &result["queue"]["status"]), (&json!("down"), &json!("down")));
    assert_eq!(result["queue"]["summary"], "Queue Redis is unavailable.");
    assert_eq!((&result["restate"]["status"], &result["dkron"]["status"]), (&json!("down"), &json!("disabled")));

    let story = Story::begin().await;
    let joelclaw = Joelclaw::new(&story.redis.url()).env("DKRON_URL", "http://127.0.0.1:9");
    let status = joelclaw.run(&["jobs", "status"]).await.assert_success().json();
    assert_eq!(status["result"]["overall"]["status"], "degraded", "another runtime degrades, and no more");
}

/// Every line of the archive, packed files included.
fn archived(directory: &std::path::Path) -> Vec<Value> {
    archive(directory).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Its whole lines as they are.
fn archive(directory: &std::path::Path) -> String {
    // A file may be packed, and so go, between the listing and the reading.
    loop {
        if let Some(text) = try_archive(directory) {
            return text;
        }
    }
}

fn try_archive(directory: &std::path::Path) -> Option<String> {
    let mut paths: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut text = String::new();
    for path in &paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") if !paths.contains(&path.with_extension("jsonl.gz")) => {
                text.push_str(&std::fs::read_to_string(path).ok()?);
            }
            Some("gz") => {
                let bytes = std::fs::read(path).ok()?;
                std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut text).ok()?;
            }
            _ => {}
        }
    }
    // The last line may be half written.
    text.truncate(text.rfind('\n').unwrap_or(0));
    Some(text)
}

/// TELEMETRY_EVENTS=100000 makes it the run of docs/telemetry.md.
#[tokio::test]
async fn the_archive_and_the_figures_agree_across_two_drainers_and_a_kill() {
    let events: usize = std::env::var("TELEMETRY_EVENTS").map_or(1_000, |count| count.parse().unwrap());
    let long = Duration::from_secs(20 + events as u64 / 1_000);
    let mut story = Story::begin().await;
    story.joelclaw = story.joelclaw.registry(ROUTES);
    let files = tempfile::tempdir().unwrap();
    story.joelclaw.env_file_line("OTEL_JSONL_DIR", &files.path().display().to_string());
    story.joelclaw.env_file_line("OTEL_JSONL_MAX_BYTES", "65536");
    let bulk =
        |n: usize| (0..n).map(|n| format!("{{\"name\":\"test/good\",\"data\":{{\"n\":{n}}}}}\n")).collect::<String>();
    let emit = async |n: usize| {
        story.joelclaw.run_with_stdin(&["queue", "emit", "--bulk", "-"], bulk(n).as_bytes()).await.assert_success();
    };
    // Nobody drains: the first half waits at least so long.
    let known_ms = 700;
    emit(events / 2).await;
    tokio::time::sleep(Duration::from_millis(known_ms)).await;
    let mut one = story.joelclaw.spawn(&["drainer"]);
    let two = story.joelclaw.spawn(&["drainer"]);
    eventually(long, || async {
        let n = archived(files.path()).len();
        if n > 0 { Ok(()) } else { Err(n) }
    })
    .await;
    let killed = format!("-{}-", one.pid());
    one.kill_9().await;
    emit(events / 2).await;
    let three = story.joelclaw.spawn(&["drainer"]);
    // The lease of the one that was killed must end first; that of a living one would be taken from it.
    for reader in ["stats", "jsonl"] {
        let key = story.bus.keys.reader_lease(reader);
        if story.redis.cli(&["GET", &key]).await.contains(&killed) {
            story.redis.cli(&["DEL", &key]).await;
        }
    }
    reached_within(&story, "completed", events as u64, long).await;
    let completed = |lines: &[Value]| lines.iter().filter(|line| line["action"] == "queue.dispatch.completed").count();
    eventually(long, || async {
        let n = archive(files.path()).matches("\"queue.dispatch.completed\"").count();
        // Looking must not take the machine from who writes.
        tokio::time::sleep(long / 100).await;
        if n >= events { Ok(()) } else { Err(n) }
    })
    .await;
    let lines = archived(files.path());
    let ids: std::collections::HashSet<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), completed(&lines)), (lines.len(), events), "each record is there once");

    let mut waits: Vec<f64> = lines
        .iter()
        .filter(|line| line["action"] == "queue.dispatch.started" && line["metadata"]["attempt"] == 1)
        .map(|line| line["metadata"]["waitTimeMs"].as_f64().unwrap())
        .collect();
    waits.sort_by(f64::total_cmp);
    let told = stats(&story, &["--since", "1h"]).await["queueLatencyMs"].clone();
    assert_eq!(told["count"], waits.len());
    // What the killed one held is at its second attempt, and counts in no wait.
    let short = waits.iter().filter(|wait| **wait < known_ms as f64).count();
    assert!(short <= events / 2, "{short}: the first half has waited before the drainers started");
    for (name, q) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("p99_9", 0.999)] {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let right = waits[(waits.len() as f64 * q).ceil() as usize - 1];
        let told = told[name].as_f64().unwrap();
        assert!((told - right).abs() <= right * 0.001, "{name}: {told} instead of {right}");
    }
    drop((two, three));

    let query = ["journal", "query", "--action", "queue.dispatch.*", "--family", "test/good", "--limit", "5"];
    let found = envelope(&story.joelclaw.run(&query).await.assert_success())["result"].clone();
    assert_eq!(found["events"].as_array().unwrap().len(), 5);
    assert_eq!(found["facets"]["action"]["queue.dispatch.completed"], events);
    let before = stats(&story, &["--since", "1h"]).await;
    let replayed = envelope(&story.joelclaw.run(&["journal", "replay"]).await.assert_success());
    assert!(replayed["result"]["to"].is_string());
    let verdict = envelope(&story.joelclaw.run(&["journal", "verify"]).await.assert_success())["result"].clone();
    assert_eq!((&verdict["ok"], &verdict["undecodable"], &verdict["problems"]), (&json!(true), &json!(0), &json!([])));
    assert_eq!(verdict["readers"]["jsonl"]["required"], true);
    let mut after = stats(&story, &["--since", "1h"]).await;
    after["window"] = before["window"].clone();
    after["source"] = before["source"].clone();
    assert_eq!(before, after, "a replay changes no figure");
    let ran = story.joelclaw.run(&["journal", "replay", "--sink", "otlp"]).await.assert_code(5);
    assert_eq!(failure(&ran)["error"]["code"], "SINK_UNKNOWN");
}
