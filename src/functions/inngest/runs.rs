//! Runs over REST: looking, cancelling, and the state that is too large for a call (protocol sections A5, A17).

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::engine::operations::Selection;
use super::super::engine::{self, call::steps_object};
use super::super::expr::Expr;
use super::super::ids;
use super::super::store::{Run, Status};
use super::{Facade, Problem, enveloped, raw, read_body, read_time};

use crate::moment::iso;

/// Runs that one bulk cancellation looks at.
const BULK_MAX: usize = 100_000;

pub(super) fn routes() -> Router<Facade> {
    Router::new()
        .route("/v1/runs/{id}", get(one).delete(cancel))
        .route("/v1/runs/{id}/jobs", get(jobs))
        .route("/v1/runs/{id}/metadata", post(metadata))
        .route("/v0/runs/{id}", axum::routing::delete(cancel_v0))
        .route("/v0/runs/{id}/actions", get(actions))
        .route("/v0/runs/{id}/batch", get(batch))
        .route("/v1/cancellations", post(cancel_many).get(cancellations))
        .route("/v1/cancellations/{id}", axum::routing::delete(forget_cancellation))
        .route("/v1/apps/{name}/functions", get(functions))
}

/// A run as the REST API shows it.
#[must_use]
pub fn shown(run: &Run) -> Value {
    json!({
        "run_id": run.id,
        "run_started_at": iso(run.started_ms.unwrap_or(run.queued_ms)),
        "ended_at": run.ended_ms.and_then(iso),
        "status": run.status.title(),
        "output": run.result().map(raw),
        "function_id": run.function_id,
        "function_slug": run.function,
        "function_version": 1,
        "environment_id": ids::app_id("environment"),
        "event_id": run.event_ids.first(),
        "event_ids": run.event_ids,
    })
}

async fn find(facade: &Facade, id: &str) -> Result<Run, Problem> {
    if ids::parse(id).is_none() {
        return Err(Problem::bad(format!("`{id}` is no run id: 26 characters of a ULID are expected")));
    }
    let run = facade.engine().runs().run(id).await?;
    run.ok_or_else(|| Problem::missing(format!("there is no run {id}")))
}

async fn one(State(facade): State<Facade>, Path(id): Path<String>) -> Result<axum::Json<Value>, Problem> {
    Ok(enveloped(shown(&find(&facade, &id).await?)))
}

/// Idempotent: a run that has ended stays as it is.
async fn cancel(State(facade): State<Facade>, Path(id): Path<String>) -> Result<Response, Problem> {
    find(&facade, &id).await?;
    match facade.engine().cancel(&id, "cancelled by API").await {
        Ok(_) | Err(engine::Error::Ended) => Ok(StatusCode::OK.into_response()),
        Err(error) => Err(error.into()),
    }
}

async fn cancel_v0(state: State<Facade>, id: Path<String>) -> Result<Response, Problem> {
    cancel(state, id).await.map(|_| StatusCode::NO_CONTENT.into_response())
}

async fn metadata(State(facade): State<Facade>, Path(id): Path<String>) -> Result<axum::Json<Value>, Problem> {
    find(&facade, &id).await?;
    Ok(enveloped(Value::Null))
}

/// What will bring the run on.
async fn jobs(State(facade): State<Facade>, Path(id): Path<String>) -> Result<axum::Json<Value>, Problem> {
    find(&facade, &id).await?;
    let live = facade.engine().runs().live(&id).await?;
    let job = |(field, value): (&String, &String)| {
        let (kind, name) = field.split_once(':')?;
        match kind {
            "t" => {
                let mut parts = value.split('|');
                let (attempt, generation) = (parts.next()?, parts.next()?);
                Some(
                    json!({"kind": if name == "d" { "discovery" } else { "step" }, "step": name, "attempt": attempt.parse::<u32>().ok()?, "generation": generation.parse::<u64>().ok()?, "waiting_for_retry": parts.next() == Some("")}),
                )
            }
            "s" => {
                let kind = value.split('|').next()?;
                (kind != "plan").then(|| json!({"kind": kind, "step": name}))
            }
            _ => None,
        }
    };
    Ok(enveloped(live.iter().filter_map(job).collect()))
}

/// Unknown runs are 410: the SDK gives the call up.
async fn gone(facade: &Facade, id: &str) -> Result<Run, Problem> {
    if ids::parse(id).is_none() {
        return Err(Problem::bad(format!("`{id}` is no run id")));
    }
    let run = facade.engine().runs().run(id).await?;
    run.ok_or_else(|| Problem::new(StatusCode::GONE, format!("there is no run {id}")))
}

async fn actions(State(facade): State<Facade>, Path(id): Path<String>) -> Result<Response, Problem> {
    gone(&facade, &id).await?;
    let steps = facade.engine().runs().steps(&id).await?;
    let stack: Vec<String> = steps.iter().map(|(step, _)| step.clone()).collect();
    let steps = steps.into_iter().collect();
    Ok(([(header::CONTENT_TYPE, "application/json")], steps_object(&stack, &steps)).into_response())
}

async fn batch(State(facade): State<Facade>, Path(id): Path<String>) -> Result<Response, Problem> {
    let run = gone(&facade, &id).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], run.events).into_response())
}

async fn functions(State(facade): State<Facade>, Path(name): Path<String>) -> Result<axum::Json<Value>, Problem> {
    let known = facade.engine().registry().load().await?;
    let Some(record) = known.apps.get(&name) else {
        return Err(Problem::missing(format!("there is no app {name}")));
    };
    let shown = record.app.functions.iter().filter_map(|slug| known.functions.get(slug)).map(|function| {
        json!({"id": function.id, "slug": function.slug, "name": function.name, "url": function.url,
            "triggers": function.triggers, "config": function.config, "warnings": function.warnings})
    });
    Ok(axum::Json(shown.collect()))
}

#[derive(Debug, Deserialize)]
struct Bulk {
    app_id: Option<String>,
    function_id: String,
    started_after: Option<String>,
    started_before: String,
    #[serde(rename = "if")]
    condition: Option<String>,
}

/// Cancels the runs of one function that started within a time, and for whose event the condition holds.
async fn cancel_many(State(facade): State<Facade>, body: Bytes) -> Result<Response, Problem> {
    let bulk: Bulk = read_body(&body)?;
    let known = facade.engine().registry().load().await?;
    let with_app = bulk.app_id.as_ref().map(|app| format!("{app}-{}", bulk.function_id));
    let function = with_app
        .and_then(|slug| known.function(&slug))
        .or_else(|| known.function(&bulk.function_id))
        .ok_or_else(|| Problem::missing(format!("there is no function {}", bulk.function_id)))?;
    let condition = match &bulk.condition {
        Some(text) => Some(Expr::parse(text).map_err(|error| Problem::bad(format!("if: `{text}`: {error}")))?),
        None => None,
    };
    let selection = Selection {
        function: function.slug.clone(),
        status: vec![Status::Queued, Status::Running],
        since_ms: bulk.started_after.as_deref().map(|text| read_time("started_after", text)).transpose()?,
        until_ms: Some(read_time("started_before", &bulk.started_before)?),
        condition,
        limit: BULK_MAX,
    };
    let mut cancelled = 0;
    for run in facade.engine().select(&selection).await? {
        match facade.engine().cancel(&run.id, "cancelled in bulk").await {
            Ok(_) => cancelled += 1,
            Err(engine::Error::Ended | engine::Error::NoRun(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let data = json!({
        "id": ids::fresh(),
        "environment_id": ids::app_id("environment"),
        "function_id": function.id,
        "started_after": bulk.started_after,
        "started_before": bulk.started_before,
        "if": bulk.condition,
        "cancelled": cancelled,
    });
    let id = data["id"].as_str().unwrap_or_default();
    facade.engine().runs().keep_cancellation(id, &data.to_string()).await?;
    Ok((StatusCode::CREATED, enveloped(data)).into_response())
}

/// The bulk cancellations that were asked for, the newest first.
async fn cancellations(State(facade): State<Facade>) -> Result<axum::Json<Value>, Problem> {
    let stored = facade.engine().runs().cancellations().await?;
    Ok(enveloped(stored.into_iter().map(|(_, text)| raw(&text)).collect()))
}

/// Forgets one; what it cancelled stays so.
async fn forget_cancellation(State(facade): State<Facade>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    match facade.engine().runs().forget_cancellation(&id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::missing(format!("there is no cancellation {id}"))),
    }
}
