//! Starting a dispatch: decode, check age and attempts, hand it to its handler.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::handlers::{Dispatch, Handler, Outcome};
use super::super::plan::FamilyPlan;
use super::super::scheduler::{Picked, Slots};
use crate::streams::envelope::Envelope;
use crate::streams::lease::{Failures, Leased};
use crate::streams::records::{DispatchRow, PackedId};
use crate::streams::trace::TraceContext;

use super::{CLEAN_UP, Event, InFlight, Session, WORTH_A_RECORD};

impl Session {
    pub(super) fn start(&mut self, picked: Picked<Leased>, now: u64) {
        let plan = self.plan(&picked.lane.family);
        let leased = &picked.head.item;
        let Some(handler) = plan.handler.clone() else {
            self.hand_back(&picked.lane, leased);
            self.scheduler.finished(&picked.lane.family);
            return;
        };
        let envelope = match Envelope::decode(&leased.envelope) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.bury(picked, &*handler, error.reason(), error.to_string(), None, now);
                return;
            }
        };
        let age = Duration::from_millis(now.saturating_sub(picked.head.enqueued_ms));
        if plan.max_age.is_some_and(|max| age > max) {
            let error = format!("it waited {} s, longer than the max_age of its registry entry", age.as_secs());
            self.bury(picked, &*handler, "expired", error, None, now);
            return;
        }
        if leased.deliveries > plan.retry.attempts {
            if leased.failures.count > 0 {
                let error = leased.failures.error.clone();
                let status = leased.failures.status;
                self.bury(picked, &*handler, "attempts_exhausted", error, status, now);
                return;
            }
            if leased.failures.quarantined {
                let error =
                    "the process ended each time this event was in flight, at last with nothing else".to_owned();
                self.bury(picked, &*handler, "crashed_process", error, None, now);
                return;
            }
            if self.runs_alone.is_none() {
                self.alone.push_back(picked);
                return;
            }
        }
        self.launch(picked, handler, &plan, envelope, now);
    }

    pub(super) fn launch(
        &mut self,
        picked: Picked<Leased>,
        handler: Arc<dyn Handler>,
        plan: &FamilyPlan,
        envelope: Envelope,
        now: u64,
    ) {
        let token = self.next_token;
        self.next_token += 1;
        let Picked { lane, head, promoted_from, .. } = picked;
        let leased = head.item;
        let at_once = handler.ends_at_once();
        let cancel = if at_once { self.never_cancelled.clone() } else { CancellationToken::new() };
        let row = DispatchRow {
            lane: 0,
            ms: leased.id.ms,
            seq: leased.id.seq,
            id: PackedId(envelope.id.clone()),
            handler: 0,
            attempt: leased.deliveries,
            wait_ms: now.saturating_sub(head.enqueued_ms),
            started_ms: now,
            duration_us: 0,
            promoted_from: promoted_from.map(|priority| priority.number()),
            start_known: false,
            trace: TraceContext::of_envelope(&envelope),
        };
        let dispatch = Dispatch {
            envelope: Arc::new(envelope),
            entry_id: leased.id,
            attempt: leased.deliveries,
            fence: u64::from(leased.deliveries),
            redrives: leased.redrive.as_ref().map_or(0, |redrive| redrive.redrives),
            timeout: plan.timeout,
            cancel: cancel.clone(),
        };
        let retry = plan.retry.clone();
        let started = Instant::now();
        let slots = plan.slots;
        let flight = InFlight { lane, leased, handler: handler.clone(), started, row, retry, cancel, slots };
        if at_once {
            let outcome = run_in_place(&*handler, dispatch);
            self.end(token, flight, outcome);
            return;
        }
        self.vitals.dispatch_begins(token, flight.leased.id, plan.timeout, handler.kind());
        self.shared.handlers.spawn(run(handler, dispatch, token, self.events.clone()));
        self.started_records_at.get_or_insert(started + WORTH_A_RECORD);
        self.calls += usize::from(slots == Slots::Calls);
        self.deliveries += usize::from(slots == Slots::Deliveries);
        let family = flight.lane.family.clone();
        self.in_flight.insert(token, flight);
        self.probe_begins(&family, token);
    }

    /// Runs an entry that was in flight at too many crashes with nothing beside it, after its mark is stored: if the
    /// process ends now, the next session knows whom to blame.
    pub(super) fn quarantine(&mut self, picked: Picked<Leased>) {
        self.runs_alone = Some(u64::MAX);
        let (bus, events) = (self.bus.clone(), self.events.clone());
        let failures = Failures { quarantined: true, ..picked.head.item.failures.clone() };
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(50);
            while bus.mark_failures(&picked.lane, picked.head.id, &failures).await.is_err() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            let _ = events.send(Event::Quarantined(Box::new(picked))).await;
        });
    }
}

/// Runs a handler that ends at once, on the loop itself.
fn run_in_place(handler: &dyn Handler, dispatch: Dispatch) -> Outcome {
    let run = std::panic::AssertUnwindSafe(|| handler.run(dispatch).now_or_never());
    let failed = |error: &str| Outcome::Retry { error: error.into(), not_before: None, status: None };
    match std::panic::catch_unwind(run) {
        Ok(Some(outcome)) => outcome,
        Ok(None) => failed("the handler promised to end at once, but did not"),
        Err(_) => failed("the handler panicked"),
    }
}

/// Runs one handler to its end. A panic is a failed attempt; one that outlives its timeout is cancelled, then dropped.
async fn run(handler: Arc<dyn Handler>, dispatch: Dispatch, token: u64, events: mpsc::Sender<Event>) {
    let (timeout, cancel) = (dispatch.timeout, dispatch.cancel.clone());
    let guarded = std::panic::AssertUnwindSafe(handler.run(dispatch)).catch_unwind();
    tokio::pin!(guarded);
    let timed_out = || {
        let error = format!("the handler did not end within {} ms", timeout.as_millis());
        Outcome::Retry { error, not_before: None, status: None }
    };
    let outcome = match tokio::time::timeout(timeout + Duration::from_secs(1), &mut guarded).await {
        Ok(ended) => ended,
        Err(_) => {
            cancel.cancel();
            match tokio::time::timeout(CLEAN_UP, &mut guarded).await {
                // Cancelled by us for taking too long is a failed attempt, not a hand-back.
                Ok(Ok(Outcome::Cancelled)) | Err(_) => Ok(timed_out()),
                Ok(ended) => ended,
            }
        }
    };
    let outcome = outcome.unwrap_or_else(|_| Outcome::Retry {
        error: "the handler panicked".into(),
        not_before: None,
        status: None,
    });
    let _ = events.send(Event::Finished { token, outcome }).await;
}
