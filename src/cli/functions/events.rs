//! `joelclaw events`: the latest events, with the runs that each started.

use serde_json::{Map, Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::since::{Since, iso as since_iso};
use super::super::queue::{bus, redis_of};
use super::super::render::{Human, cut_values};
use super::{badge, one_line, runs_of, snapshot, when};
use crate::functions::inngest::event_log::{self, Wanted};
use crate::functions::store::Runs;
use crate::moment::iso;

/// The latest events and the runs that they started
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw events\n  joelclaw events --prefix shop/ --hours 24 --count 50\n  \
                        joelclaw events --since 15m --ndjson | jq .name")]
pub struct Args {
    /// Only names that begin so
    #[arg(long)]
    prefix: Option<String>,
    /// How far back
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=24 * 366))]
    hours: u64,
    /// How many at most
    #[arg(long, short = 'n', visible_alias = "limit", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    count: u32,
    /// From when on, instead of --hours: 15m, a time, or a stream id
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// The engine's own events too: finished, failed, cancelled and invoked functions
    #[arg(long)]
    internal: bool,
    /// Values in full, however long
    #[arg(long)]
    full: bool,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let since = Since::of(args.since.as_deref())?.unwrap_or(Since::Ago(args.hours * 3_600_000));
    let bus = bus(context)?;
    let (known, now) = (snapshot(&bus).await?, bus.now_ms().await?);
    let since_ms = since.entry(&bus, now).await?.ms;
    let wanted = Wanted {
        prefix: args.prefix.clone(),
        since_ms: Some(since_ms),
        internal: args.internal || args.prefix.as_ref().is_some_and(|prefix| prefix.starts_with("inngest/")),
        limit: args.count as usize,
        ..Wanted::default()
    };
    let found = event_log::latest(&bus, &wanted).await?;
    let ids: Vec<String> = found.iter().map(|stored| stored.event.public_id.clone()).collect();
    let started = runs_of(&Runs::new(bus.clone()), &known, &ids, false).await?;

    let (mut summary, mut events, mut rows) = (Map::new(), Vec::new(), Vec::new());
    for stored in &found {
        let (name, data) = (stored.envelope.name.as_str(), &stored.event.value["data"]);
        let first = name.split('/').next().unwrap_or(name);
        let count = summary.get(first).and_then(Value::as_u64).unwrap_or(0);
        summary.insert(first.to_owned(), (count + 1).into());
        let runs = started.get(&stored.event.public_id).map(Vec::as_slice).unwrap_or_default();
        let told =
            runs.iter().map(|run| json!({ "id": run.id, "function": run.function, "status": run.status.as_str() }));
        events.push(json!({
            "id": stored.event.public_id,
            "eventId": stored.envelope.id,
            "streamId": stored.entry.to_string(),
            "name": name,
            "at": iso(stored.entry.ms),
            "source": stored.envelope.source,
            "data": if args.full { data.clone() } else { cut_values(data) },
            "runs": told.collect::<Vec<_>>(),
        }));
        let runs = runs.iter().map(|run| format!("{} {}", badge(run.status), run.function));
        rows.push(vec![
            stored.event.public_id.clone(),
            name.to_owned(),
            when(stored.entry.ms, now),
            runs.collect::<Vec<_>>().join("\n"),
            one_line(data),
        ]);
    }
    let result = json!({
        "count": events.len(),
        "hours": args.hours,
        "since": since_iso(since_ms),
        "prefix": args.prefix.as_deref().unwrap_or("(all)"),
        "summary": summary,
        "events": events,
        "redis": redis_of(&bus, context).await,
    });
    let human = Human::new().table(&["EVENT", "NAME", "RECEIVED", "STARTED", "DATA"], rows);
    let mut report = Report::new(result, human).list("events");
    for stored in found.iter().take(3) {
        let event = NextAction::new("event <event-id>", format!("This {} and its runs", stored.envelope.name));
        let id = Param::new().value(stored.event.public_id.as_str()).required();
        report = report.next(event.param("event-id", id));
    }
    if found.len() == args.count as usize {
        let more = NextAction::new("events [--count <n>]", "See more");
        let count = Param::new().value(args.count.saturating_mul(10).min(1_000)).default_value(20);
        report = report.next(more.param("n", count.description("How many")));
    }
    Ok(report.next(NextAction::new("runs", "The latest runs")))
}
