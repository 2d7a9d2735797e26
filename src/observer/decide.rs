//! The decision of one pass. Pure: what a model says is an input.
//!
//! D0 to D4 need nobody; whatever they don't cover goes through the chain of providers, the deterministic rules among
//! them ([`super::rules`]). The same snapshot, policy and answers give the same decision, to the byte.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::actions::Action;
use super::answer::{self, Refused};
use super::findings::{self, Findings, age};
use super::flags::{Policy, Provider, Trigger};
use super::snapshot::{Downstream, Snapshot};
use super::{gates, rules};
use crate::config::ObserverMode;

/// Why no provider decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackReason {
    /// The observer is off.
    Disabled,
    /// The deadline passed.
    Timeout,
    /// Nothing usable could be asked, or it said nothing.
    ModelError,
    /// Text, but no bare JSON.
    InvalidJson,
    /// JSON of another shape.
    SchemaError,
    /// It named what the snapshot doesn't hold.
    UnsafeAction,
}

impl FallbackReason {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Timeout => "timeout",
            Self::ModelError => "model_error",
            Self::InvalidJson => "invalid_json",
            Self::SchemaError => "schema_error",
            Self::UnsafeAction => "unsafe_action",
        }
    }
}

/// What came of asking a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It said this.
    Text {
        /// The text.
        text: String,
        /// The model that answered.
        model: Option<String>,
        /// What else is worth a record.
        detail: Option<String>,
    },
    /// It said nothing usable.
    Failed {
        /// `timeout` or `model_error`.
        reason: FallbackReason,
        /// At most 200 characters.
        detail: String,
    },
}

/// The record of a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The configured mode.
    pub mode: ObserverMode,
    /// The model that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `shortcut`, `rules`, or the model's provider.
    pub provider: String,
    /// `D1` to `D4`, or the rules that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What it is about.
    pub snapshot_id: String,
    /// What was found.
    pub findings: Findings,
    /// Where a model found something else than the derivations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings_delta: Option<Value>,
    /// What is suggested.
    pub suggested_actions: Vec<Action>,
    /// Of that, what is tried.
    pub final_actions: Vec<Action>,
    /// What enforcing would apply.
    pub would_apply: Vec<Action>,
    /// What was applied.
    pub applied_count: u64,
    /// Why no provider decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_reason: Option<FallbackReason>,
    /// More about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How long it took.
    pub latency_ms: u64,
}

/// Where a decision stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Made.
    Decided(Box<Decision>),
    /// The provider with this number of the chain must be asked.
    Ask {
        /// Its place in [`Policy::providers`].
        at: usize,
    },
}

/// The first step of a decision.
#[must_use]
pub fn begin(snapshot: &Snapshot, policy: &Policy, trigger: Trigger) -> Step {
    if policy.mode == ObserverMode::Off {
        let reason = FallbackReason::Disabled;
        return Step::Decided(Box::new(fallback(snapshot, policy, "none", reason, String::new())));
    }
    match shortcut(snapshot) {
        Some((rule, findings, actions)) => {
            let made = Made {
                provider: "shortcut",
                rule: Some(rule.to_owned()),
                model: None,
                findings,
                actions,
                detail: None,
            };
            Step::Decided(Box::new(decision(made, snapshot, policy, trigger)))
        }
        None => from(0, snapshot, policy, trigger),
    }
}

/// Goes on with what the provider at `at` said.
#[must_use]
pub fn resume(at: usize, reply: &Reply, snapshot: &Snapshot, policy: &Policy, trigger: Trigger) -> Step {
    let provider = match policy.providers.get(at) {
        Some(Provider::Model(name)) => name.as_str(),
        Some(Provider::Rules) => "rules",
        _ => "none",
    };
    let (reason, detail) = match reply {
        Reply::Failed { reason, detail } => (*reason, detail.clone()),
        Reply::Text { text, .. } if text.trim().is_empty() => (FallbackReason::ModelError, "empty output".into()),
        Reply::Text { text, model, detail } => match answer::read(text, snapshot) {
            Ok(accepted) => {
                let made = Made {
                    provider,
                    rule: None,
                    model: Some(model.clone().unwrap_or_else(|| policy.model.clone())),
                    findings: accepted.findings,
                    actions: accepted.actions,
                    detail: detail.clone(),
                };
                return Step::Decided(Box::new(decision(made, snapshot, policy, trigger)));
            }
            Err(refused) => {
                let reason = match refused {
                    Refused::InvalidJson => FallbackReason::InvalidJson,
                    Refused::Schema(_) => FallbackReason::SchemaError,
                    Refused::Unsafe(_) => FallbackReason::UnsafeAction,
                };
                (reason, refused.to_string())
            }
        },
    };
    if at + 1 < policy.providers.len() {
        return from(at + 1, snapshot, policy, trigger);
    }
    Step::Decided(Box::new(fallback(snapshot, policy, provider, reason, detail)))
}

fn from(at: usize, snapshot: &Snapshot, policy: &Policy, trigger: Trigger) -> Step {
    match policy.providers.get(at) {
        Some(Provider::Rules) => {
            let findings = findings::derive(snapshot);
            let actions = rules::apply(snapshot, &findings, &policy.limits);
            let is_idle = actions.iter().all(|action| matches!(action, Action::Noop { .. }));
            let is_calm = findings.queue_pressure == findings::Pressure::Healthy
                && findings.downstream_state == Downstream::Healthy;
            if is_idle && !is_calm && at + 1 < policy.providers.len() {
                return from(at + 1, snapshot, policy, trigger);
            }
            let rule = rules_of(&actions);
            let made = Made { provider: "rules", rule: Some(rule), model: None, findings, actions, detail: None };
            Step::Decided(Box::new(decision(made, snapshot, policy, trigger)))
        }
        Some(Provider::Model(_)) => Step::Ask { at },
        Some(Provider::None) | None => {
            let reason = FallbackReason::ModelError;
            Step::Decided(Box::new(fallback(snapshot, policy, "none", reason, "no_provider".into())))
        }
    }
}

fn rules_of(actions: &[Action]) -> String {
    let of = |action: &Action| match action {
        Action::PauseFamily { .. } => "R1",
        Action::ResumeFamily { .. } => "R2",
        Action::Escalate { .. } => "R3",
        _ => "R4",
    };
    let mut rules: Vec<_> = actions.iter().map(of).collect();
    rules.dedup();
    rules.join(",")
}

/// D1 to D4: what needs nobody's judgement.
fn shortcut(snapshot: &Snapshot) -> Option<(&'static str, Findings, Vec<Action>)> {
    let findings = findings::derive(snapshot);
    let pauses = snapshot.control.active_pauses.len();
    let noop = |reason: String| vec![Action::Noop { reason }];
    if snapshot.totals.depth == 0 && snapshot.families.is_empty() {
        return Some(match pauses {
            0 => ("D1", findings, noop("queue is empty, nothing to do".into())),
            1 => {
                ("D2", findings, noop("queue is empty, nothing to do; the remaining pause can expire by itself".into()))
            }
            _ => (
                "D2",
                findings,
                noop("queue is empty, nothing to do; the remaining pauses can expire by themselves".into()),
            ),
        });
    }
    if is_manual_hold(snapshot) {
        let next =
            snapshot.families.iter().filter_map(|view| snapshot.pause(&view.family)).map(|pause| pause.expires_in_ms);
        let summary = format!(
            "Queue depth {}: held by an operator: {}; the oldest waits for ~{}; the next pause ends in ~{}",
            snapshot.totals.depth,
            names(snapshot),
            age(snapshot.totals.oldest_age_ms),
            age(next.min()),
        );
        let findings = Findings { downstream_state: Downstream::Healthy, summary, ..findings };
        return Some(("D3", findings, noop("an operator holds everything that waits; that stands".into())));
    }
    if snapshot.is_settled_hold() {
        let at = snapshot.captured_ms();
        let youngest = snapshot.families.iter().filter_map(|view| snapshot.pause(&view.family)?.age_ms(at)).min();
        let summary = format!(
            "Queue depth {}: held by the observer: {}; the youngest pause is ~{} old and nothing failed since",
            snapshot.totals.depth,
            names(snapshot),
            age(youngest),
        );
        // In the order of the active pauses: the next to end first.
        let queued = snapshot.control.active_pauses.iter().filter(|pause| snapshot.family(&pause.family).is_some());
        let resume = queued.map(|pause| Action::ResumeFamily {
            family: pause.family.clone(),
            reason: "held by the observer for a minute, and nothing of it failed since".into(),
        });
        return Some(("D4", Findings { summary, ..findings }, resume.collect()));
    }
    None
}

fn names(snapshot: &Snapshot) -> String {
    let names: Vec<&str> = snapshot.families.iter().take(10).map(|view| view.family.as_str()).collect();
    names.join(", ")
}

/// Every queued family is held by an operator, and nothing tells of trouble.
fn is_manual_hold(snapshot: &Snapshot) -> bool {
    let is_manual = |name: &str| snapshot.pause(name).is_some_and(|pause| !pause.is_observers());
    snapshot.totals.depth > 0
        && !snapshot.families.is_empty()
        && snapshot.families.iter().all(|view| is_manual(&view.family) && snapshot.fresh_failures(&view.family) == 0)
        && snapshot.totals.oldest_age_ms.unwrap_or(0) <= findings::BACKLOGGED_MS
        && snapshot.triage.failed + snapshot.triage.fallbacks == 0
}

struct Made<'a> {
    provider: &'a str,
    rule: Option<String>,
    model: Option<String>,
    findings: Findings,
    actions: Vec<Action>,
    detail: Option<String>,
}

fn decision(made: Made<'_>, snapshot: &Snapshot, policy: &Policy, trigger: Trigger) -> Decision {
    let is_kill_switched = snapshot.control.kill_switch == Some(true);
    let may_apply = trigger == Trigger::Cron && policy.mode == ObserverMode::Enforce && !is_kill_switched;
    let is_for_auto =
        |action: &&Action| gates::by_kind(action, &policy.auto).is_none() && !matches!(action, Action::Noop { .. });
    let tried: Vec<Action> = made.actions.iter().filter(is_for_auto).cloned().collect();
    let would_apply =
        tried.iter().filter(|action| gates::by_state(action, snapshot, &policy.limits).is_none()).cloned().collect();
    let derived = findings::derive(snapshot);
    let delta = (made.model.is_some() && !is_same(&made.findings, &derived)).then(|| {
        json!({ "queuePressure": [derived.queue_pressure, made.findings.queue_pressure],
                "downstreamState": [derived.downstream_state, made.findings.downstream_state] })
    });
    Decision {
        mode: policy.mode,
        model: made.model,
        provider: made.provider.to_owned(),
        rule: made.rule,
        snapshot_id: snapshot.snapshot_id.clone(),
        findings: made.findings,
        findings_delta: delta,
        suggested_actions: made.actions,
        final_actions: if may_apply { tried } else { Vec::new() },
        would_apply,
        applied_count: 0,
        fallback_reason: None,
        detail: made.detail,
        latency_ms: 0,
    }
}

fn is_same(a: &Findings, b: &Findings) -> bool {
    a.queue_pressure == b.queue_pressure && a.downstream_state == b.downstream_state
}

/// Nobody decided: what was derived, and nothing to do.
fn fallback(snapshot: &Snapshot, policy: &Policy, provider: &str, reason: FallbackReason, detail: String) -> Decision {
    let mut findings = findings::derive(snapshot);
    findings.summary = format!("{}; observer fallback {}", findings.summary, reason.as_str());
    Decision {
        mode: policy.mode,
        model: (provider != "none" && provider != "rules").then(|| policy.model.clone()),
        provider: provider.to_owned(),
        rule: None,
        snapshot_id: snapshot.snapshot_id.clone(),
        findings,
        findings_delta: None,
        suggested_actions: Vec::new(),
        final_actions: Vec::new(),
        would_apply: Vec::new(),
        applied_count: 0,
        fallback_reason: Some(reason),
        detail: (!detail.is_empty()).then(|| detail.chars().take(200).collect()),
        latency_ms: 0,
    }
}
