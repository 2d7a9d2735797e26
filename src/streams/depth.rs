//! Depth and age by family and priority, asked of Redis each time: no counter of ours can drift.
//!
//! Depth of a lane = the group's lag + its pending entries. Where Redis can't tell the lag (an undelivered entry was
//! deleted, or the lane was trimmed past the cursor) the entries after the cursor are counted, up to
//! [`COUNT_LIMIT`], and the result is marked as a lower bound. Pending entries are told apart by their owner.
//!
//! Cost: O(lanes), pipelined; nothing is read per entry except in the counted case. Nothing is written.

use std::collections::BTreeMap;

use redis::Value;
use serde::{Deserialize, Serialize};

use super::bus::Bus;
use super::entry_id::EntryId;
use super::family::Family;
use super::lane::Lane;
use super::redis::Error;
use super::rows::{CHUNK, LaneState, RawRow, convert, is_handback, is_retry};
use super::sessions::SessionInfo;

/// Most entries counted one by one in a lane whose lag Redis can't tell.
pub const COUNT_LIMIT: u64 = 10_000;
/// Bytes after which such a count stops: it reads whole entries.
const COUNT_BYTES: usize = 16 << 20;
/// Scheduled events looked at for the split by family.
const LATER_LIMIT: usize = 50_000;

/// How much there is to do.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Depth {
    /// Open entries: waiting, leased and retrying. Scheduled events and dead letters are counted beside it.
    pub total: u64,
    /// Some lane could only be counted in part: the numbers are lower bounds.
    pub at_least: bool,
    /// Open entries by stored priority.
    pub by_priority: ByPriority,
    /// Families with anything open, scheduled or paused, by name.
    pub by_family: Vec<FamilyDepth>,
    /// Scheduled events.
    pub later: u64,
    /// Dead letters.
    pub dead: u64,
    /// Append time of the oldest open entry, ms.
    pub oldest_timestamp: Option<u64>,
    /// Append time of the newest open entry, ms.
    pub newest_timestamp: Option<u64>,
    /// Age of the oldest open entry, ms.
    pub oldest_age_ms: Option<u64>,
    /// Redis's clock at the reading, ms.
    pub at_ms: u64,
}

/// One number per priority, all four always there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub struct ByPriority {
    pub p0: u64,
    pub p1: u64,
    pub p2: u64,
    pub p3: u64,
}

impl ByPriority {
    /// Adds another.
    pub const fn add(&mut self, other: Self) {
        self.p0 += other.p0;
        self.p1 += other.p1;
        self.p2 += other.p2;
        self.p3 += other.p3;
    }

    const fn of(&mut self, lane: &Lane) -> &mut u64 {
        match lane.priority.number() {
            0 => &mut self.p0,
            1 => &mut self.p1,
            2 => &mut self.p2,
            _ => &mut self.p3,
        }
    }
}

/// One family's share.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyDepth {
    /// The event name.
    pub family: Family,
    /// Undelivered, or handed back before a handler saw them.
    pub waiting: u64,
    /// Held by a session, live or ended.
    pub leased: u64,
    /// Of those, held by a session that has ended: the next drainer takes them over.
    pub orphaned: u64,
    /// Waiting for their next attempt.
    pub retrying: u64,
    /// Scheduled.
    pub later: u64,
    /// Open entries by stored priority.
    pub by_priority: ByPriority,
    /// Held by a pause.
    pub paused: bool,
    /// When that pause ends, ms.
    pub paused_until: Option<u64>,
    /// Age of the oldest open entry, ms.
    pub oldest_age_ms: Option<u64>,
    /// The numbers are lower bounds.
    pub at_least: bool,
    /// What of it all drainers together run at once, where its target made them run less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapted_limit: Option<u64>,
    /// Age of the newest open entry, ms.
    #[serde(skip)]
    pub newest_age_ms: Option<u64>,
    #[serde(skip)]
    oldest: Option<u64>,
    #[serde(skip)]
    newest: Option<u64>,
}

impl FamilyDepth {
    fn new(family: Family) -> Self {
        Self {
            family,
            waiting: 0,
            leased: 0,
            orphaned: 0,
            retrying: 0,
            later: 0,
            by_priority: ByPriority::default(),
            paused: false,
            paused_until: None,
            oldest_age_ms: None,
            at_least: false,
            adapted_limit: None,
            newest_age_ms: None,
            oldest: None,
            newest: None,
        }
    }

    const fn is_empty(&self) -> bool {
        self.waiting + self.leased + self.retrying + self.later == 0 && !self.paused
    }
}

/// Where the undelivered part of a lane begins and ends.
struct Waiting {
    count: u64,
    at_least: bool,
    oldest: Option<EntryId>,
    newest: Option<EntryId>,
}

impl Bus {
    /// Depth and ages of every lane.
    pub async fn depth(&self) -> Result<Depth, Error> {
        let lanes = self.lanes().await?;
        let states = self.lane_states(&lanes).await?;
        let waiting = self.waiting(&states).await?;
        let sessions = self.session_expiries().await?;
        let pauses = self.pauses().await?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("XLEN").arg(self.keys.dead());
        pipeline.cmd("ZCARD").arg(self.keys.later());
        pipeline.cmd("ZRANGE").arg(self.keys.later()).arg(0).arg(LATER_LIMIT - 1);
        let mut replies = self.redis.pipeline(&pipeline).await?.into_iter();
        let mut next = || replies.next().unwrap_or(Value::Nil);
        let (dead, later): (u64, u64) = (convert(next(), "XLEN")?, convert(next(), "ZCARD")?);
        let scheduled: Vec<String> = convert(next(), "ZRANGE")?;
        let now = self.now_ms().await?;

        let mut depth = Depth { dead, later, at_ms: now, ..Depth::default() };
        let mut families: BTreeMap<Family, FamilyDepth> = BTreeMap::new();
        for (state, waiting) in states.iter().zip(waiting) {
            let name = &state.lane.family;
            let family = families.entry(name.clone()).or_insert_with(|| FamilyDepth::new(name.clone()));
            family.waiting += waiting.count;
            family.at_least |= waiting.at_least;
            for (owner, count) in &state.owners {
                if is_retry(owner) {
                    family.retrying += count;
                } else if is_handback(owner) {
                    family.waiting += count;
                } else {
                    family.leased += count;
                    if sessions.get(owner).is_none_or(|expiry| *expiry <= now) {
                        family.orphaned += count;
                    }
                }
            }
            let open = waiting.count + state.pending();
            *family.by_priority.of(&state.lane) += open;
            *depth.by_priority.of(&state.lane) += open;
            depth.total += open;
            depth.at_least |= waiting.at_least;
            let oldest = [waiting.oldest, state.oldest_pending].into_iter().flatten().min().map(|id| id.ms);
            let newest = [waiting.newest, state.newest_pending].into_iter().flatten().max().map(|id| id.ms);
            family.oldest = earlier(family.oldest, oldest);
            family.newest = family.newest.max(newest);
            depth.oldest_timestamp = earlier(depth.oldest_timestamp, oldest);
            depth.newest_timestamp = depth.newest_timestamp.max(newest);
        }
        for member in &scheduled {
            let Some(lane) = member.split_once('|').and_then(|(lane, _)| lane.parse::<Lane>().ok()) else { continue };
            families.entry(lane.family.clone()).or_insert_with(|| FamilyDepth::new(lane.family)).later += 1;
        }
        if later > scheduled.len() as u64 {
            families.values_mut().for_each(|family| family.at_least = true);
        }
        for (name, (until, _)) in &pauses.active {
            let Ok(name) = name.parse::<Family>() else { continue };
            let family = families.entry(name.clone()).or_insert_with(|| FamilyDepth::new(name));
            family.paused = true;
            family.paused_until = Some(*until);
        }
        for family in families.values_mut().filter(|family| !family.paused) {
            let until = pauses.of(family.family.as_str()).map(|(until, _)| *until);
            (family.paused, family.paused_until) = (until.is_some(), until);
        }
        let live: Vec<SessionInfo> = self.sessions().await?.into_iter().filter(|live| live.expires_ms > now).collect();
        for family in families.values_mut() {
            let limits: Vec<u64> =
                live.iter().filter_map(|session| session.reduced_limit(family.family.as_str())).collect();
            family.adapted_limit = (!limits.is_empty()).then(|| limits.iter().sum());
        }
        // Ids may be ahead of the clock after it was set back: no age is negative.
        let age = |ms: u64| now.saturating_sub(ms);
        depth.oldest_age_ms = depth.oldest_timestamp.map(age);
        depth.by_family = families.into_values().filter(|family| !family.is_empty()).collect();
        for family in &mut depth.by_family {
            family.oldest_age_ms = family.oldest.map(age);
            family.newest_age_ms = family.newest.map(age);
        }
        Ok(depth)
    }

    /// The undelivered part of each lane.
    async fn waiting(&self, states: &[LaneState]) -> Result<Vec<Waiting>, Error> {
        let mut all = Vec::with_capacity(states.len());
        for chunk in states.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for state in chunk.iter().filter(|state| state.waiting() != Some(0)) {
                let key = self.keys.lane(&state.lane);
                let after = format!("({}", state.cursor);
                pipeline.cmd("XRANGE").arg(&key).arg(&after).arg("+").arg("COUNT").arg(1);
                pipeline.cmd("XREVRANGE").arg(&key).arg("+").arg(&after).arg("COUNT").arg(1);
            }
            let mut replies =
                if pipeline.is_empty() { Vec::new() } else { self.redis.pipeline(&pipeline).await? }.into_iter();
            for state in chunk {
                let counted = state.waiting();
                if counted == Some(0) {
                    all.push(Waiting { count: 0, at_least: false, oldest: None, newest: None });
                    continue;
                }
                let mut end = || -> Result<Option<EntryId>, Error> {
                    let rows: Vec<RawRow> = convert(replies.next().unwrap_or(Value::Nil), "XRANGE")?;
                    Ok(rows.first().and_then(|(id, _)| id.parse().ok()))
                };
                let (oldest, newest) = (end()?, end()?);
                let (count, at_least) = match counted {
                    Some(count) => (count, false),
                    None => self.count_after(state).await?,
                };
                all.push(Waiting { count, at_least, oldest, newest });
            }
        }
        Ok(all)
    }

    /// Counts what is after the cursor, in pages. True when there may be more.
    async fn count_after(&self, state: &LaneState) -> Result<(u64, bool), Error> {
        const PAGE: usize = 500;
        let key = self.keys.lane(&state.lane);
        let (mut count, mut bytes, mut after) = (0, 0, state.cursor);
        loop {
            let rows = self.rows(&key, &format!("({after}"), "+", PAGE).await?;
            count += rows.len() as u64;
            bytes += rows.iter().flat_map(|row| row.fields.values()).map(Vec::len).sum::<usize>();
            let Some(last) = rows.last().filter(|_| rows.len() == PAGE) else { return Ok((count, false)) };
            after = last.id;
            if count >= COUNT_LIMIT || bytes >= COUNT_BYTES {
                return Ok((count, true));
            }
        }
    }
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().min()
}
