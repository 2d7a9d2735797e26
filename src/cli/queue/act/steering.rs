//! What the commands that steer a family share.

use serde_json::{Value, json};

use super::super::super::output::{Failure, NextAction};
use super::super::since::iso;
use crate::diagnose::Exit;
use crate::streams::family::Family;
use crate::streams::steering::Steering;

/// Steering as results show it.
pub(in crate::cli::queue) fn view(steering: &Steering, now_ms: u64) -> Value {
    json!({
        "kind": steering.kind,
        "family": steering.family,
        "priority": steering.priority,
        "everyMs": steering.every_ms,
        "max": steering.max,
        "ttlMs": steering.ttl_ms,
        "reason": steering.reason,
        "actor": steering.actor,
        "appliedAt": iso(steering.applied_at_ms),
        "expiresAt": iso(steering.expires_at_ms),
        "expiresInMs": steering.expires_at_ms.saturating_sub(now_ms),
    })
}

pub(super) fn not_in_force(family: &Family, what: &str) -> Failure {
    let message = format!("Queue family {family} {what}");
    let failure = Failure::new("QUEUE_CONTROL_NOT_IN_FORCE", Exit::NotFound, message, "joelclaw queue control status");
    failure.next(NextAction::new("queue control status", "See what is in force"))
}
