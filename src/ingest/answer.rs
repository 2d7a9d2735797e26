//! What a sender of webhooks is told, and what is kept of it.
//!
//! | what happened | answer |
//! |---|---|
//! | stored | 200 `{"ok":true,"events":n,"queued":q,"direct":d,"deliveryId":…}` |
//! | verified, nothing to emit | 200 `{"ok":true,"events":0,"note":"No matching events"}` |
//! | the delivery was stored before | 200 `{"ok":true,"events":0,"duplicate":true}` |
//! | kept on this machine until Redis is back | 202 `{"ok":true,"events":n,"spooled":true}` |
//! | anything else | `{"ok":false,"error":…}` with the status of [`Refused`] |

use std::net::IpAddr;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::providers::{Answers, DeliveryKey, Skip};
use super::request_body;
use super::signature::{Refusal, Slot};

/// A delivery that was answered: everything that a log of deliveries wants to know.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Whose URL it was sent to.
    pub provider: &'static str,
    /// Who sent it, as far as we can know.
    pub client: IpAddr,
    /// When it arrived, ms.
    pub received_ms: i64,
    /// What tells it from others; `None` when it was not looked at that far.
    pub key: Option<DeliveryKey>,
    /// The secret that verified it; `None` when nothing did: then neither headers nor body are anybody's word.
    pub slot: Option<Slot>,
    /// Its headers, signatures included.
    pub headers: HeaderMap,
    /// Its body; empty when it was refused before it was read.
    pub raw: Bytes,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, where there is a why.
    pub reason: Option<String>,
    /// The status of the answer.
    pub status: u16,
    /// Its events.
    pub events: Vec<AnsweredEvent>,
    /// How long the answer took.
    pub took: Duration,
}

/// One event of a delivery that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredEvent {
    /// The event name.
    pub name: String,
    /// Its id; `None` when it is only spooled and has none yet.
    pub id: Option<String>,
    /// Where it is stored.
    pub stream_id: Option<String>,
    /// Whether it counts as queued.
    pub is_queued: bool,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Its events are stored.
    Accepted,
    /// Verified, and nothing to emit.
    Dropped,
    /// Stored before.
    Duplicate,
    /// Not believed, or not readable.
    Rejected,
    /// Believed, and not stored.
    Failed,
    /// On the disk of this machine.
    Spooled,
    /// A handshake.
    Challenge,
}

impl Outcome {
    /// As telemetry and the log name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Dropped => "dropped",
            Self::Duplicate => "duplicate",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Spooled => "spooled",
            Self::Challenge => "challenge",
        }
    }
}

/// A delivery that was taken.
#[derive(Debug)]
pub(super) enum Taken {
    Stored { key: String, ids: Vec<String>, queued: usize, answers: Answers },
    Duplicate,
    Dropped(Skip),
    Spooled { events: usize },
    Challenge(String),
}

impl Taken {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Stored { .. } => Outcome::Accepted,
            Self::Duplicate => Outcome::Duplicate,
            Self::Dropped(_) => Outcome::Dropped,
            Self::Spooled { .. } => Outcome::Spooled,
            Self::Challenge(_) => Outcome::Challenge,
        }
    }

    /// As the metrics name it.
    pub(super) const fn counted(&self) -> &'static str {
        match self {
            Self::Stored { .. } | Self::Spooled { .. } => "accepted",
            Self::Duplicate => "duplicate",
            Self::Dropped(_) => "ignored",
            Self::Challenge(_) => "challenge",
        }
    }

    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Dropped(skip) => Some(skip.to_string()),
            _ => None,
        }
    }
}

impl IntoResponse for Taken {
    fn into_response(self) -> Response {
        match self {
            Self::Stored { key, ids, queued, answers } => {
                let (total, direct) = (ids.len(), ids.len() - queued);
                let mut body = json!({ "ok": true, "events": total, "queued": queued, "direct": direct });
                let more = match answers {
                    Answers::Gateway => [("deliveryId", Value::from(key)), ("", Value::Null)],
                    Answers::Relay => [("ids", Value::from(ids)), ("status", Value::from(200))],
                };
                if let Some(body) = body.as_object_mut() {
                    body.extend(more.into_iter().filter(|(name, _)| !name.is_empty()).map(|(k, v)| (k.to_owned(), v)));
                }
                Json(body).into_response()
            }
            Self::Duplicate => Json(json!({ "ok": true, "events": 0, "duplicate": true })).into_response(),
            Self::Dropped(_) => Json(json!({ "ok": true, "events": 0, "note": "No matching events" })).into_response(),
            Self::Spooled { events } => {
                (StatusCode::ACCEPTED, Json(json!({ "ok": true, "events": events, "spooled": true }))).into_response()
            }
            Self::Challenge(text) => text.into_response(),
        }
    }
}

/// Why a delivery was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    Unknown(String),
    Method,
    NoChallenge(&'static str),
    TooManyAuthFailures(Duration),
    TooLarge,
    TooSlow,
    Incomplete,
    Encoding,
    Unconfigured,
    Disabled,
    Signature(Refusal),
    NotJson,
    TooFast(Duration),
    NotAllowed,
    Append(String),
    /// In the manners of an event intake: what it would have answered.
    Relay {
        status: u16,
        error: String,
    },
}

impl Refused {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Unconfigured | Self::Disabled | Self::Append(_) | Self::Relay { .. } => Outcome::Failed,
            _ => Outcome::Rejected,
        }
    }

    /// As the metrics name it.
    pub(super) const fn counted(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown_provider",
            Self::TooManyAuthFailures(_) | Self::TooFast(_) => "rate_limited",
            Self::TooLarge => "too_large",
            Self::Signature(Refusal::StaleTimestamp | Refusal::FutureTimestamp) => "stale",
            Self::Signature(_) | Self::NotAllowed => "bad_signature",
            // Anybody can bring these about, so they must not count as events that could not be stored.
            Self::Unconfigured => "unconfigured",
            Self::Disabled => "disabled",
            Self::Append(_) | Self::Relay { .. } => "enqueue_failed",
            Self::Method | Self::NoChallenge(_) | Self::TooSlow | Self::Incomplete | Self::Encoding | Self::NotJson => {
                "bad_payload"
            }
        }
    }

    /// Why it is not believed, where that is so.
    pub(super) const fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Signature(refusal) => Some(*refusal),
            _ => None,
        }
    }

    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unknown(_) => "unknown_provider".to_owned(),
            Self::Method => "method".to_owned(),
            Self::NoChallenge(_) => "no_challenge".to_owned(),
            Self::TooManyAuthFailures(_) => "too_many_auth_failures".to_owned(),
            Self::TooLarge => "too_large".to_owned(),
            Self::TooSlow => "too_slow".to_owned(),
            Self::Incomplete => "incomplete".to_owned(),
            Self::Encoding => "content_encoding".to_owned(),
            Self::Unconfigured => "provider_unconfigured".to_owned(),
            Self::Disabled => "provider_disabled".to_owned(),
            Self::Signature(refusal) => refusal.to_string(),
            Self::NotJson => "invalid_json".to_owned(),
            Self::TooFast(_) => "rate_limited".to_owned(),
            Self::NotAllowed => Skip::NotAllowed.to_string(),
            Self::Append(error) => format!("append_failed: {error}"),
            Self::Relay { error, .. } => format!("relay: {error}"),
        }
    }
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

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let error = |text: &str| json!({ "ok": false, "error": text });
        let coded = |text: &str, code: &str| json!({ "ok": false, "error": text, "code": code });
        let seconds = |wait: &Duration| Some(u64::try_from(wait.as_millis().div_ceil(1000).max(1)).unwrap_or(1));
        let (status, body, retry_after) = match &self {
            Self::Unknown(id) => (StatusCode::NOT_FOUND, error(&format!("Unknown provider: {id}")), None),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, error("Method not allowed"), None),
            Self::NoChallenge(id) => {
                let text = format!("Provider {id} does not accept GET challenges");
                (StatusCode::METHOD_NOT_ALLOWED, error(&text), None)
            }
            Self::TooManyAuthFailures(wait) => {
                (StatusCode::TOO_MANY_REQUESTS, error("Too many auth failures"), seconds(wait))
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, error("Request body too large"), None),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, error("Request timeout"), None),
            Self::Incomplete => (StatusCode::BAD_REQUEST, error("Request body incomplete"), None),
            Self::Encoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, error("Unsupported content encoding"), None),
            Self::Unconfigured => {
                let body = coded("Provider secret unavailable", "provider_unconfigured");
                (StatusCode::SERVICE_UNAVAILABLE, body, Some(60))
            }
            Self::Disabled => {
                (StatusCode::SERVICE_UNAVAILABLE, coded("Provider disabled", "provider_disabled"), Some(60))
            }
            Self::Signature(_) => (StatusCode::UNAUTHORIZED, error("Invalid signature"), None),
            Self::NotJson => (StatusCode::BAD_REQUEST, error("Invalid JSON"), None),
            Self::TooFast(wait) => {
                (StatusCode::TOO_MANY_REQUESTS, coded("Rate limit exceeded", "rate_limited"), seconds(wait))
            }
            Self::NotAllowed => (StatusCode::FORBIDDEN, error("Event not allowed"), None),
            Self::Append(_) => {
                let body = coded("Failed to dispatch events", "append_failed");
                (StatusCode::SERVICE_UNAVAILABLE, body, Some(30))
            }
            Self::Relay { status, error: text } => {
                (StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY), error(text), None)
            }
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
