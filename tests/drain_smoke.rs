#![allow(clippy::unwrap_used, missing_docs)]
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use system_bus::drainer::handlers::{Dispatch, Handler, Outcome};
use system_bus::drainer::plan::{FamilyPlan, Plans, RetryPolicy};
use system_bus::drainer::scheduler::{Fairness, Rules};
use system_bus::drainer::{Drainer, Settings};
use system_bus::streams::append::{Appender, NewEvent};
use system_bus::streams::bus::Bus;
use system_bus::streams::family::Family;
use system_bus::streams::json::JsonObject;
use system_bus::streams::priority::Priority;
use system_bus::streams::redis::Redis;
use tokio_util::sync::CancellationToken;

struct Noop(AtomicU64);
impl Handler for Noop {
    fn kind(&self) -> &'static str {
        "local"
    }
    fn target(&self) -> &str {
        "noop"
    }
    fn run(&self, _d: Dispatch) -> BoxFuture<'_, Outcome> {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Outcome::Done).boxed()
    }
}
struct P(Arc<Noop>);
impl Plans for P {
    fn plan(&self, _f: &Family) -> FamilyPlan {
        FamilyPlan {
            handler: Some(self.0.clone()),
            unrouted_because: None,
            concurrency: 1000,
            weight: 1,
            ordered: false,
            rate_per_s: None,
            timeout: Duration::from_secs(15),
            max_age: None,
            retry: RetryPolicy {
                attempts: 3,
                initial: Duration::from_millis(10),
                multiplier: 2.0,
                max: Duration::from_secs(1),
                full_jitter: true,
            },
        }
    }
    fn version(&self) -> u64 {
        0
    }
    fn hash(&self) -> String {
        "x".into()
    }
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smoke() {
    let _ = tracing_subscriber::fmt().with_env_filter("info").try_init();
    let url = std::env::var("SMOKE_REDIS").unwrap();
    let n: u64 = std::env::var("SMOKE_N").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let bus = Bus::new(Redis::open(&url, &url).unwrap(), "smoke");
    let appender = Appender::start(&bus, Default::default());
    let ev = || NewEvent {
        id: None,
        name: "a/b.c".parse().unwrap(),
        source: "cli".into(),
        ts: None,
        data: JsonObject::parse(&format!("{{\"x\":\"{}\"}}", "y".repeat(190))).unwrap(),
        priority: Priority::P1,
        dedup_key: None,
        dedup_window: None,
        once: None,
        trace: None,
        triage: None,
        meta: None,
        at: None,
        unrouted: false,
    };
    let t = Instant::now();
    let mut tasks = vec![];
    for _ in 0..8 {
        let a = appender.clone();
        let per = n / 800;
        tasks.push(tokio::spawn(async move {
            for _ in 0..per {
                a.append((0..100).map(|_| ev()).collect()).await.unwrap();
            }
        }));
    }
    for t in tasks {
        t.await.unwrap();
    }
    println!("append {:.0}/s", n as f64 / t.elapsed().as_secs_f64());
    let noop = Arc::new(Noop(AtomicU64::new(0)));
    let d = Drainer::new(
        bus.clone(),
        Settings {
            concurrency: 64,
            interval: Duration::from_secs(2),
            lease: Duration::from_secs(30),
            stall_after: Duration::from_secs(45),
            stop_deadline: Duration::from_secs(10),
            rules: Rules {
                aging: Duration::from_secs(300),
                fairness: Fairness::Drr,
                low_share: 5,
                prefetch: 256,
                prefetch_bytes: 8 << 20,
            },
            unsafe_eviction: false,
        },
        Arc::new(P(noop.clone())),
    );
    let stop = CancellationToken::new();
    let t = Instant::now();
    let h = tokio::spawn(d.run(stop.clone(), CancellationToken::new()));
    while noop.0.load(Ordering::Relaxed) < n {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(t.elapsed().as_secs() < 60, "{}", noop.0.load(Ordering::Relaxed));
    }
    println!("drain {:.0}/s", n as f64 / t.elapsed().as_secs_f64());
    // idle latency
    stop.cancel();
    let t = Instant::now();
    h.await.unwrap().unwrap();
    println!("stop {:?}; pending {:?}", t.elapsed(), bus.waiting_estimate(&bus.lanes().await.unwrap()).await);
}
