//! Gauges of Redis and the queue, read every five seconds. What is gone is taken away, not left at its last value.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::latency::{Recorder, Summary, kind};
use super::super::outbox::Outbox;
use super::super::projection;
use super::super::projection::fold::State;
use super::super::sinks::Standings;
use super::super::spans::Spans;
use super::super::{event, posted};
use super::{Labels, Levels, Metrics, OTHER};
use crate::streams::bus::Bus;
use crate::streams::dead::DeadFilter;
use crate::streams::redis::Error;

/// Between two readings.
const EVERY: Duration = Duration::from_secs(5);
/// Windows of exact percentiles: name, ms, and every how many readings they are made.
const WINDOWS: [(&str, u64, u64); 3] = [("5m", 300_000, 1), ("1h", 3_600_000, 6), ("24h", 86_400_000, 60)];

/// The commands whose failures are told: those that we use most. Not `XREADGROUP`: scripts ask for groups that may not be
/// there yet, and that is no fault.
const COMMANDS: [&str; 11] =
    ["evalsha", "eval", "xadd", "xack", "xclaim", "xrange", "xrevrange", "hset", "hgetall", "zadd", "get"];

/// What is told beside Redis.
#[derive(Debug, Clone)]
pub struct Fed {
    /// How the sinks stand.
    pub standings: Standings,
    /// What it dropped.
    pub recorder: Recorder,
    /// Spans of requests, where a collector gets them.
    pub spans: Option<Spans>,
    /// Whether the process's runtime runs timers.
    pub heartbeat: Heartbeat,
    /// Where posted telemetry waits for Redis.
    pub outbox: Outbox,
}

/// Beaten by a task of the runtime that is watched, read by others.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    epoch: Instant,
    last_ms: Arc<AtomicU64>,
    runtime: Arc<OnceLock<tokio::runtime::Handle>>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { epoch: Instant::now(), last_ms: Arc::default(), runtime: Arc::default() }
    }
}

impl Heartbeat {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Beats every second until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let _ = self.runtime.set(tokio::runtime::Handle::current());
        let mut beats = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beats.tick() => self.last_ms.store(self.now_ms(), Ordering::Relaxed),
            }
        }
    }

    fn tell(&self, metrics: &Metrics) {
        metrics.heartbeat_age.set(Labels::new(), self.age().as_secs_f64());
        if let Some(runtime) = self.runtime.get().map(tokio::runtime::Handle::metrics) {
            #[allow(clippy::cast_precision_loss)]
            for (levels, value) in [
                (&metrics.runtime_tasks, runtime.num_alive_tasks() as f64),
                (&metrics.runtime_queue, runtime.global_queue_depth() as f64),
            ] {
                levels.set(Labels::new(), value);
            }
        }
    }

    /// Since when it has not beaten.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed)))
    }
}

/// Reads until `stop`.
pub async fn run(metrics: Arc<Metrics>, bus: Bus, owner: String, fed: Fed, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut turn = 0;
    let mut last_good = Instant::now();
    let mut is_up = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match read(&metrics, &bus, &owner, &fed, turn).await {
            Ok(()) => {
                last_good = Instant::now();
                if !is_up {
                    metrics.redis_reconnects.add(Labels::new(), 1);
                }
                is_up = true;
            }
            Err(error) => {
                tracing::debug!(%error, "the figures of Redis are not refreshed");
                metrics.redis_refresh_failures.add(Labels::new(), 1);
                // One that refuses a command is there.
                if error.is_unreachable() {
                    metrics.redis_up.set(Labels::new(), 0.0);
                    is_up = false;
                }
            }
        }
        metrics.redis_refresh_age.set(Labels::new(), last_good.elapsed().as_secs_f64());
        metrics.telemetry_dropped.follow(vec![("reason", "recorder".to_owned())], fed.recorder.dropped());
        let spans = fed.spans.as_ref().map_or(0, Spans::dropped);
        metrics.telemetry_dropped.follow(vec![("reason", "spans".to_owned())], spans);
        for (reason, count) in posted::drops() {
            metrics.telemetry_dropped.follow(vec![("reason", reason.to_owned())], count);
        }
        for (kind, count) in event::redactions() {
            metrics.redactions.follow(vec![("kind", kind.to_owned())], count);
        }
        metrics.outbox_bytes.set(Labels::new(), float(fed.outbox.bytes().await));
        fed.heartbeat.tell(&metrics);
        for (sink, standing) in fed.standings.all() {
            let labels = vec![("sink", sink.to_owned())];
            metrics.sink_errors.follow(labels.clone(), standing.errors);
            metrics.sink_success.set(labels, float(standing.last_success_s));
        }
        turn += 1;
    }
}

fn float(value: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let value = value as f64;
    value
}

fn seconds(ms: u64) -> f64 {
    float(ms) / 1000.0
}

async fn read(metrics: &Metrics, bus: &Bus, owner: &str, fed: &Fed, turn: u64) -> Result<(), Error> {
    let none = Labels::new();
    let began = Instant::now();
    let asked = bus.now_ms().await;
    // While it does not answer, nobody asks: those pings would have waited too (coordinated omission).
    let mut took = began.elapsed();
    loop {
        metrics.redis_ping.observe(none.clone(), took.as_secs_f64(), 1);
        match took.checked_sub(EVERY) {
            Some(rest) if !rest.is_zero() => took = rest,
            _ => break,
        }
    }
    let now = asked?;
    metrics.redis_up.set(none.clone(), 1.0);
    let holder: Option<String> =
        bus.redis.query(redis::cmd("GET").arg(bus.keys.reader_lease(projection::NAME))).await?;
    let leads = holder.as_deref() == Some(owner);
    let led = metrics.leads();
    metrics.set_leads(leads);
    server(metrics, bus).await?;
    if !leads {
        if led {
            withdraw(metrics);
        }
        return Ok(());
    }
    queue(metrics, bus, turn).await?;
    pauses(metrics, bus, now).await?;
    drainers(metrics, bus, now).await?;
    let end = bus.journal_end().await?;
    let readers = bus.readers().await?.into_iter();
    let mut lags: BTreeMap<String, u64> = readers.map(|(name, cursor)| (name, end.behind(&cursor))).collect();
    // A sink that has never written has no cursor: all is before it.
    for (sink, _) in fed.standings.all() {
        lags.entry(sink.to_owned()).or_insert(end.length);
    }
    let lags = lags.into_iter().map(|(name, lag)| (vec![("sink", metrics.bounded("sink", &name))], float(lag)));
    metrics.sink_lag.replace(lags);
    let is_due = |every: u64| !led || turn.is_multiple_of(every);
    for (name, ms, _) in WINDOWS.into_iter().filter(|(_, _, every)| is_due(*every)) {
        percentiles(metrics, bus, name, now.saturating_sub(ms)).await?;
    }
    if is_due(6) {
        metrics.journal_bytes.set(none, float(bus.journal_bytes().await?));
    }
    Ok(())
}

/// Another process tells it from now on.
fn withdraw(metrics: &Metrics) {
    for levels in [
        &metrics.depth,
        &metrics.family_depth,
        &metrics.oldest_age,
        &metrics.stream_length,
        &metrics.pending,
        &metrics.group_lag,
        &metrics.unindexed,
        &metrics.retry_scheduled,
        &metrics.dead_depth,
        &metrics.wait_hdr,
        &metrics.dispatch_hdr,
        &metrics.drainer_tick,
        &metrics.drainer_slots,
        &metrics.pause_active,
        &metrics.pause_applied,
        &metrics.pause_expires,
        &metrics.observer_state,
        &metrics.observer_last_run,
        &metrics.sink_lag,
        &metrics.journal_bytes,
    ] {
        levels.clear();
    }
}

async fn queue(metrics: &Metrics, bus: &Bus, turn: u64) -> Result<(), Error> {
    let none = Labels::new();
    let depth = bus.depth().await?;
    let by = depth.by_priority;
    for (priority, count) in [("P0", by.p0), ("P1", by.p1), ("P2", by.p2), ("P3", by.p3)] {
        metrics.depth.set(vec![("priority", priority.into())], float(count));
    }
    // Names beyond the cap are one name.
    let (mut open, mut oldest) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    let (mut retrying, mut held, mut waiting, mut orphaned) = (0, 0, 0, 0);
    for family in &depth.by_family {
        let name = metrics.bounded("family", family.family.as_str());
        *open.entry(name.clone()).or_default() += family.waiting + family.leased + family.retrying;
        let age = oldest.entry(name).or_default();
        *age = (*age).max(family.oldest_age_ms.unwrap_or(0));
        retrying += family.retrying;
        held += family.leased + family.retrying;
        waiting += family.waiting;
        orphaned += family.orphaned;
    }
    // A family that was open stays, at 0: its line goes down instead of ending.
    for name in metrics.names("family") {
        open.entry(name.clone()).or_default();
        oldest.entry(name).or_default();
    }
    let label = |name: String| vec![("family", name)];
    metrics.family_depth.replace(open.into_iter().map(|(name, count)| (label(name), float(count))));
    metrics.oldest_age.replace(oldest.into_iter().map(|(name, ms)| (label(name), seconds(ms))));
    metrics.retry_scheduled.set(none.clone(), float(retrying));
    metrics.pending.set(vec![("group", "drainer".into())], float(held));
    metrics.group_lag.set(vec![("group", "drainer".into())], float(waiting));
    metrics.unindexed.set(none, float(orphaned));
    dead(metrics, bus, depth.dead, turn).await?;
    let journal: u64 = bus.redis.query(redis::cmd("XLEN").arg(bus.keys.journal())).await?;
    let lengths = [("journal", journal), ("dead", depth.dead), ("later", depth.later), ("lanes", depth.total)];
    for (stream, length) in lengths {
        metrics.stream_length.set(vec![("stream", stream.into())], float(length));
    }
    Ok(())
}

/// Dead letters by family. Reading them costs, so it is done when their number has changed, and once a minute.
async fn dead(metrics: &Metrics, bus: &Bus, count: u64, turn: u64) -> Result<(), Error> {
    /// Dead letters looked at.
    const LOOK: usize = 1000;
    let is_known = metrics.dead_depth.sum().is_some_and(|told| (told - float(count)).abs() < 0.5);
    if is_known && !turn.is_multiple_of(12) {
        return Ok(());
    }
    let page = bus.dead_letters(&DeadFilter::default(), None, LOOK, LOOK).await?;
    let mut by_family = BTreeMap::<String, u64>::from([(OTHER.to_owned(), 0)]);
    let mut seen = 0;
    for letter in &page.letters {
        let family = letter.lane().map_or_else(|| OTHER.to_owned(), |lane| lane.family.to_string());
        let family = if family == OTHER { family } else { metrics.bounded("family", &family) };
        *by_family.entry(family).or_default() += 1;
        seen += 1;
    }
    *by_family.entry(OTHER.to_owned()).or_default() += count.saturating_sub(seen);
    metrics.dead_depth.replace(by_family.into_iter().map(|(family, n)| (vec![("family", family)], float(n))));
    Ok(())
}

async fn percentiles(metrics: &Metrics, bus: &Bus, name: &str, from_ms: u64) -> Result<(), Error> {
    let told = projection::folded(bus, from_ms).await?;
    let quantiles = |summary: &Summary| {
        let all = [("p50", summary.p50), ("p95", summary.p95), ("p99", summary.p99), ("max", summary.max)];
        all.map(|(q, ms)| (q, ms.map(|ms| ms / 1000.0)))
    };
    for priority in ["all", "P0", "P1", "P2", "P3"] {
        let end = priority.to_lowercase();
        let is_wanted = |lane: &str| priority == "all" || lane.ends_with(&format!(":{end}"));
        for (q, value) in quantiles(&told.summary(kind::WAIT, is_wanted)) {
            let labels = vec![("window", name.to_owned()), ("q", q.to_owned()), ("priority", priority.to_owned())];
            tell(&metrics.wait_hdr, labels, value);
        }
    }
    for (q, value) in quantiles(&told.summary(kind::DISPATCH, |_| true)) {
        tell(&metrics.dispatch_hdr, vec![("window", name.to_owned()), ("q", q.to_owned())], value);
    }
    observer(metrics, &told.state);
    Ok(())
}

/// A window without values has no percentile: no series rather than 0.
fn tell(levels: &Levels, labels: Labels, value: Option<f64>) {
    match value {
        Some(value) => levels.set(labels, value),
        None => levels.remove(&labels),
    }
}

/// What the observer found last, and when it ran. Before its first pass: no state is on, and the time is 0.
fn observer(metrics: &Metrics, state: &State) {
    let last = ["queue.observe.completed", "queue.observe.fallback"].into_iter();
    let last = last.filter_map(|action| state.last.get(action)).max_by_key(|last| last.at_ms);
    let found = |key: &str| last.and_then(|last| last.detail.as_ref()?.get(key)?.as_str()).unwrap_or_default();
    let dimensions = [
        ("queue_pressure", "queuePressure", ["healthy", "degraded", "backlogged"]),
        ("downstream", "downstreamState", ["healthy", "degraded", "down"]),
    ];
    let one_hot = dimensions.into_iter().flat_map(|(dimension, key, states)| {
        let found = found(key).to_owned();
        states.into_iter().map(move |state| {
            let labels = vec![("dimension", dimension.to_owned()), ("state", state.to_owned())];
            (labels, f64::from(u8::from(found == state)))
        })
    });
    metrics.observer_state.replace(one_hot);
    for trigger in ["cron", "manual"] {
        let at_ms = state.last.get(&format!("observer|{trigger}")).map_or(0, |last| last.at_ms);
        metrics.observer_last_run.set(vec![("trigger", trigger.to_owned())], seconds(at_ms));
    }
}

async fn pauses(metrics: &Metrics, bus: &Bus, now: u64) -> Result<(), Error> {
    let pauses = bus.pauses().await?;
    let (mut active, mut applied, mut expires) = (Vec::new(), Vec::new(), Vec::new());
    for (family, (until, record)) in pauses.active.iter().filter(|(_, (until, _))| *until > now) {
        let source = record.as_ref().map_or("manual", |record| match record.source {
            crate::streams::control::PauseSource::Manual => "manual",
            crate::streams::control::PauseSource::Observer => "observer",
        });
        let labels = vec![("family", metrics.bounded("family", family)), ("source", source.to_owned())];
        active.push((labels.clone(), 1.0));
        expires.push((labels.clone(), seconds(*until)));
        if let Some(record) = record {
            applied.push((labels, seconds(record.applied_at_ms)));
        }
    }
    metrics.pause_active.replace(active);
    metrics.pause_applied.replace(applied);
    metrics.pause_expires.replace(expires);
    Ok(())
}

async fn drainers(metrics: &Metrics, bus: &Bus, now: u64) -> Result<(), Error> {
    let (mut busy, mut free, mut last) = (0, 0, 0);
    for session in bus.sessions().await?.iter().filter(|session| session.expires_ms > now) {
        let number = |key: &str| session.details.as_ref().and_then(|details| details[key].as_u64()).unwrap_or(0);
        busy += number("inFlight");
        free += number("free");
        last = last.max(session.ticked_ms().min(now));
    }
    for (state, count) in [("busy", busy), ("free", free)] {
        metrics.drainer_slots.set(vec![("state", state.into())], float(count));
    }
    if last > 0 {
        metrics.drainer_tick.set(Labels::new(), seconds(last));
    }
    Ok(())
}

async fn server(metrics: &Metrics, bus: &Bus) -> Result<(), Error> {
    let none = Labels::new;
    let facts = bus.server_facts().await?;
    metrics.redis_memory_used.set(none(), float(facts.used_memory));
    metrics.redis_memory_max.set(none(), float(facts.max_memory));
    metrics.redis_policy_ok.set(none(), f64::from(u8::from(facts.eviction_policy == "noeviction")));
    let mut ask = redis::cmd("INFO");
    ask.arg("stats").arg("clients").arg("persistence").arg("commandstats");
    let info: String = bus.redis.query(&ask).await?;
    let found = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    let number = |name: &str| found(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let is_written = ["aof_last_write_status", "aof_last_bgrewrite_status"];
    let is_written = is_written.into_iter().all(|name| found(name).is_none_or(|status| status == "ok"));
    metrics.redis_aof_ok.set(none(), f64::from(u8::from(facts.aof_enabled && is_written)));
    metrics.redis_clients.set(none(), float(number("connected_clients")));
    metrics.redis_evicted.follow(none(), number("evicted_keys"));
    // Every client's, so one process tells them.
    if metrics.leads() {
        for command in COMMANDS {
            let stats = found(&format!("cmdstat_{command}")).unwrap_or_default();
            let failed = ["failed_calls=", "rejected_calls="].into_iter().filter_map(|name| {
                stats.split(',').find_map(|part| part.strip_prefix(name)).and_then(|text| text.parse::<u64>().ok())
            });
            metrics.redis_command_errors.follow(vec![("command", command.to_owned())], failed.sum());
        }
    }
    Ok(())
}
