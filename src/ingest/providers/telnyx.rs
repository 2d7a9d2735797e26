//! Telnyx: calls and messages. Cases: `tests/vectors/webhooks/telnyx.json`.
//!
//! | signature | `telnyx-signature-ed25519`: base64 Ed25519 of `<telnyx-timestamp>\|<body>`; our secret is its public key |
//! |---|---|
//! | event id | `telnyx-<type>-<data.id>` |
//! | replay | the signed time, five minutes; then the dedup window, by `data.id` |
//! | retries | with backoff, and to a failover URL |

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::json;

use super::{DeliveryKey, NormalizedEvent, Provider, Sample, Skip, payload};
use crate::ingest::fields::Fields;
use crate::ingest::signature::{Delivery, Scheme, Verified};
use crate::streams::json::JsonObject;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Telnyx;

const KEY: &str = "TELNYX_PUBLIC_KEY";

impl Provider for Telnyx {
    fn id(&self) -> &'static str {
        "telnyx"
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![KEY.into()]
    }

    fn signature(&self, _headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        let scheme = Scheme::Ed25519 { header: "telnyx-signature-ed25519".into(), time: "telnyx-timestamp".into() };
        (scheme, KEY.into())
    }

    fn redelivers(&self) -> bool {
        true
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> DeliveryKey {
        let id = Fields::parse(body.as_str()).unwrap_or_default().object("data").text("id");
        DeliveryKey::id_or_body(Some(id), delivery)
    }

    fn normalize(&self, _delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let hook = Fields::parse(body.as_str()).unwrap_or_default().object("data");
        let name = match hook.text("event_type").as_str() {
            "" => return Err(Skip::MissingType),
            "call.initiated" => "call.initiated",
            "call.answered" => "call.answered",
            "call.hangup" => "call.hangup",
            "message.received" => "message.received",
            _ => return Err(Skip::UnmappedType),
        };
        let own = hook.object("payload");
        let id = hook.first_text(&["id"]).or_else(|| own.first_text(&["call_control_id", "call_session_id"]));
        let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| "unknown".to_owned());
        let data = payload(hook.object_text("payload"));
        Ok(vec![NormalizedEvent::new(name, format!("telnyx-{name}-{id}"), data)])
    }

    fn sample(&self, nonce: &str) -> Sample {
        let body = json!({
            "data": {
                "id": nonce,
                "event_type": "message.received",
                "payload": { "id": format!("sample-{nonce}"), "text": "Sample" },
            },
        });
        Sample { body: body.to_string(), headers: Vec::new() }
    }
}
