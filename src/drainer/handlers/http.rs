//! `http`: `POST` of the event's data, exactly as it was stored.
//!
//! | header | value |
//! |---|---|
//! | `X-Event-Id`, `X-Event-Name` | the event; percent-encoded where a header can't hold it |
//! | `X-Attempt`, `X-Fence` | which try; both rise with every grant |
//! | `Idempotency-Key`, `X-Dispatch-Id` | see [`super::identity`] |
//! | `traceparent`, `tracestate` | this dispatch, in the trace of the event |
//! | `webhook-id`, `webhook-timestamp`, `webhook-signature` | [Standard Webhooks], where the entry has a secret |
//!
//! [Standard Webhooks]: https://www.standardwebhooks.com

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::Utc;
use futures_util::future::BoxFuture;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Url};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

use super::{Dispatch, Handler, Outcome, answer, client, identity};
use crate::registry::entry::url_without_secrets;
use crate::streams::envelope::Envelope;

/// What a registry entry says beside the URL.
#[derive(Debug, Default)]
pub struct HttpOptions {
    /// Signs each request.
    pub secret: Option<SecretString>,
    /// Retry 4xx answers too.
    pub retry_client_errors: bool,
    /// Further headers.
    pub headers: Vec<(String, String)>,
}

/// See the module.
pub struct HttpHandler {
    client: Client,
    url: Url,
    shown: String,
    key: Option<Vec<u8>>,
    headers: HeaderMap,
    retry_client_errors: bool,
}

impl std::fmt::Debug for HttpHandler {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpHandler({})", self.shown)
    }
}

impl HttpHandler {
    /// A handler for `target`; the error says what can't be used.
    pub fn new(target: &str, options: HttpOptions) -> Result<Self, String> {
        let url = client::usable(target).map_err(|what| format!("`target` {what}"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &options.headers {
            let name = HeaderName::try_from(name).map_err(|_| format!("`{name}` is no header name"))?;
            let value =
                HeaderValue::try_from(value).map_err(|_| format!("the value of header `{name}` can't be sent"))?;
            headers.insert(name, value);
        }
        let key = options.secret.as_ref().map(signing_key).transpose()?;
        let shown = url_without_secrets(&url);
        Ok(Self {
            client: client::shared()?,
            url,
            shown,
            key,
            headers,
            retry_client_errors: options.retry_client_errors,
        })
    }

    fn request_headers(&self, dispatch: &Dispatch, body: &str) -> HeaderMap {
        let envelope = &dispatch.envelope;
        let mut headers = self.headers.clone();
        let mut set = |name: &'static str, value: &str| {
            headers.insert(name, header_value(value));
        };
        let dispatch_id = identity::dispatch_id(&envelope.id, &format!("http {}", self.shown), dispatch.redrives);
        set("x-event-id", &envelope.id);
        set("x-event-name", envelope.name.as_str());
        set("x-attempt", &dispatch.attempt.to_string());
        set("x-fence", &dispatch.fence.to_string());
        set("idempotency-key", &identity::idempotency_key(&envelope.id));
        set("x-dispatch-id", &dispatch_id);
        set("traceparent", &dispatch.trace().to_string());
        if let Some(state) = trace_state(envelope) {
            set("tracestate", &state);
        }
        if let Some(key) = &self.key {
            let timestamp = Utc::now().timestamp().to_string();
            set("webhook-id", &dispatch_id);
            set("webhook-timestamp", &timestamp);
            set("webhook-signature", &sign(key, &dispatch_id, &timestamp, body));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers
    }
}

/// `whsec_<base64>` is decoded, anything else is taken byte for byte.
fn signing_key(secret: &SecretString) -> Result<Vec<u8>, String> {
    match secret.expose_secret().strip_prefix("whsec_") {
        Some(encoded) => BASE64.decode(encoded).map_err(|_| "the secret begins with whsec_ but is not base64".into()),
        None => Ok(secret.expose_secret().as_bytes().to_vec()),
    }
}

/// `v1,<base64 HMAC-SHA256 of "<id>.<timestamp>.<body>">`.
fn sign(key: &[u8], id: &str, timestamp: &str, body: &str) -> String {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body.as_bytes());
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

/// The text, or its percent-encoding where a header can't hold it.
fn header_value(text: &str) -> HeaderValue {
    let plain = || text.is_ascii().then(|| HeaderValue::try_from(text).ok()).flatten();
    plain()
        .ok_or(())
        .or_else(|()| HeaderValue::try_from(client::percent_encoded(text)))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn trace_state(envelope: &Envelope) -> Option<String> {
    let trace = envelope.trace.as_ref()?.to_value();
    trace.get("tracestate")?.as_str().map(str::to_owned)
}

impl Handler for HttpHandler {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn target(&self) -> &str {
        &self.shown
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            if dispatch.cancel.is_cancelled() {
                return Outcome::Cancelled;
            }
            let body = dispatch.envelope.data.as_str();
            let request = self
                .client
                .post(self.url.clone())
                .headers(self.request_headers(&dispatch, body))
                .timeout(dispatch.timeout)
                .body(body.to_owned());
            let exchange = async {
                let response = request.send().await?;
                let (status, headers) = (response.status(), response.headers().clone());
                let body = if status.is_success() { String::new() } else { answer::read(response).await };
                Ok(answer::outcome(status, &headers, &body, self.retry_client_errors, Utc::now()))
            };
            tokio::select! {
                outcome = exchange => outcome.unwrap_or_else(|error| answer::unanswered(error, &self.shown)),
                // The target may have acted on it already: that is an attempt.
                () = dispatch.cancel.cancelled() => Outcome::Retry {
                    error: "cancelled while the target was working on it".into(),
                    not_before: None,
                    status: None,
                },
            }
        })
    }
}
