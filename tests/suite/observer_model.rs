//! The observer asks a real program or a real server that hangs, fails, or answers rubbish: every fallback reason.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::common_streams::{TestBus, event};
use crate::support::{HttpSink, Reply};
use system_bus::config::ObserverMode;
use system_bus::model::{self, KeySource, Models};
use system_bus::observer::controller::Observer;
use system_bus::observer::decide::Decision;
use system_bus::observer::flags::{Limits, Policy, Provider, Trigger};

const NAME: &str = "content/updated";

fn policy(provider: model::Provider, mode: ObserverMode) -> Policy {
    Policy {
        mode,
        observe: vec![NAME.into()],
        auto: vec![NAME.into()],
        interval: Duration::from_secs(60),
        providers: vec![Provider::Model(provider)],
        model: "anthropic/claude-sonnet-4-6".into(),
        timeout: Duration::from_millis(1500),
        limits: Limits::default(),
    }
}

fn models(script: &str, base_url: Option<String>) -> Models {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let key = KeySource::new(Some("planted-key-0123456789".into()), None, None);
    Models::new(model::Settings { concurrency: 2, command, base_url, key }, CancellationToken::new())
}

async fn stage() -> TestBus {
    let t = TestBus::start().await;
    for _ in 0..6 {
        t.emit(event(NAME)).await;
    }
    t
}

async fn decide(t: &TestBus, models: Models, provider: model::Provider, mode: ObserverMode) -> Decision {
    let observer = Observer::new(t.bus.clone(), policy(provider, mode), None, Some(models));
    observer.look(Trigger::Cli, 1, false).await.unwrap().decision
}

fn reason(decision: &Decision) -> Value {
    json!(decision.fallback_reason)
}

fn answer(actions: &Value) -> Value {
    json!({ "findings": { "queuePressure": "healthy", "downstreamState": "healthy", "summary": "fine" }, "actions": actions })
}

#[tokio::test]
async fn what_a_program_does_decides_the_fallback() {
    let t = stage().await;
    let bad_family = answer(&json!([{ "kind": "pause_family", "family": "foo/bar", "ttlMs": 300_000, "reason": "x" }]));
    let short = answer(&json!([{ "kind": "pause_family", "family": NAME, "ttlMs": 1000, "reason": "x" }]));
    let echo = |value: &Value| format!("cat > /dev/null; printf '%s' '{value}'");
    for (script, expected) in [
        ("sleep 61; exit 143".to_owned(), json!("timeout")),
        ("exit 2".to_owned(), json!("model_error")),
        ("exit 0".to_owned(), json!("model_error")),
        ("echo All is well.".to_owned(), json!("invalid_json")),
        (echo(&json!({ "hello": 1 })), json!("schema_error")),
        (echo(&short), json!("schema_error")),
        (echo(&bad_family), json!("unsafe_action")),
        (echo(&answer(&json!([{ "kind": "noop", "reason": "x" }]))), Value::Null),
    ] {
        let decision = decide(&t, models(&script, None), model::Provider::Command, ObserverMode::DryRun).await;
        assert_eq!(reason(&decision), expected, "{script}: {decision:#?}");
        assert!(decision.fallback_reason.is_none() || decision.suggested_actions.is_empty());
    }
    let decision = decide(&t, models("exit 0", None), model::Provider::Command, ObserverMode::Off).await;
    assert_eq!(reason(&decision), "disabled");
}

#[tokio::test]
async fn what_a_server_does_decides_the_fallback() {
    let t = stage().await;
    let text = |value: Value| {
        Reply::ok().body(json!({ "choices": [{ "message": { "content": value.to_string() } }] }).to_string())
    };
    for (reply, expected) in [
        (Reply::hang(), json!("timeout")),
        (Reply::status(401), json!("model_error")),
        (Reply::ok().body("rubbish"), json!("model_error")),
        (text(json!({ "findings": {} })), json!("schema_error")),
        (text(answer(&json!([{ "kind": "escalate", "channel": "telegram", "reason": "look" }]))), Value::Null),
    ] {
        let sink = HttpSink::start().await;
        sink.reply_always(reply);
        let models = models("exit 0", Some(sink.url().trim_end_matches('/').to_owned()));
        let decision = decide(&t, models, model::Provider::OpenAi, ObserverMode::DryRun).await;
        assert_eq!(reason(&decision), expected, "{decision:#?}");
    }
}

#[tokio::test]
async fn a_cadence_whose_model_fails_applies_nothing_and_is_journaled_in_order() {
    let t = stage().await;
    let observer = Observer::new(
        t.bus.clone(),
        policy(model::Provider::Command, ObserverMode::Enforce),
        None,
        Some(models("exit 2", None)),
    );
    let result = observer.pass().await.unwrap();
    assert_eq!(
        (&result["status"], &result["fallbackReason"]),
        (&json!("fallback"), &json!("model_error")),
        "{result:#}"
    );
    assert!(result["findings"]["summary"].as_str().unwrap().ends_with("; observer fallback model_error"));
    let observed: Vec<String> =
        t.actions().await.into_iter().filter(|action| action.starts_with("queue.observe.")).collect();
    assert_eq!(
        observed,
        ["queue.observe.started", "queue.observe.snapshot", "queue.observe.failed", "queue.observe.fallback"]
    );
    assert_eq!(observer.pass().await.unwrap()["reason"], "cadence");
    assert!(t.bus.pauses().await.unwrap().active.is_empty());
}

#[tokio::test]
async fn a_probe_runs_alone_and_changes_nothing() {
    let t = stage().await;
    let pause = answer(&json!([{ "kind": "pause_family", "family": NAME, "ttlMs": 300_000, "reason": "x" }]));
    let script = format!("cat > /dev/null; printf '%s' '{pause}'");
    let policy = policy(model::Provider::Command, ObserverMode::Enforce);
    let observer = Observer::new(t.bus.clone(), policy, None, Some(models(&script, None)));
    let (one, two) = tokio::join!(observer.probe(1), observer.probe(1));
    let (one, two) = (one.unwrap(), two.unwrap());
    let (ran, skipped) = if one["status"] == "skipped" { (two, one) } else { (one, two) };
    assert_eq!((&skipped["status"], &skipped["reason"]), (&json!("skipped"), &json!("singleton")));
    assert_eq!((&ran["finalActions"], &ran["appliedCount"]), (&json!([]), &json!(0)), "{ran:#}");
    assert_eq!(ran["wouldApply"].as_array().unwrap().len(), 1);
    assert!(t.bus.pauses().await.unwrap().active.is_empty());
    assert_eq!(observer.probe(1).await.unwrap()["status"], "enforce", "the first has ended");
}

#[tokio::test]
async fn a_cadence_of_two_minutes_is_skipped_at_one_and_runs_at_two() {
    let t = stage().await;
    let policy = Policy {
        interval: Duration::from_secs(120),
        providers: vec![Provider::Rules],
        ..policy(model::Provider::Command, ObserverMode::DryRun)
    };
    let observer = Observer::new(t.bus.clone(), policy, None, None);
    let key = t.bus.keys.observer("last-run");
    let now = t.bus.now_ms().await.unwrap();
    let at = |ms: u64| system_bus::moment::iso(ms).unwrap();
    let early = now - 60_000;
    t.cmd::<()>(&["SET", &key, &early.to_string()]).await;
    let skipped = observer.pass().await.unwrap();
    assert_eq!((&skipped["status"], &skipped["reason"]), (&json!("skipped"), &json!("cadence")));
    assert_eq!((&skipped["lastRunAt"], &skipped["nextRunAt"]), (&json!(at(early)), &json!(at(early + 120_000))));
    assert_eq!(t.cmd::<String>(&["GET", &key]).await, early.to_string(), "the key is as it was");
    t.cmd::<()>(&["SET", &key, &(now - 121_000).to_string()]).await;
    assert_eq!(observer.pass().await.unwrap()["status"], "dry-run");
    assert!(t.cmd::<String>(&["GET", &key]).await.parse::<u64>().unwrap() >= now);
}
