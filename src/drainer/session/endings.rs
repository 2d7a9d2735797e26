//! How dispatches end: acknowledged, retried, dead, handed back.

use super::super::handlers::{Handler, Outcome};
use super::super::scheduler::{Picked, Slots};
use crate::streams::complete::{Completion, DeadRecord, Ending};
use crate::streams::entry_id::EntryId;
use crate::streams::envelope::Envelope;
use crate::streams::family::Family;
use crate::streams::lane::Lane;
use crate::streams::lease::{Failures, Leased};
use crate::streams::records::{DispatchRow, Fact};

use super::{InFlight, Session, breaking};

impl Session {
    pub(super) fn finish(&mut self, token: u64, outcome: Outcome) {
        self.vitals.dispatch_ended(token);
        if let Some(flight) = self.in_flight.remove(&token) {
            self.calls -= usize::from(flight.slots == Slots::Calls);
            self.deliveries -= usize::from(flight.slots == Slots::Deliveries);
            self.end(token, flight, outcome);
        }
    }

    pub(super) fn end(&mut self, token: u64, flight: InFlight, outcome: Outcome) {
        self.vitals.progressed();
        if self.runs_alone == Some(token) {
            self.runs_alone = None;
        }
        self.scheduler.finished(&flight.lane.family);
        let now = self.now_ms();
        let InFlight { lane, leased, handler, started, mut row, retry, .. } = flight;
        row.duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        if !handler.ends_at_once() {
            self.judge(token, &lane.family, &row.id.0, handler.kind(), &outcome, now);
        }
        self.adapt(&lane.family, row.duration_us, breaking::verdict(handler.kind(), &outcome), now);
        let completion = |ending| Completion { lane: lane.clone(), id: leased.id, ending };
        if !row.start_known && matches!(outcome, Outcome::Retry { .. } | Outcome::Fail { .. }) {
            // An end without its start would be missing from every count of starts.
            let started = DispatchRow { duration_us: 0, ..row.clone() };
            self.outbox.started(&lane, (handler.kind(), handler.target()), started);
        }
        let is_downstream = breaking::verdict(handler.kind(), &outcome) == Some(false);
        match outcome {
            Outcome::Done => {
                let marked = leased.failures != Failures::default();
                let ending = completion(Ending::Done { forget_failures: marked });
                self.outbox.completed(ending, (handler.kind(), handler.target()), row);
            }
            Outcome::Cancelled => self.hand_back(&lane, &leased),
            Outcome::Retry { error, not_before, status } if leased.deliveries < retry.attempts => {
                let failures = Failures {
                    count: leased.failures.count + 1,
                    error: error.clone(),
                    first_ms: if leased.failures.first_ms == 0 { now } else { leased.failures.first_ms },
                    last_ms: now,
                    status,
                    quarantined: false,
                };
                let delay = retry.delay(failures.count, rand::random()).max(not_before.unwrap_or_default());
                let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                let fact = failed(&lane, &leased, &row, &*handler, &error, status)
                    .with("downstream", is_downstream)
                    .with("retryInMs", delay_ms)
                    .with("retryBackoffMs", delay_ms)
                    .with("final", false);
                let due = self.due.entry(lane.family.clone()).or_insert(u64::MAX);
                *due = (*due).min(now + delay_ms + 1);
                if self.plan(&lane.family).ordered {
                    self.scheduler.set_awaits_retry(&lane.family, true);
                }
                self.outbox.ending(completion(Ending::Retry { delay, failures }), Some(fact));
                self.comes_back(&lane.family);
            }
            Outcome::Retry { error, status, .. } => {
                let fact = failed(&lane, &leased, &row, &*handler, &error, status)
                    .with("downstream", is_downstream)
                    .with("final", true)
                    .with("retryBackoffMs", 0);
                self.outbox.fact(fact);
                self.dead(&lane, &leased, &*handler, "attempts_exhausted", error, status, now);
            }
            Outcome::Fail { reason, error, status } => {
                let fact = failed(&lane, &leased, &row, &*handler, &error, status)
                    .with("downstream", false)
                    .with("final", true)
                    .with("retryBackoffMs", 0);
                self.outbox.fact(fact);
                self.dead(&lane, &leased, &*handler, reason, error, status, now);
            }
        }
    }

    /// Dead-letters an entry that no handler is given.
    pub(super) fn bury(
        &mut self,
        picked: Picked<Leased>,
        handler: &dyn Handler,
        reason: &str,
        error: String,
        status: Option<i32>,
        now: u64,
    ) {
        self.scheduler.finished(&picked.lane.family);
        self.dead(&picked.lane, &picked.head.item, handler, reason, error, status, now);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn dead(
        &mut self,
        lane: &Lane,
        leased: &Leased,
        handler: &dyn Handler,
        reason: &str,
        error: String,
        status: Option<i32>,
        now: u64,
    ) {
        self.vitals.progressed();
        let event_id = Envelope::decode(&leased.envelope).map(|envelope| envelope.id).ok();
        let record = DeadRecord {
            reason: reason.to_owned(),
            error: error.clone(),
            attempts: leased.deliveries,
            lane: lane.to_string(),
            entry_id: leased.id.to_string(),
            first_at: leased.enqueued_ms,
            last_at: now,
            handler: format!("{} {}", handler.kind(), handler.target()),
            redrives: leased.redrive.as_ref().map_or(0, |redrive| redrive.redrives),
            status,
        };
        let mut fact = Fact::new("queue", "queue.dead")
            .entry(lane, leased.id)
            .warn()
            .with("eventName", lane.family.as_str())
            .with("reason", reason)
            .with("attempts", leased.deliveries)
            .with("lastError", error);
        fact.event_id = event_id;
        let ending = Completion { lane: lane.clone(), id: leased.id, ending: Ending::Dead(record) };
        self.outbox.ending(ending, Some(fact));
    }

    pub(super) fn hand_back(&mut self, lane: &Lane, leased: &Leased) {
        let deliveries = leased.deliveries.saturating_sub(1);
        let ending = Completion { lane: lane.clone(), id: leased.id, ending: Ending::HandBack { deliveries } };
        self.outbox.ending(ending, None);
        self.comes_back(&lane.family);
    }

    /// An entry of `family` was put into `due` with the last ending: of an ordered one, nothing may go past it.
    fn comes_back(&mut self, family: &Family) {
        if self.stopping.is_none() && self.plan(family).ordered {
            self.retrying.insert(family.clone(), self.outbox.last_batch());
            self.due.entry(family.clone()).or_insert(0);
            self.scheduler.set_awaits_retry(family, true);
        }
    }
}

fn failed(
    lane: &Lane,
    leased: &Leased,
    row: &DispatchRow,
    handler: &dyn Handler,
    error: &str,
    status: Option<i32>,
) -> Fact {
    let id: EntryId = leased.id;
    #[allow(clippy::cast_precision_loss)]
    let duration_ms = row.duration_us as f64 / 1000.0;
    let fact = Fact::new("queue-drainer", "queue.dispatch.failed")
        .entry(lane, id)
        .event(row.id.0.clone())
        .failed(error)
        .with("eventName", lane.family.as_str())
        .with("attempt", leased.deliveries)
        .with("handlerType", handler.kind())
        .with("handlerTarget", handler.target())
        .with("status", status)
        .with("waitTimeMs", row.wait_ms)
        .with("durationMs", duration_ms)
        .with("startedAtMs", row.started_ms);
    match row.trace {
        Some(trace) => fact.with("causedBy", trace.to_string()),
        None => fact,
    }
}
