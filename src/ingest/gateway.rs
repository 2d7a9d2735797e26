//! The webhook gateway: verifies, normalises and appends; answers a provider only after the append.
//!
//! `provider known → method → auth-failure limit → size → secret present → verify → JSON → normalise → append → answer`
//!
//! | what happened | answer |
//! |---|---|
//! | stored | 200 `{"ok":true,"events":n,"queued":q,"direct":d,"deliveryId":…}` |
//! | verified, nothing to emit | 200 `{"ok":true,"events":0,"note":"No matching events"}` |
//! | the delivery was stored before | 200 `{"ok":true,"events":0,"duplicate":true}` |
//! | anything else | `{"ok":false,"error":…}` with the status of [`Refused`] |
//!
//! A delivery is claimed and appended by one script ([`crate::streams::append::NewEvent::once`] and the event id), so
//! there is no moment at which it is claimed but not stored, and of two copies at once one is told `duplicate` only
//! after the other is stored. While Redis is away the answer is 503, and the provider or its operator sends again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::admission::{self, Admission, Emit};
use super::fields::{json_string, object_text};
use super::limiter::AuthFailures;
use super::peer::Peer;
use super::providers::{self, DeliveryKey, NormalizedEvent, Provider};
use super::request_body;
use super::signature::{Delivery, Refusal, Secrets};
use crate::config::Cidr;
use crate::diagnose::chain;
use crate::streams::append::Once;
use crate::streams::json::JsonObject;
use crate::telemetry::metrics::Webhook;

/// The one event name that the `github` pilot counts as queued.
const QUEUED: (&str, &str) = ("github", "workflow_run.completed");

/// Limits and switches of the gateway. The caller fills it from the configuration.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Largest body in bytes, inclusive.
    pub max_body_bytes: usize,
    /// Exceptions from `max_body_bytes`, by provider id.
    pub max_body_bytes_of: HashMap<String, usize>,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a durable append may take; below every provider's own deadline.
    pub append_timeout: Duration,
    /// How long a delivery id is remembered.
    pub dedup_window: Duration,
    /// How long a delivery known only by its body is remembered.
    pub hash_dedup_window: Duration,
    /// Failed verifications per provider and address before its requests are refused.
    pub auth_failure_limit: u32,
    /// The window of that count.
    pub auth_failure_window: Duration,
    /// Whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Emitters that use the queue, lower case.
    pub pilots: BTreeSet<String>,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            max_body_bytes: 262_144,
            max_body_bytes_of: HashMap::new(),
            body_timeout: Duration::from_secs(10),
            append_timeout: Duration::from_secs(4),
            dedup_window: Duration::from_secs(604_800),
            hash_dedup_window: Duration::from_secs(300),
            auth_failure_limit: 20,
            auth_failure_window: Duration::from_secs(60),
            trusted_proxies: Cidr::loopback().to_vec(),
            pilots: BTreeSet::new(),
        }
    }
}

/// The secrets of all providers, by provider id.
pub type SecretTable = HashMap<String, Secrets>;

/// Which provider a request was for; the server's request log reads it from the response.
#[derive(Debug, Clone, Copy)]
pub struct ProviderTag(pub &'static str);

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: GatewaySettings,
    secrets: ArcSwap<SecretTable>,
    admission: Admission,
    auth_failures: AuthFailures,
    sampler: Sampler,
}

/// Why a delivery was not taken.
#[derive(Debug)]
enum Refused {
    Unknown(String),
    Method,
    NoChallenge(&'static str),
    TooManyAuthFailures(Duration),
    TooLarge,
    TooSlow,
    Incomplete,
    Encoding,
    Unconfigured,
    Signature,
    NotJson,
    Append,
}

impl Gateway {
    /// A gateway that appends through `admission`.
    #[must_use]
    pub fn new(settings: GatewaySettings, secrets: SecretTable, admission: Admission) -> Self {
        let auth_failures = AuthFailures::new(settings.auth_failure_limit, settings.auth_failure_window);
        let secrets = ArcSwap::from_pointee(secrets);
        Self(Arc::new(Inner { settings, secrets, admission, auth_failures, sampler: Sampler::default() }))
    }

    /// Takes new secrets; requests in flight keep those with which they began.
    pub fn replace_secrets(&self, secrets: SecretTable) {
        self.0.secrets.store(Arc::new(secrets));
    }

    /// The routes under `/webhooks`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/webhooks", get(index))
            .route("/webhooks/", get(index))
            .route("/webhooks/{provider}", any(delivery))
            .route("/webhooks/{provider}/", any(delivery))
            .with_state(self)
    }

    async fn take(&self, provider: &'static dyn Provider, request: Request) -> Result<Response, Refused> {
        let (parts, body) = request.into_parts();
        match parts.method {
            Method::POST => {}
            Method::GET | Method::HEAD => return Err(Refused::NoChallenge(provider.id())),
            _ => return Err(Refused::Method),
        }
        let inner = &*self.0;
        let settings = &inner.settings;
        let peer = Peer::of(&parts.extensions, &parts.headers, &settings.trusted_proxies);
        // Behind a proxy that names nobody all senders share one address: then a valid signature must still pass.
        if !peer.is_shared {
            self.check_auth_failures(provider.id(), &peer)?;
        }
        if !request_body::is_plain(&parts.headers) {
            return Err(Refused::Encoding);
        }
        let limit = settings.max_body_bytes_of.get(provider.id()).copied().unwrap_or(settings.max_body_bytes);
        let raw = request_body::read(&parts.headers, body, limit, settings.body_timeout).await?;

        let secrets = inner.secrets.load_full();
        let Some(secrets) = secrets.get(provider.id()).filter(|secrets| secrets.is_configured()) else {
            if inner.sampler.count(provider.id(), None, Duration::from_secs(600)).is_some() {
                let variable = provider.secret().variable;
                tracing::warn!(action = "webhook.secret_missing", provider = provider.id(), variable, "set {variable}");
            }
            return Err(Refused::Unconfigured);
        };
        let delivery = Delivery { headers: parts.headers, raw };
        let delivery = match provider.signature().verify(delivery, secrets) {
            Ok(verified) => verified,
            Err(reason) => {
                if let Some(count) = inner.sampler.count(provider.id(), Some(reason), Duration::from_secs(10)) {
                    let provider = provider.id();
                    tracing::error!(action = "webhook.signature_failed", provider, %reason, count);
                }
                if peer.is_shared {
                    self.check_auth_failures(provider.id(), &peer)?;
                }
                inner.auth_failures.record(provider.id(), peer.address, Instant::now());
                return Err(Refused::Signature);
            }
        };
        let text = provider.json(&delivery).ok_or(Refused::NotJson)?;
        let body = JsonObject::parse(&text).map_err(|_| Refused::NotJson)?;
        let key = provider.delivery_key(&delivery);
        tracing::info!(
            action = "webhook.received",
            provider = provider.id(),
            delivery = key.as_str(),
            bytes = delivery.raw.len(),
            slot = delivery.slot().label(),
        );
        match provider.normalize(&delivery, &body) {
            Ok(events) if !events.is_empty() => self.append(provider, &key, &events).await,
            Ok(_) => Ok(dropped(provider, "no_event")),
            Err(skip) => Ok(dropped(provider, &skip.to_string())),
        }
    }

    fn check_auth_failures(&self, provider: &'static str, peer: &Peer) -> Result<(), Refused> {
        match self.0.auth_failures.wait(provider, peer.address, Instant::now()) {
            Some(wait) => Err(Refused::TooManyAuthFailures(wait)),
            None => Ok(()),
        }
    }

    async fn append(
        &self,
        provider: &'static dyn Provider,
        key: &DeliveryKey,
        events: &[NormalizedEvent],
    ) -> Result<Response, Refused> {
        let settings = &self.0.settings;
        let names: Vec<String> = events.iter().map(|e| format!("{}/{}", provider.event_prefix(), e.name)).collect();
        let source = format!("webhook/{}", provider.id());
        let metas: Vec<String> = events.iter().map(|event| meta(provider.id(), event.name)).collect();
        let window = match key {
            DeliveryKey::Id(_) => settings.dedup_window,
            DeliveryKey::Hash(_) => settings.hash_dedup_window,
        };
        let emits: Vec<Emit<'_>> = std::iter::zip(events, std::iter::zip(&names, &metas))
            .enumerate()
            .map(|(index, (event, (name, meta)))| Emit {
                name,
                data: event.data.as_str(),
                id: Some(&event.id),
                source: Some(&source),
                meta: Some(meta),
                once: Some(Once { key: once_key(provider.id(), key, index), window }),
                ..Emit::default()
            })
            .collect();
        let admitted = tokio::time::timeout(settings.append_timeout, self.0.admission.admit_batch(&emits)).await;
        let accepted = match admitted {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(admission::Error::Append(error))) => return Err(append_failed(provider, &names, &chain(&error))),
            // The event itself breaks a rule: sending it again would not help, so it is a drop, and it is logged.
            Ok(Err(error)) => {
                tracing::error!(provider = provider.id(), error = %error, "a normalised event was refused");
                return Ok(dropped(provider, "invalid_event"));
            }
            Err(_) => return Err(append_failed(provider, &names, "not confirmed in time")),
        };
        if accepted.iter().all(|event| event.duplicate.is_some()) {
            tracing::info!(action = "webhook.duplicate", provider = provider.id(), delivery = key.as_str());
            let answer = Json(json!({ "ok": true, "events": 0, "duplicate": true }));
            return Ok((Extension(told(provider.id(), "duplicate")), answer).into_response());
        }
        let is_queued =
            |event: &&NormalizedEvent| (provider.id(), event.name) == QUEUED && settings.pilots.contains(provider.id());
        let queued = events.iter().filter(is_queued).count();
        let (total, direct) = (events.len(), events.len() - queued);
        tracing::info!(action = "webhook.forwarded", provider = provider.id(), total, queued, direct, ?names);
        let answer =
            json!({ "ok": true, "events": total, "queued": queued, "direct": direct, "deliveryId": key.as_str() });
        let count = |events: usize| u64::try_from(events).unwrap_or(u64::MAX);
        let told = Webhook { queued: count(queued), direct: count(direct), ..told(provider.id(), "accepted") };
        Ok((Extension(told), Json(answer)).into_response())
    }
}

/// What the metrics are told of a delivery without events.
const fn told(provider: &'static str, outcome: &'static str) -> Webhook {
    Webhook { provider, outcome, queued: 0, direct: 0 }
}

/// `<provider>:<delivery>`, with the event's number from the second one on.
fn once_key(provider: &str, key: &DeliveryKey, index: usize) -> String {
    match index {
        0 => format!("{provider}:{}", key.as_str()),
        _ => format!("{provider}:{}#{index}", key.as_str()),
    }
}

fn meta(provider: &str, event: &str) -> String {
    let (provider, event) = (json_string(provider), json_string(event));
    object_text([("provider", provider.as_str()), ("normalizedEvent", event.as_str())])
}

fn dropped(provider: &dyn Provider, reason: &str) -> Response {
    tracing::info!(action = "webhook.dropped", provider = provider.id(), reason);
    let answer = Json(json!({ "ok": true, "events": 0, "note": "No matching events" }));
    (Extension(told(provider.id(), "ignored")), answer).into_response()
}

fn append_failed(provider: &dyn Provider, names: &[String], error: &str) -> Refused {
    tracing::error!(action = "webhook.forward.failed", provider = provider.id(), ?names, error);
    Refused::Append
}

async fn index() -> Json<Value> {
    Json(json!({
        "service": "webhook-gateway",
        "status": "running",
        "providers": provider_ids(),
        "endpoint": "POST /webhooks/:provider",
    }))
}

/// The ids of all providers.
#[must_use]
pub fn provider_ids() -> Vec<&'static str> {
    providers::ALL.iter().map(|provider| provider.id()).collect()
}

async fn delivery(State(gateway): State<Gateway>, Path(id): Path<String>, request: Request<Body>) -> Response {
    let Some(provider) = providers::find(&id) else {
        let mut response = Refused::Unknown(id).into_response();
        response.extensions_mut().insert(told("_unknown", "unknown_provider"));
        return response;
    };
    let mut response = gateway.take(provider, request).await.unwrap_or_else(|refused| {
        let told = told(provider.id(), refused.outcome());
        let mut response = refused.into_response();
        response.extensions_mut().insert(told);
        response
    });
    response.extensions_mut().insert(ProviderTag(provider.id()));
    response
}

impl From<request_body::Error> for Refused {
    fn from(error: request_body::Error) -> Self {
        match error {
            request_body::Error::TooLarge => Self::TooLarge,
            request_body::Error::TooSlow => Self::TooSlow,
            request_body::Error::Incomplete => Self::Incomplete,
        }
    }
}

impl Refused {
    /// What the metrics call it.
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown_provider",
            Self::TooManyAuthFailures(_) => "rate_limited",
            Self::TooLarge => "too_large",
            Self::Signature => "bad_signature",
            Self::Unconfigured | Self::Append => "enqueue_failed",
            Self::Method | Self::NoChallenge(_) | Self::TooSlow | Self::Incomplete | Self::Encoding | Self::NotJson => {
                "bad_payload"
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let error = |text: &str| json!({ "ok": false, "error": text });
        let coded = |text: &str, code: &str| json!({ "ok": false, "error": text, "code": code });
        let (status, body, retry_after) = match &self {
            Self::Unknown(id) => (StatusCode::NOT_FOUND, error(&format!("Unknown provider: {id}")), None),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, error("Method not allowed"), None),
            Self::NoChallenge(id) => {
                let text = format!("Provider {id} does not accept GET challenges");
                (StatusCode::METHOD_NOT_ALLOWED, error(&text), None)
            }
            Self::TooManyAuthFailures(wait) => {
                let seconds = wait.as_millis().div_ceil(1000).max(1);
                (StatusCode::TOO_MANY_REQUESTS, error("Too many auth failures"), Some(seconds))
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, error("Request body too large"), None),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, error("Request timeout"), None),
            Self::Incomplete => (StatusCode::BAD_REQUEST, error("Request body incomplete"), None),
            Self::Encoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, error("Unsupported content encoding"), None),
            Self::Unconfigured => {
                let body = coded("Provider secret unavailable", "provider_unconfigured");
                (StatusCode::SERVICE_UNAVAILABLE, body, Some(60))
            }
            Self::Signature => (StatusCode::UNAUTHORIZED, error("Invalid signature"), None),
            Self::NotJson => (StatusCode::BAD_REQUEST, error("Invalid JSON"), None),
            Self::Append => {
                let body = coded("Failed to dispatch events", "append_failed");
                (StatusCode::SERVICE_UNAVAILABLE, body, Some(30))
            }
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
        }
        if let Some(seconds) = retry_after.and_then(|seconds| u64::try_from(seconds).ok()) {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// One report per provider and cause within a span, with the number of cases since the last one: senders of bad
/// signatures are anybody, and must not be able to fill a log.
#[derive(Debug, Default)]
struct Sampler(Mutex<HashMap<Cause, (Instant, u64)>>);

/// Provider and refusal; no refusal is a missing secret.
type Cause = (&'static str, Option<Refusal>);

impl Sampler {
    /// Counts a case; the count when it is to be reported now.
    fn count(&self, provider: &'static str, cause: Option<Refusal>, span: Duration) -> Option<u64> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let Some((reported, waiting)) = seen.get_mut(&(provider, cause)) else {
            seen.insert((provider, cause), (now, 0));
            return Some(1);
        };
        *waiting += 1;
        if now.duration_since(*reported) < span {
            return None;
        }
        *reported = now;
        Some(std::mem::take(waiting))
    }
}
