//! Retention: what is done is removed by age, count or bytes; what is not done never is.
//!
//! `trim.lua` stops at the group's cursor and at the oldest pending entry. A byte limit is turned into a count through
//! the lane's average, since Redis trims by id or count only.

use std::time::Duration;

use super::bus::Bus;
use super::entry_id::EntryId;
use super::lane::Lane;
use super::redis::Error;
use super::scripts;

/// Entries removed per script call.
const STEP: usize = 1000;
/// Entries that `MEMORY USAGE` samples for a lane's average.
const SAMPLES: usize = 50;

/// How long and how much is kept of what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retain {
    /// At least this long, unless one of the other limits is passed.
    pub age: Duration,
    /// At most so many entries per lane.
    pub entries: Option<u64>,
    /// At most so many bytes per lane.
    pub bytes: Option<u64>,
    /// An empty lane that nobody used for so long is retired.
    pub retire: Duration,
}

impl Default for Retain {
    fn default() -> Self {
        Self { age: Duration::from_secs(86_400), entries: None, bytes: None, retire: Duration::from_secs(30 * 86_400) }
    }
}

/// What one pass over a lane did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Trimmed {
    /// Entries removed.
    pub removed: u64,
    /// The pass ended at its bound: call again.
    pub more: bool,
    /// The lane was empty and unused, and is gone.
    pub retired: bool,
}

impl Bus {
    /// Removes done entries of `lane` past their retention, in at most `calls` steps of 1,000.
    pub async fn trim_lane(&self, lane: &Lane, retain: &Retain, calls: usize) -> Result<Trimmed, Error> {
        let by_bytes = match retain.bytes {
            Some(bytes) => self.entries_for(lane, bytes).await?,
            None => None,
        };
        // 0 is no limit to the script: the smallest limit there is keeps one entry.
        let max = [retain.entries, by_bytes].into_iter().flatten().min().map_or(0, |entries| entries.max(1));
        let mut trimmed = Trimmed::default();
        for _ in 0..calls.max(1) {
            let call = Self::call(&scripts::TRIM)
                .key(self.keys.lane(lane))
                .key(self.keys.lanes())
                .key(self.keys.ready())
                .number(retain.age.as_millis())
                .number(max)
                .number(STEP)
                .arg(lane.to_string())
                .number(retain.retire.as_millis());
            let (removed, more, retired): (u64, u8, u8) = self.redis.run(call).await?;
            trimmed.removed += removed;
            trimmed.more = more == 1 && removed > 0;
            trimmed.retired |= retired == 1;
            if !trimmed.more {
                break;
            }
        }
        Ok(trimmed)
    }

    /// How many entries of `lane` fit into `bytes`; `None` when it is within them.
    async fn entries_for(&self, lane: &Lane, bytes: u64) -> Result<Option<u64>, Error> {
        let key = self.keys.lane(lane);
        let used: Option<u64> =
            self.redis.query(redis::cmd("MEMORY").arg("USAGE").arg(&key).arg("SAMPLES").arg(SAMPLES)).await?;
        let length: u64 = self.redis.query(redis::cmd("XLEN").arg(&key)).await?;
        let Some(used) = used.filter(|used| *used > bytes && length > 0) else { return Ok(None) };
        Ok(Some(u64::try_from(u128::from(bytes) * u128::from(length) / u128::from(used)).unwrap_or(u64::MAX)))
    }

    /// Removes journal batches older than `age`, and the oldest above `max_batches`. Returns how many.
    pub async fn trim_journal(&self, age: Duration, max_batches: u64) -> Result<u64, Error> {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let oldest = EntryId { ms: self.now_ms().await?.saturating_sub(age_ms), seq: 0 };
        let journal = self.keys.journal();
        let mut pipeline = redis::pipe();
        pipeline.cmd("XTRIM").arg(&journal).arg("MINID").arg("~").arg(oldest.to_string());
        pipeline.cmd("XTRIM").arg(&journal).arg("MAXLEN").arg("~").arg(max_batches);
        let removed = self.redis.pipeline(&pipeline).await?;
        Ok(removed.into_iter().filter_map(|n| redis::from_redis_value::<u64>(n).ok()).sum())
    }
}
