//! The spans of a run: `Run`, below it one per step in the order in which they were found, each with its attempts, and
//! at last the call in which the function ended. Pure: history, values and state → tree.
//!
//! The history says when an answer was stored, not when its call began: a call begins when what it goes on from was
//! stored, unless the SDK measured it.

use std::collections::HashMap;

use async_graphql::{Enum, SimpleObject, Union};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::super::ids;
use super::super::super::store::{Ending, Run, Status};
use super::outputs::Of;
use super::runs::trace_id;
use super::scalars::{Map, Time, Ulid, Uuid};
use super::story::{Failure, Part, Row, Story};

/// How far an app's clock may be off before its times are moved to ours, ms.
pub(super) const SKEW_MS: u64 = 1_000;
/// The call in which the function ended.
const LAST_CALL: &str = "Finalization";
/// A call that goes on, or that was tried again before it found the next step.
const CALL: &str = "Execution";

/// Where a span stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "RunTraceSpanStatus")]
pub(super) enum SpanStatus {
    Queued,
    Running,
    /// Asleep, or waiting for an event, a signal or another function.
    Waiting,
    Completed,
    Failed,
    Cancelled,
    Skipped,
}

impl From<Status> for SpanStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Queued => Self::Queued,
            Status::Running => Self::Running,
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Skipped => Self::Skipped,
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum StepOp {
    Invoke,
    Run,
    Sleep,
    WaitForEvent,
    AiGateway,
    WaitForSignal,
}

impl StepOp {
    /// Of an SDK's operation, or of the kind by which an open step is kept.
    pub(super) fn of(op: &str) -> Option<Self> {
        Some(match op {
            "Step" | "StepRun" | "StepPlanned" | "StepError" | "StepFailed" | "Gateway" | "plan" => Self::Run,
            "Sleep" | "sleep" => Self::Sleep,
            "WaitForEvent" | "wait" => Self::WaitForEvent,
            "InvokeFunction" | "invoke" => Self::Invoke,
            "WaitForSignal" | "signal" => Self::WaitForSignal,
            "AIGateway" => Self::AiGateway,
            _ => return None,
        })
    }

    /// Ended by something that arrives, not by a call.
    pub(super) const fn is_waiting(self) -> bool {
        !matches!(self, Self::Run | Self::AiGateway)
    }
}

/// A part of a run.
#[derive(Debug, Clone, SimpleObject)]
#[graphql(name = "RunTraceSpan")]
pub(super) struct Span {
    pub name: String,
    pub status: SpanStatus,
    /// Attempts begun, where it can be tried again.
    pub attempts: Option<usize>,
    /// Ms; nothing while it goes on.
    pub duration: Option<u64>,
    pub is_root: bool,
    pub queued_at: Time,
    /// When its next attempt is due.
    pub scheduled_at: Option<Time>,
    pub started_at: Option<Time>,
    pub ended_at: Option<Time>,
    pub step_op: Option<StepOp>,
    /// The step's hash.
    #[graphql(name = "stepID")]
    pub step_id: Option<String>,
    pub step_info: Option<StepInfo>,
    pub step_type: Option<String>,
    /// For `runTraceSpanOutputByID`, once there is something to see.
    #[graphql(name = "outputID")]
    pub output_id: Option<String>,
    pub children_spans: Option<Vec<Span>>,
    #[graphql(name = "spanID")]
    pub span_id: String,
    #[graphql(name = "parentSpanID")]
    pub parent_span_id: Option<String>,
    #[graphql(name = "traceID")]
    pub trace_id: String,
    #[graphql(name = "runID")]
    pub run_id: Ulid,
    #[graphql(name = "appID")]
    pub app_id: Uuid,
    #[graphql(name = "functionID")]
    pub function_id: Uuid,
    /// Spans of the app's own are not kept.
    pub is_userland: bool,
    pub metadata: Vec<SpanMetadata>,
}

/// Something that an app attached to a span.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct SpanMetadata {
    scope: String,
    kind: String,
    values: Map,
}

/// What a step is about, by its kind.
#[derive(Debug, Clone, Union)]
pub(super) enum StepInfo {
    Run(RunStepInfo),
    Sleep(SleepStepInfo),
    WaitForEvent(WaitForEventStepInfo),
    WaitForSignal(WaitForSignalStepInfo),
    Invoke(InvokeStepInfo),
}

/// A piece of code.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct RunStepInfo {
    #[graphql(name = "type")]
    kind: Option<String>,
}

/// A sleep.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct SleepStepInfo {
    sleep_until: Time,
}

/// A wait for an event.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct WaitForEventStepInfo {
    event_name: String,
    expression: Option<String>,
    timeout: Time,
    #[graphql(name = "foundEventID")]
    found_event_id: Option<String>,
    timed_out: Option<bool>,
}

/// A wait for a signal.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct WaitForSignalStepInfo {
    signal: String,
    timeout: Time,
    timed_out: Option<bool>,
}

/// A call of another function.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct InvokeStepInfo {
    #[graphql(name = "functionID")]
    function_id: String,
    timeout: Time,
    timed_out: Option<bool>,
}

/// The tree of a run. `live` is what keeps it going, empty once it has ended.
pub(super) fn tree(run: &Run, details: &Ending, live: &HashMap<String, String>) -> Span {
    let blamed = run.error.as_deref().and_then(|error| {
        let error: Value = serde_json::from_str(error).ok()?;
        error["step"].as_str().map(str::to_owned)
    });
    Maker { run, live, blamed, values: details.steps.iter().map(|(step, value)| (&**step, &**value)).collect() }
        .tree(Story::read(run, details))
}

struct Maker<'a> {
    run: &'a Run,
    live: &'a HashMap<String, String>,
    /// The step whose calls failed so often that the run did.
    blamed: Option<String>,
    values: HashMap<&'a str, &'a str>,
}

/// What a thread is doing, as `live` says it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// Not begun yet.
    New,
    /// Called, or about to be.
    Called,
    /// Waiting for its next attempt.
    Retrying,
}

impl Maker<'_> {
    fn tree(&self, story: Story) -> Span {
        let run = self.run;
        let mut root = Span {
            is_root: true,
            output_id: run.status.is_terminal().then(|| Of::Run.id(&run.id)),
            ..self.times(self.blank("run", None, "Run", run.status.into()), run.queued_ms, run.started_ms, run.ended_ms)
        };
        let parent = root.span_id.clone();
        let mut children = Vec::new();
        for (index, part) in story.parts.iter().enumerate() {
            children.push(match part {
                Part::Step(row) => self.step(&story.rows[*row], &parent),
                Part::Calls(failures) => {
                    let ended = failures.last().map_or(run.queued_ms, |last| last.again);
                    self.call(index, CALL, SpanStatus::Completed, failures, None, Some(ended), &parent)
                }
            });
        }
        let last = self.last_call(&story, &parent);
        let attempts = last.as_ref().and_then(|last| last.attempts);
        root.attempts = Some(attempts.unwrap_or_else(|| usize::from(run.started_ms.is_some())));
        children.extend(last);
        root.children_spans = Some(children);
        root
    }

    /// The call that ended the function, or the one that goes on.
    fn last_call(&self, story: &Story, parent: &str) -> Option<Span> {
        let run = self.run;
        let failures = &story.failures;
        let index = story.parts.len();
        let began = failures.last().map_or(story.before_end_ms, |last| last.again);
        match run.status {
            Status::Completed => {
                let (status, began) = (SpanStatus::Completed, Some(began));
                Some(self.call(index, LAST_CALL, status, failures, began, run.ended_ms, parent))
            }
            // What failed then is the call of a step, which has its own span.
            Status::Failed if self.blamed.as_deref().is_some_and(|step| story.has(step)) => None,
            Status::Failed => {
                let (status, began) = (SpanStatus::Failed, Some(began));
                Some(self.call(index, LAST_CALL, status, failures, began, run.ended_ms, parent))
            }
            Status::Cancelled | Status::Skipped => (!failures.is_empty())
                .then(|| self.call(index, CALL, SpanStatus::Cancelled, failures, None, run.ended_ms, parent)),
            Status::Queued | Status::Running => {
                let thread = self.thread("d");
                // A discovery that waits without a failure of its own waits for the step that failed in it.
                if thread.is_none_or(|thread| thread == Thread::Retrying) && failures.is_empty() {
                    return None;
                }
                let status = if thread == Some(Thread::New) { SpanStatus::Queued } else { SpanStatus::Running };
                let began = (thread == Some(Thread::Called)).then_some(began);
                Some(self.call(index, CALL, status, failures, began, None, parent))
            }
        }
    }

    /// A stretch of the function's own code, with its failed attempts and the last one, if it `began`.
    #[allow(clippy::too_many_arguments)]
    fn call(
        &self,
        index: usize,
        name: &str,
        status: SpanStatus,
        failures: &[Failure],
        began: Option<u64>,
        ended: Option<u64>,
        parent: &str,
    ) -> Span {
        let path = format!("call {index}");
        let first = failures.first().map(|first| first.began).or(began);
        let is_last = name == LAST_CALL;
        let output = is_last.then(|| Of::Run.id(&self.run.id));
        let mut span = Span {
            output_id: output.clone(),
            attempts: Some(failures.len() + usize::from(began.is_some())),
            ..self.times(
                self.blank(&path, Some(parent), name, status),
                first.unwrap_or(self.run.queued_ms),
                first,
                ended,
            )
        };
        let last = Attempt { status, began, ended, output };
        span.children_spans = Some(self.attempts(&path, &span.span_id, failures, last));
        span
    }

    fn step(&self, row: &Row, parent: &str) -> Span {
        let path = format!("step {}", row.step);
        let is_waiting = row.op.is_some_and(StepOp::is_waiting);
        let is_blamed = self.blamed.as_deref() == Some(row.step.as_str());
        let thread = self.thread(&row.step).or_else(|| (!row.failures.is_empty()).then(|| self.thread("d"))?);
        let (status, ended) = match &row.end {
            Some(end) => (if end.is_error { SpanStatus::Failed } else { SpanStatus::Completed }, Some(end.ended)),
            None if self.run.status.is_terminal() => {
                let status = if is_blamed { SpanStatus::Failed } else { SpanStatus::Cancelled };
                (status, self.run.ended_ms)
            }
            None if is_waiting => (SpanStatus::Waiting, None),
            None if row.failures.is_empty() && thread.is_none_or(|thread| thread == Thread::New) => {
                (SpanStatus::Queued, None)
            }
            None => (SpanStatus::Running, None),
        };
        let output = match (&row.end, is_blamed) {
            (Some(_), _) => Some(Of::Step(row.step.clone()).id(&self.run.id)),
            (None, true) => Some(Of::Run.id(&self.run.id)),
            (None, false) => None,
        };
        // The attempt after the failed ones: it ended the step, it is under way, or it is still to come.
        let again = row.failures.last().map_or(row.queued, |last| last.again);
        let began = match &row.end {
            Some(end) => Some(end.began),
            None if is_blamed => Some(again),
            None => (thread == Some(Thread::Called) && !self.run.status.is_terminal()).then_some(again),
        };
        let first = row.failures.first().map(|first| first.began).or(began).or(is_waiting.then_some(row.queued));
        let mut span = Span {
            step_op: row.op,
            step_id: Some(row.step.clone()),
            step_info: self.info(row),
            attempts: (!is_waiting).then(|| row.failures.len() + usize::from(began.is_some())),
            output_id: output.clone(),
            ..self.times(self.blank(&path, Some(parent), row.label(), status), row.queued, first, ended)
        };
        let last = Attempt { status, began, ended, output };
        span.children_spans = Some(self.attempts(&path, &span.span_id, &row.failures, last));
        span
    }

    /// The attempts of something that failed at least once; one that did not is its only attempt itself.
    fn attempts(&self, path: &str, parent: &str, failures: &[Failure], last: Attempt) -> Vec<Span> {
        let Some(again) = failures.last().map(|failure| failure.again) else { return Vec::new() };
        let blank = |index: usize, status| {
            self.blank(&format!("{path} {index}"), Some(parent), &format!("Attempt {index}"), status)
        };
        let mut spans: Vec<Span> = Vec::with_capacity(failures.len() + 1);
        for (index, failure) in failures.iter().enumerate() {
            let span = blank(index, SpanStatus::Failed);
            spans.push(Span {
                output_id: Some(Of::Attempt(failure.entry).id(&self.run.id)),
                ..self.times(span, failure.began, Some(failure.began), Some(failure.ended))
            });
        }
        let index = failures.len();
        match (last.began, last.status) {
            (Some(began), status) => spans.push(Span {
                output_id: last.output,
                ..self.times(blank(index, status), began, Some(began), last.ended)
            }),
            (None, SpanStatus::Running | SpanStatus::Queued) => spans.push(Span {
                scheduled_at: Some(Time(again)),
                ..self.times(blank(index, SpanStatus::Queued), again, None, None)
            }),
            (None, _) => {}
        }
        spans
    }

    fn info(&self, row: &Row) -> Option<StepInfo> {
        let text = |key: &str| row.details[key].as_str().map(str::to_owned);
        let due = Time(row.queued.saturating_add(row.details["ms"].as_u64().unwrap_or(0)));
        let value: Option<Value> = self.values.get(row.step.as_str()).and_then(|text| serde_json::from_str(text).ok());
        let is_null = value.as_ref().map(Value::is_null);
        Some(match row.op? {
            StepOp::Run | StepOp::AiGateway => StepInfo::Run(RunStepInfo { kind: None }),
            StepOp::Sleep => StepInfo::Sleep(SleepStepInfo { sleep_until: due }),
            StepOp::WaitForEvent => StepInfo::WaitForEvent(WaitForEventStepInfo {
                event_name: text("event")?,
                expression: text("if"),
                timeout: due,
                found_event_id: value.as_ref().and_then(|event| event["id"].as_str().map(str::to_owned)),
                timed_out: is_null,
            }),
            StepOp::WaitForSignal => StepInfo::WaitForSignal(WaitForSignalStepInfo {
                signal: text("signal")?,
                timeout: due,
                timed_out: is_null,
            }),
            StepOp::Invoke => StepInfo::Invoke(InvokeStepInfo {
                function_id: text("function")?,
                timeout: due,
                timed_out: value.map(|value| value["error"]["name"] == "InngestInvokeTimeoutError"),
            }),
        })
    }

    fn thread(&self, name: &str) -> Option<Thread> {
        // `attempt|generation|entry`; no entry while a retry waits.
        let mut parts = self.live.get(&format!("t:{name}"))?.splitn(3, '|').skip(1);
        match (parts.next()?, parts.next()?) {
            (_, "") => Some(Thread::Retrying),
            ("0", _) => Some(Thread::New),
            _ => Some(Thread::Called),
        }
    }

    fn blank(&self, path: &str, parent: Option<&str>, name: &str, status: SpanStatus) -> Span {
        let run = self.run;
        let digest = Sha256::new().chain_update(&run.id).chain_update([0]).chain_update(path).finalize();
        Span {
            name: name.to_owned(),
            status,
            attempts: None,
            duration: None,
            is_root: false,
            queued_at: Time(run.queued_ms),
            scheduled_at: None,
            started_at: None,
            ended_at: None,
            step_op: None,
            step_id: None,
            step_info: None,
            step_type: None,
            output_id: None,
            children_spans: Some(Vec::new()),
            span_id: hex::encode(&digest[..8]),
            parent_span_id: parent.map(str::to_owned),
            trace_id: trace_id(&run.id),
            run_id: Ulid(run.id.clone()),
            app_id: Uuid(ids::app_id(&run.app).to_string()),
            function_id: Uuid(run.function_id.clone()),
            is_userland: false,
            metadata: Vec::new(),
        }
    }

    fn times(&self, span: Span, queued: u64, started: Option<u64>, ended: Option<u64>) -> Span {
        Span {
            queued_at: Time(queued),
            started_at: started.map(Time),
            ended_at: ended.map(Time),
            duration: started.zip(ended).map(|(started, ended)| ended.saturating_sub(started)),
            ..span
        }
    }
}

/// The attempt after the failed ones.
struct Attempt {
    status: SpanStatus,
    /// Nothing while it is still to come.
    began: Option<u64>,
    ended: Option<u64>,
    output: Option<String>,
}
