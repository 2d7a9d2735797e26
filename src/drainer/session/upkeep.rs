//! Timers and what housekeeping reports: heartbeat, pauses, retries, takeover, trimming.

use std::time::Duration;

use tokio::time::Instant;

use super::super::housekeeping::{self, Control, Tick};
use crate::diagnose::chain;
use crate::streams::family::Family;
use crate::streams::lane::Lane;

use super::{BLOCK, Session, TRIM_EVERY, WORTH_A_RECORD};

/// How soon a claim is repeated that came before what it was to bring.
const CLAIM_AGAIN_MS: u64 = 5;
/// How much later one that failed is.
const CLAIM_FAILED_MS: u64 = 200;

impl Session {
    pub(super) fn next_timer(&self) -> Instant {
        let now_ms = self.now_ms();
        let at = |ms: u64| Instant::now() + Duration::from_millis(ms.saturating_sub(now_ms));
        let due = self.due.iter().filter(|(family, _)| self.may_claim(family)).map(|(_, ms)| *ms).min();
        [
            Some(self.tick_at),
            Some(self.control_at).filter(|_| !self.busy.control),
            self.read_again_at,
            self.outbox.due(),
            due.map(at),
            self.next_later.filter(|_| !self.busy.control).map(at),
            self.next_permits().map(at),
            self.started_records_at,
            self.stopping.as_ref().map(|stopping| stopping.deadline),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(self.tick_at)
    }

    pub(super) fn on_timer(&mut self) {
        let now = Instant::now();
        if self.tick_at <= now {
            self.tick_at = now + self.settings.interval;
            self.vitals.tick_begins();
            if !self.busy.tick {
                self.busy.tick = true;
                let details = self.details();
                let ordered = self.shared.wanted_ordered(&self.bus);
                housekeeping::tick(
                    &self.bus,
                    &self.shared,
                    &self.settings,
                    &self.id,
                    details,
                    ordered,
                    self.events.clone(),
                );
            }
            self.ticks += 1;
            if self.ticks.is_multiple_of(TRIM_EVERY) && !self.vitals.redis_down() {
                housekeeping::trim(
                    &self.bus,
                    &self.settings.retention,
                    self.scheduler.lanes().collect(),
                    self.ticks / TRIM_EVERY,
                );
            }
            self.hand_back_stale();
            self.scheduler.relevel(self.clock.now_ms());
            self.vitals.tick_ended();
        }
        let later_due = self.next_later.is_some_and(|ms| ms <= self.now_ms());
        if (self.control_at <= now || later_due) && !self.busy.control {
            self.busy.control = true;
            self.control_at = now + BLOCK;
            self.next_later = None;
            housekeeping::control(&self.bus, self.events.clone());
        }
        if self.read_again_at.is_some_and(|at| at <= now) {
            self.read_again_at = None;
        }
        if self.started_records_at.is_some_and(|at| at <= now) {
            self.record_started(now);
        }
        self.claim_due();
        self.scheduler.wake_rated();
        if self.stopping.as_ref().is_some_and(|stopping| stopping.deadline <= now && !stopping.cancelled) {
            self.give_up();
        }
    }

    /// Journals the start of dispatches that run for a while, so that a crash doesn't hide that they had started.
    pub(super) fn record_started(&mut self, now: Instant) {
        self.started_records_at = None;
        for flight in self.in_flight.values_mut().filter(|flight| !flight.row.start_known) {
            if flight.started + WORTH_A_RECORD <= now {
                self.outbox.started(&flight.lane, (flight.handler.kind(), flight.handler.target()), flight.row.clone());
                flight.row.start_known = true;
            } else {
                let at = flight.started + WORTH_A_RECORD;
                self.started_records_at = Some(self.started_records_at.map_or(at, |other| other.min(at)));
            }
        }
    }

    pub(super) fn may_claim(&self, family: &Family) -> bool {
        // What an ordered family waits for is claimed however much of it is in view already: it goes first.
        !self.busy.claims.contains_key(family)
            && !self.scheduler.is_held(family)
            && (self.scheduler.heads_of(family) < 64 || self.retrying.contains_key(family))
            && self.stopping.is_none()
            && !self.vitals.redis_down()
    }

    pub(super) fn claim_due(&mut self) {
        let now = self.now_ms();
        let ready: Vec<Family> = self
            .due
            .iter()
            .filter(|(family, ms)| **ms <= now && self.may_claim(family))
            .map(|(family, _)| family.clone())
            .collect();
        for family in ready {
            self.due.remove(&family);
            let written = self.retrying.get(&family).copied().filter(|batch| self.outbox.is_written(*batch));
            self.busy.claims.insert(family.clone(), written);
            housekeeping::claim(&self.bus, &self.id, family, self.events.clone());
        }
        let next = self.due.values().min().map(|ms| ms.saturating_sub(now));
        self.vitals.set_next_due(next);
    }

    /// A claim of `family` ended; `seen` is the batch of endings that was written before it, `next` what is due after it.
    pub(super) fn claimed(&mut self, family: Family, seen: Option<u64>, next: Option<Option<u64>>) {
        let soon = self.now_ms() + CLAIM_AGAIN_MS;
        let Some(next) = next else {
            self.due.insert(family, soon + CLAIM_FAILED_MS);
            return;
        };
        let is_all_in_view = match self.retrying.get(&family) {
            None => true,
            // Something may have come back since, or not be written yet: another claim is needed.
            Some(batch) => seen == Some(*batch),
        };
        if is_all_in_view {
            let awaits = next.is_some() && self.plan(&family).ordered;
            self.retrying.remove(&family);
            if awaits {
                self.retrying.insert(family.clone(), 0);
            }
            // What was waiting is in view now, and as the oldest it goes first.
            self.scheduler.set_awaits_retry(&family, awaits);
            if let Some(next) = next {
                self.due.insert(family, next);
            }
            return;
        }
        self.due.insert(family, next.map_or(soon, |next| next.min(soon)));
    }

    /// Gives back what has waited a second for a slot while another drainer has some free.
    pub(super) fn hand_back_stale(&mut self) {
        if self.shared.others_have_room() && self.handlers_in_flight() >= self.settings.concurrency {
            let before = self.now_ms().saturating_sub(1000);
            for (lane, head) in self.scheduler.take_stale(before) {
                self.hand_back(&lane, &head.item);
            }
        }
    }

    pub(super) fn details(&self) -> String {
        let free = self.settings.concurrency.saturating_sub(self.handlers_in_flight() + self.scheduler.heads());
        self.shared.details(self.in_flight.len(), free, &self.plans.hash(), &self.reduced())
    }

    pub(super) fn on_tick(&mut self, tick: Result<Tick, crate::streams::redis::Error>) -> std::ops::ControlFlow<()> {
        self.busy.tick = false;
        match tick {
            Ok(Tick::Lost) => return std::ops::ControlFlow::Break(()),
            Ok(Tick::ForeignInstance { found }) => {
                self.vitals.set_redis_down(true);
                tracing::error!(
                    found,
                    expected = self.shared.instance_id,
                    "another Redis answers on this address; nothing is drained until ours is back"
                );
            }
            Ok(Tick::Live { now_ms, lanes, ordered, expired, others_free }) => {
                if self.vitals.redis_down() {
                    tracing::info!("Redis is back");
                    self.vitals.set_redis_down(false);
                }
                self.clock.set(now_ms);
                self.shared.set_others_free(others_free);
                self.hold_locks(ordered);
                for lane in lanes {
                    self.know(&lane);
                }
                if self.wake_mode {
                    // The safety net of the ready set: a drainer may have died between taking a lane and reading it.
                    self.scheduler.expect_more_everywhere();
                }
                self.apply_holds();
                if !expired.is_empty() && self.stopping.is_none() {
                    self.busy.reaps += 1;
                    housekeeping::reap(
                        &self.bus,
                        &self.id,
                        expired,
                        self.scheduler.lanes().collect(),
                        self.events.clone(),
                    );
                }
            }
            Err(error) => self.redis_is_down(&error),
        }
        std::ops::ControlFlow::Continue(())
    }

    pub(super) fn on_control(&mut self, control: Result<Control, crate::streams::redis::Error>) {
        self.busy.control = false;
        match control {
            Ok(control) => {
                self.pauses = control.pauses;
                self.learn_circuits(control.circuits);
                self.learn_steering(control.steerings);
                self.pauses_read = Some(Instant::now());
                self.next_later = control.next_later;
                // Merged, not replaced: what failed a moment ago may not be in this snapshot yet. A stale entry costs
                // one claim that finds nothing.
                self.due.extend(control.due);
                self.hold_ordered_for_retries();
                self.apply_holds();
                if self.pauses.rev >= self.unseen_rev {
                    let deferred = std::mem::take(&mut self.deferred);
                    self.offer_all(deferred);
                } else {
                    self.control_at = Instant::now();
                }
            }
            Err(error) => self.redis_is_down(&error),
        }
    }

    /// Takes note of the ordered families whose locks are ours. Of one that was not ours before, whatever its last holder
    /// left behind comes first: what a takeover grants, and what is due.
    fn hold_locks(&mut self, mut keys: Vec<String>) {
        let (plans, shared, bus) = (&self.plan_of, &self.shared, &self.bus);
        let ordered = plans.iter().filter(|(_, plan)| plan.ordered).map(|(family, _)| family);
        let new: Vec<(Family, String)> = ordered
            .filter(|family| !shared.holds_ordered(bus, family))
            .map(|family| (family.clone(), bus.keys.ordered(family)))
            .filter(|(_, key)| keys.contains(key))
            .collect();
        if self.busy.reaps > 0 {
            keys.retain(|key| new.iter().all(|(_, other)| other != key));
        } else {
            for (family, _) in new {
                self.retrying.entry(family.clone()).or_insert(0);
                self.due.insert(family.clone(), 0);
                self.scheduler.set_awaits_retry(&family, true);
            }
        }
        self.shared.set_held_ordered(keys);
    }

    /// What an ordered family has in `due` goes before anything else of it, whoever put it there.
    fn hold_ordered_for_retries(&mut self) {
        let ordered: Vec<Family> =
            self.plan_of.iter().filter(|(_, plan)| plan.ordered).map(|(family, _)| family.clone()).collect();
        for family in ordered {
            if self.due.contains_key(&family) {
                self.retrying.entry(family.clone()).or_insert(0);
            }
            let awaits = self.retrying.contains_key(&family)
                || self.due.contains_key(&family)
                || self.busy.claims.contains_key(&family);
            self.scheduler.set_awaits_retry(&family, awaits);
        }
    }

    pub(super) fn redis_is_down(&mut self, error: &crate::streams::redis::Error) {
        if error.is_unreachable() && !self.vitals.redis_down() {
            tracing::warn!(error = %chain(error), "Redis can't be reached; waiting for it");
            self.vitals.set_redis_down(true);
        }
        // Look again soon: the tick is what finds Redis back.
        let pause = Duration::from_millis(100 + rand::random::<u64>() % 400);
        self.tick_at = self.tick_at.min(Instant::now() + pause);
    }

    pub(super) fn on_hint(&mut self, hint: &str) {
        match hint.split_once(' ') {
            Some(("lane", name)) => {
                if let Ok(lane) = name.parse::<Lane>() {
                    self.know(&lane);
                }
            }
            Some(("pause" | "resume" | "breaker" | "steer", _)) => self.control_at = Instant::now(),
            Some(("ready", name)) => {
                if let Ok(lane) = name.parse::<Lane>() {
                    self.know(&lane);
                    self.scheduler.expect_more(&lane);
                }
            }
            _ => {}
        }
    }
}
