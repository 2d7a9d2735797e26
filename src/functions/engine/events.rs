//! An event: the runs it starts, the waits it answers, the runs it cancels (protocol sections A11 to A13).
//!
//! Everything here may happen twice for one event, because its dispatch may: a run's id follows from its event, a wait is
//! answered once, an ended run stays ended.

use futures_util::future::BoxFuture;
use redis::streams::StreamRangeReply;
use serde_json::{Value, json};

use super::super::expr::Scope;
use super::super::ids;
use super::super::registry::Function;
use super::super::store::{Advance, Advanced, Guard, NewRun, Scheduled, Wait, history, work_lane};
use super::bounds::Stages;
use super::event::{Event, names};
use super::{Engine, Error};
use crate::diagnose::chain;
use crate::drainer::handlers::{Dispatch, Handler, Outcome};
use crate::streams::entry_id::EntryId;
use crate::streams::envelope::Envelope;
use crate::streams::family::Family;
use crate::streams::lane::Lane;
use crate::streams::priority::Priority;
use crate::streams::records::Fact;
use crate::streams::redis::Error as RedisError;
use crate::streams::trace::TraceContext;

/// Events looked at when a wait is registered or a run is created late.
const REPLAY_MAX: usize = 1_000;

/// How often a run tries to take a singleton from the run that holds it.
pub(super) const SINGLETON_TRIES: usize = 5;

/// Hands events to the engine.
#[derive(Debug, Clone)]
pub struct EventHandler {
    engine: Engine,
    /// The name that functions know the event by.
    target: Family,
}

impl EventHandler {
    /// A handler for events that functions know as `target`.
    #[must_use]
    pub const fn new(engine: Engine, target: Family) -> Self {
        Self { engine, target }
    }
}

impl Handler for EventHandler {
    fn kind(&self) -> &'static str {
        "inngest"
    }

    fn target(&self) -> &str {
        self.target.as_str()
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.engine.take_event(&dispatch, self.target.as_str()).await {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Retry { error: chain(&error), not_before: None, status: None },
            }
        })
    }
}

/// Ms and thousandths of an entry: events of one millisecond stay in order.
#[allow(clippy::cast_precision_loss)]
fn place(entry: EntryId) -> f64 {
    entry.ms as f64 + entry.seq.min(999) as f64 / 1000.0
}

/// Where an event is and what it is.
pub(super) struct Arrival<'a> {
    pub event: &'a Event,
    pub entry: EntryId,
    pub priority: Priority,
    /// Where it is dispatched; `None` for what no dispatch starts.
    pub span: Option<TraceContext>,
}

impl Engine {
    /// Does everything that one event asks for.
    async fn take_event(&self, dispatch: &Dispatch, name: &str) -> Result<(), Error> {
        let (envelope, entry) = (&*dispatch.envelope, dispatch.entry_id);
        let event = Event::of(envelope, entry, name);
        let arrival = Arrival { event: &event, entry, priority: envelope.priority, span: Some(dispatch.trace()) };
        match name {
            names::INVOKED => self.start_invoked(&arrival).await?,
            names::FINISHED => self.resume_invoke(&event).await?,
            _ => {}
        }
        self.answer_waits(name, entry.ms, &event).await?;
        self.start_triggered(name, &arrival).await
    }

    /// Runs of every function with a trigger that matches.
    async fn start_triggered(&self, name: &str, arrival: &Arrival<'_>) -> Result<(), Error> {
        let snapshot = self.registry().current();
        let mut runs = Vec::new();
        for function in snapshot.triggered_by(name) {
            if self.is_triggered(&function, name, &arrival.event.value).await {
                match self.new_run(&function, arrival, "event", None, Stages::All) {
                    Ok(run) => runs.push(run),
                    Err(reason) => self.journal_refused(&function, arrival.event, &reason).await,
                }
            }
        }
        self.start_runs(runs, arrival).await
    }

    /// Whether one of the triggers that name the event holds for it.
    pub(super) async fn is_triggered(&self, function: &Function, name: &str, event: &Value) -> bool {
        let patterns: Vec<_> = super::super::registry::patterns(name).collect();
        for trigger in &function.triggers {
            let Some(pattern) = &trigger.event else { continue };
            if !patterns.iter().any(|known| known == pattern) {
                continue;
            }
            let Some(text) = &trigger.expression else { return true };
            let scope = Scope { event: Some(event), async_event: None, now_ms: chrono::Utc::now().timestamp_millis() };
            let matched = self
                .expression(text)
                .map_err(|error| error.to_string())
                .and_then(|expr| expr.matches(&scope).map_err(|error| error.to_string()));
            match matched {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    let fact = Fact::new("functions", "function.trigger.failed")
                        .warn()
                        .with("function", function.slug.clone())
                        .with("expression", text.clone())
                        .failed(error);
                    let _ = self.runs().bus().journal([fact]).await;
                }
            }
        }
        false
    }

    /// A run of `function` for an event; the error says why there is to be none.
    pub(super) fn new_run(
        &self,
        function: &Function,
        arrival: &Arrival<'_>,
        cause: &'static str,
        correlation: Option<String>,
        stages: Stages,
    ) -> Result<NewRun, String> {
        let event = arrival.event;
        let cancels = function
            .cancel
            .iter()
            .filter_map(|cancel| {
                // What can't be looked at can't hold: no wait.
                let (part, sought) = match &cancel.condition {
                    None => (Value::Null, None),
                    Some(text) => {
                        let expr = self.expression(text).ok()?;
                        (expr.event_part(&event.value), expr.sought(&event.value))
                    }
                };
                // Events of the log after the one that starts the run, however late that is.
                let since_ms = arrival.entry.ms + u64::from(event.value["name"] == cancel.event.as_str());
                let until_ms = cancel.timeout_ms.map(|ms| arrival.entry.ms.saturating_add(ms));
                let condition = cancel.condition.clone();
                Some((cancel.event.clone(), Wait { condition, event: part, since_ms, until_ms, sought }))
            })
            .collect();
        Ok(NewRun {
            id: ids::run_id(function.id, &event.public_id, ""),
            function: function.slug.clone(),
            function_id: function.id,
            app: function.app.clone(),
            lane: work_lane(&function.slug, function.id, arrival.priority),
            events: vec![event.json.clone()],
            event_ids: vec![event.public_id.clone()],
            correlation,
            cause,
            caused_by: arrival.span,
            at: Some(place(arrival.entry)),
            start_timeout_ms: function.start_timeout_ms,
            finish_timeout_ms: function.finish_timeout_ms,
            cancels,
            bounds: self.bounds(function, &event.value, stages)?,
        })
    }

    /// Journals why a function gets no run of an event.
    pub(super) async fn journal_refused(&self, function: &Function, event: &Event, reason: &str) {
        let fact = Fact::new("functions", "function.event.refused")
            .event(event.public_id.clone())
            .with("function", function.slug.clone())
            .failed(reason);
        let _ = self.runs().bus().journal([fact]).await;
    }

    async fn start_runs(&self, mut runs: Vec<NewRun>, arrival: &Arrival<'_>) -> Result<(), Error> {
        for _ in 0..SINGLETON_TRIES {
            if runs.is_empty() {
                return Ok(());
            }
            let mut again = Vec::new();
            for (run, scheduled) in runs.iter().zip(self.runs().start(&runs).await?) {
                match scheduled {
                    Scheduled::New => self.after_start(run, arrival).await?,
                    Scheduled::Busy(holder) => {
                        self.cancel_for_singleton(&holder).await?;
                        again.push(run.clone());
                    }
                    other => {
                        if matches!(other, Scheduled::Batched | Scheduled::Debounced { .. }) {
                            self.inner.timer_set.notify_one();
                        }
                        self.answer_invokes(&other, run.correlation.as_deref()).await?;
                    }
                }
            }
            runs = again;
        }
        // Others were quicker each time: this one is skipped, as in the other mode.
        for run in &mut runs {
            if let Some(single) = &mut run.bounds.single {
                single.cancels = false;
            }
        }
        for (run, scheduled) in runs.iter().zip(self.runs().start(&runs).await?) {
            self.answer_invokes(&scheduled, run.correlation.as_deref()).await?;
        }
        Ok(())
    }

    async fn after_start(&self, run: &NewRun, arrival: &Arrival<'_>) -> Result<(), Error> {
        if run.start_timeout_ms.is_some() || run.bounds.throttle.is_some() {
            self.inner.timer_set.notify_one();
        }
        // A cancelling event may have been dispatched before the event that starts the run.
        for (event, wait) in &run.cancels {
            for (arrived_ms, candidate) in self.arrived_since(event, arrival.entry.ms).await? {
                if self.is_answer(wait, arrived_ms, &candidate) {
                    self.cancel_by(&run.id, event).await?;
                }
            }
        }
        Ok(())
    }

    /// Ends the run that holds a singleton which another run takes over.
    pub(super) async fn cancel_for_singleton(&self, holder: &str) -> Result<(), Error> {
        match self.cancel(holder, "singleton: a newer run takes its place").await {
            Ok(_) | Err(Error::Ended | Error::NoRun(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells those who invoked a function that there will be no run for them.
    pub(super) async fn answer_invokes(&self, scheduled: &Scheduled, of: Option<&str>) -> Result<(), Error> {
        let skipped = |why: &str| format!("invoked function was skipped: {why}");
        let (correlations, message) = match scheduled {
            Scheduled::Skipped { why, .. } => (of, skipped(why)),
            // Its first dispatch may have ended before it could be told.
            Scheduled::Known { skipped: Some(why) } => (of, skipped(why)),
            Scheduled::Limited => (of, "invoked function is rate limited".to_owned()),
            Scheduled::Debounced { lost } => (lost.as_deref(), skipped("debounce")),
            Scheduled::New | Scheduled::Known { .. } | Scheduled::Batched | Scheduled::Busy(_) => return Ok(()),
        };
        for correlation in correlations.unwrap_or_default().split(',').filter(|one| !one.is_empty()) {
            let error = json!({"name": "Error", "message": message});
            self.resolve_invoke(correlation, &json!({ "error": error })).await?;
        }
        Ok(())
    }

    /// The function that an invoke asks for.
    async fn start_invoked(&self, arrival: &Arrival<'_>) -> Result<(), Error> {
        let meta = &arrival.event.value["data"]["_inngest"];
        let target = meta["fn_id"].as_str().unwrap_or_default();
        let correlation = meta["correlation_id"].as_str().map(str::to_owned);
        // A function that somebody asks for by hand runs, whatever came before it.
        let stages = if correlation.is_some() { Stages::All } else { Stages::Direct };
        let snapshot = self.registry().current();
        match snapshot.function(target).filter(|function| snapshot.is_served(&function.slug)) {
            Some(function) => match self.new_run(function, arrival, "invoke", correlation.clone(), stages) {
                Ok(run) => self.start_runs(vec![run], arrival).await,
                Err(reason) => {
                    self.journal_refused(function, arrival.event, &reason).await;
                    let Some(correlation) = correlation else { return Ok(()) };
                    let error =
                        json!({"name": "Error", "message": format!("invoked function was not scheduled: {reason}")});
                    self.resolve_invoke(&correlation, &json!({ "error": error })).await
                }
            },
            None => match correlation {
                Some(correlation) => {
                    let error =
                        json!({"name": "Error", "message": format!("could not find function with ID: {target}")});
                    self.resolve_invoke(&correlation, &json!({ "error": error })).await
                }
                None => Ok(()),
            },
        }
    }

    /// The parent of an invoked run that ended.
    async fn resume_invoke(&self, event: &Event) -> Result<(), Error> {
        let data = &event.value["data"];
        let Some(correlation) = data["correlation_id"].as_str() else { return Ok(()) };
        let memo = match data["_inngest"]["status"].as_str() {
            Some("Cancelled") => json!({"error": {"name": "Error", "message": "invoked function was cancelled"}}),
            _ if !data["error"].is_null() => json!({"error": data["error"]}),
            _ => json!({"data": data["result"]}),
        };
        self.resolve_invoke(correlation, &memo).await
    }

    async fn resolve_invoke(&self, correlation: &str, memo: &Value) -> Result<(), Error> {
        let Some((run, step)) = correlation.split_once('.') else { return Ok(()) };
        self.resolve(run, step, "invoke", memo.to_string()).await.map(drop)
    }

    /// Gives an open step its value. False when it was not open any more.
    pub(super) async fn resolve(&self, run: &str, step: &str, kind: &str, value: String) -> Result<bool, Error> {
        let guard = Guard::Step { step, kind };
        let mut advance = Advance::new(run, guard, self.settings().limits, self.keep_ms(false));
        let is_error = value.starts_with("{\"error\"");
        advance.memo(step, value, history::step_completed(step, "", kind, 0, None, is_error));
        advance.fact(
            Fact::new("functions", "function.step.completed")
                .with("runId", run)
                .with("step", step)
                .with("kind", kind)
                .with("op", kind),
        );
        Ok(matches!(self.runs().advance(advance).await?, Advanced::On { .. }))
    }

    /// Waits and cancellations that the event answers.
    async fn answer_waits(&self, name: &str, arrived_ms: u64, event: &Event) -> Result<(), Error> {
        for (run, step, wait) in self.runs().waits(name, &event.value).await? {
            if !self.is_answer(&wait, arrived_ms, event) {
                continue;
            }
            if step.starts_with("c:") {
                self.cancel_by(&run, name).await?;
            } else {
                self.resume_wait(&run, &step, event).await?;
            }
        }
        Ok(())
    }

    async fn cancel_by(&self, run: &str, event: &str) -> Result<(), Error> {
        match self.cancel(run, &format!("cancelled by event {event}")).await {
            Ok(_) | Err(Error::Ended | Error::NoRun(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn resume_wait(&self, run: &str, step: &str, event: &Event) -> Result<bool, Error> {
        self.resolve(run, step, "wait", event.json.clone()).await
    }

    /// Whether an event is what a wait waits for.
    pub(super) fn is_answer(&self, wait: &Wait, arrived_ms: u64, event: &Event) -> bool {
        if arrived_ms < wait.since_ms || wait.until_ms.is_some_and(|until| arrived_ms >= until) {
            return false;
        }
        let Some(text) = &wait.condition else { return true };
        let now_ms = chrono::Utc::now().timestamp_millis();
        let scope = Scope { event: Some(&wait.event), async_event: Some(&event.value), now_ms };
        self.expression(text).is_ok_and(|expr| expr.matches(&scope).unwrap_or(false))
    }

    /// Events of a name that arrived at or after `since_ms`, oldest first per lane.
    pub(super) async fn arrived_since(&self, name: &str, since_ms: u64) -> Result<Vec<(u64, Event)>, RedisError> {
        let Ok(family) = name.parse::<Family>() else { return Ok(Vec::new()) };
        let bus = self.runs().bus();
        let mut pipeline = redis::pipe();
        for priority in Priority::ALL {
            let key = bus.keys.lane(&Lane::new(family.clone(), priority));
            pipeline.cmd("XRANGE").arg(key).arg(since_ms).arg("+").arg("COUNT").arg(REPLAY_MAX);
        }
        let mut found = Vec::new();
        for value in bus.redis.pipeline(&pipeline).await? {
            let rows: StreamRangeReply = redis::from_redis_value(value).unwrap_or_default();
            for row in rows.ids {
                let (Ok(id), Some(bytes)) = (row.id.parse::<EntryId>(), row.get::<Vec<u8>>("e")) else { continue };
                if let Ok(envelope) = Envelope::decode(&bytes) {
                    found.push((id.ms, Event::of(&envelope, id, name)));
                }
            }
        }
        Ok(found)
    }

    /// Runs the function of an ended or running run once more, for the same event.
    pub async fn rerun(&self, run: &str) -> Result<String, Error> {
        let old = self.runs().run(run).await?.ok_or_else(|| Error::NoRun(run.to_owned()))?;
        Ok(self.rerun_once(&old, &ids::fresh()).await?.0)
    }

    /// Asks for a function as an invoke does, for nobody in particular. The event's id.
    pub async fn invoke(&self, target: &str, data: Value) -> Result<String, Error> {
        let snapshot = self.registry().current();
        let function = snapshot
            .function(target)
            .filter(|function| snapshot.is_served(&function.slug))
            .ok_or_else(|| Error::NoFunction(target.to_owned()))?;
        let mut data = match data {
            Value::Object(data) => data,
            _ => serde_json::Map::new(),
        };
        data.insert("_inngest".into(), json!({"fn_id": function.slug}));
        let family: Family = names::INVOKED.parse().map_err(|_| Error::NoFunction(target.to_owned()))?;
        let id = ids::fresh();
        let mut event = crate::streams::append::NewEvent::new(family, "functions", data.into());
        event.id = Some(id.clone());
        self.inner.appender.append(vec![event]).await?;
        Ok(id)
    }

    /// Wakes the run that waits for a signal: its id, or nothing when none does.
    pub async fn signal(&self, signal: &str, data: &Value) -> Result<Option<String>, Error> {
        let Some((run, step)) = self.runs().signal_waiter(signal).await? else { return Ok(None) };
        let memo = json!({"data": {"signal": signal, "data": data}});
        let woke = self.resolve(&run, &step, "signal", memo.to_string()).await?;
        Ok(woke.then_some(run))
    }
}
