//! The steps of a run in the order in which it came to them: history, values and what is still open, put together.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::bounded;
use crate::functions::store::{Ending, Pending, Run, Status};
use crate::moment::iso;

/// One step.
#[derive(Debug, Clone, Default)]
pub(super) struct Step {
    /// Its hash.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The operation of the SDK, once it is known.
    pub op: String,
    /// `COMPLETED`, `FAILED`, `QUEUED`, `RETRYING`, `SLEEPING`, `WAITING`, `CANCELLED`, `TIMED_OUT`.
    pub status: &'static str,
    /// The first one and every one after a failure.
    pub attempts: u32,
    /// When it was found, ms.
    pub scheduled_ms: Option<u64>,
    /// When it began, ms.
    pub started_ms: Option<u64>,
    /// When it had its value, ms.
    pub ended_ms: Option<u64>,
    /// As the app measured it, else by our clock.
    pub duration_ms: Option<f64>,
    /// Its result.
    pub output: Option<Value>,
    /// Its error.
    pub error: Option<Value>,
    /// What is told of it beside: event, condition, length, invoked function, signal.
    pub details: Map<String, Value>,
    /// The run that it invoked.
    pub child: Option<String>,
}

/// An attempt that failed, or the error that a step or the run ended with.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    /// The step's hash; `None` for code between steps.
    pub step: Option<String>,
    /// When, ms.
    pub at_ms: Option<u64>,
    /// From 0.
    pub attempt: u32,
    /// When another attempt follows, ms from then.
    pub retry_in_ms: Option<u64>,
    /// `{name, message, stack, …}`.
    pub error: Value,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    /// In order.
    pub steps: Vec<Step>,
    /// In order.
    pub failed: Vec<Failed>,
    /// Everything else that the history tells: type, when, details.
    pub notes: Vec<(u64, Value)>,
}

impl Trace {
    /// Of what is stored about `run`.
    pub fn of(run: &Run, ending: &Ending, pending: &[Pending]) -> Self {
        let mut trace = Self::default();
        let mut places: HashMap<String, usize> = HashMap::new();
        for (id, entry) in &ending.history {
            trace.read(id.ms, entry, &mut places);
        }
        for (hash, value) in &ending.steps {
            // The history is bounded, the values are not.
            let step = trace.step(hash, &mut places);
            take_value(step, value);
        }
        for step in &mut trace.steps {
            if step.ended_ms.is_none() && step.output.is_none() && step.error.is_none() {
                step.status = if run.status.is_terminal() { "CANCELLED" } else { open_status(&step.id, pending) };
            }
            if step.name.is_empty() {
                step.name.clone_from(&step.id);
            }
            if step.status == "FAILED"
                && let Some(error) = &step.error
            {
                let attempt = step.attempts.saturating_sub(1);
                let error = error.clone();
                let (step, at_ms) = (Some(step.id.clone()), step.ended_ms);
                trace.failed.push(Failed { step, at_ms, attempt, retry_in_ms: None, error });
            }
        }
        if let Some(error) = &run.error {
            let error = serde_json::from_str(error).unwrap_or_else(|_| Value::from(error.as_str()));
            let attempt = trace.failed.iter().filter(|failed| failed.step.is_none()).count();
            let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
            trace.failed.push(Failed { step: None, at_ms: run.ended_ms, attempt, retry_in_ms: None, error });
        }
        trace.failed.sort_by_key(|failed| failed.at_ms.unwrap_or(u64::MAX));
        trace
    }

    fn step(&mut self, hash: &str, places: &mut HashMap<String, usize>) -> &mut Step {
        let at = *places.entry(hash.to_owned()).or_insert_with(|| {
            self.steps.push(Step { id: hash.to_owned(), attempts: 1, ..Step::default() });
            self.steps.len() - 1
        });
        &mut self.steps[at]
    }

    fn read(&mut self, ms: u64, entry: &Value, places: &mut HashMap<String, usize>) {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let number = |key: &str| entry.get(key).and_then(Value::as_u64);
        let kind = text("type").unwrap_or_default();
        let Some(hash) = text("step") else {
            if kind == "FunctionErrored" {
                self.failed.push(failed(None, ms, entry));
            } else {
                self.notes.push((ms, entry.clone()));
            }
            return;
        };
        let attempt = u32::try_from(number("attempt").unwrap_or_default()).unwrap_or(u32::MAX);
        if kind == "StepErrored" {
            self.failed.push(failed(Some(hash), ms, entry));
        }
        let step = self.step(hash, places);
        // A step that is called by its hash has told its name when it was planned.
        if let Some(name) = text("name").filter(|name| *name != hash || step.name.is_empty()) {
            step.name = name.to_owned();
        }
        if let Some(op) = text("op").filter(|op| op.starts_with(|c: char| c.is_ascii_uppercase())) {
            step.op = op.to_owned();
        }
        match kind {
            "StepScheduled" => {
                step.scheduled_ms = Some(ms);
                let told = entry.as_object().into_iter().flatten();
                let own = told.filter(|(key, value)| {
                    !matches!(key.as_str(), "type" | "step" | "name" | "op") && !value.is_null()
                });
                step.details.extend(own.map(|(key, value)| (key.clone(), value.clone())));
            }
            "StepErrored" => {
                step.attempts = step.attempts.max(attempt.saturating_add(2));
                step.scheduled_ms.get_or_insert(ms);
            }
            "StepCompleted" | "StepFailed" => {
                step.status = if kind == "StepFailed" { "FAILED" } else { "COMPLETED" };
                step.attempts = step.attempts.max(attempt.saturating_add(1));
                step.ended_ms = Some(ms);
                step.started_ms = number("beganMs").or(step.scheduled_ms);
                #[allow(clippy::cast_precision_loss)]
                let ours = step.scheduled_ms.map(|from| ms.saturating_sub(from) as f64);
                step.duration_ms = entry.get("durationMs").and_then(Value::as_f64).or(ours);
            }
            _ => {}
        }
    }

    /// The step with this hash.
    pub fn named<'a>(&'a self, hash: &'a str) -> &'a str {
        self.steps.iter().find(|step| step.id == hash).map_or(hash, |step| step.name.as_str())
    }
}

fn failed(step: Option<&str>, at_ms: u64, entry: &Value) -> Failed {
    let number = |key: &str| entry.get(key).and_then(Value::as_u64);
    Failed {
        step: step.map(str::to_owned),
        at_ms: Some(at_ms),
        attempt: u32::try_from(number("attempt").unwrap_or_default()).unwrap_or(u32::MAX),
        retry_in_ms: number("retryInMs"),
        error: entry.get("error").cloned().unwrap_or_default(),
    }
}

/// `{"data":…}` and `{"error":…}` are how results of steps are kept; anything else is the value itself.
fn take_value(step: &mut Step, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let only = value.as_object().filter(|members| members.len() == 1);
    match (only.and_then(|members| members.get("data")), only.and_then(|members| members.get("error"))) {
        (Some(data), _) => step.output = Some(data.clone()),
        (_, Some(error)) => step.error = Some(error.clone()),
        _ => step.output = Some(value.clone()),
    }
    let is_wait = matches!(step.op.as_str(), "WaitForEvent" | "WaitForSignal");
    step.status = match (step.error.is_some(), is_wait && value.is_null()) {
        (true, _) => "FAILED",
        (_, true) => "TIMED_OUT",
        _ => "COMPLETED",
    };
}

/// Of a step that has no value yet.
fn open_status(hash: &str, pending: &[Pending]) -> &'static str {
    let of = |pending: &Pending| match pending {
        Pending::Call { thread, .. } => (thread == hash).then_some("QUEUED"),
        Pending::Line { thread, .. } => (thread == hash).then_some("QUEUED"),
        Pending::Retry { thread, .. } => (thread == hash).then_some("RETRYING"),
        Pending::Sleep { step, .. } => (step == hash).then_some("SLEEPING"),
        Pending::Event { step, .. } | Pending::Invoke { step, .. } | Pending::Signal { step, .. } => {
            (step == hash).then_some("WAITING")
        }
    };
    // A step of a call that failed as a whole waits with it.
    pending.iter().find_map(of).unwrap_or(if pending.iter().any(|one| matches!(one, Pending::Retry { .. })) {
        "RETRYING"
    } else {
        "QUEUED"
    })
}

impl Step {
    /// As the result shows it.
    pub fn json(&self, is_full: bool) -> Value {
        let mut shown = json!({
            "id": self.id,
            "name": self.name,
            "op": self.op,
            "status": self.status,
            "attempts": self.attempts,
            "scheduledAt": self.scheduled_ms.and_then(iso),
            "startedAt": self.started_ms.and_then(iso),
            "endedAt": self.ended_ms.and_then(iso),
            "durationMs": self.duration_ms,
            "output": self.output.clone().map(|output| bounded(output, is_full)),
            "error": self.error.clone().map(|error| bounded(error, is_full)),
        });
        if let Some(child) = &self.child {
            shown["invokedRun"] = child.as_str().into();
        }
        if let Value::Object(members) = &mut shown {
            for (key, value) in &self.details {
                members.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        shown
    }

    /// As a span of the trace.
    pub fn span(&self) -> Value {
        json!({
            "name": self.name,
            "status": self.status,
            "attempts": self.attempts,
            "duration": self.duration_ms,
            "startedAt": self.started_ms.or(self.scheduled_ms).and_then(iso),
            "endedAt": self.ended_ms.and_then(iso),
            "stepOp": self.op,
            "stepID": self.id,
            "outputID": null,
            "childrenSpans": [],
        })
    }
}

impl Failed {
    /// As the result shows it.
    pub fn json(&self, trace: &Trace, is_full: bool) -> Value {
        json!({
            "step": self.step.as_ref().map(|step| trace.named(step)),
            "stepID": self.step,
            "at": self.at_ms.and_then(iso),
            "attempt": self.attempt,
            "retryInMs": self.retry_in_ms,
            "final": self.retry_in_ms.is_none(),
            "error": bounded(self.error.clone(), is_full),
        })
    }
}

/// Errors by step as older scripts read them; a second one of a name gets a number.
pub(super) fn errors_by_step(trace: &Trace, is_full: bool) -> Value {
    let mut errors = Map::new();
    for failed in trace.failed.iter().filter(|failed| failed.retry_in_ms.is_none()) {
        let name = failed.step.as_ref().map_or("(function)", |step| trace.named(step));
        let mut key = name.to_owned();
        let mut number = 1;
        while errors.contains_key(&key) {
            key = format!("{name}:{number}");
            number += 1;
        }
        errors
            .insert(key, json!({ "data": failed.error.get("data"), "error": bounded(failed.error.clone(), is_full) }));
    }
    Value::Object(errors)
}

/// How a run's end reads.
pub(super) const fn is_failed(status: Status) -> bool {
    matches!(status, Status::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functions::store::history;
    use crate::streams::entry_id::EntryId;

    fn run(status: Status) -> Run {
        Run {
            id: "01JZ0000000000000000000000".into(),
            function: "app-f".into(),
            function_id: String::new(),
            app: "app".into(),
            lane: "inngest/fn:app-f:p2".into(),
            status,
            events: "[]".into(),
            event_ids: Vec::new(),
            correlation: None,
            cause: "event".into(),
            span: crate::streams::trace::TraceContext::root("r"),
            parent_span: None,
            queued_ms: 1,
            started_ms: Some(2),
            ended_ms: status.is_terminal().then_some(90),
            version: 2,
            force_plan: false,
            output: None,
            error: None,
            why: None,
        }
    }

    fn ending(history: &[String], steps: &[(&str, &str)]) -> Ending {
        Ending {
            steps: steps.iter().map(|(step, value)| ((*step).to_owned(), (*value).to_owned())).collect(),
            history: (10..)
                .zip(history)
                .map(|(ms, text)| (EntryId { ms, seq: 0 }, serde_json::from_str(text).unwrap()))
                .collect(),
        }
    }

    #[test]
    fn steps_are_in_the_order_in_which_the_run_came_to_them() {
        let history = [
            history::scheduled("event"),
            history::started(),
            history::step_scheduled("a", "fetch", "StepPlanned", json!({})),
            history::step_scheduled("w", "answered", "WaitForEvent", json!({"event": "a/b", "if": null, "ms": 5})),
            history::errored(Some(("a", "a")), 0, 15_000, &json!({"name": "E", "message": "once"})),
            history::step_completed("a", "fetch", "StepRun", 1, Some((13_000_000, 2_500_000)), false),
            history::step_completed("w", "", "wait", 0, None, false),
        ];
        let steps = [("a", r#"{"data":{"n":1}}"#), ("w", "null"), ("late", r#"{"error":{"message":"x"}}"#)];
        let trace = Trace::of(&run(Status::Completed), &ending(&history, &steps), &[]);
        let seen: Vec<_> = trace.steps.iter().map(|step| (step.name.as_str(), step.op.as_str(), step.status)).collect();
        assert_eq!(
            seen,
            [("fetch", "StepRun", "COMPLETED"), ("answered", "WaitForEvent", "TIMED_OUT"), ("late", "", "FAILED")]
        );
        let fetch = &trace.steps[0];
        assert_eq!((fetch.attempts, fetch.started_ms, fetch.duration_ms), (2, Some(13), Some(2.5)));
        assert_eq!((&fetch.output, trace.steps[1].details["event"].as_str()), (&Some(json!({"n": 1})), Some("a/b")));
        assert_eq!((trace.failed[0].retry_in_ms, trace.named("a")), (Some(15_000), "fetch"));
        assert_eq!(errors_by_step(&trace, false)["late"]["error"]["message"], "x");
    }

    #[test]
    fn an_open_step_says_what_it_waits_for() {
        let history = [history::step_scheduled("s", "nap", "Sleep", json!({"ms": 5}))];
        let pending = [Pending::Sleep { step: "s".into(), until_ms: Some(99) }];
        let of = |status| Trace::of(&run(status), &ending(&history, &[]), &pending).steps[0].status;
        assert_eq!((of(Status::Running), of(Status::Cancelled)), ("SLEEPING", "CANCELLED"));
    }
}
