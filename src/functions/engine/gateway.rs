//! `Gateway`: an HTTP request that the engine makes for a function (`step.fetch`), so that nothing of the app waits for it.
//!
//! Any status is a result. Only a request that got no answer is a failed attempt, and at last the error `GatewayError`.
//! With signing keys, when apps may be anybody's, requests pass [`crate::net::guard`]: to this machine and to private
//! networks there are none, however a redirect leads there.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, Url};
use serde_json::{Map, Value, json};

use super::Engine;
use super::ops::Op;
use crate::diagnose::chain;
use crate::net::guard::Refused;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Largest answer, bytes: it has to fit a step's result.
const ANSWER_MAX: usize = 3 << 20;

impl Engine {
    /// Makes the requests that an answer asks for, side by side: each becomes a step that ran, or an attempt that failed.
    pub(super) async fn with_requests_made(&self, ops: Vec<Op>) -> Vec<Op> {
        join_all(ops.into_iter().map(|op| async move { if op.op == "Gateway" { self.request(op).await } else { op } }))
            .await
    }

    async fn request(&self, mut op: Op) -> Op {
        let made = tokio::time::timeout(TIMEOUT, self.make_request(&op)).await;
        let answer = made.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())));
        match answer.and_then(|answer| serde_json::value::to_raw_value(&answer).map_err(|error| error.to_string())) {
            Ok(answer) => {
                op.op = "StepRun".into();
                op.data = Some(answer);
            }
            Err(reason) => {
                op.op = "StepError".into();
                op.error = Some(json!({"name": "GatewayError", "message": reason, "stack": reason}));
            }
        }
        op
    }

    async fn make_request(&self, op: &Op) -> Result<Value, String> {
        let text = op.option("url").ok_or("the request names no url")?;
        let mut url = Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
        let mut method: Method =
            op.option("method").unwrap_or("GET").parse().map_err(|_| "the request's method is none".to_owned())?;
        let mut body = op.option("body").map(str::to_owned);
        for _ in 0..4 {
            let client = self.client_for(&url)?;
            let mut request = client.request(method.clone(), url.clone());
            for (name, value) in headers(op) {
                request = request.header(name, value);
            }
            if let Some(body) = &body {
                request = request.body(body.clone());
            }
            let mut response = request.send().await.map_err(unanswered)?;
            let status = response.status();
            let next = response.headers().get("location").filter(|_| status.is_redirection());
            if let Some(next) = next.and_then(|next| url.join(next.to_str().ok()?).ok()) {
                // As browsers do it: only 307 and 308 repeat the request as it was.
                if !matches!(status.as_u16(), 307 | 308) {
                    (method, body) = (Method::GET, None);
                }
                url = next;
                continue;
            }
            let mut headers = Map::new();
            for name in response.headers().keys() {
                let values: Vec<&str> =
                    response.headers().get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
                headers.insert(title(name.as_str()), values.join(",").into());
            }
            let mut read = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(unanswered)? {
                if read.len() + chunk.len() > ANSWER_MAX {
                    return Err(format!("the answer is larger than {ANSWER_MAX} bytes"));
                }
                read.extend_from_slice(&chunk);
            }
            let body = String::from_utf8_lossy(&read);
            return Ok(json!({"url": url.as_str(), "status_code": status.as_u16(), "headers": headers, "body": body}));
        }
        Err("redirected more than three times".into())
    }

    /// The client for a request: in keyed mode one that reaches only what the guard takes.
    fn client_for(&self, url: &Url) -> Result<&reqwest::Client, String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err("only http and https are requested".into());
        }
        if !self.settings().keys.is_keyed() {
            return Ok(&self.inner.client);
        }
        let (guard, client) = &self.inner.guarded;
        guard.check_literal(url).map_err(|refused| refused.to_string())?;
        Ok(client)
    }
}

/// Without the URL, whose query may hold a token.
fn unanswered(error: reqwest::Error) -> String {
    if let Some(refused) = Refused::of(&error) {
        return refused.to_string();
    }
    chain(&error.without_url())
}

/// `{"name": "value"}` or `{"name": ["value", …]}`.
fn headers(op: &Op) -> Vec<(String, String)> {
    let Some(headers) = op.opts.as_ref().and_then(|opts| opts.get("headers")).and_then(Value::as_object) else {
        return Vec::new();
    };
    let values = |(name, value): (&String, &Value)| -> Vec<(String, String)> {
        let items = match value {
            Value::Array(items) => items.iter().collect(),
            other => vec![other],
        };
        items.into_iter().filter_map(Value::as_str).map(|value| (name.clone(), value.to_owned())).collect()
    };
    headers.iter().flat_map(values).collect()
}

/// `content-type` as `Content-Type`.
fn title(name: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_named_as_the_sdks_expect_them() {
        assert_eq!(title("content-type"), "Content-Type");
    }
}
