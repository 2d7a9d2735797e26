//! Records to another node's `/observability/emit`, in lists of at most [`MOST`].
//!
//! What was forwarded once says so (`forwardedBy`) and is not forwarded again, so that two nodes that name each other do
//! not send it round for ever.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::super::posted;
use super::{Batches, Failed, Sink};

/// Events of one request.
pub const MOST: usize = 200;
/// Bytes of one request, about: the other side takes 1 MiB.
const MOST_BYTES: usize = 768 << 10;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Who forwarded an event.
const BY: &str = "forwardedBy";

/// The sink.
#[derive(Debug)]
pub struct Forward {
    client: reqwest::Client,
    url: String,
    token: Option<SecretString>,
    system: String,
}

impl Forward {
    /// A sink for `url`. Nothing is connected yet.
    pub fn new(url: &str, token: Option<SecretString>, system: &str) -> Result<Self, Failed> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build();
        let client = client.map_err(|error| Failed(format!("the HTTP client can't be made: {error}")))?;
        Ok(Self { client, url: url.to_owned(), token, system: system.to_owned() })
    }

    async fn post(&self, body: String) -> Result<(), Failed> {
        let mut request = self.client.post(&self.url).header("content-type", "application/json").body(body);
        if let Some(token) = &self.token {
            request = request.header("x-otel-emit-token", token.expose_secret());
        }
        let answer =
            request.send().await.map_err(|error| Failed(format!("the other node: {}", error.without_url())))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(Failed(format!("the other node answered {status}"))),
        }
    }
}

impl Sink for Forward {
    const NAME: &'static str = "forward";
    const IS_REQUIRED: bool = false;

    async fn write(&mut self, batches: Batches<'_>) -> Result<(), Failed> {
        let events = batches.events().into_iter().map(|event| event.json).filter(|event| event.get(BY).is_none());
        let own = events.map(|mut event| {
            event[BY] = Value::from(self.system.as_str());
            event.to_string()
        });
        let (mut list, mut bytes) = (Vec::new(), 0);
        for event in own {
            if list.len() == MOST || (bytes + event.len() > MOST_BYTES && !list.is_empty()) {
                self.post(format!("[{}]", list.join(","))).await?;
                (list, bytes) = (Vec::new(), 0);
            }
            bytes += event.len();
            list.push(event);
        }
        if list.is_empty() { Ok(()) } else { self.post(format!("[{}]", list.join(","))).await }
    }
}

const _: () = assert!(MOST <= posted::MOST, "the other side takes them at once");
