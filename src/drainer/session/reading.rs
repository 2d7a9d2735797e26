//! What is read when, and where it goes.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::super::housekeeping::{self};
use super::super::reader::{Answer, Read, Request, Which};
use super::super::scheduler::Head;
use crate::diagnose::chain;
use crate::streams::keys::MAX_BLOCKING_LANES;
use crate::streams::lane::Lane;
use crate::streams::lease::{Leased, ReadLane};

use super::{BLOCK, Session};

impl Session {
    pub(super) fn ask_readers(&mut self) {
        if self.vitals.redis_down() || self.read_again_at.is_some() {
            return;
        }
        while let Some(idle) = self.refill_readers.iter().position(|reader| !reader.busy) {
            let (lanes, count) = self.scheduler.refill();
            if lanes.is_empty() {
                break;
            }
            let lanes = self.read_lanes(lanes);
            self.refill_readers[idle].ask(Request { lanes, count, block: None });
        }
        if self.wait_reader.busy {
            if self.scheduler.take_changed() {
                let wanted = self.scheduler.wants_wait();
                let missing = |a: &[Lane], b: &[Lane]| a.iter().any(|lane| !b.contains(lane));
                let held = self.waited_for.iter().any(|lane| self.scheduler.is_held(&lane.family));
                if !self.wake_mode && (held || missing(&wanted, &self.waited_for)) {
                    self.wait_reader.unblock(&self.bus);
                }
            }
            return;
        }
        self.scheduler.take_changed();
        self.wake_mode = self.scheduler.lane_count() > MAX_BLOCKING_LANES;
        if self.wake_mode {
            self.waited_for = Vec::new();
            self.wait_reader.ask(Request { lanes: Vec::new(), count: 0, block: Some(BLOCK) });
            return;
        }
        let wanted = self.scheduler.wants_wait();
        if !wanted.is_empty() {
            self.waited_for.clone_from(&wanted);
            let lanes = self.read_lanes(wanted);
            self.wait_reader.ask(Request { lanes, count: self.settings.rules.first_window, block: Some(BLOCK) });
        }
    }

    pub(super) fn read_lanes(&mut self, lanes: Vec<Lane>) -> Vec<ReadLane> {
        lanes
            .into_iter()
            .map(|lane| {
                let key = self.keys_of.entry(lane.clone()).or_insert_with(|| self.bus.keys.lane(&lane)).clone();
                ReadLane { lane, key }
            })
            .collect()
    }

    pub(super) fn on_read(&mut self, answer: Answer) {
        let Answer { which, request, result } = answer;
        match which {
            Which::Wait => self.wait_reader.busy = false,
            Which::Refill(n) => {
                self.refill_readers[n].busy = false;
                for lane in &request.lanes {
                    self.scheduler.answered(&lane.lane, request.count);
                }
            }
        }
        let now = self.now_ms();
        match result {
            Ok(Read::Woken(true)) => self.read_ready(),
            Ok(Read::Woken(false)) => {}
            Ok(Read::Entries { entries, rev }) => {
                let mut got: HashMap<Lane, usize> = HashMap::new();
                for leased in &entries {
                    *got.entry(leased.lane.clone()).or_default() += 1;
                }
                if rev > self.pauses.rev && !entries.is_empty() {
                    // A pause was set that we haven't seen: these entries wait until we have.
                    self.unseen_rev = self.unseen_rev.max(rev);
                    self.deferred.extend(entries);
                    self.control_at = Instant::now();
                } else {
                    self.offer_all(entries);
                }
                for lane in &request.lanes {
                    let count = got.get(&lane.lane).copied().unwrap_or(0);
                    if count > 0 || request.block.is_none() {
                        self.scheduler.filled(&lane.lane, count, request.count, now);
                    }
                }
            }
            Err(error) if error.reply_code() == Some("NOGROUP") || error.reply_code() == Some("UNBLOCKED") => {
                // A lane was deleted by hand or evicted: it comes back empty, and fsck is due for its family.
                housekeeping::recreate_groups(&self.bus, request.lanes);
                self.read_again_at = Some(Instant::now() + Duration::from_millis(50));
            }
            Err(error) => {
                if error.is_unreachable() {
                    self.redis_is_down(&error);
                } else {
                    tracing::error!(error = %chain(&error), "reading lanes failed");
                }
                self.read_again_at = Some(Instant::now() + Duration::from_millis(100 + rand::random::<u64>() % 400));
            }
        }
    }

    pub(super) fn offer_all(&mut self, entries: Vec<Leased>) {
        let now = self.now_ms();
        for leased in entries {
            self.offer(leased, now);
        }
    }

    pub(super) fn offer(&mut self, leased: Leased, now: u64) {
        if self.stopping.is_some() || self.scheduler.is_held(&leased.lane.family) {
            let lane = leased.lane.clone();
            self.hand_back(&lane, &leased);
            return;
        }
        self.know(&leased.lane.clone());
        let head = Head {
            id: leased.id,
            enqueued_ms: leased.enqueued_ms,
            bytes: leased.envelope.len() + 128,
            read_ms: now,
            item: leased,
        };
        let lane = head.item.lane.clone();
        self.scheduler.offer(&lane, head);
    }

    /// Above 128 lanes: reads the lanes that an append marked as ready.
    pub(super) fn read_ready(&self) {
        if self.stopping.is_some() {
            return;
        }
        housekeeping::mark_ready(&self.bus, self.events.clone());
    }
}
