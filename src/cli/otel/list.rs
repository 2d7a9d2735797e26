//! `joelclaw otel list` and `search`.

use serde_json::{Value, json};

use super::super::Context;
use super::super::journal::scan::scan;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::since::iso;
use super::super::queue::{bus, redis_of};
use super::super::render::{self, Human};
use super::{Back, FACETS, in_words, is_one_of};
use crate::diagnose::{Diagnose as _, chain};
use crate::service::system_id;
use crate::streams::entry_id::EntryId;

/// Which events.
#[derive(Debug, Clone, clap::Args)]
struct Filter {
    /// Only these levels
    #[arg(long, value_delimiter = ',', value_parser = ["debug", "info", "warn", "error", "fatal"])]
    level: Vec<String>,
    /// Only these sources
    #[arg(long, value_delimiter = ',')]
    source: Vec<String>,
    /// Only these components
    #[arg(long, value_delimiter = ',')]
    component: Vec<String>,
    /// Only these actions
    #[arg(long, value_delimiter = ',')]
    action: Vec<String>,
    /// Only this event name
    #[arg(long)]
    family: Option<String>,
    /// Only this session
    #[arg(long)]
    session: Option<String>,
    /// Only this machine
    #[arg(long)]
    system: Option<String>,
    /// Only this trace
    #[arg(long)]
    trace: Option<String>,
    /// Only what succeeded, or what did not
    #[arg(long)]
    success: Option<bool>,
    #[command(flatten)]
    back: Back,
    /// How many, at most 200
    #[arg(long, short = 'n', default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Which so many, from 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    page: u32,
    /// Taken for the sake of scripts; the journal is what there is
    #[arg(long, hide = true)]
    adapter: Option<String>,
}

/// The newest events
#[derive(Debug, Clone, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  joelclaw otel list --level warn,error -h 2\n  joelclaw otel list --component queue-drainer --success false"
)]
pub struct ListArgs {
    #[command(flatten)]
    filter: Filter,
}

/// The newest events that contain a text
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  joelclaw otel search timeout -h 2")]
pub struct SearchArgs {
    /// In action, error, component, source or metadata, whatever the case
    query: String,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `list`.
pub async fn list(args: &ListArgs, context: &Context) -> Result<Report, Failure> {
    found(&args.filter, None, context).await
}

/// Runs `search`.
pub async fn search(args: &SearchArgs, context: &Context) -> Result<Report, Failure> {
    found(&args.filter, Some(&args.query), context).await
}

async fn found(filter: &Filter, query: Option<&str>, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let (from, _) = filter.back.from(&bus).await?;
    let (limit, page) = (filter.limit.min(200) as usize, filter.page as usize);
    let words = query.map(str::to_lowercase);
    let wants = |event: &Value| filter.wants(event) && words.as_deref().is_none_or(|words| contains(event, words));
    let mut found = scan(&bus, &system_id(&context.config), (from, EntryId::MAX), limit * page, &FACETS, wants)
        .await
        .map_err(|error| Failure::new("OTEL_QUERY_FAILED", error.exit(), chain(&error), error.fix()))?;
    let facets = found.facets();
    let events: Vec<Value> = found.events.drain(..).skip(limit * (page - 1)).collect();
    let rows = events.iter().map(|event| {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let at = event["timestamp"].as_u64().map(iso).unwrap_or_default();
        vec![at, text("level"), text("source"), text("component"), text("action"), render::cut(&text("error"))]
    });
    let human = Human::new()
        .pairs([("found", found.total.to_string()), ("since", iso(from.ms))])
        .table(&["AT", "LEVEL", "SOURCE", "COMPONENT", "ACTION", "ERROR"], rows);
    let mut result = json!({
        "found": found.total, "page": page, "limit": limit, "filterBy": filter.in_words(from), "adapter": "journal",
        "truncated": found.is_cut, "events": events, "facets": facets, "redis": redis_of(&bus, context).await,
    });
    if let Some(query) = query {
        result["query"] = query.into();
    }
    Ok(Report::new(result, human)
        .list("events")
        .next(NextAction::new("otel stats", "How many there are, and how many failed"))
        .next(NextAction::new("journal tail", "Follow what happens now")))
}

fn contains(event: &Value, words: &str) -> bool {
    let has = |text: &str| text.to_lowercase().contains(words);
    ["action", "error", "component", "source"].iter().any(|key| event[*key].as_str().is_some_and(has))
        || has(&event["metadata"].to_string())
}

impl Filter {
    fn wants(&self, event: &Value) -> bool {
        let is = |wanted: &Option<String>, field: &str| wanted.as_deref().is_none_or(|wanted| event[field] == wanted);
        is_one_of(&self.level, event, "level")
            && is_one_of(&self.source, event, "source")
            && is_one_of(&self.component, event, "component")
            && is_one_of(&self.action, event, "action")
            && is(&self.family, "family")
            && is(&self.session, "sessionId")
            && is(&self.system, "systemId")
            && is(&self.trace, "traceId")
            && self.success.is_none_or(|success| event["success"] == success)
    }

    fn in_words(&self, from: EntryId) -> String {
        let one = |value: &Option<String>| value.clone().unwrap_or_default();
        let asked = [
            ("level", self.level.join(",")),
            ("source", self.source.join(",")),
            ("component", self.component.join(",")),
            ("action", self.action.join(",")),
            ("family", one(&self.family)),
            ("sessionId", one(&self.session)),
            ("systemId", one(&self.system)),
            ("traceId", one(&self.trace)),
            ("success", self.success.map(|success| success.to_string()).unwrap_or_default()),
        ];
        in_words(from, &asked)
    }
}
