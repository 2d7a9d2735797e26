//! How fast the journal's readers catch up: events are dispatched first and told afterwards.
//!
//! A reader that found more than it took rests before it goes on, while others still write the journal: it takes a
//! small share of the time of Redis and of this machine. Nobody writes: it goes on at once. Too far behind: it takes half.

use std::time::Duration;

use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;

/// Rests per time worked, while the journal grows.
const RESTS: u32 = 24;
/// The longest rest.
const LONGEST: Duration = Duration::from_secs(1);

/// The pace of one reader.
#[derive(Debug)]
pub struct Pace {
    /// Further behind than this, it hurries.
    patience: Duration,
    /// Where the journal ended at the last look.
    seen: Option<EntryId>,
}

impl Pace {
    /// A reader that may be so far behind.
    #[must_use]
    pub const fn new(patience: Duration) -> Self {
        Self { patience, seen: None }
    }

    /// How long to rest at `cursor` after a step that `took` so long and left something.
    pub async fn rest(&mut self, bus: &Bus, cursor: EntryId, took: Duration) -> Duration {
        // Redis is gone: the next step finds that out, and how long to wait.
        let Ok(end) = bus.journal_end().await else { return LONGEST };
        self.decide(end.id, cursor, took)
    }

    fn decide(&mut self, end: EntryId, cursor: EntryId, took: Duration) -> Duration {
        let is_quiet = self.seen.replace(end) == Some(end);
        let behind = Duration::from_millis(end.ms.saturating_sub(cursor.ms));
        match () {
            () if is_quiet => Duration::ZERO,
            () if behind > self.patience => took.min(LONGEST),
            () => (took * RESTS).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_rests_while_others_write_and_hurries_when_it_is_far_behind() {
        let at = |ms| EntryId { ms, seq: 0 };
        let took = Duration::from_millis(10);
        let mut pace = Pace::new(Duration::from_secs(60));
        assert_eq!(pace.decide(at(5_000), at(1_000), took), took * RESTS);
        assert_eq!(pace.decide(at(6_000), at(1_000), Duration::from_secs(9)), LONGEST);
        assert_eq!(pace.decide(at(6_000), at(2_000), took), Duration::ZERO);
        assert_eq!(pace.decide(at(90_000), at(2_000), took), took);
    }
}
