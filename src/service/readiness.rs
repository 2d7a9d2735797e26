//! What has to hold before this process wants traffic, and what is told beside it.
//!
//! | check | fails when |
//! |---|---|
//! | `redis` | Redis does not answer |
//! | `eviction` | Redis may drop keys when it is full |
//! | `apps` | an app does not serve what is registered, or is silent |
//! | `spool` | the oldest webhook delivery on disk waits for over a minute |
//! | `canary` | a canary event did not come through ([`super::canary`]) |
//! | `drainer` | its loop does not tick |
//!
//! `secrets` is told and decides nothing: a provider without a secret is refused, and the others are served.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::canary::Canary;
use super::senders::Leased;
use crate::config::Config;
use crate::diagnose::chain;
use crate::drainer::vitals::Vitals;
use crate::functions::registry::Registry as Functions;
use crate::ingest::gateway::Gateway;
use crate::ingest::spool::Spool;
use crate::server::health::Readiness;
use crate::streams::bus::Bus;

/// What is looked at.
pub(super) struct Parts {
    pub bus: Bus,
    /// The operator lives with a Redis that may drop keys.
    pub unsafe_eviction: bool,
    pub vitals: Option<Arc<Vitals>>,
    pub canary: Option<Canary>,
    pub functions: Functions,
    pub spool: Option<Spool>,
    pub gateway: Gateway,
    pub leased: Leased,
}

/// The checks. Not ready from the moment `stop` is cancelled.
pub(super) fn readiness(parts: Parts, config: &Config, stop: CancellationToken) -> Readiness {
    let Parts { bus, unsafe_eviction, vitals, canary, functions, spool, gateway, leased } = parts;
    let ping = bus.clone();
    let readiness = Readiness::new(stop).with("redis", move || {
        let bus = ping.clone();
        async move { bus.now_ms().await.map(drop).map_err(|error| chain(&error)) }
    });
    let readiness = readiness.with("eviction", move || {
        let bus = bus.clone();
        async move {
            match bus.server_facts().await {
                Ok(facts) if facts.eviction_policy == "noeviction" || unsafe_eviction => Ok(()),
                Ok(facts) => Err(format!("maxmemory-policy is {}, and must be noeviction", facts.eviction_policy)),
                // That is said by `redis`.
                Err(_) => Ok(()),
            }
        }
    });
    let readiness = readiness.with("apps", move || {
        let functions = functions.clone();
        async move { agreement(&functions).await }
    });
    let readiness = match spool {
        Some(spool) => readiness.with("spool", move || std::future::ready(spool_waits(&spool))),
        None => readiness,
    };
    let readiness = match canary {
        Some(canary) => readiness.with("canary", move || std::future::ready(canary.check())),
        None => readiness,
    };
    let readiness = readiness.telling("secrets", secret_states(gateway, leased, config.webhook.secrets_ttl));
    let Some(vitals) = vitals else { return readiness };
    let limit = config.drainer.stall_after;
    readiness.with("drainer", move || {
        let vitals = vitals.clone();
        async move {
            match (vitals.redis_down(), vitals.is_ticking(limit)) {
                (true, _) => Err("redis_down".to_owned()),
                (_, false) => Err("its loop has not ticked".to_owned()),
                _ => Ok(()),
            }
        }
    })
}

/// Whether every app was found to serve what is registered.
async fn agreement(functions: &Functions) -> Result<(), String> {
    let known = functions.load().await.map_err(|error| chain(&error))?;
    let wrong: Vec<String> = known
        .apps
        .iter()
        .filter_map(|(name, record)| {
            let problem = record.health.as_ref()?.problem.as_ref()?;
            Some(format!("{name}: {problem}"))
        })
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// Deliveries on the disk that Redis should have taken by now.
fn spool_waits(spool: &Spool) -> Result<(), String> {
    let depth = spool.depth();
    match depth.oldest_age().as_secs() {
        age_s if age_s >= 60 => Err(format!("{} deliveries wait, the oldest for {age_s} s", depth.deliveries)),
        _ => Ok(()),
    }
}

/// Which providers have secrets. One that is set is used as it is, whatever the command once said.
fn secret_states(gateway: Gateway, leased: Leased, ttl: Duration) -> impl Fn() -> Value {
    move || {
        let senders = gateway.senders();
        let states = senders.states(|variable| leased.is_stale(variable, ttl));
        states.map(|(id, state)| (id.to_owned(), state.into())).collect::<Map<_, _>>().into()
    }
}
