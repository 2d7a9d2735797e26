//! Triage at admission, on a real Redis with real programs and servers: what is appended, what is recorded, and that
//! nothing waits for a model longer than it may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_bus::config::{TriageDedup, TriageMode};
use system_bus::ingest::admission::{Accepted, Admission, Emit};
use system_bus::model::{KeySource, Models, Provider, Settings};
use system_bus::registry::watch::RegistryHandle;
use system_bus::service::routes::AdmissionRoutes;
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::envelope::Envelope;
use system_bus::streams::records::Fact;
use system_bus::telemetry::projection::window;
use system_bus::triage::Triage;
use system_bus::triage::flags::Flags;
use system_bus::triage::rules::RulesHandle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common_streams::TestBus;
use crate::support::{HttpSink, Reply, eventually};

const KEY: &str = "planted-key-0123456789";
const LONG: Duration = Duration::from_secs(30);

/// A stream entry: id, fields.
type Row = (String, Vec<(String, Vec<u8>)>);

/// An admission with triage on its own Redis.
struct Rig {
    bus: TestBus,
    admission: Admission,
    triage: Triage,
    stop: CancellationToken,
    worker: JoinHandle<()>,
    dir: tempfile::TempDir,
}

/// What differs from test to test.
struct Setup {
    mode: TriageMode,
    chain: Vec<Provider>,
    script: String,
    base_url: Option<String>,
    rules: &'static str,
    timeout: Option<Duration>,
    dedup: TriageDedup,
}

fn enforce(script: &str) -> Setup {
    Setup {
        mode: TriageMode::Enforce,
        chain: vec![Provider::Rules, Provider::Command],
        script: script.to_owned(),
        base_url: None,
        rules: "",
        timeout: Some(LONG),
        dedup: TriageDedup::Verify,
    }
}

/// A program that answers so.
fn answers(priority: &str, key: Value, check: &str) -> String {
    format!("echo '{}'", json!({ "priority": priority, "dedupKey": key, "routeCheck": check, "reasoning": "Because." }))
}

impl Setup {
    async fn start(self) -> Rig {
        let bus = TestBus::start().await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("triage.toml"), self.rules).unwrap();
        let registry = RegistryHandle::load(dir.path().join("registry.toml")).unwrap();
        let functions = system_bus::functions::registry::Registry::new(bus.bus.clone());
        let endpoints = system_bus::outbound::store::Endpoints::new(bus.bus.clone());
        let routes = AdmissionRoutes { registry: registry.clone(), functions, endpoints, is_inngest_served: true };
        let stop = CancellationToken::new();
        let settings = Settings {
            concurrency: 2,
            command: vec!["sh".into(), "-c".into(), self.script],
            base_url: self.base_url,
            key: KeySource::new(Some(KEY.into()), None, None),
        };
        let models = Models::new(settings, stop.clone());
        let mut flags = Flags::new(self.mode, &[], &[]);
        (flags.chain, flags.timeout, flags.dedup) = (self.chain, self.timeout, self.dedup);
        let rules = RulesHandle::load(dir.path().join("triage.toml"));
        let (triage, worker) = Triage::new(flags, registry, rules, models);
        let worker = tokio::spawn(worker.run(bus.bus.clone(), stop.clone()));
        let admission = Admission::new(Arc::new(bus.appender.clone()), Arc::new(routes)).with_triage(triage.clone());
        Rig { bus, admission, triage, stop, worker, dir }
    }
}

impl Rig {
    async fn emit(&self, name: &str, data: &str) -> Accepted {
        self.admission.admit(Emit { name, data, ..Emit::default() }).await.unwrap()
    }

    async fn stored(&self, accepted: &Accepted) -> Envelope {
        let key = self.bus.bus.keys.lane(&accepted.lane);
        let id = accepted.stream_id.unwrap().to_string();
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(key).arg(&id).arg(&id);
        let rows: Vec<Row> = self.bus.bus.redis.query(&cmd).await.unwrap();
        Envelope::decode(&rows[0].1[0].1).unwrap()
    }

    async fn facts(&self) -> Vec<Fact> {
        let page = self.bus.bus.journal_page(EntryId::MIN, EntryId::MAX, 10_000).await.unwrap();
        page.entries.into_iter().map(|entry| entry.fact).collect()
    }

    /// Waits for so many records of triage about decisions; answers all of them.
    async fn told(&self, count: usize) -> Vec<Fact> {
        eventually(LONG, || async {
            let facts = self.facts().await;
            let of_triage: Vec<Fact> = facts.into_iter().filter(|fact| fact.component == "queue-triage").collect();
            if of_triage.len() >= count { Ok(of_triage) } else { Err(of_triage) }
        })
        .await
    }
}

fn actions(facts: &[Fact]) -> Vec<&str> {
    facts.iter().map(|fact| fact.action.strip_prefix("queue.triage.").unwrap_or(&fact.action)).collect()
}

#[tokio::test]
async fn off_asks_nobody_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let called = dir.path().join("called");
    let rig = Setup { mode: TriageMode::Off, ..enforce(&format!("touch {}", called.display())) }.start().await;
    let accepted = rig.emit("discovery/noted", "{}").await;
    assert_eq!((accepted.triage.mode, accepted.lane.to_string()), (TriageMode::Off, "discovery/noted:p2".into()));
    let stored = rig.stored(&accepted).await;
    assert!(stored.triage.is_none());
    assert_eq!(stored.meta.unwrap().as_str(), r#"{"envelope_version":"1","source":"queue"}"#);
    assert!(!called.exists());
    assert_eq!(rig.bus.actions().await, ["queue.enqueue"]);
}

#[tokio::test]
async fn enforce_stores_what_was_decided_and_tells_it() {
    let rig = enforce(&answers("P0", Value::Null, "confirm")).start().await;
    let accepted = rig.emit("discovery/noted", "{}").await;
    assert_eq!(accepted.lane.to_string(), "discovery/noted:p0");
    let stored = rig.stored(&accepted).await;
    let record = stored.triage.unwrap().to_value();
    assert_eq!(
        (&record["mode"], &record["applied"], &record["provider"]),
        (&json!("enforce"), &json!(true), &json!("command"))
    );
    assert_eq!((&record["suggested"]["priority"], &record["final"]["priority"]), (&json!("P0"), &json!("P0")));
    assert_eq!(accepted.triage.record.unwrap().to_value(), record);
    let meta = stored.meta.unwrap().to_value();
    assert_eq!((&meta["triageMode"], &meta["triageApplied"]), (&json!("enforce"), &json!(true)));
    assert_eq!((&meta["triageFinalPriority"], &meta["triageFallbackReason"]), (&json!("P0"), &Value::Null));
    let told = rig.told(2).await;
    assert_eq!(actions(&told), ["started", "completed"]);
    let completed = &told[1].metadata;
    assert_eq!(told[1].event_id.as_deref(), Some(stored.id.as_str()));
    assert_eq!((&completed["baselinePriority"], &completed["finalPriority"]), (&json!("P2"), &json!("P0")));
    // Not on the allowlist: shadow, whatever the mode.
    let accepted = rig.emit("content/updated", "{}").await;
    assert_eq!((accepted.triage.mode, accepted.lane.to_string()), (TriageMode::Shadow, "content/updated:p1".into()));
    let told = rig.told(4).await;
    assert_eq!((&told[3].metadata["mode"], &told[3].metadata["finalPriority"]), (&json!("shadow"), &json!("P1")));
}

#[tokio::test]
async fn a_disputed_route_is_counted_and_changes_nothing() {
    let rig = enforce(&answers("P1", Value::Null, "mismatch")).start().await;
    let accepted = rig.emit("github/workflow_run.completed", "{}").await;
    assert_eq!(accepted.lane.to_string(), "github/workflow_run.completed:p1");
    let told = rig.told(2).await;
    let completed = &told[1].metadata;
    assert_eq!((&completed["routeCheck"], &completed["applied"]), (&json!("mismatch"), &json!(false)));
    let told = window(&rig.bus.bus, EntryId::MIN).await.unwrap();
    let count = |what: &str| told.count(what, |_, _| true);
    assert_eq!((count("triage_route_mismatches"), count("triage_disagreements"), count("triage_applied")), (1, 1, 0));
}

#[tokio::test]
async fn shadow_appends_first_and_records_beside_it() {
    let rig = Setup { mode: TriageMode::Shadow, ..enforce(&answers("P0", json!("k"), "mismatch")) }.start().await;
    let accepted = rig.emit("discovery/noted", "{}").await;
    assert_eq!((accepted.triage.record.as_ref(), accepted.lane.to_string()), (None, "discovery/noted:p2".into()));
    let stored = rig.stored(&accepted).await;
    assert!(stored.triage.is_none() && stored.dedup_key.is_none());
    assert!(stored.meta.unwrap().as_str().ends_with(r#","triageMode":"shadow"}"#));
    let told = rig.told(2).await;
    let completed = &told[1].metadata;
    assert_eq!(told[1].event_id.as_deref(), Some(accepted.event_id.as_str()));
    assert_eq!((&completed["suggestedPriority"], &completed["finalPriority"]), (&json!("P0"), &json!("P2")));
    assert_eq!((&completed["suggestedDedupKey"], &completed["finalDedupKey"]), (&json!("k"), &Value::Null));
    assert_eq!((&completed["routeCheck"], &completed["applied"]), (&json!("mismatch"), &json!(false)));
}

/// Every reason, reached by a real program or server.
#[tokio::test]
async fn every_fallback_keeps_the_static_values_and_is_recorded() {
    let short = Some(Duration::from_millis(400));
    let cases: [(&str, Option<Duration>, &str, Option<&str>); 9] = [
        ("trap 'exit 143' TERM; sleep 1000 & wait", short, "timeout", Some("no answer in time")),
        ("exit 0", None, "model_error", Some("empty output")),
        ("exit 2", None, "model_error", Some("exit 2")),
        ("echo well, that is difficult", None, "invalid_json", None),
        ("echo null", None, "invalid_json", None),
        ("echo '{\"priority\":\"P9\",\"target\":\"x\"}'", None, "unsafe_override", Some("target")),
        ("echo '{}'", None, "schema_error", Some("priority must be P0, P1, P2 or P3")),
        ("echo '[]'", None, "schema_error", None),
        ("yes | head -c 400000", None, "model_error", None),
    ];
    for (script, timeout, reason, detail) in cases {
        let setup = enforce(script);
        let rig = Setup { timeout: timeout.or(setup.timeout), ..setup }.start().await;
        let accepted = rig.emit("discovery/noted", "{}").await;
        assert_eq!(accepted.lane.to_string(), "discovery/noted:p2", "{script}");
        let record = accepted.triage.record.unwrap().to_value();
        assert_eq!(
            (&record["fallbackReason"], &record["applied"]),
            (&json!(reason), &json!(false)),
            "{script}: {record}"
        );
        if let Some(detail) = detail {
            assert_eq!(record["detail"], detail, "{script}");
        }
        let told = rig.told(3).await;
        assert_eq!(actions(&told), ["started", "failed", "fallback"], "{script}");
        assert_eq!(told[2].error.as_deref(), Some(reason));
        assert_eq!(
            told[1].metadata["outputHash"].is_string(),
            !matches!(reason, "timeout" | "model_error"),
            "{script}"
        );
    }
}

#[tokio::test]
async fn http_providers_fall_back_too_and_never_show_their_key() {
    let openai = |text: &str| Reply::ok().body(json!({ "choices": [{ "message": { "content": text } }] }).to_string());
    let cases = [
        (Reply::hang(), "timeout"),
        (Reply::status(429).header("retry-after", "30"), "model_error"),
        (Reply::status(401).body(format!("bad key {KEY}")), "model_error"),
        (openai(&format!("what is {KEY}?")), "invalid_json"),
        (openai("{\"handler\":1}"), "unsafe_override"),
        (openai("{}"), "schema_error"),
    ];
    for (reply, reason) in cases {
        let sink = HttpSink::start().await;
        sink.reply_always(reply);
        let timeout = Some(if reason == "timeout" { Duration::from_millis(400) } else { LONG });
        let setup = enforce("false");
        let rig = Setup { chain: vec![Provider::OpenAi], base_url: Some(sink.url()), timeout, ..setup }.start().await;
        let accepted = rig.emit("github/workflow_run.completed", "{\"apiToken\":\"planted-in-payload\"}").await;
        assert_eq!(accepted.lane.to_string(), "github/workflow_run.completed:p1");
        assert_eq!(accepted.triage.record.unwrap().to_value()["fallbackReason"], reason);
        let told = rig.told(3).await;
        assert!(!format!("{told:?}").contains(KEY), "{told:?}");
        assert!(!format!("{:?} {:?}", rig.triage, rig.admission).contains(KEY));
        let sent = String::from_utf8_lossy(&sink.received()[0].body).into_owned();
        assert!(!sent.contains("planted-in-payload") && sent.contains("[redacted]"), "{sent}");
    }
}

#[tokio::test]
async fn without_a_provider_or_a_program_the_model_is_in_error() {
    let rig = Setup { chain: vec![Provider::None], ..enforce("false") }.start().await;
    let record = rig.emit("discovery/noted", "{}").await.triage.record.unwrap().to_value();
    assert_eq!((&record["fallbackReason"], &record["detail"]), (&json!("model_error"), &json!("no_provider")));
    let matter = |rig: &Rig| {
        let matter = json!({
            "eventId": "e1", "name": "discovery/noted", "source": "t", "ts": 1, "data": {}, "priority": "P2",
            "handlerType": "inngest", "handlerTarget": "x",
        });
        let matter: system_bus::triage::Matter = serde_json::from_value(matter).unwrap();
        let triage = rig.triage.clone();
        async move { (triage.decide(&matter, TriageMode::Off, None).await, matter) }
    };
    let (decision, matter) = matter(&rig).await;
    assert_eq!((decision.fallback.unwrap().as_str(), decision.latency_ms), ("disabled", 0));
    rig.triage.record(&matter, &decision);
    let told = rig.told(5).await;
    assert_eq!(actions(&told), ["started", "failed", "fallback", "started", "fallback"]);
    assert!(told[4].success && told[4].error.is_none(), "asked while off, nothing failed");
    // Rules as the last word.
    let rig = Setup { chain: vec![Provider::Rules], ..enforce("false") }.start().await;
    let record = rig.emit("discovery/noted", "{}").await.triage.record.unwrap().to_value();
    assert_eq!((&record["provider"], &record["final"]["reasoning"]), (&json!("rules"), &json!("no rule matched")));
}

#[tokio::test]
async fn an_exit_code_does_not_spoil_an_answer() {
    let script = format!("{}; exit 1", answers("P0", Value::Null, "confirm"));
    let rig = enforce(&script).start().await;
    let accepted = rig.emit("discovery/noted", "{}").await;
    assert_eq!(accepted.lane.to_string(), "discovery/noted:p0");
    assert_eq!(accepted.triage.record.unwrap().to_value()["detail"], "exit 1");
}

#[tokio::test]
async fn a_rule_decides_without_any_process() {
    let rules = "[[rule]]\nid = \"urgent\"\nfamilies = [\"discovery/noted\"]\n\
                 when = \"data.title.contains('urgent')\"\npriority = \"P0\"\ndedup_key = \"'n:' + data.title\"\n\
                 reason = \"marked urgent\"\n";
    let dir = tempfile::tempdir().unwrap();
    let called = dir.path().join("called");
    let rig = Setup { rules, ..enforce(&format!("touch {}", called.display())) }.start().await;
    let first = rig.emit("discovery/noted", r#"{"title":"urgent: x"}"#).await;
    let record = first.triage.record.as_ref().unwrap().to_value();
    assert_eq!((first.lane.to_string(), &record["rule"]), ("discovery/noted:p0".into(), &json!("urgent")));
    assert_eq!((&record["provider"], record.get("model")), (&json!("rules"), None));
    // A rule's key is trusted: other data, same key.
    let second = rig.emit("discovery/noted", r#"{"title":"urgent: x","n":2}"#).await;
    assert!(second.duplicate.is_some());
    assert!(!called.exists());
    std::fs::write(rig.dir.path().join("triage.toml"), rules.replace("'urgent'", "'now'")).unwrap();
    eventually(LONG, || async {
        let accepted = rig.emit("discovery/noted", r#"{"title":"now"}"#).await;
        if accepted.lane.to_string() == "discovery/noted:p0" { Ok(()) } else { Err(accepted) }
    })
    .await;
}

#[tokio::test]
async fn a_models_key_suppresses_only_the_same_data_and_a_callers_key_wins() {
    let rig = enforce(&answers("P2", json!("same"), "confirm")).start().await;
    let first = rig.emit("discovery/noted", r#"{"n":1}"#).await;
    let other = rig.emit("discovery/noted", r#"{"n":2}"#).await;
    let again = rig.emit("discovery/noted", r#"{"n":1}"#).await;
    assert_eq!((first.duplicate, other.duplicate), (None, None));
    assert_eq!(again.event_id, first.event_id, "{again:?}");
    assert_eq!(rig.stored(&first).await.dedup_key.as_deref(), Some("m:same"));
    let facts = rig.told(7).await;
    let declined: Vec<&Fact> = facts.iter().filter(|fact| fact.action == "queue.dedup.declined").collect();
    assert_eq!(declined.len(), 1, "{facts:?}");
    assert_eq!(
        (&declined[0].metadata["key"], &declined[0].metadata["firstEventId"]),
        (&json!("same"), &json!(first.event_id))
    );
    assert_eq!(declined[0].event_id.as_deref(), Some(other.event_id.as_str()));
    let own = Emit { name: "discovery/noted", data: r#"{"n":1}"#, dedup_key: Some("same"), ..Emit::default() };
    let accepted = rig.admission.admit(own).await.unwrap();
    assert_eq!(accepted.duplicate, None, "a caller's `same` is not the model's");
    let record = accepted.triage.record.as_ref().unwrap().to_value();
    assert_eq!((&record["final"]["dedupKey"], &record["applied"]), (&json!("same"), &json!(false)));
    assert_eq!(rig.stored(&accepted).await.dedup_key.as_deref(), Some("same"));

    let trusting =
        Setup { dedup: TriageDedup::Trust, ..enforce(&answers("P2", json!("same"), "confirm")) }.start().await;
    let first = trusting.emit("discovery/noted", r#"{"n":1}"#).await;
    assert_eq!(trusting.emit("discovery/noted", r#"{"n":2}"#).await.event_id, first.event_id);
    // No window, no suppression.
    trusting.emit("github/workflow_run.completed", "{}").await;
    assert_eq!(trusting.emit("github/workflow_run.completed", "{}").await.duplicate, None);
}

#[tokio::test]
async fn five_bad_answers_are_five_schema_errors_each_told_in_order() {
    let rig = enforce("echo '{}'").start().await;
    for _ in 0..5 {
        rig.emit("discovery/noted", "{}").await;
    }
    let told = rig.told(15).await;
    assert_eq!(actions(&told), ["started", "failed", "fallback"].repeat(5));
    assert!(
        told.iter()
            .filter(|fact| fact.action.ends_with("fallback"))
            .all(|fact| fact.metadata["fallbackReason"] == "schema_error")
    );
}

#[tokio::test]
async fn enforce_waits_no_longer_than_it_may_and_not_at_all_while_stopping() {
    let rig = Setup { timeout: Some(Duration::from_secs(600)), ..enforce("sleep 1000") }.start().await;
    let capped = rig.admission.clone().triaged_within(Duration::from_millis(300));
    let accepted = capped.admit(Emit { name: "discovery/noted", ..Emit::default() }).await.unwrap();
    assert_eq!(accepted.triage.record.unwrap().to_value()["fallbackReason"], "timeout");
    let (admission, stop) = (rig.admission.clone(), rig.stop.clone());
    let emitting =
        tokio::spawn(
            async move { admission.admit(Emit { name: "discovery/noted", ..Emit::default() }).await.unwrap() },
        );
    stop.cancel();
    let accepted = emitting.await.unwrap();
    let record = accepted.triage.record.unwrap().to_value();
    assert_eq!((&record["fallbackReason"], &record["detail"]), (&json!("timeout"), &json!("shutdown")));
    rig.worker.await.unwrap();
}

#[tokio::test]
async fn a_hanging_model_in_shadow_delays_loses_and_reorders_nothing() {
    let off = Setup { mode: TriageMode::Off, ..enforce("sleep 1000") }.start().await;
    let shadow = Setup { mode: TriageMode::Shadow, timeout: Some(Duration::from_secs(600)), ..enforce("sleep 1000") }
        .start()
        .await;
    let mut dispatched = Vec::new();
    for rig in [&off, &shadow] {
        let started = Instant::now();
        for n in 0..1_500 {
            let name = ["discovery/noted", "content/updated", "github/workflow_run.completed"][n % 3];
            let id = format!("e{n}");
            let data = format!("{{\"n\":{n}}}");
            let emit = Emit { name, data: &data, id: Some(&id), ..Emit::default() };
            assert_eq!(rig.admission.admit(emit).await.unwrap().event_id, id);
        }
        assert!(started.elapsed() < Duration::from_secs(300), "nothing waited for the model's ten minutes");
        rig.bus.open("s").await;
        let mut sequence = Vec::new();
        for lane in ["discovery/noted:p2", "content/updated:p1", "github/workflow_run.completed:p1"] {
            let leased = rig.bus.lease("s", &lane.parse().unwrap(), 1_500).await;
            sequence.extend(leased.into_iter().map(|leased| (lane, leased.envelope)));
        }
        let ids: Vec<_> = sequence
            .iter()
            .map(|(lane, envelope)| {
                let envelope = Envelope::decode(envelope).unwrap();
                (*lane, envelope.id, envelope.priority, envelope.dedup_key, envelope.triage.is_some())
            })
            .collect();
        assert_eq!(ids.len(), 1_500);
        dispatched.push(ids);
    }
    assert_eq!(dispatched[0], dispatched[1]);
    // What did not fit was skipped and is counted; what was under way ends with the process.
    shadow.stop.cancel();
    shadow.worker.await.unwrap();
    let facts = off.bus.actions().await;
    assert!(facts.iter().all(|action| action == "queue.enqueue"));
    let page = shadow.bus.bus.journal_page(EntryId::MIN, EntryId::MAX, 100_000).await.unwrap();
    let facts: Vec<Fact> = page.entries.into_iter().map(|entry| entry.fact).collect();
    let skipped: u64 = facts
        .iter()
        .filter(|fact| fact.action == "queue.triage.skipped")
        .filter_map(|fact| fact.metadata["count"].as_u64())
        .sum();
    let ended = facts.iter().filter(|fact| fact.action == "queue.triage.fallback").count();
    assert!((400..=500).contains(&skipped), "{skipped}");
    assert!(ended <= 1_100, "{ended}");
}
