//! Looking: where an event is, what happened to it and what holds it. Reads only.
//!
//! Every answer costs a bounded number of reads. Which route serves a family is not known here; the caller says.
//! How an id leads to a place: [`super::find`].

use std::time::Duration;

use redis::Value;
use serde::Serialize;

use super::bus::Bus;
use super::complete::DeadRecord;
use super::condition::Condition;
use super::control::PauseSource;
use super::entry_id::EntryId;
use super::envelope::Envelope;
use super::family::Family;
use super::find::{Place, SCAN_DEAD, SCAN_PER_LANE};
use super::lane::Lane;
use super::lease::{Failures, Redrive};
use super::priority::Priority;
use super::records::Entry;
use super::redis::Error;
use super::rows::{LaneState, Row, convert, is_handback, is_retry, member, score_ms};
use super::steering::{Slot, Steering, Steerings};

/// Entries of one lane that a condition is tried on.
pub const SCAN_PER_CONDITION: usize = 10_000;
/// Of them, so many in one answer of Redis.
const PAGE: usize = 256;

/// Where an accepted event can be; exactly one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Scheduled.
    Later,
    /// In its lane, undelivered or handed back.
    Waiting,
    /// Held by a session.
    Leased,
    /// Waiting for its next attempt.
    Retry,
    /// Acknowledged.
    Done,
    /// A dead letter.
    Dead,
    /// Acknowledged by an operator.
    Acked,
    /// Nowhere: trimmed, or never there.
    Missing,
}

/// The state of a pending entry, by who owns it.
pub(super) fn state_of_pending(owner: &str) -> State {
    if is_retry(owner) {
        State::Retry
    } else if is_handback(owner) {
        State::Waiting
    } else {
        State::Leased
    }
}

/// Everything known about one entry.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// The event, where it can be decoded.
    pub event: Option<Envelope>,
    /// The bytes as they are, base64, where they can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_base64: Option<String>,
    /// `<family>:p<0-3>`.
    pub lane: Option<String>,
    /// The entry in its lane.
    pub stream_id: Option<String>,
    /// The dead letter it is.
    pub dead_id: Option<String>,
    /// Where it is.
    pub state: State,
    /// When it was first appended, ms; for a scheduled event, when it will be.
    pub appended_ms: Option<u64>,
    /// How often it was granted.
    pub attempts: u32,
    /// Who holds it.
    pub lease: Option<Lease>,
    /// When it may be tried again, ms.
    pub next_retry_ms: Option<u64>,
    /// What went wrong so far.
    pub failures: Option<Failures>,
    /// It was sent round again.
    pub redrive: Option<Redrive>,
    /// Why it died.
    pub dead: Option<DeadRecord>,
    /// Its family's pause ends then, ms.
    pub paused_until_ms: Option<u64>,
    /// Redis's clock at the reading, ms.
    pub at_ms: u64,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The session.
    pub owner: String,
    /// Until when it is alive, ms; `None` when it has ended and the next drainer takes the entry over.
    pub expires_ms: Option<u64>,
    /// Since when it holds the entry, ms.
    pub since_ms: u64,
    /// Delivery count of this grant.
    pub fence: u32,
}

/// One line of a list.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The entry; `None` for a scheduled event.
    pub stream_id: Option<String>,
    /// The event, where it can be decoded.
    pub event_id: Option<String>,
    /// The family.
    #[serde(rename = "event")]
    pub family: Family,
    /// Its stored priority.
    pub priority: Priority,
    /// The priority it has by now, for its wait.
    pub effective_priority: Priority,
    /// Since its append, ms.
    pub age_ms: u64,
    /// Where it is.
    pub state: State,
    /// How often it was granted.
    pub attempts: u32,
    /// When it may be tried again, or is scheduled, ms.
    pub next_retry_at: Option<u64>,
    /// The whole event.
    #[serde(skip)]
    pub envelope: Option<Envelope>,
    #[serde(skip)]
    order: (Priority, u64, EntryId),
}

/// What to list.
#[derive(Debug, Clone)]
pub struct ListFilter {
    /// Only this event name.
    pub family: Option<Family>,
    /// Only this state: later, waiting, leased or retry.
    pub state: Option<State>,
    /// Only this stored priority.
    pub priority: Option<Priority>,
    /// Appended at least so long ago.
    pub older_than: Option<Duration>,
    /// For which this holds. Of each lane [`SCAN_PER_CONDITION`] entries are looked at, the first ones.
    pub condition: Option<Condition>,
    /// At most so many.
    pub limit: usize,
    /// P2 and P3 gain one level per this much waiting.
    pub aging: Option<Duration>,
}

impl ListFilter {
    /// Entries of one lane that are looked at, at most.
    fn scan(&self) -> usize {
        if self.condition.is_some() { SCAN_PER_CONDITION.max(self.limit) } else { self.limit }
    }

    fn admits(&self, line: &Listed) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.holds(line.envelope.as_ref()))
    }
}

/// What happened to one event.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// The journal was not read to its end.
    pub cut: bool,
    /// Batches that could not be decoded.
    pub undecodable: u64,
}

impl History {
    /// The last record that says what became of it, and the state that is: done, dead or acked. `None` while it is open.
    #[must_use]
    pub fn ending(&self) -> Option<(State, &Entry)> {
        let state = |entry: &Entry| match &*entry.fact.action {
            "queue.dispatch.completed" => Some(Some(State::Done)),
            "queue.dead" => Some(Some(State::Dead)),
            "queue.ack" => Some(Some(State::Acked)),
            "queue.fsck.repaired" if entry.fact.metadata.get("kind").is_some_and(|kind| kind == "lost") => {
                Some(Some(State::Missing))
            }
            "queue.enqueue" | "queue.promoted" | "queue.dead.redriven" | "queue.ack.undone" => Some(None),
            _ => None,
        };
        let (state, entry) = self.entries.iter().rev().find_map(|entry| Some((state(entry)?, entry)))?;
        Some((state?, entry))
    }
}

/// The one thing that holds an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", rename_all_fields = "camelCase", tag = "hold")]
pub enum Hold {
    /// Its family is paused.
    Paused {
        /// Until when, ms.
        until_ms: u64,
        /// Who; `None` when the record can't be read.
        source: Option<PauseSource>,
        /// Why.
        reason: Option<String>,
    },
    /// Its family has a pace, and what it allows now is used.
    Paced {
        /// `batch_family` or `trickle_family`.
        kind: String,
        /// The window, ms.
        every_ms: u64,
        /// Starts in it.
        max: u64,
        /// Until when it has this pace, ms.
        until_ms: u64,
        /// Why.
        reason: String,
    },
    /// Its target made the drainers run less of its family at once.
    Slowed {
        /// So many, of all drainers that do.
        limit: u64,
    },
    /// Its family's circuit breaker is not closed.
    Broken {
        /// `open`, `half_open` or `forced_open`.
        state: String,
        /// When one event is tried, ms; `None` while one is, or until an operator says otherwise.
        until_ms: Option<u64>,
        /// What failed last.
        error: String,
    },
    /// It waits for its next attempt.
    Retry {
        /// When that is, ms.
        due_ms: Option<u64>,
        /// The last error.
        error: Option<String>,
    },
    /// A live session runs it.
    Leased {
        /// Which.
        owner: String,
        /// Since when, ms.
        since_ms: u64,
    },
    /// Its session has ended; the next drainer takes it over.
    Orphaned {
        /// Which session.
        owner: String,
    },
    /// No route serves its family.
    Unrouted,
    /// No drainer is alive.
    NoDrainer,
    /// An ordered family waits for its earlier entry.
    OrderedBehind {
        /// That entry.
        stream_id: String,
    },
    /// Earlier entries of its lane come first.
    AheadInLane {
        /// How many, at most counted to 1,000.
        n: u64,
    },
    /// It is the next of its lane.
    Next,
    /// It is scheduled.
    Later {
        /// For when, ms.
        at_ms: u64,
    },
    /// It is a dead letter.
    Dead {
        /// Which.
        dead_id: String,
        /// Why.
        reason: String,
    },
    /// It is done.
    Done,
    /// An operator acknowledged it.
    Acked,
    /// Nothing is known of it.
    Missing,
}

/// What the caller knows of a family and streams don't.
#[derive(Debug, Clone, Copy, Default)]
pub struct Routing {
    /// Some handler serves it.
    pub is_routed: bool,
    /// One at a time.
    pub is_ordered: bool,
}

impl Bus {
    /// Everything known about what was found at `place`.
    pub async fn inspect(&self, place: &Place) -> Result<Inspection, Error> {
        match place {
            Place::Entry(lane, id) => self.inspect_entry(lane, *id).await,
            Place::Later(lane, event_id, at) => {
                let mut cmd = redis::cmd("HGET");
                cmd.arg(self.keys.later_data()).arg(format!("{lane}|{event_id}"));
                let bytes: Option<Vec<u8>> = self.redis.query(&cmd).await?;
                let state = if bytes.is_some() { State::Later } else { State::Missing };
                let mut inspection = self.blank(lane, &bytes.unwrap_or_default(), state).await?;
                inspection.appended_ms = Some(*at);
                Ok(inspection)
            }
            Place::Dead(id) => self.inspect_dead(*id).await,
        }
    }

    async fn blank(&self, lane: &Lane, envelope: &[u8], state: State) -> Result<Inspection, Error> {
        use base64::Engine as _;
        let event = Envelope::decode(envelope).ok();
        let raw_base64 = (event.is_none() && !envelope.is_empty())
            .then(|| base64::engine::general_purpose::STANDARD.encode(envelope));
        let at_ms = self.now_ms().await?;
        let paused_until_ms = self.pauses().await?.until(&lane.family, at_ms);
        Ok(Inspection {
            event,
            raw_base64,
            lane: Some(lane.to_string()),
            stream_id: None,
            dead_id: None,
            state,
            appended_ms: None,
            attempts: 0,
            lease: None,
            next_retry_ms: None,
            failures: None,
            redrive: None,
            dead: None,
            paused_until_ms,
            at_ms,
        })
    }

    async fn inspect_dead(&self, id: EntryId) -> Result<Inspection, Error> {
        let letter = self.dead_letter(id).await?;
        let state = if letter.is_some() { State::Dead } else { State::Missing };
        let at_ms = self.now_ms().await?;
        let lane = letter.as_ref().and_then(|letter| letter.lane());
        let paused_until_ms = match &lane {
            Some(lane) => self.pauses().await?.until(&lane.family, at_ms),
            None => None,
        };
        let record = letter.as_ref().and_then(|letter| letter.record.clone());
        Ok(Inspection {
            raw_base64: letter.as_ref().and_then(|letter| letter.raw_base64.clone()),
            event: letter.and_then(|letter| letter.event),
            lane: lane.map(|lane| lane.to_string()),
            stream_id: record.as_ref().map(|record| record.entry_id.clone()),
            dead_id: Some(id.to_string()),
            state,
            appended_ms: record.as_ref().map(|record| record.first_at),
            attempts: record.as_ref().map_or(0, |record| record.attempts),
            lease: None,
            next_retry_ms: None,
            failures: None,
            redrive: None,
            dead: record,
            paused_until_ms,
            at_ms,
        })
    }

    async fn inspect_entry(&self, lane: &Lane, id: EntryId) -> Result<Inspection, Error> {
        let row = self.row(&self.keys.lane(lane), id).await?;
        let pending = self.pending_each(&[(lane.clone(), id)]).await?.pop().flatten();
        let lane_state = self.lane_states(std::slice::from_ref(lane)).await?.pop();
        let state = match (&row, &pending) {
            (None, _) => State::Missing,
            (Some(_), Some(pending)) => state_of_pending(&pending.owner),
            (Some(_), None) if lane_state.is_none_or(|state| id > state.cursor) => State::Waiting,
            (Some(_), None) => State::Done,
        };
        let row = row.unwrap_or(Row { id, ..Row::default() });
        let mut inspection = self.blank(lane, row.envelope(), state).await?;
        let (appended_ms, earlier) = row.first_append();
        inspection.stream_id = Some(id.to_string());
        inspection.appended_ms = Some(appended_ms);
        inspection.attempts = earlier;
        inspection.redrive = row.field("r").and_then(|record| rmp_serde::from_slice(record).ok());
        if let Some(pending) = pending {
            inspection.attempts = pending.deliveries.saturating_add(earlier);
            let member = member(lane, id);
            let mut pipeline = redis::pipe();
            pipeline.cmd("ZSCORE").arg(self.keys.due_of(&lane.family)).arg(&member);
            pipeline.cmd("HGET").arg(self.keys.failures_of(&lane.family)).arg(&member);
            pipeline.cmd("ZSCORE").arg(self.keys.sessions()).arg(&pending.owner);
            let mut replies = self.redis.pipeline(&pipeline).await?.into_iter();
            let mut next = || replies.next().unwrap_or(Value::Nil);
            inspection.next_retry_ms = convert::<Option<f64>>(next(), "ZSCORE")?.map(score_ms);
            let failures: Option<Vec<u8>> = convert(next(), "HGET")?;
            inspection.failures = failures.and_then(|record| rmp_serde::from_slice(&record).ok());
            let expires = convert::<Option<f64>>(next(), "ZSCORE")?.map(score_ms);
            if state == State::Leased {
                inspection.lease = Some(Lease {
                    owner: pending.owner,
                    expires_ms: expires.filter(|expires| *expires > inspection.at_ms),
                    since_ms: inspection.at_ms.saturating_sub(pending.idle_ms),
                    fence: inspection.attempts,
                });
            }
        } else if state == State::Done
            && let Some((dead_id, record)) = self.letter_of(lane, id).await?
        {
            inspection.state = State::Dead;
            inspection.dead_id = Some(dead_id.to_string());
            inspection.attempts = record.attempts;
            inspection.dead = Some(record);
        }
        Ok(inspection)
    }

    /// The dead letter that an entry became, if that was not long after many others.
    async fn letter_of(&self, lane: &Lane, id: EntryId) -> Result<Option<(EntryId, DeadRecord)>, Error> {
        let rows = self.rows_back(&self.keys.dead(), "+", &id.ms.to_string(), SCAN_DEAD).await?;
        let (lane, id) = (lane.to_string(), id.to_string());
        Ok(rows.iter().find_map(|row| {
            let record: DeadRecord = rmp_serde::from_slice(row.field("r")?).ok()?;
            (record.lane == lane && record.entry_id == id).then_some((row.id, record))
        }))
    }

    /// Open entries in the order in which they will be dispatched. At most `limit` are read of each lane.
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Listed>, Error> {
        let now = self.now_ms().await?;
        let is_wanted = |lane: &Lane| {
            filter.family.as_ref().is_none_or(|family| lane.family == *family)
                && filter.priority.is_none_or(|priority| lane.priority == priority)
        };
        let lanes: Vec<Lane> = self.lanes().await?.into_iter().filter(is_wanted).collect();
        let youngest = filter.older_than.map(|age| now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(now)));
        let wants = |state: State| filter.state.is_none_or(|wanted| wanted == state);
        let steerings = self.steerings().await?;
        let levels = Levels { aging: filter.aging, steerings: &steerings };
        let mut listed: Vec<Listed> = Vec::new();
        // Few lanes at a time: what is kept never exceeds the limit plus one chunk's rows.
        for chunk in lanes.chunks(32) {
            for state in self.lane_states(chunk).await? {
                if state.pending() > 0 {
                    listed.extend(self.list_pending(&state, filter, &levels, now).await?);
                }
                if wants(State::Waiting) && state.waiting() != Some(0) {
                    let to = youngest.map_or_else(|| "+".to_owned(), |ms| ms.to_string());
                    listed.extend(self.list_waiting(&state, &to, filter, &levels, now).await?);
                }
            }
            listed.retain(|line| {
                wants(line.state) && youngest.is_none_or(|youngest| now.saturating_sub(line.age_ms) <= youngest)
            });
            listed.sort_by_key(|line| line.order);
            listed.truncate(filter.limit);
        }
        if wants(State::Later) && youngest.is_none() && listed.len() < filter.limit {
            let scheduled = self.list_later(&is_wanted, filter, filter.limit - listed.len(), now).await?;
            listed.extend(scheduled);
        }
        Ok(listed)
    }

    async fn list_waiting(
        &self,
        state: &LaneState,
        to: &str,
        filter: &ListFilter,
        levels: &Levels<'_>,
        now: u64,
    ) -> Result<Vec<Listed>, Error> {
        let key = self.keys.lane(&state.lane);
        let (mut listed, mut after, mut left) = (Vec::new(), state.cursor, filter.scan());
        while left > 0 && listed.len() < filter.limit {
            let page = left.min(filter.limit.max(PAGE));
            let rows = self.rows(&key, &format!("({after}"), to, page).await?;
            let lines = rows.iter().map(|row| line(&state.lane, row, State::Waiting, 0, now, levels));
            listed.extend(lines.filter(|line| filter.admits(line)));
            let Some(last) = rows.last().filter(|_| rows.len() == page) else { break };
            (after, left) = (last.id, left - page);
        }
        Ok(listed)
    }

    async fn list_pending(
        &self,
        state: &LaneState,
        filter: &ListFilter,
        levels: &Levels<'_>,
        now: u64,
    ) -> Result<Vec<Listed>, Error> {
        let lane = &state.lane;
        let mut pending = self.pending_rows(lane, "-", filter.scan()).await?;
        pending.retain(|pending| filter.state.is_none_or(|state| state == state_of_pending(&pending.owner)));
        let ids: Vec<EntryId> = pending.iter().map(|pending| pending.id).collect();
        let rows = self.rows_each(&self.keys.lane(lane), &ids).await?;
        let mut listed = Vec::with_capacity(rows.len());
        for (pending, row) in pending.iter().zip(rows) {
            let Some(row) = row else { continue };
            let state = state_of_pending(&pending.owner);
            let mut line = line(lane, &row, state, pending.deliveries, now, levels);
            if !filter.admits(&line) {
                continue;
            }
            if is_retry(&pending.owner) {
                let mut cmd = redis::cmd("ZSCORE");
                cmd.arg(self.keys.due_of(&lane.family)).arg(member(lane, row.id));
                line.next_retry_at = self.redis.query::<Option<f64>>(&cmd).await?.map(score_ms);
            }
            listed.push(line);
        }
        Ok(listed)
    }

    async fn list_later(
        &self,
        is_wanted: &impl Fn(&Lane) -> bool,
        filter: &ListFilter,
        limit: usize,
        now: u64,
    ) -> Result<Vec<Listed>, Error> {
        let rows: Vec<(String, f64)> = self
            .redis
            .query(redis::cmd("ZRANGE").arg(self.keys.later()).arg(0).arg(SCAN_PER_LANE).arg("WITHSCORES"))
            .await?;
        let mut listed = Vec::new();
        for (member, at) in rows {
            let Some((lane, id)) = member.split_once('|') else { continue };
            let Some(lane) = lane.parse::<Lane>().ok().filter(|lane| is_wanted(lane)) else { continue };
            let bytes: Option<Vec<u8>> =
                self.redis.query(redis::cmd("HGET").arg(self.keys.later_data()).arg(&member)).await?;
            let line = Listed {
                stream_id: None,
                event_id: Some(id.to_owned()),
                priority: lane.priority,
                effective_priority: lane.priority,
                family: lane.family,
                age_ms: 0,
                state: State::Later,
                attempts: 0,
                next_retry_at: Some(score_ms(at)),
                envelope: bytes.and_then(|bytes| Envelope::decode(&bytes).ok()),
                order: (lane.priority, now, EntryId::MAX),
            };
            listed.extend(Some(line).filter(|line| filter.admits(line)));
            if listed.len() == limit {
                break;
            }
        }
        Ok(listed)
    }

    /// What the journal says of an event id or stream id since `since_ms`, reading at most `batches` batches.
    pub async fn history(&self, id: &str, since_ms: u64, batches: usize) -> Result<History, Error> {
        const PAGE: usize = 500;
        let mut history = History::default();
        let (mut from, mut read) = (EntryId { ms: since_ms, seq: 0 }, 0);
        loop {
            let page = self.journal_page(from, EntryId::MAX, PAGE.min(batches - read)).await?;
            history.undecodable += page.undecodable;
            history.entries.extend(page.entries.into_iter().filter(|entry| {
                let fact = &entry.fact;
                fact.event_id.as_deref() == Some(id) || fact.stream_id.as_deref() == Some(id)
            }));
            let Some(last) = page.last else { return Ok(history) };
            from = last.next();
            read += PAGE;
            if read >= batches {
                history.cut = true;
                return Ok(history);
            }
        }
    }

    /// The one thing that holds what was found at `place`; `routing` says what the registry knows of its family.
    pub async fn why(&self, place: &Place, routing: &(dyn Fn(&Family) -> Routing + Sync)) -> Result<Hold, Error> {
        let inspection = self.inspect(place).await?;
        let lane: Option<Lane> = inspection.lane.as_deref().and_then(|lane| lane.parse().ok());
        match inspection.state {
            State::Later => return Ok(Hold::Later { at_ms: inspection.appended_ms.unwrap_or_default() }),
            State::Done => return Ok(Hold::Done),
            State::Acked => return Ok(Hold::Acked),
            State::Missing => return Ok(Hold::Missing),
            State::Dead => {
                return Ok(Hold::Dead {
                    dead_id: inspection.dead_id.unwrap_or_default(),
                    reason: inspection.dead.map_or_else(|| "unknown".into(), |record| record.reason),
                });
            }
            State::Leased => {
                return Ok(match inspection.lease {
                    Some(Lease { owner, expires_ms: Some(_), since_ms, .. }) => Hold::Leased { owner, since_ms },
                    lease => Hold::Orphaned { owner: lease.map(|lease| lease.owner).unwrap_or_default() },
                });
            }
            State::Waiting | State::Retry => {}
        }
        let (Some(lane), Place::Entry(_, id)) = (lane, place) else { return Ok(Hold::Missing) };
        if let Some(until_ms) = inspection.paused_until_ms {
            let pauses = self.pauses().await?;
            let record = pauses.of(lane.family.as_str()).and_then(|(_, record)| record.as_ref());
            let reason = record.map(|pause| pause.reason.clone());
            return Ok(Hold::Paused { until_ms, source: record.map(|pause| pause.source), reason });
        }
        let routing = routing(&lane.family);
        if !routing.is_routed {
            return Ok(Hold::Unrouted);
        }
        if let Some(circuit) = self.breakers().await?.get(lane.family.as_str())
            && circuit.is_closed_gate(inspection.at_ms)
        {
            let (state, error) = (circuit.state.as_str().to_owned(), circuit.last_error.clone());
            return Ok(Hold::Broken { state, until_ms: circuit.open_until, error });
        }
        if inspection.state == State::Retry {
            let error = inspection.failures.map(|failures| failures.error);
            return Ok(Hold::Retry { due_ms: inspection.next_retry_ms, error });
        }
        if !self.session_expiries().await?.values().any(|expiry| *expiry > inspection.at_ms) {
            return Ok(Hold::NoDrainer);
        }
        if routing.is_ordered
            && let Some(first) = self.pending_rows(&lane, "-", 1).await?.first().filter(|first| first.id < *id)
        {
            return Ok(Hold::OrderedBehind { stream_id: first.id.to_string() });
        }
        let state = self.lane_states(std::slice::from_ref(&lane)).await?.pop();
        let cursor = state.map(|state| state.cursor).unwrap_or_default();
        let before = self.rows(&self.keys.lane(&lane), &format!("({cursor}"), &format!("({id}"), 1000).await?;
        let steerings = self.steerings().await?;
        if let Some(pace) = steerings.of(Slot::Pace, lane.family.as_str()).cloned() {
            let (every_ms, max) = (pace.every_ms.unwrap_or(0), pace.max.unwrap_or(0));
            return Ok(Hold::Paced {
                kind: pace.kind,
                every_ms,
                max,
                until_ms: pace.expires_at_ms,
                reason: pace.reason,
            });
        }
        let sessions = self.sessions().await?;
        let live = sessions.iter().filter(|session| session.expires_ms > inspection.at_ms);
        let limits: Vec<u64> = live.filter_map(|session| session.reduced_limit(lane.family.as_str())).collect();
        if !limits.is_empty() {
            return Ok(Hold::Slowed { limit: limits.iter().sum() });
        }
        Ok(match before.len() as u64 {
            0 => Hold::Next,
            n => Hold::AheadInLane { n },
        })
    }
}

/// What decides at which level an entry counts.
struct Levels<'a> {
    aging: Option<Duration>,
    steerings: &'a Steerings,
}

fn line(lane: &Lane, row: &Row, state: State, deliveries: u32, now: u64, levels: &Levels<'_>) -> Listed {
    let envelope = Envelope::decode(row.envelope()).ok();
    let (appended_ms, earlier) = row.first_append();
    let age_ms = now.saturating_sub(appended_ms);
    let raised = levels.aging.map_or(0, |aging| u128::from(age_ms) / aging.as_millis().max(1));
    let steering = levels.steerings.of(Slot::Priority, lane.family.as_str());
    let effective_priority = match steering.and_then(Steering::priority).unwrap_or(lane.priority) {
        Priority::P2 if raised >= 1 => Priority::P1,
        Priority::P3 if raised >= 2 => Priority::P1,
        Priority::P3 if raised == 1 => Priority::P2,
        stored => stored,
    };
    Listed {
        stream_id: Some(row.id.to_string()),
        event_id: row.event_id(),
        family: lane.family.clone(),
        priority: lane.priority,
        effective_priority,
        age_ms,
        state,
        attempts: deliveries.saturating_add(earlier),
        next_retry_at: None,
        envelope,
        order: (effective_priority, appended_ms, row.id),
    }
}
