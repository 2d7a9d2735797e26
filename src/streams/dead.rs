//! Dead letters: list, inspect, redrive, drop.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:dead` | stream: `e` the envelope as it was, `r` a [`DeadRecord`] | `complete.lua`, `redrive.lua`, `drop.lua`, `repair.lua` |
//!
//! # Invariants
//! 1. A letter leaves by redrive or by drop, each in one script with its journal record; two operators can't both do it.
//! 2. What can't be decoded is shown raw, and can be dropped or redriven only with its bytes unchanged.

use serde::Serialize;

use super::bus::Bus;
use super::complete::DeadRecord;
use super::condition::Condition;
use super::entry_id::EntryId;
use super::envelope::Envelope;
use super::family::Family;
use super::journal;
use super::json::JsonObject;
use super::keys::MAX_BLOCKING_LANES;
use super::lane::Lane;
use super::lease::Redrive;
use super::records::Fact;
use super::redis::Error;
use super::rows::Row;
use super::scripts;

/// Most letters one script call handles.
pub const BATCH_MAX: usize = 512;
/// Letters read per page while filtering.
const PAGE: usize = 200;

/// Who does something to the queue by hand, and why. Both are journaled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operator {
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// One dead letter.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Its id in the dead-letter stream.
    #[serde(serialize_with = "as_text")]
    pub id: EntryId,
    /// When it died, ms.
    pub at_ms: u64,
    /// Why, where the record can be read.
    pub record: Option<DeadRecord>,
    /// The event, where it can be decoded.
    pub event: Option<Envelope>,
    /// Why it can't be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undecodable: Option<String>,
    /// The bytes as they were, base64, where they can't be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_base64: Option<String>,
}

fn as_text<S: serde::Serializer>(id: &EntryId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

impl DeadLetter {
    fn read(row: &Row) -> Self {
        use base64::Engine as _;
        let record: Option<DeadRecord> = row.field("r").and_then(|record| rmp_serde::from_slice(record).ok());
        let (event, undecodable) = match Envelope::decode(row.envelope()) {
            Ok(event) => (Some(event), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let raw_base64 =
            undecodable.is_some().then(|| base64::engine::general_purpose::STANDARD.encode(row.envelope()));
        Self { id: row.id, at_ms: row.id.ms, record, event, undecodable, raw_base64 }
    }

    /// Where it was, or where its event belongs.
    #[must_use]
    pub fn lane(&self) -> Option<Lane> {
        let recorded = self.record.as_ref().and_then(|record| record.lane.parse().ok());
        recorded.or_else(|| self.event.as_ref().map(|event| Lane::new(event.name.clone(), event.priority)))
    }

    /// Why it died; `unknown` where the record can't be read.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.record.as_ref().map_or("unknown", |record| record.reason.as_str())
    }

    fn fact(&self, action: &'static str, operator: &Operator) -> Fact {
        let mut fact = Fact::new("queue", action)
            .with("deadId", self.id.to_string())
            .with("reason", operator.reason.as_str())
            .with("actor", operator.actor.as_str())
            .with("deadReason", self.reason());
        if let Some(record) = &self.record {
            fact = fact
                .with("attempts", record.attempts)
                .with("error", record.error.as_str())
                .with("entryId", record.entry_id.as_str());
        }
        if let Some(event) = &self.event {
            fact = fact.event(event.id.as_str()).with("eventName", event.name.as_str());
        }
        fact.lane = self.lane().map(|lane| lane.to_string());
        fact
    }
}

/// Which letters.
#[derive(Debug, Clone, Default)]
pub struct DeadFilter {
    /// Of this event name.
    pub family: Option<Family>,
    /// With this reason.
    pub reason: Option<String>,
    /// Of event names that begin so.
    pub under: Option<&'static str>,
    /// For which this holds.
    pub condition: Option<Condition>,
}

impl DeadFilter {
    /// Whether `letter` is one of them.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        self.reason.as_deref().is_none_or(|reason| letter.reason() == reason)
            && self.family.as_ref().is_none_or(|family| letter.lane().is_some_and(|lane| lane.family == *family))
            && self.condition.as_ref().is_none_or(|condition| condition.holds(letter.event.as_ref()))
            && self.under.is_none_or(|start| letter.lane().is_some_and(|lane| lane.family.as_str().starts_with(start)))
    }
}

/// Letters, newest first.
#[derive(Debug, Clone, Default)]
pub struct DeadPage {
    /// At most as many as asked for.
    pub letters: Vec<DeadLetter>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<EntryId>,
    /// Letters looked at.
    pub scanned: usize,
}

/// What became of a letter to be redriven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Redriven {
    /// It is in its lane again.
    #[serde(rename_all = "camelCase")]
    Sent {
        /// Which lane.
        lane: String,
        /// The new entry.
        stream_id: String,
    },
    /// Somebody else redrove or dropped it.
    Gone,
    /// It names no lane, has no bytes, or can't be edited.
    #[serde(rename_all = "camelCase")]
    Refused {
        /// Why.
        detail: String,
    },
}

impl Bus {
    /// How many dead letters there are.
    pub async fn dead_count(&self) -> Result<u64, Error> {
        self.redis.query(redis::cmd("XLEN").arg(self.keys.dead())).await
    }

    /// Up to `limit` letters, newest first, from `before` (exclusive) back; looks at most at `scan_limit`.
    pub async fn dead_letters(
        &self,
        filter: &DeadFilter,
        before: Option<EntryId>,
        limit: usize,
        scan_limit: usize,
    ) -> Result<DeadPage, Error> {
        let mut page = DeadPage::default();
        let mut from = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        while page.letters.len() < limit && page.scanned < scan_limit {
            let rows = self.rows_back(&self.keys.dead(), &from, "-", PAGE.min(scan_limit - page.scanned)).await?;
            let Some(last) = rows.last() else { return Ok(DeadPage { next: None, ..page }) };
            from = format!("({}", last.id);
            page.next = Some(last.id);
            for row in &rows {
                page.scanned += 1;
                let letter = DeadLetter::read(row);
                if filter.matches(&letter) {
                    page.letters.push(letter);
                    if page.letters.len() == limit {
                        page.next = Some(row.id);
                        break;
                    }
                }
            }
        }
        Ok(page)
    }

    /// One letter.
    pub async fn dead_letter(&self, id: EntryId) -> Result<Option<DeadLetter>, Error> {
        Ok(self.row(&self.keys.dead(), id).await?.as_ref().map(DeadLetter::read))
    }

    /// Sends letters round again, attempts from zero. With `edit`, the event's data is replaced by it.
    pub async fn redrive(
        &self,
        ids: &[EntryId],
        operator: &Operator,
        edit: Option<&JsonObject>,
    ) -> Result<Vec<Redriven>, Error> {
        let mut outcomes = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(BATCH_MAX) {
            outcomes.extend(self.redrive_chunk(chunk, operator, edit).await?);
        }
        Ok(outcomes)
    }

    async fn redrive_chunk(
        &self,
        ids: &[EntryId],
        operator: &Operator,
        edit: Option<&JsonObject>,
    ) -> Result<Vec<Redriven>, Error> {
        let keys = &self.keys;
        let mut outcomes = vec![Redriven::Gone; ids.len()];
        let (mut sent, mut facts, mut args) = (Vec::new(), Vec::new(), Vec::new());
        for (index, row) in self.rows_each(&keys.dead(), ids).await?.into_iter().enumerate() {
            let Some(row) = row else { continue };
            let letter = DeadLetter::read(&row);
            let refused = |detail: &str| Redriven::Refused { detail: detail.to_owned() };
            let Some(lane) = letter.lane() else {
                outcomes[index] = refused("it names no lane");
                continue;
            };
            if row.envelope().is_empty() {
                outcomes[index] = refused("its event is lost");
                continue;
            }
            let edited = match (edit, &letter.event) {
                (None, _) => Vec::new(),
                (Some(data), Some(event)) => {
                    let event = Envelope { data: data.clone(), ..event.clone() };
                    event.encode().map_err(|error| Error::Reply { command: "redrive", detail: error.to_string() })?
                }
                (Some(_), None) => {
                    outcomes[index] = refused("an event that can't be decoded can't be edited");
                    continue;
                }
            };
            let redrives = letter.record.as_ref().map_or(0, |record| record.redrives).saturating_add(1);
            let record = Redrive { redrives, dead_id: row.id.to_string() };
            let mut fact = letter.fact("queue.dead.redriven", operator).with("redrives", redrives);
            if edit.is_some() {
                fact = fact.with("edited", true);
            }
            facts.push(fact);
            args.push((row.id, lane.to_string(), rmp_serde::to_vec_named(&record).unwrap_or_default(), edited));
            sent.push((index, lane.to_string()));
        }
        if sent.is_empty() {
            return Ok(outcomes);
        }
        let mut call = Self::call(&scripts::REDRIVE)
            .key(keys.dead())
            .key(keys.journal())
            .key(keys.lanes())
            .key(keys.families())
            .key(keys.ready())
            .key(keys.wake())
            .arg(keys.tag())
            .arg(keys.ctl())
            .number(MAX_BLOCKING_LANES)
            .arg(journal::encode_facts(facts));
        for (id, lane, record, edited) in args {
            call = call.arg(id.to_string()).arg(lane).arg(record).arg(edited);
        }
        let new_ids: Vec<String> = self.redis.run(call).await?;
        for ((index, lane), stream_id) in sent.into_iter().zip(new_ids) {
            if !stream_id.is_empty() {
                outcomes[index] = Redriven::Sent { lane, stream_id };
            }
        }
        Ok(outcomes)
    }

    /// Removes letters for good. True for each that was removed, false for one that was gone already.
    pub async fn drop_dead(&self, ids: &[EntryId], operator: &Operator) -> Result<Vec<bool>, Error> {
        let mut outcomes = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(BATCH_MAX) {
            let rows = self.rows_each(&self.keys.dead(), chunk).await?;
            let facts = chunk.iter().zip(&rows).map(|(id, row)| {
                let letter =
                    row.as_ref().map_or_else(|| DeadLetter::read(&Row { id: *id, ..Row::default() }), DeadLetter::read);
                letter.fact("queue.dead.dropped", operator)
            });
            let mut call = Self::call(&scripts::DROP)
                .key(self.keys.dead())
                .key(self.keys.journal())
                .arg(journal::encode_facts(facts));
            for id in chunk {
                call.push_arg(id.to_string());
            }
            let removed: Vec<u64> = self.redis.run(call).await?;
            outcomes.extend(removed.into_iter().map(|n| n == 1));
        }
        Ok(outcomes)
    }
}
