//! Commands that only read: depth, list, inspect, why, registry.

pub mod depth;
pub mod inspect;
pub mod list;
pub mod registry;
pub mod why;

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render;
use crate::diagnose::Exit;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::find::Place;
use crate::streams::look::{History, State};

/// Batches of the journal read at most for the history of one event.
pub(super) const HISTORY_BATCHES: usize = 20_000;
/// Where the history of an id that names no time begins, before now, ms.
const HISTORY_SPAN_MS: u64 = 86_400_000;
/// The journal of an event may begin a little before the time in its id.
const CLOCK_SLACK_MS: u64 = 120_000;

/// Commands that only read.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// What waits, by family and priority
    Depth(depth::Args),
    /// The open entries in the order in which they will be dispatched
    List(list::Args),
    /// Everything known about one event
    Inspect(inspect::Args),
    /// The one thing that holds an event, and what changes it
    Why(why::Args),
    /// What each event name means: priority, handler, limits
    Registry(registry::Args),
}

/// Runs the command.
pub async fn run(command: &Command, context: &Context) -> Result<Report, Failure> {
    match command {
        Command::Depth(args) => depth::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
        Command::Inspect(args) => inspect::run(args, context).await,
        Command::Why(args) => why::run(args, context).await,
        Command::Registry(args) => registry::run(args, context).await,
    }
}

/// `queue inspect` of something just seen.
pub(super) fn inspect_action(id: &str, description: &str) -> NextAction {
    NextAction::new("queue inspect <id>", description).param("id", Param::new().value(id).required())
}

/// How long ago a moment of Redis's clock is.
pub(super) fn since(at_ms: u64, now_ms: u64) -> String {
    render::ago(std::time::Duration::from_millis(now_ms.saturating_sub(at_ms)))
}

/// The one place that an id leads to.
pub(super) async fn resolve(bus: &Bus, id: &str) -> Result<Place, Failure> {
    let mut found = bus.find(id).await?;
    match found.places.len() {
        0 => Err(missing(bus, id).await?),
        1 => Ok(found.places.remove(0)),
        _ => Err(ambiguous(id, &found.places)),
    }
}

fn place_text(place: &Place) -> String {
    match place {
        Place::Entry(lane, id) => format!("{id} in {lane}"),
        Place::Later(lane, id, _) => format!("{id} scheduled for {lane}"),
        Place::Dead(id) => format!("{id} in the dead letters"),
    }
}

fn ambiguous(id: &str, places: &[Place]) -> Failure {
    let listed: Vec<String> = places.iter().take(10).map(place_text).collect();
    let message = format!("{} events match `{id}`: {}", places.len(), listed.join(", "));
    let fix = "Use more characters of the id, or the event id where two lanes share a stream id.";
    let failure = Failure::new("AMBIGUOUS_ID", Exit::Usage, message, fix);
    failure.next(NextAction::new("queue list", "See the entries with their event ids"))
}

/// Nothing is stored under an id: says what became of it, as far as the journal knows.
pub(super) async fn missing(bus: &Bus, id: &str) -> Result<Failure, Failure> {
    let now = bus.now_ms().await?;
    let history = bus.history(id, history_since(id, now), HISTORY_BATCHES).await?;
    let message = format!("no entry, scheduled event or dead letter `{id}`");
    let fix = match (ending_text(&history, now), history.entries.last()) {
        (Some(ending), _) => format!("It was {ending}."),
        (None, Some(last)) => {
            format!("The last that is known: {} {}.", last.fact.action, since(last.id.ms, now))
        }
        (None, None) if history.cut => {
            "The journal was not read to its end: check the id with joelclaw queue list".into()
        }
        (None, None) => "The journal does not know it either: check the id with joelclaw queue list".into(),
    };
    let failure = Failure::new("QUEUE_MESSAGE_MISSING", Exit::NotFound, message, fix);
    Ok(failure
        .next(NextAction::new("queue list", "See the entries with their ids"))
        .next(NextAction::new("queue dead list", "See the dead letters")))
}

/// `completed 3m ago`, `acked 3m ago by me: no longer wanted`, `dead …`.
pub(super) fn ending_text(history: &History, now_ms: u64) -> Option<String> {
    let (state, entry) = history.ending()?;
    let ago = since(entry.id.ms, now_ms);
    let detail = |key: &str| entry.fact.metadata.get(key).and_then(|value| value.as_str());
    let by = detail("actor").map(|actor| format!(" by {actor}")).unwrap_or_default();
    let reason = detail("reason").map(|reason| format!(" ({reason})")).unwrap_or_default();
    Some(match state {
        State::Done => format!("completed {ago}"),
        State::Acked => format!("acked {ago}{by}{reason}"),
        State::Dead => format!("dead {ago}{reason}"),
        _ => format!("lost {ago}"),
    })
}

/// Where the journal of an id can begin: ids carry their time.
pub(super) fn history_since(id: &str, now_ms: u64) -> u64 {
    let by_entry = id.parse::<EntryId>().ok().map(|id| id.ms);
    let by_uuid = || {
        let uuid = uuid::Uuid::try_parse(id).ok().filter(|uuid| uuid.get_version_num() == 7)?;
        let (seconds, nanos) = uuid.get_timestamp()?.to_unix();
        Some(seconds * 1000 + u64::from(nanos) / 1_000_000)
    };
    by_entry.or_else(by_uuid).map_or(now_ms.saturating_sub(HISTORY_SPAN_MS), |ms| ms.saturating_sub(CLOCK_SLACK_MS))
}
