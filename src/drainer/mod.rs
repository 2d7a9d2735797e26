//! The drainer: reads lanes, decides what runs next, runs it, reports the outcome.
//!
//! [`Drainer::run`] opens a session, runs its loop ([`session`]) and opens another one when that was lost. Any number
//! of drainers share the work; each entry has at most one live lease.
//!
//! | file | decides or does |
//! |---|---|
//! | [`scheduler`] | what runs next: priority, aging, fairness, limits. Pure |
//! | [`session`] | the loop: events in, dispatches and reads out |
//! | [`reader`] | reads lanes when asked |
//! | [`outbox`] | writes endings in batches |
//! | [`housekeeping`] | heartbeat, pauses, retries, takeover |
//! | [`handlers`] | run an event |
//! | [`watchdog`] | ends a process that is stuck |

pub mod adaptive;
mod clock;
pub mod handlers;
mod home;
mod housekeeping;
mod outbox;
pub mod plan;
mod reader;
pub mod scheduler;
mod session;
mod shared;
pub mod vitals;
pub mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::diagnose::{Diagnose, Exit};
use crate::streams::bus::Bus;
use crate::streams::records::Fact;
use crate::streams::redis::Error as RedisError;
use clock::Clock;
use plan::Plans;
use scheduler::Rules;
use session::{End, Session};
use shared::Shared;
use vitals::Vitals;

/// Entries in memory and on their way there at most, over all lanes: two reads of 128 to work on, two to come.
pub const PREFETCH_IN_ALL: usize = 512;

/// Limits of one drainer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Dispatches of events in flight.
    pub concurrency: usize,
    /// Calls of functions in flight.
    pub calls: usize,
    /// The safety tick.
    pub interval: Duration,
    /// How long a silent session is left alone.
    pub lease: Duration,
    /// When the watchdog calls it a stall.
    pub stall_after: Duration,
    /// How long a graceful stop waits for handlers.
    pub stop_deadline: Duration,
    /// Order and prefetch.
    pub rules: Rules,
    /// What is kept after it is done.
    pub retention: Retention,
    /// Drain although Redis may evict.
    pub unsafe_eviction: bool,
}

/// How long done entries and the journal stay. Undelivered and pending entries are never removed.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Done entries by age; `None` keeps them all.
    pub done: Option<Duration>,
    /// Done entries per lane, newest first.
    pub count: Option<u64>,
    /// Bytes of a lane.
    pub bytes: Option<u64>,
    /// The journal, by age.
    pub journal: Duration,
    /// The journal's bytes above which it no longer waits for a reader that stands still.
    pub journal_force_bytes: u64,
}

/// Why a drainer does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis can't be reached.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// Redis may drop whole lanes.
    #[error("Redis may evict keys: maxmemory-policy is `{0}`, it must be `noeviction`")]
    Eviction(String),
    /// Redis is too old.
    #[error("Redis {0} is too old; 7.0 or Valkey 8 is needed")]
    Version(String),
    /// The watchdog's or the loop's thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(#[source] std::io::Error),
    /// The loop ended without a word: a fault of ours.
    #[error("the drainer's loop ended unexpectedly")]
    LoopEnded,
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Redis(error) => error.code(),
            Self::Eviction(_) => "REDIS_EVICTS",
            Self::Version(_) => "REDIS_TOO_OLD",
            Self::Thread(_) | Self::LoopEnded => "INTERNAL_ERROR",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Redis(error) => error.exit(),
            Self::Eviction(_) | Self::Version(_) => Exit::Config,
            Self::Thread(_) | Self::LoopEnded => Exit::Internal,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Redis(error) => error.fix(),
            Self::Eviction(_) => {
                "redis-cli CONFIG SET maxmemory-policy noeviction (or start with --unsafe-eviction and accept losses)"
                    .into()
            }
            Self::Version(_) => "Install Redis 7.0 or newer, or Valkey 8 or newer.".into(),
            Self::Thread(_) => "Check the process limits (ulimit -u).".into(),
            Self::LoopEnded => "Read the log above; then start it again.".into(),
        }
    }
}

/// Reads lanes and runs handlers until it is stopped.
pub struct Drainer {
    bus: Bus,
    settings: Settings,
    plans: Arc<dyn Plans>,
    vitals: Arc<Vitals>,
    clock: Clock,
}

impl Drainer {
    /// A drainer over `bus` with the routes of `plans`.
    #[must_use]
    pub fn new(bus: Bus, settings: Settings, plans: Arc<dyn Plans>) -> Self {
        Self { bus, settings, plans, vitals: Arc::new(Vitals::default()), clock: Clock::default() }
    }

    /// What the watchdog and health checks look at.
    #[must_use]
    pub fn vitals(&self) -> Arc<Vitals> {
        self.vitals.clone()
    }

    /// Runs until `stop`, or until this future is dropped; a second signal is `at_once`. Waits for Redis as long as it
    /// takes.
    ///
    /// The loop, its readers and its connections have a thread of their own: a hand-over between them is then a
    /// function call, not a wake-up of another core (measured: with 512 prefetched entries 1.15 × the drain rate on two cores), and no handler can
    /// hold the loop up. Handlers run on the runtime that calls this.
    pub async fn run(mut self, stop: CancellationToken, at_once: CancellationToken) -> Result<(), Error> {
        let (done, ended) = tokio::sync::oneshot::channel();
        let stop = stop.child_token();
        let _stop_when_dropped = stop.clone().drop_guard();
        let handlers = tokio::runtime::Handle::current();
        self.bus = self.bus.separate();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = match runtime {
                Ok(runtime) => runtime.block_on(self.run_here(handlers, stop, at_once)),
                Err(error) => Err(Error::Thread(error)),
            };
            let _ = done.send(result);
        };
        std::thread::Builder::new().name("drainer".into()).spawn(body).map_err(Error::Thread)?;
        ended.await.unwrap_or(Err(Error::LoopEnded))
    }

    async fn run_here(
        self,
        handlers: tokio::runtime::Handle,
        stop: CancellationToken,
        at_once: CancellationToken,
    ) -> Result<(), Error> {
        let Some(instance_id) = self.wait_for_redis(&stop).await? else { return Ok(()) };
        let (clock, vitals, plans) = (self.clock.clone(), self.vitals.clone(), self.plans.clone());
        let shared = Shared::new(clock, vitals, plans, handlers, instance_id, self.settings.lease);
        let mut first = true;
        loop {
            let id = shared.new_session_id();
            let details =
                shared.details(0, self.settings.concurrency, &self.plans.hash(), &std::collections::HashMap::new());
            if let Err(error) = self.bus.renew_session(&id, true, self.settings.lease, &details, &[]).await {
                if !error.is_unreachable() {
                    return Err(error.into());
                }
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(Duration::from_millis(200)) => continue,
                }
            }
            self.report_start(&id, &shared, first).await;
            first = false;
            let (session, queue) = Session::new(self.bus.clone(), self.settings.clone(), shared.clone(), id.clone());
            match session.run(queue, &stop, &at_once).await {
                End::Lost { dropped } => {
                    tracing::warn!(session = id, dropped, "another drainer took over this session; opening a new one");
                    let fact = Fact::new("queue", "queue.lease.lost").warn().with("session", id).with("count", dropped);
                    let _ = self.bus.journal([fact]).await;
                }
                End::Stopped { active, handed_back, abandoned } => {
                    let fact = Fact::new("queue-drainer", "queue.drainer.stopped")
                        .with("activeDispatches", active)
                        .with("handedBack", handed_back)
                        .with("abandoned", abandoned)
                        .with("session", id.clone());
                    let _ = self.bus.journal([fact]).await;
                    let _ = self.bus.close_session(&id, abandoned > 0).await;
                    return Ok(());
                }
            }
        }
    }

    /// Connects, with backoff and a clear word, and checks what must hold before anything is drained.
    async fn wait_for_redis(&self, stop: &CancellationToken) -> Result<Option<String>, Error> {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.check_redis().await {
                Ok(instance_id) => {
                    self.vitals.set_redis_down(false);
                    return Ok(Some(instance_id));
                }
                Err(Error::Redis(error)) if error.is_unreachable() => {
                    tracing::warn!(error = %error, "waiting for Redis");
                    self.vitals.set_redis_down(true);
                    // The wait is a tick of its own kind: the watchdog must not take it for a stall.
                    self.vitals.tick_begins();
                    self.vitals.tick_ended();
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
            }
        }
    }

    async fn check_redis(&self) -> Result<String, Error> {
        let facts = self.bus.server_facts().await?;
        let major: u32 = facts.version.split('.').next().and_then(|part| part.parse().ok()).unwrap_or(0);
        if major < 7 {
            return Err(Error::Version(facts.version));
        }
        if facts.eviction_policy != "noeviction" && !self.settings.unsafe_eviction {
            return Err(Error::Eviction(facts.eviction_policy));
        }
        self.clock.set(self.bus.now_ms().await?);
        Ok(self.bus.instance_id().await?)
    }

    async fn report_start(&self, session: &str, shared: &Shared, first: bool) {
        let mut replayable = 0;
        if let Ok(lanes) = self.bus.lanes().await {
            replayable = self.bus.waiting_estimate(&lanes).await.unwrap_or(0);
        }
        let mut facts = vec![
            Fact::new("queue-drainer", "queue.drainer.started")
                .with("consumerGroup", crate::streams::keys::GROUP)
                .with("consumerName", session)
                .with("intervalMs", ms(self.settings.interval))
                .with("concurrency", self.settings.concurrency)
                .with("stallAfterMs", ms(self.settings.stall_after))
                .with("replayable", replayable)
                .with("registryHash", self.plans.hash())
                .with("redis", serde_json::json!({"url": self.bus.redis.display(), "instanceId": shared.instance_id}))
                .with("version", env!("CARGO_PKG_VERSION")),
        ];
        if first {
            facts.push(
                Fact::new("queue", "queue.replay")
                    .with("replayable", replayable)
                    .with("stale_acked", 0)
                    .with("max_age_ms", serde_json::Value::Null),
            );
        }
        let _ = self.bus.journal(facts).await;
        tracing::info!(session, replayable, concurrency = self.settings.concurrency, "drainer started");
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
