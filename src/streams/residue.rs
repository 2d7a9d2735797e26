//! Residue: entries of an old deployment that nothing will dispatch, acknowledged on an operator's word.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:trash:<batch>` | stream, PX: lane, id, count, then the entry as it was | `operator_ack.lua`, `undo_ack.lua` |
//!
//! A pass has two halves: [`Bus::residue`] looks and writes nothing; [`Bus::operator_ack`] acts on what was seen. Age
//! and lease are judged again in the script, so what was leased in between is skipped, not lost.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::bus::Bus;
use super::condition::Condition;
use super::dead::Operator;
use super::entry_id::EntryId;
use super::envelope::Envelope;
use super::family::Family;
use super::journal;
use super::keys::MAX_BLOCKING_LANES;
use super::lane::Lane;
use super::look::{State, state_of_pending};
use super::records::Fact;
use super::redis::Error;
use super::rows::{Pending, Row, is_handback, is_retry};
use super::scripts;

/// How long an acknowledgement can be undone unless asked otherwise.
pub const UNDO: Duration = Duration::from_secs(600);
/// Entries per script call.
const BATCH_MAX: usize = 512;
/// Entries of one lane looked at per page.
const PAGE: usize = 256;

/// A bounded pass.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Appended at least so long ago.
    pub older_than: Duration,
    /// Only this event name.
    pub family: Option<Family>,
    /// For which this holds.
    pub condition: Option<Condition>,
    /// At most so many.
    pub limit: usize,
}

/// One entry that would be acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Where it is.
    #[serde(serialize_with = "as_text")]
    pub lane: Lane,
    /// The entry.
    #[serde(rename = "streamId", serialize_with = "as_text")]
    pub id: EntryId,
    /// The event, where it can be decoded.
    pub event_id: Option<String>,
    /// Waiting, leased or retry.
    pub state: State,
    /// Since its append, ms.
    pub age_ms: u64,
    /// The session that holds it.
    pub owner: Option<String>,
    /// That session is alive until then, ms: the entry is not touched without force.
    pub leased_until_ms: Option<u64>,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What a pass would do.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// Oldest first within each lane.
    pub candidates: Vec<Candidate>,
    /// State → how many.
    pub by_state: BTreeMap<State, u64>,
    /// Family → how many.
    pub by_family: BTreeMap<String, u64>,
    /// How many are under a live lease: a pass is refused while there is one.
    pub live_leases: usize,
    /// The limit was reached: there may be more.
    pub cut: bool,
    /// Changes with every candidate and its state.
    pub plan_hash: String,
    /// Named entries that are not open.
    pub missing: Vec<String>,
}

/// How to acknowledge.
#[derive(Debug, Clone)]
pub struct AckOptions {
    /// Entries younger than this are skipped.
    pub min_age: Duration,
    /// Take entries from live leases too; their handlers' completions are refused.
    pub force: bool,
    /// How long it can be undone.
    pub keep: Duration,
    /// Names the batch; continue an interrupted pass under the same name.
    pub batch: String,
}

impl Default for AckOptions {
    fn default() -> Self {
        Self { min_age: Duration::ZERO, force: false, keep: UNDO, batch: uuid::Uuid::now_v7().to_string() }
    }
}

/// What an acknowledgement did.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Acked {
    /// The word for undo.
    pub batch: String,
    /// Entries asked for.
    pub matched: usize,
    /// Entries moved to the trash.
    pub acked: usize,
    /// The others.
    pub skipped: Vec<Skipped>,
    /// Nothing was done.
    pub dry_run: bool,
    /// Until when it can be undone, ms.
    pub undo_until: Option<u64>,
}

/// One entry that was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// `<lane>|<entry id>`.
    pub id: String,
    /// `leased`, `missing` or `too_young`.
    pub reason: String,
}

/// An entry that an undo brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Its lane.
    pub lane: String,
    /// The entry it was.
    pub old_stream_id: String,
    /// The entry it is now.
    pub stream_id: String,
}

impl Bus {
    /// Looks for what a bounded pass would acknowledge. With `unrouted`, only families for which it says true.
    pub async fn residue(
        &self,
        pass: &Pass,
        unrouted: Option<&(dyn Fn(&Family) -> bool + Sync)>,
    ) -> Result<Preview, Error> {
        let wanted = |lane: &Lane| {
            pass.family.as_ref().is_none_or(|family| lane.family == *family)
                && unrouted.is_none_or(|is_unrouted| is_unrouted(&lane.family))
        };
        let lanes: Vec<Lane> = self.lanes().await?.into_iter().filter(wanted).collect();
        let age_ms = u64::try_from(pass.older_than.as_millis()).unwrap_or(u64::MAX);
        let last = EntryId { ms: self.now_ms().await?.saturating_sub(age_ms), seq: u64::MAX };
        let mut open: Vec<(Lane, EntryId)> = Vec::new();
        // One more than the limit tells whether the pass is cut.
        let enough = pass.limit.saturating_add(1);
        for state in self.lane_states(&lanes).await? {
            if state.pending() > 0 {
                let mut from = "-".to_owned();
                while open.len() < enough {
                    let rows = self.pending_rows(&state.lane, &from, PAGE).await?;
                    let ids: Vec<EntryId> = rows.iter().map(|row| row.id).filter(|id| *id <= last).collect();
                    let ids = self.held(&state.lane, ids, pass.condition.as_ref()).await?;
                    open.extend(ids.into_iter().map(|id| (state.lane.clone(), id)));
                    match rows.last() {
                        Some(row) if rows.len() == PAGE && row.id <= last => from = format!("({}", row.id),
                        _ => break,
                    }
                }
            }
            if state.waiting() != Some(0) && state.cursor < last {
                let (key, to, mut after) = (self.keys.lane(&state.lane), last.to_string(), state.cursor);
                while open.len() < enough {
                    let rows = self.rows(&key, &format!("({after}"), &to, PAGE).await?;
                    let wanted = rows.iter().filter(|row| holds(pass.condition.as_ref(), row));
                    open.extend(wanted.map(|row| (state.lane.clone(), row.id)));
                    match rows.last() {
                        Some(row) if rows.len() == PAGE => after = row.id,
                        _ => break,
                    }
                }
            }
            if open.len() >= enough {
                break;
            }
        }
        let cut = open.len() > pass.limit;
        open.truncate(pass.limit);
        Ok(Preview { cut, ..self.preview(&open).await? })
    }

    /// Those of a lane's entries for which the condition holds.
    async fn held(&self, lane: &Lane, ids: Vec<EntryId>, condition: Option<&Condition>) -> Result<Vec<EntryId>, Error> {
        if condition.is_none() {
            return Ok(ids);
        }
        let rows = self.rows_each(&self.keys.lane(lane), &ids).await?.into_iter().flatten();
        Ok(rows.filter(|row| holds(condition, row)).map(|row| row.id).collect())
    }

    /// Looks at named entries.
    pub async fn preview(&self, ids: &[(Lane, EntryId)]) -> Result<Preview, Error> {
        let now = self.now_ms().await?;
        let sessions = self.session_expiries().await?;
        let pending = self.pending_each(ids).await?;
        let asked: Vec<_> = ids.iter().map(|(lane, id)| (lane.clone(), id.to_string(), id.to_string())).collect();
        let rows = self.rows_of(&asked, 1).await?;
        let mut lanes: Vec<Lane> = ids.iter().map(|(lane, _)| lane.clone()).collect();
        lanes.sort();
        lanes.dedup();
        let cursors: BTreeMap<Lane, EntryId> =
            self.lane_states(&lanes).await?.into_iter().map(|state| (state.lane, state.cursor)).collect();
        let mut preview = Preview::default();
        for (((lane, id), pending), mut row) in ids.iter().zip(pending).zip(rows) {
            let is_open = pending.is_some() || cursors.get(lane).is_none_or(|cursor| id > cursor);
            let Some(row) = row.pop().filter(|_| is_open) else {
                preview.missing.push(format!("{lane}|{id}"));
                continue;
            };
            preview.candidates.push(candidate(lane, &row, pending, now, &|owner| sessions.get(owner).copied()));
        }
        let mut hash = Vec::new();
        for candidate in &preview.candidates {
            *preview.by_state.entry(candidate.state).or_default() += 1;
            *preview.by_family.entry(candidate.lane.family.to_string()).or_default() += 1;
            preview.live_leases += usize::from(candidate.leased_until_ms.is_some());
            hash.extend_from_slice(format!("{}|{}|{:?}\n", candidate.lane, candidate.id, candidate.state).as_bytes());
        }
        preview.plan_hash = hex::encode(&<sha2::Sha256 as sha2::Digest>::digest(&hash)[..8]);
        Ok(preview)
    }

    /// Acknowledges `candidates`, lane by lane. Interrupted, it can be called again with the same batch.
    pub async fn operator_ack(
        &self,
        candidates: &[Candidate],
        options: &AckOptions,
        operator: &Operator,
    ) -> Result<Acked, Error> {
        let mut by_lane: BTreeMap<&Lane, Vec<&Candidate>> = BTreeMap::new();
        for candidate in candidates {
            by_lane.entry(&candidate.lane).or_default().push(candidate);
        }
        let mut done = Acked { batch: options.batch.clone(), matched: candidates.len(), ..Acked::default() };
        for (lane, candidates) in by_lane {
            for chunk in candidates.chunks(BATCH_MAX) {
                let results = self.ack_chunk(lane, chunk, options, operator).await?;
                for (candidate, result) in chunk.iter().zip(results) {
                    if result == "acked" {
                        done.acked += 1;
                    } else {
                        done.skipped.push(Skipped { id: format!("{lane}|{}", candidate.id), reason: result });
                    }
                }
            }
        }
        if done.acked > 0 {
            let left: i64 = self.redis.query(redis::cmd("PTTL").arg(self.keys.trash(&options.batch))).await?;
            let now = self.now_ms().await?;
            done.undo_until = u64::try_from(left).ok().map(|left| now + left);
        }
        Ok(done)
    }

    async fn ack_chunk(
        &self,
        lane: &Lane,
        chunk: &[&Candidate],
        options: &AckOptions,
        operator: &Operator,
    ) -> Result<Vec<String>, Error> {
        let keys = &self.keys;
        let facts = chunk.iter().map(|candidate| {
            let mut fact = Fact::new("queue", "queue.ack")
                .with("deleted", true)
                .with("eventName", lane.family.as_str())
                .with("actor", operator.actor.as_str())
                .with("reason", operator.reason.as_str())
                .with("batch", options.batch.as_str());
            fact.event_id.clone_from(&candidate.event_id);
            fact.lane = Some(lane.to_string());
            fact.stream_id = Some(candidate.id.to_string());
            fact
        });
        let mut call = Self::call(&scripts::OPERATOR_ACK)
            .key(keys.lane(lane))
            .key(keys.due_of(&lane.family))
            .key(keys.failures_of(&lane.family))
            .key(keys.trash(&options.batch))
            .key(keys.sessions())
            .key(keys.journal())
            .key(keys.revoked())
            .key(keys.due())
            .number(options.min_age.as_millis())
            .arg(if options.force { "1" } else { "" })
            .number(options.keep.as_millis().max(1))
            .arg(format!("p{}|", lane.priority.number()))
            .arg(lane.to_string())
            .arg(lane.family.as_str())
            .arg(journal::encode_facts(facts));
        for candidate in chunk {
            call.push_arg(candidate.id.to_string());
        }
        self.redis.run(call).await
    }

    /// Brings a batch back. Empty when it is unknown or its time is over.
    pub async fn undo_ack(&self, batch: &str, operator: &Operator) -> Result<Vec<Restored>, Error> {
        let keys = &self.keys;
        let trash = keys.trash(batch);
        let mut restored = Vec::new();
        loop {
            let rows = self.rows(&trash, "-", "+", BATCH_MAX).await?;
            if rows.is_empty() {
                return Ok(restored);
            }
            let facts = rows.iter().map(|row| {
                let text = |name| row.field(name).map(|value| String::from_utf8_lossy(value).into_owned());
                let mut fact = Fact::new("queue", "queue.ack.undone")
                    .with("actor", operator.actor.as_str())
                    .with("reason", operator.reason.as_str())
                    .with("batch", batch);
                fact.event_id = row.event_id();
                fact.lane = text("lane");
                fact.stream_id = text("id");
                fact
            });
            let mut call = Self::call(&scripts::UNDO_ACK)
                .key(trash.as_str())
                .key(keys.journal())
                .key(keys.lanes())
                .key(keys.families())
                .key(keys.ready())
                .key(keys.wake())
                .arg(keys.tag())
                .arg(keys.ctl())
                .number(MAX_BLOCKING_LANES)
                .arg(journal::encode_facts(facts));
            for row in &rows {
                call.push_arg(row.id.to_string());
            }
            let lines: Vec<String> = self.redis.run(call).await?;
            for line in lines {
                let mut parts = line.rsplitn(3, '|').map(str::to_owned);
                if let (Some(stream_id), Some(old_stream_id), Some(lane)) = (parts.next(), parts.next(), parts.next()) {
                    restored.push(Restored { lane, old_stream_id, stream_id });
                }
            }
        }
    }
}

fn holds(condition: Option<&Condition>, row: &Row) -> bool {
    condition.is_none_or(|condition| condition.holds(Envelope::decode(row.envelope()).ok().as_ref()))
}

fn candidate(
    lane: &Lane,
    row: &Row,
    pending: Option<Pending>,
    now: u64,
    expiry: &dyn Fn(&str) -> Option<u64>,
) -> Candidate {
    let state = pending.as_ref().map_or(State::Waiting, |pending| state_of_pending(&pending.owner));
    let owner = pending.map(|pending| pending.owner).filter(|owner| !is_retry(owner) && !is_handback(owner));
    Candidate {
        lane: lane.clone(),
        id: row.id,
        event_id: row.event_id(),
        state,
        age_ms: now.saturating_sub(row.first_append().0),
        leased_until_ms: owner.as_deref().and_then(expiry).filter(|expiry| *expiry > now),
        owner,
    }
}
