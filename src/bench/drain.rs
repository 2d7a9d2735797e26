//! The drain scenario, and the drainer that the latency scenarios use too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt as _, ready};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Error, Plan, Scenario, bus, fill, flush, median, rate, raw, rounded, whole};
use crate::config::Config;
use crate::drainer::handlers::{Dispatch, Handler, Outcome};
use crate::drainer::plan::{FamilyPlan, Plans, RetryPolicy};
use crate::drainer::scheduler::{Fairness, Rules, Slots};
use crate::drainer::{Drainer, Retention, Settings};
use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::streams::priority::Priority;
use crate::streams::redis::Redis;

/// A handler that does nothing but tell that it was called.
pub struct Probe {
    calls: AtomicUsize,
    stop_at: AtomicUsize,
    reached: Notify,
    starts: Option<mpsc::UnboundedSender<Instant>>,
}

impl Probe {
    /// Counts calls; with `starts`, sends the time of each.
    pub fn new(starts: Option<mpsc::UnboundedSender<Instant>>) -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            stop_at: AtomicUsize::new(usize::MAX),
            reached: Notify::new(),
            starts,
        })
    }

    /// Waits until `count` calls were made since the start.
    pub async fn wait_for(&self, count: usize, limit: Duration) -> Result<(), Error> {
        self.stop_at.store(count, Ordering::SeqCst);
        let wait = async {
            while self.calls.load(Ordering::SeqCst) < count {
                self.reached.notified().await;
            }
        };
        tokio::time::timeout(limit, wait).await.map_err(|_| Error::TooSlow { step: "draining", limit })
    }
}

impl Handler for Probe {
    fn kind(&self) -> &'static str {
        "local"
    }

    fn target(&self) -> &'static str {
        "noop"
    }

    fn ends_at_once(&self) -> bool {
        true
    }

    fn run(&self, _: Dispatch) -> BoxFuture<'_, Outcome> {
        if let Some(starts) = &self.starts {
            let _ = starts.send(Instant::now());
        }
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 >= self.stop_at.load(Ordering::SeqCst) {
            self.reached.notify_one();
        }
        ready(Outcome::Done).boxed()
    }
}

struct OneHandler(Arc<Probe>);

impl Plans for OneHandler {
    fn plan(&self, _: &Family) -> FamilyPlan {
        FamilyPlan {
            handler: Some(self.0.clone()),
            unrouted_because: None,
            concurrency: u32::MAX,
            weight: 1,
            ordered: false,
            aimd: false,
            rate_per_s: None,
            slots: Slots::Handlers,
            breaker: None,
            timeout: Duration::from_secs(15),
            max_age: None,
            retry: RetryPolicy {
                attempts: 12,
                initial: Duration::from_secs(1),
                multiplier: 2.0,
                max: Duration::from_secs(600),
                full_jitter: true,
            },
        }
    }

    fn version(&self) -> u64 {
        0
    }

    fn hash(&self) -> String {
        "bench".into()
    }
}

/// The default settings.
pub(super) fn settings(concurrency: usize) -> Settings {
    Settings {
        concurrency,
        calls: 1,
        interval: Duration::from_secs(2),
        lease: Duration::from_secs(30),
        stall_after: Duration::from_secs(45),
        stop_deadline: Duration::from_secs(10),
        rules: Rules {
            aging: Duration::from_secs(300),
            fairness: Fairness::Drr,
            low_share: 5,
            first_window: 4,
            prefetch: crate::drainer::PREFETCH_IN_ALL,
            prefetch_bytes: 8 << 20,
        },
        retention: Retention {
            done: None,
            count: None,
            bytes: None,
            journal: Duration::from_secs(3600),
            journal_force_bytes: u64::MAX,
        },
        unsafe_eviction: false,
    }
}

/// A drainer with the default settings.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), crate::drainer::Error>>,
}

impl Running {
    /// Starts draining `bus` into `probe`.
    pub fn start(bus: &Bus, probe: Arc<Probe>, concurrency: usize) -> Self {
        let settings = settings(concurrency);
        let stop = CancellationToken::new();
        let drainer = Drainer::new(bus.separate(), settings, Arc::new(OneHandler(probe)));
        let task = tokio::spawn(drainer.run(stop.clone(), CancellationToken::new()));
        Self { stop, task }
    }

    /// Stops it and waits for its last completion.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// Fills and drains once, with the telemetry of this configuration or without any: ms to the first dispatch, events/s.
async fn round(redis: &Redis, plan: &Plan, telemetry: Option<&Config>) -> Result<(f64, f64), Error> {
    flush(redis).await?;
    let bus = bus(redis);
    fill(&bus, "bench/drain", Priority::P1, plan.events / 10 * 9, false).await?;
    fill(&bus, "bench/urgent", Priority::P0, plan.events / 10, false).await?;
    let count = plan.events / 10 * 9 + plan.events / 10;
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    if let Some(config) = telemetry {
        crate::service::start_telemetry(config, &bus, &stop, &mut tasks)
            .map_err(|error| Error::Part(error.to_string()))?;
    }
    let probe = Probe::new(None);
    let started = Instant::now();
    let drainer = Running::start(&bus, probe.clone(), plan.concurrency);
    probe.wait_for(1, Duration::from_secs(30)).await?;
    let first_ms = started.elapsed().as_secs_f64() * 1000.0;
    probe.wait_for(count, Duration::from_secs(120)).await?;
    // Until the last acknowledgement: stopping waits for it.
    drainer.stop().await;
    let per_s = rate(count, started.elapsed());
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    Ok((first_ms, per_s))
}

/// The same backlog with all of telemetry: the projections, the archive, and a collector that refuses connections.
pub async fn with_telemetry(redis: &Redis, plan: &Plan, config: &Config) -> Result<Scenario, Error> {
    let files = tempfile::tempdir().map_err(|error| Error::Part(error.to_string()))?;
    let mut config = config.clone();
    config.telemetry.is_enabled = true;
    config.telemetry.jsonl_is_enabled = true;
    config.telemetry.jsonl_dir = Some(files.path().to_owned());
    // Nothing listens on the discard port.
    config.telemetry.otlp_endpoint = Some("http://127.0.0.1:9".into());
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        without.push(round(redis, plan, None).await?.1);
        with.push(round(redis, plan, Some(&config)).await?.1);
    }
    flush(redis).await?;
    let (per_s, raw_per_s) = (median(&mut with), median(&mut without));
    Ok(Scenario {
        name: "drain_telemetry",
        per_s: Some(whole(per_s)),
        raw_per_s: Some(whole(raw_per_s)),
        ratio: Some(rounded(per_s / raw_per_s)),
        target: "≥ 90 % of a drain without telemetry",
        reached: per_s / raw_per_s >= 0.90,
        ..Scenario::default()
    })
}

/// Drains a backlog of `plan.events`, a tenth of them P0.
pub async fn run(redis: &Redis, plan: &Plan) -> Result<Scenario, Error> {
    let (mut ours, mut raws) = (Vec::new(), Vec::new());
    let mut first_dispatch = Vec::new();
    for _ in 0..plan.rounds {
        flush(redis).await?;
        raws.push(raw::drain(redis, plan.events).await?);
        let (first_ms, per_s) = round(redis, plan, None).await?;
        first_dispatch.push(first_ms);
        ours.push(per_s);
    }
    flush(redis).await?;
    let (per_s, raw_per_s) = (median(&mut ours), median(&mut raws));
    Ok(Scenario {
        name: "drain",
        per_s: Some(whole(per_s)),
        raw_per_s: Some(whole(raw_per_s)),
        ratio: Some(rounded(per_s / raw_per_s)),
        first_dispatch_ms: Some(rounded(median(&mut first_dispatch))),
        target: "≥ 60 % of raw XREADGROUP + XACK in batches of 128",
        reached: per_s / raw_per_s >= 0.60,
        ..Scenario::default()
    })
}
