//! Gauges of Redis and the queue, read every five seconds. What is gone is taken away, not left at its last value.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::latency::{Recorder, Summary, kind};
use super::super::projection::{self, window};
use super::super::sinks::Standings;
use super::{Labels, Levels, Metrics};
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::redis::Error;

/// Between two readings.
const EVERY: Duration = Duration::from_secs(5);
/// Windows of exact percentiles: name, ms, and every how many readings they are made.
const WINDOWS: [(&str, u64, u64); 3] = [("5m", 300_000, 1), ("1h", 3_600_000, 6), ("24h", 86_400_000, 60)];

/// What is told beside Redis.
#[derive(Debug, Clone)]
pub struct Fed {
    /// How the sinks stand.
    pub standings: Standings,
    /// What it dropped.
    pub recorder: Recorder,
    /// Whether the process's runtime runs timers.
    pub heartbeat: Heartbeat,
}

/// Beaten by a task of the runtime that is watched, read by others.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    epoch: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { epoch: Instant::now(), last_ms: Arc::default() }
    }
}

impl Heartbeat {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Beats every second until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut beats = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beats.tick() => self.last_ms.store(self.now_ms(), Ordering::Relaxed),
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
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match read(&metrics, &bus, &owner, turn).await {
            Ok(()) => last_good = Instant::now(),
            Err(error) => {
                tracing::debug!(%error, "the figures of Redis are not refreshed");
                metrics.redis_up.get_or_create(&Labels::new()).set(0.0);
                metrics.redis_reconnects.get_or_create(&Labels::new()).inc();
            }
        }
        metrics.redis_refresh_age.get_or_create(&Labels::new()).set(last_good.elapsed().as_secs_f64());
        let dropped = metrics.telemetry_dropped.get_or_create(&vec![("reason", "recorder".to_owned())]);
        dropped.inc_by(fed.recorder.dropped().saturating_sub(dropped.get()));
        drop(dropped);
        metrics.heartbeat_age.get_or_create(&Labels::new()).set(fed.heartbeat.age().as_secs_f64());
        for (sink, standing) in fed.standings.all() {
            let labels = vec![("sink", sink.to_owned())];
            let counted = metrics.sink_errors.get_or_create(&labels);
            counted.inc_by(standing.errors.saturating_sub(counted.get()));
            drop(counted);
            metrics.sink_success.get_or_create(&labels).set(float(standing.last_success_s));
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

async fn read(metrics: &Metrics, bus: &Bus, owner: &str, turn: u64) -> Result<(), Error> {
    let none = Labels::new();
    let began = Instant::now();
    let now = bus.now_ms().await?;
    metrics.redis_ping.get_or_create(&none).observe(began.elapsed().as_secs_f64());
    metrics.redis_up.get_or_create(&none).set(1.0);
    let depth = bus.depth().await?;
    let by = depth.by_priority;
    for (priority, count) in [("P0", by.p0), ("P1", by.p1), ("P2", by.p2), ("P3", by.p3)] {
        metrics.depth.get_or_create(&vec![("priority", priority.into())]).set(float(count));
    }
    for levels in [&metrics.family_depth, &metrics.oldest_age] {
        levels.clear();
    }
    let mut retrying = 0;
    let mut held = 0;
    for family in &depth.by_family {
        let labels = vec![("family", metrics.bounded("family", family.family.as_str()))];
        let open = family.waiting + family.leased + family.retrying;
        // Names beyond the cap are one name.
        let levels = metrics.family_depth.get_or_create(&labels);
        levels.set(levels.get() + float(open));
        drop(levels);
        let age = metrics.oldest_age.get_or_create(&labels);
        age.set(age.get().max(seconds(family.oldest_age_ms.unwrap_or(0))));
        drop(age);
        retrying += family.retrying;
        held += family.leased + family.retrying;
    }
    metrics.retry_scheduled.get_or_create(&none).set(float(retrying));
    metrics.pending.get_or_create(&vec![("group", "drainer".into())]).set(float(held));
    metrics.dead_depth.get_or_create(&none).set(float(depth.dead));
    let journal: u64 = bus.redis.query(redis::cmd("XLEN").arg(bus.keys.journal())).await?;
    for (stream, length) in [("journal", journal), ("dead", depth.dead), ("later", depth.later)] {
        metrics.stream_length.get_or_create(&vec![("stream", stream.into())]).set(float(length));
    }
    pauses(metrics, bus, now).await?;
    drainers(metrics, bus, now).await?;
    server(metrics, bus).await?;
    let mut is_leader = false;
    for (name, cursor) in bus.readers().await? {
        let lag = bus.journal_lag(cursor.id, 4096).await?;
        metrics.sink_lag.get_or_create(&vec![("sink", metrics.bounded("sink", &name))]).set(float(lag));
    }
    let holder: Option<String> =
        bus.redis.query(redis::cmd("GET").arg(bus.keys.reader_lease(projection::NAME))).await?;
    if holder.as_deref() == Some(owner) {
        is_leader = true;
    }
    metrics.drainer_leader.get_or_create(&none).set(f64::from(u8::from(is_leader)));
    if is_leader {
        for (name, ms, every) in WINDOWS.into_iter().filter(|(_, _, every)| turn.is_multiple_of(*every)) {
            percentiles(metrics, bus, name, now.saturating_sub(ms), every > 1).await?;
        }
    } else {
        // Another process tells them.
        metrics.wait_hdr.clear();
        metrics.dispatch_hdr.clear();
    }
    Ok(())
}

async fn percentiles(metrics: &Metrics, bus: &Bus, name: &str, from_ms: u64, is_long: bool) -> Result<(), Error> {
    // A long window need not be exact at its edge: whole minutes are cheap.
    let from_ms = if is_long { from_ms / 60_000 * 60_000 } else { from_ms };
    let told = window(bus, EntryId { ms: from_ms, seq: 0 }).await?;
    let quantiles = |summary: &Summary| {
        let all = [("p50", summary.p50), ("p95", summary.p95), ("p99", summary.p99), ("max", summary.max)];
        all.map(|(q, ms)| (q, ms.map(|ms| ms / 1000.0)))
    };
    for priority in ["all", "P0", "P1", "P2", "P3"] {
        let end = priority.to_lowercase();
        let is_wanted = |lane: &str| priority == "all" || lane.ends_with(&format!(":{end}"));
        for (q, value) in quantiles(&told.summary(kind::WAIT, is_wanted)) {
            let labels = vec![("window", name.to_owned()), ("q", q.to_owned()), ("priority", priority.to_owned())];
            tell(&metrics.wait_hdr, &labels, value);
        }
    }
    for (q, value) in quantiles(&told.summary(kind::DISPATCH, |_| true)) {
        tell(&metrics.dispatch_hdr, &vec![("window", name.to_owned()), ("q", q.to_owned())], value);
    }
    Ok(())
}

/// A window without values has no percentile: no series rather than 0.
fn tell(levels: &Levels, labels: &Labels, value: Option<f64>) {
    match value {
        Some(value) => {
            levels.get_or_create(labels).set(value);
        }
        None => {
            levels.remove(labels);
        }
    }
}

async fn pauses(metrics: &Metrics, bus: &Bus, now: u64) -> Result<(), Error> {
    let pauses = bus.pauses().await?;
    for levels in [&metrics.pause_active, &metrics.pause_applied, &metrics.pause_expires] {
        levels.clear();
    }
    for (family, (until, record)) in pauses.active.iter().filter(|(_, (until, _))| *until > now) {
        let source = record.as_ref().map_or("manual", |record| match record.source {
            crate::streams::control::PauseSource::Manual => "manual",
            crate::streams::control::PauseSource::Observer => "observer",
        });
        let labels = vec![("family", metrics.bounded("family", family)), ("source", source.to_owned())];
        metrics.pause_active.get_or_create(&labels).set(1.0);
        metrics.pause_expires.get_or_create(&labels).set(seconds(*until));
        if let Some(record) = record {
            metrics.pause_applied.get_or_create(&labels).set(seconds(record.applied_at_ms));
        }
    }
    Ok(())
}

async fn drainers(metrics: &Metrics, bus: &Bus, now: u64) -> Result<(), Error> {
    let (mut busy, mut free, mut last) = (0, 0, 0);
    for session in bus.sessions().await?.iter().filter(|session| session.expires_ms > now) {
        let number = |key: &str| session.details.as_ref().and_then(|details| details[key].as_u64()).unwrap_or(0);
        busy += number("inFlight");
        free += number("free");
        // The lease is 30 s unless set otherwise; the heartbeat's own time is not stored.
        last = last.max(session.expires_ms.saturating_sub(30_000).min(now));
    }
    for (state, count) in [("busy", busy), ("free", free)] {
        metrics.drainer_slots.get_or_create(&vec![("state", state.into())]).set(float(count));
    }
    if last > 0 {
        metrics.drainer_tick.get_or_create(&Labels::new()).set(seconds(last));
    }
    Ok(())
}

async fn server(metrics: &Metrics, bus: &Bus) -> Result<(), Error> {
    let none = Labels::new();
    let facts = bus.server_facts().await?;
    metrics.redis_memory_used.get_or_create(&none).set(float(facts.used_memory));
    metrics.redis_memory_max.get_or_create(&none).set(float(facts.max_memory));
    metrics.redis_policy_ok.get_or_create(&none).set(f64::from(u8::from(facts.eviction_policy == "noeviction")));
    metrics.redis_aof_ok.get_or_create(&none).set(f64::from(u8::from(facts.aof_enabled)));
    let info: String = bus.redis.query(redis::cmd("INFO").arg("stats").arg("clients")).await?;
    let number = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    metrics.redis_clients.get_or_create(&none).set(float(number("connected_clients")));
    let evicted = metrics.redis_evicted.get_or_create(&none);
    evicted.inc_by(number("evicted_keys").saturating_sub(evicted.get()));
    drop(evicted);
    Ok(())
}
