//! `joelclaw verify`: the journal held against what became of every accepted event. Reads only.

use serde_json::json;

use super::Context;
use super::output::{Failure, NextAction, Report};
use super::queue::since::{Since, iso};
use super::queue::{bus, redis_of};
use super::render::Human;
use crate::diagnose::Exit;

/// Count what became of every accepted event: lost must be 0
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw verify --since 1h\n  joelclaw verify --since 2026-03-07T19:33:05Z")]
pub struct Args {
    /// From when on: 15m, a time, or a stream id
    #[arg(long, value_name = "TIME", default_value = "24h")]
    since: String,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let since = Since::of(Some(&args.since))?.unwrap_or(Since::Ago(86_400_000));
    let bus = bus(context)?;
    let from = since.entry(&bus, bus.now_ms().await?).await?.ms;
    let verdict = bus.verify(from).await?;
    let is_good = verdict.lost == 0;

    let mut human = Human::new()
        .text(format!("lost {}, duplicated {}, unrouted {}", verdict.lost, verdict.duplicated, verdict.unrouted))
        .pairs([
            ("since", iso(from)),
            ("accepted", verdict.accepted.to_string()),
            ("completed", verdict.completed.to_string()),
            ("waiting", verdict.waiting.to_string()),
            ("dead", verdict.dead.to_string()),
            ("acknowledged", verdict.acked.to_string()),
            ("expired", verdict.expired.to_string()),
        ]);
    if verdict.cut {
        human = human.text("Not the whole journal was read: ask for a shorter time.");
    }
    let mut result = json!(verdict);
    result["ok"] = is_good.into();
    result["since"] = iso(from).into();
    result["redis"] = redis_of(&bus, context).await;
    let mut report = Report::new(result, human);
    if !is_good {
        report = report.unhealthy(Exit::Unhealthy).next(NextAction::new("queue fsck", "See which events are astray"));
    }
    if verdict.dead > 0 {
        report = report.next(NextAction::new("queue dead list", "See why events died"));
    }
    Ok(report.next(NextAction::new("queue depth", "See what waits")))
}
