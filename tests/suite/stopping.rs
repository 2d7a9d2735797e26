//! Ends of a drainer: on request, by an event that kills it, by its watchdog.

use std::sync::Arc;
use std::time::Duration;

use crate::drainer_support::Stage;
use crate::support::{Reply, eventually};
use futures_util::future::BoxFuture;
use system_bus::drainer::handlers::{Dispatch, Handler, Outcome};
use system_bus::drainer::plan::{FamilyPlan, Plans, RetryPolicy};
use system_bus::drainer::scheduler::{Fairness, Rules, Slots};
use system_bus::drainer::{Drainer, Retention, Settings, watchdog};
use system_bus::streams::dead::DeadFilter;
use system_bus::streams::family::Family;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_handlers_up_to_its_deadline_then_hands_over() {
    let stage = Stage::start().await;
    let joelclaw = stage.joelclaw("");
    joelclaw.env_file_line("QUEUE_STOP_DEADLINE_MS", "500");
    joelclaw.env_file_line("QUEUE_DRAINER_CONCURRENCY", "2");
    stage.sink.reply_next([Reply::hang(), Reply::hang()]);
    let mut first = joelclaw.spawn(&["drainer"]);
    stage.emit("work/long", 6).await;
    stage.sink.wait_for(2, LONG).await;
    first.terminate();
    let ended = first.wait_exit(Duration::from_secs(10)).await;
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let stopped = stage.facts_of("queue.drainer.stopped").await;
    assert_eq!(stopped[0].metadata["activeDispatches"], 2);
    let mut second = joelclaw.spawn(&["drainer"]);
    stage.wait_until_empty(LONG).await;
    let requests = stage.sink.received();
    assert_eq!(requests.len(), 8);
    let seconds = requests.iter().filter(|request| request.header("x-attempt") == Some("2")).count();
    assert_eq!(seconds, 2, "what had started is charged an attempt, what had not is not");
    second.kill_9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kills_its_drainer_ends_alone_and_the_innocent_complete() {
    let stage = Stage::start().await;
    let extra = "[[event]]\nname = \"deadly/event\"\nattempts = 3\n\
                 handler = { type = \"command\", program = \"/bin/sh\", args = [\"-c\", \"kill -9 $PPID; sleep 5\"] }\n\
                 [[event]]\npattern = \"innocent/*\"\nattempts = 3\n\
                 handler = { type = \"command\", program = \"/bin/sh\", args = [\"-c\", \"sleep 0.2\"] }\n";
    let joelclaw = stage.joelclaw(extra);
    joelclaw.env_file_line("QUEUE_DRAIN_LEASE_MS", "1000");
    stage.emit("deadly/event", 1).await;
    stage.emit("innocent/event", 15).await;
    let mut deaths = 0;
    let letter = loop {
        let mut drainer = joelclaw.spawn(&["drainer"]);
        let letter = loop {
            let page = stage.bus.dead_letters(&DeadFilter::default(), None, 10, 100).await.unwrap();
            if let Some(letter) = page.letters.into_iter().next() {
                break Some(letter);
            }
            if !drainer.is_running() {
                break None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        if let Some(letter) = letter {
            stage.wait_until_empty(LONG).await;
            drainer.kill_9().await;
            break letter;
        }
        deaths += 1;
        assert!(deaths < 10, "the killer is not found");
    };
    assert_eq!(letter.reason(), "crashed_process");
    assert_eq!(letter.event.unwrap().name.as_str(), "deadly/event");
    assert_eq!(stage.completions().await.len(), 15);
}

struct Blocks;

impl Handler for Blocks {
    fn kind(&self) -> &'static str {
        "local"
    }
    fn target(&self) -> &'static str {
        "blocks"
    }
    fn ends_at_once(&self) -> bool {
        true
    }
    fn run(&self, _: Dispatch) -> BoxFuture<'_, Outcome> {
        // What a handler that lies about ending at once does to the loop.
        std::thread::sleep(Duration::from_secs(4));
        Box::pin(std::future::ready(Outcome::Done))
    }
}

struct Only(Option<Arc<dyn Handler>>);

impl Plans for Only {
    fn plan(&self, _: &Family) -> FamilyPlan {
        FamilyPlan {
            handler: self.0.clone(),
            unrouted_because: None,
            concurrency: u32::MAX,
            weight: 1,
            ordered: false,
            aimd: false,
            rate_per_s: None,
            slots: Slots::Handlers,
            breaker: None,
            timeout: Duration::from_secs(60),
            max_age: None,
            retry: RetryPolicy {
                attempts: 3,
                initial: Duration::from_secs(1),
                multiplier: 2.0,
                max: Duration::from_secs(60),
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

fn drainer(stage: &Stage, handler: Option<Arc<dyn Handler>>) -> Drainer {
    let settings = Settings {
        concurrency: 4,
        calls: 1,
        interval: Duration::from_millis(100),
        lease: Duration::from_secs(30),
        stall_after: Duration::from_secs(1),
        stop_deadline: Duration::from_secs(1),
        rules: Rules {
            aging: Duration::from_secs(300),
            fairness: Fairness::Drr,
            low_share: 5,
            first_window: 4,
            prefetch: 64,
            prefetch_bytes: 1 << 20,
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
    Drainer::new(stage.bus.clone(), settings, Arc::new(Only(handler)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_loop_is_a_stall_that_the_watchdog_reports() {
    let stage = Stage::start().await;
    let drainer = drainer(&stage, Some(Arc::new(Blocks)));
    let (report, reported) = tokio::sync::oneshot::channel();
    let second = Duration::from_secs(1);
    let on_stall = Box::new(move |stall| drop(report.send(stall)));
    watchdog::start(stage.bus.clone(), drainer.vitals(), second, second, on_stall).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(drainer.run(stop.clone(), CancellationToken::new()));
    stage.emit("work/blocks", 2).await;
    let stall = tokio::time::timeout(LONG, reported).await.unwrap().unwrap();
    assert_eq!(stall.reason, "tick_hung");
    let stalled = eventually(LONG, || async {
        let facts = stage.facts_of("queue.drainer.stalled").await;
        facts.into_iter().next().ok_or("no record yet")
    })
    .await;
    assert_eq!(stalled.error.as_deref(), Some("queue drainer stalled: tick_hung"));
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_route_is_no_stall() {
    let stage = Stage::start().await;
    let drainer = drainer(&stage, None);
    let (report, mut reported) = tokio::sync::oneshot::channel();
    let second = Duration::from_secs(1);
    let on_stall = Box::new(move |stall| drop(report.send(stall)));
    watchdog::start(stage.bus.clone(), drainer.vitals(), second, second, on_stall).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(drainer.run(stop.clone(), CancellationToken::new()));
    stage.emit("work/held", 1_000).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(reported.try_recv().is_err(), "explained depth is never a stall");
    stop.cancel();
    running.await.unwrap().unwrap();
}
