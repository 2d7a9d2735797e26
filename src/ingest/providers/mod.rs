//! Webhook providers: one file each, one line in [`builtin`].
//!
//! To add one: implement [`Provider`], add the line, add its secret's row to
//! [`crate::config::settings::WEBHOOK_SECRETS`], add its vectors under `tests/vectors/webhooks/`. A sender that signs
//! with Standard Webhooks, or with a MAC in a header, needs none of this: see [`source`].

pub mod front;
pub mod github;
pub mod joelclaw;
pub mod mux;
pub mod source;
pub mod standard;
pub mod telnyx;
pub mod todoist;
pub mod vercel;
pub mod x;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::signature::{Delivery, Scheme, Secrets, Verified};
use crate::streams::json::JsonObject;

/// The secrets of all providers, by the variable that holds the current one.
pub type SecretTable = HashMap<String, Secrets>;

/// Switches of single providers.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// GitHub events that are passed on as they are, beside those that are normalised.
    pub github_passthrough: BTreeSet<String>,
    /// The relay must sign a time.
    pub joelclaw_require_timestamp: bool,
    /// What the relay may emit, with `*` for any text. Empty: anything.
    pub joelclaw_allowed_events: Vec<String>,
}

/// Every provider that is built in, in the order in which `GET /webhooks` lists them.
#[must_use]
pub fn builtin(options: &Options) -> Vec<Arc<dyn Provider>> {
    vec![
        Arc::new(todoist::Todoist),
        Arc::new(front::Front),
        Arc::new(vercel::Vercel),
        Arc::new(github::Github { passthrough: options.github_passthrough.clone() }),
        Arc::new(mux::Mux),
        Arc::new(telnyx::Telnyx),
        Arc::new(joelclaw::Joelclaw {
            require_timestamp: options.joelclaw_require_timestamp,
            allowed_events: options.joelclaw_allowed_events.clone(),
        }),
        Arc::new(x::X),
        Arc::new(standard::Standard),
    ]
}

/// Who may send, and the secrets that prove it. Replaced as a whole.
#[derive(Default, Clone)]
pub struct Senders {
    providers: Vec<Arc<dyn Provider>>,
    /// By variable.
    pub secrets: SecretTable,
}

impl std::fmt::Debug for Senders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Senders").field("providers", &self.ids()).field("secrets", &self.secrets).finish()
    }
}

impl Senders {
    /// These providers with these secrets.
    #[must_use]
    pub fn new(providers: Vec<Arc<dyn Provider>>, secrets: SecretTable) -> Self {
        Self { providers, secrets }
    }

    /// The provider with this id; the match is case-sensitive.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Arc<dyn Provider>> {
        self.providers.iter().find(|provider| provider.id() == id).cloned()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Arc<dyn Provider>] {
        &self.providers
    }

    /// Their ids.
    #[must_use]
    pub fn ids(&self) -> Vec<&'static str> {
        self.providers.iter().map(|provider| provider.id()).collect()
    }

    /// Their ids, and whether there is any secret for each.
    pub fn loaded(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        self.providers.iter().map(|provider| {
            let (_, secrets) = self.signature(&**provider, &HeaderMap::new());
            (provider.id(), secrets.is_some())
        })
    }

    /// Their ids, and `configured`, `missing`, or `stale` where `is_stale` says so of the variable of the secret.
    pub fn states(&self, is_stale: impl Fn(&str) -> bool) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.providers.iter().map(move |provider| {
            let (_, variable) = provider.signature(&HeaderMap::new());
            let (_, secrets) = self.signature(&**provider, &HeaderMap::new());
            let state = match secrets {
                None => "missing",
                Some(_) if is_stale(&variable) => "stale",
                Some(_) => "configured",
            };
            (provider.id(), state)
        })
    }

    /// The secrets that a request to `provider` with these headers is checked with, and how. `None` when there are
    /// none that fit the scheme.
    #[must_use]
    pub fn signature(&self, provider: &dyn Provider, headers: &HeaderMap) -> (Scheme, Option<&Secrets>) {
        let (scheme, variable) = provider.signature(headers);
        let secrets = self.secrets.get(variable.as_ref()).filter(|secrets| scheme.is_usable(secrets));
        (scheme, secrets)
    }

    /// What `provider` sends to show that it works, signed with our own secret for it. `nonce` tells one sample from
    /// the next.
    pub fn sample(&self, provider: &dyn Provider, now_s: i64, nonce: &str) -> Result<SignedSample, SampleError> {
        self.sign(provider, provider.sample(nonce), now_s, nonce)
    }

    /// Signs a delivery as `provider` would.
    pub fn sign(
        &self,
        provider: &dyn Provider,
        sample: Sample,
        now_s: i64,
        nonce: &str,
    ) -> Result<SignedSample, SampleError> {
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &str| -> Option<()> {
            headers.insert(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
            Some(())
        };
        for (name, value) in &sample.headers {
            add(name, value).ok_or(SampleError::Header)?;
        }
        add("content-type", "application/json").ok_or(SampleError::Header)?;
        let (scheme, secrets) = self.signature(provider, &headers);
        let variable = || provider.signature(&headers).1.into_owned();
        let secrets = secrets.ok_or_else(|| SampleError::Unconfigured { variable: variable() })?;
        let signed = scheme.sign(sample.body.as_bytes(), secrets, now_s, nonce);
        for (name, value) in signed.ok_or_else(|| SampleError::VerifiesOnly { variable: variable() })? {
            let (name, value) = (HeaderName::try_from(name), HeaderValue::try_from(value));
            let (Ok(name), Ok(value)) = (name, value) else { return Err(SampleError::Header) };
            headers.insert(name, value);
        }
        Ok(SignedSample { headers, body: sample.body })
    }
}

/// A delivery that a provider could send, without its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The body.
    pub body: String,
    /// Headers beside those of the signature.
    pub headers: Vec<(Cow<'static, str>, String)>,
}

/// A delivery that is ready to be sent to `POST /webhooks/<provider>`.
#[derive(Debug, Clone)]
pub struct SignedSample {
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Nothing to sign with.
    #[error("{variable} is not set, or is no secret of this kind")]
    Unconfigured {
        /// What is missing.
        variable: String,
    },
    /// Only the sender can sign.
    #[error("{variable} is a public key: it can verify a delivery, but not sign one")]
    VerifiesOnly {
        /// The key's variable.
        variable: String,
    },
    /// A header of the sample can't be sent.
    #[error("a header of the delivery can't be sent")]
    Header,
}

/// A service that sends webhooks. Everything is pure: no I/O, no clock.
pub trait Provider: Send + Sync {
    /// Id in the URL: `^[a-z0-9][a-z0-9-]{0,31}$`.
    fn id(&self) -> &'static str;

    /// Its events are named `<prefix>/<name>`; without a prefix, by the name alone.
    fn event_prefix(&self) -> &str {
        self.id()
    }

    /// The variables of its secrets, the usual one first.
    fn secrets(&self) -> Vec<Cow<'static, str>>;

    /// How a request with these headers is signed, and the variable of the secret.
    fn signature(&self, headers: &HeaderMap) -> (Scheme, Cow<'static, str>);

    /// The header that says what happened, where it is not the body that does.
    fn event_header(&self) -> Option<Cow<'static, str>> {
        None
    }

    /// Whether it sends a delivery again when we fail to take it.
    fn redelivers(&self) -> bool;

    /// Answers the handshake of a `GET`, where it has one.
    fn challenge_get(&self, _query: &str, _secrets: &SecretTable) -> Option<Challenge> {
        None
    }

    /// The plain text that answers a handshake in a verified `POST`.
    fn challenge_post(&self, _delivery: &Verified<Delivery>) -> Option<String> {
        None
    }

    /// The JSON text of the body; `None` when there is none to be found.
    fn json(&self, delivery: &Verified<Delivery>) -> Option<String> {
        std::str::from_utf8(&delivery.raw).ok().map(str::to_owned)
    }

    /// What tells one delivery from another.
    fn delivery_key(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> DeliveryKey;

    /// The events that a delivery stands for. Never fails: what is missing or of a wrong type reads as empty.
    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip>;

    /// When that happened which the delivery tells, ms since the epoch, by its own word. `None` where a signed time
    /// tells a replay, and where it does not say.
    fn own_time_ms(&self, _delivery: &Verified<Delivery>, _body: &JsonObject) -> Option<i64> {
        None
    }

    /// How the answer to a stored delivery and to a failed append looks.
    fn answers(&self) -> Answers {
        Answers::Gateway
    }

    /// A delivery as it sends them; `nonce` makes it one of its own.
    fn sample(&self, nonce: &str) -> Sample;
}

/// Whose manners an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The gateway's own.
    Gateway,
    /// Those of an event intake behind a relay: ids of the events, and 502 when it is away.
    Relay,
}

/// The answer to a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The status.
    pub status: u16,
    /// The JSON body.
    pub body: Value,
}

/// What tells one delivery from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryKey {
    /// The provider's own id, the same when it sends again.
    Id(String),
    /// Only the body tells: remembered for a shorter time, since two deliveries may rightly be equal.
    Hash(String),
}

impl DeliveryKey {
    /// `id` where there is one, else the body.
    fn id_or_body(id: Option<String>, delivery: &Delivery) -> Self {
        match id.filter(|id| !id.trim().is_empty()) {
            Some(id) => Self::Id(id),
            None => Self::Hash(delivery.body_hash()),
        }
    }

    /// The key itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Id(key) | Self::Hash(key) => key,
        }
    }
}

/// One event of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalizedEvent {
    /// Without the provider's prefix.
    pub name: Cow<'static, str>,
    /// Stable: a redelivery gets the same. `None` lets the append make one; then only the delivery's key tells.
    pub id: Option<String>,
    /// The payload.
    pub data: JsonObject,
    /// The task whose completion this reports: skipped when it was us who completed it.
    pub echo_of: Option<String>,
}

impl NormalizedEvent {
    fn new(name: impl Into<Cow<'static, str>>, id: impl Into<Option<String>>, data: JsonObject) -> Self {
        Self { name: name.into(), id: id.into(), data, echo_of: None }
    }

    /// The name by which it is emitted.
    #[must_use]
    pub fn full_name(&self, provider: &dyn Provider) -> String {
        match provider.event_prefix() {
            "" => self.name.to_string(),
            prefix => format!("{prefix}/{}", self.name),
        }
    }
}

/// Why a verified delivery produced nothing. It is answered with 200, so that the sender shows green.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// It does not say what it is.
    #[error("missing_type")]
    MissingType,
    /// A type that we do not take.
    #[error("unmapped_type")]
    UnmappedType,
    /// A type that we take, at a moment that we do not.
    #[error("filtered_action")]
    FilteredAction,
    /// An event that WEBHOOK_FILTER_<PROVIDER> leaves out.
    #[error("filtered_name")]
    FilteredName,
    /// By its own time it is older than deliveries are remembered.
    #[error("payload_expired")]
    Expired,
    /// What came out breaks the rules of events.
    #[error("invalid_event")]
    InvalidEvent,
    /// It reports what we did ourselves.
    #[error("agent_closed_echo")]
    Echo,
    /// The sender may not emit this name; the one reason that is answered with 403.
    #[error("event_not_allowed")]
    NotAllowed,
}

/// First 16 hex digits of the body's hash: stands in wherever an id would need a time that the delivery has not.
fn h16(delivery: &Delivery) -> String {
    delivery.body_hash()[..16].to_owned()
}

/// A time as senders write it: RFC 3339, or a number of seconds, or of milliseconds from 10^11 on.
fn time_ms(text: &str) -> Option<i64> {
    let text = text.trim();
    match text.parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
        Ok(number) if number.is_finite() && number > 0.0 => {
            Some((if number >= 1e11 { number } else { number * 1000.0 }) as i64)
        }
        Ok(_) => None,
        Err(_) => chrono::DateTime::parse_from_rfc3339(text).ok().map(|at| at.timestamp_millis()),
    }
}

/// A JSON value as the payload of an event.
fn object(value: Value) -> JsonObject {
    match value {
        Value::Object(map) => map.into(),
        _ => Map::new().into(),
    }
}

/// The exact text of a nested object as a payload; `{}` when there is none.
fn payload(text: Option<&str>) -> JsonObject {
    text.and_then(|text| JsonObject::parse(text).ok()).unwrap_or_default()
}

/// An id that lives as long as the process: limits and metrics of a source refer to it after the source is gone. Each
/// distinct id is kept once, and only configuration makes them.
pub(crate) fn intern(id: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = known.get(id) {
        return known;
    }
    let id: &'static str = Box::leak(id.into());
    known.insert(id);
    id
}

/// Whether `id` fits the URL.
#[must_use]
pub fn is_id(id: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    id.len() <= 32 && id.bytes().next().is_some_and(fits) && id.bytes().all(|b| fits(b) || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_fit_the_url() {
        let senders = Senders::new(builtin(&Options::default()), SecretTable::new());
        let mut seen = BTreeSet::new();
        for id in senders.ids() {
            assert!(is_id(id) && seen.insert(id), "{id}");
        }
        assert!(senders.find("GitHub").is_none() && senders.find("github").is_some());
        assert!(!is_id("") && !is_id("-a") && !is_id("a_b") && !is_id(&"a".repeat(33)));
    }

    #[test]
    fn every_secret_of_a_provider_has_its_row() {
        for provider in builtin(&Options::default()) {
            for variable in provider.secrets() {
                let rows = crate::config::settings::WEBHOOK_SECRETS;
                assert!(rows.iter().any(|row| row.variable == variable), "{variable}");
            }
        }
    }

    #[test]
    fn times_are_read_as_senders_write_them() {
        let cases = [
            ("2026-09-21T12:05:00Z", Some(1_789_992_300_000)),
            ("1789992300", Some(1_789_992_300_000)),
            ("1789992300000", Some(1_789_992_300_000)),
            ("1789992300.25", Some(1_789_992_300_250)),
        ];
        for (text, expected) in cases.into_iter().chain(["", "0", "-1", "NaN", "inf", "yesterday"].map(|t| (t, None))) {
            assert_eq!(time_ms(text), expected, "{text}");
        }
    }

    #[test]
    fn an_interned_id_is_one_text() {
        assert!(std::ptr::eq(intern("some-source"), intern(&String::from("some-source"))));
    }
}
