//! `inngest`: hands the event to an external Inngest event API, under the event name that the registry gives.
//!
//! `POST <base>/e/<key>` with `{id, name, ts, data}`. The event id makes a repetition harmless there. The key is a
//! secret: it is in no error, no `Debug` and no target; nor are user and password of the URL.

use std::fmt;

use chrono::Utc;
use futures_util::future::BoxFuture;
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::{Dispatch, Handler, Outcome, answer, client};
use crate::registry::entry::url_without_secrets;
use crate::streams::family::Family;
use crate::streams::json::JsonObject;

/// Where to send.
#[derive(Clone)]
pub struct InngestServer {
    /// Base URL, with or without one trailing `/`.
    pub base_url: String,
    /// The event key.
    pub key: SecretString,
}

impl fmt::Debug for InngestServer {
    /// Without the key and the URL's password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = client::usable(&self.base_url).map(|url| url_without_secrets(&url));
        write!(f, "InngestServer({})", shown.as_deref().unwrap_or("no URL"))
    }
}

/// See the module.
pub struct InngestHandler {
    client: Client,
    url: SecretString,
    key: SecretString,
    shown: String,
    target: Family,
}

impl fmt::Debug for InngestHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InngestHandler({} at {})", self.target, self.shown)
    }
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    name: &'a str,
    ts: i64,
    data: &'a JsonObject,
}

#[derive(Deserialize)]
struct Answer {
    status: Option<i32>,
    error: Option<String>,
}

impl InngestHandler {
    /// Sends to `server` under the name `target`; the error says what can't be used.
    pub fn new(server: &InngestServer, target: Family) -> Result<Self, String> {
        let shown = client::usable(&server.base_url)
            .map(|url| url_without_secrets(&url))
            .map_err(|what| format!("INNGEST_URL {what}"))?;
        let base_url = server.base_url.strip_suffix('/').unwrap_or(&server.base_url);
        let key = client::percent_encoded(server.key.expose_secret());
        let url = SecretString::from(format!("{base_url}/e/{key}"));
        Ok(Self { client: client::shared()?, url, key: server.key.clone(), shown, target })
    }

    /// Servers like to name the path they refused, and proxies the one they redirect to.
    fn without_key(&self, text: &str) -> String {
        let key = self.key.expose_secret();
        if key.is_empty() {
            return text.to_owned();
        }
        let encoded = client::percent_encoded(key);
        // Some write the digits of an escape in lower case; the rest of a key is not theirs to change.
        let lower = encoded.split('%').enumerate().map(|(n, part)| match part.split_at_checked(2) {
            Some((digits, rest)) if n > 0 => format!("%{}{rest}", digits.to_ascii_lowercase()),
            _ => part.to_owned(),
        });
        let lower: String = lower.collect();
        text.replace(key, "***").replace(&encoded, "***").replace(&lower, "***")
    }

    async fn send(&self, dispatch: &Dispatch) -> Outcome {
        let envelope = &dispatch.envelope;
        let body = Body { id: &envelope.id, name: self.target.as_str(), ts: envelope.ts, data: &envelope.data };
        let body = match serde_json::to_string(&body) {
            Ok(body) => body,
            Err(error) => return Outcome::Fail { reason: "undecodable", error: error.to_string(), status: None },
        };
        let request = self.client.post(self.url.expose_secret()).timeout(dispatch.timeout);
        let response = match request
            .header(CONTENT_TYPE, "application/json")
            .header("traceparent", dispatch.trace().to_string())
            .body(body)
            .send()
            .await
        {
            Ok(response) => response,
            Err(error) => return answer::unanswered(error, &self.shown),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.without_key(&answer::read(response).await);
        if status.is_success() {
            // Some servers answer 200 and say in the body that they refused.
            return match serde_json::from_str::<Answer>(&body) {
                Ok(Answer { status: said, error }) if error.is_some() || said.is_some_and(|said| said != 200) => {
                    let error = error.unwrap_or_else(|| "the event was not accepted".into());
                    Outcome::Retry {
                        error: format!("HTTP {}: {error}", status.as_u16()),
                        not_before: None,
                        status: said,
                    }
                }
                _ => Outcome::Done,
            };
        }
        match answer::outcome(status, &headers, &body, false, Utc::now()) {
            // The redirect's path.
            Outcome::Fail { reason, error, status } => {
                Outcome::Fail { reason, error: self.without_key(&error), status }
            }
            outcome => outcome,
        }
    }
}

impl Handler for InngestHandler {
    fn kind(&self) -> &'static str {
        "inngest"
    }

    fn target(&self) -> &str {
        self.target.as_str()
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            if dispatch.cancel.is_cancelled() {
                return Outcome::Cancelled;
            }
            tokio::select! {
                outcome = self.send(&dispatch) => outcome,
                () = dispatch.cancel.cancelled() => Outcome::Retry {
                    error: "cancelled while the server was working on it".into(),
                    not_before: None,
                    status: None,
                },
            }
        })
    }
}
