//! `joelclaw queue resume`: let a paused family go on.

use serde_json::{Value, json};

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Report};
use super::super::super::render::Human;
use super::super::control::view;
use super::super::{bus_to_change, redis_of};
use super::{actor, reason_or, steering};
use crate::diagnose::Exit;
use crate::streams::control::{PauseSource, ResumeOutcome, Target};
use crate::streams::steering::Rate;

/// Let a paused family go on, at once or slowly
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue resume content/updated --reason 'downstream is back'\n  \
                        joelclaw queue resume content/updated --trickle 5/s\n\n\
                        A trickle ends once nothing waits any more; a second resume ends it at once.")]
pub struct Args {
    /// The event name, or the beginning of names with a *, as it was paused
    family: Target,
    /// Let what waited through at this rate, on all machines together: 5/s, 0.5/s
    #[arg(long, value_name = "N/S", value_parser = rate)]
    trickle: Option<Rate>,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of user and host
    #[arg(long)]
    actor: Option<String>,
}

fn rate(text: &str) -> Result<Rate, String> {
    Rate::parse(text).ok_or_else(|| "write a number per second, such as 5/s or 0.5/s".into())
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    let family = &args.family;
    let reason = reason_or(args.reason.as_deref(), || format!("Manual resume from joelclaw queue resume for {family}"));
    let actor = actor(args.actor.as_deref(), context);
    if args.trickle.is_some() && matches!(family, Target::Prefix(_)) {
        let message = "a trickle is for one family";
        return Err(Failure::new("USAGE_ERROR", Exit::Usage, message, "Resume each family with --trickle."));
    }
    let outcome = bus.resume_at(family, PauseSource::Manual, &reason, Some(&actor), args.trickle).await?;
    let now = bus.now_ms().await?;
    let mut result = json!({ "ok": true, "family": family.to_string(), "resumed": true });
    match outcome {
        ResumeOutcome::Resumed { previous } => {
            result["previousPause"] = previous.map_or(Value::Null, |pause| view(&pause, now));
        }
        ResumeOutcome::Trickled { previous } => {
            result["previousPause"] = Value::Null;
            result["previousTrickle"] = steering::view(&previous, now);
        }
        // The observer's rule can't hit an operator; for completeness both are the same answer here.
        ResumeOutcome::NotPaused | ResumeOutcome::ManualPauseActive => {
            let message = format!("Queue family {family} is not paused");
            let failure =
                Failure::new("QUEUE_FAMILY_NOT_PAUSED", Exit::NotFound, message, "joelclaw queue control status");
            return Err(failure.next(NextAction::new("queue control status", "See what is paused")));
        }
    }
    let mut text = format!("{family} goes on.");
    if let Some(rate) = args.trickle {
        #[allow(clippy::cast_precision_loss)]
        let window = rate.every.as_millis() as f64 / 1000.0;
        result["trickle"] = json!({ "everyMs": rate.every.as_millis() as u64, "max": rate.max });
        text = format!("{family} goes on, at most {} every {window} s until what waited is through.", rate.max);
    }
    result["redis"] = redis_of(&bus, context).await;
    let report = Report::new(result, Human::new().text(text));
    Ok(report
        .next(NextAction::new("queue control status", "See what is paused"))
        .next(NextAction::new("queue depth", "Watch the backlog go down")))
}
