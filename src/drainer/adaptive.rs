//! Adaptive concurrency of one family (`aimd = true`): less at once while its target fails or slows down, one more after
//! each round that goes well. Pure.
//!
//! The limit starts at the entry's `concurrency` and never exceeds it. A failure of the target, or an attempt slower
//! than twice the median of ten minutes, halves it, at most once a second; as many good attempts in a row as the limit
//! add one. A target that comes back from an outage is met with one at a time.

use std::collections::VecDeque;

/// Durations older than this are forgotten, ms.
const WINDOW_MS: u64 = 600_000;
/// Durations remembered at most.
const SAMPLES: usize = 512;
/// Fewer of them say nothing of what is slow.
const LEAST: usize = 20;
/// The limit is halved at most once in so long, ms.
const ONCE_IN_MS: u64 = 1_000;

/// The limit of a family in this process, and what it follows from.
#[derive(Debug, Clone)]
pub struct Adaptive {
    most: u32,
    limit: u32,
    good_in_a_row: u32,
    halved_ms: Option<u64>,
    /// When, ms, and how long, µs.
    took: VecDeque<(u64, u64)>,
    median_us: Option<u64>,
    /// Attempts until the median is looked at again.
    stale_after: usize,
}

impl Adaptive {
    /// Begins at `most`.
    #[must_use]
    pub const fn new(most: u32) -> Self {
        let most = if most == 0 { 1 } else { most };
        Self {
            most,
            limit: most,
            good_in_a_row: 0,
            halved_ms: None,
            took: VecDeque::new(),
            median_us: None,
            stale_after: 0,
        }
    }

    /// At once, now.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Below what its entry allows.
    #[must_use]
    pub const fn is_reduced(&self) -> bool {
        self.limit < self.most
    }

    /// Another `concurrency`.
    pub fn set_most(&mut self, most: u32) {
        let was_reduced = self.is_reduced();
        self.most = most.max(1);
        self.limit = if was_reduced { self.limit.min(self.most) } else { self.most };
    }

    /// The target has just come back: one at a time, and more as it goes well.
    pub const fn begin_low(&mut self) {
        (self.limit, self.good_in_a_row) = (1, 0);
    }

    /// An attempt ended: well, or by a failure of the target. True when the limit changed.
    pub fn ended(&mut self, now_ms: u64, took_us: u64, is_good: bool) -> bool {
        let before = self.limit;
        let is_slow = self.median_us.is_some_and(|median| took_us > median.saturating_mul(2));
        if is_good {
            self.remember(now_ms, took_us);
        }
        if is_good && !is_slow {
            self.good_in_a_row += 1;
            if self.good_in_a_row >= self.limit {
                self.good_in_a_row = 0;
                self.limit = (self.limit + 1).min(self.most);
            }
        } else {
            self.good_in_a_row = 0;
            if self.halved_ms.is_none_or(|at| now_ms >= at + ONCE_IN_MS) {
                self.halved_ms = Some(now_ms);
                self.limit = (self.limit / 2).max(1);
            }
        }
        self.limit != before
    }

    fn remember(&mut self, now_ms: u64, took_us: u64) {
        self.took.push_back((now_ms, took_us));
        while self.took.len() > SAMPLES || self.took.front().is_some_and(|(at, _)| at + WINDOW_MS < now_ms) {
            self.took.pop_front();
        }
        if self.took.len() < LEAST {
            self.median_us = None;
            return;
        }
        // Sorting at each attempt would cost more than it tells.
        if self.stale_after == 0 || self.median_us.is_none() {
            let mut all: Vec<u64> = self.took.iter().map(|(_, took)| *took).collect();
            let middle = all.len() / 2;
            self.median_us = Some(*all.select_nth_unstable(middle).1);
            self.stale_after = LEAST;
        }
        self.stale_after -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(adaptive: &mut Adaptive, now: u64, times: u32) {
        for _ in 0..times {
            adaptive.ended(now, 1000, true);
        }
    }

    #[test]
    fn a_failure_halves_once_a_second_and_rounds_that_go_well_add_one() {
        let mut adaptive = Adaptive::new(16);
        assert!(adaptive.ended(1000, 1000, false));
        assert!(!adaptive.ended(1999, 1000, false), "once a second");
        assert_eq!((adaptive.limit(), adaptive.is_reduced()), (8, true));
        for second in 2..9 {
            adaptive.ended(second * 1000, 1000, false);
        }
        assert_eq!(adaptive.limit(), 1, "never none");
        good(&mut adaptive, 10_000, 1);
        assert_eq!(adaptive.limit(), 2);
        good(&mut adaptive, 10_000, 2);
        assert_eq!(adaptive.limit(), 3);
        good(&mut adaptive, 10_000, 1000);
        assert_eq!((adaptive.limit(), adaptive.is_reduced()), (16, false), "never beyond its entry");
    }

    #[test]
    fn what_is_slower_than_twice_the_median_counts_as_a_failure() {
        let mut adaptive = Adaptive::new(8);
        assert!(!adaptive.ended(0, 9_000_000, true), "nothing is known to be slow yet");
        good(&mut adaptive, 1000, 40);
        assert!(!adaptive.ended(2000, 2000, true));
        assert!(adaptive.ended(2000, 2001, true));
        assert_eq!(adaptive.limit(), 4);
        // Ten minutes on, the old pace is forgotten.
        good(&mut adaptive, 700_000, 1);
        assert!(!adaptive.ended(700_001, 9_000_000, true) || adaptive.limit() > 4);
    }

    #[test]
    fn a_target_that_comes_back_begins_with_one() {
        let mut adaptive = Adaptive::new(8);
        adaptive.begin_low();
        assert_eq!(adaptive.limit(), 1);
        adaptive.set_most(4);
        assert_eq!(adaptive.limit(), 1);
        good(&mut adaptive, 0, 100);
        adaptive.set_most(9);
        assert_eq!(adaptive.limit(), 9, "not reduced, so it follows its entry");
    }
}
