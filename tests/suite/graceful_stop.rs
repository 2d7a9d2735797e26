//! A stop with a handler that does not end: it ends in time, says what it left, and the next drainer runs it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::drainer_support::Stage;
use crate::support::eventually;
use futures_util::future::BoxFuture;
use system_bus::drainer::handlers::{Dispatch, Handler, Outcome};
use system_bus::drainer::plan::{FamilyPlan, Plans, RetryPolicy};
use system_bus::drainer::scheduler::{Fairness, Rules, Slots};
use system_bus::drainer::{Drainer, PREFETCH_IN_ALL, Retention, Settings};
use system_bus::streams::family::Family;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_millis(500);

/// Tells of its start and then never ends, cancelled or not.
struct Stubborn(mpsc::UnboundedSender<String>);

impl Handler for Stubborn {
    fn kind(&self) -> &'static str {
        "local"
    }
    fn target(&self) -> &'static str {
        "stubborn"
    }
    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        self.0.send(dispatch.envelope.id.clone()).unwrap();
        Box::pin(std::future::pending())
    }
}

struct All(Arc<Stubborn>);

impl Plans for All {
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

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stop_abandons_is_said_and_run_by_the_next_drainer() {
    let stage = Stage::start().await;
    let settings = Settings {
        concurrency: 1,
        calls: 1,
        interval: Duration::from_millis(100),
        lease: Duration::from_secs(30),
        stall_after: LONG,
        stop_deadline: STOP_DEADLINE,
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
    let (start, mut starts) = mpsc::unbounded_channel();
    let drainer = Drainer::new(stage.bus.clone(), settings, Arc::new(All(Arc::new(Stubborn(start)))));
    let stop = CancellationToken::new();
    let running = tokio::spawn(drainer.run(stop.clone(), CancellationToken::new()));
    stage.emit("work/long", 6).await;
    let started = tokio::time::timeout(LONG, starts.recv()).await.unwrap().unwrap();
    // Some of the others are in its memory by now.
    let leased = eventually(LONG, || async {
        let leased = stage.bus.depth().await.unwrap().by_family[0].leased;
        if leased > 1 { Ok(leased) } else { Err(leased) }
    })
    .await;
    assert!(leased <= 6);

    let begin = Instant::now();
    stop.cancel();
    tokio::time::timeout(LONG, running).await.unwrap().unwrap().unwrap();
    let took = begin.elapsed();
    assert!(took >= STOP_DEADLINE && took < Duration::from_secs(5), "{took:?}");
    assert!(starts.try_recv().is_err(), "a stop starts nothing");
    let stopped = stage.facts_of("queue.drainer.stopped").await.remove(0).metadata;
    assert_eq!((&stopped["activeDispatches"], &stopped["abandoned"]), (&1.into(), &1.into()), "{stopped:?}");
    assert!(stopped["handedBack"].as_u64().unwrap() >= 1, "{stopped:?}");

    // Its lease is of 30 s, and nobody waits for that: it has said that it is gone.
    let begin = Instant::now();
    let joelclaw = stage.joelclaw("");
    let mut next = joelclaw.spawn(&["drainer"]);
    let requests = stage.sink.wait_for(6, LONG).await;
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    for request in &requests {
        let is_abandoned = request.header("x-event-id") == Some(&started);
        let expected = if is_abandoned { "2" } else { "1" };
        assert_eq!(request.header("x-attempt"), Some(expected), "only what had started is charged an attempt");
    }
    stage.wait_until_empty(LONG).await;
    assert_eq!(stage.sink.received().len(), 6, "each once");
    next.kill_9().await;
}
