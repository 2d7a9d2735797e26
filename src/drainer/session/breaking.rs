//! Circuit breakers in the loop: what this drainer saw, what holds a family, and the one probe.
//!
//! Attempts are counted here, in memory, so that a dispatch that goes well costs nothing in Redis. Only a change of a
//! breaker is written, and read by every drainer with the pauses.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::super::handlers::Outcome;
use super::super::housekeeping;
use crate::streams::breaker::{Change, Circuit, Circuits, Evidence, State, Trip};
use crate::streams::family::Family;

use super::Session;

/// Beyond the handler's timeout a probe keeps its token for so long.
const GRACE: Duration = Duration::from_secs(10);

/// What the loop knows of breakers.
#[derive(Default)]
pub struct Breaking {
    circuits: Circuits,
    evidence: HashMap<Family, Evidence>,
    /// Families whose one probe is ours.
    probes: HashMap<Family, Probe>,
    /// Families of which a change is on its way.
    asked: HashSet<Family>,
}

enum Probe {
    /// The next event that starts is it.
    Ready,
    /// This dispatch is it.
    Running(u64),
}

/// What an outcome says of the target: good, bad, or nothing.
pub fn verdict(kind: &str, outcome: &Outcome) -> Option<bool> {
    match outcome {
        Outcome::Done => Some(true),
        // No status: no connection, or no answer in time. A panic is our own.
        Outcome::Retry { status: None, error, .. } => (!error.contains("panicked")).then_some(false),
        Outcome::Retry { status: Some(75), .. } if kind == "command" => Some(false),
        Outcome::Retry { status: Some(408 | 425 | 429 | 500..), .. } if kind != "command" => Some(false),
        // A fault of the event, not of its target.
        Outcome::Retry { .. } | Outcome::Fail { .. } | Outcome::Cancelled => None,
    }
}

impl Session {
    /// Whether its breaker keeps `family` from being read by this drainer.
    pub(super) fn is_broken(&mut self, family: &Family) -> bool {
        if self.breaking.circuits.is_empty() || self.plan(family).breaker.is_none() {
            return false;
        }
        let now = self.now_ms();
        let Some(circuit) = self.breaking.circuits.get(family.as_str()) else { return false };
        circuit.is_closed_gate(now) && !matches!(self.breaking.probes.get(family), Some(Probe::Ready))
    }

    /// Takes over what Redis says, but for what is being changed right now, and asks for probes that are due.
    pub(super) fn learn_circuits(&mut self, mut circuits: Circuits) {
        for family in &self.breaking.asked {
            match self.breaking.circuits.remove(family.as_str()) {
                Some(ours) => circuits.insert(family.to_string(), ours),
                None => circuits.remove(family.as_str()),
            };
        }
        let is_half_open = |family: &Family| {
            self.breaking.circuits.get(family.as_str()).is_some_and(|circuit| circuit.state == State::HalfOpen)
        };
        let is_back = |family: &&Family| is_half_open(family) && !circuits.contains_key(family.as_str());
        let back: Vec<Family> = self.adaptive.keys().filter(is_back).cloned().collect();
        self.breaking.circuits = circuits;
        back.iter().for_each(|family| self.begin_low(family));
        let lost = |family: &Family, probe: &Probe, breaking: &Circuits, own: &str| {
            let circuit = breaking.get(family.as_str());
            matches!(probe, Probe::Ready) && circuit.and_then(|circuit| circuit.holder.as_deref()) != Some(own)
        };
        let (circuits, own) = (&self.breaking.circuits, self.id.as_str());
        self.breaking.probes.retain(|family, probe| !lost(family, probe, circuits, own));
        self.ask_for_probes();
    }

    fn ask_for_probes(&mut self) {
        let now = self.now_ms();
        let due: Vec<Family> = self
            .scheduler
            .families()
            .filter(|family| {
                self.breaking.circuits.get(family.as_str()).is_some_and(|circuit| circuit.wants_probe(now))
            })
            .filter(|family| !self.breaking.asked.contains(*family))
            .filter(|family| self.pauses.until(family, now).is_none())
            .filter(|family| !matches!(self.breaking.probes.get(*family), Some(Probe::Running(_))))
            .cloned()
            .collect();
        for family in due {
            let plan = self.plan(&family);
            if plan.handler.is_some() && self.stopping.is_none() {
                let lease = plan.timeout + GRACE;
                self.change(&family, Change::Take { holder: self.id.clone(), lease });
            }
        }
    }

    fn change(&mut self, family: &Family, change: Change) {
        let Some(thresholds) = self.plan(family).breaker else { return };
        self.breaking.asked.insert(family.clone());
        housekeeping::change_breaker(&self.bus, family.clone(), change, thresholds, self.events.clone());
    }

    /// A change was written, or another's was found.
    pub(super) fn on_breaker(&mut self, family: Family, circuit: Option<Circuit>) {
        self.breaking.asked.remove(&family);
        let is_ours = circuit.as_ref().is_some_and(|circuit| {
            circuit.state == State::HalfOpen && circuit.holder.as_deref() == Some(self.id.as_str())
        });
        match self.breaking.probes.get(&family) {
            Some(Probe::Running(_)) => {}
            _ if is_ours => {
                self.breaking.probes.insert(family.clone(), Probe::Ready);
            }
            _ => {
                self.breaking.probes.remove(&family);
            }
        }
        let before = match circuit {
            Some(circuit) => {
                self.breaking.circuits.insert(family.to_string(), circuit);
                None
            }
            None => self.breaking.circuits.remove(family.as_str()),
        };
        if before.is_some_and(|before| before.state == State::HalfOpen) {
            self.begin_low(&family);
        }
        self.apply_hold(&family);
        self.ask_for_probes();
    }

    /// A dispatch of `family` started: if it is the probe, nothing else of the family may.
    pub(super) fn probe_begins(&mut self, family: &Family, token: u64) {
        if let Some(probe @ Probe::Ready) = self.breaking.probes.get_mut(family) {
            *probe = Probe::Running(token);
            self.apply_hold(family);
        }
    }

    /// A dispatch ended: its target is judged by it.
    pub(super) fn judge(
        &mut self,
        token: u64,
        family: &Family,
        event_id: &str,
        kind: &str,
        outcome: &Outcome,
        now: u64,
    ) {
        let verdict = verdict(kind, outcome);
        if matches!(self.breaking.probes.get(family), Some(Probe::Running(probe)) if *probe == token) {
            self.breaking.probes.remove(family);
            let holder = self.id.clone();
            let change = match (verdict, outcome) {
                (Some(true), _) => Change::Good { holder },
                (Some(false), Outcome::Retry { error, not_before, .. }) => {
                    Change::Bad { holder, error: error.clone(), not_before: *not_before }
                }
                _ => Change::GiveBack { holder },
            };
            self.breaking.evidence.remove(family);
            self.change(family, change);
            return;
        }
        let Some(is_good) = verdict else { return };
        let Some(thresholds) = self.plan_of.get(family).and_then(|plan| plan.breaker.clone()) else { return };
        if self.breaking.circuits.contains_key(family.as_str()) {
            // What had started before it opened says nothing new.
            return;
        }
        let Some(evidence) = self.breaking.evidence.get_mut(family) else {
            self.breaking.evidence.insert(family.clone(), Evidence::default());
            return self.judge(token, family, event_id, kind, outcome, now);
        };
        if is_good {
            evidence.good(now, &thresholds);
            return;
        }
        let Outcome::Retry { error, not_before, .. } = outcome else { return };
        if let Some(trip) = evidence.bad(event_id, error, *not_before, now, &thresholds) {
            evidence.clear();
            tracing::warn!(family = %family, failures = trip.failures, attempts = trip.attempts, error = trip.error, "its circuit breaker opens");
            self.hold_until_written(family, &trip, now);
            self.change(family, Change::Trip(trip));
        }
    }

    /// Holds the family at once; the stored circuit follows.
    fn hold_until_written(&mut self, family: &Family, trip: &Trip, now: u64) {
        let circuit = Circuit {
            open_until: Some(now + 60_000),
            failures: trip.failures,
            attempts: trip.attempts,
            last_error: trip.error.clone(),
            ..Circuit::new(State::Open, now)
        };
        self.breaking.circuits.insert(family.to_string(), circuit);
        self.apply_hold(family);
    }
}
