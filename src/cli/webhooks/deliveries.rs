//! `joelclaw webhooks list`, `inspect` and `replay`: the log of deliveries.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::{bus, bus_to_change, is_inngest_served, redis_of, registry};
use super::super::render::{self, Human};
use super::senders;
use crate::config::units::parse_duration;
use crate::diagnose::{Diagnose as _, Exit};
use crate::ingest::deliveries::{Entry, Filter};
use crate::ingest::deliveries_replay;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;

/// Entries looked at for one list.
const SCAN: usize = 20_000;

/// Which deliveries.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// Only of this provider
    #[arg(long)]
    provider: Option<String>,
    /// Only with this outcome
    #[arg(long, value_parser = ["accepted", "dropped", "duplicate", "rejected", "failed", "spooled", "challenge"])]
    outcome: Option<String>,
    /// Only those of the last so much, such as 1h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// How many at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// Options of `list`.
#[derive(Debug, Clone, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    which: Which,
    /// Where the last page ended
    #[arg(long, value_name = "ID")]
    cursor: Option<EntryId>,
}

/// Options of `inspect`.
#[derive(Debug, Clone, clap::Args)]
pub struct InspectArgs {
    /// The delivery's ref, as the list shows it
    reference: String,
}

/// Options of `replay`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReplayArgs {
    /// Refs of deliveries; without any, those that the options choose
    references: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// Do it: needed for more than one
    #[arg(long)]
    apply: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "use a duration such as 15m or 24h".to_owned())
}

impl Which {
    async fn filter(&self, bus: &Bus) -> Result<Filter, Failure> {
        let since_ms = match self.since {
            None => None,
            Some(since) => {
                let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
                Some(bus.now_ms().await?.saturating_sub(ms))
            }
        };
        Ok(Filter { provider: self.provider.clone(), outcome: self.outcome.clone(), since_ms })
    }

    fn is_given(&self) -> bool {
        self.provider.is_some() || self.outcome.is_some() || self.since.is_some()
    }
}

fn shown(entry: &Entry) -> Value {
    let mut shown = json!(entry.record);
    shown["streamId"] = entry.id.to_string().into();
    shown["hasBody"] = entry.kept().is_some().into();
    shown
}

fn inspect_action(reference: &str) -> NextAction {
    NextAction::new("webhooks inspect <ref>", "Its headers and body")
        .param("ref", Param::new().value(reference).required())
}

/// Runs `list`.
pub async fn list(args: &ListArgs, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let filter = args.which.filter(&bus).await?;
    let page = bus.deliveries(&filter, args.cursor, args.which.limit as usize, SCAN).await?;
    let now = bus.now_ms().await?;
    let rows = page.entries.iter().map(|entry| {
        let record = &entry.record;
        vec![
            record.reference.clone(),
            render::ago(Duration::from_millis(now.saturating_sub(entry.id.ms))),
            record.provider.clone(),
            record.outcome.clone(),
            record.status.to_string(),
            record.events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>().join(","),
            record.reason.as_deref().map(render::cut).unwrap_or_default(),
        ]
    });
    let human = Human::new().table(&["REF", "CAME", "PROVIDER", "OUTCOME", "STATUS", "EVENTS", "REASON"], rows);
    let deliveries: Vec<Value> = page.entries.iter().map(shown).collect();
    let result = json!({
        "count": deliveries.len(),
        "deliveries": deliveries,
        "nextCursor": page.next.map(|id| id.to_string()),
        "redis": redis_of(&bus, context).await,
    });
    let mut report = Report::new(result, human).list("deliveries");
    if let Some(entry) = page.entries.first() {
        report = report.next(inspect_action(&entry.record.reference));
    }
    if let Some(next) = page.next {
        let more = NextAction::new("webhooks list --cursor <id>", "The next page");
        report = report.next(more.param("id", Param::new().value(next.to_string()).required()));
    }
    Ok(report.next(NextAction::new("webhooks sources", "Who may send, and whether its secret is set")))
}

async fn find(bus: &Bus, reference: &str) -> Result<Entry, Failure> {
    bus.delivery(reference).await?.ok_or_else(|| {
        let message = format!("the log has no delivery `{reference}`");
        let fix = "It may be older than WEBHOOK_LOG_RETENTION_HOURS: see joelclaw webhooks list.";
        Failure::new("WEBHOOK_DELIVERY_NOT_FOUND", Exit::NotFound, message, fix)
            .next(NextAction::new("webhooks list", "See the deliveries with their refs"))
    })
}

/// Runs `inspect`.
pub async fn inspect(args: &InspectArgs, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let entry = find(&bus, &args.reference).await?;
    let record = &entry.record;
    let mut result = shown(&entry);
    let mut human = Human::new().pairs([
        ("ref", record.reference.clone()),
        ("provider", record.provider.clone()),
        ("delivery", record.delivery_id.clone().unwrap_or_default()),
        ("received", record.received_at.clone().unwrap_or_default()),
        ("outcome", format!("{} ({})", record.outcome, record.status)),
        ("reason", record.reason.clone().unwrap_or_else(|| "-".into())),
        ("from", record.client.clone()),
        ("took", format!("{} ms", record.ms)),
    ]);
    let events = record.events.iter();
    human = human
        .title("Events")
        .table(&["NAME", "ID"], events.map(|event| vec![event.name.clone(), event.id.clone().unwrap_or_default()]));
    if let Some(kept) = entry.kept() {
        let body = kept.body();
        let text = String::from_utf8_lossy(&body).into_owned();
        result["headers"] = kept.headers.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        result["body"] = text.as_str().into();
        if std::str::from_utf8(&body).is_err() {
            result["bodyIsText"] = false.into();
        }
        let pretty =
            serde_json::from_str::<Value>(&text).ok().and_then(|json| serde_json::to_string_pretty(&json).ok());
        human = human.title("Headers").pairs(kept.headers).title("Body").text(pretty.unwrap_or(text));
    }
    result["redis"] = redis_of(&bus, context).await;
    let replay = NextAction::new("webhooks replay <ref>", "Append its events once more")
        .param("ref", Param::new().value(record.reference.as_str()).required());
    let mut report = Report::new(result, human).next(replay);
    if let Some(id) = record.events.iter().find_map(|event| event.id.as_deref()) {
        let event = NextAction::new("queue inspect <id>", "Where its event is");
        report = report.next(event.param("id", Param::new().value(id).required()));
    }
    Ok(report)
}

/// Runs `replay`.
pub async fn replay(args: &ReplayArgs, context: &Context) -> Result<Report, Failure> {
    if args.references.is_empty() && !args.which.is_given() {
        let message = "say which deliveries: by ref, or with --provider, --outcome or --since";
        let fix = "joelclaw webhooks replay <ref>, or joelclaw webhooks replay --outcome failed --since 1h";
        return Err(Failure::new("USAGE_ERROR", Exit::Usage, message, fix));
    }
    let bus = bus_to_change(context).await?;
    let mut entries = Vec::new();
    for reference in &args.references {
        entries.push(find(&bus, reference).await?);
    }
    if args.references.is_empty() {
        let filter = args.which.filter(&bus).await?;
        entries = bus.deliveries(&filter, None, args.which.limit as usize, SCAN).await?.entries;
        // As they came.
        entries.reverse();
    }
    let senders = senders(context)?;
    if !args.apply && (entries.len() != 1 || args.references.is_empty()) {
        return Ok(dry_run(&entries, args));
    }
    let admission =
        crate::service::admission(&context.config, &bus, &registry(context)?, is_inngest_served(context)).await;
    let keep = Duration::from_secs(context.config.webhook.log_retention_hours * 3600);
    let mut pace = tokio::time::interval(Duration::from_millis(1000 / deliveries_replay::RATE));
    let (mut rows, mut failed) = (Vec::new(), 0);
    for entry in &entries {
        pace.tick().await;
        match deliveries_replay::run(&bus, entry, &senders, &admission, keep).await {
            Ok((number, accepted)) => rows.push(deliveries_replay::shown(entry, number, &accepted)),
            // Of one delivery the failure is the answer.
            Err(error) if entries.len() == 1 => return Err(error.into()),
            Err(error) => {
                failed += 1;
                rows.push(json!({ "deliveryRef": entry.record.reference, "error": error.code() }));
            }
        }
    }
    let events: usize = rows.iter().filter_map(|row| row["events"].as_array().map(Vec::len)).sum();
    let human = Human::new()
        .text(format!("{} deliveries are replayed: {events} events. {failed} could not be.", rows.len() - failed));
    let first = rows.iter().find_map(|row| row["events"][0]["id"].as_str()).map(str::to_owned);
    let result = json!({
        "dryRun": false,
        "matched": rows.len(),
        "replayed": rows.len() - failed,
        "failed": failed,
        "deliveries": rows,
        "redis": redis_of(&bus, context).await,
    });
    let mut report = Report::new(result, human).list("deliveries");
    if let Some(id) = first {
        let event = NextAction::new("queue inspect <id>", "Where the first event is");
        report = report.next(event.param("id", Param::new().value(id).required()));
    }
    Ok(if failed > 0 { report.unhealthy(Exit::Unhealthy) } else { report })
}

fn dry_run(entries: &[Entry], args: &ReplayArgs) -> Report {
    let rows = entries.iter().map(|entry| {
        let record = &entry.record;
        vec![record.reference.clone(), record.provider.clone(), record.outcome.clone()]
    });
    let human = Human::new()
        .text(format!("{} deliveries would be replayed; add --apply to do it.", entries.len()))
        .table(&["REF", "PROVIDER", "OUTCOME"], rows);
    let result = json!({
        "dryRun": true,
        "matched": entries.len(),
        "deliveries": entries.iter().map(shown).collect::<Vec<_>>(),
    });
    let mut command = "webhooks replay".to_owned();
    let which = &args.which;
    for (flag, value) in [("provider", &which.provider), ("outcome", &which.outcome)] {
        if let Some(value) = value {
            command.push_str(&format!(" --{flag} {value}"));
        }
    }
    if let Some(since) = which.since {
        command.push_str(&format!(" --since {}s", since.as_secs()));
    }
    for reference in &args.references {
        command.push_str(&format!(" {reference}"));
    }
    command.push_str(&format!(" --limit {} --apply", which.limit));
    Report::new(result, human).list("deliveries").next(NextAction::new(command, "Replay them").destructive())
}
