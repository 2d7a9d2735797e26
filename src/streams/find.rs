//! Finding an event by any of its ids. Reads only.
//!
//! Nothing is indexed for this: a search is bounded by time (a UUIDv7 carries its own) and by count, and says when it
//! was cut short.

use std::collections::HashSet;

use super::bus::Bus;
use super::complete::DeadRecord;
use super::entry_id::EntryId;
use super::envelope::Envelope;
use super::family::Family;
use super::lane::Lane;
use super::public_id::public_id;
use super::redis::Error;
use super::rows::{CHUNK, Row, convert, score_ms};

/// Entries looked at per lane when an event is searched by content.
pub(super) const SCAN_PER_LANE: usize = 2_000;
/// Dead letters looked at.
pub(super) const SCAN_DEAD: usize = 5_000;
/// Shortest prefix that is searched for.
pub const MIN_PREFIX: usize = 8;
/// How far a sender's clock may be off from Redis's, ms.
const CLOCK_SLACK_MS: u64 = 120_000;

/// One place where an id was found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// An entry of a lane.
    Entry(Lane, EntryId),
    /// A scheduled event: lane, event id, when it is due, ms.
    Later(Lane, String, u64),
    /// A dead letter.
    Dead(EntryId),
}

/// What a search found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Every match; several for a stream id that two lanes share, or a prefix that is not unique.
    pub places: Vec<Place>,
    /// Not everything was looked at.
    pub cut: bool,
}

/// How an id is compared.
#[derive(Clone, Copy)]
struct Needle<'a> {
    text: &'a str,
    prefix: bool,
}

impl Needle<'_> {
    fn matches(self, id: &str) -> bool {
        if self.prefix { id.starts_with(self.text) } else { id == self.text }
    }

    /// The ms in which a UUIDv7 was made, or the span that its first 8 digits leave open.
    fn made(self) -> Option<(u64, u64)> {
        let hex: String = self.text.chars().filter(|c| *c != '-').take(12).collect();
        let is_uuid = uuid::Uuid::try_parse(self.text).is_ok_and(|uuid| uuid.get_version_num() == 7);
        if hex.len() < MIN_PREFIX || !(is_uuid || self.prefix) {
            return None;
        }
        let open = 4 * (12 - u32::try_from(hex.len()).ok()?);
        let from = u64::from_str_radix(&hex, 16).ok()? << open;
        Some((from, from + (1 << open) - 1))
    }
}

impl Bus {
    /// Resolves a stream id, an event id, a dead letter's id, or a prefix of one of them of at least [`MIN_PREFIX`]
    /// characters.
    pub async fn find(&self, id: &str) -> Result<Found, Error> {
        let id = id.trim();
        let lanes = self.lanes().await?;
        if let Ok(entry) = id.parse::<EntryId>() {
            let found = self.find_entry(&lanes, entry).await?;
            if !found.places.is_empty() {
                return Ok(found);
            }
        }
        let exact = self.find_event(&lanes, Needle { text: id, prefix: false }).await?;
        if !exact.places.is_empty() || id.len() < MIN_PREFIX {
            return Ok(exact);
        }
        let mut found = self.find_event(&lanes, Needle { text: id, prefix: true }).await?;
        if let Some((from, to)) = stream_span(id) {
            for place in self.find_span(&lanes, id, from, to).await? {
                if !found.places.contains(&place) {
                    found.places.push(place);
                }
            }
        }
        found.cut |= exact.cut;
        Ok(found)
    }

    /// The ULID by which the event API knows the entry at this place.
    pub async fn stored_public_id(&self, lane: &Lane, entry: EntryId) -> Result<Option<String>, Error> {
        let row = self.row(&self.keys.lane(lane), entry).await?;
        let envelope = row.and_then(|row| Envelope::decode(row.envelope()).ok());
        Ok(envelope.map(|envelope| public_id(&envelope, entry)))
    }

    async fn find_entry(&self, lanes: &[Lane], id: EntryId) -> Result<Found, Error> {
        let text = id.to_string();
        let asked: Vec<_> = lanes.iter().map(|lane| (lane.clone(), text.clone(), text.clone())).collect();
        let rows = self.rows_of(&asked, 1).await?;
        let mut found = Found::default();
        found.places.extend(
            lanes.iter().zip(rows).filter(|(_, rows)| !rows.is_empty()).map(|(lane, _)| Place::Entry(lane.clone(), id)),
        );
        if self.row(&self.keys.dead(), id).await?.is_some() {
            found.places.push(Place::Dead(id));
        }
        Ok(found)
    }

    async fn find_span(&self, lanes: &[Lane], prefix: &str, from: u64, to: u64) -> Result<Vec<Place>, Error> {
        let asked: Vec<_> = lanes.iter().map(|lane| (lane.clone(), from.to_string(), to.to_string())).collect();
        let mut places = Vec::new();
        for (lane, rows) in lanes.iter().zip(self.rows_of(&asked, 20).await?) {
            let matching = rows.iter().filter(|row| row.id.to_string().starts_with(prefix));
            places.extend(matching.map(|row| Place::Entry(lane.clone(), row.id)));
        }
        let dead = self.rows(&self.keys.dead(), &from.to_string(), &to.to_string(), 20).await?;
        let matching = dead.iter().filter(|row| row.id.to_string().starts_with(prefix));
        places.extend(matching.map(|row| Place::Dead(row.id)));
        Ok(places)
    }

    async fn find_event(&self, lanes: &[Lane], needle: Needle<'_>) -> Result<Found, Error> {
        let mut found = self.find_later(lanes, needle).await?;
        let span = needle.made().map(|(from, to)| {
            (from.saturating_sub(CLOCK_SLACK_MS).to_string(), to.saturating_add(CLOCK_SLACK_MS).to_string())
        });
        let (from, to) = span.clone().unwrap_or_else(|| ("-".into(), "+".into()));
        if span.is_none() && !needle.prefix {
            found.places.extend(self.find_seen(lanes, needle.text).await?);
        }
        if found.places.is_empty() {
            for lane in lanes {
                let key = self.keys.lane(lane);
                let rows = self.rows_back(&key, &to, &from, SCAN_PER_LANE).await?;
                found.cut |= rows.len() == SCAN_PER_LANE;
                let matching = rows.iter().filter(|row| row.event_id().is_some_and(|id| needle.matches(&id)));
                found.places.extend(matching.map(|row| Place::Entry(lane.clone(), row.id)));
            }
            // An entry that was redriven or brought back is younger than its id.
            if found.places.is_empty() && span.is_some() {
                for lane in lanes {
                    let rows = self.rows_back(&self.keys.lane(lane), "+", &from, SCAN_PER_LANE).await?;
                    found.cut |= rows.len() == SCAN_PER_LANE;
                    let again = rows.iter().filter(|row| row.field("r").or_else(|| row.field("u")).is_some());
                    let matching = again.filter(|row| row.event_id().is_some_and(|id| needle.matches(&id)));
                    found.places.extend(matching.map(|row| Place::Entry(lane.clone(), row.id)));
                }
            }
        }
        let from = if span.is_some() { from } else { "-".into() };
        let dead = self.rows_back(&self.keys.dead(), "+", &from, SCAN_DEAD).await?;
        found.cut |= dead.len() == SCAN_DEAD;
        let matching = dead.iter().filter(|row| row.event_id().is_some_and(|id| needle.matches(&id)));
        found.places.extend(matching.map(|row| Place::Dead(row.id)));
        drop_origins_of_dead(&mut found, &dead);
        Ok(found)
    }

    async fn find_later(&self, lanes: &[Lane], needle: Needle<'_>) -> Result<Found, Error> {
        let mut found = Found::default();
        if needle.prefix {
            let rows: Vec<(String, f64)> = self
                .redis
                .query(redis::cmd("ZRANGE").arg(self.keys.later()).arg(0).arg(SCAN_PER_LANE).arg("WITHSCORES"))
                .await?;
            found.cut = rows.len() > SCAN_PER_LANE;
            for (member, at) in rows {
                let Some((lane, id)) = member.split_once('|') else { continue };
                if let (true, Ok(lane)) = (needle.matches(id), lane.parse()) {
                    found.places.push(Place::Later(lane, id.to_owned(), score_ms(at)));
                }
            }
            return Ok(found);
        }
        for chunk in lanes.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for lane in chunk {
                pipeline.cmd("ZSCORE").arg(self.keys.later()).arg(format!("{lane}|{}", needle.text));
            }
            for (lane, reply) in chunk.iter().zip(self.redis.pipeline(&pipeline).await?) {
                if let Some(at) = convert::<Option<f64>>(reply, "ZSCORE")? {
                    found.places.push(Place::Later(lane.clone(), needle.text.to_owned(), score_ms(at)));
                }
            }
        }
        Ok(found)
    }

    /// Where the append remembered a caller's id to be, if the entry is still there.
    async fn find_seen(&self, lanes: &[Lane], id: &str) -> Result<Vec<Place>, Error> {
        let day = self.now_ms().await? / 86_400_000;
        let mut families: Vec<&Family> = lanes.iter().map(|lane| &lane.family).collect();
        families.dedup();
        if families.is_empty() {
            return Ok(Vec::new());
        }
        let mut places = Vec::new();
        for day in [day, day.saturating_sub(1)] {
            let mut cmd = redis::cmd("HMGET");
            cmd.arg(format!("{}:seen:{day}", self.keys.tag()));
            for family in &families {
                cmd.arg(format!("{family}|{id}"));
            }
            let values: Vec<Option<String>> = self.redis.query(&cmd).await?;
            for value in values.into_iter().flatten() {
                let mut parts = value.rsplitn(3, '|');
                let entry = parts.next().and_then(|entry| entry.parse::<EntryId>().ok());
                let lane = parts.next().and_then(|lane| lane.parse::<Lane>().ok());
                if let (Some(lane), Some(entry)) = (lane, entry)
                    && self.row(&self.keys.lane(&lane), entry).await?.is_some()
                    && !places.contains(&Place::Entry(lane.clone(), entry))
                {
                    places.push(Place::Entry(lane, entry));
                }
            }
        }
        Ok(places)
    }
}

/// The span of ms that a prefix of a stream id leaves open.
fn stream_span(prefix: &str) -> Option<(u64, u64)> {
    let digits = prefix.split('-').next()?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) || !(MIN_PREFIX..=13).contains(&digits.len()) {
        return None;
    }
    let open = 10_u64.pow(13 - u32::try_from(digits.len()).ok()?);
    let from = digits.parse::<u64>().ok()? * open;
    Some((from, from + open - 1))
}

/// A dead letter's entry stays in its lane until retention: the letter is where the event is.
fn drop_origins_of_dead(found: &mut Found, dead: &[Row]) {
    let mut origins = HashSet::new();
    for row in dead.iter().filter(|row| found.places.contains(&Place::Dead(row.id))) {
        if let Some(record) = row.field("r").and_then(|r| rmp_serde::from_slice::<DeadRecord>(r).ok()) {
            origins.insert((record.lane, record.entry_id));
        }
    }
    found.places.retain(|place| match place {
        Place::Entry(lane, id) => !origins.contains(&(lane.to_string(), id.to_string())),
        _ => true,
    });
}
