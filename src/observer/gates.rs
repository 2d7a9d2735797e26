//! From suggestion to application: what may be applied, judged on a snapshot. Pure.
//!
//! `observe_apply.lua` judges the same again on what is in Redis by then, with the change in the same script; a test runs
//! both over the same cases. Here they tell what *would* be applied, keep the rules from suggesting what would be refused,
//! and are the gates of the simulator.

use super::actions::Action;
use super::flags::{HOLD_WINDOW_MS, Limits};
use super::snapshot::Snapshot;

/// Why an action is not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A code of the closed set.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

impl Refusal {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The gates that a decision passes before anything in Redis is looked at: kind, allowlist.
#[must_use]
pub fn by_kind(action: &Action, auto: &[String]) -> Option<Refusal> {
    match action {
        Action::Noop { .. } | Action::Escalate { .. } => None,
        Action::PauseFamily { family, .. } | Action::ResumeFamily { family, .. } if !auto.contains(family) => {
            Some(Refusal::new("not_auto_family", format!("{family} is not an automatic family")))
        }
        Action::PauseFamily { .. } | Action::ResumeFamily { .. } => None,
        other => Some(Refusal::new("not_auto_kind", format!("{} is never applied automatically", other.kind()))),
    }
}

/// The gates that look at the state of the family, judged on the snapshot.
#[must_use]
pub fn by_state(action: &Action, snapshot: &Snapshot, limits: &Limits) -> Option<Refusal> {
    match action {
        Action::PauseFamily { family, ttl_ms, .. } => pause(family, *ttl_ms, snapshot, limits),
        Action::ResumeFamily { family, .. } => resume(family, snapshot, limits),
        _ => None,
    }
}

fn pause(family: &str, ttl_ms: u64, snapshot: &Snapshot, limits: &Limits) -> Option<Refusal> {
    if let Some(refusal) = standing(family, snapshot) {
        return Some(refusal);
    }
    if snapshot.pause(family).is_some() {
        return Some(Refusal::new("already_paused", format!("{family} is paused already")));
    }
    budgets(family, ttl_ms, snapshot, limits)
}

/// Depth, dwell times, budget and the limit of holds: what a pause must pass even where nothing holds the family.
#[must_use]
pub fn budgets(family: &str, ttl_ms: u64, snapshot: &Snapshot, limits: &Limits) -> Option<Refusal> {
    let Some(view) = snapshot.family(family).filter(|view| view.total > 0) else {
        return Some(Refusal::new("empty_family", format!("nothing of {family} waits")));
    };
    if let Some(age) = view.last_resume_age_ms {
        if view.last_resume_by.as_deref() == Some("manual") {
            if age < limits.manual_quiet_ms {
                return Some(Refusal::new(
                    "manual_quiet",
                    format!("an operator resumed {family} {} s ago", age / 1000),
                ));
            }
        } else if age < limits.resume_dwell_ms {
            return Some(Refusal::new("dwell", format!("{family} was resumed {} s ago", age / 1000)));
        }
    }
    let budget = snapshot.control.budget.as_ref()?;
    let used = budget.per_family.get(family).copied().unwrap_or(0);
    if used >= limits.pauses_per_family || budget.used_hour >= limits.pauses_in_all {
        let message = format!("{used} pauses of {family} and {} in all in the last hour", budget.used_hour);
        return Some(Refusal::new("budget_exhausted", message));
    }
    let held = budget.held_ms.get(family).copied().unwrap_or(0);
    if held + ttl_ms.min(limits.max_ttl_ms) > limits.hold_ms {
        let minutes = HOLD_WINDOW_MS / 60_000;
        let message = format!("{family} was held for {} s in the last {minutes} minutes", held / 1000);
        return Some(Refusal::new("hold_limit", message));
    }
    None
}

fn resume(family: &str, snapshot: &Snapshot, limits: &Limits) -> Option<Refusal> {
    if !snapshot.is_held(family) {
        return Some(Refusal::new("not_paused", format!("No active pause existed for {family}")));
    }
    if let Some(refusal) = standing(family, snapshot) {
        return Some(refusal);
    }
    let age = snapshot.pause(family).and_then(|pause| pause.age_ms(snapshot.captured_ms()));
    if age.is_none_or(|age| age < limits.pause_dwell_ms) {
        let message = format!("{family} was paused less than {} s ago", limits.pause_dwell_ms / 1000);
        return Some(Refusal::new("dwell", message));
    }
    None
}

/// The operator's word stands; so does a record that can't be read, which may be the operator's.
fn standing(family: &str, snapshot: &Snapshot) -> Option<Refusal> {
    let is_manual = match snapshot.pause(family) {
        Some(pause) => !pause.is_observers(),
        None => snapshot.is_held(family),
    };
    is_manual.then(|| Refusal::new("manual_pause_active", format!("an operator paused {family}")))
}
