//! `/internal/…` and `/observability/emit`: what machines of ours ask of this process, never the world.
//!
//! | endpoint | does |
//! |---|---|
//! | `POST /internal/queue/enqueue` | appends one event |
//! | `POST /observability/emit` | writes telemetry events into the journal ([`posted`]) |
//! | `POST /internal/secrets/reload` | reads the env file, secrets and sources again |
//! | `GET /internal/webhooks/deliveries`, `…/<ref>` | the log of deliveries |
//! | `POST /internal/webhooks/deliveries/<ref>/replay`, `POST /internal/webhooks/replay` | [`super::internal_replay`] |
//! | `/internal/agent-…` | [`super::internal_agent`] |
//!
//! # Who may ask
//! With OTEL_EMIT_TOKEN set, whoever sends it as `x-otel-emit-token`, `x-internal-token` or bearer. Without it, only
//! processes of this machine, and only while the server is bound to loopback; a request that was forwarded is not one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::internal_inbox::Inbox;
use super::{internal_agent, internal_replay};
use crate::config::Cidr;
use crate::diagnose::{Diagnose, chain};
use crate::ingest::admission::{Admission, AskedPriority, Emit};
use crate::ingest::deliveries::{Entry, Filter};
use crate::ingest::gateway::Gateway;
use crate::ingest::peer::Peer;
use crate::registry::watch::RegistryHandle;
use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::streams::journal;
use crate::telemetry::outbox::{Outbox, Place};
use crate::telemetry::posted::{self, DebugBudget};

/// Largest body.
const MAX_BODY_BYTES: usize = 16 << 20;
/// Largest body of telemetry.
const MAX_EMIT_BYTES: usize = 1 << 20;
/// Entries looked at for one page of deliveries.
pub(super) const SCAN: usize = 20_000;

/// What the endpoints work with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Internal(pub(super) Arc<Parts>);

/// See [`Internal`].
#[derive(Debug)]
pub struct Parts {
    /// What callers must know.
    pub token: Option<SecretString>,
    /// The server can be reached from this machine alone.
    pub is_loopback: bool,
    /// Whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Which events have an entry.
    pub registry: RegistryHandle,
    /// Appends.
    pub admission: Admission,
    /// Whether telemetry of others is stored.
    pub takes_events: bool,
    /// Of it, how much for debugging.
    pub debug_budget: DebugBudget,
    /// Where it waits while Redis is away.
    pub outbox: Outbox,
    /// The journal and the log of deliveries.
    pub bus: Bus,
    /// Knows who may send.
    pub gateway: Gateway,
    /// How long a delivery is kept in the log.
    pub log_keep: Duration,
    /// Asks the service to read its configuration again.
    pub reload: Arc<Notify>,
    /// Where snapshots of agents are.
    pub inbox: Inbox,
    /// Whether this process plays the part of the host, where agents run.
    pub is_host: bool,
    /// The process stops: nobody waits any longer.
    pub stop: CancellationToken,
}

fn now_ms() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or_default()
}

impl Internal {
    /// The endpoints over these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/observability/emit", post(emit).layer(DefaultBodyLimit::max(MAX_EMIT_BYTES)))
            .route("/internal/queue/enqueue", post(enqueue))
            .route("/internal/secrets/reload", post(reload))
            .route("/internal/webhooks/deliveries", get(deliveries))
            .route("/internal/webhooks/deliveries/{ref}", get(delivery))
            .merge(internal_replay::routes())
            .merge(internal_agent::routes())
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .layer(from_fn_with_state(self.clone(), authorize))
            .with_state(self)
    }

    fn admits(&self, request: &Request) -> bool {
        let Some(token) = &self.0.token else {
            let peer = Peer::of(request.extensions(), request.headers(), &self.0.trusted_proxies);
            return self.0.is_loopback && peer.is_local;
        };
        given_tokens(request.headers()).any(|given| is_same(given, token.expose_secret().as_bytes()))
    }
}

/// Every token that a request shows.
fn given_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let named = ["x-otel-emit-token", "x-internal-token"].into_iter().filter_map(|name| headers.get(name));
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    named.map(|value| value.as_bytes()).chain(bearer)
}

/// Compares hashes, so that neither content nor length shows in the time.
fn is_same(given: &[u8], expected: &[u8]) -> bool {
    Sha256::digest(given).as_slice().ct_eq(Sha256::digest(expected).as_slice()).into()
}

async fn authorize(State(internal): State<Internal>, request: Request, next: Next) -> Response {
    let mut response = match internal.admits(&request) {
        true => next.run(request).await,
        false => (StatusCode::UNAUTHORIZED, Json(json!({ "error": "Unauthorized" }))).into_response(),
    };
    if let Ok(id) = header::HeaderValue::try_from(uuid::Uuid::now_v7().to_string()) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// `{"ok":false,"error":…}`.
pub(super) fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    let mut response = (status, Json(json!({ "ok": false, "error": error.into() }))).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
    }
    response
}

/// An error of ours as an answer.
pub(super) fn failed(error: &(impl Diagnose + 'static)) -> Response {
    refuse(StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), chain(error))
}

fn text(fields: &BTreeMap<String, Box<RawValue>>, name: &str) -> Option<String> {
    let text: String = serde_json::from_str(fields.get(name)?.get()).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// `P0`…`P3`, or the number.
fn priority(fields: &BTreeMap<String, Box<RawValue>>) -> Option<String> {
    match serde_json::from_str(fields.get("priority")?.get()).ok()? {
        Value::String(label) => Some(label),
        Value::Number(number) => Some(format!("P{number}")),
        _ => None,
    }
}

async fn enqueue(State(internal): State<Internal>, body: Bytes) -> Response {
    let bad = |error: &str| refuse(StatusCode::BAD_REQUEST, error);
    // Values stay the text that arrived: numbers of any size survive.
    let Ok(fields) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&body) else {
        return bad("Invalid payload");
    };
    let (Some(name), Some(source)) = (text(&fields, "name"), text(&fields, "source")) else {
        return bad("Missing required fields: name, source");
    };
    let object = |name: &str| fields.get(name).map(|raw| raw.get().trim()).filter(|text| text.starts_with('{'));
    let Some(data) = object("data") else { return bad("data must be a JSON object") };
    if fields.contains_key("metadata") && object("metadata").is_none() {
        return bad("metadata must be a JSON object when provided");
    }
    let is_registered =
        name.parse::<Family>().is_ok_and(|family| internal.0.registry.current().lookup(&family).is_some());
    if !is_registered {
        return bad(&format!("queue registry has no entry for {name}"));
    }
    let (id, priority) = (text(&fields, "eventId"), priority(&fields));
    let emit = Emit {
        name: &name,
        data,
        priority: priority.as_deref().map_or(AskedPriority::Unset, AskedPriority::Lenient),
        id: id.as_deref(),
        source: Some(&source),
        meta: object("metadata"),
        ..Emit::default()
    };
    match internal.0.admission.admit(emit).await {
        Ok(accepted) => {
            let mut result = json!({
                "streamId": accepted.stream_id.map(|id| id.to_string()),
                "eventId": accepted.event_id,
                "priority": accepted.priority,
                "triageMode": accepted.triage.mode,
            });
            if let Some(record) = &accepted.triage.record {
                result["triage"] = record.to_value();
            }
            if let Some(duplicate) = accepted.duplicate {
                result["duplicate"] = json!(duplicate);
            }
            Json(json!({ "ok": true, "result": result })).into_response()
        }
        Err(error) => failed(&error),
    }
}

async fn emit(State(internal): State<Internal>, body: Bytes) -> Response {
    let (events, is_list) = match posted::parse(&body, now_ms()) {
        Ok(parsed) => parsed,
        Err(posted::Error::Payload) => return refuse_plain("Invalid payload"),
        Err(error) => {
            let body = json!({ "error": "Invalid payload", "detail": error.to_string() });
            return (StatusCode::BAD_REQUEST, Json(body)).into_response();
        }
    };
    let (is_enabled, now) = (internal.0.takes_events, Instant::now());
    let (mut results, mut facts) = (Vec::with_capacity(events.len()), Vec::new());
    for posted in events {
        let reason = internal.0.debug_budget.refusal(&posted, is_enabled, now);
        let mut result = json!({ "stored": reason.is_none(), "dropped": reason.is_some(), "eventId": posted.id });
        match reason {
            Some(reason) => result["dropReason"] = reason.into(),
            None => facts.push(posted.fact),
        }
        results.push(result);
    }
    let kept = match facts.is_empty() {
        true => Ok(Place::Journal),
        false => internal.0.outbox.write(&internal.0.bus, journal::encode_facts(facts)).await,
    };
    for result in results.iter_mut().filter(|result| result["stored"] == true) {
        result["stored"] = json!(matches!(kept, Ok(Place::Journal)));
        if matches!(kept, Ok(Place::Disk)) {
            result["queued"] = true.into();
        }
    }
    let mut answer = match &kept {
        Ok(_) => json!({ "ok": true }),
        Err(error) => json!({ "ok": false, "error": chain(error) }),
    };
    match is_list {
        true => answer["results"] = results.into(),
        false => answer["result"] = results.pop().unwrap_or_default(),
    }
    let status = if kept.is_err() { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    (status, Json(answer)).into_response()
}

fn refuse_plain(error: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response()
}

async fn reload(State(internal): State<Internal>) -> Response {
    internal.0.reload.notify_one();
    (StatusCode::ACCEPTED, Json(json!({ "ok": true }))).into_response()
}

#[derive(Debug, Deserialize)]
struct Asked {
    provider: Option<String>,
    outcome: Option<String>,
    /// `15m`, `24h`.
    since: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

pub(super) fn shown(entry: &Entry) -> Value {
    let mut shown = json!(entry.record);
    shown["streamId"] = entry.id.to_string().into();
    shown
}

async fn deliveries(State(internal): State<Internal>, Query(asked): Query<Asked>) -> Response {
    let bus = &internal.0.bus;
    let since = match asked.since.as_deref().map(crate::config::units::parse_duration) {
        None => None,
        Some(Some(since)) => Some(since),
        Some(None) => return refuse(StatusCode::BAD_REQUEST, "since is no duration, such as 15m"),
    };
    let before = match asked.cursor.as_deref().map(str::parse) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "cursor is no id of an entry"),
    };
    let now = match bus.now_ms().await {
        Ok(now) => now,
        Err(error) => return failed(&error),
    };
    let ms = |since: Duration| u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let filter = Filter {
        provider: asked.provider,
        outcome: asked.outcome,
        since_ms: since.map(|since| now.saturating_sub(ms(since))),
    };
    let limit = asked.limit.unwrap_or(50).clamp(1, 500);
    match bus.deliveries(&filter, before, limit, SCAN).await {
        Ok(page) => Json(json!({
            "ok": true,
            "deliveries": page.entries.iter().map(shown).collect::<Vec<_>>(),
            "nextCursor": page.next.map(|id| id.to_string()),
        }))
        .into_response(),
        Err(error) => failed(&error),
    }
}

async fn delivery(State(internal): State<Internal>, Path(reference): Path<String>) -> Response {
    match internal.0.bus.delivery(&reference).await {
        Ok(Some(entry)) => {
            let mut shown = shown(&entry);
            if let Some(kept) = entry.kept() {
                shown["body"] = String::from_utf8_lossy(&kept.body()).into();
                shown["headers"] = json!(kept.headers);
            }
            Json(json!({ "ok": true, "delivery": shown })).into_response()
        }
        Ok(None) => refuse(StatusCode::NOT_FOUND, "Unknown delivery"),
        Err(error) => failed(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_show_a_token_is_seen_and_only_the_right_one_passes() {
        let mut headers = HeaderMap::new();
        headers.insert("x-internal-token", header::HeaderValue::from_static("a"));
        headers.insert("authorization", header::HeaderValue::from_static("Bearer b"));
        let given: Vec<&[u8]> = given_tokens(&headers).collect();
        assert_eq!(given, [b"a".as_slice(), b"b".as_slice()]);
        assert!(is_same(b"token", b"token"));
        for wrong in [b"".as_slice(), b"toke", b"tokens", b"Token"] {
            assert!(!is_same(wrong, b"token"));
        }
    }
}
