//! Ends of a session: a graceful stop, a stop at once, a lost lease.

use tokio::time::Instant;

use super::{CLEAN_UP, End, Session, Stopping};

impl Session {
    pub(super) fn begin_stop(&mut self) {
        self.vitals.set_stopping();
        self.wait_reader.unblock(&self.bus);
        let heads = self.scheduler.take_all();
        let mut handed_back = heads.len() + self.alone.len();
        for (lane, head) in heads {
            self.hand_back(&lane, &head.item);
        }
        for picked in std::mem::take(&mut self.alone) {
            self.hand_back(&picked.lane, &picked.head.item);
        }
        for leased in std::mem::take(&mut self.deferred) {
            handed_back += 1;
            self.hand_back(&leased.lane.clone(), &leased);
        }
        let deadline = Instant::now() + self.settings.stop_deadline;
        self.stopping = Some(Stopping { deadline, active: self.in_flight.len(), handed_back, cancelled: false });
    }

    /// The deadline has passed, or a second signal came: handlers are cancelled, and what they don't give back stays
    /// with the lease.
    pub(super) fn give_up(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if stopping.cancelled {
            // The handlers had their time to clean up.
            stopping.deadline = Instant::now();
        } else {
            stopping.cancelled = true;
            stopping.deadline = Instant::now() + CLEAN_UP.min(self.settings.stop_deadline / 4);
            for flight in self.in_flight.values() {
                flight.cancel.cancel();
            }
        }
    }

    pub(super) fn stopped(&self) -> Option<End> {
        let stopping = self.stopping.as_ref()?;
        let reads_ended = !self.wait_reader.busy && self.refill_readers.iter().all(|reader| !reader.busy);
        let finished = self.in_flight.is_empty() && self.outbox.is_empty() && reads_ended;
        let out_of_time = stopping.cancelled && stopping.deadline <= Instant::now();
        (finished || out_of_time).then_some(End::Stopped {
            active: stopping.active,
            handed_back: stopping.handed_back,
            abandoned: self.in_flight.len(),
        })
    }

    pub(super) fn lost(&mut self) -> End {
        let mut dropped = 0;
        for (token, flight) in self.in_flight.drain() {
            flight.cancel.cancel();
            self.vitals.dispatch_ended(token);
            dropped += 1;
        }
        End::Lost { dropped: dropped + self.outbox.pending() }
    }
}
