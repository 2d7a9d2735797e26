//! Standard Webhooks: any sender that follows that specification. Cases: `tests/vectors/webhooks/standard.json`.
//!
//! | signature | `webhook-signature` of `<webhook-id>.<webhook-timestamp>.<body>`; `v1` HMAC-SHA256, `v1a` Ed25519; `svix-…` too |
//! |---|---|
//! | event id | `standard-<webhook-id>` |
//! | replay | the signed time, five minutes; then the dedup window, by the signed `webhook-id` |
//! | retries | for days |

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::json;

use super::{DeliveryKey, NormalizedEvent, Provider, Sample, Skip, payload};
use crate::ingest::fields::Fields;
use crate::ingest::signature::{Delivery, Scheme, Verified, standard_family};
use crate::streams::json::JsonObject;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Standard;

const SECRET: &str = "STANDARD_WEBHOOK_SECRET";

impl Provider for Standard {
    fn id(&self) -> &'static str {
        "standard"
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![SECRET.into()]
    }

    fn signature(&self, _headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        (Scheme::Standard, SECRET.into())
    }

    fn redelivers(&self) -> bool {
        true
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, _body: &JsonObject) -> DeliveryKey {
        DeliveryKey::id_or_body(Some(sent_id(delivery)), delivery)
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        Ok(vec![event(self.id(), delivery, body)])
    }

    fn sample(&self, nonce: &str) -> Sample {
        sample(nonce)
    }
}

/// The signed `webhook-id`.
pub(super) fn sent_id(delivery: &Delivery) -> String {
    delivery.header(&format!("{}-id", standard_family(&delivery.headers))).unwrap_or_default().to_owned()
}

/// The one event of a delivery to the source `id`.
pub(super) fn event(id: &str, delivery: &Delivery, body: &JsonObject) -> NormalizedEvent {
    let hook = Fields::parse(body.as_str()).unwrap_or_default();
    let kind = Some(hook.text("type")).filter(|kind| !kind.is_empty()).unwrap_or_else(|| "message".to_owned());
    let data = match hook.object_text("data") {
        Some(text) => payload(Some(text)),
        None => body.clone(),
    };
    NormalizedEvent::new(kind, format!("{id}-{}", sent_id(delivery)), data)
}

pub(super) fn sample(nonce: &str) -> Sample {
    let body = json!({
        "type": "sample.sent",
        "timestamp": "2026-09-21T14:13:20Z",
        "data": { "id": format!("sample-{nonce}") },
    });
    Sample { body: body.to_string(), headers: Vec::new() }
}
