//! `joelclaw queue batch`: let a family run in batches, for a while.

use std::time::Duration;

use super::super::super::Context;
use super::super::super::output::{Failure, Report};
use super::super::super::render;
use super::steering::{self, Asked};
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
    let asked = args.every.zip(args.max).filter(|_| !args.end);
    let wish = asked.map(|(every, max)| {
        let told = format!("At most {max} events of {family} start every {}.", render::age(every));
        (Wish::Batch { every, max }, "batch", told)
    });
    let asked = Asked {
        family,
        wish,
        slot: Slot::Pace,
        ttl: &args.ttl,
        reason: args.reason.as_deref(),
        actor: args.actor.as_deref(),
        nothing: "has no pace",
        ended: format!("{family} goes on as fast as it can."),
        undo: ("queue batch <family> --end", "Back to as fast as they can"),
    };
    steering::run(asked, context).await
}
