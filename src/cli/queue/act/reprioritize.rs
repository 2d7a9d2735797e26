//! `joelclaw queue reprioritize`: let the events of a family count as of another priority, for a while.

use serde_json::json;

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::Human;
use super::super::{bus_to_change, redis_of};
use super::pause::{invalid_ttl, ttl};
use super::steering::{not_in_force, view};
use super::{actor, reason_or};
use crate::streams::family::Family;
use crate::streams::priority::Priority;
use crate::streams::steering::{Slot, Wish};

/// Let the events of a family count as of another priority, for a while; nothing moves
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue reprioritize content/updated P0 --ttl 30m --reason 'release'\n  \
                        joelclaw queue reprioritize content/updated --end")]
pub struct Args {
    /// The event name
    family: Family,
    /// P0 to P3
    #[arg(required_unless_present = "end")]
    priority: Option<Priority>,
    /// How long: 60 s to QUEUE_PAUSE_MAX_TTL_MS; bare digits are seconds
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    ttl: String,
    /// Back to the stored priorities
    #[arg(long, conflicts_with_all = ["priority", "ttl"])]
    end: bool,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let family = &args.family;
    let reason = reason_or(args.reason.as_deref(), || format!("Manual change from {} for {family}", context.command));
    let actor = actor(args.actor.as_deref(), context);
    let status = NextAction::new("queue control status", "See what is in force");
    let Some(priority) = args.priority.filter(|_| !args.end) else {
        let bus = bus_to_change(context).await?;
        let ended = bus.end_steering(family, Slot::Priority, &reason, &actor).await?;
        let ended = ended.ok_or_else(|| not_in_force(family, "has no other priority"))?;
        let result = json!({ "ok": true, "family": family, "ended": view(&ended, bus.now_ms().await?),
            "redis": redis_of(&bus, context).await });
        let text = format!("The events of {family} count as of their stored priorities again.");
        return Ok(Report::new(result, Human::new().text(text)).next(status));
    };
    let longest = context.config.queue.pause_max_ttl;
    let lasts = ttl(&args.ttl, longest).ok_or_else(|| invalid_ttl("--ttl", &args.ttl, longest))?;
    let bus = bus_to_change(context).await?;
    let (now_in_force, replaced) = bus.steer(family, Wish::Priority(priority), lasts, &reason, &actor).await?;
    let now = now_in_force.applied_at_ms;
    let mut result = json!({ "ok": true, "reprioritize": view(&now_in_force, now) });
    if let Some(replaced) = replaced {
        result["replaced"] = view(&replaced, now);
    }
    result["redis"] = redis_of(&bus, context).await;
    let text = format!("The events of {family} count as {}.", priority.label());
    let undo = NextAction::new("queue reprioritize <family> --end", "Back to the stored priorities")
        .param("family", Param::new().value(family.as_str()).required());
    Ok(Report::new(result, Human::new().text(text)).next(undo).next(status))
}
