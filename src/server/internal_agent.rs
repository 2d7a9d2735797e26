//! `/internal/agent-…`: asks for an agent's work, takes its result, waits for it.
//!
//! | endpoint | does |
//! |---|---|
//! | `POST /internal/agent-dispatch` | asks for the work; a duplicate is answered with what there is |
//! | `POST /internal/agent-result` | takes a result, or a sign of life |
//! | `GET /internal/agent-result/<id>` | what is known |
//! | `GET /internal/agent-await/<id>?timeoutMs=` | the same, once it has ended |
//! | `GET /internal/agent-list`, `POST /internal/agent-cancel` | [`super::internal_agents`] |
//! | `GET /internal/agent-logs/<id>` | [`super::internal_logs`] |
//!
//! The state of a request is a file of the [`Inbox`](super::internal_inbox::Inbox).

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::internal::{Internal, failed, refuse};
use super::internal_inbox::{is_id, is_terminal, status_of};
use super::{internal_agents, internal_logs};
use crate::ingest::admission::Emit;
use crate::moment;
use crate::streams::records::Fact;

/// The event that asks for an agent.
const REQUESTED: &str = "system/agent.requested";
/// Largest request for work, bytes.
const DISPATCH_MAX: usize = 2 << 20;
/// The longest wait.
const WAIT_MAX_MS: u64 = 3_600_000;
/// The shortest.
const WAIT_MIN_MS: u64 = 5_000;
/// Characters kept of an output.
const TAIL_CHARS: usize = 10_000;

pub(super) fn routes() -> Router<Internal> {
    Router::new()
        .route("/internal/agent-dispatch", post(dispatch).layer(DefaultBodyLimit::max(DISPATCH_MAX)))
        .route("/internal/agent-result", post(result))
        .route("/internal/agent-result/{id}", get(status))
        .route("/internal/agent-await/{id}", get(wait))
        .route("/internal/agent-list", get(internal_agents::list))
        .route("/internal/agent-cancel", post(internal_agents::cancel))
        .route("/internal/agent-logs/{id}", get(internal_logs::logs))
}

pub(super) fn bad_id() -> Response {
    refuse(StatusCode::BAD_REQUEST, "requestId required")
}

impl Internal {
    pub(super) fn elsewhere(&self) -> Option<Response> {
        (!self.0.is_host).then(|| refuse(StatusCode::NOT_FOUND, "Not available in this role"))
    }
}

pub(super) fn io(error: &std::io::Error) -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, format!("the inbox can't be used: {error}"))
}

fn duplicate(id: &str, snapshot: &Value) -> Response {
    let body =
        json!({ "ok": true, "requestId": id, "status": status_of(snapshot), "duplicate": true, "result": snapshot });
    Json(body).into_response()
}

/// How long a request may be under way, s.
fn timeout_s(request: &Map<String, Value>) -> f64 {
    request.get("timeout").and_then(Value::as_f64).unwrap_or(600.0).clamp(60.0, 3600.0)
}

/// Whether somebody works on it still. A time that can't be read counts as fresh.
fn is_fresh(snapshot: &Value, timeout_s: f64) -> bool {
    let at = snapshot["updatedAt"].as_str().or_else(|| snapshot["startedAt"].as_str()).unwrap_or_default();
    let Ok(at) = chrono::DateTime::parse_from_rfc3339(at) else { return true };
    #[allow(clippy::cast_precision_loss)]
    let age_s = (chrono::Utc::now() - at.to_utc()).num_milliseconds() as f64 / 1000.0;
    age_s < (timeout_s + 60.0).clamp(60.0, 3660.0)
}

async fn dispatch(State(internal): State<Internal>, body: Bytes) -> Response {
    if let Some(elsewhere) = internal.elsewhere() {
        return elsewhere;
    }
    let Ok(Value::Object(mut request)) = serde_json::from_slice::<Value>(&body) else {
        return refuse(StatusCode::BAD_REQUEST, "Invalid payload");
    };
    let word = |name: &str| request.get(name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
    let (Some(id), Some(task), Some(tool)) = (word("requestId"), word("task"), word("tool")) else {
        return refuse(StatusCode::BAD_REQUEST, "Missing required fields: requestId, task, tool");
    };
    if !is_id(id) {
        return bad_id();
    }
    if !matches!(tool, "codex" | "claude" | "pi" | "canary") {
        let body = json!({ "ok": false, "error": format!("Invalid tool: {tool}"), "field": "tool" });
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    let (id, task, tool, timeout) = (id.to_owned(), task.to_owned(), tool.to_owned(), timeout_s(&request));
    request.insert("timeout".into(), timeout.into());
    let mut attempt = 1;
    loop {
        match internal.0.inbox.snapshot(&id).await {
            Err(error) => return io(&error),
            Ok(None) => {}
            Ok(Some(known)) => {
                if is_terminal(status_of(&known)) || is_fresh(&known, timeout) {
                    let fact = Fact::new("system-bus-internal", "internal.agent_dispatch.deduped")
                        .with("requestId", id.as_str())
                        .with("status", status_of(&known));
                    let _ = internal.0.bus.journal([fact]).await;
                    return duplicate(&id, &known);
                }
                attempt = known["attempt"].as_u64().unwrap_or(1) + 1;
                if let Err(error) = internal.0.inbox.set_aside(&id).await {
                    return io(&error);
                }
            }
        }
        let now = moment::now();
        let mut snapshot = json!({
            "requestId": id, "status": "running", "task": task, "tool": tool, "attempt": attempt,
            "startedAt": now, "updatedAt": now,
        });
        snapshot["executionMode"] = "host".into();
        for name in ["sessionId", "agent", "executionMode", "sandboxBackend"] {
            if let Some(value) = request.get(name) {
                snapshot[name] = value.clone();
            }
        }
        match internal.0.inbox.create(&id, &snapshot).await {
            Ok(true) => return send(&internal, &id, &request, snapshot, attempt).await,
            // Somebody was quicker: theirs is looked at.
            Ok(false) => {}
            Err(error) => return io(&error),
        }
    }
}

async fn send(
    internal: &Internal,
    id: &str,
    request: &Map<String, Value>,
    mut snapshot: Value,
    attempt: u64,
) -> Response {
    let data = Value::from(request.clone()).to_string();
    let event_id = format!("agent-dispatch-{id}-{attempt}");
    let emit = Emit { name: REQUESTED, data: &data, id: Some(&event_id), source: Some("internal"), ..Emit::default() };
    match internal.0.admission.admit(emit).await {
        Ok(accepted) => {
            let mut fact = Fact::new("system-bus-internal", "internal.agent_dispatch.requested").event(&event_id);
            for (name, value) in request.iter().filter(|(name, _)| *name != "task") {
                fact = fact.with(name, value.clone());
            }
            let _ = internal.0.bus.journal([fact]).await;
            Json(json!({ "ok": true, "requestId": id, "sendResult": { "ids": [accepted.event_id] } })).into_response()
        }
        Err(error) => {
            let now = moment::now();
            snapshot["status"] = "failed".into();
            snapshot["error"] = crate::diagnose::chain(&error).into();
            snapshot["updatedAt"] = now.as_str().into();
            snapshot["completedAt"] = now.into();
            if let Err(error) = internal.0.inbox.replace(id, &snapshot).await {
                return io(&error);
            }
            let mut response = failed(&error);
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.headers_mut().insert("retry-after", axum::http::HeaderValue::from_static("5"));
            response
        }
    }
}

/// The last characters of a text.
fn tail(text: &str) -> String {
    let count = text.chars().count();
    text.chars().skip(count.saturating_sub(TAIL_CHARS)).collect()
}

async fn result(State(internal): State<Internal>, body: Bytes) -> Response {
    if let Some(elsewhere) = internal.elsewhere() {
        return elsewhere;
    }
    let invalid = || refuse(StatusCode::BAD_REQUEST, "Invalid SandboxExecutionResult payload");
    let Ok(Value::Object(payload)) = serde_json::from_slice::<Value>(&body) else { return invalid() };
    let word = |name: &str| payload.get(name).and_then(Value::as_str);
    let (Some(id), Some(state), Some(started)) = (word("requestId"), word("state"), word("startedAt")) else {
        return invalid();
    };
    if !is_id(id) {
        return bad_id();
    }
    let status = match state {
        "pending" | "running" => "running",
        "completed" | "failed" | "cancelled" => state,
        _ => return invalid(),
    };
    let _writing = internal.0.inbox.lock().await;
    let known = match internal.0.inbox.read(id).await {
        Ok(known) => known,
        Err(error) => return io(&error),
    };
    let path = internal.0.inbox.file(id).display().to_string();
    if let Some(known) = known.as_ref().filter(|known| is_terminal(status_of(known))) {
        let body =
            json!({ "ok": true, "requestId": id, "status": status_of(known), "filePath": path, "ignored": true });
        return Json(body).into_response();
    }
    let snapshot = merged(&payload, known.unwrap_or_else(|| json!({})), status, started);
    if let Err(error) = internal.0.inbox.replace(id, &snapshot).await {
        return io(&error);
    }
    Json(json!({ "ok": true, "requestId": id, "status": status, "filePath": path })).into_response()
}

/// A result over what was known of the request.
fn merged(payload: &Map<String, Value>, known: Value, status: &str, started: &str) -> Value {
    let word = |name: &str| payload.get(name).and_then(Value::as_str);
    let mut snapshot = known;
    let mut default = |name: &str, value: Value| {
        if snapshot[name].is_null() {
            snapshot[name] = value;
        }
    };
    default("task", "sandbox execution".into());
    let tool = payload.get("job").and_then(|job| job["name"].as_str()).unwrap_or("sandbox-runner");
    default("tool", tool.into());
    default("startedAt", started.into());
    default("executionMode", "sandbox".into());
    default("sandboxBackend", word("backend").unwrap_or("k8s").into());
    snapshot["requestId"] = word("requestId").unwrap_or_default().into();
    snapshot["status"] = status.into();
    snapshot["updatedAt"] = moment::now().into();
    for name in ["job", "artifacts"] {
        if let Some(value) = payload.get(name) {
            snapshot[name] = value.clone();
        }
    }
    if status == "completed" {
        if let Some(output) = payload.get("output") {
            snapshot["result"] = output.clone();
        }
    } else if let Some(error) = payload.get("error") {
        snapshot["error"] = error.clone();
        snapshot["result"] = error.clone();
    }
    if is_terminal(status) {
        let completed = word("completedAt").map_or_else(moment::now, str::to_owned);
        let parse = |text: &str| chrono::DateTime::parse_from_rfc3339(text).ok();
        let began = snapshot["startedAt"].as_str().and_then(parse);
        let took = began.zip(parse(&completed)).map(|(from, to)| (to - from).num_milliseconds().max(0));
        snapshot["durationMs"] = payload.get("durationMs").cloned().unwrap_or_else(|| took.into());
        snapshot["completedAt"] = completed.into();
    }
    let mut logs = snapshot["logs"].as_object().cloned().unwrap_or_default();
    let given = payload.get("artifacts").and_then(|artifacts| artifacts["logs"].as_object()).cloned();
    let has_logs = given.is_some();
    logs.extend(given.unwrap_or_default());
    for (name, source) in [("stdout", "output"), ("stderr", "error")] {
        if let Some(text) = word(source).filter(|_| !has_logs) {
            logs.insert(name.into(), text.into());
        }
        if let Some(text) = logs.get(name).and_then(Value::as_str).map(tail) {
            logs.insert(name.into(), text.into());
        }
    }
    if !logs.is_empty() {
        snapshot["logs"] = logs.into();
    }
    snapshot
}

#[derive(Debug, Deserialize)]
struct Fields {
    /// `status`: nothing but that.
    fields: Option<String>,
}

async fn status(State(internal): State<Internal>, Path(id): Path<String>, Query(asked): Query<Fields>) -> Response {
    if let Some(elsewhere) = internal.elsewhere() {
        return elsewhere;
    }
    if !is_id(&id) {
        return bad_id();
    }
    match internal.0.inbox.snapshot(&id).await {
        Err(error) => io(&error),
        Ok(None) => Json(json!({ "ok": true, "status": "pending", "requestId": id, "known": false })).into_response(),
        Ok(Some(snapshot)) => {
            let mut body = json!({ "ok": true, "requestId": id, "status": status_of(&snapshot) });
            if asked.fields.as_deref() != Some("status") {
                body["result"] = snapshot;
            }
            Json(body).into_response()
        }
    }
}

#[derive(Debug, Deserialize)]
struct Wait {
    #[serde(rename = "timeoutMs")]
    timeout_ms: Option<String>,
}

async fn wait(State(internal): State<Internal>, Path(id): Path<String>, Query(asked): Query<Wait>) -> Response {
    if let Some(elsewhere) = internal.elsewhere() {
        return elsewhere;
    }
    if !is_id(&id) {
        return bad_id();
    }
    let timeout_ms = asked.timeout_ms.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(WAIT_MAX_MS);
    let timeout_ms = timeout_ms.clamp(WAIT_MIN_MS, WAIT_MAX_MS);
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    let Some(mut waiter) = internal.0.inbox.waiter(&id) else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many wait already");
    };
    loop {
        // Looked at after the waiter began to listen: no change falls between.
        let last = match internal.0.inbox.snapshot(&id).await {
            Err(error) => return io(&error),
            Ok(Some(snapshot)) if is_terminal(status_of(&snapshot)) => return ended(&id, snapshot),
            Ok(last) => last,
        };
        tokio::select! {
            () = internal.0.stop.cancelled() => return refuse(StatusCode::SERVICE_UNAVAILABLE, "the server stops"),
            () = tokio::time::sleep_until(deadline) => {
                let last = last.as_ref().map_or("pending", status_of);
                let body = json!({
                    "ok": false, "requestId": id, "status": "timeout", "timeoutMs": timeout_ms, "lastStatus": last,
                });
                return (StatusCode::GATEWAY_TIMEOUT, Json(body)).into_response();
            }
            () = waiter.changed() => {}
        }
    }
}

fn ended(id: &str, snapshot: Value) -> Response {
    let status = status_of(&snapshot).to_owned();
    let code = if status == "failed" { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    let body = json!({ "ok": status == "completed", "requestId": id, "status": status, "result": snapshot });
    (code, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_keeps_what_was_known_and_bounds_what_is_said() {
        let known = json!({ "requestId": "r", "status": "running", "task": "t", "tool": "pi", "sessionId": "s",
            "startedAt": "2026-11-27T05:00:00.000Z" });
        let payload = json!({ "requestId": "r", "state": "completed", "startedAt": "2026-11-27T05:00:05.000Z",
            "completedAt": "2026-11-27T05:00:10.000Z", "output": "x".repeat(20_000) });
        let merged = merged(payload.as_object().unwrap(), known, "completed", "2026-11-27T05:00:05.000Z");
        assert_eq!((&merged["task"], &merged["tool"], &merged["sessionId"]), (&json!("t"), &json!("pi"), &json!("s")));
        assert_eq!(merged["durationMs"], 10_000);
        assert_eq!(merged["logs"]["stdout"].as_str().unwrap().len(), TAIL_CHARS);
        let unknown = super::merged(payload.as_object().unwrap(), json!({}), "running", "x");
        assert_eq!((&unknown["tool"], &unknown["executionMode"]), (&json!("sandbox-runner"), &json!("sandbox")));
    }
}
