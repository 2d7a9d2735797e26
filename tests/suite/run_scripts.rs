//! Every script of runs on a real Redis: what it does, twice, and as a loser.
use crate::common_streams::TestBus;
use serde_json::json;
use system_bus::functions::ids;
use system_bus::functions::registry::{Registration, Registry};
use system_bus::functions::store::{
    Advance, Advanced, Begun, Bounds, End, Filter, Guard, Limits, NewRun, Reconciled, Runs, Scheduled, Status, Wait,
    work_lane,
};
use system_bus::streams::priority::Priority;

const LIMITS: Limits = Limits { steps: 10, state_bytes: 1_000 };
const KEEP_MS: u64 = 60_000;
const NOTE: &str = r#"{"type":"Remark"}"#;

struct Stage {
    t: TestBus,
    runs: Runs,
}

impl Stage {
    async fn start() -> Self {
        let t = TestBus::start().await;
        let runs = Runs::new(t.bus.clone());
        Self { t, runs }
    }

    fn new_run(&self, id: &str) -> NewRun {
        let function = ids::function_id(ids::app_id("app"), "app-f");
        NewRun {
            id: id.to_owned(),
            function: "app-f".into(),
            function_id: function,
            app: "app".into(),
            lane: work_lane("app-f", function, Priority::P2),
            events: vec![r#"{"data":{},"id":"e","name":"a/b","ts":1,"user":{}}"#.into()],
            event_ids: vec!["e".into()],
            correlation: None,
            cause: "event",
            at: None,
            start_timeout_ms: None,
            finish_timeout_ms: None,
            cancels: Vec::new(),
            bounds: Bounds::default(),
        }
    }

    /// A run that has begun its first call, and the entry that carries it.
    async fn begun(&self) -> (Begun, String) {
        let new = self.new_run("RUN1");
        assert_eq!(self.runs.start(std::slice::from_ref(&new)).await.unwrap(), [Scheduled::New]);
        let entry = self.entries().await.pop().unwrap();
        (self.runs.begin("RUN1", "d", &entry, 0).await.unwrap().begun().unwrap(), entry)
    }

    /// Ids of the work items, oldest first.
    async fn entries(&self) -> Vec<String> {
        let lane = self.new_run("x").lane;
        let reply: redis::streams::StreamRangeReply = self
            .t
            .bus
            .redis
            .query(redis::cmd("XRANGE").arg(self.t.bus.keys.lane(&lane)).arg("-").arg("+"))
            .await
            .unwrap();
        reply.ids.into_iter().map(|row| row.id).collect()
    }

    async fn live(&self) -> Vec<String> {
        let mut fields: Vec<String> = self.runs.live("RUN1").await.unwrap().into_keys().collect();
        fields.sort();
        fields
    }

    async fn timers(&self) -> Vec<String> {
        let key = format!("{}:fn:timers", self.t.bus.keys.tag());
        self.t.bus.redis.query(redis::cmd("ZRANGE").arg(key).arg(0).arg(-1)).await.unwrap()
    }
}

fn thread<'a>(begun: &'a Begun, entry: &'a str) -> Guard<'a> {
    Guard::Thread { thread: &begun.thread, generation: begun.generation, entry: Some(entry) }
}

fn advance<'a>(guard: Guard<'a>) -> Advance<'a> {
    Advance::new("RUN1", guard, LIMITS, KEEP_MS)
}

fn next(advanced: Advanced) -> Option<(String, u64)> {
    match advanced {
        Advanced::On { next, .. } => next,
        other => panic!("{other:?}"),
    }
}

// start.lua

#[tokio::test]
async fn a_run_is_created_once_with_its_work_item_and_its_cancellations() {
    let stage = Stage::start().await;
    let mut new = stage.new_run("RUN1");
    let wait = Wait { condition: None, event: json!(null), since_ms: 1, until_ms: None, sought: None };
    new.cancels.push(("a/stop".into(), wait.clone()));
    new.start_timeout_ms = Some(5_000);
    assert_eq!(stage.runs.start(std::slice::from_ref(&new)).await.unwrap(), [Scheduled::New]);
    assert_eq!(
        stage.runs.start(&[new, stage.new_run("RUN2")]).await.unwrap(),
        [Scheduled::Known { skipped: None }, Scheduled::New]
    );
    assert_eq!(stage.entries().await.len(), 2);
    assert_eq!(stage.runs.waits("a/stop", &json!({})).await.unwrap(), [("RUN1".into(), "c:1".into(), wait)]);
    assert_eq!(stage.timers().await, ["S|RUN1|"]);
    let page = stage.runs.list(&Filter { status: vec![Status::Queued], limit: 9, ..Filter::default() }).await.unwrap();
    assert_eq!(page.total, 2);
    assert_eq!(stage.t.actions().await.iter().filter(|action| *action == "function.run.queued").count(), 2);
}

// begin.lua

#[tokio::test]
async fn a_thread_is_taken_up_under_the_entry_that_carries_it_only() {
    let stage = Stage::start().await;
    let (first, entry) = stage.begun().await;
    assert_eq!((first.attempt, first.generation, first.run.status), (0, 1, Status::Running));
    let again = stage.runs.begin("RUN1", "d", &entry, 0).await.unwrap().begun().unwrap();
    assert_eq!(again.generation, 2);
    assert!(stage.runs.begin("RUN1", "d", "1-1", 0).await.unwrap().begun().is_none(), "another entry");
    assert!(stage.runs.begin("RUN1", "x", "1-1", 0).await.unwrap().begun().is_none(), "another thread");
    assert!(stage.runs.begin("NONE", "d", &entry, 0).await.unwrap().begun().is_none(), "no such run");
    // The first worker comes late: nothing of what it says is written.
    let mut late = advance(thread(&first, &entry));
    late.memo("s1", "{}".into(), NOTE.into());
    assert_eq!(stage.runs.advance(late).await.unwrap(), Advanced::Stale);
    assert!(stage.runs.steps("RUN1").await.unwrap().is_empty());
}

// advance.lua

#[tokio::test]
async fn a_step_is_memoized_once_and_the_caller_goes_on_under_its_entry() {
    let stage = Stage::start().await;
    let (begun, entry) = stage.begun().await;
    let mut first = advance(thread(&begun, &entry));
    first.request_version(Some(1));
    first.memo("s1", r#"{"data":1}"#.into(), NOTE.into());
    first.memo("s1", r#"{"data":2}"#.into(), NOTE.into());
    assert_eq!(next(stage.runs.advance(first).await.unwrap()), Some(("d".into(), 2)), "a later generation");
    assert_eq!(stage.runs.steps("RUN1").await.unwrap(), [("s1".into(), r#"{"data":1}"#.into())]);
    assert_eq!(stage.entries().await.len(), 1, "no further work item");
    // A crash here: the entry still leads to the thread, whatever it names.
    let taken = stage.runs.begin("RUN1", "gone", &entry, 0).await.unwrap().begun().unwrap();
    assert_eq!((taken.thread.as_str(), taken.stack.len(), taken.run.version), ("d", 1, 1));
}

#[tokio::test]
async fn a_fan_out_is_joined_by_one_discovery() {
    let stage = Stage::start().await;
    let (begun, entry) = stage.begun().await;
    let mut planned = advance(thread(&begun, &entry));
    planned.request_version(Some(2));
    planned.fan_out(&["p1", "p2", "nap"], true);
    planned.plan("p1", false, NOTE.into());
    planned.plan("p2", false, NOTE.into());
    planned.sleep("nap", false, 60_000, NOTE.into());
    assert_eq!(next(stage.runs.advance(planned).await.unwrap()), Some(("p1".into(), 2)));
    let entries = stage.entries().await;
    assert_eq!(entries.len(), 2, "the second branch has a work item of its own");
    let p2 = stage.runs.begin("RUN1", "p2", &entries[1], 0).await.unwrap().begun().unwrap();
    assert!(p2.run.force_plan);

    let mut done = advance(Guard::Thread { thread: "p1", generation: 2, entry: Some(&entry) });
    done.memo("p1", "1".into(), NOTE.into());
    assert_eq!(next(stage.runs.advance(done).await.unwrap()), None, "others are under way");
    let mut woke = advance(Guard::Step { step: "nap", kind: "sleep" });
    woke.memo("nap", "null".into(), NOTE.into());
    assert_eq!(next(stage.runs.advance(woke).await.unwrap()), None);
    assert!(stage.timers().await.is_empty());
    let mut last = advance(thread(&p2, &entries[1]));
    last.memo("p2", "2".into(), NOTE.into());
    assert_eq!(next(stage.runs.advance(last).await.unwrap()), Some(("d".into(), 4)));
    let order: Vec<String> = stage.runs.steps("RUN1").await.unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(order, ["p1", "nap", "p2"]);
    let mut twice = advance(Guard::Step { step: "nap", kind: "sleep" });
    twice.memo("nap", "1".into(), NOTE.into());
    assert_eq!(stage.runs.advance(twice).await.unwrap(), Advanced::Stale);
}

#[tokio::test]
async fn what_completes_during_a_discovery_is_followed_by_another() {
    let stage = Stage::start().await;
    let (begun, entry) = stage.begun().await;
    let mut waits = advance(thread(&begun, &entry));
    waits.request_version(Some(1));
    waits.sleep("one", false, 60_000, NOTE.into());
    waits.sleep("two", false, 60_000, NOTE.into());
    assert_eq!(next(stage.runs.advance(waits).await.unwrap()), None);
    for step in ["one", "two"] {
        let mut woke = advance(Guard::Step { step, kind: "sleep" });
        woke.memo(step, "null".into(), NOTE.into());
        stage.runs.advance(woke).await.unwrap();
    }
    let entries = stage.entries().await;
    assert_eq!(entries.len(), 2, "one discovery is queued, not two");
    let discovery = stage.runs.begin("RUN1", "d", &entries[1], 0).await.unwrap().begun().unwrap();
    let mut nothing = advance(thread(&discovery, &entries[1]));
    nothing.empty_answer();
    assert_eq!(next(stage.runs.advance(nothing).await.unwrap()), Some(("d".into(), 3)));
}

#[tokio::test]
async fn a_retry_waits_in_the_timers_and_counts_its_attempt() {
    let stage = Stage::start().await;
    let (begun, entry) = stage.begun().await;
    let mut failed = advance(thread(&begun, &entry));
    failed.retry(1, NOTE.into());
    assert_eq!(next(stage.runs.advance(failed).await.unwrap()), None);
    assert!(stage.runs.begin("RUN1", "d", &entry, 0).await.unwrap().begun().is_none(), "not before it is due");
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let (due, _, _) = stage.runs.due_timers(9).await.unwrap();
    assert_eq!(due, ["t|RUN1|d"]);
    for expected in [true, false] {
        let mut again = advance(Guard::Timer("t|RUN1|d"));
        again.requeue("d");
        assert_eq!(matches!(stage.runs.advance(again).await.unwrap(), Advanced::On { .. }), expected);
    }
    let entries = stage.entries().await;
    let second = stage.runs.begin("RUN1", "d", entries.last().unwrap(), 0).await.unwrap().begun().unwrap();
    assert_eq!((entries.len(), second.attempt, second.generation), (2, 1, 2));
}

#[tokio::test]
async fn a_checkpoint_stores_and_starts_attempts_anew_without_ending_the_call() {
    let stage = Stage::start().await;
    let (begun, entry) = stage.begun().await;
    let guard = Guard::Thread { thread: "d", generation: begun.generation, entry: None };
    let mut report = advance(guard);
    report.checkpoint();
    report.memo("s1", "1".into(), NOTE.into());
    assert_eq!(next(stage.runs.advance(report).await.unwrap()), None);
    stage.runs.begin("RUN1", "d", &entry, 0).await.unwrap().begun().unwrap();
    let mut late = advance(guard);
    late.checkpoint();
    late.memo("s2", "2".into(), NOTE.into());
    assert_eq!(stage.runs.advance(late).await.unwrap(), Advanced::Stale);
}

#[tokio::test]
async fn limits_and_conflicts_write_nothing() {
    let stage = Stage::start().await;
    let (begun, entry) = stage.begun().await;
    let mut many = advance(thread(&begun, &entry));
    for step in 0..11 {
        many.memo(&format!("s{step}"), "1".into(), NOTE.into());
    }
    assert_eq!(stage.runs.advance(many).await.unwrap(), Advanced::Limit("steps".into()));
    let mut large = advance(thread(&begun, &entry));
    large.memo("s", "x".repeat(1_001), NOTE.into());
    assert_eq!(stage.runs.advance(large).await.unwrap(), Advanced::Limit("state".into()));
    let key = format!("{}:fn:signals", stage.t.bus.keys.tag());
    let _: u64 = stage.t.bus.redis.query(redis::cmd("HSET").arg(key).arg("go").arg("OTHER|s")).await.unwrap();
    let mut signal = advance(thread(&begun, &entry));
    signal.signal("s", false, "go", false, 1_000, NOTE.into());
    assert_eq!(stage.runs.advance(signal).await.unwrap(), Advanced::Conflict("go".into()));
    assert!(stage.runs.steps("RUN1").await.unwrap().is_empty());
    let mut takes = advance(thread(&begun, &entry));
    takes.signal("s", false, "go", true, 1_000, NOTE.into());
    assert_eq!(next(stage.runs.advance(takes).await.unwrap()), None);
    assert_eq!(stage.runs.signal_waiter("go").await.unwrap(), Some(("RUN1".into(), "s".into())));
}

#[tokio::test]
async fn an_answer_of_nothing_is_asked_again_and_not_for_ever() {
    let stage = Stage::start().await;
    let (mut begun, entry) = stage.begun().await;
    let mut asked = 0;
    loop {
        let mut nothing = advance(thread(&begun, &entry));
        nothing.empty_answer();
        match stage.runs.advance(nothing).await.unwrap() {
            Advanced::On { next: Some((thread, generation)), .. } => {
                asked += 1;
                assert_eq!(thread, "d");
                begun.generation = generation;
            }
            Advanced::Stuck => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, 3);
}

#[tokio::test]
async fn a_run_ends_once_and_takes_everything_that_waited_with_it() {
    let stage = Stage::start().await;
    let (begun, entry) = stage.begun().await;
    let mut waits = advance(thread(&begun, &entry));
    let wait = Wait { condition: None, event: json!(null), since_ms: 0, until_ms: None, sought: None };
    waits.wait("w", false, "a/awaited", &wait, 60_000, NOTE.into());
    waits.sleep("nap", false, 60_000, NOTE.into());
    stage.runs.advance(waits).await.unwrap();
    assert_eq!(stage.timers().await.len(), 2);
    for expected in [true, false] {
        let mut end = advance(Guard::Any);
        end.end(End { status: Status::Cancelled, output: "", error: "", why: "by a test", events: Vec::new() });
        let advanced = stage.runs.advance(end).await.unwrap();
        assert_eq!(advanced != Advanced::Ended, expected);
    }
    let run = stage.runs.run("RUN1").await.unwrap().unwrap();
    assert_eq!((run.status, run.why.as_deref()), (Status::Cancelled, Some("by a test")));
    assert!(stage.timers().await.is_empty() && stage.live().await.is_empty());
    assert!(stage.runs.waits("a/awaited", &json!({})).await.unwrap().is_empty());
    let ends = stage.runs.details("RUN1").await.unwrap().history;
    assert_eq!(ends.iter().filter(|(_, entry)| entry["type"] == "FunctionCancelled").count(), 1);
}

// reconcile.lua

#[tokio::test]
async fn a_run_whose_work_item_is_gone_is_queued_again_and_given_up_at_last() {
    let stage = Stage::start().await;
    stage.begun().await;
    assert_eq!(stage.runs.reconcile("RUN1", 0).await.unwrap(), Reconciled::Going);
    for _ in 0..3 {
        let lane = stage.t.bus.keys.lane(&stage.new_run("x").lane);
        let _: u64 = stage.t.bus.redis.query(redis::cmd("XTRIM").arg(&lane).arg("MAXLEN").arg(0)).await.unwrap();
        assert_eq!(stage.runs.reconcile("RUN1", 0).await.unwrap(), Reconciled::Repaired);
        assert_eq!(stage.runs.reconcile("RUN1", 0).await.unwrap(), Reconciled::Going);
        let entry = stage.entries().await.pop().unwrap();
        assert!(stage.runs.begin("RUN1", "d", &entry, 0).await.unwrap().begun().is_some());
    }
    let lane = stage.t.bus.keys.lane(&stage.new_run("x").lane);
    let _: u64 = stage.t.bus.redis.query(redis::cmd("XTRIM").arg(&lane).arg("MAXLEN").arg(0)).await.unwrap();
    assert_eq!(stage.runs.reconcile("RUN1", 0).await.unwrap(), Reconciled::Lost);
    assert_eq!(stage.runs.reconcile("NONE", 0).await.unwrap(), Reconciled::Ended);
}

// register.lua

#[tokio::test]
async fn an_app_replaces_its_functions_and_modified_is_what_really_changed() {
    let stage = Stage::start().await;
    let registry = Registry::new(stage.t.bus.clone());
    let app = |functions: &[&str]| {
        let functions: Vec<_> =
            functions.iter().map(|id| json!({"id": id, "triggers": [{"event": format!("on/{id}")}]})).collect();
        let body = json!({"appName": "app", "url": "http://127.0.0.1:1/api/inngest", "functions": functions});
        Registration::parse(&body, None).unwrap()
    };
    assert!(registry.register(&app(&["app-a", "app-b"])).await.unwrap().modified);
    assert!(!registry.register(&app(&["app-a", "app-b"])).await.unwrap().modified);
    assert!(registry.register(&app(&["app-b", "app-c"])).await.unwrap().modified);
    let known = registry.current();
    assert!(!known.is_served("app-a") && known.functions.contains_key("app-a"), "archived, not deleted");
    assert!(known.wants("on/app-c") && !known.wants("on/app-a"));
    // A registry that lost a function never says that nothing changed.
    let key = format!("{}:fn:functions", stage.t.bus.keys.tag());
    let _: u64 = stage.t.bus.redis.query(redis::cmd("HDEL").arg(key).arg("app-c")).await.unwrap();
    assert!(registry.register(&app(&["app-b", "app-c"])).await.unwrap().modified);
    assert!(registry.remove("app").await.unwrap());
    assert!(!registry.remove("app").await.unwrap());
    assert!(!registry.current().is_served("app-b"));
}

#[tokio::test]
async fn waits_of_a_busy_event_are_found_by_the_value_they_seek() {
    let stage = Stage::start().await;
    let sought = |user: &str| Some((vec!["data".to_owned(), "user".to_owned()], json!(user)));
    let wait = |user: Option<&str>| Wait {
        condition: None,
        event: json!(null),
        since_ms: 1,
        until_ms: None,
        sought: user.and_then(sought),
    };
    for (id, user) in [("RUN1", Some("a")), ("RUN2", Some("b")), ("RUN3", None)] {
        let mut new = stage.new_run(id);
        new.cancels.push(("a/stop".into(), wait(user)));
        stage.runs.start(&[new]).await.unwrap();
    }
    let found = async |data: serde_json::Value| -> Vec<String> {
        let event = json!({ "data": data });
        let mut found: Vec<String> =
            stage.runs.waits("a/stop", &event).await.unwrap().into_iter().map(|(run, ..)| run).collect();
        found.sort();
        found
    };
    assert_eq!(found(json!({"user": "a"})).await, ["RUN1", "RUN3"]);
    assert_eq!(found(json!({"user": "b"})).await, ["RUN2", "RUN3"]);
    assert_eq!(found(json!({})).await, ["RUN3"]);
    // A run that ends takes its wait with it, and the last one the event's name.
    for id in ["RUN1", "RUN2", "RUN3"] {
        let mut end = Advance::new(id, Guard::Any, LIMITS, KEEP_MS);
        end.end(End { status: Status::Cancelled, output: "", error: "", why: "test", events: Vec::new() });
        stage.runs.advance(end).await.unwrap();
    }
    assert!(found(json!({"user": "a"})).await.is_empty());
    let keep = system_bus::functions::store::Keep { done_ms: KEEP_MS, failed_ms: KEEP_MS };
    stage.runs.tidy(keep).await.unwrap();
    let left: Vec<String> = stage.t.cmd(&["HKEYS", &format!("{}:fn:waited", stage.t.bus.keys.tag())]).await;
    assert!(left.is_empty());
}
