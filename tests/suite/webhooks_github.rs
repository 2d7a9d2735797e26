//! GitHub deliveries and the gateway's limits, through the real router.

use std::time::Duration;

use crate::ingest_support::{Server, client, octokit_examples, senders};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use system_bus::ingest::event_api::EventApiSettings;
use system_bus::ingest::gateway::GatewaySettings;

const SECRET: &str = "gh-test-secret-0001";
const PACKAGE: &str = r#"{"action":"published","package":{"name":"widgets"}}"#;

fn sign(body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

async fn server() -> Server {
    let senders = senders(&[("GITHUB_WEBHOOK_SECRET", SECRET)]);
    Server::start(GatewaySettings::default(), senders, EventApiSettings::default()).await
}

/// A signed package delivery; `change` may add to it.
fn package(server: &Server, delivery: &str) -> reqwest::RequestBuilder {
    let request = client().post(server.url("/webhooks/github")).header("x-github-event", "package");
    let request = request.header("x-hub-signature-256", sign(PACKAGE.as_bytes())).body(PACKAGE);
    if delivery.is_empty() { request } else { request.header("x-github-delivery", delivery) }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
}

#[tokio::test]
async fn the_index_lists_the_registry_with_and_without_a_slash() {
    let server = server().await;
    for path in ["/webhooks", "/webhooks/"] {
        let (status, body) = answer(client().get(server.url(path))).await;
        assert_eq!(
            (status, &body["providers"]),
            (200, &json!(["todoist", "front", "vercel", "github", "mux", "telnyx", "joelclaw", "x", "standard"]))
        );
    }
}

#[tokio::test]
async fn an_event_says_where_it_comes_from_and_is_remembered_by_its_delivery() {
    let server = server().await;
    let (status, body) = answer(package(&server, "d-1")).await;
    assert_eq!(status, 200);
    assert_eq!(body, json!({"ok":true,"events":1,"queued":0,"direct":1,"deliveryId":"d-1"}));
    let event = server.memory.events().pop().unwrap();
    let meta = r#"{"envelope_version":"1","source":"webhook/github","provider":"github","normalizedEvent":"package.published"}"#;
    assert_eq!(event.meta.unwrap().as_str(), meta);
    let once = event.once.unwrap();
    assert_eq!((once.key.as_str(), once.window), ("github:d-1", Duration::from_secs(604_800)));
}

#[tokio::test]
async fn a_delivery_without_an_id_is_known_by_its_body() {
    let server = server().await;
    answer(package(&server, "")).await;
    let (_, again) = answer(package(&server, "")).await;
    assert_eq!(again, json!({"ok":true,"events":0,"duplicate":true}));
    let events = server.memory.events();
    let id = format!("nodelivery-{}", &hex::encode(Sha256::digest(PACKAGE))[..24]);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].id, Some(format!("github-package-published-{id}")));
    assert_eq!(events[0].once.as_ref().unwrap().window, Duration::from_secs(300));
}

#[tokio::test]
async fn a_delivery_that_failed_is_taken_when_it_is_sent_again() {
    let server = server().await;
    server.memory.take_down();
    assert_eq!(answer(package(&server, "d-1")).await.0, 503);
    server.memory.bring_back();
    assert_eq!(answer(package(&server, "d-1")).await.1["events"], 1);
    assert_eq!(server.memory.events().len(), 1);
}

#[tokio::test]
async fn a_form_carries_its_json_in_the_field_payload_and_is_signed_as_sent() {
    let server = server().await;
    let form = |field: &str| {
        let body = form_urlencoded::Serializer::new(String::new()).append_pair(field, PACKAGE).finish();
        let request = client().post(server.url("/webhooks/github/")).header("x-github-event", "package");
        let request = request.header("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        request.header("x-hub-signature-256", sign(body.as_bytes())).header("x-github-delivery", "d-f").body(body)
    };
    assert_eq!(answer(form("payload")).await.1["events"], 1);
    assert_eq!(answer(form("other")).await, (400, json!({"ok":false,"error":"Invalid JSON"})));
}

#[tokio::test]
async fn a_repeated_signature_header_is_refused() {
    let server = server().await;
    let twice = package(&server, "d-1").header("x-hub-signature-256", sign(PACKAGE.as_bytes()));
    assert_eq!(answer(twice).await.0, 401);
}

#[tokio::test]
async fn another_content_encoding_is_refused() {
    let server = server().await;
    let (status, body) = answer(package(&server, "d-1").header("content-encoding", "gzip")).await;
    assert_eq!((status, body), (415, json!({"ok":false,"error":"Unsupported content encoding"})));
    assert_eq!(answer(package(&server, "d-1").header("content-encoding", "identity")).await.0, 200);
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_refused_while_it_streams() {
    let server = server().await;
    let chunked = |bytes: usize| {
        let head =
            "POST /webhooks/github HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        format!("{head}{bytes:x}\r\n{}\r\n0\r\n\r\n", "a".repeat(bytes)).into_bytes()
    };
    assert_eq!(server.raw(&chunked(262_145)).await, 413);
    assert_eq!(server.raw(&chunked(262_144)).await, 401);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_answered_408() {
    let settings = GatewaySettings { body_timeout: Duration::from_millis(50), ..GatewaySettings::default() };
    let server = Server::start(settings, senders(&[]), EventApiSettings::default()).await;
    let head = b"POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc";
    assert_eq!(server.raw(head).await, 408);
}

#[tokio::test]
async fn behind_a_proxy_that_names_nobody_a_valid_sender_is_never_locked_out() {
    let server = server().await;
    let bad = || client().post(server.url("/webhooks/github")).body("{}");
    for _ in 0..20 {
        assert_eq!(answer(bad()).await.0, 401);
    }
    assert_eq!(answer(bad()).await.0, 429);
    assert_eq!(answer(package(&server, "d-1")).await.0, 200);
    let named = package(&server, "d-2").header("x-forwarded-for", "203.0.113.9");
    assert_eq!(answer(named).await.0, 200);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_json() {
    let server = server().await;
    let (status, body) = answer(client().get(server.url("/nowhere"))).await;
    assert_eq!((status, body), (404, json!({"ok":false,"error":"Not found"})));
    let (status, body) = answer(client().post(server.url("/health/live"))).await;
    assert_eq!((status, body), (405, json!({"ok":false,"error":"Method not allowed"})));
    assert_eq!(answer(client().get(server.url("/health/ready"))).await.1["ok"], true);
    assert_eq!(answer(client().get(server.url("/"))).await.1["service"], "system-bus");
}

#[tokio::test]
async fn of_all_published_examples_exactly_the_six_that_we_take_emit() {
    let examples = octokit_examples();
    let server = server().await;
    let (client, mut sent) = (client(), 0);
    for event in examples.as_array().unwrap() {
        for example in event["examples"].as_array().unwrap() {
            let body = example.to_string();
            let request = client.post(server.url("/webhooks/github"));
            let request = request.header("x-github-event", event["name"].as_str().unwrap());
            let request = request.header("x-github-delivery", format!("corpus-{sent}"));
            let request = request.header("x-hub-signature-256", sign(body.as_bytes()));
            assert_eq!(answer(request.body(body)).await.0, 200, "{}", event["name"]);
            sent += 1;
        }
    }
    let names: Vec<String> = server.memory.events().iter().map(|event| event.name.to_string()).collect();
    let count = |name: &str| names.iter().filter(|other| *other == name).count();
    assert_eq!((sent, names.len()), (329, 6));
    assert_eq!((count("github/workflow_run.completed"), count("github/package.published")), (3, 3));
}

#[tokio::test]
async fn what_is_older_than_the_memory_of_deliveries_is_dropped_where_that_is_asked_for() {
    let week_s = 604_800;
    let run = |at: &str| format!(r#"{{"action":"completed","workflow_run":{{"id":7,"updated_at":"{at}"}}}}"#);
    for (rejects_expired, at, events) in [
        (true, "2026-09-14T14:13:20Z", 1),
        (true, "2026-09-14T14:13:19Z", 0),
        (true, "no time", 1),
        (false, "2019-05-15T15:20:18Z", 1),
    ] {
        let settings = GatewaySettings {
            rejects_expired,
            now_s: Some(1_790_000_000),
            dedup_window: Duration::from_secs(week_s),
            ..GatewaySettings::default()
        };
        let server =
            Server::start(settings, senders(&[("GITHUB_WEBHOOK_SECRET", SECRET)]), EventApiSettings::default()).await;
        let body = run(at);
        let request = client().post(server.url("/webhooks/github")).header("x-github-event", "workflow_run");
        let request = request.header("x-hub-signature-256", sign(body.as_bytes())).header("x-github-delivery", "d");
        let (status, answered) = answer(request.body(body)).await;
        assert_eq!((status, &answered["events"]), (200, &json!(events)), "{at}");
    }
}
