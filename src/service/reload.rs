//! What may change while a service runs: the env file, secret files, sources of webhooks, the registry.
//!
//! Looked at every two seconds and on SIGHUP. Secrets, sources, registry and the flags of triage and observer take effect
//! at once; of every other setting the name is journaled (`config.changed`) and logged, and it takes effect with the next
//! start.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::senders::{self, Leased};
use crate::config::{Config, Sources};
use crate::diagnose::chain;
use crate::ingest::gateway::Gateway;
use crate::observer::flags;
use crate::observer::post::Post;
use crate::registry::watch::RegistryHandle;
use crate::streams::bus::Bus;
use crate::streams::records::Fact;
use crate::telemetry::metrics::Metrics;
use crate::triage::Triage;
use crate::triage::flags::{Flags, Ignored};

/// How often the env file is looked at.
const POLL: Duration = Duration::from_secs(2);
/// How often secret files are read again, in polls.
const SECRETS_EVERY: u64 = 15;

/// What a reload acts on.
pub(super) struct Reload {
    pub config: Config,
    pub sources: Sources,
    pub registry: RegistryHandle,
    pub gateway: Option<Gateway>,
    pub leased: Leased,
    pub metrics: Arc<Metrics>,
    pub triage: Option<Triage>,
    pub observer: Option<Post>,
    /// What is told of the settings in force.
    pub settings: watch::Sender<BTreeMap<String, String>>,
    /// Told when somebody asks for it.
    pub wish: Arc<Notify>,
    pub bus: Bus,
}

impl Reload {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        let Ok(mut hangup) = hangup else { return };
        let stamps = |config: &Config| (stamp(&config.env_file), stamp(&config.webhook.sources_file));
        let mut before = stamps(&self.config);
        if let Some(triage) = &self.triage {
            tell_invalid(&self.bus, triage.flags().ignored(None)).await;
        }
        if self.observer.is_some() {
            tell_invalid(&self.bus, flags::ignored(&self.config, None)).await;
        }
        // What changed between the start and this stamp would never be seen otherwise.
        self.read_config().await;
        let mut polls: u64 = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup.recv() => {
                    if let Err(error) = self.registry.reload() {
                        tracing::error!(error = %error, "the registry file is wrong; the last good one stays in force");
                    }
                    self.read_config().await;
                }
                () = self.leased.changed() => self.swap_senders(),
                () = self.wish.notified() => self.read_config().await,
                () = tokio::time::sleep(POLL) => {
                    polls += 1;
                    let now = stamps(&self.config);
                    let (has_config, has_sources) = (now.0 != before.0, now.1 != before.1);
                    before = now;
                    if has_config {
                        self.read_config().await;
                    } else if has_sources || polls.is_multiple_of(SECRETS_EVERY) {
                        self.swap_senders();
                    }
                }
            }
        }
    }

    async fn read_config(&mut self) {
        let config = match Config::load(&self.sources) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(error = %chain(&error), "the env file can't be used; the old settings stay in force");
                return;
            }
        };
        let changed = config.changed_keys(&self.config);
        let told = flags::ignored(&self.config, None);
        self.config = config;
        self.swap_senders();
        let of_triage = Flags::from_config(&self.config);
        if let Some(triage) = self.triage.as_ref().filter(|triage| *triage.flags() != of_triage) {
            triage.replace_flags(of_triage);
            tell_invalid(&self.bus, triage.flags().ignored(None)).await;
        }
        let of_observer = |key: &&str| key.starts_with("QUEUE_OBSERVER_") || *key == "SYSTEM_BUS_TZ";
        let ignored = flags::ignored(&self.config, None);
        if let Some(post) = self.observer.as_ref().filter(|_| changed.iter().any(of_observer) || ignored != told) {
            post.reconfigure(&self.config);
            tell_invalid(&self.bus, ignored).await;
        }
        self.tell_settings();
        if !changed.is_empty() {
            tracing::warn!(
                keys = changed.join(","),
                "settings changed; restart the service for those that are neither secrets nor QUEUE_TRIAGE_* nor QUEUE_OBSERVER_*"
            );
            let fact = Fact::new("queue", "config.changed").with("keys", changed.join(","));
            let _ = self.bus.journal([fact]).await;
        }
    }

    /// Of what changed, only what takes effect at once is in force now.
    fn tell_settings(&self) {
        let now = super::settings_of(&self.config);
        self.settings.send_if_modified(|told| {
            let before = told.clone();
            let is_live = |key: &String| {
                key.starts_with("QUEUE_TRIAGE_") || key.starts_with("QUEUE_OBSERVER_") || key == "SYSTEM_BUS_TZ"
            };
            told.retain(|key, _| !is_live(key));
            told.extend(now.into_iter().filter(|(key, _)| is_live(key)));
            *told != before
        });
    }

    fn swap_senders(&self) {
        if let Some(gateway) = &self.gateway {
            senders::swap(&self.config, &self.leased, gateway);
            self.metrics.know_providers(gateway.senders().loaded());
        }
    }
}

/// Journals what has no effect in the flags of triage or observer, so that a typo does not pass for a choice.
async fn tell_invalid(bus: &Bus, told: Vec<Ignored>) {
    let facts = told.into_iter().map(|ignored| {
        let fact = Fact::new("queue", "config.invalid").warn();
        fact.with("variable", ignored.variable).with("item", ignored.item).with("why", ignored.why)
    });
    let facts: Vec<Fact> = facts.collect();
    if !facts.is_empty()
        && let Err(error) = bus.journal(facts).await
    {
        tracing::warn!(error = %chain(&error), "ignored flags are not in the journal");
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
