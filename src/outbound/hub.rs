//! What the parts of outbound webhooks share in one process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::breaker::{Breaker, Phase};
use super::client::{Attempt, Sender};
use super::endpoint::Endpoint;
use super::figures::Figures;
use super::store::Endpoints;
use crate::config::{Cidr, Config};
use crate::diagnose::chain;
use crate::net::guard::Guard;
use crate::streams::append::{Appender, NewEvent};
use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::streams::records::Fact;

/// How often a success is written of an endpoint that does well.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Limits and times.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Exceptions from the rules for addresses.
    pub allowed: Vec<Cidr>,
    /// How long one request may take.
    pub timeout: Duration,
    /// What is waited after each failed attempt, before jitter; after the last one there is no further attempt.
    pub retries: Vec<Duration>,
    /// How long an endpoint may do nothing but fail.
    pub disable_after: Option<Duration>,
}

impl Settings {
    /// Those of the configuration.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let webhook = &config.webhook;
        Self {
            allowed: webhook.allowed_subnets.clone(),
            timeout: webhook.endpoint_timeout,
            retries: webhook.endpoint_retries.clone(),
            disable_after: webhook.endpoint_disable_after,
        }
    }

    /// Attempts in all.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        u32::try_from(self.retries.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// How long to wait after attempt number `attempt` (from 1) failed: a fifth more or less than the schedule says.
    /// `random` is in `0..1`.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        let planned = self.retries.get(index).or(self.retries.last()).copied().unwrap_or_default();
        planned.mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0))
    }
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbound {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bus: Bus,
    endpoints: Endpoints,
    appender: Appender,
    sender: Sender,
    settings: Settings,
    figures: Figures,
    breakers: Mutex<HashMap<String, State>>,
    /// Rises with every phase of a breaker.
    phases: AtomicU64,
}

#[derive(Debug)]
struct State {
    breaker: Breaker,
    phase: Phase,
    /// When its last success was written.
    noted: Option<Instant>,
}

impl Outbound {
    /// Over `bus`; deliveries are appended by `appender`, whose limit on sizes must leave room around an event's data.
    /// The error says why there is no HTTP client.
    pub fn new(
        bus: Bus,
        endpoints: Endpoints,
        appender: Appender,
        settings: Settings,
        figures: Figures,
    ) -> Result<Self, String> {
        let sender = Sender::new(Guard::new(&settings.allowed), settings.timeout)?;
        let (breakers, phases) = (Mutex::default(), AtomicU64::new(0));
        Ok(Self { inner: Arc::new(Inner { bus, endpoints, appender, sender, settings, figures, breakers, phases }) })
    }

    /// The endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.inner.endpoints
    }

    /// Limits and times.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(super) fn figures(&self) -> &Figures {
        &self.inner.figures
    }

    /// How many endpoints this process leaves alone now.
    pub(super) fn open_circuits(&self) -> usize {
        let now = Instant::now();
        let breakers = self.inner.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        breakers.values().filter(|state| state.breaker.phase(now) == Phase::Open).count()
    }

    pub(super) fn sender(&self) -> &Sender {
        &self.inner.sender
    }

    pub(super) fn appender(&self) -> &Appender {
        &self.inner.appender
    }

    /// Changes with whatever a plan of deliveries is made from. Looks at the breakers: a pause that is over is a change.
    #[must_use]
    pub fn version(&self) -> u64 {
        let now = Instant::now();
        let mut breakers = self.inner.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        for state in breakers.values_mut() {
            self.look(state, now);
        }
        self.inner.endpoints.version().wrapping_add(self.inner.phases.load(Ordering::Acquire))
    }

    fn look(&self, state: &mut State, now: Instant) {
        let phase = state.breaker.phase(now);
        if phase != state.phase {
            state.phase = phase;
            self.inner.phases.fetch_add(1, Ordering::Release);
        }
    }

    /// What may be sent to an endpoint, and for how long nothing.
    #[must_use]
    pub fn phase(&self, id: &str) -> (Phase, Option<Duration>) {
        let now = Instant::now();
        let breakers = self.inner.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        breakers.get(id).map_or((Phase::Closed, None), |state| (state.breaker.phase(now), state.breaker.open_for(now)))
    }

    /// Notes how a delivery ended, here and in Redis.
    pub(super) async fn note(&self, endpoint: &Endpoint, attempt: &Attempt) {
        self.inner.figures.request(attempt);
        if !self.note_here(endpoint, attempt) {
            return;
        }
        let noted = self.inner.endpoints.note(endpoint, attempt, self.inner.settings.disable_after).await;
        match noted {
            Ok(Some(reason)) => {
                tracing::warn!(endpoint = endpoint.id, url = endpoint.shown_url(), reason, "endpoint disabled");
                let _ = self.inner.endpoints.refresh().await;
                let mut data = about(endpoint);
                data.insert("reason".into(), reason.clone().into());
                data.insert("lastError".into(), attempt.error.clone().into());
                self.tell(super::DISABLED, None, data).await;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error = %chain(&error), "the health of an endpoint could not be written"),
        }
    }

    /// Moves the breaker. True when Redis is to know it too.
    fn note_here(&self, endpoint: &Endpoint, attempt: &Attempt) -> bool {
        let now = Instant::now();
        let mut breakers = self.inner.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || State { breaker: Breaker::default(), phase: Phase::Closed, noted: None };
        let state = breakers.entry(endpoint.id.clone()).or_insert_with(new);
        let is_written = if attempt.error.is_some() {
            state.breaker.failed(now);
            // The success that ends the failures is to be written at once.
            state.noted = None;
            true
        } else {
            state.breaker.succeeded();
            let is_due = state.noted.is_none_or(|at| now.duration_since(at) >= NOTE_EVERY);
            if is_due {
                state.noted = Some(now);
            }
            is_due
        };
        self.look(state, now);
        is_written
    }

    /// Appends an event about an endpoint. That it can't be appended is journaled, and changes nothing else.
    pub(super) async fn tell(&self, name: &'static str, id: Option<String>, data: Map<String, Value>) {
        let Ok(family) = name.parse::<Family>() else { return };
        let event = NewEvent { id, ..NewEvent::new(family, "outbound", data.into()) };
        if let Err(error) = self.inner.appender.append(vec![event]).await {
            tracing::warn!(event = name, error = %chain(&error), "an event about an endpoint was not appended");
        }
    }

    /// Writes a fact; without Redis there is nobody to write it for.
    pub(super) async fn journal(&self, fact: Fact) {
        let _ = self.inner.bus.journal([fact]).await;
    }
}

/// What every event about an endpoint says.
pub(super) fn about(endpoint: &Endpoint) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert("endpointId".into(), endpoint.id.as_str().into());
    data.insert("url".into(), endpoint.shown_url().into());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_kept_within_a_fifth() {
        let settings = Settings {
            allowed: Vec::new(),
            timeout: Duration::from_secs(15),
            retries: vec![Duration::from_secs(5), Duration::from_secs(300)],
            disable_after: None,
        };
        assert_eq!(settings.attempts(), 3);
        assert_eq!(settings.delay(1, 0.0), Duration::from_secs(4));
        assert_eq!(settings.delay(1, 1.0), Duration::from_secs(6));
        assert_eq!(settings.delay(2, 0.5), Duration::from_secs(300));
    }
}
