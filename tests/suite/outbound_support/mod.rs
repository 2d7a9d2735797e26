//! A stage with endpoints at real HTTP sinks.

#![allow(dead_code)] // Each test file uses a part of it.

use std::time::Duration;

use serde_json::Value;

use crate::drainer_support::Stage;
use crate::support::{HttpSink, Joelclaw, Received};

/// How long anything may take before a test fails.
pub const LONG: Duration = Duration::from_secs(60);

pub struct Outbound {
    pub stage: Stage,
    pub joelclaw: Joelclaw,
}

impl Outbound {
    /// Endpoints on this machine are allowed; the schedule of retries is `retries`.
    pub async fn start(retries: &str) -> Self {
        Self::start_with(retries, "").await
    }

    /// The same with more entries in the registry.
    pub async fn start_with(retries: &str, routes: &str) -> Self {
        let stage = Stage::start().await;
        let joelclaw = stage.joelclaw(routes);
        for (key, value) in [("WEBHOOK_ALLOWED_SUBNETS", "127.0.0.0/8,::1"), ("WEBHOOK_ENDPOINT_RETRIES", retries)] {
            joelclaw.env_file_line(key, value);
        }
        Self { stage, joelclaw }
    }

    /// `joelclaw webhooks endpoints <args>`: the result.
    pub async fn endpoints(&self, args: &[&str]) -> Value {
        let all = [&["webhooks", "endpoints"], args, &["--json"]].concat();
        self.joelclaw.run(&all).await.assert_success().json()["result"].clone()
    }

    /// An endpoint at `sink` for `events`: its id and secret.
    pub async fn endpoint(&self, sink: &HttpSink, events: &str, more: &[&str]) -> (String, String) {
        let url = format!("{}/hook", sink.url());
        let added = self.endpoints(&[&["add", &url, "--events", events], more].concat()).await;
        let text = |name: &str| added[name].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    }

    /// `joelclaw queue emit`: the event's id.
    pub async fn emit(&self, name: &str, data: &str) -> String {
        let emitted = self.joelclaw.run(&["queue", "emit", name, "-d", data, "--json"]).await.assert_success().json();
        emitted["result"]["eventId"].as_str().unwrap().to_owned()
    }
}

/// The ids of deliveries, in order of arrival.
pub fn ids(received: &[Received]) -> Vec<String> {
    received.iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect()
}
