//! A work item: call the function, apply its answer, go on with whatever the run needs next, until it has to wait.
//!
//! # Invariants
//! 1. An answer is stored before the lane entry is acknowledged; if Redis is away, the entry stays leased and the answer
//!    is offered again until Redis takes it or the lease is lost.
//! 2. What is not stored is run again; what is stored is not.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::super::registry::Function;
use super::super::store::{Advance, Advanced, Begun, Guard, Taken, Wait};
use super::Engine;
use super::answer::{Answer, Failure, classify};
use super::apply::{Applied, Context};
use super::call::{Call, DISCOVERY, Ticket, body};
use super::finish::Ending;
use crate::drainer::handlers::{Dispatch, Handler, Outcome};
use crate::streams::redis::Error as RedisError;
use crate::telemetry::latency::kind;

/// How long an answer is offered to a Redis that is away before the work item is given back.
const STORE_FOR: Duration = Duration::from_secs(60);
/// How long a call that a process began and did not live to end may still be under way in the app, where a limit counts
/// it, ms. Existing servers wait for a lease; a call that takes longer may overlap with its repetition.
const ORPHAN_MS: u64 = 10_000;
/// Delay of the next try when an app can't be reached: shortly after it went away, and later.
const AWAY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// When the second of them begins.
const AWAY_LONG: Duration = Duration::from_secs(15);

/// Runs the work items of all functions.
#[derive(Debug, Clone)]
pub struct WorkHandler {
    engine: Engine,
}

/// `data` of a work item.
#[derive(Debug, Deserialize)]
struct Item {
    run: String,
    thread: String,
}

impl WorkHandler {
    /// A handler over `engine`.
    #[must_use]
    pub const fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

impl Handler for WorkHandler {
    fn kind(&self) -> &'static str {
        "function"
    }

    fn target(&self) -> &str {
        "engine"
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let Ok(item) = serde_json::from_str::<Item>(dispatch.envelope.data.as_str()) else {
                let error = "a work item names no run".to_owned();
                return Outcome::Fail { reason: "undecodable", error, status: None };
            };
            let entry = dispatch.entry_id.to_string();
            tokio::select! {
                outcome = self.engine.work(&item.run, &item.thread, &entry) => outcome,
                () = dispatch.cancel.cancelled() => Outcome::Cancelled,
            }
        })
    }
}

/// Whether the caller goes on with the run. One at a time, and gone at once: a box would only cost.
#[allow(clippy::large_enum_variant)]
enum After {
    /// With this thread.
    GoOn(Begun),
    /// The work item is done.
    Done,
    /// Redis did not take it.
    Retry(RedisError),
}

impl Engine {
    /// Brings a run on under a lane entry.
    async fn work(&self, run: &str, thread: &str, entry: &str) -> Outcome {
        let mut begun = loop {
            match self.runs().begin(run, thread, entry, ORPHAN_MS).await {
                Ok(Taken::Begun(begun)) => break begun,
                Ok(Taken::Gone) => return Outcome::Done,
                Ok(Taken::Wait(ms)) => {
                    tokio::select! {
                        () = self.inner.stop.cancelled() => return Outcome::Cancelled,
                        () = tokio::time::sleep(Duration::from_millis(ms)) => {}
                    }
                }
                Err(error) => return retry(&error),
            }
        };
        // Its first call begins in the moment in which it starts.
        if begun.run.started_ms == Some(begun.now_ms) {
            let waited = Duration::from_millis(begun.now_ms.saturating_sub(begun.run.queued_ms));
            self.record(kind::RUN_QUEUE, &begun.run.function, waited);
        }
        let mut answered = None;
        loop {
            // What is stored so far goes on with whoever is handed the entry.
            if self.inner.stop.is_cancelled() {
                return Outcome::Cancelled;
            }
            begun = match self.call_once(begun, entry, &mut answered).await {
                After::GoOn(next) => next,
                After::Done => return Outcome::Done,
                After::Retry(error) => return retry(&error),
            };
        }
    }

    /// `answered` is when the call before this one was, and then when this one was.
    async fn call_once(&self, begun: Begun, entry: &str, answered: &mut Option<Instant>) -> After {
        let snapshot = self.registry().current();
        let Some(function) = snapshot.function(&begun.run.function).cloned() else {
            return self.without_function(&begun, entry).await;
        };
        let called = Instant::now();
        let answer = self.call_function(&begun, &function, answered).await;
        let took = called.elapsed();
        let context = Context { engine: self, begun: &begun, function: &function, snapshot: &snapshot, entry, took };
        if !matches!(answer, Answer::Unreached(_)) {
            self.reached(&function.app);
        }
        let applied = match answer {
            Answer::Done(output) if output.len() > super::apply::OUTPUT_MAX => {
                let message = "the function's output is larger than 4 MiB";
                context.fail(&Failure::limit("output_too_large", message))
            }
            Answer::Done(output) => context.done(output),
            Answer::Ops { ops, version, no_retry, retry_after } => {
                let ops = self.with_requests_made(ops).await;
                match context.ops(&ops, version, no_retry, retry_after) {
                    Ok(applied) => applied,
                    Err(failure) => context.failed_attempt(&failure),
                }
            }
            Answer::Failure(failure) => {
                if failure.is_drift {
                    self.inner.drifted.notify_one();
                }
                context.failed_attempt(&failure)
            }
            Answer::Unreached(reason) => {
                let (delay, is_news) = self.unreached(&function.app, &reason);
                context.unreached(delay, &reason, is_news)
            }
        };
        self.settle(&context, applied).await
    }

    async fn call_function(&self, begun: &Begun, function: &Function, answered: &mut Option<Instant>) -> Answer {
        let ticket = Ticket::new(&begun.run.id, &begun.thread);
        let step = if begun.thread == DISCOVERY { "step" } else { &begun.thread };
        let settings = self.settings();
        let call = Call {
            client: &self.inner.client,
            keys: &settings.keys,
            timeout: settings.call_timeout,
            function,
            run: &begun.run,
            step,
            generation: begun.generation,
            ticket: &ticket,
        };
        let body = body(begun, function, &ticket);
        if let Some(at) = *answered {
            self.note_overhead(at.elapsed());
        }
        let reply = call.send(body).await;
        *answered = Some(Instant::now());
        classify(reply, &settings.keys, chrono::Utc::now())
    }

    /// Stores what an answer led to and says what comes next.
    async fn settle(&self, context: &Context<'_>, applied: Applied<'_>) -> After {
        let Applied { advance, memos, waits, sets_timer } = applied;
        let begun = context.begun;
        let (advanced, was_unknown) = match self.store(advance).await {
            Ok(stored) => stored,
            Err(error) => return After::Retry(error),
        };
        if sets_timer {
            self.inner.timer_set.notify_one();
        }
        let guard = Guard::Thread { thread: &begun.thread, generation: begun.generation, entry: Some(context.entry) };
        match advanced {
            Advanced::On { now_ms, next, version, force_plan, completed } => {
                for (step, event, wait) in waits {
                    self.replay_for_wait(&begun.run.id, &step, &event, &wait).await;
                }
                let Some((thread, generation)) = next else { return After::Done };
                self.go_on(begun, context.entry, memos, thread, generation, (now_ms, version, force_plan, completed))
                    .await
            }
            // An earlier try may have been stored although its answer was lost: then the entry still carries the run.
            Advanced::Stale if was_unknown => self.read_anew(&begun.run.id, &begun.thread, context.entry).await,
            Advanced::Stale | Advanced::Ended => After::Done,
            Advanced::Limit(which) => {
                let limits = self.settings().limits;
                let failure = if which == "steps" {
                    let message = format!("The function run exceeded the step limit of {} steps.", limits.steps);
                    Failure::limit("InngestErrFunctionOverflowed", message)
                } else {
                    let message = format!("The function run's state exceeded {} bytes.", limits.state_bytes);
                    Failure::limit("InngestErrStateOverflowed", message)
                };
                self.end_with(begun, guard, failure).await
            }
            Advanced::Conflict(_) => {
                let message = "Signal conflict; signal wait already exists for another run";
                self.end_with(begun, guard, Failure::limit("signal_conflict", message)).await
            }
            Advanced::Stuck => {
                let message = "the function answered nothing to do, again and again, although nothing is under way";
                self.end_with(begun, guard, Failure::limit("no_progress", message)).await
            }
        }
    }

    async fn end_with(&self, begun: &Begun, guard: Guard<'_>, failure: Failure) -> After {
        let mut advance = Advance::new(&begun.run.id, guard, self.settings().limits, self.keep_ms(true));
        Ending::Failed { error: failure.error, text: failure.text }.add_to(&mut advance, &begun.run);
        match self.store(advance).await {
            Ok(_) => After::Done,
            Err(error) => After::Retry(error),
        }
    }

    /// The state for the next call: the copy at hand where it is whole, else read anew.
    async fn go_on(
        &self,
        begun: &Begun,
        entry: &str,
        memos: Vec<(String, String)>,
        thread: String,
        generation: u64,
        (now_ms, version, force_plan, completed): (u64, i64, bool, usize),
    ) -> After {
        let mut next = begun.clone();
        for (step, value) in memos {
            if next.steps.insert(step.clone(), value).is_none() {
                next.stack.push(step);
            }
        }
        if next.stack.len() == completed {
            next.thread = thread;
            next.generation = generation;
            next.attempt = 0;
            next.now_ms = now_ms;
            next.run.version = version;
            next.run.force_plan = force_plan;
            return After::GoOn(next);
        }
        self.read_anew(&begun.run.id, &thread, entry).await
    }

    /// Takes up a thread that this worker holds: no call of it is under way.
    async fn read_anew(&self, run: &str, thread: &str, entry: &str) -> After {
        match self.runs().begin(run, thread, entry, 0).await {
            Ok(Taken::Begun(begun)) => After::GoOn(begun),
            Ok(Taken::Gone | Taken::Wait(_)) => After::Done,
            Err(error) => After::Retry(error),
        }
    }

    /// Runs an advance, again and again while Redis is away. True beside the result when an earlier try may have been
    /// stored without our knowing.
    async fn store(&self, advance: Advance<'_>) -> Result<(Advanced, bool), RedisError> {
        let advance = advance.ready();
        let began = Instant::now();
        let mut was_unknown = false;
        let mut pause = Duration::from_millis(50);
        loop {
            match self.runs().try_advance(&advance).await {
                Ok(advanced) => return Ok((advanced, was_unknown)),
                Err(error) if error.is_unreachable() && began.elapsed() < STORE_FOR => {
                    was_unknown |= error.outcome_unknown();
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Its app registered and removed the function, and the record of it is gone.
    async fn without_function(&self, begun: &Begun, entry: &str) -> After {
        let guard = Guard::Thread { thread: &begun.thread, generation: begun.generation, entry: Some(entry) };
        let removed_long_ago = begun.now_ms.saturating_sub(begun.run.queued_ms) > 86_400_000;
        if removed_long_ago {
            let message = format!("function `{}` is not registered any more", begun.run.function);
            return self.end_with(begun, guard, Failure::limit("function_removed", message)).await;
        }
        let mut advance = Advance::new(&begun.run.id, guard, self.settings().limits, self.keep_ms(false));
        advance.again(5_000, String::new());
        self.inner.timer_set.notify_one();
        match self.store(advance).await {
            Ok(_) => After::Done,
            Err(error) => After::Retry(error),
        }
    }

    fn reached(&self, app: &str) {
        if let Ok(mut away) = self.inner.away.lock()
            && away.remove(app).is_some()
        {
            tracing::info!(app, "the app answers again");
        }
    }

    /// Remembers that an app is away: when to try again, and whether that was not known.
    fn unreached(&self, app: &str, reason: &str) -> (Duration, bool) {
        let Ok(mut away) = self.inner.away.lock() else { return (AWAY_DELAYS.1, false) };
        let is_news = !away.contains_key(app);
        let since = *away.entry(app.to_owned()).or_insert_with(Instant::now);
        if is_news {
            tracing::warn!(app, reason, "the app can't be reached; its runs wait");
        }
        let delay = if since.elapsed() < AWAY_LONG { AWAY_DELAYS.0 } else { AWAY_DELAYS.1 };
        (delay, is_news)
    }

    /// Events that arrived between the call and the registration of a wait.
    async fn replay_for_wait(&self, run: &str, step: &str, event: &str, wait: &Wait) {
        match self.arrived_since(event, wait.since_ms).await {
            Ok(events) => {
                for (arrived_ms, event) in events {
                    if self.is_answer(wait, arrived_ms, &event) && self.resume_wait(run, step, &event).await.is_ok() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(run, event, error = %error, "events before the wait could not be looked at"),
        }
    }
}

fn retry(error: &RedisError) -> Outcome {
    Outcome::Retry { error: error.to_string(), not_before: None, status: None }
}
