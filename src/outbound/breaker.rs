//! Leaves an endpoint alone for a while that fails again and again. Pure: the caller brings the time.
//!
//! `closed` → ten failures in a row → `open` for 30 s → `half open`: one delivery at a time → a success closes it, a
//! failure opens it for twice as long, up to ten minutes. Each process has its own; what waits meanwhile costs no attempt.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
const FAILURES: u32 = 10;
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(600);

/// The state of one endpoint's breaker.
#[derive(Debug, Clone, Copy, Default)]
pub struct Breaker {
    failures: u32,
    /// How often it opened since the last success.
    opened: u32,
    open_until: Option<Instant>,
}

/// What may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// One at a time.
    HalfOpen,
}

impl Breaker {
    /// What may be sent at `now`.
    #[must_use]
    pub fn phase(&self, now: Instant) -> Phase {
        match self.open_until {
            Some(until) if now < until => Phase::Open,
            Some(_) => Phase::HalfOpen,
            None => Phase::Closed,
        }
    }

    /// A delivery was taken.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A delivery was not taken. Requests that were under way when it opened change nothing.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.phase(now) {
            Phase::Closed => self.failures >= FAILURES,
            Phase::Open => false,
            Phase::HalfOpen => true,
        };
        if opens {
            let pause = (FIRST * 2_u32.saturating_pow(self.opened.min(10))).min(LONGEST);
            self.opened = self.opened.saturating_add(1);
            self.open_until = Some(now + pause);
        }
    }

    /// Until when nothing is sent.
    #[must_use]
    pub fn open_for(&self, now: Instant) -> Option<Duration> {
        self.open_until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_failures_open_it_and_one_success_closes_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..9 {
            breaker.failed(now);
        }
        assert_eq!(breaker.phase(now), Phase::Closed);
        breaker.failed(now);
        assert_eq!(breaker.phase(now), Phase::Open);
        // Still under way when it opened.
        breaker.failed(now);
        assert_eq!(breaker.open_for(now), Some(FIRST));
        let later = now + FIRST;
        assert_eq!(breaker.phase(later), Phase::HalfOpen);
        breaker.failed(later);
        assert_eq!(breaker.open_for(later), Some(2 * FIRST));
        let mut at = later;
        for _ in 0..20 {
            at += LONGEST;
            breaker.failed(at);
        }
        assert_eq!(breaker.open_for(at), Some(LONGEST));
        breaker.succeeded();
        assert_eq!(breaker.phase(at), Phase::Closed);
    }
}
