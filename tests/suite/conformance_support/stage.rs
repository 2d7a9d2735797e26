//! A server under test, and what its HTTP API says.

use std::time::Duration;

use serde_json::{Value, json};

use super::{App, LONG, Sdk, Settings};
use crate::support::{Joelclaw, Running, TestRedis, eventually, free_port};

/// The keys of a server that checks them.
#[derive(Debug, Clone)]
pub struct Keys {
    pub signing: &'static str,
    pub event: &'static str,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            signing: "signkey-test-5f2c1a9be07d44836a1be0c9d7f3842c0b96ae51d83f7e240d1c6b9a58e7f310",
            event: "9c41d07be23f58a6b1e07f4c",
        }
    }
}

/// A run as `GET /v1/runs/{id}` shows it.
#[derive(Debug, Clone)]
pub struct Run {
    pub id: String,
    /// `Scheduled`, `Running`, `Completed`, `Failed`, `Cancelled`.
    pub status: String,
    pub output: Value,
    pub raw: Value,
}

impl Run {
    fn new(raw: &Value) -> Self {
        let text = |key: &str| raw[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {raw}")).to_owned();
        Self { id: text("run_id"), status: text("status"), output: raw["output"].clone(), raw: raw.clone() }
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.status.as_str(), "Completed" | "Failed" | "Cancelled" | "Skipped")
    }

    /// The output of a run that completed.
    #[track_caller]
    pub fn completed(&self) -> &Value {
        assert_eq!(self.status, "Completed", "{}", self.raw);
        &self.output
    }

    /// That it failed with this in its output.
    #[track_caller]
    pub fn failed_with(&self, part: &str) {
        assert_eq!(self.status, "Failed", "{}", self.raw);
        assert!(self.raw.to_string().contains(part), "no {part:?} in {}", self.raw);
    }
}

/// Redis and `joelclaw up` on a port of its own, retrying after a second.
pub struct Stage {
    pub redis: TestRedis,
    pub joelclaw: Joelclaw,
    pub port: u16,
    pub keys: Option<Keys>,
    server: Option<Running>,
    client: reqwest::Client,
}

impl Stage {
    /// Without keys, as in development.
    pub async fn start() -> Self {
        Self::start_with(None, &[]).await
    }

    /// The same with settings of its own, as in the env file.
    pub async fn configured(settings: &[(&str, &str)]) -> Self {
        Self::start_with(None, settings).await
    }

    /// With signing key and event key, as in production.
    pub async fn keyed() -> Self {
        Self::start_with(Some(Keys::default()), &[]).await
    }

    async fn start_with(keys: Option<Keys>, settings: &[(&str, &str)]) -> Self {
        let redis = TestRedis::start().await;
        let port = free_port();
        let mut joelclaw = Joelclaw::new(&redis.url()).env("INNGEST_RETRY_INTERVAL", "1");
        joelclaw.env_file_line("WORKER_PORT", &port.to_string());
        joelclaw.env_file_line("INNGEST_PORT", "0"); // One port is enough, and others want the usual one.
        joelclaw.env_file_line("QUEUE_DRAIN_INTERVAL_MS", "100");
        for (key, value) in settings {
            joelclaw.env_file_line(key, value);
        }
        if let Some(keys) = &keys {
            joelclaw = joelclaw
                .env("INNGEST_DEV", "0")
                .env("INNGEST_SIGNING_KEY", keys.signing)
                .env("INNGEST_EVENT_KEY", keys.event);
        }
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut stage = Self { redis, joelclaw, port, keys, server: None, client };
        stage.start_server().await;
        stage
    }

    /// After [`Self::kill_server`] or [`Self::stop_server`].
    pub async fn start_server(&mut self) {
        let mut server = self.joelclaw.spawn(&["up"]);
        server.wait_for_line("drainer started", LONG).await;
        self.server = Some(server);
        eventually(LONG, || async {
            let answer = self.client.get(self.url("/health")).send().await.map_err(|error| error.to_string())?;
            if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
        })
        .await;
    }

    /// As [`Self::start_server`], with Redis back only after `alone`.
    pub async fn start_server_before_redis(&mut self, alone: std::time::Duration) {
        let mut server = self.joelclaw.spawn(&["up"]);
        tokio::time::sleep(alone).await;
        self.redis.restart().await;
        server.wait_for_line("drainer started", LONG).await;
        self.server = Some(server);
    }

    /// As a crash does it.
    pub async fn kill_server(&mut self) {
        self.server.take().expect("a running server").kill_9().await;
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn stop_server(&mut self) {
        let mut server = self.server.take().expect("a running server");
        server.terminate();
        server.wait_exit(LONG).await.assert_code(0);
    }

    /// What the server wrote, for messages.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Running::stderr).unwrap_or_default()
    }

    pub fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin())
    }

    /// The settings of an app that uses this server.
    pub fn settings(&self, sdk: Sdk) -> Settings {
        let settings = Settings::new(sdk);
        match &self.keys {
            None => settings.env("INNGEST_DEV", &self.origin()),
            Some(keys) => settings
                .env("INNGEST_DEV", "0")
                .env("INNGEST_BASE_URL", &self.origin())
                .env("INNGEST_SIGNING_KEY", keys.signing)
                .env("INNGEST_EVENT_KEY", keys.event),
        }
    }

    /// An app, started and registered.
    pub async fn app(&self, sdk: Sdk) -> App {
        self.app_with(self.settings(sdk)).await
    }

    pub async fn app_with(&self, settings: Settings) -> App {
        let app = App::start(settings).await;
        assert!(app.sync().await, "the first registration of an app changes something");
        app
    }

    /// A request as a client with the right keys sends it: status and JSON.
    pub async fn request(&self, method: reqwest::Method, path: &str, body: Option<&str>) -> (u16, Value) {
        let mut request = self.client.request(method, self.url(path)).timeout(LONG);
        if let Some(keys) = &self.keys {
            request = request.bearer_auth(keys.signing);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.request(reqwest::Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        self.request(reqwest::Method::POST, path, Some(body)).await
    }

    /// The `data` of an answer that is a success.
    async fn data(&self, path: &str) -> Value {
        let (status, answer) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {answer}\n{}", self.log());
        answer["data"].clone()
    }

    /// The path of the event API.
    pub fn events_path(&self) -> String {
        format!("/e/{}", self.keys.as_ref().map_or("test", |keys| keys.event))
    }

    /// Sends one event; returns its id.
    pub async fn send(&self, name: &str, data: Value) -> String {
        self.send_all(&json!([{ "name": name, "data": data }])).await.remove(0)
    }

    /// Sends events in one request; returns their ids.
    pub async fn send_all(&self, events: &Value) -> Vec<String> {
        let (status, answer) = self.post(&self.events_path(), &events.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["status"], 200, "{answer}");
        let ids: Vec<String> = serde_json::from_value(answer["ids"].clone()).unwrap();
        assert_eq!(ids.len(), events.as_array().map_or(1, Vec::len));
        ids
    }

    /// The runs that an event has started so far.
    pub async fn runs_of(&self, event: &str) -> Vec<Run> {
        let data = self.data(&format!("/v1/events/{event}/runs")).await;
        data.as_array().unwrap_or_else(|| panic!("runs are no list: {data}")).iter().map(Run::new).collect()
    }

    /// Waits until the event has started exactly this many runs and all of them have ended.
    pub async fn ended_runs_of(&self, event: &str, count: usize) -> Vec<Run> {
        self.ended_runs_within(event, count, LONG).await
    }

    async fn ended_runs_within(&self, event: &str, count: usize, deadline: Duration) -> Vec<Run> {
        let runs = eventually(deadline, || async {
            let runs = self.runs_of(event).await;
            if runs.len() >= count && runs.iter().all(Run::is_ended) { Ok(runs) } else { Err(runs) }
        })
        .await;
        assert_eq!(runs.len(), count, "{runs:#?}");
        runs
    }

    /// Waits for the end of the one run that the event starts.
    pub async fn ended_run_of(&self, event: &str) -> Run {
        self.ended_runs_of(event, 1).await.remove(0)
    }

    /// Waits for the start of the one run of the event, and returns its id.
    pub async fn run_id_of(&self, event: &str) -> String {
        eventually(LONG, || async {
            let mut runs = self.runs_of(event).await;
            if runs.is_empty() { Err("no run") } else { Ok(runs.remove(0).id) }
        })
        .await
    }

    /// Sends an event and waits for the end of the one run that it starts.
    pub async fn run_to_end(&self, name: &str, data: Value) -> Run {
        let event = self.send(name, data).await;
        self.ended_run_of(&event).await
    }

    pub async fn run(&self, id: &str) -> Run {
        Run::new(&self.data(&format!("/v1/runs/{id}")).await)
    }

    /// Waits until the run has this status.
    pub async fn wait_for_status(&self, id: &str, status: &str) -> Run {
        eventually(LONG, || async {
            let run = self.run(id).await;
            if run.status == status { Ok(run) } else { Err(run) }
        })
        .await
    }

    /// Cancels a run.
    pub async fn cancel(&self, id: &str) {
        let (status, answer) = self.request(reqwest::Method::DELETE, &format!("/v1/runs/{id}"), None).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// The functions of an app as the server knows them; empty when it knows no such app.
    pub async fn functions_of(&self, app: &str) -> Vec<Value> {
        let (status, answer) = self.get(&format!("/v1/apps/{app}/functions")).await;
        if status == 404 {
            return Vec::new();
        }
        assert_eq!(status, 200, "{answer}");
        let list = if answer.is_array() { &answer } else { &answer["data"] };
        list.as_array().unwrap_or_else(|| panic!("no list: {answer}")).clone()
    }

    /// The id under which a step's memo is kept: SHA-1 of what the user called it.
    pub async fn hashed(&self, step: &str) -> String {
        self.redis.cli(&["EVAL", "return redis.sha1hex(ARGV[1])", "0", step]).await.trim_matches('"').to_owned()
    }
}
