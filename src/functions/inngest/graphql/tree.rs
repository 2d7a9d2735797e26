//! The spans of a run: `Run`, below it one per step in the order in which they were found, each with its attempts, and
//! at last the call in which the function ended. Pure: history, values and state → tree.
//!
//! The history says when an answer was stored, not when its call began: a call begins when what it goes on from was
//! stored, unless the SDK measured it.

use std::collections::HashMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::super::ids;
use super::super::super::store::{Ending, Run, Status};
use super::outputs::Of;
use super::runs::trace_id;
use super::scalars::{Time, Ulid, Uuid};
use super::spans::{
    InvokeStepInfo, RunStepInfo, SleepStepInfo, Span, SpanStatus, StepInfo, StepOp, WaitForEventStepInfo,
    WaitForSignalStepInfo,
};
use super::story::{Failure, Part, Row, Story};

/// The call in which the function ended.
const LAST_CALL: &str = "Finalization";
/// A call that goes on, or that was tried again before it found the next step.
const CALL: &str = "Execution";

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::streams::entry_id::EntryId;

    const QUEUED: u64 = 1_700_000_000_000;

    /// A run of `QUEUED`, started 10 ms later; an ended one 1 s after that.
    fn run(status: Status) -> Run {
        Run {
            id: "01HF7YAT0000000000000000AA".into(),
            function: "app-a".into(),
            function_id: "f".into(),
            app: "app".into(),
            lane: "a/b:p2".into(),
            status,
            events: "[]".into(),
            event_ids: Vec::new(),
            correlation: None,
            cause: "event".into(),
            span: crate::streams::trace::TraceContext::root("r"),
            parent_span: None,
            queued_ms: QUEUED,
            started_ms: Some(QUEUED + 10),
            ended_ms: status.is_terminal().then_some(QUEUED + 1_010),
            version: 1,
            force_plan: false,
            output: None,
            error: None,
            why: None,
        }
    }

    /// Lines of history at ms after `QUEUED`.
    fn details(lines: &[(u64, Value)]) -> Ending {
        let entry = |(ms, line): &(u64, Value)| (EntryId { ms: QUEUED + ms, seq: 0 }, line.clone());
        Ending { steps: Vec::new(), history: lines.iter().map(entry).collect() }
    }

    fn live(fields: &[(&str, &str)]) -> HashMap<String, String> {
        fields.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect()
    }

    /// Name, status, and begin and end in ms after `QUEUED`.
    type Shown<'a> = (&'a str, SpanStatus, Option<u64>, Option<u64>);

    fn shown(span: &Span) -> Vec<Shown<'_>> {
        let after = |time: Option<Time>| time.map(|time| time.0 - QUEUED);
        let children = span.children_spans.as_ref().unwrap().iter();
        children.map(|child| (&*child.name, child.status, after(child.started_at), after(child.ended_at))).collect()
    }

    fn errored(step: &str, attempt: u32) -> Value {
        json!({"type": "StepErrored", "step": step, "name": step, "attempt": attempt, "retryInMs": 100, "error": {}})
    }

    fn function_errored(attempt: u32) -> Value {
        json!({"type": "FunctionErrored", "attempt": attempt, "retryInMs": 100, "error": {}})
    }

    fn completed(step: &str) -> Value {
        json!({"type": "StepCompleted", "step": step, "name": step, "op": "StepRun", "attempt": 0})
    }

    use SpanStatus::{Cancelled, Completed, Failed, Queued, Running, Waiting};

    #[test]
    fn a_step_that_waits_for_its_next_attempt_runs_and_says_when() {
        let details = details(&[(200, errored("a", 0)), (400, errored("a", 1))]);
        let root = tree(&run(Status::Running), &details, &live(&[("t:d", "2|2|")]));
        assert_eq!(shown(&root), [("a", Running, Some(10), None)]);
        let step = &root.children_spans.as_ref().unwrap()[0];
        assert_eq!(step.attempts, Some(2));
        let attempts = [
            ("Attempt 0", Failed, Some(10), Some(200)),
            ("Attempt 1", Failed, Some(300), Some(400)),
            ("Attempt 2", Queued, None, None),
        ];
        assert_eq!(shown(step), attempts);
        assert_eq!(step.children_spans.as_ref().unwrap()[2].scheduled_at, Some(Time(QUEUED + 500)));
    }

    #[test]
    fn planned_steps_are_queued_until_they_are_called() {
        let plan = |step: &str| json!({"type": "StepScheduled", "step": step, "name": "", "op": "StepPlanned"});
        let details = details(&[(20, plan("a")), (20, plan("b"))]);
        let root = tree(&run(Status::Running), &details, &live(&[("t:a", "0|1|5-0"), ("t:b", "0|0|6-0")]));
        assert_eq!(shown(&root), [("a", Running, Some(20), None), ("b", Queued, None, None)]);
        assert_eq!(root.output_id, None);
    }

    #[test]
    fn what_the_function_itself_failed_at_stands_where_it_happened() {
        let lines =
            [(50, function_errored(0)), (200, completed("a")), (300, function_errored(0)), (500, function_errored(1))];
        let ended = tree(&run(Status::Completed), &details(&lines), &HashMap::new());
        let expected = [
            ("Execution", Completed, Some(10), Some(150)),
            ("a", Completed, Some(50), Some(200)),
            ("Finalization", Completed, Some(200), Some(1_010)),
        ];
        assert_eq!(shown(&ended), expected);
        assert_eq!((ended.attempts, ended.children_spans.as_ref().unwrap()[2].attempts), (Some(3), Some(3)));
        let going = tree(&run(Status::Running), &details(&lines), &live(&[("t:d", "2|3|9-0")]));
        assert_eq!(shown(&going)[2], ("Execution", Running, Some(200), None));
        let cancelled = tree(&run(Status::Cancelled), &details(&lines), &HashMap::new());
        assert_eq!(shown(&cancelled)[2], ("Execution", Cancelled, Some(200), Some(1_010)));
    }

    #[test]
    fn a_step_whose_calls_broke_off_is_what_failed() {
        let mut run = run(Status::Failed);
        run.error = Some(json!({"message": "m", "step": "a"}).to_string());
        let plan = json!({"type": "StepScheduled", "step": "a", "name": "The a", "op": "StepPlanned"});
        let root = tree(&run, &details(&[(20, plan), (200, errored("a", 0))]), &HashMap::new());
        assert_eq!(shown(&root), [("The a", Failed, Some(20), Some(1_010))]);
        let step = &root.children_spans.as_ref().unwrap()[0];
        assert_eq!((step.attempts, &step.output_id), (Some(2), &Some(Of::Run.id(&run.id))));
        assert_eq!(root.output_id, step.output_id);
    }

    #[test]
    fn sleeps_wait_and_end_with_their_run() {
        let sleep = json!({"type": "StepScheduled", "step": "a", "name": "nap", "op": "Sleep", "ms": 5_000});
        let details = details(&[(20, sleep)]);
        let going = tree(&run(Status::Running), &details, &live(&[("s:a", "sleep|0|")]));
        assert_eq!(shown(&going), [("nap", Waiting, Some(20), None)]);
        let Some(StepInfo::Sleep(info)) = &going.children_spans.as_ref().unwrap()[0].step_info else {
            panic!("{going:?}")
        };
        assert_eq!(info.sleep_until, Time(QUEUED + 5_020));
        let cancelled = tree(&run(Status::Cancelled), &details, &HashMap::new());
        assert_eq!(shown(&cancelled), [("nap", Cancelled, Some(20), Some(1_010))]);
    }

    #[test]
    fn measured_times_are_believed_within_the_clocks_skew() {
        let measured = |began: u64| {
            let mut line = completed("a");
            line["beganMs"] = began.into();
            line["durationMs"] = 40.4.into();
            let root = tree(&run(Status::Running), &details(&[(200, line)]), &HashMap::new());
            let step = &shown(&root)[0];
            (step.2.unwrap(), step.3.unwrap())
        };
        assert_eq!(measured(QUEUED + 100), (100, 140));
        assert_eq!(measured(QUEUED + 3_600_000), (160, 200));
    }

    #[test]
    fn steps_of_a_trimmed_history_are_still_told() {
        let mut details = details(&[(200, completed("b"))]);
        details.steps = vec![("a".into(), r#"{"error":{}}"#.into()), ("b".into(), r#"{"data":1}"#.into())];
        let root = tree(&run(Status::Running), &details, &HashMap::new());
        assert_eq!(
            shown(&root).iter().map(|step| (step.0, step.1)).collect::<Vec<_>>(),
            [("a", Failed), ("b", Completed)]
        );
    }
}
