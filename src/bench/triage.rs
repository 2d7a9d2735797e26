//! What triage in shadow adds to an append: one event at a time through admission, off and shadow in alternating
//! rounds, with a model that never answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio_util::sync::CancellationToken;

use super::latency::histogram;
use super::{Error, Plan, Scenario, bus, flush, payload, rounded};
use crate::config::TriageMode;
use crate::ingest::admission::{Admission, Emit, Route, Routes};
use crate::model::{KeySource, Models, Settings as ModelSettings};
use crate::registry::watch::RegistryHandle;
use crate::streams::append::{Appender, Settings};
use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::streams::json::JsonObject;
use crate::streams::redis::Redis;
use crate::triage::Triage;
use crate::triage::flags::Flags;
use crate::triage::rules::RulesHandle;

/// Pairs of rounds.
const PAIRS: usize = 6;
/// Of a round: below what the shadow queue holds, so that every decision is really queued.
const MOST: usize = 1_000;

struct Routed;

impl Routes for Routed {
    fn route(&self, _family: &Family, _source: &str, _data: &JsonObject) -> Route {
        Route { is_routed: true, ..Route::default() }
    }
}

/// Runs the scenario.
pub async fn run(redis: &Redis, plan: &Plan) -> Result<Scenario, Error> {
    flush(redis).await?;
    let bus = bus(redis);
    let samples = (plan.samples / 2).min(MOST);
    measure(&bus, TriageMode::Off, samples / 4).await?;
    let (mut off, mut shadow) = (histogram(), histogram());
    for pair in 0..PAIRS {
        // Who begins alternates too: whatever the machine does in a rhythm hits both.
        let order = if pair % 2 == 0 { [false, true] } else { [true, false] };
        for is_shadow in order {
            let (mode, into) = if is_shadow { (TriageMode::Shadow, &mut shadow) } else { (TriageMode::Off, &mut off) };
            let round = measure(&bus, mode, samples).await?;
            into.add(&round).map_err(|_| Error::TooSlow { step: "an append", limit: Duration::from_secs(60) })?;
        }
    }
    flush(redis).await?;
    #[allow(clippy::cast_precision_loss)]
    let of = |quantile: f64| shadow.value_at_quantile(quantile) as f64 / off.value_at_quantile(quantile).max(1) as f64;
    Ok(Scenario {
        name: "triage_shadow",
        p50_us: Some(shadow.value_at_quantile(0.5)),
        p99_us: Some(shadow.value_at_quantile(0.99)),
        base_p99_us: Some(off.value_at_quantile(0.99)),
        ratio: Some(rounded(of(0.5))),
        target: "median append in shadow ≤ 1.1 × off, p99 ≤ 1.5 ×",
        reached: of(0.5) <= 1.1 && of(0.99) <= 1.5,
        ..Scenario::default()
    })
}

async fn measure(bus: &Bus, mode: TriageMode, samples: usize) -> Result<Histogram<u64>, Error> {
    let stop = CancellationToken::new();
    let registry = RegistryHandle::load(std::env::temp_dir().join("joelclaw-bench-has-no-registry.toml"))
        .map_err(|error| Error::Part(error.to_string()))?;
    let command = ["sleep", "1000"].map(str::to_owned).to_vec();
    let settings = ModelSettings { concurrency: 2, command, base_url: None, key: KeySource::default() };
    let rules = RulesHandle::load(std::env::temp_dir().join("joelclaw-bench-has-no-rules.toml"));
    let flags = Flags::new(mode, &[], &[]);
    let (triage, worker) = Triage::new(flags, registry, rules, Models::new(settings, stop.clone()));
    let worker = tokio::spawn(worker.run(bus.clone(), stop.clone()));
    let appender = Appender::start(bus, Settings::default());
    let admission = Admission::new(Arc::new(appender), Arc::new(Routed)).with_triage(triage);
    let data = payload();
    let mut latencies = histogram();
    for _ in 0..samples {
        let called = Instant::now();
        let emit = Emit { name: "content/updated", data: data.as_str(), ..Emit::default() };
        admission.admit(emit).await.map_err(|error| Error::Part(error.to_string()))?;
        latencies.saturating_record(u64::try_from(called.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    stop.cancel();
    worker.await.map_err(|error| Error::Part(error.to_string()))?;
    Ok(latencies)
}
