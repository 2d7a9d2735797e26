//! `joelclaw webhooks dlq`: deliveries that endpoints did not take.
//!
//! They are dead letters like any other; these commands see those of endpoints alone, and name the endpoints.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::act::operator;
use super::super::queue::{bus, bus_to_change, endpoints, redis_of};
use super::super::render::{self, Human};
use super::endpoints::find;
use crate::diagnose::Exit;
use crate::moment::iso;
use crate::outbound::{FAMILY, endpoint};
use crate::streams::bus::Bus;
use crate::streams::dead::{DeadFilter, DeadLetter, Redriven};
use crate::streams::entry_id::EntryId;

/// Dead letters looked at.
const SCAN: usize = 100_000;
/// Dead letters of one call.
const CHUNK: usize = 500;

/// Deliveries that endpoints did not take
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// The deliveries that were given up, newest first
    #[command(after_help = "Example:\n  joelclaw webhooks dlq list --endpoint ep_01j…")]
    List(ListArgs),
    /// Send them again, oldest first, attempts from zero
    #[command(after_help = "Examples:\n  joelclaw webhooks dlq retry 1749990000000-0 --reason 'is back'\n  \
                            joelclaw webhooks dlq retry --endpoint ep_01j… --reason 'is back'")]
    Retry(WhichArgs),
    /// Remove them for good
    #[command(after_help = "Example:\n  joelclaw webhooks dlq purge --endpoint ep_01j… --yes --reason 'a test'")]
    Purge(PurgeArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct ListArgs {
    /// Only those of this endpoint
    #[arg(long)]
    endpoint: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("which").args(["ids", "endpoint", "all"]).required(true))]
struct WhichArgs {
    /// Ids of dead letters
    ids: Vec<EntryId>,
    /// Every one of this endpoint
    #[arg(long)]
    endpoint: Option<String>,
    /// Every one of every endpoint
    #[arg(long)]
    all: bool,
    /// At most so many, newest first
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Why; recorded
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
struct PurgeArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Do it; without it they are only counted
    #[arg(long)]
    yes: bool,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::List(args) => list(args, context).await,
        Command::Retry(args) => retry(args, context).await,
        Command::Purge(args) => purge(args, context).await,
    }
}

/// Those of one endpoint, by its id or the beginning of it, or of all. One that is removed is known by its whole id.
async fn filter(bus: &Bus, id: Option<&str>) -> Result<DeadFilter, Failure> {
    let Some(id) = id else { return Ok(DeadFilter { under: Some(FAMILY), ..DeadFilter::default() }) };
    let family = match find(&endpoints(bus).await?, id) {
        Ok(found) => found.family(),
        Err(failure) => Some(endpoint::family_of(id).filter(|_| id.len() == ID_LENGTH).ok_or(failure)?),
    };
    Ok(DeadFilter { family, ..DeadFilter::default() })
}

/// `ep_` and a ULID.
const ID_LENGTH: usize = 29;

fn endpoint_of(letter: &DeadLetter) -> String {
    letter.lane().and_then(|lane| lane.family.as_str().strip_prefix(FAMILY).map(str::to_owned)).unwrap_or_default()
}

/// The event whose delivery it was.
fn event_of(letter: &DeadLetter) -> Value {
    let event = letter.event.as_ref().and_then(|event| event.meta.as_ref()).map(|meta| meta.to_value());
    event.map_or(Value::Null, |mut meta| meta["event"].take())
}

async fn list(args: &ListArgs, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let filter = filter(&bus, args.endpoint.as_deref()).await?;
    let page = bus.dead_letters(&filter, None, args.limit as usize, SCAN).await?;
    let now = bus.now_ms().await?;
    let (mut shown, mut rows) = (Vec::new(), Vec::new());
    for letter in &page.letters {
        let record = letter.record.as_ref();
        let (error, attempts) = record.map_or((String::new(), 0), |record| (record.error.clone(), record.attempts));
        let (endpoint, event) = (endpoint_of(letter), event_of(letter));
        rows.push(vec![
            letter.id.to_string(),
            endpoint.clone(),
            event.as_str().unwrap_or_default().to_owned(),
            letter.reason().to_owned(),
            render::age(Duration::from_millis(now.saturating_sub(letter.at_ms))),
            render::cut(&error),
        ]);
        shown.push(json!({
            "id": letter.id.to_string(),
            "endpointId": endpoint,
            "event": event,
            "eventId": letter.event.as_ref().map(|event| event.id.as_str()),
            "reason": letter.reason(),
            "attempts": attempts,
            "lastError": error,
            "at": iso(letter.at_ms),
        }));
    }
    let human = Human::new().table(&["ID", "ENDPOINT", "EVENT", "REASON", "AGE", "LAST ERROR"], rows);
    let first = page.letters.first().map(|letter| letter.id.to_string());
    let result = json!({
        "count": shown.len(),
        "letters": shown,
        "isComplete": page.next.is_none(),
        "redis": redis_of(&bus, context).await,
    });
    let report = Report::new(result, human).list("letters");
    let endpoints = NextAction::new("webhooks endpoints list", "How the endpoints do");
    Ok(match first {
        Some(id) => report
            .next(
                NextAction::new("webhooks dlq retry <id> --reason <text>", "Send it again")
                    .param("id", Param::new().value(id).required())
                    .param("text", Param::new().description("Why").required()),
            )
            .next(endpoints),
        None => report.next(endpoints),
    })
}

/// The letters that are meant, newest first. An id that is no delivery's is refused: it may be anything.
async fn letters(bus: &Bus, which: &WhichArgs) -> Result<Vec<EntryId>, Failure> {
    if which.ids.is_empty() {
        let filter = filter(bus, which.endpoint.as_deref()).await?;
        let page = bus.dead_letters(&filter, None, which.limit as usize, SCAN).await?;
        return Ok(page.letters.iter().map(|letter| letter.id).collect());
    }
    for id in &which.ids {
        let letter = bus.dead_letter(*id).await?;
        if letter.as_ref().is_none_or(|letter| endpoint_of(letter).is_empty()) {
            let message = format!("{id} is no dead letter of an endpoint");
            let list = NextAction::new("webhooks dlq list", "See their ids");
            let fix = "Take an id from joelclaw webhooks dlq list.";
            return Err(Failure::new("DEAD_LETTER_NOT_FOUND", Exit::NotFound, message, fix).next(list));
        }
    }
    Ok(which.ids.clone())
}

async fn retry(args: &WhichArgs, context: &Context) -> Result<Report, Failure> {
    let operator = operator(args.reason.as_deref(), None, context)?;
    let bus = bus_to_change(context).await?;
    let mut ids = letters(&bus, args).await?;
    // The oldest first, as they were to be delivered.
    ids.sort_unstable();
    let (mut sent, mut refused) = (0, 0);
    for chunk in ids.chunks(CHUNK) {
        for outcome in bus.redrive(chunk, &operator, None).await? {
            match outcome {
                Redriven::Sent { .. } => sent += 1,
                Redriven::Refused { .. } => refused += 1,
                Redriven::Gone => {}
            }
        }
    }
    let human = Human::new().text(format!("{sent} deliveries are sent again."));
    let result = json!({
        "matched": ids.len(),
        "sent": sent,
        "refused": refused,
        "gone": ids.len() - sent - refused,
        "redis": redis_of(&bus, context).await,
    });
    let report = Report::new(result, human).next(NextAction::new("webhooks endpoints list", "How the endpoints do"));
    Ok(if refused == 0 { report } else { report.unhealthy(Exit::Unhealthy) })
}

async fn purge(args: &PurgeArgs, context: &Context) -> Result<Report, Failure> {
    if !args.yes {
        let bus = bus(context)?;
        let matched = letters(&bus, &args.which).await?.len();
        let message = format!("{matched} deliveries would be gone for good");
        let list = NextAction::new("webhooks dlq list", "See them first");
        return Err(Failure::new("CONFIRMATION_REQUIRED", Exit::Refused, message, "Add --yes.").next(list));
    }
    let operator = operator(args.which.reason.as_deref(), None, context)?;
    let bus = bus_to_change(context).await?;
    let ids = letters(&bus, &args.which).await?;
    let removed = bus.drop_dead(&ids, &operator).await?.into_iter().filter(|is_removed| *is_removed).count();
    let human = Human::new().text(format!("{removed} deliveries are removed."));
    let result = json!({ "matched": ids.len(), "removed": removed, "redis": redis_of(&bus, context).await });
    Ok(Report::new(result, human).next(NextAction::new("webhooks dlq list", "What is left")))
}
