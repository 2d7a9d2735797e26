//! From the call of append to the call of the handler, one event at a time, without and with a paused backlog beside.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;

use super::drain::{Probe, Running};
use super::{Error, Plan, Scenario, bus, event, fill, flush, payload, rounded};
use crate::streams::append::{Appender, Settings};
use crate::streams::bus::Bus;
use crate::streams::control::{NewPause, PauseSource};
use crate::streams::family::Family;
use crate::streams::priority::Priority;
use crate::streams::redis::Redis;

/// Between two events: long enough that the pipeline is idle again.
const GAP: Duration = Duration::from_millis(2);

/// Runs both scenarios on one drainer.
pub async fn run(redis: &Redis, plan: &Plan) -> Result<Vec<Scenario>, Error> {
    flush(redis).await?;
    let bus = bus(redis);
    let (starts, mut started) = mpsc::unbounded_channel();
    let drainer = Running::start(&bus, Probe::new(Some(starts)), plan.concurrency);
    measure(&bus, &mut started, plan.samples / 10).await?;
    let idle = measure(&bus, &mut started, plan.samples).await?;
    let mut scenarios = Vec::new();
    if plan.wants("idle_latency") {
        let (p50, p99) = (idle.value_at_quantile(0.5), idle.value_at_quantile(0.99));
        scenarios.push(Scenario {
            name: "idle_latency",
            p50_us: Some(p50),
            p99_us: Some(p99),
            target: "p50 ≤ 1 ms, p99 ≤ 5 ms",
            reached: p50 <= 1_000 && p99 <= 5_000,
            ..Scenario::default()
        });
    }
    if plan.wants("paused_backlog") {
        scenarios.push(paused(&bus, &mut started, plan).await?);
    }
    drainer.stop().await;
    flush(redis).await?;
    Ok(scenarios)
}

async fn paused(bus: &Bus, started: &mut mpsc::UnboundedReceiver<Instant>, plan: &Plan) -> Result<Scenario, Error> {
    // The family exists and is paused before its first event, as it would be in an incident.
    // A constant that is a valid name.
    #[allow(clippy::unwrap_used)]
    let family: Family = "bench/paused".parse().unwrap();
    let pause = NewPause {
        family: (&family).into(),
        ttl: Duration::from_secs(3600),
        reason: "bench".into(),
        source: PauseSource::Manual,
        actor: None,
        shorten: true,
    };
    bus.pause(&pause).await?;
    fill(bus, "bench/paused", Priority::P0, plan.backlog, false).await?;
    // Rounds without a backlog alternate with rounds beside it: the backlog moves to another key space and back.
    let (mut base, mut beside) = (histogram(), histogram());
    let key = bus.keys.lane(&crate::streams::lane::Lane::new(family, Priority::P0));
    let aside = format!("{key}:aside");
    for _ in 0..6 {
        let with = measure(bus, started, plan.samples / 4).await?;
        beside.add(&with).map_err(|_| Error::TooSlow { step: "a dispatch", limit: Duration::from_secs(60) })?;
        bus.redis.query::<redis::Value>(redis::cmd("RENAME").arg(&key).arg(&aside)).await?;
        let without = measure(bus, started, plan.samples / 4).await?;
        base.add(&without).map_err(|_| Error::TooSlow { step: "a dispatch", limit: Duration::from_secs(60) })?;
        bus.redis.query::<redis::Value>(redis::cmd("RENAME").arg(&aside).arg(&key)).await?;
    }
    let (p99, base_p99) = (beside.value_at_quantile(0.99), base.value_at_quantile(0.99));
    #[allow(clippy::cast_precision_loss)]
    let ratio = p99 as f64 / base_p99.max(1) as f64;
    Ok(Scenario {
        name: "paused_backlog",
        p50_us: Some(beside.value_at_quantile(0.5)),
        p99_us: Some(p99),
        base_p99_us: Some(base_p99),
        ratio: Some(rounded(ratio)),
        backlog: Some(plan.backlog),
        resident_bytes: resident_bytes(),
        target: "p99 beside the backlog ≤ 1.2 × without; process ≤ 100 MB",
        reached: ratio <= 1.2 && resident_bytes().is_none_or(|bytes| bytes <= 100 << 20),
        ..Scenario::default()
    })
}

async fn measure(
    bus: &Bus,
    started: &mut mpsc::UnboundedReceiver<Instant>,
    samples: usize,
) -> Result<Histogram<u64>, Error> {
    let appender = Appender::start(bus, Settings::default());
    let data = payload();
    let mut latencies = histogram();
    for _ in 0..samples {
        let called = Instant::now();
        appender.append(vec![event("bench/idle", Priority::P1, &data, None)]).await?;
        let limit = Duration::from_secs(10);
        let start = tokio::time::timeout(limit, started.recv()).await;
        let start = start.ok().flatten().ok_or(Error::TooSlow { step: "a dispatch", limit })?;
        latencies.saturating_record(u64::try_from(start.duration_since(called).as_micros()).unwrap_or(u64::MAX));
        tokio::time::sleep(GAP).await;
    }
    Ok(latencies)
}

#[allow(clippy::unwrap_used)]
pub(super) fn histogram() -> Histogram<u64> {
    // 1 µs to 60 s at three digits are constants the crate accepts.
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap()
}

/// Resident memory of this process, where `/proc` tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
