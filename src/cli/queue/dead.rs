//! `joelclaw queue dead`: the events that no handler could take.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render::{self, Human};
use super::condition::Where;
use super::look::{missing, since};
use super::{bus, dead_change, redis_of};
use crate::diagnose::Exit;
use crate::moment::iso;
use crate::streams::bus::Bus;
use crate::streams::dead::{DeadFilter, DeadLetter};
use crate::streams::entry_id::EntryId;
use crate::streams::family::Family;
use crate::streams::find::Place;

/// Letters looked at for one page of a filtered list.
const SCAN: usize = 20_000;

/// The events that no handler could take
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Dead,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Dead {
    /// The dead letters, newest first
    #[command(after_help = "Example:\n  joelclaw queue dead list --family content/updated")]
    List(ListArgs),
    /// One dead letter
    #[command(after_help = "Example:\n  joelclaw queue dead inspect 1749990000000-0")]
    Inspect(InspectArgs),
    /// Send dead letters round again, attempts from zero
    Redrive(dead_change::RedriveArgs),
    /// Remove dead letters for good
    Drop(dead_change::DropArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct ListArgs {
    /// Only this event name
    #[arg(long)]
    family: Option<Family>,
    /// Only this reason, such as attempts_exhausted or rejected
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    condition: Where,
    /// How many at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(Debug, Clone, clap::Args)]
struct InspectArgs {
    /// Its id, its event's id, or a unique beginning of one (at least 8 characters)
    dead_id: String,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Dead::List(args) => list(args, context).await,
        Dead::Inspect(args) => inspect(args, context).await,
        Dead::Redrive(args) => dead_change::redrive(args, context).await,
        Dead::Drop(args) => dead_change::drop(args, context).await,
    }
}

async fn list(args: &ListArgs, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let filter = DeadFilter {
        family: args.family.clone(),
        reason: args.reason.clone(),
        under: None,
        condition: args.condition.condition(),
    };
    let page = bus.dead_letters(&filter, None, args.limit as usize, SCAN).await?;
    let now = bus.now_ms().await?;
    let rows = page.letters.iter().map(|letter| {
        let record = letter.record.as_ref();
        vec![
            letter.id.to_string(),
            letter.lane().map(|lane| lane.family.to_string()).unwrap_or_default(),
            letter.reason().to_owned(),
            record.map(|record| record.attempts.to_string()).unwrap_or_default(),
            render::age(Duration::from_millis(now.saturating_sub(letter.at_ms))),
            record.map(|record| render::cut(&record.error)).unwrap_or_default(),
        ]
    });
    let human = Human::new().table(&["ID", "EVENT", "REASON", "ATTEMPTS", "AGE", "LAST ERROR"], rows);
    let letters: Vec<Value> = page.letters.iter().map(|letter| letter_json(letter, now, false)).collect();
    let result = json!({
        "count": letters.len(),
        "letters": letters,
        "total": bus.dead_count().await?,
        "isComplete": page.next.is_none(),
        "redis": redis_of(&bus, context).await,
    });
    let mut report = Report::new(result, human).list("letters");
    for letter in page.letters.iter().take(3) {
        let action = NextAction::new("queue dead inspect <dead-id>", format!("Why it died: {}", letter.reason()));
        report = report.next(action.param("dead-id", Param::new().value(letter.id.to_string()).required()));
    }
    Ok(report.next(NextAction::new("queue depth", "What waits in all")))
}

async fn inspect(args: &InspectArgs, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let letter = letter(&bus, &args.dead_id).await?;
    let now = bus.now_ms().await?;
    let mut pairs = vec![
        ("dead letter", letter.id.to_string()),
        ("died", since(letter.at_ms, now)),
        ("reason", letter.reason().to_owned()),
    ];
    if let Some(record) = &letter.record {
        pairs.extend([
            ("last error", record.error.clone()),
            ("attempts", record.attempts.to_string()),
            ("redrives", record.redrives.to_string()),
            ("handler", record.handler.clone()),
            ("was", format!("{} in {}", record.entry_id, record.lane)),
        ]);
    }
    if let Some(event) = &letter.event {
        pairs.extend([("event", event.name.to_string()), ("event id", event.id.clone())]);
    }
    pairs.extend(letter.undecodable.clone().map(|reason| ("can't be decoded", reason)));
    let mut human = Human::new().pairs(pairs);
    if let Some(event) = &letter.event {
        human = human.title("Data").text(serde_json::to_string_pretty(&event.data.to_value()).unwrap_or_default());
    }
    let mut result = letter_json(&letter, now, true);
    result["redis"] = redis_of(&bus, context).await;
    let mut report = Report::new(result, human);
    if let Some(event) = &letter.event {
        report = report.next(super::look::inspect_action(&event.id, "Its history"));
    }
    let redrive = NextAction::new("queue dead redrive <dead-id> --reason <text>", "Send it round again");
    let redrive = redrive.param("dead-id", Param::new().value(letter.id.to_string()).required());
    Ok(report
        .next(NextAction::new("queue dead list", "See the other dead letters"))
        .next(redrive.param("text", Param::new().description("Why").required())))
}

/// The one dead letter that an id leads to.
pub(super) async fn letter(bus: &Bus, id: &str) -> Result<DeadLetter, Failure> {
    match bus.dead_letter(resolve(bus, id).await?).await? {
        Some(letter) => Ok(letter),
        None => Err(missing(bus, id).await?),
    }
}

async fn resolve(bus: &Bus, id: &str) -> Result<EntryId, Failure> {
    let found = bus.find(id).await?;
    let letters: Vec<EntryId> = found
        .places
        .iter()
        .filter_map(|place| match place {
            Place::Dead(id) => Some(*id),
            Place::Entry(..) | Place::Later(..) => None,
        })
        .collect();
    match letters.as_slice() {
        [id] => Ok(*id),
        [] if found.places.is_empty() => Err(missing(bus, id).await?),
        [] => {
            let message = format!("`{id}` is not dead");
            let failure =
                Failure::new("QUEUE_MESSAGE_MISSING", Exit::NotFound, message, format!("joelclaw queue why {id}"));
            Err(failure.next(super::look::inspect_action(id, "Where it is")))
        }
        several => {
            let ids: Vec<String> = several.iter().take(10).map(ToString::to_string).collect();
            let message = format!("{} dead letters match `{id}`: {}", several.len(), ids.join(", "));
            Err(Failure::new("AMBIGUOUS_ID", Exit::Usage, message, "Use one of the ids listed."))
        }
    }
}

fn letter_json(letter: &DeadLetter, now: u64, is_full: bool) -> Value {
    let mut value = json!(letter);
    if let (false, Some(event)) = (is_full, &letter.event) {
        value["event"] =
            json!({ "id": event.id, "name": event.name, "data": render::cut_values(&event.data.to_value()) });
    }
    value["reason"] = letter.reason().into();
    value["at"] = json!(iso(letter.at_ms));
    value["ageMs"] = now.saturating_sub(letter.at_ms).into();
    value["eventId"] = json!(letter.event.as_ref().map(|event| event.id.as_str()));
    value["family"] = json!(letter.lane().map(|lane| lane.family));
    value["attempts"] = json!(letter.record.as_ref().map(|record| record.attempts));
    value["lastError"] = json!(letter.record.as_ref().map(|record| record.error.as_str()));
    value
}
