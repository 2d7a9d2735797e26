//! The deterministic policy: what to do without a model. Pure.
//!
//! | rule | when | what |
//! |---|---|---|
//! | R1 | downstream and pressure are not healthy | pause allowlisted families that fail themselves |
//! | R2 | downstream is healthy | resume what was held for a minute and does not fail |
//! | R3 | downstream is not healthy, pressure is backlogged | tell somebody of what can't be held |
//! | R4 | none of these | nothing |
//!
//! A family is held for its *own* failures only. An old failure plus a burst, one poison event, or another family's
//! trouble are no evidence against it.

use super::actions::{Action, Severity};
use super::findings::{Findings, Pressure, age};
use super::flags::{AUTO_ALLOWLIST, Limits};
use super::gates;
use super::snapshot::{Downstream, FamilyView, Snapshot};

/// How long the rules hold a family.
pub const PAUSE_TTL_MS: u64 = 300_000;
/// Nothing dispatched for so long is a sign.
const SILENT_MS: u64 = 60_000;

/// What the rules suggest: every rule that matches, in order; `noop` when none does.
#[must_use]
pub fn apply(snapshot: &Snapshot, findings: &Findings, limits: &Limits) -> Vec<Action> {
    let (pressure, downstream) = (findings.queue_pressure, findings.downstream_state);
    let mut actions = Vec::new();
    if downstream != Downstream::Healthy && pressure != Pressure::Healthy {
        actions.extend(snapshot.families.iter().filter(|view| may_pause(view, snapshot, limits)).map(|view| {
            let oldest = age(view.oldest_age_ms);
            let reason = format!(
                "downstream {}: {} of {} wait, the oldest for ~{oldest}",
                downstream.as_str(),
                view.total,
                view.family
            );
            Action::PauseFamily { family: view.family.clone(), ttl_ms: PAUSE_TTL_MS, reason }
        }));
    }
    if downstream == Downstream::Healthy {
        let at = snapshot.captured_ms();
        let is_due = |pause: &&super::snapshot::PauseView| {
            pause.is_observers()
                && pause.age_ms(at).is_some_and(|age| age >= limits.pause_dwell_ms)
                && snapshot.fresh_failures(&pause.family) == 0
                && snapshot.breaker(&pause.family) != "open"
        };
        actions.extend(snapshot.control.active_pauses.iter().filter(is_due).map(|pause| Action::ResumeFamily {
            family: pause.family.clone(),
            reason: "downstream is healthy and nothing of it failed since it was paused".into(),
        }));
    }
    if downstream != Downstream::Healthy && pressure == Pressure::Backlogged {
        let is_open = |view: &&FamilyView| {
            let is_being_paused = actions.iter().any(|action| action.family() == Some(view.family.as_str()));
            let is_concerned = downstream == Downstream::Down || has_evidence(view, snapshot);
            !is_being_paused && !snapshot.is_held(&view.family) && is_concerned
        };
        let open: Vec<&str> = snapshot.families.iter().filter(is_open).map(|view| view.family.as_str()).collect();
        if !open.is_empty() {
            let severity = if downstream == Downstream::Down { Severity::Error } else { Severity::Warn };
            let depth = snapshot.totals.depth;
            let message =
                format!("downstream {}: {depth} events wait; not held: {}", downstream.as_str(), open.join(", "));
            let message = message.chars().take(500).collect();
            actions.push(Action::Escalate { channel: "telegram".into(), severity, message });
        }
    }
    if actions.is_empty() {
        let reason = format!("pressure {}, downstream {}: no rule applies", pressure.as_str(), downstream.as_str());
        actions.push(Action::Noop { reason });
    }
    actions
}

fn may_pause(view: &FamilyView, snapshot: &Snapshot, limits: &Limits) -> bool {
    let is_much = view.total >= 5 || view.oldest_age_ms.unwrap_or(0) >= 300_000;
    AUTO_ALLOWLIST.contains(&view.family.as_str())
        && !snapshot.is_held(&view.family)
        && is_much
        && has_evidence(view, snapshot)
        && gates::budgets(&view.family, PAUSE_TTL_MS, snapshot, limits).is_none()
}

/// The family itself fails. A snapshot of version 1 can't tell; there, it counts as failing.
#[must_use]
pub fn has_evidence(view: &FamilyView, snapshot: &Snapshot) -> bool {
    if !snapshot.is_detailed() {
        return true;
    }
    let recent = view.last_5m.unwrap_or_default();
    let fails = recent.failed_events >= 3 && recent.failures * 2 >= recent.attempts;
    let is_silent = view.last_dispatch_age_ms.is_none_or(|age| age >= SILENT_MS)
        && view.oldest_age_ms.is_some_and(|age| age >= SILENT_MS)
        && view.free.unwrap_or(0) > 0
        && snapshot.drainer.consumers.unwrap_or(0) > 0;
    !matches!(snapshot.breaker(&view.family), "closed" | "forced_closed") || fails || is_silent
}
