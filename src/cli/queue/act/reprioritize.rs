//! `joelclaw queue reprioritize`: let the events of a family count as of another priority, for a while.

use super::super::super::Context;
use super::super::super::output::{Failure, Report};
use super::steering::{self, Asked};
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
    let wish = args.priority.filter(|_| !args.end).map(|priority| {
        let told = format!("The events of {family} count as {}.", priority.label());
        (Wish::Priority(priority), "reprioritize", told)
    });
    let asked = Asked {
        family,
        wish,
        slot: Slot::Priority,
        ttl: &args.ttl,
        reason: args.reason.as_deref(),
        actor: args.actor.as_deref(),
        nothing: "has no other priority",
        ended: format!("The events of {family} count as of their stored priorities again."),
        undo: ("queue reprioritize <family> --end", "Back to the stored priorities"),
    };
    steering::run(asked, context).await
}
