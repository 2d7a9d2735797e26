//! Every published vector of the webhook gateway, through the real router, with the senders that the vector's
//! environment configures.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use sha2::{Digest, Sha256};
use system_bus::ingest::event_api::EventApiSettings;
use system_bus::ingest::gateway::GatewaySettings;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::ingest_support::{Server, client, octokit_examples, senders};

/// The actions that are logged, in their order.
#[derive(Clone, Default)]
struct Actions(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Actions {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }
}

impl Visit for Actions {
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "action" {
            self.0.lock().unwrap().push(value.to_owned());
        }
    }
}

/// The file's environment with the vector's changes.
fn environment(file: &Value, vector: &Value) -> HashMap<String, String> {
    let mut all = file["env"].as_object().unwrap().clone();
    if let Some(own) = vector["env"].as_object() {
        all.extend(own.clone());
    }
    all.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned()))).collect()
}

async fn start(environment: &HashMap<String, String>, now_s: i64) -> Server {
    let pilots = environment.get("QUEUE_PILOTS").cloned().unwrap_or_default();
    let pilots: BTreeSet<String> = pilots.split(',').map(|token| token.trim().to_lowercase()).collect();
    let settings = GatewaySettings { pilots, now_s: Some(now_s), ..GatewaySettings::default() };
    let variables: Vec<(&str, &str)> = environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    Server::start(settings, senders(&variables), EventApiSettings::default()).await
}

fn body(request: &Value) -> Vec<u8> {
    if let Some(text) = request["body"].as_str() {
        return text.as_bytes().to_vec();
    }
    if let Some(repeat) = request["body_repeat"].as_object() {
        let unit = repeat["unit"].as_str().unwrap().repeat(usize::try_from(repeat["count"].as_u64().unwrap()).unwrap());
        let (prefix, suffix) = (repeat["prefix"].as_str().unwrap(), repeat["suffix"].as_str().unwrap());
        return format!("{prefix}{unit}{suffix}").into_bytes();
    }
    let Some(source) = request["body_source"].as_object() else { return Vec::new() };
    let examples = octokit_examples();
    let event = examples.as_array().unwrap().iter().find(|event| event["name"] == source["event"]).unwrap();
    let body = event["examples"][usize::try_from(source["index"].as_u64().unwrap()).unwrap()].to_string().into_bytes();
    assert_eq!(hex::encode(Sha256::digest(&body)), source["sha256"].as_str().unwrap(), "examples of another version");
    body
}

/// Sends a vector's request, from `client_ip` where one is given.
async fn send(server: &Server, request: &Value, client_ip: Option<&str>) -> reqwest::Response {
    let method = request["method"].as_str().unwrap().parse().unwrap();
    let mut builder = client().request(method, server.url(request["path"].as_str().unwrap()));
    for (name, value) in request["headers"].as_object().unwrap() {
        builder = builder.header(name, value.as_str().unwrap());
    }
    if let Some(address) = client_ip {
        builder = builder.header("x-forwarded-for", address);
    }
    builder.body(body(request)).send().await.unwrap()
}

fn find<'v>(file: &'v Value, id: &str) -> &'v Value {
    file["vectors"].as_array().unwrap().iter().find(|vector| vector["id"] == id).unwrap()
}

async fn run(file: &Value, vector: &Value, actions: &Actions) {
    let id = vector["id"].as_str().unwrap();
    let server = start(&environment(file, vector), vector["now"].as_i64().unwrap()).await;
    let setup = &vector["setup"];
    for prior in setup["prior"].as_array().into_iter().flatten() {
        send(&server, &find(file, prior.as_str().unwrap())["request"], None).await;
    }
    let client_ip = setup["repeat"]["client_ip"].as_str();
    for _ in 0..setup["repeat"]["times"].as_u64().unwrap_or(0) {
        send(&server, &find(file, setup["repeat"]["vector"].as_str().unwrap())["request"], client_ip).await;
    }
    for task in setup["agentClosedTaskIds"].as_array().into_iter().flatten() {
        server.memory.close_task(task.as_str().unwrap());
    }
    if setup["redis"] == "down" || setup["backend"] == "down" {
        server.memory.take_down();
    }
    let before = server.memory.events().len();
    actions.0.lock().unwrap().clear();
    let response = send(&server, &vector["request"], client_ip).await;
    check_answer(id, &vector["expect"], response).await;
    let told = std::mem::take(&mut *actions.0.lock().unwrap());
    for action in vector["expect"]["telemetry"].as_array().into_iter().flatten() {
        assert!(told.iter().any(|told| told == action), "{id}: {action} is not among {told:?}");
    }
    let events = server.memory.events().split_off(before);
    let expected = vector["expect"]["events"].as_array().unwrap();
    assert_eq!(events.len(), expected.len(), "{id}");
    let provider = file["provider"].as_str().unwrap();
    for (event, expected) in std::iter::zip(&events, expected) {
        assert_eq!(event.name.as_str(), expected["name"], "{id}");
        assert_eq!(event.id.as_deref(), expected["id"].as_str(), "{id}");
        assert_eq!(event.data.to_value(), expected["data"], "{id}");
        assert_eq!(event.source, format!("webhook/{provider}"), "{id}");
        if let Some(key) = expected["dedupKey"].as_str() {
            assert_eq!(event.once.as_ref().unwrap().key, format!("{provider}:{key}"), "{id}");
        }
    }
}

async fn check_answer(id: &str, expect: &Value, response: reqwest::Response) {
    assert_eq!(u64::from(response.status().as_u16()), expect["status"], "{id}");
    for (name, value) in expect["headers"].as_object().into_iter().flatten() {
        let got = response.headers()[name.as_str()].to_str().unwrap();
        match value.as_str() {
            Some("integer 1..60") => assert!((1..=60).contains(&got.parse::<u32>().unwrap()), "{id}"),
            expected => assert_eq!(Some(got), expected, "{id}"),
        }
    }
    if expect["status"] == 503 && expect["body"]["code"].is_string() {
        assert!(response.headers().contains_key("retry-after"), "{id}");
    }
    if let Some(text) = expect["text"].as_str() {
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain"), "{id}");
        assert_eq!(response.text().await.unwrap(), text, "{id}");
        return;
    }
    let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    for (key, value) in expect["body"].as_object().unwrap() {
        match value.as_array() {
            // The one list is that of the providers: a superset, in any order.
            Some(known) => {
                let all = answer[key].as_array().unwrap();
                assert!(known.iter().all(|one| all.contains(one)), "{id}: {all:?}");
            }
            None => assert_eq!(&answer[key], value, "{id}: {key}"),
        }
    }
}

/// Runs all vectors of a file, `count` of them.
async fn run_all(text: &str, count: usize) {
    let file: Value = serde_json::from_str(text).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), count);
    // The server runs on the thread of the test: what it logs is seen here and nowhere else.
    let actions = Actions::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(actions.clone()));
    for vector in vectors {
        run(&file, vector, &actions).await;
    }
}

macro_rules! vectors {
    ($($name:ident $count:literal)*) => {$(
        #[tokio::test]
        async fn $name() {
            run_all(include_str!(concat!("../vectors/webhooks/", stringify!($name), ".json")), $count).await;
        }
    )*};
}

vectors! {
    front 13
    github 24
    joelclaw 8
    mux 8
    server 15
    standard 9
    telnyx 6
    todoist 9
    vercel 6
    x 7
}
