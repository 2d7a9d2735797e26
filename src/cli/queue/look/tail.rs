//! `joelclaw queue tail`: the journal as it is written, until interrupted.

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use serde_json::json;

use super::super::super::Context;
use super::super::super::output::{Failure, Mode, NextAction, Report};
use super::super::super::render::Human;
use super::super::{bus, redis_of};
use super::iso;
use crate::config::units::duration_arg;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::family::Family;
use crate::streams::lane::Lane;
use crate::streams::records::Entry;

/// Batches read at once.
const PAGE: usize = 500;
/// How often the journal is asked for more.
const STEP: Duration = Duration::from_millis(200);
/// After Redis did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// The journal as it is written
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw queue tail --since 5m\n  joelclaw queue tail --family content/updated --json"
)]
pub struct Args {
    /// Only this event name
    #[arg(long)]
    family: Option<Family>,
    /// Begin so long ago, instead of now
    #[arg(long, value_name = "DURATION", value_parser = duration_arg)]
    since: Option<Duration>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let now = bus.now_ms().await?;
    let since_ms = args.since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(now));
    let from = EntryId { ms: now.saturating_sub(since_ms), seq: 0 };
    let is_human = context.output.mode == Mode::Human;
    if !is_human {
        let start = json!({
            "type": "start", "command": context.command, "redis": redis_of(&bus, context).await, "from": iso(from.ms),
            "ts": ts(),
        });
        if !context.output.line(&start) {
            return Ok(ended(0, "closed"));
        }
    }
    let mut shown = 0;
    tokio::select! {
        () = follow(&bus, from, args.family.as_ref(), context, &mut shown) => Ok(ended(shown, "closed")),
        _ = tokio::signal::ctrl_c() => Ok(ended(shown, "interrupted")),
    }
}

/// Prints what is journaled from `from` on, until nobody reads any more.
async fn follow(bus: &Bus, mut from: EntryId, family: Option<&Family>, context: &Context, shown: &mut u64) {
    loop {
        let Ok(page) = bus.journal_page(from, EntryId::MAX, PAGE).await else {
            tracing::warn!("Redis does not answer; trying again");
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let last = page.last.or(page.entries.last().map(|entry| entry.id));
        for entry in page.entries.iter().filter(|entry| family.is_none_or(|family| is_about(entry, family))) {
            let is_read = match context.output.mode {
                Mode::Human => context.output.text(&line(entry)),
                Mode::Json | Mode::Ndjson => context.output.line(&json!({
                    "type": "event", "name": entry.fact.action, "data": entry.to_json(), "ts": iso(entry.id.ms),
                })),
            };
            if !is_read {
                return;
            }
            *shown += 1;
        }
        from = last.map_or(from, EntryId::next);
        if page.last.is_none() {
            if !context.output.is_read() {
                return;
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

fn is_about(entry: &Entry, family: &Family) -> bool {
    let by_lane = entry.fact.lane.as_deref().and_then(|lane| lane.parse::<Lane>().ok());
    let named = |key: &str| entry.fact.metadata.get(key).is_some_and(|name| name == family.as_str());
    by_lane.is_some_and(|lane| lane.family == *family) || named("eventName") || named("family")
}

fn line(entry: &Entry) -> String {
    let fact = &entry.fact;
    let parts = [
        iso(entry.id.ms),
        Some(fact.action.to_string()),
        fact.lane.clone(),
        fact.stream_id.clone(),
        fact.event_id.clone(),
        fact.error.clone(),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}

fn ended(shown: u64, reason: &str) -> Report {
    let result = json!({ "events": shown, "reason": reason });
    Report::new(result, Human::new()).next(NextAction::new("queue depth", "What waits in all"))
}

fn ts() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}
