//! `joelclaw journal replay`: the projection made anew from the journal, or a sink sent back to the journal's beginning.

use serde_json::json;

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::since::{Since, iso};
use super::super::queue::{bus_to_change, redis_of};
use super::super::render::Human;
use crate::diagnose::Exit;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::telemetry::projection;

/// Make the projection anew, or have a sink begin again
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw journal replay                          # percentiles and counts, from the first record\n  \
                  joelclaw journal replay --sink otlp --from 2h     # send the last two hours once more"
)]
pub struct Args {
    /// What is made anew
    #[arg(long, default_value = projection::NAME, value_parser = [projection::NAME])]
    projection: String,
    /// Instead: this sink gets its records once more. (The archive would pass over what it has.)
    #[arg(long, value_parser = ["otlp", "forward"])]
    sink: Option<String>,
    /// From when on; only with --sink
    #[arg(long, value_name = "TIME", requires = "sink")]
    from: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    match &args.sink {
        Some(sink) => again(&bus, context, sink, args.from.as_deref()).await,
        None => project(&bus, context).await,
    }
}

async fn project(bus: &Bus, context: &Context) -> Result<Report, Failure> {
    let owner = format!("replay-{}", uuid::Uuid::now_v7().simple());
    let began = std::time::Instant::now();
    let to = projection::replay(bus, &owner, context.config.telemetry.minute_retention).await?;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let result = json!({
        "projection": projection::NAME, "to": to.to_string(), "toIso": iso(to.ms), "tookMs": took_ms,
        "redis": redis_of(bus, context).await,
    });
    let human = Human::new().text(format!("Made anew up to {} in {took_ms} ms.", iso(to.ms)));
    Ok(Report::new(result, human)
        .next(NextAction::new("queue stats", "See the figures"))
        .next(NextAction::new("journal verify", "Check them against the journal")))
}

async fn again(bus: &Bus, context: &Context, sink: &str, from: Option<&str>) -> Result<Report, Failure> {
    let known = bus.readers().await?;
    let Some(was) = known.get(sink) else {
        let message = format!("no sink `{sink}` has read this journal");
        return Err(Failure::new("SINK_UNKNOWN", Exit::NotFound, message, "joelclaw journal verify"));
    };
    let from = match Since::of(from)? {
        Some(since) => since.entry(bus, bus.now_ms().await?).await?,
        None => EntryId::MIN,
    };
    // The cursor is the last batch it is done with.
    let cursor = EntryId { ms: from.ms.saturating_sub(1), seq: u64::MAX };
    let cursor = if from == EntryId::MIN { EntryId::MIN } else { cursor };
    bus.set_reader(sink, cursor, was.is_required).await?;
    let result = json!({
        "sink": sink, "was": was.id.to_string(), "from": cursor.to_string(), "redis": redis_of(bus, context).await,
    });
    let human = Human::new()
        .text(format!("{sink} reads again from {}; it repeats records, with the ids they had.", iso(from.ms)));
    Ok(Report::new(result, human).next(NextAction::new("journal verify", "See how far it is")))
}
