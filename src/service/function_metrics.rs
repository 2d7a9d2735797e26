//! Gauges of functions: what is registered, what is under way, who holds and who waits, how long runs and steps take.
//!
//! Here and not in `telemetry`, which knows nothing of functions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::functions::engine::Engine;
use crate::functions::store::Status;
use crate::streams::redis::Error;
use crate::telemetry::latency::{kind, minute_of, read};
use crate::telemetry::metrics::{Levels, Metrics};

/// Between two readings.
const EVERY: Duration = Duration::from_secs(5);
/// Percentiles are of this many minutes.
const WINDOW_MINUTES: u64 = 5;

/// Reads until `stop`.
pub(super) async fn run(metrics: Arc<Metrics>, engine: Engine, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = read_once(&metrics, &engine).await {
            tracing::debug!(%error, "the figures of functions are not refreshed");
        }
    }
}

async fn read_once(metrics: &Metrics, engine: &Engine) -> Result<(), Error> {
    let known = engine.registry().current();
    let mut by_app: BTreeMap<&str, f64> = BTreeMap::new();
    for function in known.functions.values().filter(|function| known.is_served(&function.slug)) {
        *by_app.entry(function.app.as_str()).or_default() += 1.0;
    }
    replace(&metrics.functions_registered, by_app.into_iter().map(|(app, n)| (vec![("app", app.to_owned())], n)));

    let runs = engine.runs();
    let mut active = Vec::new();
    for status in [Status::Queued, Status::Running] {
        let n = runs.how_many(status).await?;
        #[allow(clippy::cast_precision_loss)]
        active.push((vec![("status", status.as_str().to_lowercase())], n as f64));
    }
    replace(&metrics.runs_active, active);

    let mut in_groups: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for group in runs.groups().await? {
        let function = metrics.bounded("function", &group.function);
        let (held, waiting) = in_groups.entry(function).or_default();
        #[allow(clippy::cast_precision_loss)]
        {
            *held += group.held as f64;
            *waiting += group.waiting as f64;
        }
    }
    let label = |function: &String| vec![("function", function.clone())];
    replace(&metrics.function_slots, in_groups.iter().map(|(function, (held, _))| (label(function), *held)));
    replace(&metrics.function_waiting, in_groups.iter().map(|(function, (_, waiting))| (label(function), *waiting)));

    let minute = minute_of(runs.bus().now_ms().await?);
    for (kind, levels) in [(kind::RUN_QUEUE, &metrics.function_queue), (kind::STEP, &metrics.function_step)] {
        let samples = read::minutes(runs.bus(), kind, minute.saturating_sub(WINDOW_MINUTES - 1), minute).await?;
        let mut rows = Vec::new();
        for (function, sample) in samples {
            let function = metrics.bounded("function", &function);
            for (quantile, thousandths) in [("0.5", 500), ("0.95", 950), ("0.99", 990)] {
                if let Some(us) = sample.quantile_us(thousandths) {
                    #[allow(clippy::cast_precision_loss)]
                    let seconds = us as f64 / 1e6;
                    rows.push((vec![("function", function.clone()), ("quantile", quantile.to_owned())], seconds));
                }
            }
        }
        replace(levels, rows);
    }
    Ok(())
}

/// What is gone is taken away, not left at its last value.
fn replace(levels: &Levels, rows: impl IntoIterator<Item = (Vec<(&'static str, String)>, f64)>) {
    levels.clear();
    for (labels, value) in rows {
        levels.get_or_create(&labels).set(value);
    }
}
