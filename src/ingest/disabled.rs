//! Providers that an operator has disabled: their deliveries are answered 503, so that those who send again catch up later.
//!
//! | key (after the tag) | type | holds |
//! |---|---|---|
//! | `:webhooks:disabled` | hash | provider → who disabled it, when and why, JSON |
//!
//! Every server reads the hash once a second, and goes on with what it read last while Redis is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::streams::bus::Bus;
use crate::streams::records::Fact;
use crate::streams::redis::Error;

/// Between two readings.
const POLL: Duration = Duration::from_secs(1);

/// One disabled provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// Who did it.
    pub by: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When, ms.
    pub at_ms: u64,
}

/// The disabled providers, as read last. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Disabled(Arc<ArcSwap<BTreeMap<String, Why>>>);

impl Disabled {
    /// Whether this provider is.
    #[must_use]
    pub fn contains(&self, provider: &str) -> bool {
        self.0.load().contains_key(provider)
    }

    /// Reads once.
    pub async fn refresh(&self, bus: &Bus) -> Result<(), Error> {
        self.0.store(Arc::new(bus.disabled_providers().await?));
        Ok(())
    }

    /// Reads every second until `stop`.
    pub async fn watch(self, bus: Bus, stop: CancellationToken) {
        loop {
            if let Err(error) = self.refresh(&bus).await {
                tracing::debug!(error = %error, "the disabled providers could not be read");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }
}

impl Bus {
    /// The disabled providers. What can't be read is disabled all the same.
    pub async fn disabled_providers(&self) -> Result<BTreeMap<String, Why>, Error> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.keys.webhooks_disabled());
        let stored: BTreeMap<String, String> = self.redis.query(&command).await?;
        let unknown = || Why { by: "unknown".to_owned(), reason: None, at_ms: 0 };
        let read = |text: String| serde_json::from_str(&text).unwrap_or_else(|_| unknown());
        Ok(stored.into_iter().map(|(provider, text)| (provider, read(text))).collect())
    }

    /// Disables a provider; false when it was disabled already.
    pub async fn disable_provider(&self, provider: &str, why: &Why) -> Result<bool, Error> {
        let mut command = redis::cmd("HSETNX");
        let text = serde_json::to_string(why).unwrap_or_default();
        command.arg(self.keys.webhooks_disabled()).arg(provider).arg(text);
        let is_new: bool = self.redis.query(&command).await?;
        if is_new {
            self.tell("webhook.provider.disabled", provider, &why.by, why.reason.as_deref()).await?;
        }
        Ok(is_new)
    }

    /// Enables it again; false when it was not disabled.
    pub async fn enable_provider(&self, provider: &str, by: &str) -> Result<bool, Error> {
        let mut command = redis::cmd("HDEL");
        command.arg(self.keys.webhooks_disabled()).arg(provider);
        let was: bool = self.redis.query(&command).await?;
        if was {
            self.tell("webhook.provider.enabled", provider, by, None).await?;
        }
        Ok(was)
    }

    async fn tell(&self, action: &'static str, provider: &str, by: &str, reason: Option<&str>) -> Result<(), Error> {
        let fact = Fact::new("webhook", action).with("provider", provider).with("actor", by);
        let fact = match reason {
            Some(reason) => fact.with("reason", reason),
            None => fact,
        };
        self.journal([fact]).await.map(drop)
    }
}
