//! `joelclaw journal query`: records by action, component, level, family, text and time. Reads only.

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::since::{Since, iso};
use super::super::queue::{bus, redis_of};
use super::super::render::{self, Human};
use super::scan::scan;
use crate::diagnose::Exit;
use crate::service::system_id;
use crate::streams::entry_id::EntryId;

/// Find records by what they are about
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw journal query --action queue.dispatch.failed --since 1h\n  \
                  joelclaw journal query --family content/updated --level warn,error --ndjson\n  \
                  joelclaw journal query timeout --success false")]
pub struct Args {
    /// Only records that contain this text
    text: Option<String>,
    /// Only these actions; `queue.control.*` is any that begins so
    #[arg(long, value_delimiter = ',')]
    action: Vec<String>,
    /// Only these components
    #[arg(long, value_delimiter = ',')]
    component: Vec<String>,
    /// Only these levels: debug, info, warn, error, fatal
    #[arg(long, value_delimiter = ',', value_parser = ["debug", "info", "warn", "error", "fatal"])]
    level: Vec<String>,
    /// Only what succeeded, or what did not
    #[arg(long)]
    success: Option<bool>,
    /// Only records about this event name
    #[arg(long)]
    family: Option<String>,
    /// Only records about this event or run
    #[arg(long)]
    id: Option<String>,
    /// From when on: 15m, a time, or the id of a record
    #[arg(long, value_name = "TIME", default_value = "24h")]
    since: String,
    /// Until when
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// How many, the newest
    #[arg(long, short = 'n', default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let now = bus.now_ms().await?;
    let from = Since::of(Some(&args.since))?.unwrap_or(Since::Ago(86_400_000)).entry(&bus, now).await?;
    let to = match Since::of(args.until.as_deref())? {
        Some(until) => until.entry(&bus, now).await?,
        None => EntryId::MAX,
    };
    if to < from {
        let message = "--until is before --since: nothing lies between";
        return Err(Failure::new("USAGE_ERROR", Exit::Usage, message, "joelclaw journal query --since 2h --until 1h"));
    }
    let limit = args.limit as usize;
    let found =
        scan(&bus, &system_id(&context.config), (from, to), limit, &["action"], |event| args.wants(event)).await?;
    let events = &found.events;
    let rows = events.iter().map(|event| {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let at = event["timestamp"].as_u64().map(iso).unwrap_or_default();
        vec![at, text("level"), text("action"), text("family"), render::cut(&text("error"))]
    });
    let human = Human::new()
        .pairs([("found", found.total.to_string()), ("since", iso(from.ms))])
        .table(&["AT", "LEVEL", "ACTION", "EVENT", "ERROR"], rows);
    let result = json!({
        "found": found.total, "limit": limit, "sinceIso": iso(from.ms), "truncated": found.is_cut,
        "undecodable": found.undecodable, "facets": found.facets(), "events": events, "redis": redis_of(&bus, context).await,
    });
    Ok(Report::new(result, human)
        .list("events")
        .next(NextAction::new("journal tail", "Follow what happens now"))
        .next(NextAction::new("queue stats", "See it counted")))
}

impl Args {
    fn wants(&self, event: &Value) -> bool {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        let is_one_of = |wanted: &[String], value: &str| wanted.is_empty() || wanted.iter().any(|one| one == value);
        let is_action = |wanted: &String| match wanted.strip_suffix('*') {
            Some(start) => text("action").starts_with(start),
            None => text("action") == wanted,
        };
        (self.action.is_empty() || self.action.iter().any(is_action))
            && is_one_of(&self.component, text("component"))
            && is_one_of(&self.level, text("level"))
            && self.success.is_none_or(|success| event["success"] == success)
            && self.family.as_deref().is_none_or(|family| text("family") == family)
            && self
                .id
                .as_deref()
                .is_none_or(|id| ["eventId", "streamId", "runId", "id", "journalId"].iter().any(|key| text(key) == id))
            && self.text.as_deref().is_none_or(|words| event.to_string().to_lowercase().contains(&words.to_lowercase()))
    }
}
