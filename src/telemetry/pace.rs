//! How fast the journal's readers catch up: events are dispatched first and told afterwards.
//!
//! A reader that left something rests before it goes on, while others still write the journal: it takes a small share of
//! the time of Redis and of this machine. Nobody writes: it goes on at once. Too far behind: it takes half.
//!
//! A step is measured in bytes, not in time or batches: a batch holds one record or five hundred, and on a slow machine
//! a step that is cut short for taking long would only pay its fixed costs more often.

use std::time::Duration;

use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::journal::Fields;

/// Bytes of the journal in a step, about.
const BYTES: usize = 64 << 10;
/// Batches of a step: at first, and at most.
const BATCHES: (usize, usize) = (4, 512);
/// Between two steps while the journal grows, and at most while Redis is slow.
const REST: Duration = Duration::from_millis(500);

/// The pace of one reader.
#[derive(Debug)]
pub struct Pace {
    /// Further behind than this, it hurries.
    patience: Duration,
    /// Where the journal ended at the last look.
    seen: Option<EntryId>,
    batches: usize,
}

impl Pace {
    /// A reader that may be so far behind.
    #[must_use]
    pub const fn new(patience: Duration) -> Self {
        Self { patience, seen: None, batches: BATCHES.0 }
    }

    /// Batches that the next step may take.
    #[must_use]
    pub const fn batches(&self) -> usize {
        self.batches
    }

    /// Learns from what a step took how much the next may take.
    pub fn learn(&mut self, rows: &[(EntryId, Fields)]) {
        let bytes: usize = rows.iter().map(|(_, fields)| fields.bytes()).sum();
        if !rows.is_empty() {
            self.batches = (BYTES * rows.len() / bytes.max(1)).clamp(1, BATCHES.1);
        }
    }

    /// How long to rest at `cursor` after a step that `took` so long and left something.
    pub async fn rest(&mut self, bus: &Bus, cursor: EntryId, took: Duration) -> Duration {
        // Redis is gone: the next step finds that out, and how long to wait.
        let Ok(end) = bus.journal_end().await else { return REST };
        self.decide(end.id, cursor, took)
    }

    fn decide(&mut self, end: EntryId, cursor: EntryId, took: Duration) -> Duration {
        let is_quiet = self.seen.replace(end) == Some(end);
        let behind = Duration::from_millis(end.ms.saturating_sub(cursor.ms));
        match () {
            () if is_quiet => Duration::ZERO,
            () if behind > self.patience => took.min(REST),
            () => REST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_rests_while_others_write_and_hurries_when_it_is_far_behind() {
        let at = |ms| EntryId { ms, seq: 0 };
        let took = Duration::from_millis(20);
        let mut pace = Pace::new(Duration::from_secs(60));
        assert_eq!(pace.decide(at(5_000), at(1_000), took), REST);
        assert_eq!(pace.decide(at(6_000), at(1_000), took), REST);
        assert_eq!(pace.decide(at(6_000), at(2_000), took), Duration::ZERO);
        assert_eq!(pace.decide(at(90_000), at(2_000), took), took);
        assert_eq!(pace.decide(at(90_001), at(2_000), Duration::from_secs(9)), REST);
    }

    #[test]
    fn a_step_takes_as_many_batches_as_are_about_its_bytes() {
        let rows = |count: usize, bytes: usize| -> Vec<_> {
            let fields = || Fields { b: Some(vec![0; bytes]), ..Fields::default() };
            (0..count).map(|_| (EntryId::MIN, fields())).collect()
        };
        let mut pace = Pace::new(Duration::ZERO);
        for (rows, expected) in [
            (rows(4, 16 << 10), 4),
            (rows(4, 1 << 20), 1),
            (rows(0, 0), 1),
            (rows(1, 1 << 10), 64),
            (rows(9, 1), BATCHES.1),
        ] {
            pace.learn(&rows);
            assert_eq!(pace.batches(), expected);
        }
    }
}
