//! A run's history, read: its steps with their attempts, and the calls of its function that failed.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::super::super::store::{Ending, Run};
use super::spans::StepOp;
use crate::streams::entry_id::EntryId;

/// How far an app's clock may be off before its times are moved to ours, ms.
const SKEW_MS: u64 = 1_000;

/// A failed attempt.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// Its entry in the history, which has the error.
    pub entry: EntryId,
    pub began: u64,
    pub ended: u64,
    /// When the next attempt was due.
    pub again: u64,
}

/// How a step ended.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub began: u64,
    pub ended: u64,
    pub is_error: bool,
}

/// A step.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Its hash.
    pub step: String,
    name: String,
    pub op: Option<StepOp>,
    pub queued: u64,
    /// What was said when it was scheduled.
    pub details: Value,
    pub failures: Vec<Failure>,
    pub end: Option<End>,
}

impl Row {
    /// What people call it.
    pub(super) fn label(&self) -> &str {
        if self.name.is_empty() { &self.step } else { &self.name }
    }

    fn call_it(&mut self, name: &str) {
        // A call that broke off knows the hash only.
        if !name.is_empty() && (self.name.is_empty() || name != self.step) {
            name.clone_into(&mut self.name);
        }
    }
}

/// What a run consists of, in the order in which it was found.
#[derive(Debug)]
pub(super) enum Part {
    /// A step, by its place in [`Story::rows`].
    Step(usize),
    /// Failed attempts of the function's own code, before the one that found the next step.
    Calls(Vec<Failure>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Story {
    pub rows: Vec<Row>,
    pub parts: Vec<Part>,
    /// Failed attempts of the function's own code since the last step was found.
    pub failures: Vec<Failure>,
    /// The last thing that happened before the end, ms.
    pub before_end_ms: u64,
    places: HashMap<String, usize>,
    queued_ms: u64,
    last_failed_attempt: u64,
}

impl Story {
    pub(super) fn read(run: &Run, details: &Ending) -> Self {
        let mut story = Self {
            rows: Vec::new(),
            parts: Vec::new(),
            failures: Vec::new(),
            before_end_ms: run.started_ms.unwrap_or(run.queued_ms),
            places: HashMap::new(),
            queued_ms: run.queued_ms,
            last_failed_attempt: 0,
        };
        story.add_forgotten(details);
        for (entry, line) in &details.history {
            story.take(*entry, line);
        }
        story
    }

    pub(super) fn has(&self, step: &str) -> bool {
        self.places.contains_key(step)
    }

    /// Steps whose part of a long history was trimmed: their values are all that is left of them.
    fn add_forgotten(&mut self, details: &Ending) {
        let told: HashSet<&str> = details.history.iter().filter_map(|(_, line)| line["step"].as_str()).collect();
        for (step, value) in details.steps.iter().filter(|(step, _)| !told.contains(step.as_str())) {
            let at = self.before_end_ms;
            let is_error = value.starts_with("{\"error\"");
            self.row(step, at).end = Some(End { began: at, ended: at, is_error });
        }
    }

    fn take(&mut self, entry: EntryId, line: &Value) {
        let at = entry.ms;
        let text = |key: &str| line[key].as_str().unwrap_or_default();
        match (text("type"), line["step"].as_str()) {
            ("StepScheduled", Some(step)) => {
                let row = self.row(step, at);
                row.queued = at;
                row.op = StepOp::of(text("op")).or(row.op);
                row.call_it(text("name"));
                row.details = line.clone();
            }
            ("StepErrored", Some(step)) => {
                let last = self.before_end_ms;
                let row = self.row(step, last);
                row.op = row.op.or(Some(StepOp::Run));
                row.call_it(text("name"));
                let failure = failed(entry, line, row.failures.last(), row.queued);
                row.failures.push(failure);
            }
            (kind @ ("StepCompleted" | "StepFailed"), Some(step)) => {
                let (last, queued_ms) = (self.before_end_ms, self.queued_ms);
                let row = self.row(step, last);
                row.op = row.op.or(StepOp::of(text("op")));
                row.call_it(text("name"));
                let began = row.failures.last().map_or(row.queued, |last| last.again).min(at);
                let (began, ended) = measured(line, at, queued_ms).unwrap_or((began, at));
                if row.details.is_null() && row.failures.is_empty() {
                    row.queued = row.queued.min(began);
                }
                row.end = Some(End { began, ended, is_error: kind == "StepFailed" });
            }
            ("FunctionErrored", _) => {
                let attempt = line["attempt"].as_u64().unwrap_or(0);
                // It counts from the start again: another stretch of code, although no step was found between.
                if attempt < self.last_failed_attempt {
                    self.close();
                }
                self.last_failed_attempt = attempt;
                self.failures.push(failed(entry, line, self.failures.last(), self.before_end_ms));
            }
            ("FunctionStarted", _) => {}
            _ => return,
        }
        self.before_end_ms = at;
    }

    /// The row of a step; a new one shows that the function's code went on to it.
    fn row(&mut self, step: &str, at: u64) -> &mut Row {
        let index = match self.places.get(step) {
            Some(index) => *index,
            None => {
                self.close();
                let index = self.rows.len();
                self.places.insert(step.to_owned(), index);
                self.parts.push(Part::Step(index));
                self.rows.push(Row {
                    step: step.to_owned(),
                    name: String::new(),
                    op: None,
                    queued: at,
                    details: Value::Null,
                    failures: Vec::new(),
                    end: None,
                });
                index
            }
        };
        &mut self.rows[index]
    }

    fn close(&mut self) {
        self.last_failed_attempt = 0;
        if !self.failures.is_empty() {
            self.parts.push(Part::Calls(std::mem::take(&mut self.failures)));
        }
    }
}

fn failed(entry: EntryId, line: &Value, before: Option<&Failure>, queued: u64) -> Failure {
    let began = before.map_or(queued, |before| before.again).min(entry.ms);
    let again = entry.ms.saturating_add(line["retryInMs"].as_u64().unwrap_or(0));
    Failure { entry, began, ended: entry.ms, again }
}

/// Begin and end as the SDK measured them, moved to our clock where the app's is another.
fn measured(line: &Value, stored: u64, queued: u64) -> Option<(u64, u64)> {
    let (began, took) = (line["beganMs"].as_u64()?, line["durationMs"].as_f64()?);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let took = took.round() as u64;
    let ended = began.saturating_add(took);
    let is_plausible = began.saturating_add(SKEW_MS) >= queued && ended <= stored.saturating_add(SKEW_MS);
    Some(if is_plausible { (began, ended) } else { (stored.saturating_sub(took), stored) })
}
