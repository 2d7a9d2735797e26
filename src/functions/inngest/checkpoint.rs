//! Checkpointing: an SDK reports steps while its call goes on (protocol section A9).
//!
//! A value is stored for the generation that the call was begun with; another worker owning the thread is 409, upon
//! which the SDK stops. Attempts start anew after a stored step.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::engine::call::Ticket;
use super::super::engine::ops::Op;
use super::super::store::{Advance, Advanced, Guard, history};
use super::{BODY_MAX, Facade, Problem, read_body};
use crate::streams::records::Fact;
use crate::telemetry::latency::kind;

/// Largest value of one step, bytes.
const OUTPUT_MAX: usize = 4 << 20;

pub(super) fn routes() -> Router<Facade> {
    Router::new()
        .route("/v1/checkpoint/{run}/async", post(asynchronous))
        .route("/v1/http/runs/{run}/async", post(asynchronous))
        .layer(DefaultBodyLimit::max(BODY_MAX))
}

#[derive(Debug, Deserialize)]
struct Report {
    #[serde(default)]
    qi_id: String,
    #[serde(default)]
    generation_id: Option<u64>,
    #[serde(default)]
    fn_id: String,
    #[serde(default)]
    steps: Vec<Op>,
}

async fn asynchronous(
    State(facade): State<Facade>,
    Path(run): Path<String>,
    body: Bytes,
) -> Result<axum::Json<Value>, Problem> {
    let began = std::time::Instant::now();
    let report: Report = read_body(&body)?;
    let Some((owner, thread)) = Ticket::read(&report.qi_id).filter(|(owner, _)| *owner == run) else {
        return Err(Problem::bad("qi_id names no call of this run"));
    };
    let engine = facade.engine();
    let stale = || Problem::new(StatusCode::CONFLICT, "another worker took over this call, or the run has ended");
    let generation = match report.generation_id {
        Some(generation) => generation,
        None => current_generation(engine, &run, &thread).await?.ok_or_else(stale)?,
    };
    let guard = Guard::Thread { thread: &thread, generation, entry: None };
    let settings = engine.settings();
    let mut advance = Advance::new(&owner, guard, settings.limits, settings.keep.done_ms);
    advance.checkpoint();
    let known = engine.registry().current();
    for op in &report.steps {
        let value = match op.op.as_str() {
            "StepRun" => format!(r#"{{"data":{}}}"#, op.result()),
            "Step" => op.result().to_owned(),
            "StepPlanned" | "DeferAdd" | "DeferAbort" => continue,
            other => return Err(Problem::bad(format!("cannot checkpoint async steps: {other}"))),
        };
        if value.len() > OUTPUT_MAX {
            let error = format!(
                "the output of step `{}` is {} bytes; at most {OUTPUT_MAX} are allowed",
                op.label(),
                value.len()
            );
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error).code("output_too_large"));
        }
        let note = history::step_completed(&op.id, op.label(), &op.op, 0, op.times(), false);
        let mut fact = Fact::new("functions", "function.step.completed")
            .with("runId", run.clone())
            .with("step", op.label())
            .with("op", op.op.as_str());
        if let Some(function) = known.function(&report.fn_id) {
            fact = fact.with("function", function.slug.clone());
            if let Some((_, ns)) = op.times() {
                let took = std::time::Duration::from_nanos(ns);
                engine.record(kind::STEP, &function.slug, took);
                fact = fact.with("durationMs", took.as_secs_f64() * 1000.0);
            }
        }
        advance.memo(&op.id, value, note);
        advance.fact(fact);
    }
    match engine.runs().advance(advance).await? {
        Advanced::On { .. } => {
            engine.note_overhead(began.elapsed());
            Ok(axum::Json(json!({})))
        }
        Advanced::Limit(which) => {
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the run's limit of {which} is reached")))
        }
        _ => Err(stale()),
    }
}

async fn current_generation(
    engine: &super::super::engine::Engine,
    run: &str,
    thread: &str,
) -> Result<Option<u64>, Problem> {
    let live = engine.runs().live(run).await?;
    Ok(live.get(&format!("t:{thread}")).and_then(|state| state.split('|').nth(1)?.parse().ok()))
}
