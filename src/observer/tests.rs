//! The worked examples (`tests/vectors/observer.json`), and what holds for any snapshot and any answer.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::actions::Action;
use super::answer;
use super::decide::{self, Decision, FallbackReason, Reply, Step};
use super::flags::{Limits, Policy, Provider, Trigger};
use super::snapshot::*;
use super::{findings, gates};
use crate::config::ObserverMode;
use crate::moment::iso;

const T: u64 = 1_772_971_200_000;

fn name(short: &str) -> String {
    match short {
        "C" => "content/updated",
        "N" => "discovery/noted",
        "W" => "github/workflow_run.completed",
        other => other,
    }
    .to_owned()
}

/// A snapshot in the notation of the examples.
fn snapshot(text: &str) -> Snapshot {
    let mut made = Snapshot {
        schema_version: 1,
        snapshot_id: "s".into(),
        captured_at: iso(T).unwrap(),
        window: None,
        totals: Totals::default(),
        families: Vec::new(),
        triage: TriageView::default(),
        drainer: DrainerView::default(),
        gateway: GatewayView { quiet_hours: Some(false), ..GatewayView::default() },
        control: ControlView::default(),
    };
    for word in text.split_whitespace() {
        let (kind, args) = word.trim_end_matches(')').split_once('(').unwrap_or((word, ""));
        let args: Vec<&str> = args.split(',').collect();
        let number = |at: usize| args[at].parse::<u64>().unwrap();
        match kind {
            "v2" => made.schema_version = 2,
            "kill" => made.control.kill_switch = Some(true),
            "q" => {
                let total = number(1);
                let by_priority = ByPriority { p1: total, ..ByPriority::default() };
                let last_5m = args.get(3).map(|text| {
                    let parts: Vec<u64> = text.split('/').map(|n| n.parse().unwrap()).collect();
                    Last5m { attempts: parts[0], failures: parts[1], failed_events: parts[2] }
                });
                made.families.push(FamilyView {
                    family: name(args[0]),
                    total,
                    by_priority,
                    oldest_age_ms: Some(number(2)),
                    newest_age_ms: Some(1000),
                    last_dispatch_age_ms: Some(1000),
                    last_5m,
                    ..FamilyView::default()
                });
                made.totals.depth += total;
                made.totals.by_priority.add(by_priority);
                made.totals.oldest_age_ms = made.totals.oldest_age_ms.max(Some(number(2)));
                made.totals.newest_age_ms = Some(1000);
            }
            "p" => made.control.active_pauses.push(PauseView {
                family: name(args[0]),
                reason: "drill".into(),
                source: args[1].into(),
                mode: "enforce".into(),
                applied_at: iso(T - number(2)).unwrap(),
                expires_at: iso(T + number(3)).unwrap(),
                expires_in_ms: number(3),
                rev: None,
            }),
            "d" => {
                made.drainer.state = serde_json::from_value(json!(args[0])).unwrap();
                made.drainer.recent_dispatches = number(1);
                made.drainer.recent_failures = number(2);
            }
            "t" => (made.triage.failed, made.triage.fallbacks) = (number(0), number(1)),
            "fresh" => family(&mut made, args[0]).fresh_failures = Some(number(1)),
            "breaker" => family(&mut made, args[0]).breaker = Some(args[1].into()),
            "resumed" => {
                let age = number(2);
                family(&mut made, args[0]).last_resume_by = Some(args[1].into());
                family(&mut made, args[0]).last_resume_age_ms = Some(age);
            }
            "budget" => {
                let per_family = [(name(args[0]), number(1))].into();
                made.control.budget = Some(BudgetView { used_hour: number(1), per_family, ..BudgetView::default() });
            }
            other => panic!("{other}"),
        }
    }
    made.control.active_pauses.sort_by_key(|pause| pause.expires_in_ms);
    made
}

fn family<'a>(snapshot: &'a mut Snapshot, short: &str) -> &'a mut FamilyView {
    let name = name(short);
    snapshot.families.iter_mut().find(|family| family.family == name).unwrap()
}

fn policy(mode: ObserverMode, auto: &[&str], providers: Vec<Provider>) -> Policy {
    Policy {
        mode,
        observe: ["C", "N", "W"].map(name).to_vec(),
        auto: auto.iter().map(|short| name(short)).collect(),
        interval: std::time::Duration::from_secs(60),
        providers,
        model: "m".into(),
        timeout: std::time::Duration::from_secs(60),
        limits: Limits::default(),
    }
}

fn run(snapshot: &Snapshot, policy: &Policy, trigger: Trigger, reply: Option<&Reply>) -> Decision {
    let mut step = decide::begin(snapshot, policy, trigger);
    loop {
        match step {
            Step::Decided(decision) => return *decision,
            Step::Ask { at } => step = decide::resume(at, reply.expect("a model is asked"), snapshot, policy, trigger),
        }
    }
}

fn told(action: &Action) -> String {
    let short = |family: &str| match family {
        "content/updated" => "C",
        "discovery/noted" => "N",
        _ => "W",
    };
    match action {
        Action::Escalate { severity, .. } => format!("escalate {}", severity.as_str()),
        Action::Noop { .. } => "noop".into(),
        other => format!("{} {}", other.kind(), short(other.family().unwrap())),
    }
}

/// An answer with healthy findings; families in short.
fn answer_of(case: &Value) -> Option<Reply> {
    if let Some(reason) = case["fails"].as_str() {
        let reason = serde_json::from_value(json!(reason)).unwrap();
        return Some(Reply::Failed { reason, detail: "143".into() });
    }
    let text = |text: String| Some(Reply::Text { text, model: None, detail: None });
    if let Some(plain) = case["text"].as_str() {
        return text(plain.into());
    }
    let summary = "s".repeat(usize::try_from(case["long_summary"].as_u64().unwrap_or(5)).unwrap());
    let mut actions = match (&case["model"]["actions"], &case["long_summary"]) {
        (Value::Null, Value::Null) => return None,
        (Value::Null, _) => json!([]),
        (actions, _) => actions.clone(),
    };
    for action in actions.as_array_mut().unwrap() {
        if let Some(family) = action["family"].as_str().map(name) {
            action["family"] = json!(family);
        }
    }
    let findings = json!({ "queuePressure": "healthy", "downstreamState": "healthy", "summary": summary });
    text(json!({ "findings": findings, "actions": actions }).to_string())
}

#[test]
fn the_worked_examples_hold() {
    let vectors: Value = serde_json::from_str(include_str!("../../tests/vectors/observer.json")).unwrap();
    for case in vectors["cases"].as_array().unwrap() {
        let n = case["n"].as_str().unwrap();
        let made = snapshot(case["in"].as_str().unwrap());
        let mode = serde_json::from_value(case.get("mode").cloned().unwrap_or(json!("dry-run"))).unwrap();
        let trigger = serde_json::from_value(case.get("trigger").cloned().unwrap_or(json!("cron"))).unwrap();
        let auto: Vec<&str> = case["auto"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let reply = answer_of(case);
        let command = Provider::Model(crate::model::Provider::Command);
        let chain = match (&reply, case["behind"].as_bool()) {
            (None, _) => vec![Provider::Rules],
            (Some(_), Some(true)) => vec![Provider::Rules, command],
            (Some(_), _) => vec![command],
        };
        let policy = policy(mode, &auto, chain);
        let decision = run(&made, &policy, trigger, reply.as_ref());
        let again = run(&made, &policy, trigger, reply.as_ref());
        assert_eq!(json!(decision).to_string(), json!(again).to_string(), "{n}");
        let list = |actions: &[Action]| actions.iter().map(told).collect::<Vec<_>>();
        let check = |key: &str, actual: Value| {
            if let Some(expected) = case.get(key) {
                assert_eq!(&actual, expected, "case {n}, {key}: {decision:#?}");
            }
        };
        check("rule", json!(decision.rule));
        check("provider", json!(decision.provider));
        check("final", json!(list(&decision.final_actions)));
        check("would", json!(list(&decision.would_apply)));
        check("fallback", json!(decision.fallback_reason));
        check("exact", json!(decision.suggested_actions));
        check("summary_length", json!(decision.findings.summary.chars().count()));
        check("summary", json!(decision.findings.summary));
        if case.get("exact").is_none() {
            check("suggested", json!(list(&decision.suggested_actions)));
        }
        if case.get("model").is_none() {
            let found = &decision.findings;
            check("findings", json!(format!("{}/{}", found.queue_pressure.as_str(), found.downstream_state.as_str())));
        }
        assert_eq!(decision.fallback_reason.is_some(), case.get("fallback").is_some(), "case {n}: {decision:#?}");
        for part in case["names"].as_array().into_iter().flatten() {
            assert!(decision.findings.summary.contains(part.as_str().unwrap()), "case {n}: {decision:#?}");
        }
        if let Some(reason) = case["reason"].as_str() {
            assert!(decision.suggested_actions[0].reason().contains(reason), "case {n}");
        }
        if let Some(state) = case["settled"].as_str() {
            let mut settled = made.clone();
            settled.settle();
            assert_eq!(settled.drainer.state.as_str(), state, "case {n}");
        }
        if let Some(ttl) = case["ttl"].as_u64() {
            assert!(matches!(&decision.suggested_actions[0], Action::PauseFamily { ttl_ms, .. } if *ttl_ms == ttl));
        }
        for (expected, action) in case["refused"].as_array().into_iter().flatten().zip(&decision.suggested_actions) {
            let refusal =
                gates::by_kind(action, &policy.auto).or_else(|| gates::by_state(action, &made, &policy.limits));
            assert_eq!(json!(refusal.map(|refusal| refusal.reason)), *expected, "case {n}");
        }
    }
}

#[test]
fn an_action_on_the_rest_is_unsafe() {
    let mut made = snapshot("q(C,6,60000)");
    made.families[0].family = OTHER.into();
    let text = json!({ "findings": { "queuePressure": "healthy", "downstreamState": "healthy", "summary": "s" },
        "actions": [{ "kind": "pause_family", "family": OTHER, "ttlMs": 60_000, "reason": "x" }] });
    assert!(matches!(answer::read(&text.to_string(), &made), Err(answer::Refused::Unsafe(_))));
}

#[test]
fn ages_in_summaries_are_short() {
    let table = [
        (None, "0s"),
        (Some(0), "0s"),
        (Some(1), "1s"),
        (Some(59_000), "59s"),
        (Some(180_000), "3m"),
        (Some(7_200_000), "2h"),
    ];
    for (ms, text) in table {
        assert_eq!(findings::age(ms), text);
    }
}

prop_compose! {
    fn any_snapshot()(
        version in 1u32..3,
        queued in prop::collection::vec((0u64..60, 0u64..2_000_000, 0u64..8, 0u64..8, any::<bool>()), 3),
        pauses in prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..200_000, 1u64..900_000), 3),
        drainer in (0u8..3, 0u64..100, 0u64..10),
        triage in (0u64..2, 0u64..2),
    ) -> Snapshot {
        let mut made = snapshot(if version == 2 { "v2" } else { "" });
        let names = ["C", "N", "W"];
        for ((total, oldest, attempts, failures, is_open), short) in queued.into_iter().zip(names) {
            if total > 0 {
                let word = format!("q({short},{total},{oldest},{attempts}/{failures}/{failures})");
                let part = snapshot(&word);
                made.families.extend(part.families);
                made.totals.depth += total;
                made.totals.oldest_age_ms = made.totals.oldest_age_ms.max(Some(oldest));
                if is_open {
                    made.families.last_mut().unwrap().breaker = Some("open".into());
                }
            }
        }
        for ((is_there, is_manual, age, left), short) in pauses.into_iter().zip(names) {
            if is_there {
                let source = if is_manual { "manual" } else { "observer" };
                made.control.active_pauses.extend(snapshot(&format!("p({short},{source},{age},{left})")).control.active_pauses);
            }
        }
        made.control.active_pauses.sort_by_key(|pause| pause.expires_in_ms);
        made.drainer.state = [Downstream::Healthy, Downstream::Degraded, Downstream::Down][usize::from(drainer.0)];
        (made.drainer.recent_dispatches, made.drainer.recent_failures) = (drainer.1, drainer.2);
        (made.triage.failed, made.triage.fallbacks) = triage;
        made
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_decision_never_leaves_its_bounds(made in any_snapshot(), enforce in any::<bool>(), cron in any::<bool>()) {
        let mode = if enforce { ObserverMode::Enforce } else { ObserverMode::DryRun };
        let policy = policy(mode, &["C"], vec![Provider::Rules]);
        let trigger = if cron { Trigger::Cron } else { Trigger::Manual };
        let decision = run(&made, &policy, trigger, None);
        prop_assert_eq!(json!(&decision).to_string(), json!(run(&made, &policy, trigger, None)).to_string());
        for action in &decision.suggested_actions {
            if let Some(family) = action.family() {
                prop_assert!(made.family(family).is_some() || made.is_held(family));
            }
            if let Action::ResumeFamily { family, .. } = action {
                prop_assert!(made.pause(family).is_some_and(PauseView::is_observers));
            }
            if let Action::PauseFamily { family, .. } = action {
                prop_assert!(!made.is_held(family));
            }
        }
        for list in [&decision.final_actions, &decision.would_apply] {
            prop_assert!(list.iter().all(|action| decision.suggested_actions.contains(action)));
        }
        prop_assert!(decision.final_actions.is_empty() || (enforce && cron));
    }

    #[test]
    fn any_answer_ends_in_exactly_one_way(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let made = snapshot("q(C,6,60000)");
        let _ = answer::read(&String::from_utf8_lossy(&bytes), &made);
    }

    #[test]
    fn any_json_ends_in_exactly_one_way(kind in "noop|pause_family|escalate|x", ttl in any::<i64>(), extra in "[a-z]{0,8}", text in ".{0,600}") {
        let made = snapshot("q(C,6,60000)");
        let findings = json!({ "queuePressure": "healthy", "downstreamState": "down", "summary": text });
        let action = json!({ "kind": kind, "family": "content/updated", "ttlMs": ttl, "reason": extra, "message": text });
        let read = answer::read(&json!({ "findings": findings, "actions": [action] }).to_string(), &made);
        if let Ok(accepted) = read {
            prop_assert!(accepted.findings.summary.chars().count() <= 500);
        }
    }
}

#[test]
fn every_fallback_reason_has_its_word() {
    let all = [
        FallbackReason::Disabled,
        FallbackReason::Timeout,
        FallbackReason::ModelError,
        FallbackReason::InvalidJson,
        FallbackReason::SchemaError,
        FallbackReason::UnsafeAction,
    ];
    for reason in all {
        assert_eq!(json!(reason), json!(reason.as_str()));
    }
}
