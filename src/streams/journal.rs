//! The journal: the event-sourced record of every state change.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:journal` | stream, one entry per batch | every script that changes state |
//!
//! Fields of an entry: `b` MessagePack array of [`Record`]s · `s` results by Redis, one line per row or fact of `b`
//! · `c` a pause record · `p` promoted scheduled events · `q` expired pauses · `x` refused completions.
//!
//! # Invariants
//! 1. A state change and its record are written by one script, so the record can't disagree with the state.
//! 2. An entry that can't be decoded is skipped and counted, never fatal.

use std::borrow::Cow;

use redis::streams::StreamRangeReply;
use serde_json::{Value, json};

use super::append;
use super::bus::Bus;
use super::entry_id::EntryId;
use super::lane::family_of;
use super::records::{Dispatches, Enqueue, Entry, Fact, Level, Record};
use super::redis::Error;
use super::scripts;

/// Encodes records as one blob.
#[must_use]
pub fn encode(records: &[Record]) -> Vec<u8> {
    // Writing to memory can't fail for these types: strings, numbers and JSON values.
    rmp_serde::to_vec(records).unwrap_or_default()
}

/// Encodes facts as one blob, in order: scripts answer one line per fact in `s`.
#[must_use]
pub fn encode_facts(facts: impl IntoIterator<Item = Fact>) -> Vec<u8> {
    encode(&facts.into_iter().map(Record::Fact).collect::<Vec<_>>())
}

impl Fields {
    /// How much there is of it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = [&self.s, &self.c, &self.p, &self.q, &self.x];
        self.b.as_ref().map_or(0, Vec::len) + texts.into_iter().flatten().map(String::len).sum::<usize>()
    }
}

/// One page of the journal.
#[derive(Debug, Default)]
pub struct Page {
    /// What happened, oldest first.
    pub entries: Vec<Entry>,
    /// The last batch read; `None` when the range is finished.
    pub last: Option<EntryId>,
    /// Batches that could not be decoded.
    pub undecodable: u64,
}

impl Bus {
    /// Journals facts that belong to no other change.
    pub async fn journal(&self, facts: impl IntoIterator<Item = Fact>) -> Result<EntryId, Error> {
        self.journal_encoded(encode_facts(facts)).await
    }

    /// The same with what [`encode_facts`] made of them.
    pub async fn journal_encoded(&self, batch: Vec<u8>) -> Result<EntryId, Error> {
        let call = Self::call(&scripts::JOURNAL).key(self.keys.journal()).arg(batch);
        let id: String = self.redis.run(call).await?;
        id.parse().map_err(|_| Error::Reply { command: "journal.lua", detail: id })
    }

    /// Reads up to `batches` batches from `from` (inclusive) to `to`.
    pub async fn journal_page(&self, from: EntryId, to: EntryId, batches: usize) -> Result<Page, Error> {
        let rows = self.journal_batches(from, to, batches).await?;
        let last = rows.last().map(|(id, _)| *id).filter(|_| rows.len() == batches);
        let mut page = Page { last, ..Page::default() };
        for (id, fields) in rows {
            if !expand(id, &fields, &mut page.entries) {
                page.undecodable += 1;
            }
        }
        Ok(page)
    }

    /// The same as they are stored.
    pub async fn journal_batches(
        &self,
        from: EntryId,
        to: EntryId,
        batches: usize,
    ) -> Result<Vec<(EntryId, Fields)>, Error> {
        let to = if to == EntryId::MAX { "+".to_owned() } else { to.to_string() };
        let reply: StreamRangeReply = self
            .redis
            .query(
                redis::cmd("XRANGE").arg(self.keys.journal()).arg(from.to_string()).arg(to).arg("COUNT").arg(batches),
            )
            .await?;
        let row = |row: redis::streams::StreamId| {
            let field = |name: &str| row.get::<Vec<u8>>(name);
            let text = |name: &str| row.get::<String>(name);
            let fields = Fields { b: field("b"), s: text("s"), c: text("c"), p: text("p"), q: text("q"), x: text("x") };
            Some((row.id.parse().ok()?, fields))
        };
        Ok(reply.ids.into_iter().filter_map(row).collect())
    }
}

/// The fields of one journal entry.
#[derive(Debug, Default)]
pub struct Fields {
    /// Records.
    pub b: Option<Vec<u8>>,
    /// Results, one line each.
    pub s: Option<String>,
    /// Pause record.
    pub c: Option<String>,
    /// Promoted scheduled events.
    pub p: Option<String>,
    /// Expired pauses.
    pub q: Option<String>,
    /// Refused completions.
    pub x: Option<String>,
}

/// A part of a journal entry. The two kinds that occur per event stay tables, so that what counts them need not
/// build a fact for each.
#[derive(Debug)]
pub enum Part<'a> {
    /// Offered events, and a line of `append.lua` for each of them.
    Enqueue(&'a Enqueue, &'a [&'a str]),
    /// Dispatches that ended well (or were refused), or that had only started.
    Dispatches {
        /// The rows.
        batch: &'a Dispatches,
        /// They ended.
        ended: bool,
        /// `<lane>|<entry id>` whose completion was refused.
        refused: &'a [&'a str],
    },
    /// Anything else.
    Fact(Fact),
}

/// Turns one journal entry into the facts it stands for. False when it could not be decoded.
pub fn expand(id: EntryId, fields: &Fields, into: &mut Vec<Entry>) -> bool {
    let mut push = |fact: Fact| into.push(Entry { id, fact });
    walk(id, fields, &mut |part| match part {
        Part::Enqueue(batch, lines) => expand_enqueue(id, batch, lines, &mut push),
        Part::Dispatches { batch, ended, refused } => expand_dispatches(batch, ended, refused, &mut push),
        Part::Fact(fact) => push(fact),
    })
}

/// How many facts one journal entry stands for, about.
#[must_use]
pub fn count(id: EntryId, fields: &Fields) -> usize {
    let mut facts = 0;
    walk(id, fields, &mut |part| match part {
        Part::Enqueue(_, lines) => facts += lines.len(),
        Part::Dispatches { batch, ended, .. } => {
            facts += batch.rows.iter().map(|row| usize::from(!row.start_known) + usize::from(ended)).sum::<usize>();
        }
        Part::Fact(_) => facts += 1,
    });
    facts
}

/// Visits the parts of one journal entry. False when it could not be decoded.
pub fn walk(id: EntryId, fields: &Fields, visit: &mut impl FnMut(Part<'_>)) -> bool {
    let lines = fields.s.as_deref().map(append::answer_lines).unwrap_or_default();
    let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
    let refused: Vec<&str> = fields.x.as_deref().map(|x| x.split('\n').collect()).unwrap_or_default();
    let records: Vec<Record> = match fields.b.as_deref().map(rmp_serde::from_slice) {
        Some(Ok(records)) => records,
        Some(Err(_)) => return false,
        None => Vec::new(),
    };
    let mut line = 0;
    for record in records {
        match record {
            Record::Enqueue(batch) => {
                let count = batch.rows.iter().map(|row| row.3.len()).sum::<usize>();
                visit(Part::Enqueue(&batch, &lines));
                line += count;
            }
            Record::Dispatch(batch) => visit(Part::Dispatches { batch: &batch, ended: true, refused: &refused }),
            Record::Started(batch) => visit(Part::Dispatches { batch: &batch, ended: false, refused: &refused }),
            Record::Fact(fact) => {
                let result = lines.get(line).copied();
                line += 1;
                expand_fact(fact, result, fields.c.as_deref(), &refused, &mut |fact| visit(Part::Fact(fact)));
            }
        }
    }
    for row in fields.p.iter().flat_map(|p| p.split('\n')) {
        let mut parts = row.rsplitn(2, '|');
        if let (Some(entry), Some((lane, event))) = (parts.next(), parts.next().and_then(|rest| rest.split_once('|'))) {
            let mut fact = Fact::new("queue", "queue.promoted").event(event);
            fact.lane = Some(lane.to_owned());
            fact.stream_id = Some(entry.to_owned());
            visit(Part::Fact(fact));
        }
    }
    for row in fields.q.iter().flat_map(|q| q.split('\n')) {
        let mut parts = row.splitn(3, ' ');
        if let (Some(at), Some(family), Some(record)) = (parts.next(), parts.next(), parts.next()) {
            // A pause is kept under its family; steering under `<slot>|<family>`.
            let family = family.rsplit('|').next().unwrap_or(family);
            let fact = control_metadata(Fact::new("queue-control", "queue.control.expired"), record)
                .with("family", family)
                .with("expiredAtMs", at.parse::<u64>().unwrap_or(id.ms));
            visit(Part::Fact(fact));
        }
    }
    true
}

fn expand_enqueue(id: EntryId, batch: &Enqueue, lines: &[&str], push: &mut impl FnMut(Fact)) {
    for ((lane, event_id, source, bytes, unrouted), line) in batch.events().zip(lines) {
        let lane = batch.lanes.get(usize::from(lane)).cloned().unwrap_or_default();
        let (family, priority) = lane.rsplit_once(":p").unwrap_or((&lane, "2"));
        let number: u64 = priority.parse().unwrap_or(2);
        let base = |action| {
            let mut fact = Fact::new("queue", action)
                .event(event_id.clone())
                .with("eventName", family)
                .with("priority", number)
                .with("priority_label", format!("P{number}"))
                .with("source", batch.sources.get(usize::from(source)).cloned().unwrap_or_default())
                .with("bytes", bytes)
                .with("timestamp", id.ms);
            fact.lane = Some(lane.clone());
            fact
        };
        let duplicate = |by: &str, first: Option<&str>, rest: &str| {
            let (rest, differs) = rest.strip_suffix('!').map_or((rest, false), |rest| (rest, true));
            let entry = rest.rsplit('|').next().unwrap_or_default();
            base("queue.deduplicated")
                .with("by", by)
                .with("firstEventId", first.unwrap_or(&event_id))
                .with("firstStreamId", entry)
                .with("dataDiffers", differs)
        };
        match line.as_bytes().first() {
            Some(b'L') => push(base("queue.scheduled")),
            Some(b'i') => push(duplicate("id", None, &line[1..])),
            Some(b'w') => {
                let mut parts = line[1..].rsplitn(3, '|');
                let (entry, _, first) = (parts.next(), parts.next(), parts.next());
                push(duplicate("window", first, entry.unwrap_or_default()));
            }
            _ => {
                let mut fact = base("queue.enqueue");
                fact.stream_id = Some((*line).to_owned());
                if unrouted == 1 {
                    fact = fact.with("unrouted", true);
                }
                push(fact);
            }
        }
    }
}

fn expand_dispatches(batch: &Dispatches, ended: bool, refused: &[&str], push: &mut impl FnMut(Fact)) {
    for row in &batch.rows {
        let lane = batch.lanes.get(usize::from(row.lane)).cloned().unwrap_or_default();
        let (kind, target) = batch.handlers.get(usize::from(row.handler)).cloned().unwrap_or_default();
        let family = family_of(&lane).to_owned();
        let stream_id = EntryId { ms: row.ms, seq: row.seq }.to_string();
        let base = |action| {
            let mut fact = Fact::new("queue-drainer", action)
                .event(row.id.0.clone())
                .with("eventName", family.clone())
                .with("attempt", row.attempt)
                .with("handlerType", kind.clone())
                .with("handlerTarget", target.clone());
            fact.lane = Some(lane.clone());
            fact.stream_id = Some(stream_id.clone());
            fact
        };
        if !row.start_known {
            let mut started =
                base("queue.dispatch.started").with("waitTimeMs", row.wait_ms).with("startedAtMs", row.started_ms);
            if let Some(from) = row.promoted_from {
                started = started.with("promotedFrom", from);
            }
            push(started);
        }
        if ended {
            if refused.contains(&format!("{lane}|{stream_id}").as_str()) {
                push(base("queue.lease.lost").warn().with("reason", "revoked"));
            } else {
                #[allow(clippy::cast_precision_loss)]
                let duration_ms = row.duration_us as f64 / 1000.0;
                push(base("queue.dispatch.completed").with("durationMs", duration_ms));
            }
        }
    }
}

fn expand_fact(fact: Fact, line: Option<&str>, control: Option<&str>, refused: &[&str], push: &mut impl FnMut(Fact)) {
    if let (Some(lane), Some(stream_id)) = (&fact.lane, &fact.stream_id)
        && refused.contains(&format!("{lane}|{stream_id}").as_str())
    {
        return;
    }
    // A line says what became of this fact: nothing, when the thing it is about was gone or refused.
    let fact = match line {
        Some("" | "0" | "missing" | "leased" | "too_young") => return,
        Some("1" | "acked") | None => fact,
        Some(result) => fact.with("result", result),
    };
    match control {
        Some(record) => push(control_metadata(fact, record)),
        None => push(fact),
    }
}

fn control_metadata(mut fact: Fact, record: &str) -> Fact {
    match serde_json::from_str::<Value>(record) {
        Ok(Value::Object(record)) => {
            if record.get("outcome") == Some(&json!("rejected")) {
                fact.action = Cow::Borrowed("queue.control.rejected");
                fact.level = Level::Warn;
                fact.success = false;
                fact.error = record.get("error").and_then(Value::as_str).map(str::to_owned);
            }
            for (key, value) in record {
                fact.metadata.entry(key).or_insert(value);
            }
        }
        _ => {
            fact.metadata.insert("invalidRecord".into(), json!(true));
        }
    }
    fact
}
