//! Who comes next among many: families of one priority share evenly or by weight, and age lifts priority.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::drainer_support::{Stage, event, lane};
use futures_util::future::BoxFuture;
use system_bus::drainer::handlers::{Dispatch, Handler, Outcome};
use system_bus::drainer::plan::{FamilyPlan, Plans, RetryPolicy};
use system_bus::drainer::scheduler::{Fairness, Rules, Slots};
use system_bus::drainer::{Drainer, PREFETCH_IN_ALL, Retention, Settings};
use system_bus::streams::append::NewEvent;
use system_bus::streams::envelope::Envelope;
use system_bus::streams::family::Family;
use system_bus::streams::json::JsonObject;
use system_bus::streams::priority::Priority;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

/// Remembers the families in the order of their starts.
struct Order {
    seen: Mutex<Vec<String>>,
    takes: Duration,
}

impl Order {
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Handler for Order {
    fn kind(&self) -> &'static str {
        "local"
    }
    fn target(&self) -> &'static str {
        "order"
    }
    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        self.seen.lock().unwrap().push(dispatch.envelope.name.to_string());
        Box::pin(async move {
            tokio::time::sleep(self.takes).await;
            Outcome::Done
        })
    }
}

/// One handler for all; `heavy/*` weighs three times as much.
struct Weighed(Arc<Order>);

impl Plans for Weighed {
    fn plan(&self, family: &Family) -> FamilyPlan {
        FamilyPlan {
            handler: Some(self.0.clone()),
            unrouted_because: None,
            concurrency: u32::MAX,
            weight: if family.as_str().starts_with("heavy/") { 3 } else { 1 },
            ordered: false,
            aimd: false,
            rate_per_s: None,
            slots: Slots::Handlers,
            breaker: None,
            timeout: LONG,
            max_age: None,
            retry: RetryPolicy {
                attempts: 3,
                initial: Duration::from_secs(1),
                multiplier: 2.0,
                max: LONG,
                full_jitter: true,
            },
        }
    }
    fn version(&self) -> u64 {
        0
    }
    fn hash(&self) -> String {
        "test".into()
    }
}

fn envelope(name: &str) -> Vec<u8> {
    let envelope = Envelope {
        v: 1,
        id: "aged".into(),
        name: name.parse().unwrap(),
        source: "test".into(),
        ts: 1,
        data: JsonObject::default(),
        priority: Priority::P3,
        dedup_key: None,
        trace: None,
        triage: None,
        meta: None,
    };
    envelope.encode().unwrap()
}

/// Long enough that handlers are what everything waits for. Were reading that, a family whose turn it is could find
/// nothing of its own in memory, and its turn would rightly go to another.
const WORK: Duration = Duration::from_millis(1);

/// Drains everything and returns the families in the order of their starts.
async fn drain(stage: &Stage, concurrency: usize, takes: Duration) -> Vec<String> {
    let settings = Settings {
        concurrency,
        calls: 1,
        interval: Duration::from_millis(100),
        lease: Duration::from_secs(30),
        stall_after: Duration::from_secs(30),
        stop_deadline: Duration::from_secs(1),
        rules: Rules {
            aging: Duration::from_secs(300),
            fairness: Fairness::Drr,
            low_share: 5,
            first_window: 4,
            prefetch: PREFETCH_IN_ALL,
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
    };
    let order = Arc::new(Order { seen: Mutex::default(), takes });
    let drainer = Drainer::new(stage.bus.clone(), settings, Arc::new(Weighed(order.clone())));
    let stop = CancellationToken::new();
    let running = tokio::spawn(drainer.run(stop.clone(), CancellationToken::new()));
    stage.wait_until_empty(LONG).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    order.seen()
}

fn share(order: &[String], family: &str) -> usize {
    order.iter().take(1_000).filter(|name| *name == family).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_families_of_one_priority_share_evenly() {
    let stage = Stage::start().await;
    stage.emit("even/one", 2_000).await;
    stage.emit("even/two", 2_000).await;
    let order = drain(&stage, 4, WORK).await;
    assert_eq!(order.len(), 4_000, "each once");
    let (one, two) = (share(&order, "even/one"), share(&order, "even/two"));
    assert!(one.abs_diff(500) <= 25, "{one}:{two}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weight_of_three_gets_three_of_four() {
    let stage = Stage::start().await;
    stage.emit("light/event", 3_000).await;
    stage.emit("heavy/event", 3_000).await;
    let order = drain(&stage, 4, WORK).await;
    assert_eq!(order.len(), 6_000, "each once");
    // All the way, not only while the first read lasts.
    let of_heavy = |order: &[String]| order.iter().filter(|name| *name == "heavy/event").count();
    let shares: Vec<usize> = order.chunks(1_000).take(3).map(of_heavy).collect();
    assert!(shares.iter().all(|share| share.abs_diff(750) <= 25), "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aged_p3_goes_before_fresh_p2_and_the_journal_says_so() {
    let stage = Stage::start().await;
    let fresh = |n: usize| NewEvent { priority: Priority::P2, ..event("fresh/event", &format!("{{\"n\":{n}}}")) };
    stage.appender.append((0..5_000).map(fresh).collect()).await.unwrap();
    let aged = lane("aged/event", Priority::P3);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    stage.plant(&aged, &format!("{}-0", now - 600_000), &envelope("aged/event")).await;

    let order = drain(&stage, 1, Duration::ZERO).await;
    assert_eq!(order.len(), 5_001);
    let place = order.iter().position(|name| name == "aged/event").unwrap();
    assert!(place < 10, "started as number {place}");
    let started = stage.facts_of("queue.dispatch.started").await;
    let aged = started.iter().find(|fact| fact.event_id.as_deref() == Some("aged")).unwrap();
    assert_eq!(aged.metadata["promotedFrom"], 3);
}
