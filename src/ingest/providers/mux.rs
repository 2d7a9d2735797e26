//! Mux: video assets and uploads. Cases: `tests/vectors/webhooks/mux.json`.
//!
//! | signature | `mux-signature: t=<s>,v1=<hex>[,v1=…]`: HMAC-SHA256 of `<t>.<body>`; any `v1` may match |
//! |---|---|
//! | event id | `mux-<name>-<data.id>-<time of the event>` |
//! | replay | the signed time, five minutes; then the dedup window, by the body's `id` |
//! | retries | for about a day; an answer is waited for about 5 s |

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::json;

use super::{DeliveryKey, NormalizedEvent, Provider, Sample, Skip, h16};
use crate::ingest::fields::{Fields, json_string, object_text};
use crate::ingest::signature::{Delivery, Scheme, Verified};
use crate::streams::json::JsonObject;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Mux;

const SECRET: &str = "MUX_WEBHOOK_SECRET";

impl Provider for Mux {
    fn id(&self) -> &'static str {
        "mux"
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![SECRET.into()]
    }

    fn signature(&self, _headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        (Scheme::TimedList { header: "mux-signature".into() }, SECRET.into())
    }

    fn redelivers(&self) -> bool {
        true
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> DeliveryKey {
        let id = Fields::parse(body.as_str()).unwrap_or_default().text("id");
        DeliveryKey::id_or_body(Some(id), delivery)
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let hook = Fields::parse(body.as_str()).unwrap_or_default();
        let kind = hook.text("type");
        let name = match kind.strip_prefix("video.") {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ if kind.is_empty() => return Err(Skip::MissingType),
            _ => return Err(Skip::UnmappedType),
        };
        let data = hook.object("data");
        let when = hook.first_text(&["timestamp", "createdAt", "created_at"]);
        let when = when.or_else(|| data.first_text(&["timestamp"])).unwrap_or_else(|| h16(delivery));
        let id = format!("mux-{name}-{}-{when}", data.text("id"));
        let kind = json_string(&kind);
        let own = data.iter().filter(|(key, _)| *key != "eventType");
        let text = object_text(own.chain([("eventType", kind.as_str())]));
        let data = JsonObject::parse(&text).unwrap_or_default();
        Ok(vec![NormalizedEvent::new(name, id, data)])
    }

    fn sample(&self, nonce: &str) -> Sample {
        let body = json!({
            "type": "video.asset.ready",
            "id": nonce,
            "created_at": "2026-09-21T14:13:10.000Z",
            "data": { "id": format!("sample-{nonce}"), "status": "ready" },
        });
        Sample { body: body.to_string(), headers: Vec::new() }
    }
}
