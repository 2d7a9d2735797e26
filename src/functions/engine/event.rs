//! Events as functions see them: `{"data":…,"id":…,"name":…,"ts":…,"user":{},"v"?}`, with the payload's exact text.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::super::ids;
use crate::streams::entry_id::EntryId;
use crate::streams::envelope::{ENVELOPE_VERSION, Envelope};
use crate::streams::family::Family;
use crate::streams::json::JsonObject;
use crate::streams::lane::Lane;
use crate::streams::priority::Priority;
use crate::streams::trace::TraceContext;

/// Names of the engine's own events.
pub mod names {
    /// A run ended, however it did.
    pub const FINISHED: &str = "inngest/function.finished";
    /// A run failed.
    pub const FAILED: &str = "inngest/function.failed";
    /// A run was cancelled.
    pub const CANCELLED: &str = "inngest/function.cancelled";
    /// A function is asked for by another one.
    pub const INVOKED: &str = "inngest/function.invoked";
    /// A schedule's time has come.
    pub const TICK: &str = "inngest/scheduled.timer";
}

/// One event, as text for functions and as a value for expressions.
#[derive(Debug, Clone)]
pub struct Event {
    /// The ULID by which the event API knows it.
    pub public_id: String,
    /// JSON text.
    pub json: String,
    /// The same, parsed.
    pub value: serde_json::Value,
}

impl Event {
    /// The event of an envelope at `entry`. `name` stands for its own name where the registry renames it.
    #[must_use]
    pub fn of(envelope: &Envelope, entry: EntryId, name: &str) -> Self {
        let meta: BTreeMap<String, Box<RawValue>> =
            envelope.meta.as_ref().and_then(|meta| serde_json::from_str(meta.as_str()).ok()).unwrap_or_default();
        let own = |key: &str| meta.get(key).map(|raw| raw.get()).filter(|text| *text != "null");
        let mut json = format!(
            r#"{{"data":{},"id":{},"name":{},"ts":{},"user":{}"#,
            envelope.data.as_str(),
            quoted(&envelope.id),
            quoted(name),
            envelope.ts,
            own("user").unwrap_or("{}")
        );
        if let Some(version) = own("v") {
            json.push_str(",\"v\":");
            json.push_str(version);
        }
        json.push('}');
        let value = serde_json::from_str(&json).unwrap_or_default();
        Self { public_id: ids::public_id(envelope, entry), json, value }
    }
}

/// A text as JSON string.
#[must_use]
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// An event of the engine's own, ready for its lane: lane, id, envelope.
#[must_use]
pub fn internal(
    name: &str,
    id: String,
    data: &str,
    ts: i64,
    caused_by: TraceContext,
) -> Option<(Lane, String, Vec<u8>)> {
    let family: Family = name.parse().ok()?;
    let envelope = Envelope {
        v: ENVELOPE_VERSION,
        id: id.clone(),
        name: family.clone(),
        source: "functions".into(),
        ts,
        data: JsonObject::parse(data).ok()?,
        priority: Priority::default(),
        dedup_key: None,
        trace: Some(caused_by.to_object(None)),
        triage: None,
        meta: None,
    };
    Some((Lane::new(family, Priority::default()), id, envelope.encode().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_keeps_its_text_and_user_comes_from_meta() {
        let envelope = Envelope {
            v: 1,
            id: "mine".into(),
            name: "a/b".parse().unwrap(),
            source: "x".into(),
            ts: 7,
            data: JsonObject::parse(r#"{"n":9007199254740993}"#).unwrap(),
            priority: Priority::P2,
            dedup_key: None,
            trace: None,
            triage: None,
            meta: Some(JsonObject::parse(r#"{"user":{"id":1},"v":"2"}"#).unwrap()),
        };
        let event = Event::of(&envelope, EntryId { ms: 1, seq: 0 }, "a/b");
        assert_eq!(
            event.json,
            r#"{"data":{"n":9007199254740993},"id":"mine","name":"a/b","ts":7,"user":{"id":1},"v":"2"}"#
        );
        assert_eq!(event.public_id.len(), 26);
    }
}
