//! Operations of one answer → one advance of the run (protocol sections A7, A8).

use std::time::Duration;

use rand::Rng as _;
use serde_json::{Value, json};

use super::super::duration::time_string;
use super::super::ids;
use super::super::registry::{Function, Snapshot};
use super::super::store::{Advance, Begun, Guard, Wait, history};
use super::answer::{Failure, stored_error};
use super::call::DISCOVERY;
use super::event::{internal, names};
use super::finish::Ending;
use super::ops::Op;
use super::{Engine, spans};
use crate::streams::records::Fact;
use crate::telemetry::latency::kind;

/// Largest result of one step, bytes.
pub const OUTPUT_MAX: usize = 4 << 20;
/// Longest sleep, wait and invoke, ms: 366 days.
const LONGEST_MS: u64 = 366 * 86_400_000;
/// Timeout of an invoke or a signal that names none, ms.
const YEAR_MS: u64 = 365 * 86_400_000;
/// Delay after the n-th failed attempt, s; the last one stands for all that follow.
const BACKOFF_S: [u64; 10] = [15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200];
/// Drawn on top of it, s.
const JITTER_S: f64 = 30.0;

/// What an answer makes of the run.
pub(super) struct Applied<'a> {
    /// To be run.
    pub advance: Advance<'a>,
    /// Values that the advance stores, for the caller's copy.
    pub memos: Vec<(String, String)>,
    /// Waits that it registers: step, event and what to look for.
    pub waits: Vec<(String, String, Wait)>,
    /// It sets a timer.
    pub sets_timer: bool,
}

/// The answer can't be applied: the attempt failed.
pub(super) type Refused = Failure;

/// The call that was answered.
pub(super) struct Context<'a> {
    pub engine: &'a Engine,
    pub begun: &'a Begun,
    pub function: &'a Function,
    pub snapshot: &'a Snapshot,
    pub entry: &'a str,
    /// How long the call took.
    pub took: Duration,
}

impl<'a> Context<'a> {
    pub fn advance(&self) -> Applied<'a> {
        let begun = self.begun;
        let guard = Guard::Thread { thread: &begun.thread, generation: begun.generation, entry: Some(self.entry) };
        let advance = Advance::new(&begun.run.id, guard, self.engine.settings().limits, self.engine.keep_ms(false));
        Applied { advance, memos: Vec::new(), waits: Vec::new(), sets_timer: false }
    }

    /// The function ended with a result.
    pub fn done(&self, output: String) -> Applied<'a> {
        let mut applied = self.advance();
        Ending::Completed(output).add_to(&mut applied.advance, &self.begun.run);
        applied
    }

    /// The run ends with an error.
    pub fn fail(&self, failure: &Failure) -> Applied<'a> {
        let begun = self.begun;
        let guard = Guard::Thread { thread: &begun.thread, generation: begun.generation, entry: Some(self.entry) };
        let mut applied = self.advance();
        applied.advance = Advance::new(&begun.run.id, guard, self.engine.settings().limits, self.engine.keep_ms(true));
        let mut error = failure.error.clone();
        if begun.thread != DISCOVERY
            && let Some(error) = error.as_object_mut()
        {
            error.insert("step".into(), begun.thread.as_str().into());
        }
        Ending::Failed { error, text: failure.text.clone() }.add_to(&mut applied.advance, &begun.run);
        applied
    }

    /// An attempt failed: another one follows, or the run ends.
    pub fn failed_attempt(&self, failure: &Failure) -> Applied<'a> {
        if !failure.is_retriable || self.is_last_attempt() {
            return self.fail(failure);
        }
        let mut applied = self.advance();
        let step = (self.begun.thread != DISCOVERY).then_some(self.begun.thread.as_str());
        self.retry(&mut applied, failure.retry_after, step.map(|step| (step, step)), &failure.error);
        applied
    }

    /// The app could not be reached: nothing ran, so no attempt is counted.
    pub fn unreached(&self, delay: Duration, reason: &str, is_news: bool) -> Applied<'a> {
        let mut applied = self.advance();
        let ms = ms(delay);
        let note = if is_news {
            let error = json!({"name": "Error", "message": format!("the app can't be reached: {reason}"), "code": "http_unreachable"});
            history::errored(None, self.begun.attempt, ms, &error)
        } else {
            String::new()
        };
        applied.advance.again(ms, note);
        applied.sets_timer = true;
        applied
    }

    fn is_last_attempt(&self) -> bool {
        self.begun.attempt >= self.function.retries
    }

    fn retry(&self, applied: &mut Applied<'a>, after: Option<Duration>, step: Option<(&str, &str)>, error: &Value) {
        let attempt = self.begun.attempt;
        let delay = ms(after.unwrap_or_else(|| self.backoff(attempt)));
        applied.advance.retry(delay, history::errored(step, attempt, delay, error));
        applied.sets_timer = true;
        let message = error.get("message").and_then(Value::as_str).unwrap_or("failed");
        let mut fact = Fact::new("functions", "function.step.errored")
            .warn()
            .with("runId", self.begun.run.id.clone())
            .with("function", self.function.slug.clone())
            .with("attempt", attempt)
            .with("retryInMs", delay);
        fact.error = Some(message.chars().take(500).collect());
        if let Some((_, name)) = step {
            fact = fact.with("step", name);
        }
        applied.advance.fact(fact);
    }

    fn backoff(&self, attempt: u32) -> Duration {
        if let Some(constant) = self.engine.settings().retry_interval {
            return constant;
        }
        let index = usize::try_from(attempt).unwrap_or(usize::MAX).min(BACKOFF_S.len() - 1);
        let jitter = Duration::from_secs_f64(rand::rng().random_range(0.0..JITTER_S));
        Duration::from_secs(BACKOFF_S[index]) + jitter
    }

    /// The operations of a 206.
    pub fn ops(
        &self,
        ops: &[Op],
        version: Option<u32>,
        no_retry: bool,
        retry_after: Option<Duration>,
    ) -> Result<Applied<'a>, Refused> {
        let mut applied = self.advance();
        applied.advance.request_version(version);
        let flow: Vec<&Op> = ops.iter().filter(|op| !op.is_lazy()).collect();
        if flow.is_empty() {
            applied.advance.empty_answer();
        }
        if flow.len() >= 2 {
            let steps: Vec<&str> = flow.iter().map(|op| op.id.as_str()).collect();
            applied.advance.fan_out(&steps, flow.iter().any(|op| op.is_waiting()));
        }
        // Waits first: an event that a later operation of the same answer causes must find them.
        for op in flow.iter().filter(|op| op.op == "WaitForEvent") {
            self.wait(&mut applied, op)?;
        }
        let (mut completed, mut is_retried) = (None, false);
        for op in flow.iter().filter(|op| op.op != "WaitForEvent") {
            match op.op.as_str() {
                "StepRun" => self.memo(&mut applied, op, format!(r#"{{"data":{}}}"#, op.result()), false)?,
                "Step" => self.memo(&mut applied, op, op.result().to_owned(), false)?,
                "StepFailed" => self.memo_error(&mut applied, op)?,
                "StepError" => {
                    let Some(error) = &op.error else {
                        return Err(Failure::limit("invalid_response", "StepError without error").retriable());
                    };
                    if no_retry || self.is_last_attempt() {
                        self.memo_error(&mut applied, op)?;
                    } else if !is_retried {
                        is_retried = true;
                        let error = stored_error(error);
                        self.retry(&mut applied, retry_after, Some((&op.id, op.label())), &error);
                    }
                }
                "StepPlanned" => {
                    let note = history::step_scheduled(&op.id, op.label(), "StepPlanned", json!({}));
                    applied.advance.plan(&op.id, op.is_race(), note);
                }
                "Sleep" => self.sleep(&mut applied, op)?,
                "InvokeFunction" => self.invoke(&mut applied, op)?,
                "WaitForSignal" => self.signal(&mut applied, op)?,
                "DiscoveryRequest" => applied.advance.discover(),
                "RunComplete" => completed = Some(op),
                other => {
                    return Err(Failure::limit("unknown_opcode", format!("unknown opcode: {other}")).retriable());
                }
            }
        }
        if let Some(op) = completed {
            too_large(op.result().len())?;
            Ending::Completed(op.result().to_owned()).add_to(&mut applied.advance, &self.begun.run);
        }
        Ok(applied)
    }

    fn memo(&self, applied: &mut Applied<'a>, op: &Op, value: String, is_error: bool) -> Result<(), Refused> {
        too_large(value.len())?;
        let attempt = self.begun.attempt;
        let note = history::step_completed(&op.id, op.label(), &op.op, attempt, op.times(), is_error);
        // An SDK that does not say how long its step took made a call for it.
        let took = op.times().map_or(self.took, |(_, ns)| Duration::from_nanos(ns));
        self.engine.record(kind::STEP, &self.function.slug, took);
        applied.advance.fact(self.step_fact(op, took, is_error));
        applied.advance.memo(&op.id, value.clone(), note);
        applied.memos.push((op.id.clone(), value));
        Ok(())
    }

    fn memo_error(&self, applied: &mut Applied<'a>, op: &Op) -> Result<(), Refused> {
        let error = stored_error(op.error.as_ref().unwrap_or(&Value::Null));
        self.memo(applied, op, json!({ "error": error }).to_string(), true)
    }

    fn step_fact(&self, op: &Op, took: Duration, is_error: bool) -> Fact {
        let action = if is_error { "function.step.failed" } else { "function.step.completed" };
        let fact = Fact::new("functions", action)
            .with("runId", self.begun.run.id.clone())
            .with("function", self.function.slug.clone())
            .with("step", op.label())
            .with("attempt", self.begun.attempt);
        let fact = spans::step_fact(fact, &self.begun.run.span, op, Some(took));
        if is_error { fact.warn() } else { fact }
    }

    fn sleep(&self, applied: &mut Applied<'a>, op: &Op) -> Result<(), Refused> {
        let text = op.option("duration").or(op.name.as_deref()).unwrap_or_default();
        let ms = self.until(text).ok_or_else(|| {
            Failure::limit("invalid_response", format!("`{text}` is no duration and no date to sleep until"))
                .retriable()
        })?;
        self.not_too_long(ms)?;
        let note = history::step_scheduled(&op.id, op.label(), "Sleep", json!({"ms": ms}));
        applied.advance.sleep(&op.id, op.is_race(), ms, note);
        applied.sets_timer = true;
        Ok(())
    }

    fn wait(&self, applied: &mut Applied<'a>, op: &Op) -> Result<(), Refused> {
        let event = op.option("event").or(op.name.as_deref()).unwrap_or_default();
        if event.is_empty() {
            return Err(Failure::limit("invalid_response", "waitForEvent names no event").retriable());
        }
        let ms = match op.opts.as_ref().and_then(|opts| opts.get("timeout")).and_then(Value::as_str) {
            Some("") => 0,
            Some(text) => self.timeout(text)?,
            None => YEAR_MS,
        };
        let (mut condition, mut part, mut sought) = (None, Value::Null, None);
        if let Some(text) = op.option("if") {
            let expr = self
                .engine
                .expression(text)
                .map_err(|error| Failure::limit("InvalidExpression", format!("waitForEvent: `{text}`: {error}")))?;
            let events: Vec<Value> = serde_json::from_str(&self.begun.run.events).unwrap_or_default();
            let first = events.first().unwrap_or(&Value::Null);
            (part, sought) = (expr.event_part(first), expr.sought(first));
            condition = Some(text.to_owned());
        }
        let until = self.begun.now_ms.saturating_add(ms).saturating_add(60_000);
        let wait = Wait { condition, event: part, since_ms: self.begun.now_ms, until_ms: Some(until), sought };
        let details = json!({"event": event, "if": op.option("if"), "ms": ms});
        let note = history::step_scheduled(&op.id, op.label(), "WaitForEvent", details);
        applied.advance.wait(&op.id, op.is_race(), event, &wait, ms, note);
        applied.waits.push((op.id.clone(), event.to_owned(), wait));
        applied.sets_timer = true;
        Ok(())
    }

    fn invoke(&self, applied: &mut Applied<'a>, op: &Op) -> Result<(), Refused> {
        let target = op.option("function_id").unwrap_or_default();
        let Some(function) = self.snapshot.function(target).filter(|function| self.snapshot.is_served(&function.slug))
        else {
            let error =
                json!({"error": {"name": "Error", "message": format!("could not find function with ID: {target}")}});
            return self.memo(applied, op, error.to_string(), true);
        };
        let ms = match op.option("timeout") {
            Some(text) => self.timeout(text)?,
            None => YEAR_MS,
        };
        let run = &self.begun.run;
        let payload = op.opts.as_ref().and_then(|opts| opts.get("payload")).cloned().unwrap_or_default();
        let mut data = payload.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
        let meta = json!({
            "fn_id": function.slug,
            "correlation_id": format!("{}.{}", run.id, op.id),
            "expire": self.begun.now_ms.saturating_add(ms),
            "gid": uuid::Uuid::now_v7(),
            "name": op.label(),
            "source_app_id": ids::app_id(&run.app),
            "source_fn_id": run.function_id,
            "source_fn_v": 1,
        });
        data.insert("_inngest".into(), meta);
        too_large(data.len())?;
        // From run and step, so that an answer that is applied twice asks once.
        let id = ids::derived(self.begun.now_ms, &[&run.id, &op.id]);
        let ts = chrono::Utc::now().timestamp_millis();
        let Some(event) = internal(names::INVOKED, id, &Value::Object(data).to_string(), ts, run.span) else {
            return Err(Failure::limit("invalid_response", "the data of an invoke can't be an event").retriable());
        };
        let details = json!({"function": function.slug, "ms": ms});
        let note = history::step_scheduled(&op.id, op.label(), "InvokeFunction", details);
        applied.advance.in_span(run.span);
        applied.advance.invoke(&op.id, op.is_race(), ms, event, note);
        applied.sets_timer = true;
        Ok(())
    }

    fn signal(&self, applied: &mut Applied<'a>, op: &Op) -> Result<(), Refused> {
        let Some(signal) = op.option("signal") else {
            return Err(Failure::limit("invalid_response", "waitForSignal names no signal").retriable());
        };
        let ms = match op.option("timeout") {
            Some(text) => self.timeout(text)?,
            None => YEAR_MS,
        };
        let replace = op.option("conflict") == Some("replace");
        let note = history::step_scheduled(&op.id, op.label(), "WaitForSignal", json!({"signal": signal, "ms": ms}));
        applied.advance.signal(&op.id, op.is_race(), signal, replace, ms, note);
        applied.sets_timer = true;
        Ok(())
    }

    fn timeout(&self, text: &str) -> Result<u64, Refused> {
        let ms = self.until(text).ok_or_else(|| {
            Failure::limit("invalid_response", format!("`{text}` is no duration and no date")).retriable()
        })?;
        self.not_too_long(ms)?;
        Ok(ms)
    }

    #[allow(clippy::unused_self)]
    fn not_too_long(&self, ms: u64) -> Result<(), Refused> {
        if ms <= LONGEST_MS {
            return Ok(());
        }
        Err(Failure::limit("InngestErrTimeoutTooLong", "a sleep, wait or invoke may last 366 days at most"))
    }

    /// Ms from now, of a duration or a date; a date that has passed is now.
    fn until(&self, text: &str) -> Option<u64> {
        time_string(text).or_else(|| {
            let at = chrono::DateTime::parse_from_rfc3339(text.trim()).ok()?;
            let now = i64::try_from(self.begun.now_ms).ok()?;
            // The call took time: what is left is counted from its answer.
            let now = now.max(chrono::Utc::now().timestamp_millis());
            Some(u64::try_from(at.timestamp_millis().saturating_sub(now)).unwrap_or(0))
        })
    }
}

impl Failure {
    fn retriable(mut self) -> Self {
        self.is_retriable = true;
        self
    }
}

fn too_large(bytes: usize) -> Result<(), Refused> {
    if bytes <= OUTPUT_MAX {
        return Ok(());
    }
    let message = format!("a step's output is {bytes} bytes; at most {OUTPUT_MAX} are allowed");
    Err(Failure::limit("output_too_large", message))
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
