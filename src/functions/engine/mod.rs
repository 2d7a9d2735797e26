//! The engine: starts runs from events, calls functions, brings runs on.
//!
//! | file | does |
//! |---|---|
//! | [`bounds`] | flow control of a function for an event: keys and groups |
//! | [`events`] | an event → runs, waits that it answers, runs that it cancels |
//! | [`work`] | a work item → calls of a function until the run has to wait |
//! | [`call`] | one HTTP call of an SDK app |
//! | [`answer`], [`ops`] | what the SDK's answer means |
//! | [`apply`] | operations → one advance of the run |
//! | [`gateway`] | requests that the engine makes for a function |
//! | [`finish`] | the end of a run and the events that tell of it |
//! | [`ticks`] | cron |
//! | [`holds`] | functions whose family is paused |
//! | [`operations`] | what operators do to many runs and events at once |
//! | [`timers`] | sleeps, timeouts, retries that are due |
//! | [`upkeep`] | runs that nothing would bring on; old indexes |
//! | [`sync`] | asks every app what it serves, repairs the registry |
//!
//! The drainer hands events and work items over as it does to any handler, with its leases, retries and pauses; what
//! outlasts a dispatch is in [`super::store`].

pub mod answer;
mod apply;
mod bounds;
pub mod call;
pub mod event;
mod events;
mod finish;
mod gateway;
mod holds;
pub mod operations;
pub mod ops;
mod overhead;
pub mod spans;
pub mod sync;
mod ticks;
mod timers;
mod upkeep;
mod work;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::expr::{Expr, ExprError};
use super::inngest::signing::Keys;
use super::registry::Registry;
use super::store::{Keep, Limits, Runs};
use crate::config::MissedTicks;
use crate::net::guard::Guard;
use crate::streams::append::Appender;
use crate::streams::bus::Bus;
use crate::streams::redis::Error as RedisError;
use crate::telemetry::latency::Recorder;

pub use events::EventHandler;
pub use overhead::Overhead;
pub use work::WorkHandler;

/// Expressions kept compiled at most.
const COMPILED: usize = 10_000;

/// Limits and defaults of the engine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Signing keys; without one, calls are unsigned (dev mode).
    pub keys: Keys,
    /// How long one call of a function may take.
    pub call_timeout: Duration,
    /// A constant delay between attempts instead of the table.
    pub retry_interval: Option<Duration>,
    /// Limits of one run.
    pub limits: Limits,
    /// How long ended runs stay.
    pub keep: Keep,
    /// What becomes of ticks of a schedule that nobody was there for.
    pub cron_missed: MissedTicks,
    /// How often apps are asked what they serve.
    pub sync_interval: Duration,
    /// Apps that need not register themselves.
    pub app_urls: Vec<String>,
    /// Names that stand for other hosts in app URLs.
    pub host_aliases: Vec<(String, String)>,
    /// Which addresses functions may have requested (see [`gateway`]).
    pub guard: Guard,
    /// Takes how long runs wait and steps take.
    pub recorder: Option<Recorder>,
    /// See [`Runs::with_clock`]: only where a test moves time.
    pub clock: Option<String>,
}

/// The engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    runs: Runs,
    registry: Registry,
    settings: Settings,
    client: reqwest::Client,
    guarded: (Guard, reqwest::Client),
    appender: Appender,
    /// A timer was set that may be due before the next look.
    timer_set: Notify,
    /// An app answered that it doesn't know a function of ours.
    drifted: Notify,
    expressions: Mutex<HashMap<String, Result<Expr, ExprError>>>,
    /// Apps that could not be reached: since when.
    away: Mutex<HashMap<String, Instant>>,
    /// Between an answer and the next request, and of a checkpoint.
    overhead: overhead::Recorder,
    /// The process is to stop: no further call is begun.
    stop: CancellationToken,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// An engine over `bus` with the functions of `registry`; the error says why there is no HTTP client.
    pub fn new(
        bus: Bus,
        registry: Registry,
        appender: Appender,
        settings: Settings,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let client = call::client(&settings.host_aliases)?;
        let guard = settings.guard.clone();
        let guarded = guard.client(false).connect_timeout(Duration::from_secs(10)).build();
        let guarded = guarded.map_err(|error| format!("no HTTP client: {error}"))?;
        let mut runs = Runs::new(bus.separate()).keeping_skipped(settings.keep.done_ms);
        if let Some(key) = &settings.clock {
            runs = runs.with_clock(key);
        }
        let inner = Inner {
            runs,
            registry,
            settings,
            client,
            guarded: (guard, guarded),
            appender,
            timer_set: Notify::new(),
            drifted: Notify::new(),
            expressions: Mutex::default(),
            away: Mutex::default(),
            overhead: overhead::Recorder::default(),
            stop,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The registry of functions.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// Runs in Redis.
    #[must_use]
    pub fn runs(&self) -> &Runs {
        &self.inner.runs
    }

    /// Limits and defaults.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// What the engine adds between an answer of an app and its next request to it.
    #[must_use]
    pub fn overhead(&self) -> Overhead {
        self.inner.overhead.read()
    }

    /// Records a duration of a function: `RUN_QUEUE` or `STEP`.
    pub(in crate::functions) fn record(&self, kind: &'static str, function: &str, took: Duration) {
        if let Some(recorder) = &self.inner.settings.recorder {
            recorder.record(kind, function, took);
        }
    }

    /// Measures from here on.
    pub fn forget_overhead(&self) {
        self.inner.overhead.forget();
    }

    /// Notes how long a step took to be stored and followed up.
    pub(in crate::functions) fn note_overhead(&self, took: Duration) {
        self.inner.overhead.record(took);
    }

    /// What a process with the drainer's part does beside dispatching: timers, upkeep, asking apps. Ends with `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(
            self.fire_timers(stop.clone()),
            self.look_after_runs(stop.clone()),
            self.keep_apps_in_step(stop.clone()),
        );
    }

    /// A compiled expression.
    fn expression(&self, text: &str) -> Result<Expr, ExprError> {
        let Ok(mut known) = self.inner.expressions.lock() else { return Expr::parse(text) };
        if let Some(compiled) = known.get(text) {
            return compiled.clone();
        }
        if known.len() >= COMPILED {
            known.clear();
        }
        let compiled = Expr::parse(text);
        known.insert(text.to_owned(), compiled.clone());
        compiled
    }

    fn keep_ms(&self, failed: bool) -> u64 {
        let keep = self.inner.settings.keep;
        if failed { keep.failed_ms } else { keep.done_ms }
    }
}

/// Why an operation on a run did nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis refused or is away.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// An event could not be appended.
    #[error(transparent)]
    Append(#[from] crate::streams::append::Error),
    /// No such run.
    #[error("there is no run {0}")]
    NoRun(String),
    /// No such function.
    #[error("could not find function with ID: {0}")]
    NoFunction(String),
    /// It is over already.
    #[error("cannot cancel an ended run")]
    Ended,
}
