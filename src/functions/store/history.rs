//! The history of a run: one JSON object per stream entry; the entry's id says when.
//!
//! `{"type": …, "step"?, "name"?, "op"?, "attempt"?, "error"?, …}`. A run is over if and only if its history holds
//! `FunctionCompleted`, `FunctionFailed` or `FunctionCancelled`.

use serde_json::{Value, json};

/// The run was created.
#[must_use]
pub fn scheduled(cause: &str) -> String {
    json!({"type": "FunctionScheduled", "cause": cause}).to_string()
}

/// Its first call begins.
#[must_use]
pub fn started() -> String {
    json!({"type": "FunctionStarted"}).to_string()
}

/// Nothing would have brought it on; its work was queued again.
#[must_use]
pub fn repaired() -> String {
    json!({"type": "FunctionRepaired"}).to_string()
}

/// A step was found: `op` says of which kind.
#[must_use]
pub fn step_scheduled(step: &str, name: &str, op: &str, details: Value) -> String {
    let mut entry = json!({"type": "StepScheduled", "step": step, "name": name, "op": op});
    if let (Some(entry), Value::Object(details)) = (entry.as_object_mut(), details) {
        entry.extend(details);
    }
    entry.to_string()
}

/// A step has its value. `is_error` when that is an error.
#[must_use]
pub fn step_completed(
    step: &str,
    name: &str,
    op: &str,
    attempt: u32,
    timing: Option<(u64, u64)>,
    is_error: bool,
) -> String {
    let kind = if is_error { "StepFailed" } else { "StepCompleted" };
    let mut entry = json!({"type": kind, "step": step, "name": name, "op": op, "attempt": attempt});
    if let Some((began_ns, took_ns)) = timing {
        entry["beganMs"] = (began_ns / 1_000_000).into();
        #[allow(clippy::cast_precision_loss)]
        {
            entry["durationMs"] = (took_ns as f64 / 1_000_000.0).into();
        }
    }
    entry.to_string()
}

/// An attempt failed and another follows.
#[must_use]
pub fn errored(step: Option<(&str, &str)>, attempt: u32, retry_ms: u64, error: &Value) -> String {
    let mut entry = json!({"type": "StepErrored", "attempt": attempt, "retryInMs": retry_ms, "error": error});
    match step {
        Some((step, name)) => {
            entry["step"] = step.into();
            entry["name"] = name.into();
        }
        None => entry["type"] = "FunctionErrored".into(),
    }
    entry.to_string()
}

/// The run is over.
#[must_use]
pub fn ended(status: super::Status, why: &str) -> String {
    let kind = match status {
        super::Status::Completed => "FunctionCompleted",
        super::Status::Cancelled => "FunctionCancelled",
        super::Status::Skipped => "FunctionSkipped",
        _ => "FunctionFailed",
    };
    let mut entry = json!({"type": kind});
    if !why.is_empty() {
        entry["reason"] = why.into();
    }
    entry.to_string()
}

/// Something worth knowing that changed nothing.
#[must_use]
pub fn remark(text: &str) -> String {
    json!({"type": "Remark", "text": text}).to_string()
}
