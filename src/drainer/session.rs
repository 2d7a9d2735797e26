//! One session of the drainer: the loop that owns the scheduler and everything in flight.
//!
//! The loop never waits for Redis. Whatever must be asked is asked by a task that sends its answer back as an
//! [`Event`]; so a slow Redis delays answers, not the loop, and the watchdog can tell the two apart.
//!
//! ```text
//! readers ─┐                        ┌─▶ handler tasks ─┐
//! tick  ───┼─▶ events ─▶ scheduler ─┤                  ├─▶ events ─▶ outbox ─▶ complete.lua
//! control ─┘                        └─▶ readers asked  ─┘
//! ```
//! # Invariants
//! 1. What is in memory is leased by this session; once the session is lost, all of it is dropped.
//! 2. Nothing starts while the pauses can't be read.
//! 3. In flight ≤ `concurrency`; heads ≤ `prefetch`; endings not yet written are bounded by both.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::handlers::{Dispatch, Handler, Outcome};
use super::housekeeping::{self, Control, Tick};
use super::outbox::{Flushed, Outbox};
use super::plan::{FamilyPlan, Plans, RetryPolicy};
use super::reader::{Answer, Read, Reader, Request, Which};
use super::scheduler::{Head, Limits, Picked, Scheduler};
use super::vitals::Vitals;
use super::{Settings, Shared};
use crate::diagnose::chain;
use crate::streams::bus::Bus;
use crate::streams::complete::{Completion, DeadRecord, Ending};
use crate::streams::control::Pauses;
use crate::streams::entry_id::EntryId;
use crate::streams::envelope::Envelope;
use crate::streams::family::Family;
use crate::streams::keys::MAX_BLOCKING_LANES;
use crate::streams::lane::Lane;
use crate::streams::lease::{Failures, Leased, ReadLane};
use crate::streams::records::{DispatchRow, Fact, PackedId};

/// How long a blocking read lasts at most: pauses are looked at again after it.
const BLOCK: Duration = Duration::from_millis(500);
/// A dispatch that runs longer gets its `started` record before it ends.
const WORTH_A_RECORD: Duration = Duration::from_millis(50);
/// Reads of busy lanes under way at once: while one batch is being worked on, the next is on its way.
const REFILLS: usize = 2;
/// Dispatches started in one turn of the loop.
const TURN: usize = 64;
/// Ticks between two passes of the retention.
const TRIM_EVERY: u64 = 5;
/// Beyond its timeout a handler has this long to clean up before it is dropped.
const CLEAN_UP: Duration = Duration::from_secs(3);

/// What the loop is told.
#[derive(Debug)]
pub enum Event {
    /// A read ended.
    Read(Answer),
    /// A handler ended.
    Finished {
        /// The dispatch.
        token: u64,
        /// How.
        outcome: Outcome,
    },
    /// A batch of endings was written, or not.
    Flushed(Flushed),
    /// The housekeeping of one tick is done.
    Tick(Box<Result<Tick, crate::streams::redis::Error>>),
    /// Pauses, due and scheduled events were looked at.
    Control(Box<Result<Control, crate::streams::redis::Error>>),
    /// A hint came over the channel.
    Hint(String),
    /// What an ended session held is ours now.
    Granted(Vec<Leased>),
    /// Retries that became due are ours now.
    Claimed {
        /// Their family.
        family: Family,
        /// The entries.
        entries: Vec<Leased>,
        /// When the next of the family is due, ms.
        next: Option<u64>,
    },
    /// The registry changed.
    PlansChanged,
    /// An entry may run alone now: its mark is stored.
    Quarantined(Box<Picked<Leased>>),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The drainer was told to stop and did.
    Stopped {
        /// Dispatches in flight when it was told.
        active: usize,
        /// Entries given back.
        handed_back: usize,
        /// Dispatches left to their lease.
        abandoned: usize,
    },
    /// Another drainer took over what this session held.
    Lost {
        /// Results that were dropped.
        dropped: usize,
    },
}

struct InFlight {
    lane: Lane,
    leased: Leased,
    handler: Arc<dyn Handler>,
    started: Instant,
    row: DispatchRow,
    retry: RetryPolicy,
    cancel: CancellationToken,
}

/// The loop's state.
pub struct Session {
    bus: Bus,
    settings: Settings,
    shared: Shared,
    id: String,
    clock: Clock,
    vitals: Arc<Vitals>,
    plans: Arc<dyn Plans>,
    plan_of: HashMap<Family, FamilyPlan>,
    scheduler: Scheduler<Leased>,
    in_flight: HashMap<u64, InFlight>,
    next_token: u64,
    outbox: Outbox,
    wait_reader: Reader,
    refill_readers: [Reader; REFILLS],
    waited_for: Vec<Lane>,
    keys_of: HashMap<Lane, String>,
    pauses: Pauses,
    pauses_read: Option<Instant>,
    due: HashMap<Family, u64>,
    next_later: Option<u64>,
    busy: Busy,
    tick_at: Instant,
    control_at: Instant,
    read_again_at: Option<Instant>,
    alone: VecDeque<Picked<Leased>>,
    runs_alone: Option<u64>,
    events: mpsc::Sender<Event>,
    stopping: Option<Stopping>,
    wake_mode: bool,
    started_records_at: Option<Instant>,
    ticks: u64,
    never_cancelled: CancellationToken,
    /// Families that wait for a route, each journaled once.
    unrouted: HashSet<Family>,
    /// Entries read after a pause that we haven't seen yet, and the counter that tells of it.
    deferred: Vec<Leased>,
    unseen_rev: u64,
    /// The last turn ended at its bound: there may be more to start.
    turn_is_cut: bool,
}

#[derive(Default)]
struct Busy {
    tick: bool,
    control: bool,
    claims: HashSet<Family>,
}

struct Stopping {
    deadline: Instant,
    active: usize,
    handed_back: usize,
    cancelled: bool,
}

impl Session {
    /// Opens the loop's state for session `id`, which the caller has opened in Redis.
    pub fn new(bus: Bus, settings: Settings, shared: Shared, id: String) -> (Self, mpsc::Receiver<Event>) {
        let (events, queue) = mpsc::channel(4096);
        let now = Instant::now();
        let session = Self {
            wait_reader: Reader::start(&bus, &id, Which::Wait, events.clone()),
            refill_readers: std::array::from_fn(|n| Reader::start(&bus, &id, Which::Refill(n), events.clone())),
            scheduler: Scheduler::new(settings.rules.clone()),
            clock: shared.clock.clone(),
            vitals: shared.vitals.clone(),
            plans: shared.plans.clone(),
            bus,
            settings,
            shared,
            id,
            plan_of: HashMap::new(),
            in_flight: HashMap::new(),
            next_token: 0,
            outbox: Outbox::default(),
            waited_for: Vec::new(),
            keys_of: HashMap::new(),
            pauses: Pauses::default(),
            pauses_read: None,
            due: HashMap::new(),
            next_later: None,
            busy: Busy::default(),
            tick_at: now,
            control_at: now,
            read_again_at: None,
            alone: VecDeque::new(),
            runs_alone: None,
            events,
            stopping: None,
            wake_mode: false,
            started_records_at: None,
            ticks: 0,
            never_cancelled: CancellationToken::new(),
            turn_is_cut: false,
            deferred: Vec::new(),
            unseen_rev: 0,
            unrouted: HashSet::new(),
        };
        (session, queue)
    }

    /// Runs until told to stop, or until the session is lost.
    pub async fn run(
        mut self,
        mut queue: mpsc::Receiver<Event>,
        stop: &CancellationToken,
        at_once: &CancellationToken,
    ) -> End {
        let feeds = self.shared.start_feeds(&self.bus, self.events.clone());
        let mut batch = Vec::with_capacity(256);
        let end = loop {
            self.advance();
            if let Some(end) = self.stopped() {
                break end;
            }
            let timer = self.next_timer();
            tokio::select! {
                biased;
                () = at_once.cancelled(), if self.stopping.is_some() => self.give_up(),
                () = stop.cancelled(), if self.stopping.is_none() => self.begin_stop(),
                _ = queue.recv_many(&mut batch, 256) => {
                    let mut lost = false;
                    for event in batch.drain(..) {
                        lost |= self.on(event).is_break();
                    }
                    if lost {
                        break self.lost();
                    }
                }
                () = tokio::time::sleep_until(timer) => self.on_timer(),
                () = tokio::task::yield_now(), if self.turn_is_cut => {}
            }
        };
        feeds.cancel();
        end
    }

    fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    // ---- what there is to do now ------------------------------------------------------------------------------

    fn advance(&mut self) {
        if self.stopping.is_none() {
            self.ask_readers();
            self.start_what_may();
        }
        let idle = self.in_flight.is_empty();
        self.outbox.flush(&self.bus, &self.id, &self.events, idle || self.stopping.is_some());
    }

    fn start_what_may(&mut self) {
        self.turn_is_cut = false;
        if !self.may_start() {
            return;
        }
        let now = self.now_ms();
        // A turn is bounded, so that reads are asked for while the rest of the heads is being worked on.
        self.turn_is_cut = true;
        for _ in 0..TURN {
            let has_room = self.in_flight.len() < self.settings.concurrency && self.outbox.pending() < 4096;
            let picked = if has_room && self.alone.is_empty() { self.scheduler.pick(now) } else { None };
            let Some(picked) = picked else {
                self.turn_is_cut = false;
                break;
            };
            self.start(picked, now);
        }
        if self.in_flight.is_empty()
            && self.runs_alone.is_none()
            && let Some(picked) = self.alone.pop_front()
        {
            self.quarantine(picked);
        }
    }

    fn may_start(&self) -> bool {
        let fresh = self.pauses_read.is_some_and(|at| at.elapsed() < Duration::from_secs(2));
        fresh && self.runs_alone.is_none() && !self.vitals.redis_down()
    }

    fn ask_readers(&mut self) {
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

    fn read_lanes(&mut self, lanes: Vec<Lane>) -> Vec<ReadLane> {
        lanes
            .into_iter()
            .map(|lane| {
                let key = self.keys_of.entry(lane.clone()).or_insert_with(|| self.bus.keys.lane(&lane)).clone();
                ReadLane { lane, key }
            })
            .collect()
    }

    // ---- starting a dispatch ----------------------------------------------------------------------------------

    fn start(&mut self, picked: Picked<Leased>, now: u64) {
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

    fn launch(
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
        let flight = InFlight { lane, leased, handler: handler.clone(), started, row, retry, cancel };
        if at_once {
            let outcome = run_in_place(&*handler, dispatch);
            self.end(token, flight, outcome);
            return;
        }
        self.vitals.dispatch_begins(token, flight.leased.id, plan.timeout);
        self.shared.handlers.spawn(run(handler, dispatch, token, self.events.clone()));
        self.started_records_at.get_or_insert(started + WORTH_A_RECORD);
        self.in_flight.insert(token, flight);
    }

    /// Runs an entry that was in flight at too many crashes with nothing beside it, after its mark is stored: if the
    /// process ends now, the next session knows whom to blame.
    fn quarantine(&mut self, picked: Picked<Leased>) {
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

    // ---- endings ----------------------------------------------------------------------------------------------

    fn finish(&mut self, token: u64, outcome: Outcome) {
        self.vitals.dispatch_ended(token);
        if let Some(flight) = self.in_flight.remove(&token) {
            self.end(token, flight, outcome);
        }
    }

    fn end(&mut self, token: u64, flight: InFlight, outcome: Outcome) {
        self.vitals.progressed();
        if self.runs_alone == Some(token) {
            self.runs_alone = None;
        }
        self.scheduler.finished(&flight.lane.family);
        let now = self.now_ms();
        let InFlight { lane, leased, handler, started, mut row, retry, .. } = flight;
        row.duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let completion = |ending| Completion { lane: lane.clone(), id: leased.id, ending };
        match outcome {
            Outcome::Done => {
                let marked = leased.failures != Failures::default();
                let ending = completion(Ending::Done { forget_failures: marked });
                if marked {
                    self.scheduler.set_awaits_retry(&lane.family, false);
                }
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
                    .with("retryInMs", delay_ms)
                    .with("retryBackoffMs", delay_ms)
                    .with("final", false);
                let due = self.due.entry(lane.family.clone()).or_insert(u64::MAX);
                *due = (*due).min(now + delay_ms + 1);
                if self.plan(&lane.family).ordered {
                    self.scheduler.set_awaits_retry(&lane.family, true);
                }
                self.outbox.ending(completion(Ending::Retry { delay, failures }), Some(fact));
            }
            Outcome::Retry { error, status, .. } => {
                let fact = failed(&lane, &leased, &row, &*handler, &error, status)
                    .with("final", true)
                    .with("retryBackoffMs", 0);
                self.outbox.fact(fact);
                self.dead(&lane, &leased, &*handler, "attempts_exhausted", error, status, now);
            }
            Outcome::Fail { reason, error, status } => {
                let fact = failed(&lane, &leased, &row, &*handler, &error, status)
                    .with("final", true)
                    .with("retryBackoffMs", 0);
                self.outbox.fact(fact);
                self.dead(&lane, &leased, &*handler, reason, error, status, now);
            }
        }
    }

    /// Dead-letters an entry that no handler is given.
    fn bury(
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
    fn dead(
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
        self.scheduler.set_awaits_retry(&lane.family, false);
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

    fn hand_back(&mut self, lane: &Lane, leased: &Leased) {
        let deliveries = leased.deliveries.saturating_sub(1);
        let ending = Completion { lane: lane.clone(), id: leased.id, ending: Ending::HandBack { deliveries } };
        self.outbox.ending(ending, None);
    }

    // ---- events -----------------------------------------------------------------------------------------------

    fn on(&mut self, event: Event) -> std::ops::ControlFlow<()> {
        match event {
            Event::Read(answer) => self.on_read(answer),
            Event::Finished { token, outcome } => self.finish(token, outcome),
            Event::Flushed(Flushed::Fenced) => return std::ops::ControlFlow::Break(()),
            Event::Flushed(Flushed::Written { revoked }) => {
                self.outbox.landed();
                for entry in revoked {
                    tracing::warn!(
                        entry,
                        "an operator took this entry away while it was running; its result is dropped"
                    );
                }
            }
            Event::Tick(tick) => return self.on_tick(*tick),
            Event::Control(control) => self.on_control(*control),
            Event::Hint(hint) => self.on_hint(&hint),
            Event::Granted(entries) => self.offer_all(entries),
            Event::Claimed { family, entries, next } => {
                self.busy.claims.remove(&family);
                if let Some(next) = next {
                    self.due.insert(family, next);
                }
                self.offer_all(entries);
            }
            Event::PlansChanged => self.replan(),
            Event::Quarantined(mut picked) => {
                // Its mark is stored: whatever ends it must take the mark away too.
                picked.head.item.failures.quarantined = true;
                let (plan, now) = (self.plan(&picked.lane.family), self.now_ms());
                self.runs_alone = Some(self.next_token);
                match (plan.handler.clone(), Envelope::decode(&picked.head.item.envelope)) {
                    (Some(handler), Ok(envelope)) if self.stopping.is_none() => {
                        self.launch(*picked, handler, &plan, envelope, now);
                    }
                    _ => {
                        self.runs_alone = None;
                        self.scheduler.finished(&picked.lane.family);
                        self.hand_back(&picked.lane, &picked.head.item);
                    }
                }
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn on_read(&mut self, answer: Answer) {
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

    fn offer_all(&mut self, entries: Vec<Leased>) {
        let now = self.now_ms();
        for leased in entries {
            self.offer(leased, now);
        }
    }

    fn offer(&mut self, leased: Leased, now: u64) {
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
    fn read_ready(&self) {
        if self.stopping.is_some() {
            return;
        }
        housekeeping::mark_ready(&self.bus, self.events.clone());
    }

    fn on_hint(&mut self, hint: &str) {
        match hint.split_once(' ') {
            Some(("lane", name)) => {
                if let Ok(lane) = name.parse::<Lane>() {
                    self.know(&lane);
                }
            }
            Some(("pause" | "resume", _)) => self.control_at = Instant::now(),
            Some(("ready", name)) => {
                if let Ok(lane) = name.parse::<Lane>() {
                    self.know(&lane);
                    self.scheduler.expect_more(&lane);
                }
            }
            _ => {}
        }
    }

    /// Makes a lane known, with its family's limits and holds.
    fn know(&mut self, lane: &Lane) {
        if self.scheduler.add_lane(lane) && !self.plan_of.contains_key(&lane.family) {
            let family = lane.family.clone();
            self.apply_plan(&family);
        }
    }

    fn plan(&mut self, family: &Family) -> FamilyPlan {
        if let Some(plan) = self.plan_of.get(family) {
            return plan.clone();
        }
        let plan = self.plans.plan(family);
        self.plan_of.insert(family.clone(), plan.clone());
        plan
    }

    fn apply_plan(&mut self, family: &Family) {
        let plan = self.plan(family);
        let limits = Limits {
            concurrency: plan.concurrency,
            weight: plan.weight,
            ordered: plan.ordered,
            rate_per_s: plan.rate_per_s,
        };
        self.scheduler.set_limits(family, limits);
        if plan.ordered {
            self.shared.want_ordered(family);
        }
        self.apply_hold(family);
    }

    /// A family is held by a pause, for want of a handler, or because another drainer runs it in order.
    fn apply_hold(&mut self, family: &Family) {
        let plan = self.plan(family);
        let unrouted = plan.handler.is_none();
        if !unrouted {
            self.unrouted.remove(family);
        } else if self.unrouted.insert(family.clone()) {
            let reason = plan.unrouted_because.unwrap_or_default();
            tracing::warn!(family = %family, reason, "no route: its events are kept until one appears");
            let fact = Fact::new("queue", "queue.unrouted").warn();
            self.outbox.fact(fact.with("eventName", family.as_str()).with("reason", reason));
        }
        let elsewhere = plan.ordered && !self.shared.holds_ordered(&self.bus, family);
        let held = unrouted || elsewhere || self.pauses.until(family, self.now_ms()).is_some();
        for (lane, head) in self.scheduler.set_held(family, held) {
            self.hand_back(&lane, &head.item);
        }
    }

    fn apply_holds(&mut self) {
        let families: Vec<Family> = self.scheduler.families().cloned().collect();
        let mut explained = Vec::new();
        for family in &families {
            self.apply_hold(family);
            if self.scheduler.is_held(family) || self.scheduler.is_limited(family) {
                explained.push(family.to_string());
            }
        }
        self.vitals.set_explained(explained);
    }

    fn replan(&mut self) {
        self.plan_of.clear();
        let families: Vec<Family> = self.scheduler.families().cloned().collect();
        for family in families {
            self.apply_plan(&family);
        }
    }

    // ---- timers -----------------------------------------------------------------------------------------------

    fn next_timer(&self) -> Instant {
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
            self.started_records_at,
            self.stopping.as_ref().map(|stopping| stopping.deadline),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(self.tick_at)
    }

    fn on_timer(&mut self) {
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
    fn record_started(&mut self, now: Instant) {
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

    fn may_claim(&self, family: &Family) -> bool {
        !self.busy.claims.contains(family)
            && !self.scheduler.is_held(family)
            && self.scheduler.heads_of(family) < 64
            && self.stopping.is_none()
            && !self.vitals.redis_down()
    }

    fn claim_due(&mut self) {
        let now = self.now_ms();
        let ready: Vec<Family> = self
            .due
            .iter()
            .filter(|(family, ms)| **ms <= now && self.may_claim(family))
            .map(|(family, _)| family.clone())
            .collect();
        for family in ready {
            self.due.remove(&family);
            self.busy.claims.insert(family.clone());
            housekeeping::claim(&self.bus, &self.id, family, self.events.clone());
        }
        let next = self.due.values().min().map(|ms| ms.saturating_sub(now));
        self.vitals.set_next_due(next);
    }

    /// Gives back what has waited a second for a slot while another drainer has some free.
    fn hand_back_stale(&mut self) {
        if self.shared.others_have_room() && self.in_flight.len() >= self.settings.concurrency {
            let before = self.now_ms().saturating_sub(1000);
            for (lane, head) in self.scheduler.take_stale(before) {
                self.hand_back(&lane, &head.item);
            }
        }
    }

    fn details(&self) -> String {
        let free = self.settings.concurrency.saturating_sub(self.in_flight.len() + self.scheduler.heads());
        self.shared.details(self.in_flight.len(), free, &self.plans.hash())
    }

    fn on_tick(&mut self, tick: Result<Tick, crate::streams::redis::Error>) -> std::ops::ControlFlow<()> {
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
                self.shared.set_held_ordered(ordered);
                for lane in lanes {
                    self.know(&lane);
                }
                if self.wake_mode {
                    // The safety net of the ready set: a drainer may have died between taking a lane and reading it.
                    self.scheduler.expect_more_everywhere();
                }
                self.apply_holds();
                if !expired.is_empty() && self.stopping.is_none() {
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

    fn on_control(&mut self, control: Result<Control, crate::streams::redis::Error>) {
        self.busy.control = false;
        match control {
            Ok(control) => {
                self.pauses = control.pauses;
                self.pauses_read = Some(Instant::now());
                self.next_later = control.next_later;
                for (family, ms) in control.due {
                    self.due.insert(family, ms);
                }
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

    fn redis_is_down(&mut self, error: &crate::streams::redis::Error) {
        if error.is_unreachable() && !self.vitals.redis_down() {
            tracing::warn!(error = %chain(error), "Redis can't be reached; waiting for it");
            self.vitals.set_redis_down(true);
        }
        // Look again soon: the tick is what finds Redis back.
        let pause = Duration::from_millis(100 + rand::random::<u64>() % 400);
        self.tick_at = self.tick_at.min(Instant::now() + pause);
    }

    // ---- stopping ---------------------------------------------------------------------------------------------

    fn begin_stop(&mut self) {
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
    fn give_up(&mut self) {
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

    fn stopped(&self) -> Option<End> {
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

    fn lost(&mut self) -> End {
        let mut dropped = 0;
        for (token, flight) in self.in_flight.drain() {
            flight.cancel.cancel();
            self.vitals.dispatch_ended(token);
            dropped += 1;
        }
        End::Lost { dropped: dropped + self.outbox.pending() }
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

fn failed(
    lane: &Lane,
    leased: &Leased,
    row: &DispatchRow,
    handler: &dyn Handler,
    error: &str,
    status: Option<i32>,
) -> Fact {
    let id: EntryId = leased.id;
    Fact::new("queue-drainer", "queue.dispatch.failed")
        .entry(lane, id)
        .event(row.id.0.clone())
        .failed(error)
        .with("eventName", lane.family.as_str())
        .with("attempt", leased.deliveries)
        .with("handlerType", handler.kind())
        .with("handlerTarget", handler.target())
        .with("status", status)
        .with("waitTimeMs", row.wait_ms)
        .with("durationMs", row.duration_us / 1000)
}
