//! Runs as Redis holds them: creating, taking up, advancing, ending, and reading them back.
//!
//! | key (after the tag) | type | holds |
//! |---|---|---|
//! | `:fn:run:<run>` | hash | function, events, status, times, output |
//! | `:fn:steps:<run>` | hash | step hash → memoized value |
//! | `:fn:stack:<run>` | list | step hashes in the order of completion |
//! | `:fn:live:<run>` | hash | what keeps the run going; gone at its end |
//! | `:fn:log:<run>` | stream | history |
//! | `:fn:timers` | zset | `s\|<run>\|<step>` sleep or timeout, `t\|<run>\|<thread>` retry, `S`, `F` start and finish timeout, `D`, `B`, `T`, `G` flow control (`fire.lua`), `C\|<schedule>` tick → when, ms |
//! | `:fn:crons` | hash | `<hash>\|<function>` → next tick, ms |
//! | `:fn:slots:…`, `:fn:line:…` and their like | | flow control: see `scripts/limits.lua`, `scripts/schedule.lua` |
//! | `:fn:wait:…`, `:fn:paths:…`, `:fn:waitn` | | who waits for events: see [`waits`] |
//! | `:fn:signals` | hash | signal → `<run>\|<step>` |
//! | `:fn:runs`, `:fn:runs:st:<status>`, `:fn:runs:fn:<slug>` | zset | runs by creation, ms |
//!
//! # Invariants
//! 1. Every advance of a run is one script: value, follow-up work, timers, history and journal agree.
//! 2. A step's first value stands; a run ends once.
//! 3. A run that has not ended has a live work item, a timer or a wait; [`Runs::reconcile`] finds one that has not.

mod advance;
mod bulk;
mod flow;
pub mod history;
mod list;
mod new_run;
mod of_events;
mod outlook;
mod read;
pub mod scripts;
pub mod waits;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::streams::journal;
use crate::streams::lane::Lane;
use crate::streams::priority::Priority;
use crate::streams::records::{Fact, Record};
use crate::streams::redis::{Error, ScriptCall};
use crate::streams::trace::TraceContext;

pub use advance::{Advance, Advanced, End, Guard};
pub use flow::{Fired, Group, Mark};
pub use list::{Filter, Moment, Page};
pub use new_run::{Bounds, IntoBatch, IntoDebounce, NewRun, Rate, Scheduled, Single, SlotLimit, StartThrottle};
pub use outlook::{Pending, Signs};
pub use read::{Ending, Run, Status};

/// How long skipped runs are kept unless said otherwise, ms.
const WEEK_MS: u64 = 7 * 86_400_000;

/// Families that hold work items instead of events: `inngest/fn:<slug>`.
pub const WORK: &str = "inngest/fn:";

/// The family of a function's work items.
#[must_use]
pub fn work_family(slug: &str, id: uuid::Uuid) -> Family {
    let readable = format!("{WORK}{slug}").parse();
    // A slug outside the alphabet of names is stood in for by the id, which is within it.
    readable.or_else(|_| format!("{WORK}{id}").parse()).unwrap_or_else(|_| fallback_family())
}

fn fallback_family() -> Family {
    // The literal is a valid name; a test holds it to that.
    #[allow(clippy::expect_used)]
    "inngest/fn:unnamed".parse().expect("a valid name")
}

/// How long ended runs stay.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Completed, cancelled and skipped runs, ms.
    pub done_ms: u64,
    /// Failed runs, ms.
    pub failed_ms: u64,
}

/// Limits of one run.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Steps.
    pub steps: u32,
    /// Bytes of memoized values.
    pub state_bytes: u64,
}

/// What a run waits for, as the index of waits holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wait {
    /// Condition on the run's event and on the arriving one.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// The part of the run's event that the condition looks at.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub event: serde_json::Value,
    /// Only events that arrived at or after this count, ms.
    pub since_ms: u64,
    /// Only events that arrived before this count, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// A field of the arriving event and the value that it must have for the condition to hold.
    #[serde(skip)]
    pub sought: Option<(Vec<String>, serde_json::Value)>,
}

/// A thread taken up: everything that the call of its function needs.
#[derive(Debug, Clone)]
pub struct Begun {
    /// Redis's clock, ms.
    pub now_ms: u64,
    /// `d` for a discovery, else the step hash of a targeted call.
    pub thread: String,
    /// From 0.
    pub attempt: u32,
    /// Rises with every begin of this thread.
    pub generation: u64,
    /// Step hashes in the order of completion.
    pub stack: Vec<String>,
    /// Step hash → memoized value, JSON text.
    pub steps: HashMap<String, String>,
    /// The run.
    pub run: Run,
}

/// What taking up a thread found.
// One at a time, and gone at once: a box would only cost.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum Taken {
    /// It is the caller's.
    Begun(Begun),
    /// The entry has nothing to bring on any more.
    Gone,
    /// A call of a process that ended may still be under way in the app; again in so many ms.
    Wait(u64),
}

impl Taken {
    /// The thread, where it is the caller's.
    #[must_use]
    pub fn begun(self) -> Option<Begun> {
        match self {
            Self::Begun(begun) => Some(begun),
            Self::Gone | Self::Wait(_) => None,
        }
    }
}

/// What looking after a run found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconciled {
    /// It has ended.
    Ended,
    /// Something will bring it on.
    Going,
    /// Nothing would have; its work was queued again.
    Repaired,
    /// Repaired too often.
    Lost,
}

/// Runs in Redis. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runs {
    bus: Bus,
    /// How long a skipped run is kept, ms.
    keep_skipped_ms: u64,
    /// A key whose number of ms is added to Redis's clock: how tests move time.
    clock: Option<String>,
}

impl Runs {
    /// Runs over `bus`.
    #[must_use]
    pub const fn new(bus: Bus) -> Self {
        Self { bus, keep_skipped_ms: WEEK_MS, clock: None }
    }

    /// The same, with skipped runs kept so long, ms.
    #[must_use]
    pub const fn keeping_skipped(mut self, ms: u64) -> Self {
        self.keep_skipped_ms = ms;
        self
    }

    /// The same, with the number of ms in this key added to Redis's clock: for tests, which move time so.
    #[must_use]
    pub fn with_clock(mut self, key: impl Into<String>) -> Self {
        self.clock = Some(key.into());
        self
    }

    /// Redis's clock, ms.
    pub async fn now_ms(&self) -> Result<u64, Error> {
        let now = self.bus.now_ms().await?;
        let Some(key) = &self.clock else { return Ok(now) };
        let shift: Option<i64> = self.bus.redis.query(redis::cmd("GET").arg(key)).await?;
        Ok(now.saturating_add_signed(shift.unwrap_or(0)))
    }

    /// The bus below.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    fn key(&self, name: &str) -> String {
        format!("{}:fn:{name}", self.bus.keys.tag())
    }

    fn call<'a>(&self, script: &'a crate::streams::scripts::Script, records: &[Record]) -> ScriptCall<'a> {
        let blob = if records.is_empty() { Vec::new() } else { journal::encode(records) };
        let call = ScriptCall::new(script).key(self.bus.keys.journal());
        let call = match &self.clock {
            Some(key) => call.key(key.as_str()),
            None => call,
        };
        call.arg(self.bus.keys.tag()).arg(blob)
    }

    /// Hands one event to functions: what became of each run.
    pub async fn start(&self, runs: &[NewRun]) -> Result<Vec<Scheduled>, Error> {
        let mut records = Vec::with_capacity(runs.len() * 2);
        for run in runs {
            for action in ["function.run.queued", "function.event.held"] {
                records.push(Record::Fact(scheduling_fact(action, run)));
            }
        }
        let mut call = self.call(&scripts::START, &records);
        for run in runs {
            call.push_arg(self.pack(run));
        }
        let results: Vec<String> = self.bus.redis.run(call).await?;
        Ok(results.iter().map(|line| Scheduled::read(line)).collect())
    }

    /// A run to create as the scripts read it.
    fn pack(&self, run: &NewRun) -> Vec<u8> {
        #[derive(Serialize)]
        struct Packed<'a> {
            #[serde(flatten)]
            run: &'a NewRun,
            log: String,
            keep: u64,
            tr: String,
            tp: String,
        }
        let packed = Packed {
            run,
            log: history::scheduled(run.cause),
            keep: self.keep_skipped_ms,
            tr: run.span().to_string(),
            tp: run.caused_by.map(|parent| format!("{:016x}", parent.span_id)).unwrap_or_default(),
        };
        // Texts and numbers to memory: that can't fail.
        rmp_serde::to_vec_named(&packed).unwrap_or_default()
    }

    /// The span of a run.
    pub async fn span_of(&self, run: &str) -> Result<TraceContext, Error> {
        let span: Option<String> =
            self.bus.redis.query(redis::cmd("HGET").arg(self.key(&format!("run:{run}"))).arg("tr")).await?;
        Ok(span.and_then(|text| text.parse().ok()).unwrap_or_else(|| TraceContext::root(run)))
    }

    /// Takes up `thread` of a run under a lane entry. `orphan_ms` is how long a call of it that a process began and did
    /// not end may still hold its slots; 0 when the caller knows that there is none.
    pub async fn begin(&self, run: &str, thread: &str, entry: &str, orphan_ms: u64) -> Result<Taken, Error> {
        let fact = Fact::new("functions", "function.run.started").with("runId", run);
        let call = self
            .call(&scripts::BEGIN, &[Record::Fact(fact)])
            .arg(run)
            .arg(thread)
            .arg(entry)
            .arg(history::started())
            .arg("1")
            .number(orphan_ms);
        let value: redis::Value = self.bus.redis.run(call).await?;
        read::begun(run, value)
    }

    /// Brings a run on.
    pub async fn advance(&self, advance: Advance<'_>) -> Result<Advanced, Error> {
        self.try_advance(&advance.ready()).await
    }

    /// One try of an advance that is [`Advance::ready`]: for a caller that offers it again while Redis is away.
    pub async fn try_advance(&self, advance: &Advance<'_>) -> Result<Advanced, Error> {
        let call = advance.call(self.call(&scripts::ADVANCE, advance.records()));
        let value: redis::Value = self.bus.redis.run(call).await?;
        advance::advanced(value)
    }

    /// Looks after a run that has not ended. One younger than `settle_ms` may have its work item on the way.
    pub async fn reconcile(&self, run: &str, settle_ms: u64) -> Result<Reconciled, Error> {
        let fact = Fact::new("functions", "function.run.repaired").warn().with("runId", run);
        let call =
            self.call(&scripts::RECONCILE, &[Record::Fact(fact)]).arg(run).arg(history::repaired()).number(settle_ms);
        let answer: String = self.bus.redis.run(call).await?;
        Ok(match answer.as_str() {
            "ended" => Reconciled::Ended,
            "going" => Reconciled::Going,
            "repaired" => Reconciled::Repaired,
            _ => Reconciled::Lost,
        })
    }

    /// Members of the timers that are due, oldest first, and when the next one is, ms by Redis's clock.
    pub async fn due_timers(&self, limit: usize) -> Result<(Vec<String>, Option<u64>, u64), Error> {
        let now = self.now_ms().await?;
        let mut pipeline = redis::pipe();
        let timers = self.key("timers");
        pipeline.cmd("ZRANGEBYSCORE").arg(&timers).arg("-inf").arg(now).arg("LIMIT").arg(0).arg(limit);
        pipeline
            .cmd("ZRANGEBYSCORE")
            .arg(&timers)
            .arg(format!("({now}"))
            .arg("+inf")
            .arg("WITHSCORES")
            .arg("LIMIT")
            .arg(0)
            .arg(1);
        let mut values = self.bus.redis.pipeline(&pipeline).await?.into_iter();
        let mut list = || -> Vec<String> {
            values.next().and_then(|value| redis::from_redis_value(value).ok()).unwrap_or_default()
        };
        let due = list();
        let next = list().get(1).and_then(|score| score.parse::<f64>().ok());
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok((due, next.map(|score| score as u64), now))
    }

    /// Takes a timer out of the set whose reason is gone.
    pub async fn forget_timer(&self, member: &str) -> Result<(), Error> {
        self.bus.redis.query(redis::cmd("ZREM").arg(self.key("timers")).arg(member)).await
    }

    /// Who waits for a signal: run and step.
    pub async fn signal_waiter(&self, signal: &str) -> Result<Option<(String, String)>, Error> {
        let waiter: Option<String> =
            self.bus.redis.query(redis::cmd("HGET").arg(self.key("signals")).arg(signal)).await?;
        Ok(waiter.and_then(|text| text.split_once('|').map(|(run, step)| (run.to_owned(), step.to_owned()))))
    }

    /// What keeps a run going, as it is in Redis: for `run <id>` and for tests.
    pub async fn live(&self, run: &str) -> Result<HashMap<String, String>, Error> {
        self.bus.redis.query(redis::cmd("HGETALL").arg(self.key(&format!("live:{run}")))).await
    }

    /// Takes event names out of the routing that no run waits for any more, and old runs out of the indexes.
    pub async fn tidy(&self, keep: Keep) -> Result<(), Error> {
        self.forget_unwaited().await?;
        let before = self.bus.now_ms().await?.saturating_sub(keep.failed_ms.max(keep.done_ms));
        let old: Vec<String> = self
            .bus
            .redis
            .query(
                redis::cmd("ZRANGEBYSCORE").arg(self.key("runs")).arg("-inf").arg(before).arg("LIMIT").arg(0).arg(512),
            )
            .await?;
        let mut gone = Vec::new();
        for run in old {
            // A run that still has its hash is either going on or kept.
            let exists: bool = self.bus.redis.query(redis::cmd("EXISTS").arg(self.key(&format!("run:{run}")))).await?;
            if !exists {
                gone.push(run);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        let slugs: Vec<String> = self.bus.redis.query(redis::cmd("HKEYS").arg(self.key("functions"))).await?;
        let by_function = slugs.iter().map(|slug| format!("runs:fn:{slug}"));
        let by_status = Status::ALL.iter().map(|status| format!("runs:st:{status}"));
        let mut pipeline = redis::pipe();
        for index in by_function.chain(by_status).chain(std::iter::once("runs".to_owned())) {
            pipeline.cmd("ZREM").arg(self.key(&index)).arg(&gone);
        }
        self.bus.redis.pipeline(&pipeline).await?;
        Ok(())
    }
}

/// What is journaled of a run to create.
pub(crate) fn scheduling_fact(action: &'static str, run: &NewRun) -> Fact {
    Fact::new("functions", action)
        .event(run.event_ids.first().cloned().unwrap_or_default())
        .with("runId", run.id.clone())
        .with("function", run.function.clone())
        .with("cause", run.cause)
}

/// The lane of a function's work items, at the priority of what started the run.
#[must_use]
pub fn work_lane(slug: &str, id: uuid::Uuid, priority: Priority) -> Lane {
    Lane::new(work_family(slug, id), priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slug_has_a_family() {
        let id = uuid::Uuid::nil();
        assert_eq!(work_family("app-check/system-health", id).as_str(), "inngest/fn:app-check/system-health");
        assert_eq!(work_family("app über", id).as_str(), format!("inngest/fn:{id}"));
        assert_eq!(fallback_family().as_str(), "inngest/fn:unnamed");
    }
}
