//! Agents through the bridge: listed, cancelled, awaited, read along; and what the worker says of itself.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::internal_bridge::Served;
use crate::support::eventually;

const LONG: Duration = Duration::from_secs(60);
const STARTED: &str = "2026-11-27T05:00:00.000Z";

async fn dispatch(served: &Served, id: &str) -> (u16, Value) {
    served.post("/internal/agent-dispatch", &json!({ "requestId": id, "task": "t", "tool": "pi" })).await
}

async fn finish(served: &Served, id: &str, state: &str) -> (u16, Value) {
    let result =
        json!({ "requestId": id, "state": state, "startedAt": STARTED, "output": "the output", "error": "why" });
    served.post("/internal/agent-result", &result).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_listed_those_that_changed_last_first() {
    let served = Served::start(&[]).await;
    assert_eq!(served.get("/internal/agent-list").await, (200, json!({ "ok": true, "count": 0, "items": [] })));
    for id in ["a", "b", "c"] {
        assert_eq!(dispatch(&served, id).await.0, 200);
    }
    finish(&served, "a", "completed").await;
    let inbox = served.joelclaw.home().join("claw/workspace/inbox");
    std::fs::create_dir(inbox.join("ack")).unwrap();
    std::fs::rename(inbox.join("a.json"), inbox.join("ack/a.json")).unwrap();
    std::fs::write(inbox.join("broken.json"), "{").unwrap();
    let ids = |body: &Value| -> Vec<String> {
        body["items"].as_array().unwrap().iter().map(|item| item["requestId"].as_str().unwrap().to_owned()).collect()
    };
    let (status, all) = served.get("/internal/agent-list").await;
    assert_eq!((status, ids(&all)), (200, vec!["a".into(), "c".into(), "b".into()]), "{all}");
    let item = &all["items"][0];
    assert_eq!((&item["status"], &item["tool"], &item["task"]), (&json!("completed"), &json!("pi"), &Value::Null));
    assert!(item["durationMs"].is_u64() && item["updatedAt"].is_string() && item["executionMode"].is_string());
    assert!(!inbox.join("broken.json").exists(), "it is put aside");
    std::fs::write(inbox.join("torn.json"), "[1]").unwrap();
    assert_eq!(dispatch(&served, "torn").await.1["sendResult"]["ids"], json!(["agent-dispatch-torn-1"]));
    finish(&served, "torn", "failed").await;
    assert_eq!(ids(&served.get("/internal/agent-list?status=running").await.1), ["c", "b"]);
    assert_eq!(ids(&served.get("/internal/agent-list?limit=1").await.1), ["torn"]);
    assert_eq!(served.get("/internal/agent-list?limit=x").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_reaches_who_works_on_it_or_ends_the_request_before_it_begins() {
    let served = Served::start(&[]).await;
    let cancel = async |body: Value| served.post("/internal/agent-cancel", &body).await;
    for wrong in [json!({}), json!({ "requestId": "../x" }), json!({ "requestId": "" })] {
        assert_eq!(cancel(wrong).await, (400, json!({ "ok": false, "error": "requestId required" })));
    }
    assert_eq!(cancel(json!([])).await.0, 400);
    dispatch(&served, "run").await;
    let (status, answer) = cancel(json!({ "requestId": "run", "reason": "enough" })).await;
    assert_eq!((status, &answer["status"]), (202, &json!("cancelling")), "{answer}");
    cancel(json!({ "requestId": "run", "reason": "again" })).await;
    let event = served.joelclaw.run(&["queue", "inspect", "agent-cancel-run-1", "--json"]).await.assert_success();
    assert!(event.stdout.contains("system/agent.cancelled") && event.stdout.contains("enough"), "{}", event.stdout);
    let (waiting, ended) =
        tokio::join!(served.get("/internal/agent-await/run?timeoutMs=60000"), finish(&served, "run", "cancelled"));
    assert_eq!(ended.1["status"], "cancelled");
    assert_eq!((waiting.0, &waiting.1["ok"], &waiting.1["status"]), (200, &json!(false), &json!("cancelled")));
    assert_eq!(cancel(json!({ "requestId": "run" })).await.1["status"], "cancelled", "terminal stays");

    let (status, answer) = cancel(json!({ "requestId": "early" })).await;
    assert_eq!((status, &answer["status"]), (200, &json!("cancelled")));
    let (_, late) = dispatch(&served, "early").await;
    assert_eq!((&late["duplicate"], &late["status"]), (&json!(true), &json!("cancelled")), "nothing is begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_are_told_when_the_server_stops_and_what_was_last_known() {
    let mut served = Served::start(&[]).await;
    dispatch(&served, "r").await;
    let (status, body) = served.get("/internal/agent-await/r?timeoutMs=1").await;
    assert_eq!((status, &body["timeoutMs"], &body["lastStatus"]), (504, &json!(5000), &json!("running")));
    assert_eq!(served.get("/internal/agent-result/none").await.1["known"], false);
    let brief = served.get("/internal/agent-result/r?fields=status").await.1;
    assert_eq!(brief, json!({ "ok": true, "requestId": "r", "status": "running" }));
    let waiting = tokio::spawn(served.request(Method::GET, "/internal/agent-await/r").send());
    // Connections are taken in their order: when these are answered, that one waits.
    for _ in 0..20 {
        served.get("/internal/agent-result/r").await;
    }
    served.server.terminate();
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "5"));
    assert!(answer.headers().contains_key("x-request-id"));
    served.server.wait_exit(LONG).await.assert_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_read_along_while_it_is_made_and_kept_after_the_end() {
    let served = Served::start(&[]).await;
    assert_eq!(served.get("/internal/agent-logs/none").await.0, 404);
    assert_eq!(served.get("/internal/agent-logs/..%2Fx").await.0, 400);
    dispatch(&served, "r").await;
    let text = async |path: &str| {
        let answer = served.request(Method::GET, path).send().await.unwrap();
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let (next, status) = (header("x-log-next"), header("x-agent-status"));
        (answer.text().await.unwrap(), next, status)
    };
    let expect = |text: &str, next: &str, status: &str| (text.to_owned(), next.to_owned(), status.to_owned());
    assert_eq!(text("/internal/agent-logs/r").await, expect("", "0", "running"));
    for (n, content) in [("1", "an older try"), ("2", "one\nü")] {
        let run = served.joelclaw.home().join("claw/run/r").join(n);
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("stdout.txt"), content).unwrap();
    }
    assert_eq!(text("/internal/agent-logs/r").await, expect("one\nü", "6", "running"));
    assert_eq!(text("/internal/agent-logs/r?since=4").await, expect("ü", "6", "running"));
    assert_eq!(text("/internal/agent-logs/r?since=600").await, expect("", "600", "running"));
    assert_eq!(served.get("/internal/agent-logs/r?stream=other").await.0, 400);

    let mut stream = served.request(Method::GET, "/internal/agent-logs/r?follow=1").send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut seen = String::new();
    let mut until = async |part: &str| {
        let reading = async {
            while !seen.contains(part) {
                let chunk = stream.chunk().await.unwrap().unwrap_or_else(|| panic!("ended without {part}: {seen}"));
                seen.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        };
        tokio::time::timeout(LONG, reading).await.unwrap();
    };
    until(r#""text":"one\nü""#).await;
    let file = served.joelclaw.home().join("claw/run/r/2/stdout.txt");
    std::fs::write(&file, "one\nütwo").unwrap();
    until(r#""text":"two""#).await;
    // As a runner does it: the result, and the files are gone.
    finish(&served, "r", "completed").await;
    until("event: end").await;
    until(r#""status":"completed""#).await;
    std::fs::remove_dir_all(served.joelclaw.home().join("claw/run/r")).unwrap();
    assert_eq!(text("/internal/agent-logs/r").await, expect("the output", "10", "completed"));
    assert_eq!(text("/internal/agent-logs/r?stream=stderr&since=1").await, expect("hy", "3", "completed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_too_large_or_for_nobody_is_refused() {
    let served = Served::start(&[]).await;
    let large = json!({ "requestId": "r", "task": "x".repeat(3 << 20), "tool": "pi" });
    assert_eq!(served.post("/internal/agent-dispatch", &large).await.0, 413);
    let output = json!({ "requestId": "r", "state": "completed", "startedAt": STARTED, "output": "x".repeat(3 << 20) });
    assert_eq!(served.post("/internal/agent-result", &output).await.0, 200);
    for wrong in
        [json!([]), json!({ "requestId": "r" }), json!({ "requestId": "r", "state": "x", "startedAt": STARTED })]
    {
        let expected = json!({ "ok": false, "error": "Invalid SandboxExecutionResult payload" });
        assert_eq!(served.post("/internal/agent-result", &wrong).await, (400, expected));
    }
    let path = served.joelclaw.home().join("claw/workspace/inbox");
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
    };
    assert_eq!((mode(&path), mode(&path.join("r.json"))), (0o700, 0o600));
}

/// Section 10 of the gateway's page, field by field.
#[tokio::test(flavor = "multi_thread")]
async fn the_worker_says_of_itself_what_the_page_says() {
    let served = Served::start(&[("WORKER_ROLE", "host")]).await;
    let (_, body) = served.get("/").await;
    for pointer in ["/service", "/status", "/worker/role", "/worker/startedAt", "/runtime/cwd", "/runtime/version"] {
        assert!(body.pointer(pointer).is_some_and(Value::is_string), "{pointer}: {body}");
    }
    for pointer in
        ["/count", "/runtime/pid", "/worker/roleCounts/host", "/worker/roleCounts/cluster", "/worker/roleCounts/active"]
    {
        assert!(body.pointer(pointer).is_some_and(Value::is_u64), "{pointer}: {body}");
    }
    for pointer in ["/functions", "/webhooks/providers", "/worker/duplicateFunctionIds"] {
        assert!(body.pointer(pointer).is_some_and(Value::is_array), "{pointer}: {body}");
    }
    assert!(body["events"].as_object().is_some_and(|events| events.values().all(Value::is_string)));
    for (pointer, expected) in [
        ("/worker/lastRegistrationAt", Value::Null),
        ("/worker/hasDuplicateFunctionIds", json!(false)),
        ("/runtime/deploymentModel", json!("single-source")),
        ("/runtime/legacyCloneDetected", json!(false)),
        ("/webhooks/endpoint", json!("/webhooks/:provider")),
        ("/observability/ingestEndpoint", json!("/observability/emit")),
        ("/queue/admissionEndpoint", json!("/internal/queue/enqueue")),
    ] {
        assert_eq!(body.pointer(pointer), Some(&expected), "{pointer}");
    }
    let from_elsewhere = served.request(Method::GET, "/").header("x-forwarded-for", "203.0.113.9");
    let (_, body) = crate::internal_bridge::answer(from_elsewhere).await;
    assert!(body.get("functions").is_none() && body["runtime"].get("cwd").is_none(), "{body}");
    eventually(LONG, || async {
        let (status, ready) = served.get("/health/ready").await;
        if status == 200 { Ok(()) } else { Err(ready) }
    })
    .await;
}
