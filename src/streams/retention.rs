//! Retention: what is done is removed by age, count or bytes; what is not done never is.
//!
//! `trim.lua` stops at the group's cursor and at the oldest pending entry. A byte limit is turned into a count through
//! the lane's average, since Redis trims by id or count only.

use std::time::Duration;

use super::bus::Bus;
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

    /// Removes journal batches older than `age`, and the oldest above `max_batches`, but none that a required reader
    /// has not passed; `force` goes past readers.
    pub async fn trim_journal(&self, age: Duration, max_batches: u64, force: bool) -> Result<JournalTrimmed, Error> {
        let call = Self::call(&scripts::TRIM_JOURNAL)
            .key(self.keys.journal())
            .key(self.keys.cursors())
            .number(age.as_millis())
            .number(max_batches)
            .arg(if force { "1" } else { "" });
        let (removed, held_by): (u64, String) = self.redis.run(call).await?;
        Ok(JournalTrimmed { removed, held_by: Some(held_by).filter(|name| !name.is_empty()) })
    }

    /// Bytes that the journal takes, sampled.
    pub async fn journal_bytes(&self) -> Result<u64, Error> {
        let mut cmd = redis::cmd("MEMORY");
        cmd.arg("USAGE").arg(self.keys.journal()).arg("SAMPLES").arg(SAMPLES);
        Ok(self.redis.query::<Option<u64>>(&cmd).await?.unwrap_or(0))
    }
}

/// What a pass over the journal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalTrimmed {
    /// Batches removed.
    pub removed: u64,
    /// The reader that held it back.
    pub held_by: Option<String>,
}
