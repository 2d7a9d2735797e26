//! `/internal/agent-…`: asks for an agent's work, takes its result, waits for it.
//!
//! The state of a request is a file, `<inbox>/<requestId>.json`; consumers move what they have read to `<inbox>/ack`.
//!
//! # Invariants
//! 1. A file is written under another name and renamed: a reader never sees half of it.
//! 2. Of two requests with one id at the same time one makes the file, and the other finds it.
//! 3. What is terminal is never overwritten.
//! 4. An id is a name and nothing else: it never leads out of the inbox.

use std::path::PathBuf;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::internal::{Internal, failed, refuse};
use crate::ingest::admission::Emit;
use crate::moment;
use crate::streams::records::Fact;

/// The event that asks for an agent.
const REQUESTED: &str = "system/agent.requested";
/// How often a waiter looks.
const LOOK: Duration = Duration::from_millis(250);
/// The longest wait.
const WAIT_MAX_MS: u64 = 3_600_000;
/// The shortest.
const WAIT_MIN_MS: u64 = 5_000;
/// Characters kept of an output.
const TAIL_CHARS: usize = 10_000;

pub(super) fn routes() -> Router<Internal> {
    Router::new()
        .route("/internal/agent-dispatch", post(dispatch))
        .route("/internal/agent-result", post(result))
        .route("/internal/agent-result/{id}", get(status))
        .route("/internal/agent-await/{id}", get(wait))
}

fn bad_id() -> Response {
    refuse(StatusCode::BAD_REQUEST, "requestId required")
}

/// `^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`.
fn is_id(id: &str) -> bool {
    id.len() <= 128
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_terminal(status: &str) -> bool {
    matches!(status, "completed" | "failed" | "cancelled")
}

fn status_of(snapshot: &Value) -> &str {
    snapshot["status"].as_str().unwrap_or("unknown")
}

impl Internal {
    fn elsewhere(&self) -> Option<Response> {
        (!self.0.is_host).then(|| refuse(StatusCode::NOT_FOUND, "Not available in this role"))
    }

    fn file(&self, id: &str) -> PathBuf {
        self.0.inbox.join(format!("{id}.json"))
    }

    /// What is known of a request.
    async fn snapshot(&self, id: &str) -> std::io::Result<Option<Value>> {
        for path in [self.file(id), self.0.inbox.join("ack").join(format!("{id}.json"))] {
            match tokio::fs::read(&path).await {
                Ok(bytes) => return Ok(serde_json::from_slice(&bytes).ok()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Writes a file of its own, to be given the real name.
    async fn draft(&self, snapshot: &Value) -> std::io::Result<PathBuf> {
        tokio::fs::create_dir_all(&self.0.inbox).await?;
        let draft = self.0.inbox.join(format!(".{}.tmp", uuid::Uuid::now_v7()));
        tokio::fs::write(&draft, serde_json::to_vec_pretty(snapshot)?).await?;
        Ok(draft)
    }

    /// Makes the file. False when there is one already.
    async fn create(&self, id: &str, snapshot: &Value) -> std::io::Result<bool> {
        let draft = self.draft(snapshot).await?;
        // Unlike a rename, a link never replaces anything.
        let linked = tokio::fs::hard_link(&draft, self.file(id)).await;
        let _ = tokio::fs::remove_file(&draft).await;
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn replace(&self, id: &str, snapshot: &Value) -> std::io::Result<()> {
        let draft = self.draft(snapshot).await?;
        tokio::fs::rename(&draft, self.file(id)).await
    }

    /// Takes away a file that nobody works on any more. False when somebody else was quicker.
    async fn set_aside(&self, id: &str) -> std::io::Result<bool> {
        let aside = self.0.inbox.join(format!(".{id}.{}.stale", uuid::Uuid::now_v7()));
        match tokio::fs::rename(self.file(id), &aside).await {
            Ok(()) => tokio::fs::remove_file(&aside).await.map(|()| true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn io(error: &std::io::Error) -> Response {
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
        match internal.snapshot(&id).await {
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
                if let Err(error) = internal.set_aside(&id).await {
                    return io(&error);
                }
            }
        }
        let now = moment::now();
        let mut snapshot = json!({
            "requestId": id, "status": "running", "task": task, "tool": tool, "attempt": attempt,
            "startedAt": now, "updatedAt": now,
        });
        for name in ["sessionId", "agent", "executionMode", "sandboxBackend"] {
            if let Some(value) = request.get(name) {
                snapshot[name] = value.clone();
            }
        }
        match internal.create(&id, &snapshot).await {
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
            if let Err(error) = internal.replace(id, &snapshot).await {
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
    let known = match internal.snapshot(id).await {
        Ok(known) => known,
        Err(error) => return io(&error),
    };
    let path = internal.file(id).display().to_string();
    if let Some(known) = known.as_ref().filter(|known| is_terminal(status_of(known))) {
        let body =
            json!({ "ok": true, "requestId": id, "status": status_of(known), "filePath": path, "ignored": true });
        return Json(body).into_response();
    }
    let snapshot = merged(&payload, known.unwrap_or_else(|| json!({})), status, started);
    if let Err(error) = internal.replace(id, &snapshot).await {
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

async fn status(State(internal): State<Internal>, Path(id): Path<String>) -> Response {
    if let Some(elsewhere) = internal.elsewhere() {
        return elsewhere;
    }
    if !is_id(&id) {
        return bad_id();
    }
    match internal.snapshot(&id).await {
        Err(error) => io(&error),
        Ok(None) => Json(json!({ "ok": true, "status": "pending", "requestId": id })).into_response(),
        Ok(Some(snapshot)) => {
            let body = json!({ "ok": true, "requestId": id, "status": status_of(&snapshot), "result": snapshot });
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
    loop {
        match internal.snapshot(&id).await {
            Err(error) => return io(&error),
            Ok(Some(snapshot)) if is_terminal(status_of(&snapshot)) => {
                let has_failed = status_of(&snapshot) == "failed";
                let code = if has_failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
                let body = json!({
                    "ok": !has_failed, "requestId": id, "status": status_of(&snapshot), "result": snapshot,
                });
                return (code, Json(body)).into_response();
            }
            Ok(_) => {}
        }
        tokio::select! {
            () = internal.0.stop.cancelled() => return refuse(StatusCode::SERVICE_UNAVAILABLE, "the server stops"),
            () = tokio::time::sleep_until(deadline) => {
                let body = json!({ "ok": false, "requestId": id, "status": "timeout", "timeoutMs": timeout_ms });
                return (StatusCode::GATEWAY_TIMEOUT, Json(body)).into_response();
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_never_leads_out_of_the_inbox() {
        for id in ["a", "wf-checkout-1.2_x", "A9", &"a".repeat(128)] {
            assert!(is_id(id), "{id}");
        }
        for id in ["", "../a", ".a", "a/b", "a\\b", "-a", "a b", "ä", "a\0", &"a".repeat(129)] {
            assert!(!is_id(id), "{id}");
        }
    }

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
