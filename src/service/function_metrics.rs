//! Gauges of functions: what is registered, what is under way, who holds and who waits, how long runs and steps take.
//!
//! Here and not in `telemetry`, which knows nothing of functions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::functions::engine::Engine;
use crate::functions::registry::{Health, Snapshot};
use crate::functions::store::{Filter, Status};
use crate::streams::redis::Error;
use crate::telemetry::latency::{kind, minute_of, read};
use crate::telemetry::metrics::Metrics;

/// Between two readings.
const EVERY: Duration = Duration::from_secs(5);
/// Percentiles are of this many minutes.
const WINDOW_MINUTES: u64 = 5;

/// A run that is called for longer than this may hang.
const STALE_MS: u64 = 3_600_000;
/// Runs looked at for that.
const STALE_LOOK: usize = 100;
/// Readings between two looks.
const STALE_EVERY: u64 = 12;

/// Reads until `stop`.
pub(super) async fn run(metrics: Arc<Metrics>, engine: Engine, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut asked = HashMap::new();
    let mut turn = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let known = engine.registry().current();
        let served = || known.functions.values().filter(|function| known.is_served(&function.slug));
        metrics.know_functions(served().map(|function| function.slug.as_str()));
        // Of the whole system, so one process tells it.
        if !metrics.leads() {
            withdraw(&metrics);
            turn = 0;
            continue;
        }
        let told = async {
            // Not of the snapshot: that is read again only when what is registered changes.
            registrations(&metrics, &known, &engine.registry().health().await?, &mut asked);
            read_once(&metrics, &engine, turn).await
        };
        if let Err(error) = told.await {
            tracing::debug!(%error, "the figures of functions are not refreshed");
        }
        turn += 1;
    }
}

fn withdraw(metrics: &Metrics) {
    for levels in [
        &metrics.functions_registered,
        &metrics.runs_active,
        &metrics.stale_runs,
        &metrics.registration_success,
        &metrics.function_slots,
        &metrics.function_waiting,
        &metrics.function_queue,
        &metrics.function_step,
    ] {
        levels.clear();
    }
}

/// What apps serve, and how asking them went; `asked` is when each was last asked.
fn registrations(
    metrics: &Metrics,
    known: &Snapshot,
    health: &BTreeMap<String, Health>,
    asked: &mut HashMap<String, u64>,
) {
    let mut by_app: BTreeMap<&str, f64> = known.apps.keys().map(|app| (app.as_str(), 0.0)).collect();
    for function in known.functions.values().filter(|function| known.is_served(&function.slug)) {
        *by_app.entry(function.app.as_str()).or_default() += 1.0;
    }
    let app = |name: &str| vec![("app", metrics.bounded("app", name))];
    metrics.functions_registered.replace(by_app.into_iter().map(|(name, n)| (app(name), n)));
    let mut last_ms = 0;
    for (name, health) in health.iter().filter(|(name, _)| known.apps.contains_key(*name)) {
        last_ms = last_ms.max(health.seen_ms.unwrap_or(0));
        if asked.insert(name.clone(), health.asked_ms).is_some_and(|before| before != health.asked_ms) {
            let outcome = if health.problem.is_none() { "ok" } else { "failed" };
            metrics.registrations.add(vec![("outcome", outcome.to_owned())], 1);
        }
    }
    asked.retain(|name, _| known.apps.contains_key(name));
    if last_ms > 0 {
        #[allow(clippy::cast_precision_loss)]
        metrics.registration_success.set(Vec::new(), last_ms as f64 / 1000.0);
    }
}

#[allow(clippy::cast_precision_loss)]
async fn read_once(metrics: &Metrics, engine: &Engine, turn: u64) -> Result<(), Error> {
    let runs = engine.runs();
    let mut active = Vec::new();
    for status in [Status::Queued, Status::Running] {
        let n = runs.how_many(status).await?;
        active.push((vec![("status", status.as_str().to_lowercase())], n as f64));
    }
    metrics.runs_active.replace(active);

    let mut in_groups: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for group in runs.groups().await? {
        let function = metrics.bounded("function", &group.function);
        let (held, waiting) = in_groups.entry(function).or_default();
        *held += group.held as f64;
        *waiting += group.waiting as f64;
    }
    let label = |function: &String| vec![("function", function.clone())];
    metrics.function_slots.replace(in_groups.iter().map(|(function, (held, _))| (label(function), *held)));
    metrics.function_waiting.replace(in_groups.iter().map(|(function, (_, waiting))| (label(function), *waiting)));

    let now = runs.bus().now_ms().await?;
    let minute = minute_of(now);
    for (kind, levels) in [(kind::RUN_QUEUE, &metrics.function_queue), (kind::STEP, &metrics.function_step)] {
        let samples = read::minutes(runs.bus(), kind, minute.saturating_sub(WINDOW_MINUTES - 1), minute).await?;
        let mut rows = Vec::new();
        for (function, sample) in samples {
            let function = metrics.bounded("function_hdr", &function);
            for (q, thousandths) in [("p50", 500), ("p95", 950), ("p99", 990)] {
                if let Some(us) = sample.quantile_us(thousandths) {
                    rows.push((vec![("function", function.clone()), ("q", q.to_owned())], us as f64 / 1e6));
                }
            }
        }
        levels.replace(rows);
    }
    if turn.is_multiple_of(STALE_EVERY) {
        let filter = Filter {
            status: vec![Status::Running],
            until_ms: Some(now.saturating_sub(STALE_MS)),
            oldest_first: true,
            limit: STALE_LOOK,
            ..Filter::default()
        };
        let old: Vec<String> = runs.list(&filter).await?.runs.into_iter().map(|run| run.id).collect();
        let hang = runs.signs(&old).await?.iter().filter(|signs| !signs.is_waiting).count();
        metrics.stale_runs.set(Vec::new(), hang as f64);
    }
    Ok(())
}
