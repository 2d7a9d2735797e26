//! What the watchdog may see of the drainer without asking it: a few numbers, written by the loop, read by a thread.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::streams::entry_id::EntryId;

/// Entry, start, own timeout, kind of its handler.
type InFlight = (EntryId, u64, u64, &'static str);

/// Written by the drainer's loop, read by its watchdog and by health checks. Times are ms since `epoch`.
#[derive(Debug)]
pub struct Vitals {
    epoch: Instant,
    tick_started: AtomicU64,
    tick_finished: AtomicU64,
    last_progress: AtomicU64,
    next_due: AtomicU64,
    stopping: AtomicBool,
    redis_down: AtomicBool,
    /// In flight, by token.
    dispatches: Mutex<HashMap<u64, InFlight>>,
    /// Turns that nobody has asked about yet.
    turns: Mutex<Vec<Duration>>,
    /// Families that something explains: paused, unrouted, at a limit.
    explained: Mutex<Vec<String>>,
}

/// What the watchdog judges. Ages and times in ms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Now, on the same clock as the rest.
    pub now: u64,
    /// When the last tick began.
    pub tick_started: u64,
    /// When the last tick ended; before `tick_started` while one is running.
    pub tick_finished: u64,
    /// When something was last dispatched or completed.
    pub last_progress: u64,
    /// Dispatches in flight: entry, age beyond their own timeout.
    pub dispatches: Vec<(EntryId, u64)>,
    /// Ages without the timeout taken off, in the same order.
    pub ages: Vec<u64>,
    /// Entries that nothing explains and nobody runs.
    pub depth: u64,
    /// Since when the watchdog has seen such entries at every look.
    pub backlog_since: u64,
    /// A retry is due later: there is a reason to wait.
    pub retry_due_later: bool,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            tick_started: AtomicU64::new(0),
            tick_finished: AtomicU64::new(0),
            last_progress: AtomicU64::new(0),
            next_due: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            redis_down: AtomicBool::new(false),
            dispatches: Mutex::new(HashMap::new()),
            turns: Mutex::default(),
            explained: Mutex::new(Vec::new()),
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Vitals {
    fn now(&self) -> u64 {
        ms(self.epoch.elapsed())
    }

    /// The drainer's housekeeping took so long.
    pub fn turned(&self, took: Duration) {
        if let Ok(mut turns) = self.turns.lock()
            && turns.len() < 4096
        {
            turns.push(took);
        }
    }

    /// How long the turns since the last call took.
    #[must_use]
    pub fn take_turns(&self) -> Vec<Duration> {
        self.turns.lock().map(|mut turns| std::mem::take(&mut *turns)).unwrap_or_default()
    }

    /// Dispatches in flight by the kind of their handler.
    #[must_use]
    pub fn in_flight(&self) -> HashMap<&'static str, usize> {
        let mut by_kind = HashMap::new();
        if let Ok(dispatches) = self.dispatches.lock() {
            dispatches.values().for_each(|(_, _, _, kind)| *by_kind.entry(*kind).or_default() += 1);
        }
        by_kind
    }

    /// A tick begins.
    pub fn tick_begins(&self) {
        self.tick_started.store(self.now(), Ordering::Relaxed);
    }

    /// A tick has ended.
    pub fn tick_ended(&self) {
        self.tick_finished.store(self.now(), Ordering::Relaxed);
    }

    /// Something was dispatched or completed.
    pub fn progressed(&self) {
        self.last_progress.store(self.now(), Ordering::Relaxed);
    }

    /// A dispatch begins.
    pub fn dispatch_begins(&self, token: u64, entry: EntryId, timeout: Duration, handler: &'static str) {
        if let Ok(mut dispatches) = self.dispatches.lock() {
            dispatches.insert(token, (entry, self.now(), ms(timeout), handler));
        }
    }

    /// A dispatch has ended.
    pub fn dispatch_ended(&self, token: u64) {
        if let Ok(mut dispatches) = self.dispatches.lock() {
            dispatches.remove(&token);
        }
    }

    /// Families whose depth something explains.
    pub fn set_explained(&self, families: Vec<String>) {
        if let Ok(mut explained) = self.explained.lock() {
            *explained = families;
        }
    }

    /// The same, for the watchdog.
    #[must_use]
    pub fn explained(&self) -> Vec<String> {
        self.explained.lock().map(|explained| explained.clone()).unwrap_or_default()
    }

    /// The next retry's time, ms from now; `None` when there is none.
    pub fn set_next_due(&self, in_ms: Option<u64>) {
        self.next_due.store(in_ms.map_or(0, |in_ms| self.now() + in_ms + 1), Ordering::Relaxed);
    }

    /// The drainer is stopping: nothing is a stall any more.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the drainer is stopping.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Redis can't be reached: waiting is right, restarting would not help.
    pub fn set_redis_down(&self, down: bool) {
        self.redis_down.store(down, Ordering::Relaxed);
    }

    /// Whether the loop has found Redis unreachable.
    #[must_use]
    pub fn redis_down(&self) -> bool {
        self.redis_down.load(Ordering::Relaxed)
    }

    /// Whether a tick ended within `limit`.
    #[must_use]
    pub fn is_ticking(&self, limit: Duration) -> bool {
        self.now().saturating_sub(self.tick_finished.load(Ordering::Relaxed)) < ms(limit)
    }

    /// Everything but the depth, at one moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let now = self.now();
        let mut dispatches: Vec<(EntryId, u64, u64)> = self
            .dispatches
            .lock()
            .map(|dispatches| {
                dispatches.values().map(|(id, start, own, _)| (*id, now.saturating_sub(*start), *own)).collect()
            })
            .unwrap_or_default();
        dispatches.sort_by_key(|(_, age, _)| std::cmp::Reverse(*age));
        Snapshot {
            now,
            tick_started: self.tick_started.load(Ordering::Relaxed),
            tick_finished: self.tick_finished.load(Ordering::Relaxed),
            last_progress: self.last_progress.load(Ordering::Relaxed),
            dispatches: dispatches.iter().map(|(id, age, own)| (*id, age.saturating_sub(*own))).collect(),
            ages: dispatches.iter().map(|(_, age, _)| *age).collect(),
            depth: 0,
            backlog_since: now,
            retry_due_later: self.next_due.load(Ordering::Relaxed) > now,
        }
    }
}
