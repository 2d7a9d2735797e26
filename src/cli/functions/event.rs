//! `joelclaw event`: one event and every run that it started.

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::{bus, endpoints, is_routed, redis_of, registry};
use super::super::render::Human;
use super::{
    badge, bounded, duration_ms, millis, name_of, one_line, output, run_action, run_json, runs_of, snapshot, when,
};
use crate::diagnose::Exit;
use crate::functions::ids;
use crate::functions::inngest::event_log::{self, Stored};
use crate::functions::registry::Snapshot;
use crate::functions::store::{Run, Runs, Status, WORK};
use crate::moment::iso;
use crate::streams::bus::Bus;
use crate::streams::find::{MIN_PREFIX, Place};

/// Events that an ambiguous beginning names.
const SHOWN: usize = 5;

/// One event and the runs that it started
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw event 01JZ8Q4T0V5N1XW2C3D4E5F6G7\n  joelclaw event 1749990000000-0")]
pub struct Args {
    /// The event's id as it was answered, the sender's own, its stream id, or a unique beginning (at least 8 characters)
    id: String,
    /// Data and outputs in full, however long
    #[arg(long)]
    full: bool,
}

/// What is left of an event.
enum Found {
    Stored(Box<Stored>),
    /// Trimmed from its lane; its runs remember it.
    InRuns(String),
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let runs = Runs::new(bus.clone());
    let (known, now) = (snapshot(&bus).await?, bus.now_ms().await?);
    let found = resolve(&bus, args.id.trim()).await?;
    let public_id = match &found {
        Found::Stored(stored) => stored.event.public_id.clone(),
        Found::InRuns(id) => id.clone(),
    };
    let started = runs_of(&runs, &known, std::slice::from_ref(&public_id), true).await?;
    let started = started.get(&public_id).map(Vec::as_slice).unwrap_or_default();
    let mut event = match (&found, started.first()) {
        (Found::Stored(stored), _) => stored_json(stored, args.full),
        (Found::InRuns(id), Some(run)) => remembered_json(id, run, args.full),
        (Found::InRuns(_), None) => return Err(not_found(&bus, &args.id).await?),
    };
    let pending = started.iter().filter(|run| !run.status.is_terminal()).count();
    event["pendingRuns"] = pending.into();
    event["totalRuns"] = started.len().into();
    let name = event["name"].as_str().unwrap_or_default().to_owned();

    let shown: Vec<Value> = started.iter().map(|run| shown(&known, run, args.full, now)).collect();
    let mut result = json!({ "event": event, "runs": shown, "redis": redis_of(&bus, context).await });
    let rows = started.iter().map(|run| {
        vec![
            badge(run.status).to_owned(),
            run.id.clone(),
            name_of(&known, run).to_owned(),
            run.status.to_string(),
            when(run.started_ms.unwrap_or(run.queued_ms), now),
            duration_ms(run, now).map(millis).unwrap_or_default(),
            run.result().map(|text| one_line(&output(text, false))).unwrap_or_default(),
        ]
    });
    let mut human = Human::new()
        .pairs([
            ("event", name.clone()),
            ("id", public_id.clone()),
            ("received", event["createdAt"].as_str().unwrap_or_default().to_owned()),
            ("source", event["source"].as_str().unwrap_or_default().to_owned()),
        ])
        .title("Data")
        .text(serde_json::to_string_pretty(&event["data"]).unwrap_or_default())
        .title("Runs")
        .table(&["", "RUN", "FUNCTION", "STATUS", "STARTED", "TOOK", "RESULT"], rows);
    let is_unmatched = started.is_empty() && is_unmatched(&bus, &known, &name, context).await;
    if is_unmatched {
        let message = format!("no function and no route wants {name}: it is kept, and started nothing");
        result["warnings"] = json!([{ "code": "EVENT_UNMATCHED", "message": message }]);
        human = human.text(format!("warning: {message}"));
    }
    let mut report = Report::new(result, human).list("runs");
    let (failed, other): (Vec<&Run>, Vec<&Run>) = started.iter().partition(|run| run.status == Status::Failed);
    for run in failed.into_iter().chain(other).take(5) {
        let text = if run.status == Status::Failed { "Why it failed" } else { "Its steps" };
        report = report.next(run_action(&run.id, text));
    }
    if is_unmatched {
        report = report.next(NextAction::new("functions", "What there is, and what starts it"));
    }
    if let Found::Stored(stored) = &found {
        let inspect = NextAction::new("queue inspect <id>", "Where it is in the queue, and its history");
        let id = Param::new().value(stored.envelope.id.as_str()).required();
        report = report.next(inspect.param("id", id));
    }
    Ok(report)
}

/// Whether nothing at all would take an event of this name.
pub(super) async fn is_unmatched(bus: &Bus, known: &Snapshot, name: &str, context: &Context) -> bool {
    // A registry file that is wrong is no reason to warn.
    let Ok(registry) = registry(context) else { return false };
    let Ok(endpoints) = endpoints(bus).await else { return false };
    name.parse().is_ok_and(|family| !is_routed(context, &registry.current(), known, &endpoints, &family))
}

async fn resolve(bus: &Bus, asked: &str) -> Result<Found, Failure> {
    if let Some(stored) = event_log::find(bus, asked).await? {
        return Ok(Found::Stored(Box::new(stored)));
    }
    if let Some(ulid) = ids::parse(asked) {
        return Ok(Found::InRuns(ulid.to_string()));
    }
    let mut stored = Vec::new();
    for place in bus.find(asked).await?.places {
        if let Place::Entry(lane, entry) = place
            && !lane.family.as_str().starts_with(WORK)
        {
            stored.extend(event_log::at(bus, &lane, entry).await?);
        }
    }
    if stored.is_empty() && asked.len() >= MIN_PREFIX {
        stored = event_log::starting_with(bus, asked).await?;
    }
    match stored.len() {
        0 => Err(not_found(bus, asked).await?),
        1 => Ok(Found::Stored(Box::new(stored.remove(0)))),
        n => {
            let listed =
                stored.iter().take(SHOWN).map(|one| format!("{} ({})", one.event.public_id, one.envelope.name));
            let listed = listed.collect::<Vec<_>>().join(", ");
            let message = format!("{n} events match {asked}: {listed}");
            let mut failure = Failure::new("AMBIGUOUS_ID", Exit::Usage, message, "Give more characters of the id.");
            for one in stored.iter().take(SHOWN) {
                let event = NextAction::new("event <event-id>", format!("This {}", one.envelope.name));
                let id = Param::new().value(one.event.public_id.as_str()).required();
                failure = failure.next(event.param("event-id", id));
            }
            Err(failure)
        }
    }
}

/// Nothing of it is left in a lane or a run; it may still be scheduled or a dead letter.
async fn not_found(bus: &Bus, asked: &str) -> Result<Failure, Failure> {
    let inspect = NextAction::new("queue inspect <id>", "What the queue knows of it");
    let inspect = inspect.param("id", Param::new().value(asked).required());
    let (message, fix) = match bus.find(asked).await?.places.first() {
        Some(Place::Dead(id)) => {
            (format!("the event {asked} is a dead letter"), format!("joelclaw queue dead inspect {id}"))
        }
        Some(Place::Later(..)) => (
            format!("the event {asked} is scheduled and has started nothing yet"),
            format!("joelclaw queue inspect {asked}"),
        ),
        _ => (format!("there is no event {asked}"), "joelclaw events".to_owned()),
    };
    let failure = Failure::new("EVENT_NOT_FOUND", Exit::NotFound, message, fix);
    Ok(failure.next(NextAction::new("events", "The latest events with their ids")).next(inspect))
}

fn stored_json(stored: &Stored, is_full: bool) -> Value {
    json!({
        "id": stored.event.public_id,
        "eventId": stored.envelope.id,
        "streamId": stored.entry.to_string(),
        "lane": stored.lane.to_string(),
        "name": stored.envelope.name.as_str(),
        "createdAt": iso(stored.entry.ms),
        "ts": stored.envelope.ts,
        "source": stored.envelope.source,
        "user": stored.event.value["user"],
        "data": bounded(stored.event.value["data"].clone(), is_full),
    })
}

/// The event as the function of a run saw it.
fn remembered_json(id: &str, run: &Run, is_full: bool) -> Value {
    let at = run.event_ids.iter().position(|known| known == id).unwrap_or_default();
    let event = run.event_list().get(at).and_then(|event| serde_json::from_str::<Value>(event.get()).ok());
    let event = event.unwrap_or_default();
    json!({
        "id": id,
        "eventId": event["id"],
        "streamId": null,
        "lane": null,
        "name": event["name"],
        "createdAt": event["ts"].as_u64().and_then(iso),
        "ts": event["ts"],
        "source": null,
        "user": event["user"],
        "data": bounded(event["data"].clone(), is_full),
    })
}

fn shown(known: &Snapshot, run: &Run, is_full: bool, now: u64) -> Value {
    let mut shown = run_json(known, run, now);
    shown["finishedAt"] = shown["endedAt"].clone();
    shown["output"] = run.result().map(|text| output(text, is_full)).unwrap_or_default();
    shown
}
