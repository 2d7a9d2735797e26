//! Events over REST: the latest, one, and the runs that one started (protocol section A17); invoke and signals.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::ids;
use super::super::registry::Snapshot;
use super::super::store::{Run, Runs};
use super::event_log::{self, Stored, Wanted};
use super::{Facade, Problem, enveloped, read_body, read_time, runs};

use crate::moment::iso;

/// Events in one answer at most.
const PAGE_MAX: usize = 1_000;

pub(super) fn routes() -> Router<Facade> {
    Router::new()
        .route("/v1/events", get(latest))
        .route("/v1/events/{id}", get(one))
        .route("/v1/events/{id}/runs", get(started))
        .route("/v1/signals", post(signal))
        .route("/invoke/{*slug}", post(invoke))
}

/// An event as the REST API shows it.
#[must_use]
pub fn shown(stored: &Stored) -> Value {
    let event = &stored.event.value;
    let mut shown = json!({
        "internal_id": stored.event.public_id,
        "id": stored.envelope.id,
        "name": stored.envelope.name.as_str(),
        "data": event["data"],
        "user": event["user"],
        "ts": stored.envelope.ts,
        "received_at": iso(stored.entry.ms),
        "source": stored.envelope.source,
    });
    if !event["v"].is_null() {
        shown["v"] = event["v"].clone();
    }
    shown
}

#[derive(Debug, Deserialize)]
struct List {
    limit: Option<usize>,
    cursor: Option<String>,
    name: Option<String>,
    received_after: Option<String>,
    received_before: Option<String>,
}

async fn latest(State(facade): State<Facade>, Query(list): Query<List>) -> Result<axum::Json<Value>, Problem> {
    let time = |field: &str, text: Option<&String>| match text {
        None => Ok(None),
        Some(text) => read_time(field, text).map(Some),
    };
    let cursor = match &list.cursor {
        Some(cursor) => {
            let id = ids::parse(cursor).ok_or_else(|| Problem::bad("cursor: an event's internal_id is expected"))?;
            Some(id.timestamp_ms())
        }
        None => None,
    };
    let wanted = Wanted {
        name: list.name,
        since_ms: time("received_after", list.received_after.as_ref())?,
        until_ms: cursor.or(time("received_before", list.received_before.as_ref())?),
        limit: list.limit.unwrap_or(20).clamp(1, PAGE_MAX),
        ..Wanted::default()
    };
    let found = event_log::latest(facade.engine().runs().bus(), &wanted).await?;
    Ok(enveloped(found.iter().map(shown).collect()))
}

async fn find(facade: &Facade, id: &str) -> Result<Option<Stored>, Problem> {
    Ok(event_log::find(facade.engine().runs().bus(), id).await?)
}

async fn one(State(facade): State<Facade>, Path(id): Path<String>) -> Result<axum::Json<Value>, Problem> {
    let stored = find(&facade, &id).await?.ok_or_else(|| Problem::missing(format!("there is no event {id}")))?;
    Ok(enveloped(shown(&stored)))
}

async fn started(State(facade): State<Facade>, Path(id): Path<String>) -> Result<axum::Json<Value>, Problem> {
    let public = match ids::parse(&id) {
        Some(ulid) => ulid.to_string(),
        None => match find(&facade, &id).await? {
            Some(stored) => stored.event.public_id,
            None => return Ok(enveloped(json!([]))),
        },
    };
    let found = runs_of(&facade, &public).await?;
    Ok(enveloped(found.iter().map(runs::shown).collect()))
}

/// The runs of an event.
pub async fn runs_of(facade: &Facade, public_id: &str) -> Result<Vec<Run>, Problem> {
    let registry = facade.engine().registry().load().await?;
    Ok(started_by(facade.engine().runs(), &registry, public_id).await?)
}

/// The runs that an event started, and what repeats them, oldest first.
pub async fn started_by(
    runs: &Runs,
    registry: &Snapshot,
    public_id: &str,
) -> Result<Vec<Run>, crate::streams::redis::Error> {
    let functions: Vec<uuid::Uuid> = registry.functions.values().map(|function| function.id).collect();
    let mut found = runs.of_events(&functions, &[public_id.to_owned()], true).await?;
    Ok(found.remove(public_id).unwrap_or_default())
}

#[derive(Debug, Deserialize)]
struct Signal {
    signal: String,
    #[serde(default)]
    data: Value,
}

async fn signal(State(facade): State<Facade>, body: Bytes) -> Result<axum::Json<Value>, Problem> {
    let sent: Signal = read_body(&body)?;
    match facade.engine().signal(&sent.signal, &sent.data).await? {
        Some(run) => Ok(enveloped(json!({"run_id": run}))),
        None => Err(Problem::missing("No signal found")),
    }
}

async fn invoke(
    State(facade): State<Facade>,
    Path(slug): Path<String>,
    body: Bytes,
) -> Result<axum::Json<Value>, Problem> {
    let sent: Value = match body.is_empty() {
        true => json!({}),
        false => read_body(&body)?,
    };
    let id = facade.engine().invoke(&slug, sent.get("data").cloned().unwrap_or_default()).await?;
    Ok(axum::Json(json!({"id": id, "status": 200})))
}
