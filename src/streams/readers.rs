//! Readers of the journal: projections and sinks. Each has a name, a cursor and a lease.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:journal:cursors` | hash: name → `<entry id>,<required>,<seconds>,<batches up to it>` | `project.lua` |
//! | `:journal:lease:<name>` | string, PX: owner | the same |
//! | `:journal:state:<name>` | string: what it must remember | the same |
//!
//! # Invariants
//! 1. A cursor moves together with what was made of the batches before it (minute hashes), or, for a sink, after its
//!    durable write.
//! 2. It moves only from where its mover had read it: two movers can't both count a batch.
//! 3. Retention never passes the cursor of a required reader.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::bus::Bus;
use super::entry_id::EntryId;
use super::redis::Error;
use super::scripts;

/// Where a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The last batch it is done with.
    pub id: EntryId,
    /// Retention waits for it.
    pub is_required: bool,
    /// When it last moved, ms.
    pub moved_ms: u64,
    /// Batches of the journal up to it, since the journal began; `None` after an operator moved it.
    pub passed: Option<u64>,
}

/// Where the journal ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct End {
    /// Its last batch.
    pub id: EntryId,
    /// Batches ever written.
    pub added: u64,
    /// Batches that are still there.
    pub length: u64,
}

impl End {
    /// Batches that a reader has not passed. All that are there, where nobody knows.
    #[must_use]
    pub fn behind(&self, cursor: &Cursor) -> u64 {
        if cursor.id >= self.id {
            return 0;
        }
        cursor.passed.map_or(self.length, |passed| self.added.saturating_sub(passed).min(self.length))
    }
}

/// A stretch of the journal that a reader is done with.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    /// The cursor it was read from.
    pub from: EntryId,
    /// Its last batch.
    pub to: EntryId,
    /// How many batches it has.
    pub batches: usize,
    /// Nothing came behind it.
    pub is_last: bool,
}

/// What an attempt to hold or move a cursor found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Ours, standing there.
    Ours {
        /// The cursor.
        cursor: EntryId,
        /// What it must remember; only when asked for.
        state: String,
    },
    /// Somebody else reads under this name.
    Theirs(String),
    /// The cursor was elsewhere: what was made of the batches is not written.
    Moved(EntryId),
}

/// One minute hash and what is written to it.
#[derive(Debug, Clone)]
pub struct MinuteWrite {
    /// The key.
    pub key: String,
    /// When Redis may forget it, ms since the epoch.
    pub expires_ms: u64,
    /// It is emptied first.
    pub is_fresh: bool,
    /// Field, value.
    pub fields: Vec<(String, Vec<u8>)>,
}

/// Who reads, and for how long that holds.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The name.
    pub name: &'static str,
    /// This process.
    pub owner: String,
    /// How long the lease holds without a call.
    pub lease: Duration,
    /// Retention waits for it.
    pub is_required: bool,
}

impl Bus {
    /// Takes or renews the lease of a reader; its cursor and state where it is ours.
    pub async fn hold_reader(&self, reader: &Reader) -> Result<Held, Error> {
        self.project(reader, None, "", &[]).await
    }

    /// Moves a cursor over a stretch, with what was made of its batches.
    pub async fn move_reader(
        &self,
        reader: &Reader,
        stretch: Stretch,
        state: &str,
        minutes: &[MinuteWrite],
    ) -> Result<Held, Error> {
        self.project(reader, Some(stretch), state, minutes).await
    }

    async fn project(
        &self,
        reader: &Reader,
        step: Option<Stretch>,
        state: &str,
        minutes: &[MinuteWrite],
    ) -> Result<Held, Error> {
        let text = |id: Option<EntryId>| id.map(|id| id.to_string()).unwrap_or_default();
        let mut call = Self::call(&scripts::PROJECT)
            .key(self.keys.cursors())
            .key(self.keys.reader_lease(reader.name))
            .key(self.keys.reader_state(reader.name))
            .key(self.keys.journal())
            .arg(reader.name)
            .arg(reader.owner.clone())
            .number(reader.lease.as_millis())
            .arg(text(step.map(|stretch| stretch.from)))
            .arg(text(step.map(|stretch| stretch.to)))
            .arg(state)
            .arg(if reader.is_required { "1" } else { "0" })
            .number(step.map_or(0, |stretch| stretch.batches))
            .arg(if step.is_some_and(|stretch| stretch.is_last) { "1" } else { "" });
        for minute in minutes {
            call.push_key(minute.key.clone());
            call =
                call.number(minute.expires_ms).arg(if minute.is_fresh { "1" } else { "" }).number(minute.fields.len());
            for (field, value) in &minute.fields {
                call.push_arg(field.clone());
                call.push_arg(value.clone());
            }
        }
        let reply: Vec<String> = self.redis.run(call).await?;
        let bad = || Error::Reply { command: "project.lua", detail: reply.join(" ") };
        match reply.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["ok", cursor, state] => {
                Ok(Held::Ours { cursor: cursor.parse().map_err(|_| bad())?, state: (*state).to_owned() })
            }
            ["held", owner] => Ok(Held::Theirs((*owner).to_owned())),
            ["moved", cursor] => Ok(Held::Moved(cursor.parse().map_err(|_| bad())?)),
            _ => Err(bad()),
        }
    }

    /// Every reader and where it is.
    pub async fn readers(&self) -> Result<BTreeMap<String, Cursor>, Error> {
        let rows: BTreeMap<String, String> = self.redis.query(redis::cmd("HGETALL").arg(self.keys.cursors())).await?;
        let parse = |row: &str| {
            let mut parts = row.split(',');
            Some(Cursor {
                id: parts.next()?.parse().ok()?,
                is_required: parts.next()? == "1",
                moved_ms: parts.next()?.parse::<u64>().ok()? * 1000,
                passed: parts.next().and_then(|count| count.parse().ok()),
            })
        };
        Ok(rows.into_iter().filter_map(|(name, row)| Some((name, parse(&row)?))).collect())
    }

    /// Puts a reader's cursor somewhere else, on an operator's word; whoever reads goes on there.
    pub async fn set_reader(&self, name: &str, cursor: EntryId, is_required: bool) -> Result<(), Error> {
        let row = format!("{cursor},{},{}", u8::from(is_required), self.now_ms().await? / 1000);
        self.redis.query::<u64>(redis::cmd("HSET").arg(self.keys.cursors()).arg(name).arg(row)).await.map(|_| ())
    }

    /// Forgets a reader, cursor and state: retention no longer waits for it, and it would begin anew.
    pub async fn forget_reader(&self, name: &str) -> Result<(), Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HDEL").arg(self.keys.cursors()).arg(name);
        pipeline.cmd("DEL").arg(self.keys.reader_state(name)).arg(self.keys.reader_lease(name));
        self.redis.pipeline(&pipeline).await.map(|_| ())
    }

    /// Ends our lease, so that the next reader need not wait for its end.
    pub async fn release_reader(&self, reader: &Reader) -> Result<(), Error> {
        let key = self.keys.reader_lease(reader.name);
        let holder: Option<String> = self.redis.query(redis::cmd("GET").arg(&key)).await?;
        if holder.as_deref() == Some(reader.owner.as_str()) {
            self.redis.query::<redis::Value>(redis::cmd("DEL").arg(&key)).await?;
        }
        Ok(())
    }

    /// Where the journal ends.
    pub async fn journal_end(&self) -> Result<End, Error> {
        let key = self.keys.journal();
        // XINFO is an error without a key.
        if !self.redis.query::<bool>(redis::cmd("EXISTS").arg(&key)).await? {
            return Ok(End::default());
        }
        let info: HashMap<String, redis::Value> = self.redis.query(redis::cmd("XINFO").arg("STREAM").arg(&key)).await?;
        let number = |name: &str| match info.get(name) {
            Some(redis::Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let id = match info.get("last-generated-id") {
            Some(redis::Value::BulkString(text)) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        match (id, number("entries-added"), number("length")) {
            (Some(id), Some(added), Some(length)) => Ok(End { id, added, length }),
            _ => {
                Err(Error::Reply { command: "XINFO STREAM", detail: "lacks last-generated-id or entries-added".into() })
            }
        }
    }
}
