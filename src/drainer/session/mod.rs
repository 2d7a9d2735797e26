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

mod breaking;
mod dispatch;
mod endings;
mod pacing;
mod reading;
mod routes;
mod stopping;
mod upkeep;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use breaking::Breaking;
use pacing::Pacing;

use super::adaptive::Adaptive;
use super::clock::Clock;
use super::handlers::{Handler, Outcome};
use super::housekeeping::{Control, Tick};
use super::outbox::{Flushed, Outbox};
use super::plan::{FamilyPlan, Plans, RetryPolicy};
use super::reader::{Answer, Reader, Which};
use super::scheduler::{Picked, Scheduler, Slots};
use super::vitals::Vitals;
use super::{Settings, Shared};
use crate::streams::breaker::Circuit;
use crate::streams::bus::Bus;
use crate::streams::control::Pauses;
use crate::streams::envelope::Envelope;
use crate::streams::family::Family;
use crate::streams::lane::Lane;
use crate::streams::lease::Leased;
use crate::streams::records::DispatchRow;
use crate::streams::steering::Permits;

/// How long a blocking read lasts at most: pauses are looked at again after it.
const BLOCK: Duration = Duration::from_millis(500);
/// A dispatch that runs longer gets its `started` record before it ends.
const WORTH_A_RECORD: Duration = Duration::from_millis(50);
/// Reads of busy lanes under way at once: while one batch is being worked on, the next is on its way.
const REFILLS: usize = 2;
/// Dispatches started in one turn of the loop.
const TURN: usize = 64;
/// Deliveries to endpoints under way at once.
const DELIVERIES: usize = 64;
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
    /// A takeover ended; what it granted came before.
    Reaped,
    /// Retries that became due are ours now.
    Claimed {
        /// Their family.
        family: Family,
        /// The entries.
        entries: Vec<Leased>,
        /// When the next of the family is due, ms; `None` when Redis did not say.
        next: Option<Option<u64>>,
    },
    /// A circuit breaker was changed, or found changed.
    Breaker {
        /// Its family.
        family: Family,
        /// What it is now; `None` is closed.
        circuit: Option<Circuit>,
    },
    /// Permits of a family that has a pace; `None` when Redis did not say.
    Permits {
        /// Its family.
        family: Family,
        /// What was granted.
        permits: Option<Permits>,
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
    slots: Slots,
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
    /// Of those, calls of functions.
    calls: usize,
    /// Of those, deliveries to endpoints.
    deliveries: usize,
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
    /// Ordered families of which something is, or may be, in `due`, and the batch of endings that put ours there: nothing
    /// else of them starts until a claim made after that batch has brought it all.
    retrying: HashMap<Family, u64>,
    /// Families that wait for a route, each journaled once.
    unrouted: HashSet<Family>,
    /// Entries read after a pause that we haven't seen yet, and the counter that tells of it.
    deferred: Vec<Leased>,
    unseen_rev: u64,
    /// Circuit breakers, what this drainer saw of families, and its probes.
    breaking: Breaking,
    /// Families whose concurrency adapts.
    adaptive: HashMap<Family, Adaptive>,
    /// Other priorities and paces that an operator set.
    pacing: Pacing,
    /// The last turn ended at its bound: there may be more to start.
    turn_is_cut: bool,
}

#[derive(Default)]
struct Busy {
    tick: bool,
    control: bool,
    /// Families asked for what is due, with the batch of [`Session::retrying`] that was written before.
    claims: HashMap<Family, Option<u64>>,
    /// Takeovers under way.
    reaps: usize,
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
        // Locks are a session's: those of the one before are not ours.
        shared.set_held_ordered(Vec::new());
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
            calls: 0,
            deliveries: 0,
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
            breaking: Breaking::default(),
            adaptive: HashMap::new(),
            pacing: Pacing::default(),
            deferred: Vec::new(),
            unseen_rev: 0,
            unrouted: HashSet::new(),
            retrying: HashMap::new(),
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

    fn advance(&mut self) {
        if self.stopping.is_none() {
            self.ask_readers();
            self.start_what_may();
            self.ask_for_permits();
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
            self.tell_free_slots();
            let has_room = self.outbox.pending() < 4096;
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

    fn tell_free_slots(&mut self) {
        self.scheduler.set_full(Slots::Handlers, self.handlers_in_flight() >= self.settings.concurrency);
        self.scheduler.set_full(Slots::Calls, self.calls >= self.settings.calls);
        self.scheduler.set_full(Slots::Deliveries, self.deliveries >= DELIVERIES);
    }

    /// Dispatches of events in flight.
    fn handlers_in_flight(&self) -> usize {
        self.in_flight.len().saturating_sub(self.calls + self.deliveries)
    }

    fn may_start(&self) -> bool {
        let fresh = self.pauses_read.is_some_and(|at| at.elapsed() < Duration::from_secs(2));
        fresh && self.runs_alone.is_none() && !self.vitals.redis_down()
    }

    fn on(&mut self, event: Event) -> std::ops::ControlFlow<()> {
        match event {
            Event::Read(answer) => self.on_read(answer),
            Event::Finished { token, outcome } => self.finish(token, outcome),
            Event::Flushed(Flushed::Fenced) => return std::ops::ControlFlow::Break(()),
            Event::Flushed(Flushed::Written { revoked, flight }) => {
                self.outbox.landed(flight);
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
                let seen = self.busy.claims.remove(&family).flatten();
                self.offer_all(entries);
                self.claimed(family, seen, next);
            }
            Event::Reaped => self.busy.reaps = self.busy.reaps.saturating_sub(1),
            Event::Breaker { family, circuit } => self.on_breaker(family, circuit),
            Event::Permits { family, permits } => self.on_permits(family, permits),
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
}
