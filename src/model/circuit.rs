//! A provider that failed three times within 15 minutes is left alone for 30, then probed once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Caller, Provider};

/// Failures that open it.
const FAILURES: usize = 3;
/// Within this much time.
const WINDOW: Duration = Duration::from_secs(15 * 60);
/// How long it stays open.
const OPEN: Duration = Duration::from_secs(30 * 60);

pub(super) type Key = (Caller, Provider);

#[derive(Debug, Default)]
struct Circuit {
    failures: Vec<Instant>,
    open_until: Option<Instant>,
    is_probing: bool,
}

/// All of this process.
#[derive(Debug, Default)]
pub(super) struct Circuits(Mutex<HashMap<Key, Circuit>>);

/// One attempt. Dropped without a word, it counts as failed if its deadline has passed, else not at all.
pub(super) struct Attempt<'a> {
    circuits: &'a Circuits,
    key: Key,
    stop: CancellationToken,
    deadline: Option<Instant>,
    is_told: bool,
}

impl Circuits {
    fn with<T>(&self, key: Key, change: impl FnOnce(&mut Circuit) -> T) -> T {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default())
    }

    /// Closed, or open long enough and not being probed.
    pub fn may_ask(&self, key: Key) -> bool {
        self.with(key, |circuit| match circuit.open_until {
            None => true,
            Some(until) => Instant::now() >= until && !circuit.is_probing,
        })
    }

    /// One that is dropped at `deadline` counts as failed; without one it counts as nothing.
    pub fn begin(&self, key: Key, stop: &CancellationToken, deadline: impl Into<Option<Instant>>) -> Attempt<'_> {
        self.with(key, |circuit| circuit.is_probing = circuit.open_until.is_some());
        Attempt { circuits: self, key, stop: stop.clone(), deadline: deadline.into(), is_told: false }
    }
}

impl Attempt<'_> {
    pub fn succeeded(mut self) {
        self.is_told = true;
        self.circuits.with(self.key, |circuit| *circuit = Circuit::default());
    }

    pub fn failed(mut self) {
        self.is_told = true;
        self.count();
    }

    /// It says nothing about the provider.
    pub fn withdraw(mut self) {
        self.is_told = true;
        self.circuits.with(self.key, |circuit| circuit.is_probing = false);
    }

    fn count(&self) {
        let now = Instant::now();
        self.circuits.with(self.key, |circuit| {
            circuit.failures.retain(|at| now.duration_since(*at) < WINDOW);
            circuit.failures.push(now);
            if circuit.is_probing || circuit.failures.len() >= FAILURES {
                circuit.open_until = Some(now + OPEN);
                circuit.failures.clear();
            }
            circuit.is_probing = false;
        });
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        if !self.stop.is_cancelled() && self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.count();
        } else {
            self.circuits.with(self.key, |circuit| circuit.is_probing = false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (Caller::TriageEnforce, Provider::Command);

    fn fail(circuits: &Circuits) {
        circuits.begin(KEY, &CancellationToken::new(), Instant::now()).failed();
    }

    #[tokio::test(start_paused = true)]
    async fn three_failures_open_it_and_one_probe_decides() {
        let circuits = Circuits::default();
        fail(&circuits);
        fail(&circuits);
        assert!(circuits.may_ask(KEY));
        fail(&circuits);
        assert!(!circuits.may_ask(KEY));
        assert!(circuits.may_ask((Caller::Observer, Provider::Command)), "the observer has its own");
        tokio::time::advance(OPEN).await;
        assert!(circuits.may_ask(KEY));
        let probe = circuits.begin(KEY, &CancellationToken::new(), Instant::now());
        assert!(!circuits.may_ask(KEY), "one probe at a time");
        probe.failed();
        assert!(!circuits.may_ask(KEY));
        tokio::time::advance(OPEN).await;
        circuits.begin(KEY, &CancellationToken::new(), Instant::now()).succeeded();
        fail(&circuits);
        assert!(circuits.may_ask(KEY), "a success forgets what was before");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_far_apart_do_not_open_it_and_a_dropped_attempt_counts_by_its_deadline() {
        let circuits = Circuits::default();
        for _ in 0..5 {
            fail(&circuits);
            tokio::time::advance(WINDOW / 2).await;
        }
        assert!(circuits.may_ask(KEY));
        let later = Instant::now() + WINDOW;
        for _ in 0..5 {
            drop(circuits.begin(KEY, &CancellationToken::new(), later));
        }
        assert!(circuits.may_ask(KEY));
        for _ in 0..5 {
            drop(circuits.begin(KEY, &CancellationToken::new(), None));
        }
        assert!(circuits.may_ask(KEY), "it had no fair share of the time");
        for _ in 0..3 {
            drop(circuits.begin(KEY, &CancellationToken::new(), Instant::now()));
        }
        assert!(!circuits.may_ask(KEY));
    }
}
