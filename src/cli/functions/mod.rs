//! `joelclaw functions`, `runs`, `run`, `events`, `event`, `send`, `refresh`, `inngest …`: functions and their runs.
//!
//! All of them read and write Redis directly, so they work while the daemons are stopped. Only [`refresh`] and the
//! probes of [`inngest`] call the apps.

pub mod event;
pub mod events;
mod follow;
pub mod inngest;
pub mod list;
mod operate;
pub mod refresh;
pub mod run;
mod run_change;
pub mod runs;
pub mod send;
mod show;
mod trace;

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::output::{Failure, NextAction, Param};
use super::queue::functions as snapshot;
use super::render;
use crate::diagnose::Exit;
use crate::functions::engine::{self, Engine};
use crate::functions::registry::{Registry, Snapshot};
use crate::functions::store::{Run, Runs, Status};
use crate::moment::iso;
use crate::service;
use crate::streams::append::Appender;
use crate::streams::bus::Bus;

/// Longest output that is shown whole, bytes of JSON.
const OUTPUT_SHOWN: usize = 4 << 10;

/// An engine that acts once: nothing of it runs on its own.
async fn engine(bus: &Bus, context: &Context) -> Result<Engine, Failure> {
    let registry = Registry::new(bus.clone());
    registry.refresh().await?;
    let appender = Appender::start(bus, service::append_settings(&context.config));
    let settings = service::engine_settings(&context.config)?;
    Engine::new(bus.clone(), registry, appender, settings, CancellationToken::new())
        .map_err(|error| Failure::new("INTERNAL_ERROR", Exit::Internal, error, "Check the TLS roots of this system."))
}

/// The engine's error in the words of the command line.
fn engine_failure(error: engine::Error) -> Failure {
    match error {
        engine::Error::Redis(error) => error.into(),
        engine::Error::Append(error) => error.into(),
        engine::Error::NoRun(id) => no_run(&id),
        engine::Error::NoFunction(name) => {
            let message = format!("no app serves the function {name}");
            let fix = "Start its app, then joelclaw refresh.";
            Failure::new("FUNCTION_NOT_FOUND", Exit::NotFound, message, fix)
                .next(NextAction::new("functions", "See the functions there are"))
        }
        engine::Error::Ended => {
            Failure::new("RUN_ALREADY_ENDED", Exit::Refused, "the run has ended", "joelclaw runs --status running")
        }
    }
}

fn no_run(id: &str) -> Failure {
    let failure = Failure::new("RUN_NOT_FOUND", Exit::NotFound, format!("there is no run {id}"), "joelclaw runs");
    failure.next(NextAction::new("runs", "See the latest runs with their ids"))
}

/// What an operator calls a function: its slug, its id, its name, or its slug without the app.
fn function_named<'a>(known: &'a Snapshot, asked: &str) -> Vec<&'a str> {
    if let Some(function) = known.function(asked) {
        return vec![function.slug.as_str()];
    }
    let is_meant = |function: &crate::functions::registry::Function| {
        function.name == asked || function.slug.strip_prefix(&format!("{}-", function.app)) == Some(asked)
    };
    known.functions.values().filter(|function| is_meant(function)).map(|function| function.slug.as_str()).collect()
}

/// No function is called so.
fn no_function(known: &Snapshot, asked: &str) -> Failure {
    let near = crate::config::nearest(asked, known.functions.keys().map(String::as_str));
    let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    let message = format!("there is no function {asked}{hint}");
    Failure::new("FUNCTION_NOT_FOUND", Exit::NotFound, message, "joelclaw functions")
        .next(NextAction::new("functions", "See the functions there are"))
}

/// The name for people, where the registry still has it.
fn name_of<'a>(known: &'a Snapshot, run: &'a Run) -> &'a str {
    known.functions.get(&run.function).map_or(run.function.as_str(), |function| function.name.as_str())
}

/// From its first call, or its creation, to its end or now.
fn duration_ms(run: &Run, now_ms: u64) -> Option<u64> {
    let from = run.started_ms?;
    Some(run.ended_ms.unwrap_or(now_ms).saturating_sub(from))
}

/// What every command says about a run.
fn run_json(known: &Snapshot, run: &Run, now_ms: u64) -> Value {
    json!({
        "id": run.id,
        "function": run.function,
        "functionID": run.function_id,
        "functionName": name_of(known, run),
        "app": run.app,
        "status": run.status.as_str(),
        "queuedAt": iso(run.queued_ms),
        "startedAt": run.started_ms.and_then(iso),
        "endedAt": run.ended_ms.and_then(iso),
        "durationMs": duration_ms(run, now_ms),
        "cause": run.cause,
        "reason": run.why,
        "eventIds": run.event_ids,
    })
}

/// JSON text as a value, bounded unless everything is wanted.
fn output(text: &str, is_full: bool) -> Value {
    bounded(serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)), is_full)
}

/// A value cut to what can be read: first its long strings, then, where that is not enough, as text.
fn bounded(value: Value, is_full: bool) -> Value {
    if is_full {
        return value;
    }
    let bytes = value.to_string().len();
    if bytes <= OUTPUT_SHOWN {
        return value;
    }
    let cut = render::cut_values(&value);
    let text = cut.to_string();
    if text.len() <= OUTPUT_SHOWN {
        return cut;
    }
    let start: String = text.chars().take(OUTPUT_SHOWN / 2).collect();
    Value::from(format!("{start}... ({bytes} bytes; --full shows all)"))
}

/// One line of a value, for a cell of a table.
fn one_line(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => render::cut(&text.replace('\n', " ")),
        other => render::cut(&other.to_string()),
    }
}

/// `in 3m`, or `3m ago`.
fn when(at_ms: u64, now_ms: u64) -> String {
    match at_ms.checked_sub(now_ms) {
        Some(left) if left > 0 => format!("in {}", render::age(Duration::from_millis(left))),
        _ => render::ago(Duration::from_millis(now_ms.saturating_sub(at_ms))),
    }
}

fn millis(ms: u64) -> String {
    if ms < 10_000 { format!("{ms}ms") } else { render::age(Duration::from_millis(ms)) }
}

/// `run <id>` of something just seen.
fn run_action(id: &str, description: impl Into<String>) -> NextAction {
    NextAction::new("run <run-id>", description).param("run-id", Param::new().value(id).required())
}

/// The runs that these events started, by the events' public ids, oldest first.
async fn runs_of(
    runs: &Runs,
    known: &Snapshot,
    events: &[String],
    with_reruns: bool,
) -> Result<HashMap<String, Vec<Run>>, Failure> {
    let functions: Vec<uuid::Uuid> = known.functions.values().map(|function| function.id).collect();
    Ok(runs.of_events(&functions, events, with_reruns).await?)
}

/// A mark that is seen before the word is read.
const fn badge(status: Status) -> &'static str {
    match status {
        Status::Queued => "…",
        Status::Running => "▶",
        Status::Completed => "✓",
        Status::Failed => "✗",
        Status::Cancelled => "⊘",
        Status::Skipped => "↷",
    }
}

/// `--data` and its like are read as `queue emit` reads them.
use super::queue::act::emit::read_data;
