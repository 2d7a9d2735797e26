//! Rows of streams and pending lists as Redis answers them, and what one lane looks like right now. Reads only.
//!
//! A lane without its group (never used, deleted by hand, evicted) reads as empty, not as an error: `queue fsck` is
//! the one place that reports it.

use std::collections::HashMap;

use redis::Value;
use serde::Deserialize;

use super::bus::Bus;
use super::entry_id::EntryId;
use super::keys::{GROUP, HANDBACK_CONSUMER, RETRY_CONSUMER};
use super::lane::Lane;
use super::redis::Error;

/// Lanes asked about in one round trip.
pub(super) const CHUNK: usize = 256;

/// A stream entry as `XRANGE` answers it.
pub(super) type RawRow = (String, HashMap<Vec<u8>, Vec<u8>>);

/// One stream entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub id: EntryId,
    pub fields: HashMap<Vec<u8>, Vec<u8>>,
}

/// The part of an envelope by which an event is found; readable even where the rest is not.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Identity {
    pub id: String,
}

impl Row {
    pub(super) fn parse((id, fields): RawRow) -> Option<Self> {
        Some(Self { id: id.parse().ok()?, fields })
    }

    pub(super) fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.get(name.as_bytes()).map(Vec::as_slice)
    }

    pub(super) fn envelope(&self) -> &[u8] {
        self.field("e").unwrap_or_default()
    }

    pub(super) fn event_id(&self) -> Option<String> {
        rmp_serde::from_slice::<Identity>(self.envelope()).ok().map(|identity| identity.id)
    }

    /// When it was first appended, ms, and the deliveries before an operator's undo brought it back.
    pub(super) fn first_append(&self) -> (u64, u32) {
        let undone = self.field("u").and_then(|value| std::str::from_utf8(value).ok()?.split_once(' '));
        let Some((id, count)) = undone else { return (self.id.ms, 0) };
        (id.parse::<EntryId>().map_or(self.id.ms, |id| id.ms.min(self.id.ms)), count.parse().unwrap_or(0))
    }
}

/// One pending entry.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub id: EntryId,
    pub owner: String,
    pub idle_ms: u64,
    pub deliveries: u32,
}

/// What Redis knows about one lane.
#[derive(Debug, Clone)]
pub(super) struct LaneState {
    pub lane: Lane,
    pub has_group: bool,
    /// What the group has read up to.
    pub cursor: EntryId,
    pub length: u64,
    /// `None` after an undelivered entry was deleted, until the cursor has passed it.
    pub lag: Option<u64>,
    pub oldest_pending: Option<EntryId>,
    pub newest_pending: Option<EntryId>,
    /// Owner → entries.
    pub owners: Vec<(String, u64)>,
}

impl LaneState {
    pub(super) fn pending(&self) -> u64 {
        self.owners.iter().map(|(_, count)| count).sum()
    }

    /// How many wait undelivered, where Redis can say.
    pub(super) fn waiting(&self) -> Option<u64> {
        if self.length == 0 {
            return Some(0);
        }
        // After a trim past the cursor Redis reports more than there is.
        self.lag.filter(|lag| *lag <= self.length)
    }
}

pub(super) fn is_retry(owner: &str) -> bool {
    owner == RETRY_CONSUMER
}

pub(super) fn is_handback(owner: &str) -> bool {
    owner == HANDBACK_CONSUMER
}

/// `p<0-3>|<entry id>`, as the due set and the failures hash name an entry.
pub(super) fn member(lane: &Lane, id: EntryId) -> String {
    format!("p{}|{id}", lane.priority.number())
}

pub(super) fn convert<T: redis::FromRedisValue>(value: Value, command: &'static str) -> Result<T, Error> {
    redis::from_redis_value(value).map_err(|error| Error::Reply { command, detail: error.to_string() })
}

fn range(key: &str, from: &str, to: &str, count: usize) -> redis::Cmd {
    let mut cmd = redis::cmd("XRANGE");
    cmd.arg(key).arg(from).arg(to).arg("COUNT").arg(count);
    cmd
}

fn pending_range(key: &str, from: &str, to: &str, count: usize) -> redis::Cmd {
    let mut cmd = redis::cmd("XPENDING");
    cmd.arg(key).arg(GROUP).arg(from).arg(to).arg(count);
    cmd
}

fn parse_pending(value: Value) -> Vec<Pending> {
    // NOGROUP, or no such stream: nothing is pending.
    let rows: Vec<(String, String, u64, u32)> = redis::from_redis_value(value).unwrap_or_default();
    let parse = |(id, owner, idle_ms, deliveries): (String, String, u64, u32)| {
        Some(Pending { id: id.parse().ok()?, owner, idle_ms, deliveries })
    };
    rows.into_iter().filter_map(parse).collect()
}

impl Bus {
    /// Entries of a stream from `from` to `to`, both as `XRANGE` takes them.
    pub(super) async fn rows(&self, key: &str, from: &str, to: &str, count: usize) -> Result<Vec<Row>, Error> {
        let rows: Vec<RawRow> = self.redis.query(&range(key, from, to, count)).await?;
        Ok(rows.into_iter().filter_map(Row::parse).collect())
    }

    /// Entries of a stream, newest first.
    pub(super) async fn rows_back(&self, key: &str, from: &str, to: &str, count: usize) -> Result<Vec<Row>, Error> {
        let mut cmd = redis::cmd("XREVRANGE");
        cmd.arg(key).arg(from).arg(to).arg("COUNT").arg(count);
        let rows: Vec<RawRow> = self.redis.query(&cmd).await?;
        Ok(rows.into_iter().filter_map(Row::parse).collect())
    }

    /// One entry of a stream.
    pub(super) async fn row(&self, key: &str, id: EntryId) -> Result<Option<Row>, Error> {
        Ok(self.rows(key, &id.to_string(), &id.to_string(), 1).await?.pop())
    }

    /// The entry of each id in one stream; `None` where it is gone.
    pub(super) async fn rows_each(&self, key: &str, ids: &[EntryId]) -> Result<Vec<Option<Row>>, Error> {
        let mut all = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for id in chunk {
                let id = id.to_string();
                pipeline.add_command(range(key, &id, &id, 1));
            }
            for reply in self.redis.pipeline(&pipeline).await? {
                let rows: Vec<RawRow> = convert(reply, "XRANGE")?;
                all.push(rows.into_iter().find_map(Row::parse));
            }
        }
        Ok(all)
    }

    /// The same range of many lanes, in chunks. An entry that is gone leaves its place empty.
    pub(super) async fn rows_of(&self, asked: &[(Lane, String, String)], count: usize) -> Result<Vec<Vec<Row>>, Error> {
        let mut all = Vec::with_capacity(asked.len());
        for chunk in asked.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for (lane, from, to) in chunk {
                pipeline.add_command(range(&self.keys.lane(lane), from, to, count));
            }
            for reply in self.redis.pipeline(&pipeline).await? {
                let rows: Vec<RawRow> = convert(reply, "XRANGE")?;
                all.push(rows.into_iter().filter_map(Row::parse).collect());
            }
        }
        Ok(all)
    }

    /// Pending entries of one lane from `from` on.
    pub(super) async fn pending_rows(&self, lane: &Lane, from: &str, count: usize) -> Result<Vec<Pending>, Error> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(pending_range(&self.keys.lane(lane), from, "+", count));
        let reply = self.redis.pipeline_values(&pipeline).await?.pop().unwrap_or(Value::Nil);
        Ok(parse_pending(reply))
    }

    /// The pending entry of each id, where there is one.
    pub(super) async fn pending_each(&self, ids: &[(Lane, EntryId)]) -> Result<Vec<Option<Pending>>, Error> {
        let mut all = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for (lane, id) in chunk {
                let id = id.to_string();
                pipeline.add_command(pending_range(&self.keys.lane(lane), &id, &id, 1));
            }
            let replies = self.redis.pipeline_values(&pipeline).await?;
            all.extend(replies.into_iter().map(|reply| parse_pending(reply).pop()));
        }
        Ok(all)
    }

    /// Session → heartbeat expiry, ms; 0 once fenced.
    pub(super) async fn session_expiries(&self) -> Result<HashMap<String, u64>, Error> {
        let rows: Vec<(String, f64)> =
            self.redis.query(redis::cmd("ZRANGE").arg(self.keys.sessions()).arg(0).arg(-1).arg("WITHSCORES")).await?;
        Ok(rows.into_iter().map(|(session, score)| (session, score_ms(score))).collect())
    }

    /// Cursor, length and owners of each lane: O(1) in entries, three commands a lane.
    pub(super) async fn lane_states(&self, lanes: &[Lane]) -> Result<Vec<LaneState>, Error> {
        let mut states = Vec::with_capacity(lanes.len());
        for chunk in lanes.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for lane in chunk {
                let key = self.keys.lane(lane);
                pipeline.cmd("XINFO").arg("GROUPS").arg(&key);
                pipeline.cmd("XLEN").arg(&key);
                pipeline.cmd("XPENDING").arg(&key).arg(GROUP);
            }
            let mut replies = self.redis.pipeline_values(&pipeline).await?.into_iter();
            for lane in chunk {
                let mut next = || replies.next().unwrap_or(Value::Nil);
                states.push(lane_state(lane, next(), next(), next()));
            }
        }
        Ok(states)
    }
}

/// `XPENDING` without a range: count, smallest id, largest id, owners.
type PendingSummary = (u64, Option<String>, Option<String>, Option<Vec<(String, u64)>>);

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) const fn score_ms(score: f64) -> u64 {
    if score > 0.0 { score as u64 } else { 0 }
}

fn lane_state(lane: &Lane, groups: Value, length: Value, pending: Value) -> LaneState {
    let groups: Vec<HashMap<String, Value>> = redis::from_redis_value(groups).unwrap_or_default();
    let text = |value: &Value| redis::from_redis_value_ref::<String>(value).unwrap_or_default();
    let group = groups.into_iter().find(|group| group.get("name").map(text).as_deref() == Some(GROUP));
    let (_, oldest, newest, owners): PendingSummary = redis::from_redis_value(pending).unwrap_or_default();
    let id = |text: Option<String>| text.and_then(|text| text.parse().ok());
    let field = |name: &str| group.as_ref().and_then(|group| group.get(name));
    LaneState {
        lane: lane.clone(),
        has_group: group.is_some(),
        cursor: field("last-delivered-id").map(text).and_then(|id| id.parse().ok()).unwrap_or_default(),
        length: redis::from_redis_value(length).unwrap_or(0),
        lag: field("lag").and_then(|lag| redis::from_redis_value_ref(lag).ok()),
        oldest_pending: id(oldest),
        newest_pending: id(newest),
        owners: owners.unwrap_or_default(),
    }
}
