//! Telemetry that others post: kept over an outage of Redis, and handed on to another node.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use system_bus::streams::keys::Keys;

use crate::internal_bridge::Served;
use crate::support::eventually;

const LONG: Duration = Duration::from_secs(60);
const PATH: &str = "/observability/emit";

fn event(id: &str, level: &str) -> Value {
    json!({ "id": id, "level": level, "source": "gateway", "component": "telegram", "action": "send.slow", "success": true })
}

/// How often each id of these is in the archive.
fn archived(directory: &std::path::Path) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for file in std::fs::read_dir(directory).into_iter().flatten() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let event: Value = serde_json::from_str(line).unwrap();
            if event["component"] == "telegram" {
                *counts.entry(event["id"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_posted_while_redis_is_away_reaches_the_archive_once() {
    let files = tempfile::tempdir().unwrap();
    let directory = files.path().join("archive");
    let mut served = Served::start(&[("OTEL_JSONL_DIR", directory.to_str().unwrap())]).await;
    assert_eq!(served.post(PATH, &event("before", "info")).await.1["result"]["stored"], true);
    served.redis.kill_9();
    for request in 0..10 {
        let events: Vec<Value> = (0..100).map(|n| event(&format!("w-{request}-{n}"), "warn")).collect();
        let (status, answer) = served.post(PATH, &events.into()).await;
        assert_eq!((status, &answer["results"][0]["queued"]), (200, &json!(true)), "{answer}");
        assert_eq!(answer["results"][99]["stored"], false);
    }
    // A flood of debug events takes no room from the others.
    let debug = served.post(PATH, &(0..500).map(|n| event(&format!("d-{n}"), "debug")).collect::<Value>()).await.1;
    let dropped = debug["results"].as_array().unwrap().iter().filter(|result| result["dropped"] == true).count();
    assert_eq!((dropped, &debug["results"][499]["dropReason"]), (488, &json!("debug_backpressure_guard")));
    // Who comes after a crash finds what was kept.
    served.server.kill_9().await;
    served.redis.restart().await;
    // The lease of the one that was killed would have to end first.
    let lease = Keys::new("joelclaw:bus").reader_lease("jsonl");
    served.redis.cli(&["DEL", &lease]).await;
    served.server = served.joelclaw.spawn(&["serve"]);
    let counts = eventually(LONG, || async {
        let counts = archived(&directory);
        if counts.len() == 1013 { Ok(counts) } else { Err(counts.len()) }
    })
    .await;
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    assert!(counts.contains_key("w-9-99") && counts.contains_key("before"));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_go_to_the_other_node_once_and_not_back() {
    let hub = Served::start(&[("OTEL_EMIT_TOKEN", "hub-token-0001")]).await;
    let leaf = Served::start(&[
        ("OTEL_FORWARD_URL", &format!("{}{PATH}", hub.base)),
        ("OTEL_FORWARD_TOKEN", "hub-token-0001"),
        ("SLOG_SYSTEM_ID", "leaf"),
    ])
    .await;
    // They name each other.
    hub.joelclaw.env_file_line("OTEL_FORWARD_URL", &format!("{}{PATH}", leaf.base));
    hub.joelclaw.env_file_line("SLOG_SYSTEM_ID", "hub");
    let mut hub = hub;
    hub.server.kill_9().await;
    hub.server = hub.joelclaw.spawn(&["serve"]);
    assert_eq!(leaf.post(PATH, &event("one", "warn")).await.0, 200);
    let query = ["journal", "query", "--component", "telegram", "--json"];
    let found = eventually(LONG, || async {
        let found = hub.joelclaw.run(&query).await.assert_success().json()["result"]["events"].clone();
        if found.as_array().is_some_and(|events| !events.is_empty()) { Ok(found) } else { Err("nothing came") }
    })
    .await;
    assert_eq!((&found[0]["id"], &found[0]["forwardedBy"]), (&json!("one"), &json!("leaf")));
    // What the hub does itself comes to the leaf, behind what it would have sent back.
    assert_eq!(hub.joelclaw.run(&["queue", "emit", "a/b"]).await.assert_success().status.code(), Some(0));
    let actions = ["journal", "query", "--action", "queue.enqueue", "--json"];
    eventually(LONG, || async {
        let found = leaf.joelclaw.run(&actions).await.assert_success().json()["result"]["events"].clone();
        match found.as_array().is_some_and(|events| events.iter().any(|event| event["forwardedBy"] == "hub")) {
            true => Ok(()),
            false => Err(found),
        }
    })
    .await;
    let here = leaf.joelclaw.run(&query).await.assert_success().json()["result"]["events"].clone();
    assert_eq!(here.as_array().map(Vec::len), Some(1), "{here}");
}
