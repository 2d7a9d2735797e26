//! `joelclaw bench`: what the pipeline does, beside what Redis could do at most, measured in the same run.
//!
//! Absolute numbers move with the machine; the ratios are the result. Each scenario interleaves its own rounds with
//! raw rounds against the same server and reports medians.
//!
//! | scenario | ours | raw |
//! |---|---|---|
//! | `append` | batches of 100 through the appender, ids made here | 4 clients, `XADD` in pipelines of 100 |
//! | `append_ids` | the same with caller's ids, each checked | the same |
//! | `drain` | drainer with pauses, priorities and journal on, a handler that does nothing | 2 clients, `XREADGROUP` + `XACK` of 128 |
//! | `drain_telemetry` | the same with projections, archive and a dead collector | the same without telemetry |
//! | `idle_latency` | one event at a time: append called → handler called | – |
//! | `functions` | runs of three steps on a Node app, and what passes between two calls | the SDK called without an engine |
//! | `webhooks` | signed deliveries while Redis is killed and started again | – |
//! | `triage_shadow` | one event at a time through admission, triage in shadow, a model that hangs | the same, triage off |
//! | `paused_backlog` | the same beside a paused family with a large backlog | the same without |

mod drain;
pub mod functions;
mod latency;
mod raw;
mod triage;
pub mod webhooks;

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::streams::append::{Appender, NewEvent, Settings};
use crate::streams::bus::Bus;
use crate::streams::json::JsonObject;
use crate::streams::priority::Priority;
use crate::streams::redis::{Error as RedisError, Redis};

/// How much to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Events per round of `append` and `drain`.
    pub events: usize,
    /// Rounds of each, ours and raw.
    pub rounds: usize,
    /// Single events of the latency scenarios.
    pub samples: usize,
    /// Entries of the paused family.
    pub backlog: usize,
    /// Dispatches in flight of the drainer.
    pub concurrency: usize,
    /// The configuration of the process.
    pub config: Box<crate::config::Config>,
    /// Scenarios to run; empty is all of Redis's.
    pub only: Vec<String>,
    /// For `functions`, which is run only when asked for: it needs Node.
    pub functions: Option<functions::FunctionsPlan>,
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One per scenario.
    pub scenarios: Vec<Scenario>,
}

/// One scenario's figures. Absent ones don't apply.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Scenario {
    /// `append`, `append_ids`, `drain`, `idle_latency`, `paused_backlog`, `triage_shadow` or `footprint`.
    pub name: &'static str,
    /// Events a second, median of the rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_s: Option<u64>,
    /// The raw ceiling, median of the rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_per_s: Option<u64>,
    /// For functions: requests a second of a plain echo of the same Node server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo_per_s: Option<u64>,
    /// Ours ÷ raw; for `paused_backlog` p99 with ÷ p99 without; for `triage_shadow` median in shadow ÷ median off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Median, µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// 99th percentile, µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// 99th percentile without the backlog, or without triage, µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_p99_us: Option<u64>,
    /// Entries of the paused family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<usize>,
    /// Resident memory of this process with the backlog waiting, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// From the start of a drainer to its first dispatch, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_dispatch_ms: Option<f64>,
    /// What DESIGN asks for, in words.
    pub target: &'static str,
    /// Whether this run reached it.
    pub reached: bool,
}

/// Why a benchmark could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// No `node_modules` with the SDK there.
    #[error("there is no Inngest SDK in {}/node_modules", .0.display())]
    NoSdk(std::path::PathBuf),
    /// Something that is measured did not start.
    #[error("{0}")]
    Part(String),
    /// An append failed.
    #[error(transparent)]
    Append(#[from] crate::streams::append::Error),
    /// A step took too long to be a measurement.
    #[error("{step} did not end within {limit:?}")]
    TooSlow {
        /// What was awaited.
        step: &'static str,
        /// For how long.
        limit: Duration,
    },
}

/// Runs the scenarios of `plan` against `redis`, which must be a throwaway one. `progress` hears what is running.
pub async fn run(redis: &Redis, plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Report, Error> {
    let mut scenarios = Vec::new();
    if plan.wants("append") {
        progress("append");
        scenarios.push(append(redis, plan, false).await?);
    }
    if plan.wants("append_ids") {
        progress("append_ids");
        scenarios.push(append(redis, plan, true).await?);
    }
    if plan.wants("drain") {
        progress("drain");
        scenarios.push(drain::run(redis, plan).await?);
    }
    if plan.wants("drain_telemetry") {
        progress("drain_telemetry");
        scenarios.push(drain::with_telemetry(redis, plan, &plan.config).await?);
    }
    if plan.wants("idle_latency") || plan.wants("paused_backlog") {
        progress("idle_latency, paused_backlog");
        scenarios.extend(latency::run(redis, plan).await?);
    }
    if plan.wants("triage_shadow") {
        progress("triage_shadow");
        scenarios.push(triage::run(redis, plan).await?);
    }
    if let Some(plan) = &plan.functions {
        progress("functions");
        scenarios.extend(functions::run(redis, plan).await?);
    }
    Ok(Report { scenarios })
}

async fn append(redis: &Redis, plan: &Plan, with_ids: bool) -> Result<Scenario, Error> {
    let (mut ours, mut raws) = (Vec::new(), Vec::new());
    // Interleaved, so that a slow spell of the machine hits both sides.
    for _ in 0..plan.rounds {
        flush(redis).await?;
        raws.push(raw::append(redis, plan.events).await?);
        flush(redis).await?;
        let bus = bus(redis);
        let started = Instant::now();
        fill(&bus, "bench/append", Priority::P1, plan.events, with_ids).await?;
        ours.push(rate(plan.events, started.elapsed()));
    }
    flush(redis).await?;
    let (per_s, raw_per_s) = (median(&mut ours), median(&mut raws));
    let ratio = per_s / raw_per_s;
    let (name, bar, target) = if with_ids {
        ("append_ids", 0.40, "≥ 40 % of raw pipelined XADD")
    } else {
        ("append", 0.70, "≥ 70 % of raw pipelined XADD")
    };
    Ok(Scenario {
        name,
        per_s: Some(whole(per_s)),
        raw_per_s: Some(whole(raw_per_s)),
        ratio: Some(rounded(ratio)),
        target,
        reached: ratio >= bar,
        ..Scenario::default()
    })
}

/// Appends `count` events of `family` in batches of 100 from several callers at once.
async fn fill(bus: &Bus, family: &str, priority: Priority, count: usize, with_ids: bool) -> Result<(), Error> {
    const CALLERS: usize = 16;
    let appender = Appender::start(bus, Settings { deadline: Duration::from_secs(30), ..Settings::default() });
    let data = payload();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let (appender, data, family) = (appender.clone(), data.clone(), family.to_owned());
        let batches = (count / 100 + CALLERS - 1 - caller) / CALLERS;
        callers.spawn(async move {
            for batch in 0..batches {
                let events = (0..100)
                    .map(|n| event(&family, priority, &data, with_ids.then(|| format!("bench-{caller}-{batch}-{n}"))))
                    .collect::<Vec<_>>();
                appender.append(events).await?;
            }
            Ok::<(), crate::streams::append::Error>(())
        });
    }
    while let Some(done) = callers.join_next().await {
        match done {
            Ok(result) => result?,
            Err(_) => return Err(Error::TooSlow { step: "a caller", limit: Duration::ZERO }),
        }
    }
    Ok(())
}

fn event(family: &str, priority: Priority, data: &JsonObject, id: Option<String>) -> NewEvent {
    // The names used here are constants that are valid.
    #[allow(clippy::unwrap_used)]
    let name = family.parse().unwrap();
    NewEvent { id, priority, ..NewEvent::new(name, "bench", data.clone()) }
}

/// 200 bytes of data.
fn payload() -> JsonObject {
    let filler = "x".repeat(200 - r#"{"path":""}"#.len());
    JsonObject::parse(&format!(r#"{{"path":"{filler}"}}"#)).unwrap_or_default()
}

fn bus(redis: &Redis) -> Bus {
    Bus::new(redis.clone(), "bench")
}

async fn flush(redis: &Redis) -> Result<(), Error> {
    redis.query_within::<redis::Value>(redis::cmd("FLUSHALL").arg("SYNC"), Duration::from_secs(60)).await?;
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
