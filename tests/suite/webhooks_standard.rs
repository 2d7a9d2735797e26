//! Standard Webhooks as its published packages sign them: deliveries of `standardwebhooks` and `svix` are accepted.

use std::io::Write as _;
use std::process::{Command, Stdio};

use base64::Engine as _;
use serde_json::{Value, json};
use system_bus::ingest::event_api::EventApiSettings;
use system_bus::ingest::gateway::GatewaySettings;

use crate::ingest_support::{Server, client, senders};

/// Has a package answer requests; see `tests/conformance/js/webhooks.mjs`.
fn ask_package(requests: &[Value]) -> Vec<Value> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/js");
    assert!(std::path::Path::new(dir).join("node_modules/svix").is_dir(), "run make deps");
    let mut node = Command::new("node");
    node.arg("webhooks.mjs").current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut node = node.spawn().expect("node starts");
    let mut stdin = node.stdin.take().unwrap();
    for request in requests {
        writeln!(stdin, "{request}").unwrap();
    }
    drop(stdin);
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn secret(byte: u8) -> String {
    format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode([byte; 32]))
}

#[tokio::test]
async fn deliveries_of_the_published_packages_are_accepted_under_either_secret_and_either_name_of_headers() {
    let (old, new) = (secret(1), secret(2));
    let senders = senders(&[("STANDARD_WEBHOOK_SECRET", &new), ("STANDARD_WEBHOOK_SECRET_PREVIOUS", &old)]);
    let server = Server::start(GatewaySettings::default(), senders, EventApiSettings::default()).await;
    let now = chrono::Utc::now().timestamp();
    let body =
        r#"{"type":"invoice.paid","timestamp":"2026-11-27T00:00:00Z","data":{"id":"inv_1","note":"ü – \u00e9"}}"#;
    let mut cases = Vec::new();
    for package in ["standardwebhooks", "svix"] {
        for (which, secret) in [("new", &new), ("old", &old)] {
            let id = format!("msg_{package}_{which}");
            cases.push(json!({"package":package,"do":"sign","secret":secret,"id":id,"timestamp":now,"body":body}));
        }
    }
    let signed = ask_package(&cases);
    assert_eq!(signed.len(), 4);
    for (case, answer) in std::iter::zip(&cases, &signed) {
        let (id, signature) = (case["id"].as_str().unwrap(), answer["signature"].as_str().unwrap());
        let family = if case["package"] == "svix" { "svix" } else { "webhook" };
        let send = |id: String, body: &'static str| {
            let request = client().post(server.url("/webhooks/standard")).header(format!("{family}-id"), id);
            let request =
                request.header(format!("{family}-timestamp"), now).header(format!("{family}-signature"), signature);
            request.body(body).send()
        };
        assert_eq!(send(format!("{id}x"), body).await.unwrap().status(), 401, "the id is signed");
        assert_eq!(send(id.to_owned(), "{}").await.unwrap().status(), 401, "the body is signed");
        let answer: Value = send(id.to_owned(), body).await.unwrap().json_value().await;
        assert_eq!(answer["events"], 1, "{case}: {answer}");
    }
    let events = server.memory.events();
    let ids: Vec<&str> = events.iter().map(|event| event.id.as_deref().unwrap()).collect();
    assert_eq!(ids[0], "standard-msg_standardwebhooks_new");
    assert_eq!(ids.len(), 4);
    assert!(events.iter().all(|event| event.data.to_value()["note"] == "ü – é"));
}

#[test]
fn the_published_packages_verify_what_we_sign() {
    let secret = secret(7);
    let senders = senders(&[("STANDARD_WEBHOOK_SECRET", &secret)]);
    let provider = senders.find("standard").unwrap();
    let sample = senders.sample(&*provider, chrono::Utc::now().timestamp(), "msg_sample").unwrap();
    let headers: Value = sample
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap())))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let request = |package: &str, body: &str| json!({"package":package,"do":"verify","secret":secret,"headers":headers,"body":body});
    let answers =
        ask_package(&[request("standardwebhooks", &sample.body), request("svix", &sample.body), request("svix", "{}")]);
    assert_eq!(answers[..2], [json!({"ok":true}), json!({"ok":true})]);
    assert!(answers[2]["error"].is_string());
}

trait JsonValue {
    async fn json_value(self) -> Value;
}

impl JsonValue for reqwest::Response {
    async fn json_value(self) -> Value {
        serde_json::from_slice(&self.bytes().await.unwrap()).unwrap()
    }
}
