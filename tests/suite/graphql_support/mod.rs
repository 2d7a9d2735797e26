//! `joelclaw up` with an app that speaks the protocol: five functions, each a small script of answers.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde_json::{Value, json};

use crate::support::{Joelclaw, Running, TestRedis, eventually, free_port};

pub const LONG: Duration = Duration::from_secs(60);
/// An integer that a float can't hold.
pub const LARGE: u64 = 9_007_199_254_740_993;

/// The hash of a step, as an SDK would make it: 40 hex digits.
pub fn hash(step: &str) -> String {
    format!("{:0>40}", hex::encode(step))
}

/// The app: gone at drop.
pub struct App {
    address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl App {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().route("/api/inngest", post(call).put(sync)).with_state(address);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, server }
    }

    pub fn url(&self) -> String {
        url(self.address)
    }

    /// What it registers.
    pub fn document(&self) -> Value {
        document(self.address)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/api/inngest")
}

fn document(address: SocketAddr) -> Value {
    let url = url(address);
    let function = |id: &str, name: &str, triggers: Value| {
        json!({
            "id": format!("shop-{id}"), "name": name, "triggers": triggers,
            "steps": {"step": {"id": "step", "name": "step", "retries": {"attempts": 2},
                "runtime": {"type": "http", "url": format!("{url}?fnId=shop-{id}&stepId=step")}}},
        })
    };
    json!({
        "url": url, "appName": "shop", "sdk": "js:v3.54.2", "framework": "express", "v": "0.1", "deployType": "ping",
        "functions": [
            function("order", "Ship an order", json!([{"event": "shop/order.placed"}])),
            function("broken", "Break", json!([{"event": "shop/broken", "expression": "event.data.n > 0"}])),
            function("wait", "Wait for payment", json!([{"event": "shop/waits"}])),
            function("both", "Two at once", json!([{"event": "shop/both"}])),
            function("nightly", "Tidy up", json!([{"cron": "0 3 * * *"}])),
        ],
    })
}

/// In band: what it serves.
async fn sync(State(address): State<SocketAddr>) -> Response {
    let headers = [("x-inngest-sdk", "inngest-js:v3.54.2"), ("x-inngest-sync-kind", "in_band")];
    (headers, axum::Json(document(address))).into_response()
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Called {
    fn_id: String,
    step_id: String,
}

async fn call(Query(called): Query<Called>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let is_done = |step: &str| !body["steps"][hash(step)].is_null();
    let is_known = |step: &str| body["steps"].get(hash(step)).is_some();
    let run = |step: &str, data: Value| json!({"id": hash(step), "op": "StepRun", "name": step, "displayName": format!("The {step}"), "data": data});
    let error = |step: &str, op: &str, message: &str| {
        let error = json!({"name": "OutOfStock", "message": message, "stack": format!("OutOfStock: {message}\n at x")});
        json!({"id": hash(step), "op": op, "name": step, "displayName": format!("The {step}"), "error": error})
    };
    match called.fn_id.as_str() {
        "shop-order" if !is_done("reserve") => ops(1, json!([run("reserve", json!({"units": LARGE}))])),
        "shop-order" if !is_known("rest") => {
            ops(1, json!([{"id": hash("rest"), "op": "Sleep", "name": "1s", "displayName": "The rest"}]))
        }
        "shop-order" if !is_done("charge") && body["ctx"]["attempt"] == 0 => {
            ops(1, json!([error("charge", "StepError", "the till is closed")]))
        }
        "shop-order" if !is_done("charge") => ops(1, json!([run("charge", json!("paid"))])),
        "shop-order" => answer(200, &[], json!({"total": 42})),
        "shop-broken" if !is_done("pick") => ops(1, json!([error("pick", "StepFailed", "none left")])),
        "shop-broken" => answer(
            400,
            &[("x-inngest-no-retry", "true")],
            json!({"name": "OrderFailed", "message": "no stock", "stack": "s"}),
        ),
        "shop-wait" => {
            let opts = json!({"event": "shop/paid", "timeout": "1h", "if": "async.data.n == 1"});
            ops(
                1,
                json!([{"id": hash("paid"), "op": "WaitForEvent", "name": "shop/paid", "displayName": "The payment", "opts": opts}]),
            )
        }
        "shop-both" if called.step_id == hash("left") => ops(2, json!([run("left", json!(1))])),
        "shop-both" if called.step_id == hash("right") => ops(2, json!([run("right", json!(2))])),
        "shop-both" if !is_done("left") || !is_done("right") => {
            let plan = |step: &str| json!({"id": hash(step), "op": "StepPlanned", "name": step, "displayName": format!("The {step}")});
            ops(2, json!([plan("left"), plan("right")]))
        }
        "shop-both" => answer(200, &[], json!(3)),
        // Invoked only: answers what it was given.
        "shop-nightly" => answer(200, &[], body["event"]["data"]["n"].clone()),
        other => panic!("no function {other}"),
    }
}

fn ops(version: u32, ops: Value) -> Response {
    answer(206, &[("x-inngest-req-version", &version.to_string())], ops)
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: Value) -> Response {
    let mut response = (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response();
    response.headers_mut().insert("x-inngest-sdk", "inngest-js:v3.54.2".parse().unwrap());
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

/// Redis, `joelclaw up` and the registered app.
pub struct Shop {
    pub app: App,
    pub client: reqwest::Client,
    pub origin: String,
    key: Option<String>,
    _server: Running,
    _joelclaw: Joelclaw,
    _redis: TestRedis,
}

impl Shop {
    /// In dev mode.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With a signing key.
    pub async fn keyed(key: &str) -> Self {
        Self::start_with(Some(key.to_owned())).await
    }

    async fn start_with(key: Option<String>) -> Self {
        let redis = TestRedis::start().await;
        let port = free_port();
        let mut joelclaw = Joelclaw::new(&redis.url()).env("INNGEST_PORT", "0").env("INNGEST_RETRY_INTERVAL", "1");
        if let Some(key) = &key {
            joelclaw = joelclaw.env("INNGEST_SIGNING_KEY", key).env("INNGEST_EVENT_KEY", "0123456789abcdef");
        }
        joelclaw.env_file_line("WORKER_PORT", &port.to_string());
        joelclaw.env_file_line("QUEUE_DRAIN_INTERVAL_MS", "100");
        let mut server = joelclaw.spawn(&["up"]);
        server.wait_for_line("drainer started", LONG).await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let shop = Self {
            app: App::start().await,
            client,
            origin: format!("http://127.0.0.1:{port}"),
            key,
            _server: server,
            _joelclaw: joelclaw,
            _redis: redis,
        };
        assert_eq!(shop.register().await["modified"], true);
        shop
    }

    pub async fn register(&self) -> Value {
        let (status, answer) = self.post("/fn/register", &self.app.document().to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        self.post_as(path, self.key.as_deref(), body).await
    }

    pub async fn post_as(&self, path: &str, key: Option<&str>, body: &str) -> (u16, Value) {
        let mut request = self.client.post(format!("{}{path}", self.origin)).timeout(LONG).body(body.to_owned());
        request = request.header("content-type", "application/json");
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.unwrap();
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Sends an event; its id.
    pub async fn send(&self, name: &str, data: Value) -> String {
        let (status, answer) = self.post("/e/0123456789abcdef", &json!({"name": name, "data": data}).to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer["ids"][0].as_str().unwrap().to_owned()
    }

    /// The whole answer to a query; its HTTP status is 200.
    pub async fn ask(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v0/gql", &body.to_string()).await;
        assert_eq!(status, 200, "{body}: {answer}");
        answer
    }

    /// The data of a query that has no errors.
    #[track_caller]
    pub fn query(&self, query: &str) -> impl Future<Output = Value> {
        self.query_with(query, json!({}))
    }

    #[track_caller]
    pub fn query_with(&self, query: &str, variables: Value) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.ask(&json!({"query": query, "variables": variables})).await;
            assert!(answer.get("errors").is_none(), "at {caller}: {query}: {answer}");
            answer["data"].clone()
        }
    }

    /// The first error of a query.
    pub async fn refused(&self, query: &str) -> (String, String) {
        let answer = self.ask(&json!({"query": query})).await;
        let error = &answer["errors"][0];
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{query}: {answer}")).to_owned();
        (text(&error["extensions"]["code"]), text(&error["message"]))
    }

    /// The run of an event, once it has this status.
    pub async fn run_of(&self, event: &str, status: &str) -> Value {
        let query = format!(
            "{{ event(query:{{eventId:\"{event}\"}}) {{ functionRuns {{ id status functionID startedAt finishedAt output }} }} }}"
        );
        eventually(LONG, || async {
            let event = self.query(&query).await;
            let run = event["event"]["functionRuns"][0].clone();
            if run["status"] == status { Ok(run) } else { Err(event) }
        })
        .await
    }
}

/// A time of now, as a query gives it.
pub fn minutes_ago(minutes: i64) -> String {
    (chrono::Utc::now() - chrono::Duration::minutes(minutes)).to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// `2026-11-25T03:20:50.123Z` as ms.
#[track_caller]
pub fn ms(time: &Value) -> i64 {
    let text = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
    assert!(text.len() == 24 && text.ends_with('Z'), "{text}");
    chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()
}
