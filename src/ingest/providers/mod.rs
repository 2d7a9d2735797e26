//! Webhook providers: one file each, one line in [`ALL`].
//!
//! To add one: implement [`Provider`], add the line, add its vectors under `tests/vectors/webhooks/`.

pub mod github;

use crate::streams::json::JsonObject;

use super::signature::{Delivery, Scheme, Verified};

/// Every provider, in the order in which `GET /webhooks` lists them.
pub const ALL: &[&dyn Provider] = &[&github::Github];

/// The provider with this id; the match is case-sensitive.
#[must_use]
pub fn find(id: &str) -> Option<&'static dyn Provider> {
    ALL.iter().copied().find(|provider| provider.id() == id)
}

/// Where a provider's secret comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretName {
    /// Environment variable; with the suffix `_PREVIOUS` for the secret before the current one.
    pub variable: &'static str,
    /// Name in the secret store.
    pub store: &'static str,
}

/// A service that sends webhooks. Everything is pure: no I/O, no clock.
pub trait Provider: Send + Sync {
    /// Id in the URL: `^[a-z0-9][a-z0-9-]{0,31}$`.
    fn id(&self) -> &'static str;

    /// Its events are named `<prefix>/<name>`.
    fn event_prefix(&self) -> &'static str {
        self.id()
    }

    /// Where its secret comes from.
    fn secret(&self) -> SecretName;

    /// How it signs.
    fn signature(&self) -> Scheme;

    /// Whether it sends a delivery again when we fail to take it.
    fn redelivers(&self) -> bool;

    /// The JSON text of the body; `None` when there is none to be found.
    fn json(&self, delivery: &Verified<Delivery>) -> Option<String> {
        std::str::from_utf8(&delivery.raw).ok().map(str::to_owned)
    }

    /// What tells one delivery from another.
    fn delivery_key(&self, delivery: &Verified<Delivery>) -> DeliveryKey;

    /// The events that a delivery stands for. Never fails: what is missing or of a wrong type reads as empty.
    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip>;
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
    pub name: &'static str,
    /// Stable: a redelivery gets the same.
    pub id: String,
    /// The payload.
    pub data: JsonObject,
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
    /// What came out breaks the rules of events.
    #[error("invalid_event")]
    InvalidEvent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_fit_the_url() {
        let mut seen = std::collections::BTreeSet::new();
        for provider in ALL {
            let id = provider.id();
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            assert!(id.len() <= 32 && id.bytes().next().is_some_and(fits), "{id}");
            assert!(id.bytes().all(|b| fits(b) || b == b'-') && seen.insert(id), "{id}");
        }
        assert!(find("GitHub").is_none() && find("github").is_some());
    }
}
