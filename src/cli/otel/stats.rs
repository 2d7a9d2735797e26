//! `joelclaw otel stats`: how many events there are, how many of them failed, and the same of the last 15 minutes.

use serde_json::{Value, json};

use super::super::Context;
use super::super::journal::scan::scan;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::since::iso;
use super::super::queue::{bus, redis_of};
use super::super::render::Human;
use super::{Back, FACETS, in_words, is_one_of};
use crate::diagnose::{Diagnose as _, chain};
use crate::service::system_id;
use crate::streams::entry_id::EntryId;

/// What is recent, ms.
const RECENT_MS: u64 = 900_000;

/// How many events there are, and how many of them failed
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  joelclaw otel stats --component queue-drainer -h 2")]
pub struct Args {
    /// Only these sources
    #[arg(long, value_delimiter = ',')]
    source: Vec<String>,
    /// Only these components
    #[arg(long, value_delimiter = ',')]
    component: Vec<String>,
    #[command(flatten)]
    back: Back,
}

#[derive(Default)]
struct Count {
    total: u64,
    errors: u64,
}

impl Count {
    /// `null` where there is nothing to divide by.
    #[allow(clippy::cast_precision_loss)]
    fn rate(&self) -> Option<f64> {
        (self.total > 0).then(|| self.errors as f64 / self.total as f64)
    }
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let (from, now) = args.back.from(&bus).await?;
    let (mut all, mut recent) = (Count::default(), Count::default());
    let wants = |event: &Value| {
        if !is_one_of(&args.source, event, "source") || !is_one_of(&args.component, event, "component") {
            return false;
        }
        let is_error = event["success"] == false;
        let is_recent = event["timestamp"].as_u64().is_some_and(|at| at + RECENT_MS >= now);
        for count in [Some(&mut all), is_recent.then_some(&mut recent)].into_iter().flatten() {
            count.total += 1;
            count.errors += u64::from(is_error);
        }
        true
    };
    let found = scan(&bus, &system_id(&context.config), (from, EntryId::MAX), 0, &FACETS, wants)
        .await
        .map_err(|error| Failure::new("OTEL_STATS_FAILED", error.exit(), chain(&error), error.fix()))?;
    let asked = [("source", args.source.join(",")), ("component", args.component.join(","))];
    let result = json!({
        "windowHours": now.saturating_sub(from.ms).div_ceil(3_600_000), "sinceIso": iso(from.ms), "filterBy": in_words(from, &asked),
        "total": all.total, "errors": all.errors, "errorRate": all.rate(),
        "recent15m": { "total": recent.total, "errors": recent.errors, "errorRate": recent.rate() },
        "truncated": found.is_cut, "facets": found.facets(), "redis": redis_of(&bus, context).await,
    });
    let share = |count: &Count| count.rate().map_or_else(|| "-".into(), |rate| format!("{:.1} %", rate * 100.0));
    let human = Human::new().pairs([
        ("events", all.total.to_string()),
        ("failed", format!("{} ({})", all.errors, share(&all))),
        ("last 15 min", format!("{} events, {} failed ({})", recent.total, recent.errors, share(&recent))),
        ("since", iso(from.ms)),
    ]);
    Ok(Report::new(result, human).next(NextAction::new("otel list --success false", "See what failed")))
}
