//! `openai` and `anthropic`: one POST to a compatible endpoint. Temperature 0, no tools, no session.
//!
//! Redirects are not followed: the key would go along. One retry, on a connection that failed, 429 or 5xx, where the
//! budget allows the wait that the server asks for.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::command::texts;
use super::{Answer, Error, KeySource, MAX_ANSWER_BYTES, Provider, Request};

const OPENAI: &str = "https://api.openai.com/v1";
const ANTHROPIC: &str = "https://api.anthropic.com";
const MAX_TOKENS: u32 = 1024;
/// Before the second try, where the server doesn't say.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Bytes of a refusal that are looked at.
const MAX_REFUSAL_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct HttpProvider {
    client: Option<reqwest::Client>,
    base_url: Option<String>,
    key: KeySource,
}

/// What one POST came to.
enum Reply {
    Body(Vec<u8>),
    /// It does not know `response_format`.
    NoFormat,
    Again {
        error: Error,
        after: Duration,
    },
}

impl HttpProvider {
    pub fn new(base_url: Option<String>, key: KeySource) -> Self {
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build();
        Self { client: client.ok(), base_url, key }
    }

    pub async fn ask(&self, provider: Provider, request: &Request<'_>) -> Result<Answer, Error> {
        let is_openai = provider == Provider::OpenAi;
        let key = self.key.read().await?;
        let (default, path) = if is_openai { (OPENAI, "/chat/completions") } else { (ANTHROPIC, "/v1/messages") };
        let url = format!("{}{path}", self.base_url.as_deref().unwrap_or(default).trim_end_matches('/'));
        let headers = headers(is_openai, key.as_ref())?;
        let mut body = if is_openai { openai_body(request) } else { anthropic_body(request) };
        let (mut may_retry, mut may_drop_format) = (true, is_openai);
        let bytes = loop {
            match self.post(&url, &headers, &body, request).await? {
                Reply::Body(bytes) => break bytes,
                Reply::NoFormat if may_drop_format => {
                    may_drop_format = false;
                    if let Some(body) = body.as_object_mut() {
                        body.remove("response_format");
                    }
                }
                Reply::NoFormat => return Err(Error::Http(400)),
                Reply::Again { error, after } => {
                    let left = request.deadline.saturating_duration_since(Instant::now());
                    if !may_retry || after.saturating_add(request.caller.least()) > left {
                        return Err(error);
                    }
                    may_retry = false;
                    tokio::time::sleep(after).await;
                }
            }
        };
        let reply: Value = serde_json::from_slice(&bytes).map_err(|_| Error::Connection("the reply is not JSON"))?;
        let text = if is_openai {
            reply["choices"][0]["message"]["content"].as_str().unwrap_or_default().trim().to_owned()
        } else {
            texts(&reply["content"])
        };
        if text.is_empty() {
            return Err(Error::Empty);
        }
        let model = reply["model"].as_str().map_or_else(|| request.model.to_owned(), str::to_owned);
        Ok(Answer { text, provider, model, detail: None })
    }

    async fn post(&self, url: &str, headers: &HeaderMap, body: &Value, request: &Request<'_>) -> Result<Reply, Error> {
        let client = self.client.as_ref().ok_or(Error::Connection("TLS can't be set up"))?;
        let left = request.deadline.saturating_duration_since(Instant::now());
        let sent = client.post(url).headers(headers.clone()).body(body.to_string()).timeout(left).send().await;
        let mut response = match sent {
            Ok(response) => response,
            Err(error) if error.is_timeout() => return Err(Error::Timeout),
            Err(error) => return Ok(Reply::Again { error: broken(&error), after: RETRY_DELAY }),
        };
        let status = response.status().as_u16();
        if status == 200 {
            let body = bounded(&mut response, MAX_ANSWER_BYTES).await?;
            return body.map(Reply::Body).ok_or(Error::TooLong);
        }
        if status == 429 || status >= 500 {
            let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let after = after.map_or(RETRY_DELAY, Duration::from_secs);
            return Ok(Reply::Again { error: Error::Http(status), after });
        }
        if status == 400 && body.get("response_format").is_some() {
            let refusal = bounded(&mut response, MAX_REFUSAL_BYTES).await?.unwrap_or_default();
            if String::from_utf8_lossy(&refusal).contains("response_format") {
                return Ok(Reply::NoFormat);
            }
        }
        Err(Error::Http(status))
    }
}

/// The error's kind only: its text may hold an address with a user in it.
fn broken(error: &reqwest::Error) -> Error {
    Error::Connection(if error.is_connect() { "can't be reached" } else { "broke off" })
}

/// The body; `None` when it is longer than `limit`.
async fn bounded(response: &mut reqwest::Response, limit: usize) -> Result<Option<Vec<u8>>, Error> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > limit => return Ok(None),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(Some(body)),
            Err(error) if error.is_timeout() => return Err(Error::Timeout),
            Err(error) => return Err(broken(&error)),
        }
    }
}

fn headers(is_openai: bool, key: Option<&SecretString>) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    if !is_openai {
        headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
    }
    if let Some(key) = key {
        let (name, text) = if is_openai {
            ("authorization", format!("Bearer {}", key.expose_secret()))
        } else {
            ("x-api-key", key.expose_secret().to_owned())
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| Error::Key("it can't be sent in a header"))?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(headers)
}

/// Without the provider's prefix: `anthropic/claude-haiku-4-5` is `claude-haiku-4-5` to its own endpoint.
fn plain_model(model: &str) -> &str {
    model.split_once('/').map_or(model, |(_, name)| name)
}

fn openai_body(request: &Request<'_>) -> Value {
    json!({
        "model": plain_model(request.model),
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "response_format": { "type": "json_object" },
        "messages": [
            { "role": "system", "content": request.prompt.system },
            { "role": "user", "content": request.prompt.user },
        ],
    })
}

fn anthropic_body(request: &Request<'_>) -> Value {
    json!({
        "model": plain_model(request.model),
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "system": request.prompt.system,
        "messages": [{ "role": "user", "content": request.prompt.user }],
    })
}
