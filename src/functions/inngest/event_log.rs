//! Events as the lanes keep them: by id, and the latest ones. Work items are no events and never shown.

use redis::streams::StreamRangeReply;

use super::super::engine::event::Event;
use super::super::ids;
use super::super::registry::INTERNAL;
use super::super::store::WORK;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::envelope::Envelope;
use crate::streams::family::{CANARY, Family};
use crate::streams::lane::Lane;
use crate::streams::redis::Error;

/// How far the clock of whoever made an id may be off, ms.
const SLACK_MS: u64 = 60_000;
/// Entries of one lane looked at for an id.
const LOOK: usize = 5_000;

/// One event where it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its lane.
    pub lane: Lane,
    /// Its stream id; the ms are when it was received.
    pub entry: EntryId,
    /// As stored.
    pub envelope: Envelope,
    /// As functions see it, with its public id.
    pub event: Event,
}

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Names that start so.
    pub prefix: Option<String>,
    /// This name only.
    pub name: Option<String>,
    /// Received at or after, ms.
    pub since_ms: Option<u64>,
    /// Received before, ms.
    pub until_ms: Option<u64>,
    /// The engine's own events too.
    pub internal: bool,
    /// At most so many, newest first.
    pub limit: usize,
}

fn read(lane: &Lane, reply: StreamRangeReply) -> Vec<Stored> {
    let stored = |row: redis::streams::StreamId| {
        let entry: EntryId = row.id.parse().ok()?;
        let envelope = Envelope::decode(&row.get::<Vec<u8>>("e")?).ok()?;
        let event = Event::of(&envelope, entry, envelope.name.as_str());
        Some(Stored { lane: lane.clone(), entry, envelope, event })
    };
    reply.ids.into_iter().filter_map(stored).collect()
}

/// Work items and canaries are events to nobody.
fn is_told(family: &Family) -> bool {
    !family.as_str().starts_with(WORK) && family.as_str() != CANARY
}

/// The latest events, newest first.
pub async fn latest(bus: &Bus, wanted: &Wanted) -> Result<Vec<Stored>, Error> {
    let lanes: Vec<Lane> = bus
        .lanes()
        .await?
        .into_iter()
        .filter(|lane| {
            let name = lane.family.as_str();
            is_told(&lane.family)
                && (wanted.internal || !name.starts_with(INTERNAL))
                && wanted.name.as_ref().is_none_or(|only| only == name)
                && wanted.prefix.as_ref().is_none_or(|prefix| name.starts_with(prefix.as_str()))
        })
        .collect();
    if lanes.is_empty() {
        return Ok(Vec::new());
    }
    let to = wanted.until_ms.map_or("+".to_owned(), |ms| ms.saturating_sub(1).to_string());
    let from = wanted.since_ms.map_or("-".to_owned(), |ms| ms.to_string());
    let mut pipeline = redis::pipe();
    for lane in &lanes {
        pipeline.cmd("XREVRANGE").arg(bus.keys.lane(lane)).arg(&to).arg(&from).arg("COUNT").arg(wanted.limit);
    }
    let mut found = Vec::new();
    for (lane, value) in lanes.iter().zip(bus.redis.pipeline(&pipeline).await?) {
        found.extend(read(lane, redis::from_redis_value(value).unwrap_or_default()));
    }
    found.sort_by_key(|stored| std::cmp::Reverse(stored.entry));
    found.truncate(wanted.limit);
    Ok(found)
}

/// The event with this id: the ULID of the event API, or the id in its envelope.
pub async fn find(bus: &Bus, id: &str) -> Result<Option<Stored>, Error> {
    let ulid = ids::parse(id);
    let as_uuid = ulid.map(|ulid| uuid::Uuid::from_u128(ulid.0).to_string());
    for text in [Some(id.to_owned()), as_uuid].into_iter().flatten() {
        for place in bus.find(&text).await?.places {
            let crate::streams::find::Place::Entry(lane, entry) = place else { continue };
            if lane.family.as_str().starts_with(WORK) {
                continue;
            }
            if let Some(stored) = at(bus, &lane, entry).await?
                && (stored.envelope.id == text || stored.event.public_id == id)
            {
                return Ok(Some(stored));
            }
        }
    }
    // The sender's own id is in the envelope: the ULID tells about when it was received.
    let Some(ulid) = ulid else { return Ok(None) };
    let ms = ulid.timestamp_ms();
    let lanes: Vec<Lane> = bus.lanes().await?.into_iter().filter(|lane| is_told(&lane.family)).collect();
    let mut pipeline = redis::pipe();
    for lane in &lanes {
        let (from, to) = (ms.saturating_sub(SLACK_MS), ms.saturating_add(SLACK_MS));
        pipeline.cmd("XRANGE").arg(bus.keys.lane(lane)).arg(from).arg(to).arg("COUNT").arg(LOOK);
    }
    if lanes.is_empty() {
        return Ok(None);
    }
    for (lane, value) in lanes.iter().zip(bus.redis.pipeline(&pipeline).await?) {
        let rows = read(lane, redis::from_redis_value(value).unwrap_or_default());
        if let Some(stored) = rows.into_iter().find(|stored| stored.event.public_id.eq_ignore_ascii_case(id)) {
            return Ok(Some(stored));
        }
    }
    Ok(None)
}

/// The event at this place.
pub async fn at(bus: &Bus, lane: &Lane, entry: EntryId) -> Result<Option<Stored>, Error> {
    let id = entry.to_string();
    let reply: StreamRangeReply =
        bus.redis.query(redis::cmd("XRANGE").arg(bus.keys.lane(lane)).arg(&id).arg(&id)).await?;
    Ok(read(lane, reply).pop())
}

/// Events whose public id begins so, by the time that such a beginning tells.
pub async fn starting_with(bus: &Bus, prefix: &str) -> Result<Vec<Stored>, Error> {
    let prefix = prefix.to_ascii_uppercase();
    // The first ten characters are the time: what is not given is open.
    let whole = |fill: char| ids::parse(&prefix.chars().chain(std::iter::repeat(fill)).take(26).collect::<String>());
    let (Some(first), Some(last)) = (whole('0'), whole('Z')) else { return Ok(Vec::new()) };
    let from = first.timestamp_ms().saturating_sub(SLACK_MS);
    let to = last.timestamp_ms().saturating_add(SLACK_MS);
    let lanes: Vec<Lane> = bus.lanes().await?.into_iter().filter(|lane| is_told(&lane.family)).collect();
    if lanes.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    for lane in &lanes {
        pipeline.cmd("XRANGE").arg(bus.keys.lane(lane)).arg(from).arg(to).arg("COUNT").arg(LOOK);
    }
    let mut found = Vec::new();
    for (lane, value) in lanes.iter().zip(bus.redis.pipeline(&pipeline).await?) {
        let rows = read(lane, redis::from_redis_value(value).unwrap_or_default());
        found.extend(rows.into_iter().filter(|stored| stored.event.public_id.starts_with(&prefix)));
    }
    Ok(found)
}
