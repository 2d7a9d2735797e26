//! What a span shows.

use async_graphql::{Enum, SimpleObject, Union};

use super::super::super::store::Status;
use super::scalars::{Map, Time, Ulid, Uuid};

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
    pub kind: Option<String>,
}

/// A sleep.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct SleepStepInfo {
    pub sleep_until: Time,
}

/// A wait for an event.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct WaitForEventStepInfo {
    pub event_name: String,
    pub expression: Option<String>,
    pub timeout: Time,
    #[graphql(name = "foundEventID")]
    pub found_event_id: Option<String>,
    pub timed_out: Option<bool>,
}

/// A wait for a signal.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct WaitForSignalStepInfo {
    pub signal: String,
    pub timeout: Time,
    pub timed_out: Option<bool>,
}

/// A call of another function.
#[derive(Debug, Clone, SimpleObject)]
pub(super) struct InvokeStepInfo {
    #[graphql(name = "functionID")]
    pub function_id: String,
    pub timeout: Time,
    pub timed_out: Option<bool>,
}
