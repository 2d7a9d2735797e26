//! `joelclaw queue batch`: let a family run in batches, for a while.

use std::time::Duration;

use serde_json::json;

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::{self, Human};
use super::super::{bus_to_change, redis_of};
use super::pause::{invalid_ttl, ttl};
use super::steering::{not_in_force, view};
use super::{actor, reason_or};
use crate::config::units::parse_duration;
use crate::streams::family::Family;
use crate::streams::steering::{Slot, Wish};

/// Let a family run in batches for a while: at most so many events in every window, on all machines together
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue batch content/updated --every 5m --max 50 --ttl 2h\n  \
                        joelclaw queue batch content/updated --end")]
pub struct Args {
    /// The event name
    family: Family,
    /// The window: 1 s to 1 d
    #[arg(long, value_name = "DURATION", value_parser = window, required_unless_present = "end")]
    every: Option<Duration>,
    /// How many start in it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), required_unless_present = "end")]
    max: Option<u32>,
    /// How long: 60 s to QUEUE_PAUSE_MAX_TTL_MS; bare digits are seconds
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    ttl: String,
    /// Back to as fast as they can
    #[arg(long, conflicts_with_all = ["every", "max", "ttl"])]
    end: bool,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
}

fn window(text: &str) -> Result<Duration, String> {
    let within = Duration::from_secs(1)..=Duration::from_secs(86_400);
    parse_duration(text).filter(|window| within.contains(window)).ok_or_else(|| "write 1s to 1d, such as 5m".into())
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let family = &args.family;
    let reason = reason_or(args.reason.as_deref(), || format!("Manual change from {} for {family}", context.command));
    let actor = actor(args.actor.as_deref(), context);
    let status = NextAction::new("queue control status", "See what is in force");
    let Some((every, max)) = args.every.zip(args.max).filter(|_| !args.end) else {
        let bus = bus_to_change(context).await?;
        let ended = bus.end_steering(family, Slot::Pace, &reason, &actor).await?;
        let ended = ended.ok_or_else(|| not_in_force(family, "has no pace"))?;
        let result = json!({ "ok": true, "family": family, "ended": view(&ended, bus.now_ms().await?),
            "redis": redis_of(&bus, context).await });
        let text = format!("{family} goes on as fast as it can.");
        return Ok(Report::new(result, Human::new().text(text)).next(status));
    };
    let longest = context.config.queue.pause_max_ttl;
    let lasts = ttl(&args.ttl, longest).ok_or_else(|| invalid_ttl("--ttl", &args.ttl, longest))?;
    let bus = bus_to_change(context).await?;
    let (now_in_force, replaced) = bus.steer(family, Wish::Batch { every, max }, lasts, &reason, &actor).await?;
    let now = now_in_force.applied_at_ms;
    let mut result = json!({ "ok": true, "batch": view(&now_in_force, now) });
    if let Some(replaced) = replaced {
        result["replaced"] = view(&replaced, now);
    }
    result["redis"] = redis_of(&bus, context).await;
    let text = format!("At most {max} events of {family} start every {}.", render::age(every));
    let undo = NextAction::new("queue batch <family> --end", "Back to as fast as they can")
        .param("family", Param::new().value(family.as_str()).required());
    Ok(Report::new(result, Human::new().text(text)).next(undo).next(status))
}
