//! The relay of a trusted machine: an event as it is. Cases: `tests/vectors/webhooks/joelclaw.json`.
//!
//! | signature | `x-joelclaw-signature`: hex HMAC-SHA256 of the body, or of `<x-joelclaw-timestamp>.<body>` with that header |
//! |---|---|
//! | event id | made of `x-joelclaw-delivery` or the body's `id`; without either one, the append's own |
//! | replay | five minutes where a time is signed; then the dedup window, by the delivery's id or a fingerprint |
//! | retries | the caller decides by the status |
//! | answer | that of the event intake, with the gateway's fields; 502 when it is away |

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Answers, DeliveryKey, NormalizedEvent, Provider, Sample, Skip, payload};
use crate::ingest::fields::{Fields, compact, json_string, object_text};
use crate::ingest::signature::{Delivery, Encoding, Hash, Scheme, Verified};
use crate::streams::json::JsonObject;
use crate::streams::name_pattern;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Joelclaw {
    /// Refuse signatures without a time.
    pub require_timestamp: bool,
    /// What it may emit, with `*` for any text. Empty: anything.
    pub allowed_events: Vec<String>,
}

const SECRET: &str = "JOELCLAW_WEBHOOK_SECRET";
const SIGNATURE: &str = "x-joelclaw-signature";
const TIMESTAMP: &str = "x-joelclaw-timestamp";
/// Events with this prefix are the engine's own.
const RESERVED: &str = "inngest/";

impl Provider for Joelclaw {
    fn id(&self) -> &'static str {
        "joelclaw"
    }

    fn event_prefix(&self) -> &str {
        ""
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![SECRET.into()]
    }

    fn signature(&self, headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        let scheme = match self.require_timestamp || headers.contains_key(TIMESTAMP) {
            true => Scheme::timed(SIGNATURE, Encoding::Hex, TIMESTAMP, "."),
            false => Scheme::of_body(SIGNATURE, "", Hash::Sha256, Encoding::Hex),
        };
        (scheme, SECRET.into())
    }

    fn redelivers(&self) -> bool {
        true
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> DeliveryKey {
        let hook = Fields::parse(body.as_str()).unwrap_or_default();
        match sent_id(delivery, &hook) {
            Some(id) => DeliveryKey::Id(id),
            None => DeliveryKey::Hash(fingerprint(delivery, &hook)),
        }
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let hook = Fields::parse(body.as_str()).unwrap_or_default();
        let name = hook.string("name").filter(|name| !name.trim().is_empty()).ok_or(Skip::InvalidEvent)?;
        let data = payload(Some(hook.object_text("data").ok_or(Skip::InvalidEvent)?));
        let is_listed = self.allowed_events.iter().any(|pattern| name_pattern::fits(pattern, &name));
        if name.starts_with(RESERVED) || !(self.allowed_events.is_empty() || is_listed) {
            return Err(Skip::NotAllowed);
        }
        let id = sent_id(delivery, &hook).map(|id| format!("joelclaw-{name}-{id}"));
        Ok(vec![NormalizedEvent::new(name, id, data)])
    }

    fn answers(&self) -> Answers {
        Answers::Relay
    }

    fn sample(&self, nonce: &str) -> Sample {
        let body = json!({ "name": "webhook/sample", "data": { "id": format!("sample-{nonce}") } });
        // The header only says that a time is signed; the time itself is the signature's.
        let headers = vec![("x-joelclaw-delivery".into(), nonce.to_owned()), (TIMESTAMP.into(), "0".to_owned())];
        Sample { body: body.to_string(), headers }
    }
}

/// The caller's own id of the delivery.
fn sent_id(delivery: &Delivery, hook: &Fields<'_>) -> Option<String> {
    let sent = delivery.header("x-joelclaw-delivery").map(|id| id.trim().to_owned());
    sent.filter(|id| !id.is_empty()).or_else(|| hook.string("id").filter(|id| !id.trim().is_empty()))
}

/// What stands for an id where the caller gives none: the event itself, and the signed time.
fn fingerprint(delivery: &Delivery, hook: &Fields<'_>) -> String {
    let name = hook.text("name");
    let data = hook.get("data").and_then(compact).unwrap_or_default();
    let event = object_text([("name", json_string(&name).as_str()), ("data", data.as_str())]);
    let hash = hex::encode(Sha256::digest(event.as_bytes()));
    let time = delivery.header(TIMESTAMP).map(|time| format!("-{time}")).unwrap_or_default();
    format!("joelclaw-{name}-{}{time}", &hash[..16])
}
