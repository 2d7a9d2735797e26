//! `joelclaw queue resume`: let a paused family go on.

use serde_json::json;

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Report};
use super::super::super::render::Human;
use super::super::control::view;
use super::super::{bus_to_change, redis_of};
use super::{actor, reason_or};
use crate::diagnose::Exit;
use crate::streams::control::{PauseSource, ResumeOutcome};
use crate::streams::family::Family;

/// Let a paused family go on
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  joelclaw queue resume content/updated --reason 'downstream is back'")]
pub struct Args {
    /// The event name
    family: Family,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of user and host
    #[arg(long)]
    actor: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    let family = &args.family;
    let reason = reason_or(args.reason.as_deref(), || format!("Manual resume from joelclaw queue resume for {family}"));
    let actor = actor(args.actor.as_deref(), context);
    let previous = match bus.resume(family, PauseSource::Manual, &reason, Some(&actor)).await? {
        ResumeOutcome::Resumed { previous } => previous,
        // The observer's rule can't hit an operator; for completeness both are the same answer here.
        ResumeOutcome::NotPaused | ResumeOutcome::ManualPauseActive => {
            let message = format!("Queue family {family} is not paused");
            let failure =
                Failure::new("QUEUE_FAMILY_NOT_PAUSED", Exit::NotFound, message, "joelclaw queue control status");
            return Err(failure.next(NextAction::new("queue control status", "See what is paused")));
        }
    };
    let now = bus.now_ms().await?;
    let result = json!({
        "ok": true,
        "family": family,
        "resumed": true,
        "previousPause": previous.map(|pause| view(&pause, now)),
        "redis": redis_of(&bus, context).await,
    });
    let report = Report::new(result, Human::new().text(format!("{family} goes on.")));
    Ok(report
        .next(NextAction::new("queue control status", "See what is paused"))
        .next(NextAction::new("queue depth", "Watch the backlog go down")))
}
