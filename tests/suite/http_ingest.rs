//! The whole way in: `joelclaw up` with a Redis of its own or a configured one, signed webhooks, the event API.

use std::time::{Duration, Instant};

use crate::support::{HttpSink, Joelclaw, Running, TestRedis, eventually, free_port};
use hmac::{Hmac, KeyInit as _, Mac as _};

const LONG: Duration = Duration::from_secs(60);
const SECRET: &str = "gh-test-secret-0001";

struct Up {
    url: String,
    running: Running,
    client: reqwest::Client,
}

impl Up {
    async fn start(joelclaw: &Joelclaw) -> Self {
        let port = free_port();
        joelclaw.env_file_line("WORKER_PORT", &port.to_string());
        joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET", SECRET);
        joelclaw.env_file_line("QUEUE_DRAIN_INTERVAL_MS", "100");
        let mut running = joelclaw.spawn(&["up"]);
        running.wait_for_line("drainer started", LONG).await;
        Self { url: format!("http://127.0.0.1:{port}"), running, client: reqwest::Client::new() }
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Option<String>, serde_json::Value) {
        let mut request = self.client.post(format!("{}{path}", self.url)).timeout(LONG).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        (status, retry_after, serde_json::from_str(&text).unwrap_or_default())
    }

    async fn deliver(&self, delivery: &str, signature: &str, body: &str) -> (u16, serde_json::Value) {
        let headers = [
            ("x-github-event", "workflow_run"),
            ("x-github-delivery", delivery),
            ("x-hub-signature-256", signature),
            ("content-type", "application/json"),
        ];
        let (status, _, answer) = self.post("/webhooks/github", &headers, body).await;
        (status, answer)
    }
}

fn route(sink: &HttpSink) -> String {
    format!(
        "[[event]]\npattern = \"*\"\nhandler = {{ type = \"http\", target = \"{0}\" }}\n\
             [[event]]\nname = \"github/workflow_run.completed\"\nhandler = {{ type = \"http\", target = \"{0}\" }}\n",
        sink.url()
    )
}

fn sign(body: &str) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// The body of the first vector: a completed workflow run.
fn workflow_run() -> String {
    let vectors = include_str!("../vectors/webhooks/github.json");
    let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
    vectors["vectors"][0]["request"]["body"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_delivery_arrives_exactly_once_and_a_forged_one_appends_nothing() {
    let sink = HttpSink::start().await;
    let joelclaw = Joelclaw::unconfigured().registry(&route(&sink));
    let mut up = Up::start(&joelclaw).await;
    let body = workflow_run();
    let (status, answer) = up.deliver("d-1", &sign(&body), &body).await;
    assert_eq!((status, &answer["events"]), (200, &serde_json::json!(1)), "{answer}");
    let (status, answer) = up.deliver("d-1", &sign(&body), &body).await;
    assert_eq!((status, &answer["duplicate"]), (200, &serde_json::json!(true)), "{answer}");
    let (status, answer) = up.deliver("d-2", &sign("another body"), &body).await;
    assert_eq!((status, &answer["error"]), (401, &serde_json::json!("Invalid signature")));
    let (status, _, ids) = up.post("/e/any", &[], r#"[{"name":"last/one"},{"name":"last/one"}]"#).await;
    assert_eq!((status, ids["ids"].as_array().unwrap().len()), (200, 2));
    let requests = sink.wait_for(3, LONG).await;
    let runs = requests.iter().filter(|r| r.header("x-event-name") == Some("github/workflow_run.completed"));
    let runs: Vec<_> = runs.collect();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].json()["deliveryId"], "d-1");
    assert_eq!(runs[0].json()["runId"], 7001);
    let depth = joelclaw.run(&["queue", "depth", "--json"]).await.assert_success().json();
    assert_eq!(depth["result"]["dead"], 0);
    up.running.terminate();
    assert_eq!(up.running.wait_exit(LONG).await.code(), Some(0));
    let after = joelclaw.run(&["queue", "depth", "--json"]).await.assert_code(3).json();
    assert!(after["fix"].as_str().unwrap().contains("joelclaw up"), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_over_the_limit_is_refused_naming_the_limit_and_nothing_is_appended() {
    let sink = HttpSink::start().await;
    let joelclaw = Joelclaw::unconfigured().registry(&route(&sink));
    joelclaw.env_file_line("QUEUE_MAX_EVENT_BYTES", "2048");
    let mut up = Up::start(&joelclaw).await;
    let large = format!(r#"[{{"name":"a/b"}},{{"name":"a/b","data":{{"x":"{}"}}}}]"#, "x".repeat(4000));
    let (status, _, answer) = up.post("/e/any", &[], &large).await;
    assert_eq!(status, 413, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("2048"), "{answer}");
    let data = format!(r#"{{"x":"{}"}}"#, "x".repeat(4000));
    let refused = joelclaw.run(&["queue", "emit", "a/b", "-d", &data, "--json"]).await.assert_code(2).json();
    assert_eq!(refused["error"]["code"], "TOO_LARGE");
    assert!(refused["error"]["message"].as_str().unwrap().contains("2048"), "{refused}");
    let depth = joelclaw.run(&["queue", "depth", "--json"]).await.assert_success().json();
    assert_eq!(depth["result"]["total"], 0);
    assert!(sink.received().is_empty());
    // Not kill -9: its own Redis would stay behind for the next `up`.
    up.running.terminate();
    up.running.wait_exit(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_the_answer_is_503_and_afterwards_all_is_well_again() {
    let sink = HttpSink::start().await;
    let mut redis = TestRedis::start_with(&["appendonly", "yes", "appendfsync", "always"]).await;
    let joelclaw = Joelclaw::new(&redis.url()).registry(&route(&sink));
    // GitHub never sends again: by default its deliveries would be kept on disk.
    joelclaw.env_file_line("WEBHOOK_SPOOL", "off");
    let mut up = Up::start(&joelclaw).await;
    let body = workflow_run();
    redis.kill_9();
    let begin = Instant::now();
    let (status, retry_after, _) = up.post("/e/any", &[], r#"{"name":"a/b"}"#).await;
    assert_eq!(status, 503);
    assert!(retry_after.is_some_and(|seconds| seconds.parse::<u64>().is_ok()));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let (status, _) = up.deliver("d-1", &sign(&body), &body).await;
    assert_eq!(status, 503);
    let ready = up.client.get(format!("{}/health/ready", up.url)).send().await.unwrap();
    assert_eq!(ready.status().as_u16(), 503);
    redis.restart().await;
    // The first request after the return is accepted: no failed attempt is remembered.
    let (status, answer) = up.deliver("d-1", &sign(&body), &body).await;
    assert_eq!((status, &answer["events"]), (200, &serde_json::json!(1)), "{answer}");
    sink.wait_for(1, LONG).await;
    eventually(LONG, || async {
        let ready = up.client.get(format!("{}/health/ready", up.url)).send().await.unwrap();
        if ready.status().is_success() { Ok(()) } else { Err(ready.text().await.unwrap()) }
    })
    .await;
    assert!(up.running.is_running());
    up.running.kill_9().await;
}
