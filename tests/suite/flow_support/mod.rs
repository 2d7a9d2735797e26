//! Flow control on a real Redis under a clock that the test sets: events go in as the drainer hands them over, calls are
//! taken up and ended as a worker does it.
#![allow(dead_code)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use system_bus::config::MissedTicks;
use system_bus::drainer::handlers::{Dispatch, Handler as _, Outcome};
use system_bus::functions::engine::{Engine, EventHandler, Settings};
use system_bus::functions::ids;
use system_bus::functions::inngest::signing::Keys;
use system_bus::functions::registry::{Registration, Registry};
use system_bus::functions::store::{Advance, Advanced, Begun, End, Guard, Keep, Limits, Run, Runs, Status, Taken};
use system_bus::streams::append::Appender;
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::envelope::Envelope;
use system_bus::streams::json::JsonObject;
use system_bus::streams::lane::Lane;
use system_bus::streams::priority::Priority;
use tokio_util::sync::CancellationToken;

use crate::common_streams::TestBus;

pub const LIMITS: Limits = Limits { steps: 1_000, state_bytes: 1 << 20 };
const KEEP_MS: u64 = 600_000;
/// How long a call whose worker is gone holds its slot, ms.
pub const ORPHAN_MS: u64 = 10_000;

/// An event that was handed over, so that it can be handed over again.
#[derive(Clone)]
pub struct Sent {
    envelope: Arc<Envelope>,
    entry: EntryId,
    name: String,
}

pub struct Stage {
    pub t: TestBus,
    pub engine: Engine,
    pub runs: Runs,
    /// Ms of the clock at 0.
    base: u64,
    /// Slugs of the functions.
    functions: Vec<String>,
    seen: HashSet<String>,
    /// Events handed over.
    sent: AtomicU64,
    /// Label of a run → the call that is under way.
    flights: HashMap<String, (Begun, String)>,
}

/// The label of a run: `n` of its (first) event's data, or the tick of a schedule.
fn label(run: &Run) -> String {
    let events: Value = serde_json::from_str(&run.events).unwrap();
    let names: Vec<&str> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["data"]["n"].as_str().or(event["data"]["scheduledAt"].as_str()).unwrap())
        .collect();
    names.join("+")
}

impl Stage {
    /// Functions of one app: id and what they register beside it. Each is triggered by `t/<id>` unless it says otherwise.
    pub async fn with(functions: &[(&str, Value)]) -> Self {
        Self::on(TestBus::start().await, functions, MissedTicks::Last).await
    }

    pub async fn on(t: TestBus, functions: &[(&str, Value)], cron_missed: MissedTicks) -> Self {
        let clock = "test:clock".to_owned();
        let settings = Settings {
            keys: Keys::new(None, None).unwrap(),
            call_timeout: Duration::from_secs(5),
            retry_interval: Some(Duration::from_secs(1)),
            limits: LIMITS,
            keep: Keep { done_ms: KEEP_MS, failed_ms: KEEP_MS },
            cron_missed,
            sync_interval: Duration::from_secs(60),
            app_urls: Vec::new(),
            host_aliases: Vec::new(),
            guard: system_bus::net::guard::Guard::default(),
            recorder: None,
            clock: Some(clock),
        };
        let registry = Registry::new(t.bus.clone());
        let appender = Appender::start(&t.bus, system_bus::streams::append::Settings::default());
        let engine = Engine::new(t.bus.clone(), registry, appender, settings, CancellationToken::new()).unwrap();
        let runs = engine.runs().clone();
        let base = t.bus.now_ms().await.unwrap();
        let functions_of: Vec<String> = functions.iter().map(|(id, _)| format!("app-{id}")).collect();
        let mut stage = Self {
            t,
            engine,
            runs,
            base,
            functions: functions_of,
            seen: HashSet::new(),
            sent: AtomicU64::new(0),
            flights: HashMap::new(),
        };
        stage.register(functions).await;
        stage
    }

    /// Another server on the same Redis.
    pub async fn second(&self) -> Engine {
        let settings = self.engine.settings().clone();
        let registry = Registry::new(self.t.bus.separate());
        registry.refresh().await.unwrap();
        let appender = Appender::start(&self.t.bus, system_bus::streams::append::Settings::default());
        Engine::new(self.t.bus.clone(), registry, appender, settings, CancellationToken::new()).unwrap()
    }

    pub async fn register(&mut self, functions: &[(&str, Value)]) {
        let registration = Registration::parse(&document(functions), None).unwrap();
        self.engine.registry().register(&registration).await.unwrap();
    }

    /// Sets the clock, in ms from the start of the test.
    pub async fn at(&self, ms: u64) {
        self.at_instant(self.base + ms).await;
    }

    /// Sets the clock, in ms since the epoch.
    pub async fn at_instant(&self, ms: u64) {
        let now = self.t.bus.now_ms().await.unwrap();
        let shift = i64::try_from(ms).unwrap() - i64::try_from(now).unwrap();
        self.t.cmd::<()>(&["SET", "test:clock", &shift.to_string()]).await;
    }

    /// Hands an event over: `t/<what>` with `n` in its data.
    pub async fn emit(&self, name: &str, n: &str, data: Value) -> Sent {
        self.emit_at(name, n, data, None).await
    }

    /// The same, of an event that says when it happened, ms from the start.
    pub async fn emit_at(&self, name: &str, n: &str, mut data: Value, ts: Option<u64>) -> Sent {
        let now = self.runs.now_ms().await.unwrap();
        data["n"] = n.into();
        let seq = self.sent.fetch_add(1, Ordering::Relaxed);
        let sent = Sent {
            envelope: Arc::new(Envelope {
                v: 1,
                id: ids::fresh(),
                name: name.parse().unwrap(),
                source: "test".into(),
                ts: i64::try_from(ts.map_or(now, |ts| self.base + ts)).unwrap(),
                data: JsonObject::parse(&data.to_string()).unwrap(),
                priority: Priority::P2,
                dedup_key: None,
                trace: None,
                triage: None,
                meta: None,
            }),
            entry: EntryId { ms: now, seq },
            name: name.to_owned(),
        };
        self.hand_over(&self.engine, &sent).await;
        sent
    }

    /// As the drainer does it; a second time after a crash.
    pub async fn hand_over(&self, engine: &Engine, sent: &Sent) {
        let dispatch = Dispatch {
            envelope: sent.envelope.clone(),
            entry_id: sent.entry,
            attempt: 1,
            fence: 1,
            redrives: 0,
            timeout: Duration::from_secs(5),
            cancel: CancellationToken::new(),
        };
        let handler = EventHandler::new(engine.clone(), sent.name.parse().unwrap());
        assert_eq!(handler.run(dispatch).await, Outcome::Done);
    }

    /// Fires what is due, then takes up every call that was queued: labels of the runs, in the order of the queue.
    pub async fn called(&mut self) -> Vec<String> {
        for _ in 0..50 {
            if self.engine.fire_due().await.unwrap().0 == 0 {
                break;
            }
        }
        let mut found: Vec<(EntryId, String, String)> = Vec::new();
        for slug in &self.functions {
            for priority in Priority::ALL {
                let family = system_bus::functions::store::work_family(slug, uuid::Uuid::nil());
                let key = self.t.bus.keys.lane(&Lane::new(family.clone(), priority));
                let rows: redis::streams::StreamRangeReply =
                    self.t.bus.redis.query(redis::cmd("XRANGE").arg(key).arg("-").arg("+")).await.unwrap();
                for row in rows.ids {
                    let envelope = Envelope::decode(&row.get::<Vec<u8>>("e").unwrap()).unwrap();
                    let data: Value = serde_json::from_str(envelope.data.as_str()).unwrap();
                    let run = data["run"].as_str().unwrap().to_owned();
                    found.push((row.id.parse().unwrap(), run, data["thread"].as_str().unwrap().to_owned()));
                }
            }
        }
        found.sort();
        let mut called = Vec::new();
        for (entry, run, thread) in found {
            let entry = entry.to_string();
            if !self.seen.insert(format!("{entry} {run}")) {
                continue;
            }
            if let Taken::Begun(begun) = self.runs.begin(&run, &thread, &entry, ORPHAN_MS).await.unwrap() {
                let label = label(&begun.run);
                called.push(label.clone());
                self.flights.insert(label, (begun, entry));
            }
        }
        called
    }

    fn flight(&self, label: &str) -> (Begun, String) {
        self.flights.get(label).unwrap_or_else(|| panic!("{label} is not being called")).clone()
    }

    /// The call that is under way as another server would take it up.
    pub async fn take_over(&self, label: &str) -> Taken {
        let (begun, entry) = self.flight(label);
        self.runs.begin(&begun.run.id, &begun.thread, &entry, ORPHAN_MS).await.unwrap()
    }

    async fn advance(&mut self, label: &str, commands: impl FnOnce(&mut Advance<'_>)) -> bool {
        let (begun, entry) = self.flights.remove(label).unwrap_or_else(|| panic!("{label} is not being called"));
        let guard = Guard::Thread { thread: &begun.thread, generation: begun.generation, entry: Some(&entry) };
        let mut advance = Advance::new(&begun.run.id, guard, LIMITS, KEEP_MS);
        commands(&mut advance);
        match self.runs.advance(advance).await.unwrap() {
            Advanced::On { next: Some((thread, generation)), .. } => {
                let next = Begun { thread, generation, ..begun };
                self.flights.insert(label.to_owned(), (next, entry));
                true
            }
            Advanced::On { next: None, .. } => false,
            other => panic!("{label}: {other:?}"),
        }
    }

    /// The run ends.
    pub async fn end(&mut self, label: &str) {
        let end = End { status: Status::Completed, output: "1", error: "", why: "", events: Vec::new() };
        self.advance(label, |advance| advance.end(end)).await;
    }

    /// A step ended; whether the worker goes on with the run at once.
    pub async fn step(&mut self, label: &str) -> bool {
        let step = format!("s{}", self.seen.len() + self.flights.len() * 1_000);
        let unique = format!("{step}-{}", ids::fresh());
        self.advance(label, |advance| advance.memo(&unique, "1".into(), String::new())).await
    }

    /// The run sleeps.
    pub async fn sleep(&mut self, label: &str, ms: u64) {
        let step = ids::fresh();
        self.advance(label, |advance| advance.sleep(&step, false, ms, String::new())).await;
    }

    /// The call failed, and is tried again.
    pub async fn fail(&mut self, label: &str, ms: u64) {
        self.advance(label, |advance| advance.retry(ms, String::new())).await;
    }

    /// Plans steps that run side by side.
    pub async fn plan(&mut self, label: &str, steps: &[&str]) -> bool {
        self.advance(label, |advance| {
            for step in steps {
                advance.plan(step, false, String::new());
            }
        })
        .await
    }

    pub async fn run_of(&self, label_wanted: &str) -> Run {
        let filter = system_bus::functions::store::Filter { limit: 10_000, ..Default::default() };
        let runs = self.runs.list(&filter).await.unwrap().runs;
        runs.into_iter().find(|run| label(run) == label_wanted).unwrap_or_else(|| panic!("no run {label_wanted}"))
    }

    /// Labels of all runs with this status, oldest first.
    pub async fn with_status(&self, status: Status) -> Vec<String> {
        let filter = system_bus::functions::store::Filter {
            status: vec![status],
            oldest_first: true,
            limit: 10_000,
            ..Default::default()
        };
        self.runs.list(&filter).await.unwrap().runs.iter().map(label).collect()
    }

    /// Ends whatever is called until nothing is: the order in which runs were called.
    pub async fn drain(&mut self) -> Vec<String> {
        let mut order = Vec::new();
        loop {
            let called = self.called().await;
            let pending: Vec<String> = self.flights.keys().cloned().collect();
            if pending.is_empty() {
                return order;
            }
            order.extend(called);
            for label in pending {
                self.end(&label).await;
            }
        }
    }

    /// That nothing of flow control is left behind once all runs have ended.
    pub async fn assert_clean(&self) {
        assert_eq!(self.runs.groups().await.unwrap(), [], "groups");
        let keys: Vec<String> = self.t.cmd(&["KEYS", "*:fn:*"]).await;
        let left: Vec<&String> = keys
            .iter()
            .filter(|key| {
                [":slots:", ":line:", ":single:", ":deb:", ":batch:", ":live:"].iter().any(|part| key.contains(part))
            })
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub fn document(functions: &[(&str, Value)]) -> Value {
    let url = "http://127.0.0.1:9/api/inngest";
    let function = |(id, more): &(&str, Value)| {
        let slug = format!("app-{id}");
        let mut function = json!({
            "id": slug, "name": id, "triggers": [{"event": format!("t/{id}")}],
            "steps": {"step": {"id": "step", "retries": {"attempts": 3},
                "runtime": {"type": "http", "url": format!("{url}?fnId={slug}&stepId=step")}}},
        });
        for (key, value) in more.as_object().unwrap() {
            function[key] = value.clone();
        }
        function
    };
    let functions: Vec<Value> = functions.iter().map(function).collect();
    json!({"url": url, "appName": "app", "sdk": "js:v4.24.0", "functions": functions})
}
