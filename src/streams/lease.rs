//! Leases: entries read from lanes and held by a session until they are completed.
//!
//! A lease is a member of the group's pending list; its fence is the delivery count, which Redis raises with every
//! grant. Reads go over a connection of their own, because a blocking read stalls whatever shares its socket.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use serde::{Deserialize, Serialize};

use super::bus::Bus;
use super::entry_id::EntryId;
use super::family::Family;
use super::keys::GROUP;
use super::lane::Lane;
use super::priority::Priority;
use super::redis::{Error, is_connection_error};
use super::scripts;

/// One entry that this session holds.
#[derive(Debug, Clone)]
pub struct Leased {
    /// Where it is.
    pub lane: Lane,
    /// Its id; the ms part is when it was appended.
    pub id: EntryId,
    /// Field `e`: the envelope. Empty when the entry has no such field.
    pub envelope: Vec<u8>,
    /// How often it was granted, this time included: attempt number and fence.
    pub deliveries: u32,
    /// What went wrong before.
    pub failures: Failures,
    /// Present when an operator sent it round again.
    pub redrive: Option<Redrive>,
    /// When it was first appended, ms: earlier than the id's where it was brought back.
    pub enqueued_ms: u64,
}

/// Failed attempts of one entry, kept only while it waits for a retry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// Attempts that a handler ended with a failure.
    pub count: u32,
    /// The last failure.
    pub error: String,
    /// When the first was, ms.
    pub first_ms: u64,
    /// When the last was, ms.
    pub last_ms: u64,
    /// HTTP status or exit code of the last.
    pub status: Option<i32>,
    /// It was run alone after its attempts had all ended with the process: one more such end is the last.
    pub quarantined: bool,
}

/// Field `r` of a redriven entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redrive {
    /// How often it was redriven, this time included.
    pub redrives: u32,
    /// The dead letter it was.
    pub dead_id: String,
}

impl Leased {
    pub(super) fn from_parts(
        lane: Lane,
        id: EntryId,
        fields: Option<Value>,
        deliveries: i64,
        failures: Option<Value>,
    ) -> Option<Self> {
        let Some(Value::Array(fields)) = fields else { return None };
        let mut leased = Self {
            lane,
            id,
            envelope: Vec::new(),
            deliveries: u32::try_from(deliveries).unwrap_or(u32::MAX),
            failures: Failures::default(),
            redrive: None,
            enqueued_ms: id.ms,
        };
        let mut fields = fields.into_iter();
        while let (Some(name), Some(Value::BulkString(value))) = (fields.next(), fields.next()) {
            match &name {
                Value::BulkString(name) if name == b"e" => leased.envelope = value,
                Value::BulkString(name) if name == b"r" => leased.redrive = rmp_serde::from_slice(&value).ok(),
                Value::BulkString(name) if name == b"u" => leased.take_undone(&value),
                _ => {}
            }
        }
        if let Some(Value::BulkString(record)) = failures {
            leased.failures = rmp_serde::from_slice(&record).unwrap_or_default();
        }
        Some(leased)
    }

    /// Field `u` of an entry that an operator's undo brought back: `<old entry id> <old delivery count>`.
    fn take_undone(&mut self, value: &[u8]) {
        let old = std::str::from_utf8(value).ok().and_then(|text| text.split_once(' '));
        if let Some((id, count)) = old {
            self.enqueued_ms = id.parse::<EntryId>().map_or(self.enqueued_ms, |id| id.ms.min(self.id.ms));
            self.deliveries = self.deliveries.saturating_add(count.parse().unwrap_or(0));
        }
    }
}

/// Text of a bulk or simple string.
pub(super) fn text(value: Option<Value>) -> Option<String> {
    match value? {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Okay => Some("OK".into()),
        _ => None,
    }
}

/// Reads new entries for one session, blocking on its own connection.
pub struct LaneReader {
    bus: Bus,
    session: String,
    connection: Option<(MultiplexedConnection, i64)>,
}

/// A lane as a read names it.
#[derive(Debug, Clone)]
pub struct ReadLane {
    /// The lane.
    pub lane: Lane,
    /// Its stream key.
    pub key: String,
}

impl LaneReader {
    /// A reader for `session`.
    #[must_use]
    pub fn new(bus: Bus, session: String) -> Self {
        Self { bus, session, connection: None }
    }

    /// Connects, and returns the connection's id, which `CLIENT UNBLOCK` takes.
    pub async fn connect(&mut self) -> Result<i64, Error> {
        if let Some((_, id)) = &self.connection {
            return Ok(*id);
        }
        let mut connection = self.bus.redis.dedicated().await?;
        let mut cmd = redis::cmd("CLIENT");
        cmd.arg("ID");
        let id = self.within(Duration::from_secs(2), cmd.query_async(&mut connection)).await?;
        self.connection = Some((connection, id));
        Ok(id)
    }

    /// Reads up to `count` entries of each lane, and the pauses' counter right after: a pause set before the read is
    /// known from it. With `block`, waits that long for the first entry.
    pub async fn read(
        &mut self,
        lanes: &[ReadLane],
        count: usize,
        block: Option<Duration>,
    ) -> Result<(Vec<Leased>, u64), Error> {
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP").arg(GROUP).arg(&self.session).arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(1).max(1));
        }
        cmd.arg("STREAMS");
        for lane in lanes {
            cmd.arg(&lane.key);
        }
        for _ in lanes {
            cmd.arg(">");
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(cmd);
        pipeline.cmd("HGET").arg(self.bus.keys.meta()).arg("rev");
        let mut replies = self.blocking(&pipeline, block).await?.into_iter();
        let read = replies.next().unwrap_or_default().extract_error().map_err(Error::Refused)?;
        let rev: Option<u64> = replies.next().and_then(|rev| redis::from_redis_value(rev).ok()).flatten();
        Ok((parse_read(read, lanes)?, rev.unwrap_or(0)))
    }

    /// Waits up to `block` for a wake token. True when one came.
    pub async fn wait_for_wake(&mut self, block: Duration) -> Result<bool, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("BLPOP").arg(self.bus.keys.wake()).arg(block.as_secs_f64());
        let token = self.blocking(&pipeline, Some(block)).await?.pop().unwrap_or_default();
        Ok(!matches!(token.extract_error().map_err(Error::Refused)?, Value::Nil))
    }

    pub(super) async fn blocking(&mut self, pipeline: &Pipeline, block: Option<Duration>) -> Result<Vec<Value>, Error> {
        self.connect().await?;
        let Some((mut connection, _)) = self.connection.clone() else {
            return Err(Error::Reply { command: "XREADGROUP", detail: "no connection".into() });
        };
        let deadline = block.unwrap_or_default() + Duration::from_secs(2);
        let answer = connection.send_packed_commands(pipeline, 0, pipeline.len());
        let outcome = self.within(deadline, answer).await;
        if outcome.as_ref().is_err_and(Error::is_unreachable) {
            // The server may still be blocked on our behalf; that ends with the socket.
            self.connection = None;
        }
        outcome
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        answer: impl Future<Output = redis::RedisResult<T>>,
    ) -> Result<T, Error> {
        let redis = || self.bus.redis.display().to_owned();
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) if is_connection_error(&source) => {
                Err(Error::Unreachable { redis: redis(), sent: true, source })
            }
            Ok(Err(source)) => Err(Error::Refused(source)),
            Err(_) => {
                let timeout_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                Err(Error::Timeout { redis: redis(), sent: true, timeout_ms })
            }
        }
    }
}

/// `XREADGROUP`'s reply names streams in the order asked, leaving out those without entries.
pub(super) fn parse_read(reply: Value, lanes: &[ReadLane]) -> Result<Vec<Leased>, Error> {
    let unexpected = |detail: &str| Error::Reply { command: "XREADGROUP", detail: detail.into() };
    let streams: Vec<(Value, Value)> = match reply {
        Value::Nil => return Ok(Vec::new()),
        Value::Map(pairs) => pairs,
        Value::Array(rows) => rows
            .into_iter()
            .filter_map(|row| match row {
                Value::Array(pair) => {
                    let mut pair = pair.into_iter();
                    Some((pair.next()?, pair.next()?))
                }
                _ => None,
            })
            .collect(),
        _ => return Err(unexpected("not an array")),
    };
    let mut leased = Vec::new();
    let mut rest = lanes.iter();
    for (key, rows) in streams {
        let Value::BulkString(key) = key else { return Err(unexpected("a key that is no string")) };
        let lane = rest.find(|lane| lane.key.as_bytes() == key).ok_or_else(|| unexpected("an unknown key"))?;
        let Value::Array(rows) = rows else { continue };
        leased.reserve(rows.len());
        for row in rows {
            let Value::Array(row) = row else { continue };
            let mut row = row.into_iter();
            let id = match row.next() {
                Some(Value::BulkString(id)) => EntryId::from_bytes(&id),
                _ => None,
            };
            let id = id.ok_or_else(|| unexpected("an entry without id"))?;
            leased.extend(Leased::from_parts(lane.lane.clone(), id, row.next(), 1, None));
        }
    }
    Ok(leased)
}

impl Bus {
    /// Ends a blocking read of the connection `client`. False when it was not blocked.
    pub async fn unblock(&self, client: i64) -> Result<bool, Error> {
        let woken: i64 = self.redis.query(redis::cmd("CLIENT").arg("UNBLOCK").arg(client)).await?;
        Ok(woken == 1)
    }

    /// Creates the group of `lane` at the beginning. True when it was missing: the stream had been deleted by hand or
    /// evicted.
    pub async fn create_group(&self, lane: &Lane) -> Result<bool, Error> {
        let mut cmd = redis::cmd("XGROUP");
        cmd.arg("CREATE").arg(self.keys.lane(lane)).arg(GROUP).arg("0").arg("MKSTREAM");
        match self.redis.query::<Value>(&cmd).await {
            Ok(_) => Ok(true),
            Err(error) if error.reply_code() == Some("BUSYGROUP") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every known lane.
    pub async fn lanes(&self) -> Result<Vec<Lane>, Error> {
        let names: Vec<String> = self.redis.query(redis::cmd("HKEYS").arg(self.keys.lanes())).await?;
        let mut lanes: Vec<Lane> = names.iter().filter_map(|name| name.parse().ok()).collect();
        lanes.sort();
        Ok(lanes)
    }

    /// Takes `lanes` off the ready set before they are read: an append in between puts them back.
    pub async fn take_ready(&self, limit: usize) -> Result<Vec<Lane>, Error> {
        let names: Vec<String> = self.redis.query(redis::cmd("SPOP").arg(self.keys.ready()).arg(limit)).await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Claims up to `limit` retries and handed-back entries of `family` whose time has come.
    pub async fn claim_due(&self, session: &str, family: &Family, limit: usize) -> Result<Vec<Leased>, Error> {
        let mut call = Self::call(&scripts::DUE)
            .key(self.keys.sessions())
            .key(self.keys.due())
            .key(self.keys.due_of(family))
            .key(self.keys.failures_of(family))
            .arg(session)
            .arg(family.as_str())
            .number(limit);
        for priority in Priority::ALL {
            call.push_key(self.keys.lane(&Lane::new(family.clone(), priority)));
        }
        let rows: Vec<Value> = self.redis.run(call).await?;
        let parse = |row: Value| {
            let Value::Array(row) = row else { return None };
            let mut row = row.into_iter();
            let Some(Value::Int(priority)) = row.next() else { return None };
            let lane = Lane::new(family.clone(), Priority::from_number(u64::try_from(priority).ok()?)?);
            let id: EntryId = text(row.next())?.parse().ok()?;
            let Some(Value::Int(deliveries)) = row.next() else { return None };
            Leased::from_parts(lane, id, row.next(), deliveries, row.next())
        };
        rows.into_iter()
            .map(parse)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::Reply { command: "due.lua", detail: "not its documented shape".into() })
    }

    /// Families with something due, and when the earliest of each is, ms.
    pub async fn due_families(&self) -> Result<Vec<(Family, u64)>, Error> {
        let rows: Vec<(String, f64)> =
            self.redis.query(redis::cmd("ZRANGE").arg(self.keys.due()).arg(0).arg(-1).arg("WITHSCORES")).await?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let parse = |(name, score): (String, f64)| Some((name.parse().ok()?, score.max(0.0) as u64));
        Ok(rows.into_iter().filter_map(parse).collect())
    }

    /// When the next retry of `family` is due, ms.
    pub async fn next_due(&self, family: &Family) -> Result<Option<u64>, Error> {
        let score: Option<f64> =
            self.redis.query(redis::cmd("ZSCORE").arg(self.keys.due()).arg(family.as_str())).await?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(score.map(|ms| ms.max(0.0) as u64))
    }

    /// Stores what is known of an entry's failed attempts.
    pub async fn mark_failures(&self, lane: &Lane, id: EntryId, failures: &Failures) -> Result<(), Error> {
        let record = rmp_serde::to_vec_named(failures)
            .map_err(|error| Error::Reply { command: "HSET failures", detail: error.to_string() })?;
        let mut cmd = redis::cmd("HSET");
        let member = format!("p{}|{id}", lane.priority.number());
        cmd.arg(self.keys.failures_of(&lane.family)).arg(member).arg(record);
        self.redis.query::<Value>(&cmd).await?;
        Ok(())
    }

    /// Entries waiting or pending in `lanes`, as far as Redis can tell at once.
    pub async fn waiting_estimate(&self, lanes: &[Lane]) -> Result<u64, Error> {
        let mut total = 0;
        for chunk in lanes.chunks(256) {
            let mut pipeline = redis::pipe();
            for lane in chunk {
                pipeline.cmd("XINFO").arg("GROUPS").arg(self.keys.lane(lane));
            }
            for reply in self.redis.pipeline_values(&pipeline).await? {
                let groups: Vec<std::collections::HashMap<String, Value>> =
                    redis::from_redis_value(reply).unwrap_or_default();
                let number = |group: &std::collections::HashMap<String, Value>, name| match group.get(name) {
                    Some(Value::Int(number)) => u64::try_from(*number).unwrap_or(0),
                    _ => 0,
                };
                total += groups.iter().map(|group| number(group, "lag") + number(group, "pending")).sum::<u64>();
            }
        }
        Ok(total)
    }

    /// How many entries of `family` wait for a retry.
    pub async fn due_count(&self, family: &Family) -> Result<u64, Error> {
        self.redis.query(redis::cmd("ZCARD").arg(self.keys.due_of(family))).await
    }

    /// Moves scheduled events whose time has come into their lanes. Returns how many, and when the next is due, ms.
    pub async fn promote_later(&self, limit: usize) -> Result<(usize, Option<u64>), Error> {
        use super::keys::MAX_BLOCKING_LANES;
        let call = Self::call(&scripts::LATER)
            .key(self.keys.later())
            .key(self.keys.later_data())
            .key(self.keys.journal())
            .key(self.keys.lanes())
            .key(self.keys.families())
            .key(self.keys.ready())
            .key(self.keys.wake())
            .arg(self.keys.tag())
            .arg(self.keys.ctl())
            .number(limit)
            .number(MAX_BLOCKING_LANES);
        let (moved, next): (Vec<String>, String) = self.redis.run(call).await?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let next = next.parse::<f64>().ok().map(|ms| ms.max(0.0) as u64);
        Ok((moved.len(), next))
    }
}
