//! The webhook gateway: verifies, normalises and appends; answers a provider only after the append.
//!
//! `provider known → method → auth-failure limit → size → secret present → verify → JSON → handshake → rate limit →
//! normalise → echo filter → append → answer`
//!
//! A delivery is claimed and appended by one script ([`crate::streams::append::NewEvent::once`] and the event id), so
//! there is no moment at which it is claimed but not stored, and of two copies at once one is told `duplicate` only
//! after the other is stored. While Redis is away the answer is 503, and the provider sends again; what a provider would
//! not send again is put into the [`super::spool`], and so is whatever comes while anything is in there.
//!
//! Every delivery that was answered goes through [`Gateway::answered`], whatever became of it. The answers themselves
//! are in [`super::answer`].

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
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
use sha2::{Digest, Sha256};

use super::admission::{self, Accepted, Admission, Emit};
use super::answer::{Answered, AnsweredEvent, Refused, Taken};
use super::caused_by::CausedBy;
use super::deliveries::DeliveryLog;
use super::fields::{Fields, json_string, object_text};
use super::limiter::{AuthFailures, Rate, Rates};
use super::peer::Peer;
use super::providers::{Answers, DeliveryKey, NormalizedEvent, Provider, Senders, Skip};
use super::request_body;
use super::signature::{Clock, Delivery, Refusal, Slot};
use super::spool::{self, Spool, Spooled, SpooledEvent, Turn};
use crate::config::{Cidr, SpoolFor};
use crate::diagnose::{Diagnose, chain};
use crate::streams::append::{self, Once};
use crate::streams::envelope::MAX_EVENT_ID_BYTES;
use crate::streams::json::JsonObject;
use crate::telemetry::metrics::Webhook;

/// The one event name that the `github` pilot counts as queued.
const QUEUED: (&str, &str) = ("github", "workflow_run.completed");
/// Handshakes of one provider that are answered.
const HANDSHAKES: Rate = Rate { count: 10, per: Duration::from_secs(60) };
/// The longest delivery key that is remembered as it is; longer ones by their hash.
const MAX_KEY_BYTES: usize = 160;
/// More than the envelope of an event adds to its payload.
const ENVELOPE_BYTES: usize = 4096;
/// How long a delivery waits for the last ones on the disk before it goes behind them.
const SOON: Duration = Duration::from_secs(1);
/// How long the echo filter may be asked.
const ECHO_TIMEOUT: Duration = Duration::from_millis(500);

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
    /// How far a signed time may be from ours, both ways, inclusive.
    pub tolerance: Duration,
    /// Failed verifications per provider and address before its requests are refused.
    pub auth_failure_limit: u32,
    /// The window of that count.
    pub auth_failure_window: Duration,
    /// Most valid deliveries, by provider id.
    pub rate_limits: HashMap<String, Rate>,
    /// Whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Emitters that use the queue, lower case.
    pub pilots: BTreeSet<String>,
    /// Whose deliveries may go into the spool.
    pub spool_for: SpoolFor,
    /// The largest event that an append takes, envelope included.
    pub max_event_bytes: usize,
    /// A clock that stands still, seconds since the epoch: for tests and recorded requests. `None` is the system's.
    pub now_s: Option<i64>,
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
            tolerance: Duration::from_secs(300),
            auth_failure_limit: 20,
            auth_failure_window: Duration::from_secs(60),
            rate_limits: HashMap::new(),
            trusted_proxies: Cidr::loopback().to_vec(),
            pilots: BTreeSet::new(),
            spool_for: SpoolFor::NoRetryProviders,
            max_event_bytes: 512 * 1024,
            now_s: None,
        }
    }
}

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
        let (outcome, counted, reason, mut response) = match self.take(senders, provider, peer, body, &mut seen).await {
            Ok(taken) => (taken.outcome(), taken.counted(), taken.reason(), taken.into_response()),
            Err(refused) => (refused.outcome(), refused.counted(), Some(refused.reason()), refused.into_response()),
        };
        response.extensions_mut().insert(told(provider.id(), counted, &seen.events));
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
            Ok(events) => self.without_echoes(events).await,
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

    async fn append(
        &self,
        provider: &dyn Provider,
        key: &DeliveryKey,
        events: &[NormalizedEvent],
        seen: &mut Seen,
    ) -> Result<Taken, Refused> {
        let settings = &self.0.settings;
        let source = format!("webhook/{}", provider.id());
        let window = match key {
            DeliveryKey::Id(_) => settings.dedup_window,
            DeliveryKey::Hash(_) => settings.hash_dedup_window,
        };
        let ready: Vec<Ready> =
            events.iter().enumerate().map(|(i, event)| Ready::of(provider, key, i, event)).collect();
        let emits: Vec<Emit<'_>> =
            ready.iter().map(|event| event.emit(&source, window, seen.trace.as_deref())).collect();
        let is_queued = |event: &NormalizedEvent| {
            (provider.id(), event.name.as_ref()) == QUEUED && settings.pilots.contains(provider.id())
        };
        seen.events = std::iter::zip(&ready, events)
            .map(|(ready, event)| AnsweredEvent {
                name: ready.name.clone(),
                id: ready.id.clone(),
                stream_id: None,
                is_queued: is_queued(event),
            })
            .collect();
        let began = Instant::now();
        let spool = self.spool_of(provider, &ready);
        let failed = match self.admit(&emits, spool).await {
            Ok(accepted) => return Ok(self.accepted(provider, key, &accepted, seen)),
            Err(NotAdmitted::Refused(error)) => return self.refused(provider, &error),
            Err(NotAdmitted::Later(failed)) => failed,
        };
        let Some(spool) = spool else { return Err(append_failed(provider, &failed)) };
        let delivery = Spooled {
            source: source.clone(),
            received_ms: seen.received_ms,
            events: ready.iter().map(|event| event.spooled(window)).collect(),
            trace: seen.trace.clone(),
        };
        let left = settings.append_timeout.saturating_sub(began.elapsed()).max(Duration::from_millis(500));
        let put = tokio::time::timeout(left, spool.put(&delivery)).await;
        match put.map_err(|_| "not on disk in time".to_owned()).and_then(|put| put.map_err(|error| error.to_string())) {
            Ok(()) => {
                for (told, spooled) in std::iter::zip(&mut seen.events, &delivery.events) {
                    told.id = Some(spooled.id.clone());
                }
                tracing::warn!(
                    action = "webhook.spooled",
                    provider = provider.id(),
                    delivery = key.as_str(),
                    because = failed
                );
                Ok(Taken::Spooled { events: events.len() })
            }
            Err(error) => Err(append_failed(provider, &format!("{failed}; {error}"))),
        }
    }

    /// Appends, unless something waits on the disk already: then these have to wait behind it.
    async fn admit(&self, emits: &[Emit<'_>], spool: Option<&Spool>) -> Result<Vec<Accepted>, NotAdmitted> {
        let behind = || NotAdmitted::Later("earlier deliveries wait on the disk".to_owned());
        if let Some(spool) = spool {
            let is_clear = match spool.turn() {
                Turn::Direct => true,
                Turn::Soon => tokio::time::timeout(SOON, spool.until_empty()).await.is_ok(),
                Turn::Behind => false,
            };
            if !is_clear {
                return Err(self.0.admission.check(emits).map_or_else(NotAdmitted::Refused, |()| behind()));
            }
        }
        let until_held = async {
            match spool {
                Some(spool) => spool.until_held().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            admitted = tokio::time::timeout(self.0.settings.append_timeout, self.0.admission.admit_batch(emits)) => {
                match admitted {
                    Ok(Ok(accepted)) => Ok(accepted),
                    Ok(Err(error)) if spool::is_outage(&error) => Err(NotAdmitted::Later(chain(&error))),
                    Ok(Err(error)) => Err(NotAdmitted::Refused(error)),
                    Err(_) => Err(NotAdmitted::Later("not confirmed in time".to_owned())),
                }
            }
            // Another one gave up on Redis. Should this append still succeed, the spool's is known by its ids.
            () = until_held => Err(behind()),
        }
    }

    /// The spool, where it takes deliveries of this provider and these events.
    fn spool_of(&self, provider: &dyn Provider, events: &[Ready]) -> Option<&Spool> {
        let settings = &self.0.settings;
        let is_for = match settings.spool_for {
            SpoolFor::All => true,
            SpoolFor::NoRetryProviders => !provider.redelivers(),
            SpoolFor::Off => false,
        };
        let fits = events.iter().all(|event| event.data.as_str().len() + ENVELOPE_BYTES <= settings.max_event_bytes);
        self.0.beside.spool.as_ref().filter(|_| is_for && fits)
    }

    fn accepted(&self, provider: &dyn Provider, key: &DeliveryKey, accepted: &[Accepted], seen: &mut Seen) -> Taken {
        for (told, stored) in std::iter::zip(&mut seen.events, accepted) {
            told.id = Some(stored.event_id.clone());
            told.stream_id = stored.stream_id.map(|id| id.to_string());
        }
        if accepted.iter().all(|event| event.duplicate.is_some()) {
            tracing::info!(action = "webhook.duplicate", provider = provider.id(), delivery = key.as_str());
            return Taken::Duplicate;
        }
        stored(provider, key, accepted, &seen.events)
    }

    /// Nothing that sending it again would mend.
    fn refused(&self, provider: &dyn Provider, error: &admission::Error) -> Result<Taken, Refused> {
        match error {
            admission::Error::Append(append::Error::TooLarge { .. }) => {
                tracing::error!(action = "webhook.forward.failed", provider = provider.id(), error = %error);
                Err(Refused::TooLarge)
            }
            admission::Error::Append(error) => Err(append_failed(provider, &chain(error))),
            // The event itself breaks a rule: sending it again would not help. An intake says so; for the others it is
            // a drop, and it is logged.
            error => {
                tracing::error!(provider = provider.id(), error = %error, "a normalised event was refused");
                match provider.answers() {
                    Answers::Relay => Err(Refused::Relay { status: error.http_status(), error: error.to_string() }),
                    Answers::Gateway => Ok(dropped(provider, Skip::InvalidEvent)),
                }
            }
        }
    }
}

/// Why an append gave no answer that is a success.
enum NotAdmitted {
    /// It never will.
    Refused(admission::Error),
    /// It may, later.
    Later(String),
}

/// An event as it is offered to admission.
struct Ready {
    name: String,
    id: Option<String>,
    data: JsonObject,
    meta: String,
    once: String,
}

impl Ready {
    fn of(provider: &dyn Provider, key: &DeliveryKey, index: usize, event: &NormalizedEvent) -> Self {
        let name = match provider.event_prefix() {
            "" => event.name.to_string(),
            prefix => format!("{prefix}/{}", event.name),
        };
        Self {
            name,
            id: event.id.as_ref().map(|id| fitted(provider.id(), id)),
            data: event.data.clone(),
            meta: meta(provider.id(), &event.name),
            once: once_key(provider.id(), key, index),
        }
    }

    /// With an id, so that it can be appended twice and be there once.
    fn spooled(&self, window: Duration) -> SpooledEvent {
        SpooledEvent {
            name: self.name.clone(),
            id: self.id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
            data: self.data.clone(),
            meta: self.meta.clone(),
            once: self.once.clone(),
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn emit<'a>(&'a self, source: &'a str, window: Duration, trace: Option<&'a str>) -> Emit<'a> {
        Emit {
            name: &self.name,
            data: self.data.as_str(),
            id: self.id.as_deref(),
            source: Some(source),
            meta: Some(&self.meta),
            trace,
            once: Some(Once { key: self.once.clone(), window }),
            ..Emit::default()
        }
    }
}

/// What the sender calls it, for the log.
fn event_type(delivery: &Delivery, body: &JsonObject) -> String {
    let own = Fields::parse(body.as_str()).ok().and_then(|fields| fields.string("type"));
    let sent = own.or_else(|| delivery.header("x-github-event").map(str::to_owned));
    sent.map_or_else(|| "unknown".to_owned(), |kind| kind.chars().take(80).collect())
}

fn hash32(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..16])
}

/// An id that an event may have: a sender's own parts may be long, or hold what ids may not.
fn fitted(provider: &str, id: &str) -> String {
    let fits = id.len() <= MAX_EVENT_ID_BYTES && id.trim() == id && !id.chars().any(char::is_control);
    if fits { id.to_owned() } else { format!("{provider}-sha256-{}", hash32(id)) }
}

/// What the metrics are told of a delivery.
fn told(provider: &'static str, outcome: &'static str, events: &[AnsweredEvent]) -> Webhook {
    let count = |is_queued| match outcome {
        "accepted" => events.iter().filter(|event| event.is_queued == is_queued).count().try_into().unwrap_or(u64::MAX),
        _ => 0,
    };
    Webhook { provider, outcome, queued: count(true), direct: count(false) }
}

/// `<provider>:<delivery>`, with the event's number from the second one on.
fn once_key(provider: &str, key: &DeliveryKey, index: usize) -> String {
    let key = match key.as_str() {
        key if key.len() <= MAX_KEY_BYTES => key.to_owned(),
        key => format!("sha256-{}", hash32(key)),
    };
    match index {
        0 => format!("{provider}:{key}"),
        _ => format!("{provider}:{key}#{index}"),
    }
}

fn meta(provider: &str, event: &str) -> String {
    let (provider, event) = (json_string(provider), json_string(event));
    object_text([("provider", provider.as_str()), ("normalizedEvent", event.as_str())])
}

fn stored(provider: &dyn Provider, key: &DeliveryKey, accepted: &[Accepted], events: &[AnsweredEvent]) -> Taken {
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    let queued = events.iter().filter(|event| event.is_queued).count();
    let (total, direct) = (accepted.len(), accepted.len() - queued);
    tracing::info!(action = "webhook.forwarded", provider = provider.id(), total, queued, direct, ?names);
    let ids = accepted.iter().map(|event| event.event_id.clone()).collect();
    Taken::Stored { key: key.as_str().to_owned(), ids, queued, answers: provider.answers() }
}

fn dropped(provider: &dyn Provider, skip: Skip) -> Taken {
    tracing::info!(action = "webhook.dropped", provider = provider.id(), reason = %skip);
    Taken::Dropped(skip)
}

fn append_failed(provider: &dyn Provider, error: &str) -> Refused {
    tracing::error!(action = "webhook.forward.failed", provider = provider.id(), error);
    match provider.answers() {
        Answers::Gateway => Refused::Append(error.to_owned()),
        Answers::Relay => Refused::Relay { status: 502, error: "Failed to proxy event".to_owned() },
    }
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
