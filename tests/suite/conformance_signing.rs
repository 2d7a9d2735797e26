//! Servers with keys and real SDK apps: both sides sign, both sides check, and who has no key gets nothing.

use crate::conformance_support::{App, Keys, Sdk, Settings, Stage, each_sdk};
use crate::support::HttpSink;
use serde_json::{Value, json};

const OTHER_KEY: &str = "signkey-test-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

each_sdk!(
    both_sides_sign,
    an_app_without_the_key_is_refused,
    a_fallback_key_is_tried;
    js: a_body_that_was_parsed_is_verified_all_the_same, requests_of_functions_reach_public_addresses_alone
);

/// What is hard to write in one canonical way.
fn awkward() -> Value {
    json!({
        "é": "ü€😀\u{7f}\u{2028}\"\\/", "z": 1, "a": { "c": 1e21, "b": 0.1, "B": -1.5e-7, "\u{e000}": "", "😀": [] },
        "zero": -0.0, "big": 9_007_199_254_740_991_u64, "tiny": 5e-324, "whole": 4.0, "list": [[], {}, null, true],
    })
}

/// Equal, where a number is a number however it is written.
fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            let is_in_right =
                |(key, value): (&String, &Value)| right.get(key).is_some_and(|other| is_same(value, other));
            left.len() == right.len() && left.iter().all(is_in_right)
        }
        _ => left == right,
    }
}

async fn both_sides_sign(sdk: Sdk) {
    let stage = Stage::keyed().await;
    let app = stage.app(sdk).await;
    let run = stage.run_to_end("conf/echo", awkward()).await;
    assert!(is_same(&run.completed()["event"]["data"], &awkward()), "{}", run.output);
    let run = stage.run_to_end("conf/kinds", json!({})).await;
    assert_eq!(run.completed()["number"], 42.5);
    let wire = app.wire_of(&run.id).await;
    for entry in &wire {
        for signature in [&entry["headers"]["x-inngest-signature"], &entry["answerHeaders"]["x-inngest-signature"]] {
            assert!(signature.as_str().is_some_and(|text| text.starts_with("t=")), "{signature} in {entry}");
        }
        assert!(entry["status"].as_u64().is_some_and(|status| status < 300), "{entry}");
    }
    // The state of a large run is fetched with the key.
    let large = stage.run_to_end("conf/large", json!({ "steps": 11, "bytes": 400_000 })).await;
    assert_eq!(large.completed(), &json!({ "total": 4_400_000 }));
    assert!(app.wire_of(&large.id).await.iter().any(|entry| entry["useApi"] == true));
    api_checks_keys(&stage, &run.id).await;
}

async fn api_checks_keys(stage: &Stage, run: &str) {
    let keys = Keys::default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |path: &str, key: Option<&str>| {
        let mut request = client.get(stage.url(path));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        request.send().await.unwrap()
    };
    let path = format!("/v1/runs/{run}");
    let hashed = hashed(keys.signing);
    for key in [keys.signing, &hashed] {
        assert_eq!(get(&path, Some(key)).await.status(), 200);
    }
    for key in [None, Some("undefined"), Some(OTHER_KEY), Some(keys.event)] {
        assert_eq!(get(&path, key).await.status(), 401, "{key:?}");
        assert_eq!(get(&format!("/v0/runs/{run}/actions"), key).await.status(), 401, "{key:?}");
    }
    let answer = get("/dev", None).await;
    assert!(matches!(answer.status().as_u16(), 401 | 404));
    assert_eq!(answer.headers()["x-inngest-server-kind"], "cloud");
    let event = json!({ "name": "conf/hello", "data": {} }).to_string();
    for (path, expected) in [("/e/wrong", 401), (&*format!("/e/{}", keys.event), 200)] {
        let answer = client.post(stage.url(path)).body(event.clone()).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{path}");
    }
    let query = json!({ "query": "{ functions { id } }" }).to_string();
    let request = client.post(stage.url("/v0/gql")).header("content-type", "application/json").body(query);
    assert_eq!(request.send().await.unwrap().status(), 401);
}

/// The form in which SDKs send their key: the prefix, and the SHA-256 of the rest's bytes.
fn hashed(key: &str) -> String {
    use sha2::Digest as _;
    let (prefix, rest) = key.split_at(key.rfind('-').unwrap() + 1);
    format!("{prefix}{}", hex::encode(sha2::Sha256::digest(hex::decode(rest).unwrap())))
}

/// The server's answer to whoever registers with no key or another one; and what becomes of a run when the app's key
/// changes.
async fn an_app_without_the_key_is_refused(sdk: Sdk) {
    let stage = Stage::keyed().await;
    let unsigned = App::start(Settings::new(sdk).env("INNGEST_DEV", &stage.origin())).await;
    unsigned.refused().await;
    let mut app = App::start(stage.settings(sdk).env("INNGEST_SIGNING_KEY", OTHER_KEY)).await;
    app.refused().await;
    assert!(stage.functions_of("conf").await.is_empty());

    let right = Keys::default().signing;
    app.start_again(|settings| settings.env("INNGEST_SIGNING_KEY", right)).await;
    assert!(app.sync().await);
    stage.run_to_end("conf/hello", json!({})).await.completed();
    app.start_again(|settings| settings.env("INNGEST_SIGNING_KEY", OTHER_KEY)).await;
    let run = stage.run_to_end("conf/no-retries", json!({})).await;
    run.failed_with("signing key");
    assert!(app.calls().await.is_empty(), "the app runs nothing that it can't verify");
}

/// While keys are changed, an app has both.
async fn a_fallback_key_is_tried(sdk: Sdk) {
    let stage = Stage::keyed().await;
    let settings = stage.settings(sdk).env("INNGEST_SIGNING_KEY", OTHER_KEY);
    let app = stage.app_with(settings.env("INNGEST_SIGNING_KEY_FALLBACK", Keys::default().signing)).await;
    let run = stage.run_to_end("conf/kinds", json!({})).await;
    assert_eq!(run.completed()["named"], "got 2");
    assert_eq!(app.steps_of(&run.id).await["object"], 1);
}

/// Behind a parser of JSON bodies the SDK signs its own rendering of what arrived; only the canonical one matches.
async fn a_body_that_was_parsed_is_verified_all_the_same(sdk: Sdk) {
    let stage = Stage::keyed().await;
    let app = stage.app_with(stage.settings(sdk).env("BODY_PARSER", "1")).await;
    let run = stage.run_to_end("conf/echo", awkward()).await;
    assert!(is_same(&run.completed()["event"]["data"], &awkward()), "{}", run.output);
    let wire = app.wire_of(&run.id).await;
    assert!(wire.iter().all(|entry| entry["status"].as_u64().is_some_and(|status| status < 300)), "{wire:?}");
}

/// Whoever may register an app may not reach our own network through it.
async fn requests_of_functions_reach_public_addresses_alone(sdk: Sdk) {
    let stage = Stage::keyed().await;
    let _app = stage.app(sdk).await;
    let sink = HttpSink::start().await;
    let port = sink.address().port();
    for host in ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "public@127.0.0.1"] {
        let run = stage.run_to_end("conf/fetches", json!({ "url": format!("http://{host}:{port}/") })).await;
        run.failed_with("not a public address");
    }
    assert!(sink.received().is_empty());
}
