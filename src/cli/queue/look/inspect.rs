//! `joelclaw queue inspect`: everything known about one event.

use serde_json::{Value, json};

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::Human;
use super::super::{bus, redis_of};
use super::list::state_text;
use super::why::{explain, hold};
use super::{HISTORY_BATCHES, ending_text, history_since, missing, resolve, since};
use crate::moment::iso;
use crate::streams::find::Place;
use crate::streams::lane::Lane;
use crate::streams::look::{History, Hold, Inspection, State};

/// Everything known about one event
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue inspect 1749990000000-0\n  joelclaw queue inspect 0195761c-3a55")]
pub struct Args {
    /// Stream id, event id or dead-letter id, or a unique beginning of one (at least 8 characters)
    id: String,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let place = resolve(&bus, &args.id).await?;
    let mut inspection = bus.inspect(&place).await?;
    if inspection.state == State::Missing {
        return Err(missing(&bus, &args.id).await?);
    }
    let id = known_id(&place, &inspection);
    let began = history_since(&id, inspection.at_ms);
    let began = inspection.appended_ms.map_or(began, |appended| began.min(appended.saturating_sub(1_000)));
    let history = bus.history(&id, began, HISTORY_BATCHES).await?;
    let is_acked = matches!(history.ending(), Some((State::Acked, _)));
    if inspection.state == State::Done && is_acked {
        inspection.state = State::Acked;
    }
    let hold = match inspection.state {
        State::Acked => Hold::Acked,
        _ => hold(&bus, &place, context).await?,
    };
    let lane: Option<Lane> = inspection.lane.as_deref().and_then(|lane| lane.parse().ok());
    let why = explain(&hold, lane.as_ref().map(|lane| &lane.family), inspection.at_ms);

    let mut result = json!(inspection);
    for (key, value) in [("message", message(&inspection, lane.as_ref())), ("why", why.json(&hold))] {
        result[key] = value;
    }
    if let Some(lease) = &inspection.lease {
        result["lease"]["expiresAt"] = json!(lease.expires_ms.and_then(iso));
    }
    result["nextRetryAt"] = json!(inspection.next_retry_ms.and_then(iso));
    result["history"] = history.entries.iter().map(|entry| entry.to_json()).collect();
    let decided = |action: &str| matches!(action, "queue.triage.completed" | "queue.triage.fallback");
    if let Some(entry) = history.entries.iter().rev().find(|entry| decided(&entry.fact.action)) {
        result["triage"] = entry.fact.metadata.clone().into();
    }
    result["historyCut"] = history.cut.into();
    result["redis"] = redis_of(&bus, context).await;

    let human = human(&inspection, &history, &why.sentence, why.command.as_deref());
    let mut report = Report::new(result, human);
    if let Some(dead_id) = &inspection.dead_id {
        let dead = NextAction::new("queue dead inspect <dead-id>", "Why it died");
        report = report.next(dead.param("dead-id", Param::new().value(dead_id.as_str()).required()));
    }
    let why = NextAction::new("queue why <id>", "What holds it");
    Ok(report.next(why.param("id", Param::new().value(args.id.as_str()).required())))
}

/// The id by which the journal knows it best.
fn known_id(place: &Place, inspection: &Inspection) -> String {
    let event_id = inspection.event.as_ref().map(|event| event.id.clone());
    event_id.unwrap_or_else(|| match place {
        Place::Entry(_, id) | Place::Dead(id) => inspection.stream_id.clone().unwrap_or_else(|| id.to_string()),
        Place::Later(_, id, _) => id.clone(),
    })
}

/// What older scripts read.
fn message(inspection: &Inspection, lane: Option<&Lane>) -> Value {
    let event = inspection.event.as_ref();
    json!({
        "id": inspection.stream_id.as_ref().or(event.map(|event| &event.id)),
        "priority": lane.map(|lane| lane.priority),
        "timestamp": inspection.appended_ms,
        "age": inspection.appended_ms.map(|at| inspection.at_ms.saturating_sub(at)),
        "acked": matches!(inspection.state, State::Acked | State::Done),
        "payload": event.map(|event| event.data.to_value()),
        "metadata": event.and_then(|event| event.meta.as_ref()).map(|meta| meta.to_value()),
    })
}

fn human(inspection: &Inspection, history: &History, sentence: &str, command: Option<&str>) -> Human {
    let now = inspection.at_ms;
    let mut pairs: Vec<(&str, String)> = Vec::new();
    if let Some(event) = &inspection.event {
        pairs.extend([
            ("event", event.name.to_string()),
            ("event id", event.id.clone()),
            ("source", event.source.clone()),
        ]);
        pairs.extend(event.dedup_key.clone().map(|key| ("dedup key", key)));
    }
    pairs.extend(inspection.stream_id.clone().map(|id| ("stream id", id)));
    pairs.extend(inspection.dead_id.clone().map(|id| ("dead letter", id)));
    pairs.extend(inspection.lane.clone().map(|lane| ("lane", lane)));
    pairs.push(("state", ending_text(history, now).unwrap_or_else(|| state_text(inspection.state).into())));
    if let Some(at) = inspection.appended_ms.filter(|at| *at <= now) {
        pairs.push(("appended", since(at, now)));
    }
    pairs.push(("attempts", inspection.attempts.to_string()));
    if let Some(lease) = &inspection.lease {
        let until = lease.expires_ms.and_then(iso).map_or_else(|| "expired".into(), |at| format!("until {at}"));
        pairs.push(("lease", format!("{} {until}, fence {}", lease.owner, lease.fence)));
    }
    pairs.extend(inspection.failures.as_ref().map(|failures| ("last error", failures.error.clone())));
    pairs.extend(inspection.dead.as_ref().map(|dead| ("died of", format!("{}: {}", dead.reason, dead.error))));
    pairs.push(("held by", sentence.to_owned()));
    pairs.extend(command.map(|command| ("what changes it", command.to_owned())));
    let mut human = Human::new().pairs(pairs);
    if let Some(event) = &inspection.event {
        human = human.title("Data").text(serde_json::to_string_pretty(&event.data.to_value()).unwrap_or_default());
    }
    if let Some(raw) = &inspection.raw_base64 {
        human = human.title("Bytes that can't be decoded, base64").text(raw);
    }
    let rows = history.entries.iter().map(|entry| {
        let fact = &entry.fact;
        vec![since(entry.id.ms, now), fact.action.to_string(), fact.error.clone().unwrap_or_default()]
    });
    human.title("History").table(&["WHEN", "WHAT", "ERROR"], rows)
}
