//! What operators do to many runs and events at once: cancel, rerun, replay.
//!
//! Each may be broken off anywhere and done again: cancelling what has ended does nothing, the rerun of a run and the
//! replay of an event have ids that follow from what they repeat, so none of them is made twice.

use redis::streams::StreamRangeReply;
use serde_json::Value;

use super::super::expr::{Expr, Scope};
use super::super::ids;
use super::super::registry::{Function, patterns};
use super::super::store::{Filter, NewRun, Run, Scheduled, Status};
use super::bounds::Stages;
use super::event::Event;
use super::events::{Arrival, SINGLETON_TRIES};
use super::{Engine, Error};
use crate::streams::entry_id::EntryId;
use crate::streams::envelope::Envelope;
use crate::streams::lane::Lane;
use crate::streams::priority::Priority;
use crate::streams::records::Fact;
use crate::streams::redis::Error as RedisError;

/// Entries read at once.
const PAGE: usize = 512;

/// Runs of one function.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Slug.
    pub function: String,
    /// Any of these.
    pub status: Vec<Status>,
    /// Created at or after, ms.
    pub since_ms: Option<u64>,
    /// Created before, ms.
    pub until_ms: Option<u64>,
    /// A condition on their event.
    pub condition: Option<Expr>,
    /// At most so many, the oldest first.
    pub limit: usize,
}

/// Events to replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Slug.
    pub function: String,
    /// Appended at or after, ms.
    pub since_ms: u64,
    /// Appended before, ms.
    pub until_ms: u64,
    /// A condition on the event, beside that of the trigger.
    pub condition: Option<Expr>,
    /// At most so many, the oldest first.
    pub limit: usize,
    /// Names the replay: the same event is replayed once under one name.
    pub id: String,
}

/// What one repeated run or event became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeated {
    /// A new run.
    Started,
    /// It was repeated before, under this name.
    Before,
    /// The function is paused, or its singleton is taken: recorded as skipped.
    Skipped,
}

impl Engine {
    /// The runs that a selection means, the oldest first.
    pub async fn select(&self, selection: &Selection) -> Result<Vec<Run>, Error> {
        let mut filter = Filter {
            functions: vec![selection.function.clone()],
            status: selection.status.clone(),
            since_ms: selection.since_ms,
            until_ms: selection.until_ms,
            oldest_first: true,
            limit: PAGE,
            ..Filter::default()
        };
        let mut found = Vec::new();
        loop {
            let page = self.runs().list(&filter).await?;
            let Some(last) = page.runs.last() else { return Ok(found) };
            filter.after = Some((last.place_ms(filter.order), last.id.clone()));
            for run in page.runs {
                if selection.condition.as_ref().is_none_or(|condition| holds(condition, &run)) {
                    found.push(run);
                }
                if found.len() == selection.limit {
                    return Ok(found);
                }
            }
            if !page.has_more {
                return Ok(found);
            }
        }
    }

    /// Runs the function of a run once more, for the same events. Another `name` is another rerun.
    pub async fn rerun_once(&self, old: &Run, name: &str) -> Result<(String, Repeated), Error> {
        let new = self.repetition(old, name)?;
        let scheduled = self.offer(&new).await?;
        Ok((new.id, scheduled))
    }

    fn repetition(&self, old: &Run, name: &str) -> Result<NewRun, Error> {
        let snapshot = self.registry().current();
        let function = snapshot
            .function(&old.function)
            .filter(|function| snapshot.is_served(&function.slug))
            .ok_or_else(|| Error::NoFunction(old.function.clone()))?;
        let priority = old.lane.parse::<Lane>().map_or_else(|_| Priority::default(), |lane| lane.priority);
        let events: Vec<String> = old.event_list().iter().map(|event| event.get().to_owned()).collect();
        let first: Value = events.first().and_then(|event| serde_json::from_str(event).ok()).unwrap_or_default();
        let event = Event { public_id: old.id.clone(), json: String::new(), value: first };
        let arrival = Arrival { event: &event, entry: EntryId { ms: old.queued_ms, seq: 0 }, priority, span: None };
        let new = self
            .new_run(function, &arrival, "rerun", None, Stages::Direct)
            .map_err(|_| Error::NoFunction(old.function.clone()))?;
        Ok(NewRun {
            id: ids::run_id(function.id, &old.id, &format!("rerun {name}")),
            events,
            event_ids: old.event_ids.clone(),
            // Events that would have cancelled the first one are over.
            cancels: Vec::new(),
            at: None,
            ..new
        })
    }

    /// Events of the logs that a replay means, the oldest first: each with the run that it would become.
    pub async fn replayed(&self, replay: &Replay) -> Result<Vec<NewRun>, Error> {
        let snapshot = self.registry().current();
        let function = snapshot
            .function(&replay.function)
            .filter(|function| snapshot.is_served(&function.slug))
            .ok_or_else(|| Error::NoFunction(replay.function.clone()))?
            .clone();
        let mut found = Vec::new();
        for lane in self.runs().bus().lanes().await? {
            if is_named(&function, lane.family.as_str()) {
                self.collect(replay, &function, &lane, &mut found).await?;
            }
        }
        found.sort_by_key(|(entry, _)| *entry);
        found.truncate(replay.limit);
        Ok(found.into_iter().map(|(_, run)| run).collect())
    }

    async fn collect(
        &self,
        replay: &Replay,
        function: &Function,
        lane: &Lane,
        into: &mut Vec<(EntryId, NewRun)>,
    ) -> Result<(), Error> {
        let bus = self.runs().bus();
        let now_ms = bus.now_ms().await?;
        let (mut from, mut taken) = (replay.since_ms.to_string(), 0);
        let until = replay.until_ms.saturating_sub(1);
        while taken < replay.limit {
            let mut cmd = redis::cmd("XRANGE");
            cmd.arg(bus.keys.lane(lane)).arg(&from).arg(until).arg("COUNT").arg(PAGE);
            let rows: StreamRangeReply = bus.redis.query(&cmd).await?;
            let Some(last) = rows.ids.last() else { break };
            from = format!("({}", last.id);
            for row in rows.ids {
                let (Ok(entry), Some(bytes)) = (row.id.parse::<EntryId>(), row.get::<Vec<u8>>("e")) else { continue };
                let Ok(envelope) = Envelope::decode(&bytes) else { continue };
                let event = Event::of(&envelope, entry, lane.family.as_str());
                if !self.is_wanted(replay, function, &event).await {
                    continue;
                }
                let at = EntryId { ms: now_ms, seq: 0 };
                let arrival = Arrival { event: &event, entry: at, priority: lane.priority, span: None };
                match self.new_run(function, &arrival, "replay", None, Stages::Direct) {
                    Ok(run) => {
                        let id = ids::run_id(function.id, &event.public_id, &format!("replay {}", replay.id));
                        into.push((entry, NewRun { id, at: None, ..run }));
                        taken += 1;
                    }
                    Err(reason) => self.journal_refused(function, &event, &reason).await,
                }
                if taken == replay.limit {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn is_wanted(&self, replay: &Replay, function: &Function, event: &Event) -> bool {
        let name = event.value["name"].as_str().unwrap_or_default();
        let holds = |condition: &Expr| condition.matches(&scope(&event.value)).unwrap_or(false);
        replay.condition.as_ref().is_none_or(holds) && self.is_triggered(function, name, &event.value).await
    }

    /// Creates a run that repeats something.
    pub async fn offer(&self, run: &NewRun) -> Result<Repeated, Error> {
        let mut run = run.clone();
        for tries in 0.. {
            // Others were quicker each time: it is skipped, as in the singleton's other mode.
            if let Some(single) = run.bounds.single.as_mut().filter(|_| tries == SINGLETON_TRIES) {
                single.cancels = false;
            }
            match self.runs().start(std::slice::from_ref(&run)).await?.pop() {
                Some(Scheduled::Busy(holder)) => self.cancel_for_singleton(&holder).await?,
                Some(Scheduled::New) => return Ok(Repeated::Started),
                Some(Scheduled::Skipped { .. }) => return Ok(Repeated::Skipped),
                _ => break,
            }
        }
        Ok(Repeated::Before)
    }

    /// Journals what an operator did to many at once.
    pub async fn journal_bulk(
        &self,
        action: &'static str,
        function: &str,
        actor: &str,
        n: usize,
    ) -> Result<(), RedisError> {
        let fact = Fact::new("functions", action).with("function", function).with("actor", actor).with("count", n);
        self.runs().bus().journal([fact]).await.map(drop)
    }
}

fn is_named(function: &Function, event: &str) -> bool {
    let patterns: Vec<_> = patterns(event).collect();
    function.triggers.iter().filter_map(|trigger| trigger.event.as_ref()).any(|of| patterns.iter().any(|one| one == of))
}

fn scope(event: &Value) -> Scope<'_> {
    Scope { event: Some(event), async_event: None, now_ms: chrono::Utc::now().timestamp_millis() }
}

fn holds(condition: &Expr, run: &Run) -> bool {
    let events: Vec<Value> = serde_json::from_str(&run.events).unwrap_or_default();
    events.first().is_some_and(|event| condition.matches(&scope(event)).unwrap_or(false))
}
