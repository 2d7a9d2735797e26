//! The schedules of a function: each trigger with a cron expression is a series of ticks.

use sha2::{Digest, Sha256};

use super::Function;
use crate::functions::schedule::Schedule;

/// One series of ticks.
#[derive(Debug, Clone)]
pub struct Series {
    /// `<hash>|<function>`: another expression is another series.
    pub name: String,
    /// The expression as registered.
    pub cron: String,
    /// What it says.
    pub schedule: Schedule,
    jitter_ms: u64,
}

impl Function {
    /// Its series. One that can't be read, which registration refuses, is left out.
    #[must_use]
    pub fn series(&self) -> Vec<Series> {
        let read = |trigger: &super::Trigger| {
            let cron = trigger.cron.clone()?;
            let hash = hex::encode(Sha256::digest(format!("{}\n{cron}", self.slug)));
            let name = format!("{}|{}", &hash[..12], self.slug);
            let schedule = cron.parse().ok()?;
            Some(Series { name, cron, schedule, jitter_ms: trigger.jitter_ms.unwrap_or(0) })
        };
        self.triggers.iter().filter_map(read).collect()
    }
}

impl Series {
    /// When a tick fires, ms: its time and its own share of the jitter, the same wherever it is asked for.
    #[must_use]
    pub fn fires_ms(&self, tick_ms: u64) -> u64 {
        if self.jitter_ms == 0 {
            return tick_ms;
        }
        let hash = Sha256::digest(format!("{}\n{tick_ms}", self.name));
        let mut low = [0; 8];
        low.copy_from_slice(&hash[..8]);
        tick_ms + u64::from_be_bytes(low) % (self.jitter_ms + 1)
    }
}
