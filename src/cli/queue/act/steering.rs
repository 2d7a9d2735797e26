//! What the commands that steer a family share.

use serde_json::{Value, json};

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::Human;
use super::super::since::iso;
use super::super::{bus_to_change, redis_of};
use super::pause::{invalid_ttl, ttl};
use super::{actor, reason_or};
use crate::diagnose::Exit;
use crate::streams::family::Family;
use crate::streams::steering::{Slot, Steering, Wish};

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

/// What a command that steers is asked for, and the words in which it answers.
pub(super) struct Asked<'a> {
    /// The event name.
    pub family: &'a Family,
    /// What is wished, its name in the result, and what is told then. `None` ends what is in force.
    pub wish: Option<(Wish, &'static str, String)>,
    /// What is steered.
    pub slot: Slot,
    /// How long, as it was written.
    pub ttl: &'a str,
    /// Why, if given.
    pub reason: Option<&'a str>,
    /// Who, if given.
    pub actor: Option<&'a str>,
    /// What is said of a family in which nothing is in force.
    pub nothing: &'static str,
    /// What is told of the end.
    pub ended: String,
    /// The command that ends it, and what it brings.
    pub undo: (&'static str, &'static str),
}

/// Steers, or ends it.
pub(super) async fn run(asked: Asked<'_>, context: &Context) -> Result<Report, Failure> {
    let family = asked.family;
    let reason = reason_or(asked.reason, || format!("Manual change from {} for {family}", context.command));
    let actor = actor(asked.actor, context);
    let status = NextAction::new("queue control status", "See what is in force");
    let Some((wish, name, told)) = asked.wish else {
        let bus = bus_to_change(context).await?;
        let ended = bus.end_steering(family, asked.slot, &reason, &actor).await?;
        let ended = ended.ok_or_else(|| not_in_force(family, asked.nothing))?;
        let result = json!({ "ok": true, "family": family, "ended": view(&ended, bus.now_ms().await?),
            "redis": redis_of(&bus, context).await });
        return Ok(Report::new(result, Human::new().text(asked.ended)).next(status));
    };
    let longest = context.config.queue.pause_max_ttl;
    let lasts = ttl(asked.ttl, longest).ok_or_else(|| invalid_ttl("--ttl", asked.ttl, longest))?;
    let bus = bus_to_change(context).await?;
    let (now_in_force, replaced) = bus.steer(family, wish, lasts, &reason, &actor).await?;
    let now = now_in_force.applied_at_ms;
    let mut result = json!({ "ok": true });
    result[name] = view(&now_in_force, now);
    if let Some(replaced) = replaced {
        result["replaced"] = view(&replaced, now);
    }
    result["redis"] = redis_of(&bus, context).await;
    let undo =
        NextAction::new(asked.undo.0, asked.undo.1).param("family", Param::new().value(family.as_str()).required());
    Ok(Report::new(result, Human::new().text(told)).next(undo).next(status))
}

fn not_in_force(family: &Family, what: &str) -> Failure {
    let message = format!("Queue family {family} {what}");
    let failure = Failure::new("QUEUE_CONTROL_NOT_IN_FORCE", Exit::NotFound, message, "joelclaw queue control status");
    failure.next(NextAction::new("queue control status", "See what is in force"))
}
