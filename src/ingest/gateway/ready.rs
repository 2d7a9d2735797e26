//! Normalised events as admission, or the spool, is offered them.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::ingest::admission::Emit;
use crate::ingest::fields::{json_string, object_text};
use crate::ingest::providers::{DeliveryKey, NormalizedEvent, Provider};
use crate::ingest::spool::SpooledEvent;
use crate::streams::append::Once;
use crate::streams::envelope::MAX_EVENT_ID_BYTES;
use crate::streams::json::JsonObject;

/// The longest delivery key that is remembered as it is; longer ones by their hash.
const MAX_KEY_BYTES: usize = 160;

/// An event as it is offered to admission.
pub(super) struct Ready {
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) data: JsonObject,
    meta: String,
    once: String,
}

impl Ready {
    pub(super) fn of(provider: &dyn Provider, key: &DeliveryKey, index: usize, event: &NormalizedEvent) -> Self {
        Self {
            name: event.full_name(provider),
            id: event.id.as_ref().map(|id| fitted(provider.id(), id)),
            data: event.data.clone(),
            meta: meta(provider.id(), &event.name),
            once: once_key(provider.id(), key, index),
        }
    }

    /// With an id, so that it can be appended twice and be there once.
    pub(super) fn spooled(&self, window: Duration) -> SpooledEvent {
        SpooledEvent {
            name: self.name.clone(),
            id: self.id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
            data: self.data.clone(),
            meta: self.meta.clone(),
            once: self.once.clone(),
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn emit<'a>(&'a self, source: &'a str, window: Duration, trace: Option<&'a str>) -> Emit<'a> {
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

fn hash32(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..16])
}

/// An id that an event may have: a sender's own parts may be long, or hold what ids may not.
fn fitted(provider: &str, id: &str) -> String {
    let fits = id.len() <= MAX_EVENT_ID_BYTES && id.trim() == id && !id.chars().any(char::is_control);
    if fits { id.to_owned() } else { format!("{provider}-sha256-{}", hash32(id)) }
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
