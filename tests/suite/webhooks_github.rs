//! GitHub deliveries and the gateway's limits, through the real router: every vector that applies, as a table.
//!
//! Vectors whose body is in the npm package `@octokit/webhooks-examples` run when `OCTOKIT_EXAMPLES` names its
//! `api.github.com/index.json`.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::ingest_support::{Server, client};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use system_bus::ingest::event_api::EventApiSettings;
use system_bus::ingest::gateway::GatewaySettings;
use system_bus::ingest::signature::Secrets;

const SECRET: &str = "gh-test-secret-0001";
const PACKAGE: &str = r#"{"action":"published","package":{"name":"widgets"}}"#;

fn sign(body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// The file's environment with the vector's changes.
fn environment(file: &Value, vector: &Value) -> HashMap<String, String> {
    let mut all = file["env"].as_object().unwrap().clone();
    if let Some(own) = vector["env"].as_object() {
        all.extend(own.clone());
    }
    all.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned()))).collect()
}

async fn start(environment: &HashMap<String, String>) -> Server {
    let value = |key: &str| environment.get(key).cloned();
    let secrets = Secrets::new(value("GITHUB_WEBHOOK_SECRET"), value("GITHUB_WEBHOOK_SECRET_PREVIOUS"));
    let pilots = value("QUEUE_PILOTS").unwrap_or_default();
    let pilots: BTreeSet<String> = pilots.split(',').map(|token| token.trim().to_lowercase()).collect();
    let settings = GatewaySettings { pilots, ..GatewaySettings::default() };
    Server::start(settings, HashMap::from([("github".to_owned(), secrets)]), EventApiSettings::default()).await
}

async fn server() -> Server {
    start(&HashMap::from([("GITHUB_WEBHOOK_SECRET".to_owned(), SECRET.to_owned())])).await
}

/// The request's body; `None` when it is not at hand.
fn body(request: &Value) -> Option<Vec<u8>> {
    if let Some(text) = request["body"].as_str() {
        return Some(text.as_bytes().to_vec());
    }
    if let Some(repeat) = request["body_repeat"].as_object() {
        let count = usize::try_from(repeat["count"].as_u64()?).ok()?;
        let unit = repeat["unit"].as_str()?.repeat(count);
        return Some(format!("{}{unit}{}", repeat["prefix"].as_str()?, repeat["suffix"].as_str()?).into_bytes());
    }
    let Some(source) = request["body_source"].as_object() else { return Some(Vec::new()) };
    let examples: Value = serde_json::from_slice(&std::fs::read(std::env::var("OCTOKIT_EXAMPLES").ok()?).ok()?).ok()?;
    let event = examples.as_array()?.iter().find(|event| event["name"] == source["event"])?;
    let index = usize::try_from(source["index"].as_u64()?).ok()?;
    let body = event["examples"][index].to_string().into_bytes();
    assert_eq!(hex::encode(Sha256::digest(&body)), source["sha256"].as_str()?, "the examples are of another version");
    Some(body)
}

/// Sends a vector's request, from `client_ip` where one is given.
async fn send(server: &Server, request: &Value, body: Vec<u8>, client_ip: Option<&str>) -> reqwest::Response {
    let method = request["method"].as_str().unwrap().parse().unwrap();
    let mut builder = client().request(method, server.url(request["path"].as_str().unwrap()));
    for (name, value) in request["headers"].as_object().unwrap() {
        builder = builder.header(name, value.as_str().unwrap());
    }
    if let Some(address) = client_ip {
        builder = builder.header("x-forwarded-for", address);
    }
    builder.body(body).send().await.unwrap()
}

fn find<'v>(file: &'v Value, id: &str) -> &'v Value {
    file["vectors"].as_array().unwrap().iter().find(|vector| vector["id"] == id).unwrap()
}

/// Runs one vector; false when its body is not at hand.
async fn run(file: &Value, vector: &Value) -> bool {
    let id = vector["id"].as_str().unwrap();
    let environment = environment(file, vector);
    let server = start(&environment).await;
    let setup = &vector["setup"];
    for prior in setup["prior"].as_array().into_iter().flatten() {
        let request = &find(file, prior.as_str().unwrap())["request"];
        send(&server, request, body(request).unwrap(), None).await;
    }
    let client_ip = setup["repeat"]["client_ip"].as_str();
    for _ in 0..setup["repeat"]["times"].as_u64().unwrap_or(0) {
        let request = &find(file, setup["repeat"]["vector"].as_str().unwrap())["request"];
        send(&server, request, body(request).unwrap(), client_ip).await;
    }
    if setup["redis"] == "down" {
        server.memory.take_down();
    }
    let before = server.memory.events().len();
    let request = &vector["request"];
    let Some(body) = body(request) else { return false };
    let response = send(&server, request, body, client_ip).await;

    let expect = &vector["expect"];
    assert_eq!(u64::from(response.status().as_u16()), expect["status"], "{id}");
    for (name, value) in expect["headers"].as_object().into_iter().flatten() {
        let got = response.headers()[name.as_str()].to_str().unwrap();
        match value.as_str() {
            Some("integer 1..60") => assert!((1..=60).contains(&got.parse::<u32>().unwrap()), "{id}"),
            expected => assert_eq!(Some(got), expected, "{id}"),
        }
    }
    if expect["status"] == 503 {
        assert!(response.headers().contains_key("retry-after"), "{id}");
    }
    let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    for (key, value) in expect["body"].as_object().unwrap() {
        // One provider is built in; the list is checked against the registry elsewhere.
        if key != "providers" {
            assert_eq!(&answer[key], value, "{id}: {key}");
        }
    }
    let events = server.memory.events().split_off(before);
    let expected = expect["events"].as_array().unwrap();
    assert_eq!(events.len(), expected.len(), "{id}");
    for (event, expected) in std::iter::zip(&events, expected) {
        assert_eq!(event.name.as_str(), expected["name"], "{id}");
        assert_eq!(event.id.as_deref(), expected["id"].as_str(), "{id}");
        assert_eq!(event.data.to_value(), expected["data"], "{id}");
        assert_eq!(event.source, "webhook/github", "{id}");
    }
    true
}

fn load(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn every_github_vector_holds() {
    let file = load(include_str!("../vectors/webhooks/github.json"));
    let mut ran = 0;
    for vector in file["vectors"].as_array().unwrap() {
        ran += usize::from(run(&file, vector).await);
    }
    assert!(ran >= 16, "only {ran} vectors ran");
}

#[tokio::test]
async fn every_server_vector_holds_for_github() {
    // The file speaks of two providers. Those that need the other one run against GitHub, signed anew; the one that
    // needs both at once is a test of the limiter.
    let mut file = load(include_str!("../vectors/webhooks/server.json"));
    for vector in file["vectors"].as_array_mut().unwrap() {
        let request = &mut vector["request"];
        if request["path"] == "/webhooks/vercel" {
            request["path"] = json!("/webhooks/github");
            let body = request["body"].as_str().unwrap_or_default().to_owned();
            let headers = request["headers"].as_object_mut().unwrap();
            if headers.remove("x-vercel-signature").is_some() {
                headers.insert("x-hub-signature-256".to_owned(), json!(sign(body.as_bytes())));
            }
        }
    }
    for vector in file["vectors"].as_array().unwrap() {
        if vector["id"] != "server-022" {
            assert!(run(&file, vector).await);
        }
    }
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
        assert_eq!((status, &body["providers"]), (200, &json!(["github"])));
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
    let server = Server::start(settings, HashMap::new(), EventApiSettings::default()).await;
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
    let Ok(path) = std::env::var("OCTOKIT_EXAMPLES") else { return };
    let examples = load(&std::fs::read_to_string(path).unwrap());
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
