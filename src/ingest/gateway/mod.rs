//! The webhook gateway: verifies, normalises and appends; answers a provider only after the append.
//!
//! `provider known → method → disabled → auth-failure limit → size → secret present → verify → JSON → handshake → rate
//! limit → normalise → filters → append → answer`
//!
//! A delivery is claimed and appended by one script ([`crate::streams::append::NewEvent::once`] and the event id), so
//! there is no moment at which it is claimed but not stored, and of two copies at once one is told `duplicate` only
//! after the other is stored. While Redis is away the answer is 503, and the provider sends again; what a provider would
//! not send again is put into the [`super::spool`], and so is whatever comes while anything is in there.
//!
//! Every delivery that was answered goes through [`Gateway::answered`], whatever became of it. The answers themselves
//! are in [`super::answer`].

mod append;
mod outage;
mod ready;
mod sampler;
mod settings;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use self::outage::Outage;
use self::sampler::Sampler;
pub use self::settings::GatewaySettings;
use super::admission::Admission;
use super::answer::{Answered, AnsweredEvent, Refused, Taken};
use super::caused_by::CausedBy;
use super::deliveries::DeliveryLog;
use super::disabled::Disabled;
use super::fields::Fields;
use super::limiter::{AuthFailures, Rate, Rates};
use super::peer::Peer;
use super::providers::{DeliveryKey, NormalizedEvent, Provider, Senders, Skip};
use super::request_body;
use super::signature::{Clock, Delivery, Refusal, Slot, Verified};
use super::spool::Spool;
use crate::streams::json::JsonObject;
use crate::telemetry::metrics::Webhook;

/// Handshakes of one provider that are answered.
const HANDSHAKES: Rate = Rate { count: 10, per: Duration::from_secs(60) };
/// How long the echo filter may be asked.
const ECHO_TIMEOUT: Duration = Duration::from_millis(500);

/// Which provider a request was for; the server's request log reads it from the response.
#[derive(Debug, Clone, Copy)]
pub struct ProviderTag(pub &'static str);

/// Tells what we did ourselves from what others did.
pub trait Echoes: Send + Sync {
    /// Whether it was us who completed `task`.
    fn is_ours<'a>(&'a self, task: &'a str) -> BoxFuture<'a, Result<bool, String>>;
}

/// What a gateway works with beside admission.
#[derive(Default)]
pub struct Beside {
    /// Without it nothing is an echo.
    pub echoes: Option<Arc<dyn Echoes>>,
    /// Without it an outage is always answered 503.
    pub spool: Option<Spool>,
    /// Without it nothing is kept of what was answered.
    pub log: Option<DeliveryLog>,
    /// Without it no provider is disabled.
    pub disabled: Option<Disabled>,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    settings: GatewaySettings,
    senders: ArcSwap<Senders>,
    admission: Admission,
    beside: Beside,
    auth_failures: AuthFailures,
    rates: Rates,
    handshakes: Rates,
    sampler: Sampler,
    outage: Outage,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What is known of a request so far.
struct Seen {
    client: IpAddr,
    received_ms: i64,
    headers: HeaderMap,
    raw: Bytes,
    key: Option<DeliveryKey>,
    slot: Option<Slot>,
    events: Vec<AnsweredEvent>,
    /// The envelope's trace object.
    trace: Option<String>,
}

impl Gateway {
    /// A gateway that appends through `admission`.
    #[must_use]
    pub fn new(settings: GatewaySettings, senders: Senders, admission: Admission, beside: Beside) -> Self {
        let auth_failures = AuthFailures::new(settings.auth_failure_limit, settings.auth_failure_window);
        Self(Arc::new(Inner {
            senders: ArcSwap::from_pointee(senders),
            admission,
            beside,
            auth_failures,
            rates: Rates::default(),
            handshakes: Rates::default(),
            sampler: Sampler::default(),
            outage: Outage::default(),
            settings,
        }))
    }

    /// Takes other senders and secrets; requests in flight keep those with which they began.
    pub fn replace_senders(&self, senders: Senders) {
        self.0.senders.store(Arc::new(senders));
    }

    /// Who may send, at this moment.
    #[must_use]
    pub fn senders(&self) -> Arc<Senders> {
        self.0.senders.load_full()
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

    async fn answer(&self, senders: &Senders, provider: &dyn Provider, request: Request) -> Response {
        let (began, received_ms) = (Instant::now(), chrono::Utc::now().timestamp_millis());
        let (mut parts, body) = request.into_parts();
        match parts.method {
            Method::POST => {}
            Method::GET | Method::HEAD => return self.handshake(senders, provider, &parts),
            _ => return Refused::Method.into_response(),
        }
        let peer = Peer::of(&parts.extensions, &parts.headers, &self.0.settings.trusted_proxies);
        let headers = std::mem::take(&mut parts.headers);
        let mut seen = Seen {
            client: peer.address,
            received_ms,
            headers,
            raw: Bytes::new(),
            key: None,
            slot: None,
            events: Vec::new(),
            trace: CausedBy::object_of(&parts.extensions),
        };
        let (outcome, counted, refusal, reason, mut response) =
            match self.take(senders, provider, peer, body, &mut seen).await {
                Ok(taken) => (taken.outcome(), taken.counted(), None, taken.reason(), taken.into_response()),
                Err(refused) => {
                    let (outcome, counted, refusal) = (refused.outcome(), refused.counted(), refused.refusal());
                    (outcome, counted, refusal, Some(refused.reason()), refused.into_response())
                }
            };
        let webhook = Webhook {
            slot: seen.slot.map(Slot::label),
            refusal: refusal.map(Refusal::label),
            ..told(provider.id(), counted, &seen.events)
        };
        response.extensions_mut().insert(webhook);
        let Seen { client, received_ms, headers, raw, key, slot, events, .. } = seen;
        self.answered(Answered {
            provider: provider.id(),
            client,
            received_ms,
            key,
            slot,
            headers,
            raw,
            outcome,
            reason,
            status: response.status().as_u16(),
            events,
            took: began.elapsed(),
        });
        response
    }

    /// What happens to every delivery once its answer is known, just before it is sent.
    fn answered(&self, delivery: Answered) {
        let agent = delivery.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        tracing::info!(
            action = "webhook.handler",
            provider = delivery.provider,
            client = %delivery.client,
            agent = agent.get(..40).unwrap_or(agent),
            outcome = delivery.outcome.as_str(),
            status = delivery.status,
            reason = delivery.reason,
            delivery = delivery.key.as_ref().map(DeliveryKey::as_str),
            bytes = delivery.raw.len(),
            duration_ms = delivery.took.as_millis(),
        );
        if let Some(log) = &self.0.beside.log {
            log.take(&delivery);
        }
    }

    fn handshake(&self, senders: &Senders, provider: &dyn Provider, parts: &Parts) -> Response {
        let query = parts.uri.query().unwrap_or_default();
        let Some(challenge) = provider.challenge_get(query, &senders.secrets) else {
            return Refused::NoChallenge(provider.id()).into_response();
        };
        if let Some(wait) = self.0.handshakes.take(provider.id(), HANDSHAKES, Instant::now()) {
            return Refused::TooFast(wait).into_response();
        }
        tracing::info!(action = "webhook.challenge", provider = provider.id(), status = challenge.status);
        let status = StatusCode::from_u16(challenge.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(challenge.body)).into_response()
    }

    async fn take(
        &self,
        senders: &Senders,
        provider: &dyn Provider,
        peer: Peer,
        body: Body,
        seen: &mut Seen,
    ) -> Result<Taken, Refused> {
        let inner = &*self.0;
        let settings = &inner.settings;
        if inner.beside.disabled.as_ref().is_some_and(|disabled| disabled.contains(provider.id())) {
            return Err(Refused::Disabled);
        }
        // Behind a proxy that names nobody all senders share one address: then a valid signature must still pass.
        if !peer.is_shared {
            self.check_auth_failures(provider.id(), &peer)?;
        }
        if !request_body::is_plain(&seen.headers) {
            return Err(Refused::Encoding);
        }
        let limit = settings.max_body_bytes_of.get(provider.id()).copied().unwrap_or(settings.max_body_bytes);
        seen.raw = request_body::read(&seen.headers, body, limit, settings.body_timeout).await?;

        let (scheme, secrets) = senders.signature(provider, &seen.headers);
        let Some(secrets) = secrets else {
            if inner.sampler.count(provider.id(), None, Duration::from_secs(600)).is_some() {
                let (_, variable) = provider.signature(&seen.headers);
                tracing::warn!(action = "webhook.secret_missing", provider = provider.id(), %variable, "set {variable}");
            }
            return Err(Refused::Unconfigured);
        };
        let delivery = Delivery { headers: seen.headers.clone(), raw: seen.raw.clone() };
        let delivery = match scheme.verify(delivery, secrets, self.clock()) {
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
                return Err(Refused::Signature(reason));
            }
        };
        seen.slot = Some(delivery.slot());
        let text = provider.json(&delivery).ok_or(Refused::NotJson)?;
        let body = JsonObject::parse(&text).map_err(|_| Refused::NotJson)?;
        if let Some(challenge) = provider.challenge_post(&delivery) {
            tracing::info!(action = "webhook.challenge", provider = provider.id(), status = 200);
            return Ok(Taken::Challenge(challenge));
        }
        let key = provider.delivery_key(&delivery, &body);
        seen.key = Some(key.clone());
        tracing::info!(
            action = "webhook.received",
            provider = provider.id(),
            event_type = event_type(&delivery, &body),
            delivery = key.as_str(),
            bytes = delivery.raw.len(),
            slot = delivery.slot().label(),
        );
        // One that the sender would not repeat is taken all the same: the queue is where it waits.
        if let Some(rate) = settings.rate_limits.get(provider.id())
            && let Some(wait) = inner.rates.take(provider.id(), *rate, Instant::now())
            && provider.redelivers()
        {
            tracing::warn!(action = "webhook.rate_limited", provider = provider.id());
            return Err(Refused::TooFast(wait));
        }
        let events = match provider.normalize(&delivery, &body) {
            Ok(_) if self.is_expired(provider, &delivery, &body) => Err(Skip::Expired),
            Ok(events) => match self.wanted(provider, events) {
                Ok(events) => self.without_echoes(events).await,
                Err(skip) => Err(skip),
            },
            Err(skip) => Err(skip),
        };
        match events {
            Ok(events) => self.append(provider, &key, &events, seen).await,
            Err(Skip::NotAllowed) => Err(Refused::NotAllowed),
            Err(skip) => Ok(dropped(provider, skip)),
        }
    }

    fn clock(&self) -> Clock {
        let settings = &self.0.settings;
        let tolerance_s = i64::try_from(settings.tolerance.as_secs()).unwrap_or(i64::MAX);
        Clock { now_s: settings.now_s.unwrap_or_else(|| chrono::Utc::now().timestamp()), tolerance_s }
    }

    fn check_auth_failures(&self, provider: &'static str, peer: &Peer) -> Result<(), Refused> {
        match self.0.auth_failures.wait(provider, peer.address, Instant::now()) {
            Some(wait) => Err(Refused::TooManyAuthFailures(wait)),
            None => Ok(()),
        }
    }

    /// Whether a delivery whose age no signature tells is older than we remember deliveries: nothing else would know
    /// it for a replay.
    fn is_expired(&self, provider: &dyn Provider, delivery: &Verified<Delivery>, body: &JsonObject) -> bool {
        let settings = &self.0.settings;
        if !settings.rejects_expired {
            return false;
        }
        let window_ms = i64::try_from(settings.dedup_window.as_millis()).unwrap_or(i64::MAX);
        let now_ms = self.clock().now_s.saturating_mul(1000);
        provider.own_time_ms(delivery, body).is_some_and(|at| now_ms.saturating_sub(at) > window_ms)
    }

    /// Leaves out what the operator does not want.
    fn wanted(&self, provider: &dyn Provider, events: Vec<NormalizedEvent>) -> Result<Vec<NormalizedEvent>, Skip> {
        let Some(filter) = self.0.settings.filters.get(provider.id()) else { return Ok(events) };
        let mut events = events;
        events.retain(|event| filter.takes(&event.full_name(provider)));
        if events.is_empty() { Err(Skip::FilteredName) } else { Ok(events) }
    }

    /// Leaves out what reports our own doing. When nobody can tell, it passes: twice is better than never.
    async fn without_echoes(&self, events: Vec<NormalizedEvent>) -> Result<Vec<NormalizedEvent>, Skip> {
        let mut kept = Vec::with_capacity(events.len());
        for event in events {
            let is_echo = match (&event.echo_of, &self.0.beside.echoes) {
                (Some(task), Some(echoes)) => {
                    let asked = tokio::time::timeout(ECHO_TIMEOUT, echoes.is_ours(task)).await;
                    asked.unwrap_or_else(|_| Err("no answer in time".to_owned())).unwrap_or_else(|error| {
                        tracing::warn!(action = "webhook.echo_filter.unavailable", error);
                        false
                    })
                }
                _ => false,
            };
            if !is_echo {
                kept.push(event);
            }
        }
        if kept.is_empty() { Err(Skip::Echo) } else { Ok(kept) }
    }
}

/// What the sender calls it, for the log.
fn event_type(delivery: &Delivery, body: &JsonObject) -> String {
    let own = Fields::parse(body.as_str()).ok().and_then(|fields| fields.string("type"));
    let sent = own.or_else(|| delivery.header("x-github-event").map(str::to_owned));
    sent.map_or_else(|| "unknown".to_owned(), |kind| kind.chars().take(80).collect())
}

/// What the metrics are told of a delivery.
fn told(provider: &'static str, outcome: &'static str, events: &[AnsweredEvent]) -> Webhook {
    let count = |is_queued| match outcome {
        "accepted" => events.iter().filter(|event| event.is_queued == is_queued).count().try_into().unwrap_or(u64::MAX),
        _ => 0,
    };
    Webhook { provider, outcome, queued: count(true), direct: count(false), slot: None, refusal: None }
}

fn dropped(provider: &dyn Provider, skip: Skip) -> Taken {
    tracing::info!(action = "webhook.dropped", provider = provider.id(), reason = %skip);
    Taken::Dropped(skip)
}

async fn index(State(gateway): State<Gateway>) -> Json<Value> {
    Json(json!({
        "service": "webhook-gateway",
        "status": "running",
        "providers": gateway.senders().ids(),
        "endpoint": "POST /webhooks/:provider",
    }))
}

async fn delivery(State(gateway): State<Gateway>, Path(id): Path<String>, request: Request<Body>) -> Response {
    let senders = gateway.senders();
    let Some(provider) = senders.find(&id) else {
        let refused = Refused::Unknown(id);
        let told = told("_unknown", refused.counted(), &[]);
        let mut response = refused.into_response();
        response.extensions_mut().insert(told);
        return response;
    };
    let mut response = gateway.answer(&senders, &*provider, request).await;
    response.extensions_mut().insert(ProviderTag(provider.id()));
    response
}
