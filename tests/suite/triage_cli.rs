//! Triage as operators and scripts meet it: `queue emit`, `queue triage explain`, `queue inspect`, `queue stats`, and a
//! service whose flags change while it runs.

use std::time::Duration;

use serde_json::{Value, json};
use system_bus::streams::records::Fact;

use crate::cli_queue_support::{Story, envelope};
use crate::support::{Joelclaw, eventually, free_port};

const LONG: Duration = Duration::from_secs(30);
const KEY: &str = "planted-key-0123456789";

async fn result(joelclaw: &Joelclaw, args: &[&str]) -> Value {
    envelope(&joelclaw.run(args).await.assert_success())["result"].clone()
}

/// A program that answers so; its text is kept in a file, away from the quoting of env files.
fn script(story: &Story, answer: &str) -> String {
    let path = story.joelclaw.home().join("answer.json");
    std::fs::write(&path, answer).unwrap();
    format!("cat {}; echo planted-output >&2", path.display())
}

fn answer(priority: &str) -> String {
    json!({ "priority": priority, "dedupKey": null, "routeCheck": "confirm", "reasoning": "Because." }).to_string()
}

/// An installation whose model answers so.
async fn answering(mode: &str, answer: &str) -> Story {
    let story = Story::begin().await;
    let command = json!(["sh", "-c", script(&story, answer)]).to_string();
    for (key, value) in
        [("QUEUE_TRIAGE_MODE", mode), ("QUEUE_TRIAGE_TIMEOUT_MS", "20000"), ("SYSTEM_BUS_MODEL_API_KEY", KEY)]
    {
        story.joelclaw.env_file_line(key, value);
    }
    story.joelclaw.env_file_line("SYSTEM_BUS_MODEL_COMMAND", &command);
    story
}

#[tokio::test]
async fn emit_in_enforce_answers_with_the_decision_and_stats_count_it() {
    let story = answering("enforce", &answer("P0")).await;
    let emitted = result(&story.joelclaw, &["queue", "emit", "discovery/noted", "-d", "{}"]).await;
    assert_eq!((&emitted["triageMode"], &emitted["priority"]), (&json!("enforce"), &json!(0)), "{emitted}");
    assert_eq!((&emitted["triage"]["applied"], &emitted["triage"]["final"]["priority"]), (&json!(true), &json!("P0")));
    let off = result(&story.joelclaw, &["queue", "emit", "workload/requested"]).await;
    assert_eq!((&off["triageMode"], off.get("triage")), (&json!("off"), None));

    let id = emitted["eventId"].as_str().unwrap();
    let inspected = result(&story.joelclaw, &["queue", "inspect", id]).await;
    assert_eq!(inspected["triage"]["finalPriority"], "P0", "{inspected}");
    let triage = result(&story.joelclaw, &["queue", "stats"]).await["triage"].clone();
    assert_eq!((&triage["attempts"], &triage["completed"], &triage["terminal"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!((&triage["appliedChanges"], &triage["enforceChanges"]), (&json!(1), &json!(1)));
    assert_eq!((&triage["disagreements"], &triage["agreement"]), (&json!(0), &json!(0.0)));
}

#[tokio::test]
async fn emit_in_shadow_leaves_the_decision_to_another_process() {
    let story = answering("shadow", &answer("P0")).await;
    let emitted = result(&story.joelclaw, &["queue", "emit", "content/updated", "-d", "{}"]).await;
    assert_eq!((&emitted["triageMode"], emitted.get("triage")), (&json!("shadow"), None), "{emitted}");
    assert_eq!(emitted["lane"], "content/updated:p1");
    let id = emitted["eventId"].as_str().unwrap().to_owned();
    let inspected = eventually(LONG, || async {
        let inspected = result(&story.joelclaw, &["queue", "inspect", &id]).await;
        if inspected["triage"].is_object() { Ok(inspected) } else { Err(inspected) }
    })
    .await;
    assert_eq!(
        (&inspected["triage"]["suggestedPriority"], &inspected["triage"]["finalPriority"]),
        (&json!("P0"), &json!("P1"))
    );

    let emitted = result(&story.joelclaw, &["queue", "emit", "content/updated", "--wait-triage"]).await;
    assert_eq!(emitted["triage"], json!({ "pending": true }));
    let inspected = result(&story.joelclaw, &["queue", "inspect", emitted["eventId"].as_str().unwrap()]).await;
    assert_eq!(inspected["triage"]["suggestedPriority"], "P0", "it is in the journal before the command ends");

    let bulk = "{\"name\":\"content/updated\"}\n".repeat(5);
    story.joelclaw.run_with_stdin(&["queue", "emit", "--bulk", "-"], bulk.as_bytes()).await.assert_success();
    let triage = eventually(LONG, || async {
        let triage = result(&story.joelclaw, &["queue", "stats"]).await["triage"].clone();
        if triage["completed"] == 7 { Ok(triage) } else { Err(triage) }
    })
    .await;
    assert_eq!((&triage["disagreements"], &triage["suggestedNotApplied"]), (&json!(7), &json!(7)));
    let family = &triage["families"][0];
    assert_eq!(
        (&family["name"], &family["attempts"], &family["agreement"]),
        (&json!("content/updated"), &json!(7), &json!(0.0))
    );
    let sample = &triage["recentMismatchSamples"][0];
    assert_eq!(
        (&sample["mode"], &sample["applied"], &sample["finalPriority"]),
        (&json!("shadow"), &json!(false), &json!("P1"))
    );
}

#[tokio::test]
async fn explain_names_the_rule_and_runs_the_decision_without_a_trace() {
    let story = answering("enforce", &answer("P0")).await;
    story.joelclaw.env_file_line("QUEUE_TRIAGE_ENFORCE_FAMILIES", "content");
    let explained = result(&story.joelclaw, &["queue", "triage", "explain", "content/updated"]).await;
    assert_eq!((&explained["mode"], &explained["clampedFrom"]), (&json!("shadow"), &json!("enforce")));
    assert_eq!(
        (&explained["registered"], &explained["eligible"], &explained["inFamilies"]),
        (&json!(true), &json!(false), &json!(true))
    );
    assert_eq!(explained["steps"].as_array().unwrap().len(), 5);
    assert_eq!(explained["steps"][4]["matched"], true);
    assert_eq!(explained["static"]["handler"], json!({ "type": "inngest", "target": "content/updated" }));
    assert_eq!((&explained["provider"], &explained["timeoutMs"]), (&json!(["rules", "command"]), &json!(20000)));
    assert_eq!(explained["ignored"][0]["variable"], "QUEUE_TRIAGE_ENFORCE_FAMILIES");
    let run = ["queue", "triage", "explain", "discovery/noted", "-d", "{}", "--run"];
    let explained = result(&story.joelclaw, &run).await;
    assert_eq!((&explained["mode"], &explained["decision"]["final"]["priority"]), (&json!("enforce"), &json!("P0")));
    let unknown = result(&story.joelclaw, &["queue", "triage", "explain", "nobody/knows", "--run"]).await;
    assert_eq!((&unknown["registered"], &unknown["mode"]), (&json!(false), &json!("off")));
    assert_eq!(unknown["decision"]["fallbackReason"], "disabled");
    let bad = story.joelclaw.run(&["queue", "triage", "explain", "discovery/noted", "-d", "[1]", "--run"]).await;
    assert_eq!((bad.code(), envelope(&bad)["error"]["code"].clone()), (Some(2), json!("NOT_AN_OBJECT")));
    assert_eq!(story.redis.cli(&["DBSIZE"]).await, "0", "nothing is appended or recorded");
}

#[tokio::test]
async fn the_vector_of_the_specification_adds_up() {
    let story = Story::begin().await;
    let fact = |action: &'static str, of: Value| {
        let fact = Fact::new("queue-triage", action);
        let members = of.as_object().unwrap().clone();
        let of = members.into_iter().fold(fact, |fact, (key, value)| fact.with(&key, value));
        of.with("family", "discovery/noted").with("mode", "shadow")
    };
    let completed = json!({
        "suggestedPriority": "P1", "finalPriority": "P2", "suggestedDedupKey": "k", "finalDedupKey": null,
        "routeCheck": "mismatch", "applied": false, "latencyMs": 30, "baselinePriority": "P2",
    });
    let facts = [
        fact("queue.triage.started", json!({})),
        fact("queue.triage.completed", completed),
        fact("queue.triage.started", json!({})),
        fact("queue.triage.failed", json!({ "latencyMs": 21 })).failed("x"),
        fact("queue.triage.fallback", json!({ "fallbackReason": "schema_error", "latencyMs": 21 }))
            .failed("schema_error")
            .warn(),
    ];
    story.bus.journal(facts).await.unwrap();
    let triage = result(&story.joelclaw, &["queue", "stats"]).await["triage"].clone();
    for (key, expected) in [
        ("attempts", 2),
        ("completed", 1),
        ("failed", 1),
        ("fallbacks", 1),
        ("terminal", 2),
        ("disagreements", 1),
        ("appliedChanges", 0),
        ("suggestedNotApplied", 1),
        ("routeMismatches", 1),
    ] {
        assert_eq!(triage[key], expected, "{key} in {triage}");
    }
    assert_eq!((&triage["successRate"], &triage["latencyMs"]["count"]), (&json!(0.5), &json!(2)));
    assert_eq!(triage["latencyMs"]["p95"].as_f64().unwrap().round(), 30.0);
    assert_eq!(triage["fallbackByReason"], json!([{ "reason": "schema_error", "count": 1 }]));
    assert_eq!(triage["recentFallbacks"][0]["reason"], "schema_error");
}

#[tokio::test]
async fn a_service_takes_new_flags_at_once_and_tells_those_without_effect() {
    let story = answering("loud", "{}").await;
    let port = free_port().to_string();
    story.joelclaw.env_file_line("WORKER_PORT", &port);
    story.joelclaw.env_file_line("SYSTEM_BUS_METRICS_ADDR", "");
    let mut service = story.joelclaw.spawn(&["serve"]);
    let facts = |action: &'static str, count: usize| {
        let bus = story.bus.clone();
        eventually(LONG, move || {
            let bus = bus.clone();
            async move {
                let page = bus.journal_page(Default::default(), system_bus::streams::entry_id::EntryId::MAX, 10_000);
                let facts: Vec<Fact> = page.await.unwrap().entries.into_iter().map(|entry| entry.fact).collect();
                let found: Vec<Fact> = facts.into_iter().filter(|fact| fact.action == action).collect();
                if found.len() >= count { Ok(found) } else { Err(found) }
            }
        })
    };
    let invalid = facts("config.invalid", 1).await;
    assert_eq!(invalid[0].metadata["variable"], "QUEUE_TRIAGE_MODE");
    story.joelclaw.env_file_line("QUEUE_TRIAGE_MODE", "shadow");
    facts("config.changed", 1).await;
    let client = reqwest::Client::new();
    let sent = client.post(format!("http://127.0.0.1:{port}/e/test"));
    let sent = sent.body(r#"{"name":"discovery/noted","data":{}}"#).send().await.unwrap();
    assert_eq!(sent.status(), 200);
    let fallback = facts("queue.triage.fallback", 1).await;
    assert_eq!(fallback[0].metadata["fallbackReason"], "schema_error");
    service.terminate();
    let ran = service.wait_exit(LONG).await;
    let shown = format!("{}{}{:?}", ran.stdout, ran.stderr, facts("queue.triage.failed", 1).await);
    assert!(!shown.contains(KEY) && !shown.contains("planted-output"), "{shown}");
}
