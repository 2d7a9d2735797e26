//! The worked examples of triage that need no process: modes, answers, and what holds. Cases: `tests/vectors/triage.json`.

use serde_json::Value;
use system_bus::config::{Config, Sources, TriageDedup, TriageMode};
use system_bus::model::Provider;
use system_bus::registry::Registry;
use system_bus::streams::priority::Priority;
use system_bus::triage::decision::{Decision, Fallback, Suggestion, parse};
use system_bus::triage::flags::{Flags, word};

fn cases(of: &str) -> Vec<Value> {
    let text = include_str!("../vectors/triage.json");
    serde_json::from_str::<Value>(text).unwrap()[of].as_array().unwrap().clone()
}

/// Through the configuration, as a process reads it.
fn flags(mode: &str, families: &str, enforce: &str) -> Flags {
    let settings =
        [("QUEUE_TRIAGE_MODE", mode), ("QUEUE_TRIAGE_FAMILIES", families), ("QUEUE_TRIAGE_ENFORCE_FAMILIES", enforce)];
    let flags = settings.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let home = tempfile::tempdir().unwrap();
    let sources = Sources { flags, env_file: None, environment: Default::default(), home: home.path().to_owned() };
    Flags::from_config(&Config::load(&sources).unwrap())
}

#[test]
fn every_family_has_the_mode_that_flags_and_clamp_allow() {
    let registry = Registry::builtin();
    for case in cases("modes") {
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        let flags = flags(&text("mode"), &text("families"), &text("enforce"));
        for (name, expected) in case["expect"].as_object().unwrap() {
            let is_registered = registry.lookup(&name.to_lowercase().parse().unwrap()).is_some();
            let resolved = flags.resolve(name, is_registered);
            let clamped = resolved.clamped_from.map(|from| format!("<{}", word(from))).unwrap_or_default();
            assert_eq!(&format!("{}{clamped}", word(resolved.mode)), expected, "{name} in {case}");
            let steps = flags.steps(name, is_registered);
            let matched: Vec<_> = steps.iter().filter(|step| step["matched"] == true).collect();
            assert_eq!((matched.len(), &matched[0]["rule"]), (1, &Value::from(resolved.rule)), "{steps:?}");
        }
    }
}

#[test]
fn items_without_effect_are_told() {
    let told = |flags: &Flags| {
        let ignored = flags.ignored(Some(&Registry::builtin()));
        ignored.into_iter().map(|ignored| (ignored.variable, ignored.item)).collect::<Vec<_>>()
    };
    let enforce = flags("shadow", "", "content,subscriptions,github/workflow_run.completed");
    let variable = "QUEUE_TRIAGE_ENFORCE_FAMILIES";
    assert_eq!(told(&enforce), [(variable, "content".to_owned()), (variable, "subscriptions".to_owned())]);
    assert_eq!(told(&flags("on", "", ""))[0].0, "QUEUE_TRIAGE_MODE");
    assert_eq!(told(&flags("shadow", "content,typo/here", "")), [("QUEUE_TRIAGE_FAMILIES", "typo/here".to_owned())]);
}

#[test]
fn every_answer_ends_as_a_suggestion_or_its_reason() {
    for case in cases("answers") {
        let ended = parse(case["text"].as_str().unwrap());
        let got = ended.as_ref().map_or_else(|refused| refused.fallback.as_str(), |_| "ok");
        assert_eq!(got, case["expect"], "{case}: {ended:?}");
        if let Err(refused) = ended {
            assert!(refused.detail.chars().count() <= 200);
        }
    }
    let many = r#"{"target":1,"handler":2,"routeTarget":3}"#;
    assert_eq!(parse(many).unwrap_err().detail, "routeTarget, handler, target");
}

#[test]
fn what_holds_is_the_suggestion_only_in_enforce_and_a_given_key_always() {
    for case in cases("finals") {
        let suggestion = |key: &str| {
            let priority: Priority = case[key][0].as_str().unwrap().parse().unwrap();
            Suggestion::baseline(priority, case[key][1].as_str().map(str::to_owned))
        };
        let mode = if case["mode"] == "enforce" { TriageMode::Enforce } else { TriageMode::Shadow };
        let dedup = match case["dedup"].as_str().unwrap() {
            "trust" => TriageDedup::Trust,
            "off" => TriageDedup::Off,
            _ => TriageDedup::Verify,
        };
        let provider = Provider::parse(case["provider"].as_str().unwrap()).unwrap();
        let family = "discovery/noted".to_owned();
        let (baseline, suggested) = (suggestion("baseline"), suggestion("suggested"));
        let decision = Decision::suggested(mode, family, baseline, suggested.clone(), provider, dedup);
        assert_eq!(decision.last, suggestion("final"), "{case}");
        assert_eq!((decision.applied, &decision.suggested), (case["applied"] == true, &suggested), "{case}");
    }
}

#[test]
fn a_fallback_is_the_static_values_and_its_record_says_why() {
    let baseline = Suggestion::baseline(Priority::P1, Some("k".into()));
    let family = "discovery/noted".to_owned();
    let detail = Some("exit 2".to_owned());
    let decision = Decision::fallback(TriageMode::Enforce, family, baseline.clone(), Fallback::ModelError, detail);
    assert_eq!((&decision.last, decision.applied), (&baseline, false));
    let record = Value::Object(decision.record());
    assert_eq!(record["fallbackReason"], "model_error");
    assert_eq!((&record["detail"], &record["suggested"]), (&Value::from("exit 2"), &record["final"]));
    assert_eq!(record.get("model"), None);
}
