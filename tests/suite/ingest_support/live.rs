//! A running server over a real Redis, and deliveries of GitHub's to it.

#![allow(dead_code)]

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use system_bus::streams::bus::Bus;
use system_bus::streams::envelope::Envelope;
use system_bus::streams::lane::Lane;
use system_bus::streams::priority::Priority;

use super::client;
use crate::drainer_support::Stage;
use crate::support::{Joelclaw, Running, eventually, free_port};

pub const LONG: Duration = Duration::from_secs(60);
pub const SECRET: &str = "gh-test-secret-0001";
pub const BODY: &str = r#"{"action":"published","package":{"name":"widgets"}}"#;

/// GitHub's signature of `body`.
pub fn signature(body: &str, secret: &str) -> String {
    let mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap().chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// Ids of the events of a name, in the order in which they are stored.
pub async fn ids(connection: &mut redis::aio::MultiplexedConnection, bus: &Bus, name: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for priority in Priority::ALL {
        let key = bus.keys.lane(&Lane::new(name.parse().unwrap(), priority));
        let rows: redis::streams::StreamRangeReply =
            redis::cmd("XRANGE").arg(key).arg("-").arg("+").query_async(connection).await.unwrap();
        let id = |row: &redis::streams::StreamId| Envelope::decode(&row.get::<Vec<u8>>("e").unwrap()).unwrap().id;
        ids.extend(rows.ids.iter().map(id));
    }
    ids
}

pub struct Live {
    pub stage: Stage,
    pub joelclaw: Joelclaw,
    pub url: String,
    pub process: Running,
}

impl Live {
    /// The HTTP part alone: what is appended stays in its lane.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let stage = Stage::start().await;
        let joelclaw = stage.joelclaw("");
        let port = free_port();
        joelclaw.env_file_line("WORKER_PORT", &port.to_string());
        joelclaw.env_file_line("GITHUB_WEBHOOK_SECRET", SECRET);
        joelclaw.env_file_line("WEBHOOK_SECRETS_COMMAND", "");
        for (key, value) in settings {
            joelclaw.env_file_line(key, value);
        }
        let url = format!("http://127.0.0.1:{port}");
        let process = serve(&joelclaw, &url).await;
        Self { stage, joelclaw, url, process }
    }

    /// A package delivery, signed; the status of the answer.
    pub async fn deliver(&self, client: &reqwest::Client, id: &str) -> u16 {
        self.signed(client, "package", id, BODY, SECRET).send().await.unwrap().status().as_u16()
    }

    /// A delivery of GitHub's that is still to be sent.
    pub fn signed(
        &self,
        client: &reqwest::Client,
        event: &str,
        id: &str,
        body: &str,
        secret: &str,
    ) -> reqwest::RequestBuilder {
        let request = client.post(format!("{}/webhooks/github", self.url)).timeout(LONG);
        let request = request.header("x-github-event", event).header("x-github-delivery", id);
        request.header("x-hub-signature-256", signature(body, secret)).body(body.to_owned())
    }

    /// Ends the process as a crash does it, and starts another.
    pub async fn restart(&mut self) {
        self.process.kill_9().await;
        self.process = serve(&self.joelclaw, &self.url).await;
    }

    /// Ids of package deliveries in the order in which they are stored.
    pub async fn stored(&self) -> Vec<String> {
        let ids = self.ids("github/package.published").await;
        ids.iter().map(|id| id.strip_prefix("github-package-published-").unwrap().to_owned()).collect()
    }

    /// Ids of the stored events of a name.
    pub async fn ids(&self, name: &str) -> Vec<String> {
        ids(&mut self.stage.redis.connection().await, &self.stage.bus, name).await
    }

    pub fn spool_files(&self) -> usize {
        let dir = self.joelclaw.home().join(".joelclaw/webhook-spool");
        let Ok(files) = std::fs::read_dir(dir) else { return 0 };
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "mpk")).count()
    }

    pub async fn wait_until_drained(&self) {
        eventually(LONG, || async {
            let left = self.spool_files();
            if left == 0 { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

/// Starts the HTTP part and waits until it answers.
pub async fn serve(joelclaw: &Joelclaw, url: &str) -> Running {
    let process = joelclaw.spawn(&["serve"]);
    let client = client();
    eventually(LONG, || async { client.get(format!("{url}/webhooks")).send().await.map(drop) }).await;
    process
}
