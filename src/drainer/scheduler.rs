//! What to dispatch next. Pure: no I/O, no clock; `now` is Redis's time in ms and comes from the caller.
//!
//! The scheduler sees the first few entries, the *heads*, of every readable lane. So the oldest entry of a lane is
//! always in view, aging needs no rewriting, and a backlog of a million entries or a held family delays nobody.
//!
//! # Order
//! 1. Effective priority: P0 and P1 as stored; P2 and P3 gain a level per `aging`, never above P1.
//! 2. Families of one level share by deficit round robin: `weight` events a turn.
//! 3. Inside a family: time of append, then entry id, as integers.
//!
//! # Invariants
//! 1. A held family, one at its limit, and an ordered one with work in flight are never picked.
//! 2. Work conserving: when any eligible head exists, one is picked.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::streams::entry_id::EntryId;
use crate::streams::family::Family;
use crate::streams::lane::Lane;
use crate::streams::priority::Priority;

/// How families share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fairness {
    /// Deficit round robin among families of one effective priority.
    Drr,
    /// Strict time order.
    Off,
}

/// Rules that hold for all families.
#[derive(Debug, Clone)]
pub struct Rules {
    /// P2 and P3 gain one level per this much waiting.
    pub aging: Duration,
    /// How families share.
    pub fairness: Fairness,
    /// Percent of dispatches that go to the oldest head below the chosen level.
    pub low_share: u8,
    /// Heads a lane starts with; grows while they are used up quickly.
    pub first_window: usize,
    /// Heads in memory, over all lanes.
    pub prefetch: usize,
    /// Bytes of heads in memory, over all lanes.
    pub prefetch_bytes: usize,
}

/// Limits of one family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// In flight at once in this process.
    pub concurrency: u32,
    /// Events a turn.
    pub weight: u32,
    /// One at a time, and nothing while a retry is outstanding.
    pub ordered: bool,
    /// Starts per second.
    pub rate_per_s: Option<f64>,
    /// Whose slots it takes.
    pub slots: Slots,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: u32::MAX, weight: 1, ordered: false, rate_per_s: None, slots: Slots::Handlers }
    }
}

/// The kinds of dispatches, each with slots of its own, so that none keeps another from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// Handlers of events.
    Handlers,
    /// Calls of functions: long, and spent waiting for another process.
    Calls,
    /// Deliveries to endpoints of others, who may be slow.
    Deliveries,
}

/// One entry in view.
#[derive(Debug)]
pub struct Head<T> {
    /// Its id.
    pub id: EntryId,
    /// When it was first appended, ms.
    pub enqueued_ms: u64,
    /// What the caller needs to run it.
    pub item: T,
    /// Bytes it holds in memory.
    pub bytes: usize,
    /// When it was read, ms.
    pub read_ms: u64,
}

/// What to run now.
#[derive(Debug)]
pub struct Picked<T> {
    /// Where it is.
    pub lane: Lane,
    /// The entry.
    pub head: Head<T>,
    /// The stored priority, when aging had raised the effective one.
    pub promoted_from: Option<Priority>,
    /// The level it was picked at.
    pub effective: Priority,
}

#[derive(Debug)]
struct LaneHeads<T> {
    known: bool,
    heads: VecDeque<Head<T>>,
    /// The last read was full: there is more behind the heads.
    more: bool,
    window: usize,
    /// Entries asked for by reads under way.
    requested: usize,
    filled_ms: u64,
    average_bytes: usize,
}

impl<T> LaneHeads<T> {
    const fn new(window: usize) -> Self {
        Self { known: false, heads: VecDeque::new(), more: false, window, requested: 0, filled_ms: 0, average_bytes: 0 }
    }
}

#[derive(Debug)]
struct FamilyState<T> {
    name: Family,
    lanes: [LaneHeads<T>; 4],
    limits: Limits,
    held: bool,
    running: u32,
    /// An ordered family has an entry waiting for its retry: nothing of it may go past that one.
    awaits_retry: bool,
    deficit: u32,
    /// The level whose ring it is in.
    ring: Option<usize>,
    /// Earliest next start under `rate_per_s`, ms.
    not_before_ms: f64,
    /// What its events count as instead of their stored priority.
    priority: Option<Priority>,
    /// Starts that its pace allows; `None` when it has none.
    grant: Option<Grant>,
}

/// Starts that are allowed until some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grant {
    /// So many.
    pub left: u32,
    /// Until then, ms.
    pub until_ms: u64,
}

impl Grant {
    const fn allows(self, now_ms: u64) -> bool {
        self.left > 0 && now_ms < self.until_ms
    }
}

/// The heads of all lanes and the turns of all families.
#[derive(Debug)]
pub struct Scheduler<T> {
    rules: Rules,
    families: Vec<FamilyState<T>>,
    index: HashMap<Family, usize>,
    rings: [VecDeque<usize>; 4],
    picks: u64,
    heads: usize,
    /// Entries asked for by reads under way, over all lanes.
    requested: usize,
    bytes: usize,
    /// The latest time the caller told.
    now_ms: u64,
    lane_count: usize,
    /// What [`Scheduler::wants_wait`] answers may have changed.
    changed: bool,
    /// No slot of this kind is free.
    full: [bool; 3],
}

impl<T> Scheduler<T> {
    /// Knows no lane yet.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            families: Vec::new(),
            index: HashMap::new(),
            rings: std::array::from_fn(|_| VecDeque::new()),
            picks: 0,
            heads: 0,
            requested: 0,
            bytes: 0,
            now_ms: 0,
            lane_count: 0,
            changed: false,
            full: [false; 3],
        }
    }

    fn family(&mut self, family: &Family) -> usize {
        if let Some(&index) = self.index.get(family) {
            return index;
        }
        self.families.push(FamilyState {
            name: family.clone(),
            lanes: std::array::from_fn(|_| LaneHeads::new(self.rules.first_window)),
            limits: Limits::default(),
            held: false,
            running: 0,
            awaits_retry: false,
            deficit: 0,
            ring: None,
            not_before_ms: 0.0,
            priority: None,
            grant: None,
        });
        self.index.insert(family.clone(), self.families.len() - 1);
        self.families.len() - 1
    }

    /// Makes a lane known. True when it was not.
    pub fn add_lane(&mut self, lane: &Lane) -> bool {
        let index = self.family(&lane.family);
        let new = !std::mem::replace(&mut self.families[index].lanes[lane.priority as usize].known, true);
        self.lane_count += usize::from(new);
        self.changed |= new;
        new
    }

    /// How many lanes are known.
    #[must_use]
    pub const fn lane_count(&self) -> usize {
        self.lane_count
    }

    /// Whether [`Scheduler::wants_wait`] may answer differently since this was last asked.
    pub const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    /// An append told that `lane` has something to read.
    pub fn expect_more(&mut self, lane: &Lane) {
        let index = self.family(&lane.family);
        self.families[index].lanes[lane.priority as usize].more = true;
    }

    /// Every lane may have something to read.
    pub fn expect_more_everywhere(&mut self) {
        for state in self.families.iter_mut().flat_map(|family| &mut family.lanes).filter(|lane| lane.known) {
            state.more = true;
        }
    }

    /// Whether a limit of its own keeps `family` from starting more.
    #[must_use]
    pub fn is_limited(&self, family: &Family) -> bool {
        self.index.get(family).is_some_and(|&index| {
            let state = &self.families[index];
            state.limits.rate_per_s.is_some() || state.running > 0 || state.awaits_retry || state.grant.is_some()
        })
    }

    /// Every known lane.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> + '_ {
        self.families.iter().flat_map(|family| {
            Priority::ALL
                .into_iter()
                .filter(|priority| family.lanes[*priority as usize].known)
                .map(|priority| Lane::new(family.name.clone(), priority))
        })
    }

    /// Every known family.
    pub fn families(&self) -> impl Iterator<Item = &Family> {
        self.families.iter().map(|family| &family.name)
    }

    /// Sets a family's limits.
    pub fn set_limits(&mut self, family: &Family, limits: Limits) {
        let index = self.family(family);
        self.families[index].limits = limits;
        self.activate(index);
    }

    /// Tells whether slots of a kind are free. What waited for one takes part again when there is.
    pub fn set_full(&mut self, slots: Slots, full: bool) {
        let was_full = std::mem::replace(&mut self.full[slots as usize], full);
        if was_full && !full {
            for index in 0..self.families.len() {
                if self.families[index].limits.slots == slots {
                    self.activate(index);
                }
            }
        }
    }

    /// Holds a family or lets it go on. Returns the heads that must be handed back.
    pub fn set_held(&mut self, family: &Family, held: bool) -> Vec<(Lane, Head<T>)> {
        let index = self.family(family);
        self.changed |= self.families[index].held != held;
        self.families[index].held = held;
        if !held {
            self.activate(index);
            return Vec::new();
        }
        self.take_heads(index, |_| true)
    }

    /// Whether a family is held.
    #[must_use]
    pub fn is_held(&self, family: &Family) -> bool {
        self.index.get(family).is_some_and(|&index| self.families[index].held)
    }

    /// Lets the events of a family count as of another priority, or as of their own again.
    pub fn set_priority(&mut self, family: &Family, priority: Option<Priority>) {
        let index = self.family(family);
        if std::mem::replace(&mut self.families[index].priority, priority) != priority {
            self.leave(index);
            self.activate(index);
        }
    }

    /// Gives a family a pace, or what its pace allows now; `None` lets it go on as fast as it can.
    pub fn set_grant(&mut self, family: &Family, grant: Option<Grant>) {
        let index = self.family(family);
        self.families[index].grant = grant;
        self.activate(index);
    }

    /// Whether events of a family are in view and only its pace keeps them from starting.
    #[must_use]
    pub fn wants_grant(&self, family: &Family, now_ms: u64) -> bool {
        let state = self.index.get(family).map(|&index| &self.families[index]);
        let has_none = |state: &&FamilyState<T>| state.grant.is_some_and(|grant| !grant.allows(now_ms));
        state.filter(has_none).is_some_and(|state| {
            !state.held
                && state.running < state.limits.concurrency
                && state.lanes.iter().any(|lane| !lane.heads.is_empty())
        })
    }

    /// Tells whether an ordered family has an entry waiting for its retry.
    pub fn set_awaits_retry(&mut self, family: &Family, awaits: bool) {
        let index = self.family(family);
        self.changed |= self.families[index].awaits_retry != awaits;
        self.families[index].awaits_retry = awaits;
        self.activate(index);
    }

    /// Entries in view.
    #[must_use]
    pub const fn heads(&self) -> usize {
        self.heads
    }

    /// Entries of `family` in view.
    #[must_use]
    pub fn heads_of(&self, family: &Family) -> usize {
        self.index.get(family).map_or(0, |&index| self.families[index].lanes.iter().map(|lane| lane.heads.len()).sum())
    }

    /// Entries of `family` in view, lane by lane.
    pub fn peek(&self, family: &Family) -> impl Iterator<Item = &Head<T>> {
        let state = self.index.get(family).map(|&index| &self.families[index]);
        state.into_iter().flat_map(|state| state.lanes.iter().flat_map(|lane| lane.heads.iter()))
    }

    /// Adds an entry that was read, claimed or taken over. It finds its place by age.
    pub fn offer(&mut self, lane: &Lane, head: Head<T>) {
        let index = self.family(&lane.family);
        self.heads += 1;
        self.bytes += head.bytes;
        self.now_ms = self.now_ms.max(head.read_ms);
        let state = &mut self.families[index].lanes[lane.priority as usize];
        self.lane_count += usize::from(!std::mem::replace(&mut state.known, true));
        state.average_bytes =
            if state.average_bytes == 0 { head.bytes } else { (state.average_bytes * 7 + head.bytes) / 8 };
        let key = (head.enqueued_ms, head.id);
        if state.heads.back().is_none_or(|last| (last.enqueued_ms, last.id) <= key) {
            state.heads.push_back(head);
        } else {
            let place = state.heads.partition_point(|other| (other.enqueued_ms, other.id) <= key);
            state.heads.insert(place, head);
        }
        self.activate(index);
    }

    /// Reports a read of `lane` that asked for `count` and got `got` entries.
    pub fn filled(&mut self, lane: &Lane, got: usize, count: usize, now_ms: u64) {
        let index = self.family(&lane.family);
        let state = &mut self.families[index].lanes[lane.priority as usize];
        let more = got >= count;
        self.changed |= state.more != more;
        state.more = more;
        if got == 0 {
            return;
        }
        // Used up within 50 ms: take more at once. Half a second and still there: take less, others may be idle.
        let age = now_ms.saturating_sub(state.filled_ms);
        if age < 50 {
            state.window = (state.window * 2).min(self.rules.prefetch.max(self.rules.first_window));
        } else if age > 500 {
            state.window = (state.window / 2).max(self.rules.first_window);
        }
        state.filled_ms = now_ms;
    }

    /// Lanes worth a read that returns at once, and how many entries of each: more is known to be there, and a quarter
    /// of the window is free. What is asked for counts as being there until [`Scheduler::answered`], so that reads may
    /// overlap without leasing more than the window. No window is larger than an even share of the prefetch: the lane
    /// that is served least would fill it with heads that wait, and the one whose turn it is would have none.
    pub fn refill(&mut self) -> (Vec<Lane>, usize) {
        let mut lanes = Vec::new();
        let (mut free_most, mut average) = (0, 0);
        let in_use = self.readable().filter(|(.., state)| state.more || !state.heads.is_empty()).count();
        let share = (self.rules.prefetch / in_use.max(1)).max(1);
        for (family, priority, state) in self.readable() {
            // What its pace does not let start should not wait here: another drainer may be granted it.
            let is_paced = self.index.get(family).is_some_and(|&index| self.families[index].grant.is_some());
            let window = if is_paced { self.rules.first_window } else { state.window }.min(share);
            let free = window.saturating_sub(state.heads.len() + state.requested);
            if state.more && free >= (window / 4).max(1) {
                free_most = free_most.max(free);
                average += state.average_bytes;
                lanes.push(Lane::new(family.clone(), priority));
            }
        }
        if lanes.is_empty() {
            return (lanes, 0);
        }
        average /= lanes.len();
        let room = self.rules.prefetch.saturating_sub(self.heads + self.requested);
        let by_bytes = self.rules.prefetch_bytes.saturating_sub(self.bytes) / average.max(1);
        if self.heads + self.requested > 0 && (room < lanes.len() || by_bytes < lanes.len()) {
            return (Vec::new(), 0);
        }
        let count = free_most.min(room.min(by_bytes) / lanes.len()).max(1);
        for lane in &lanes {
            self.expect(lane, count);
        }
        (lanes, count)
    }

    fn expect(&mut self, lane: &Lane, count: usize) {
        let index = self.family(&lane.family);
        self.families[index].lanes[lane.priority as usize].requested += count;
        self.requested += count;
    }

    /// A read of [`Scheduler::refill`] has been answered, or has failed.
    pub fn answered(&mut self, lane: &Lane, count: usize) {
        let index = self.family(&lane.family);
        let state = &mut self.families[index].lanes[lane.priority as usize];
        state.requested = state.requested.saturating_sub(count);
        self.requested = self.requested.saturating_sub(count);
    }

    /// Lanes to wait for: nothing is known to be there.
    pub fn wants_wait(&self) -> Vec<Lane> {
        self.readable()
            .filter(|(.., state)| !state.more && state.heads.len() < self.rules.first_window)
            .map(|(family, priority, _)| Lane::new(family.clone(), priority))
            .collect()
    }

    fn readable(&self) -> impl Iterator<Item = (&Family, Priority, &LaneHeads<T>)> {
        let open = |family: &&FamilyState<T>| !(family.held || family.limits.ordered && family.awaits_retry);
        self.families.iter().filter(open).flat_map(|family| {
            let lane = |priority: Priority| (&family.name, priority, &family.lanes[priority as usize]);
            Priority::ALL.into_iter().map(lane).filter(|(.., state)| state.known)
        })
    }

    /// Raises what has waited long enough. Called on the tick, so that aging doesn't depend on being served.
    pub fn relevel(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        for index in 0..self.families.len() {
            let (Some(ring), Some((level, _))) = (self.families[index].ring, self.best(index, now_ms)) else {
                continue;
            };
            if level != ring {
                self.leave(index);
                self.enter(index, level);
            }
        }
    }

    /// The next event to start, if any may start now.
    pub fn pick(&mut self, now_ms: u64) -> Option<Picked<T>> {
        self.now_ms = now_ms;
        let share = u64::from(self.rules.low_share);
        let is_low_turn = share > 0 && (self.picks + 1).is_multiple_of((100 / share.min(100)).max(2));
        if is_low_turn && let Some(index) = self.oldest_below(now_ms) {
            return self.take(index, now_ms);
        }
        if self.rules.fairness == Fairness::Off {
            let index = self.earliest(now_ms)?;
            return self.take(index, now_ms);
        }
        let mut level = 0;
        while level < 4 {
            let Some(&index) = self.rings[level].front() else {
                level += 1;
                continue;
            };
            match self.best(index, now_ms).filter(|_| self.eligible(index, now_ms)) {
                None => self.leave(index),
                Some((actual, _)) if actual != level => {
                    self.leave(index);
                    self.enter(index, actual);
                    level = level.min(actual);
                }
                Some(_) => return self.take(index, now_ms),
            }
        }
        None
    }

    /// A dispatch of `family` ended, or was given up before it started.
    pub fn finished(&mut self, family: &Family) {
        let index = self.family(family);
        let state = &mut self.families[index];
        state.running = state.running.saturating_sub(1);
        self.activate(index);
    }

    /// Lets families whose rate allows a start again take part.
    pub fn wake_rated(&mut self) {
        for index in 0..self.families.len() {
            if self.families[index].limits.rate_per_s.is_some() {
                self.activate(index);
            }
        }
    }

    /// Takes out heads read before `before_ms` that can't start: another drainer may have room for them.
    pub fn take_stale(&mut self, before_ms: u64) -> Vec<(Lane, Head<T>)> {
        (0..self.families.len()).flat_map(|index| self.take_heads(index, |head| head.read_ms < before_ms)).collect()
    }

    /// Takes out every head: the drainer stops.
    pub fn take_all(&mut self) -> Vec<(Lane, Head<T>)> {
        self.take_stale(u64::MAX)
    }

    fn take_heads(&mut self, index: usize, which: impl Fn(&Head<T>) -> bool) -> Vec<(Lane, Head<T>)> {
        let mut taken = Vec::new();
        let name = self.families[index].name.clone();
        for priority in Priority::ALL {
            let state = &mut self.families[index].lanes[priority as usize];
            let (out, kept): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut state.heads).into_iter().partition(&which);
            state.heads = kept;
            if !out.is_empty() {
                // They come back by the due set; the lane itself may hold more.
                state.window = self.rules.first_window;
            }
            for head in out {
                self.heads -= 1;
                self.bytes = self.bytes.saturating_sub(head.bytes);
                taken.push((Lane::new(name.clone(), priority), head));
            }
        }
        taken
    }

    fn eligible(&self, index: usize, now_ms: u64) -> bool {
        let state = &self.families[index];
        let limits = &state.limits;
        #[allow(clippy::cast_precision_loss)]
        let rate_allows = limits.rate_per_s.is_none() || state.not_before_ms <= now_ms as f64;
        let order_allows = !limits.ordered || (state.running == 0 && !state.awaits_retry);
        let is_free = !self.full[limits.slots as usize];
        let pace_allows = state.grant.is_none_or(|grant| grant.allows(now_ms));
        !state.held && is_free && state.running < limits.concurrency && order_allows && rate_allows && pace_allows
    }

    /// The level and lane of the head that goes first.
    fn best(&self, index: usize, now_ms: u64) -> Option<(usize, usize)> {
        let state = &self.families[index];
        Priority::ALL
            .into_iter()
            .filter_map(|priority| {
                let head = state.lanes[priority as usize].heads.front()?;
                let counts_as = state.priority.unwrap_or(priority);
                let level = effective(counts_as, head.enqueued_ms, now_ms, self.rules.aging);
                Some(((level as usize, head.enqueued_ms, head.id), priority as usize))
            })
            .min()
            .map(|((level, ..), lane)| (level, lane))
    }

    fn take(&mut self, index: usize, now_ms: u64) -> Option<Picked<T>> {
        let (level, lane) = self.best(index, now_ms)?;
        let priority = Priority::ALL[lane];
        let state = &mut self.families[index];
        let head = state.lanes[lane].heads.pop_front()?;
        self.changed |= state.lanes[lane].heads.len() + 1 == self.rules.first_window;
        state.running += 1;
        if let Some(rate) = state.limits.rate_per_s {
            #[allow(clippy::cast_precision_loss)]
            let now = now_ms as f64;
            state.not_before_ms = state.not_before_ms.max(now) + 1000.0 / rate.max(0.001);
        }
        if let Some(grant) = &mut state.grant {
            grant.left = grant.left.saturating_sub(1);
        }
        let counts_as = state.priority.unwrap_or(priority);
        if state.deficit == 0 {
            state.deficit = state.limits.weight.max(1);
        }
        state.deficit -= 1;
        let turn_over = state.deficit == 0;
        let lane = Lane::new(state.name.clone(), priority);
        self.heads -= 1;
        self.bytes = self.bytes.saturating_sub(head.bytes);
        self.picks += 1;
        match self.best(index, now_ms).filter(|_| self.eligible(index, now_ms)) {
            Some((next, _)) if turn_over || self.families[index].ring != Some(next) => {
                self.leave(index);
                self.enter(index, next);
            }
            Some(_) => {}
            None => self.leave(index),
        }
        let effective = Priority::ALL[level];
        Some(Picked { lane, head, promoted_from: (effective != counts_as).then_some(priority), effective })
    }

    /// Puts a family with something to start into the ring of its best head.
    fn activate(&mut self, index: usize) {
        if self.families[index].held {
            return;
        }
        let Some((level, _)) = self.best(index, self.now_ms) else { return };
        let ring = self.families[index].ring;
        if ring.is_none_or(|ring| level < ring) {
            self.leave(index);
            self.enter(index, level);
        }
    }

    fn enter(&mut self, index: usize, level: usize) {
        self.families[index].ring = Some(level);
        self.rings[level].push_back(index);
    }

    fn leave(&mut self, index: usize) {
        if let Some(level) = self.families[index].ring.take() {
            if self.rings[level].front() == Some(&index) {
                self.rings[level].pop_front();
            } else {
                self.rings[level].retain(|other| *other != index);
            }
        }
    }

    fn earliest(&self, now_ms: u64) -> Option<usize> {
        self.candidates(now_ms).min().map(|(.., index)| index)
    }

    fn oldest_below(&self, now_ms: u64) -> Option<usize> {
        let first = self.candidates(now_ms).map(|(level, ..)| level).min()?;
        self.candidates(now_ms)
            .filter(|(level, ..)| *level > first)
            .min_by_key(|(_, enqueued_ms, id, _)| (*enqueued_ms, *id))
            .map(|(.., index)| index)
    }

    fn candidates(&self, now_ms: u64) -> impl Iterator<Item = (usize, u64, EntryId, usize)> + '_ {
        self.rings.iter().flatten().filter_map(move |&index| {
            let (level, lane) = self.best(index, now_ms).filter(|_| self.eligible(index, now_ms))?;
            let head = self.families[index].lanes[lane].heads.front()?;
            Some((level, head.enqueued_ms, head.id, index))
        })
    }
}

/// P0 and P1 as stored; P2 and P3 gain a level per `aging` of waiting, never above P1.
#[must_use]
pub fn effective(priority: Priority, enqueued_ms: u64, now_ms: u64, aging: Duration) -> Priority {
    if priority <= Priority::P1 {
        return priority;
    }
    let waited = now_ms.saturating_sub(enqueued_ms);
    let levels = u128::from(waited) / aging.as_millis().max(1);
    let raised = u128::from(priority.number()).saturating_sub(levels).max(1);
    Priority::from_number(u64::try_from(raised).unwrap_or(1)).unwrap_or(Priority::P1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            aging: Duration::from_secs(300),
            fairness: Fairness::Drr,
            low_share: 0,
            first_window: 4,
            prefetch: 256,
            prefetch_bytes: 8 << 20,
        }
    }

    fn lane(family: &str, priority: Priority) -> Lane {
        Lane::new(family.parse().unwrap(), priority)
    }

    fn head(ms: u64, seq: u64) -> Head<()> {
        Head { id: EntryId { ms, seq }, enqueued_ms: ms, item: (), bytes: 100, read_ms: 0 }
    }

    fn drain(scheduler: &mut Scheduler<()>, now: u64, count: usize) -> Vec<String> {
        (0..count)
            .map_while(|_| {
                let picked = scheduler.pick(now)?;
                scheduler.finished(&picked.lane.family);
                Some(format!("{} {}", picked.lane, picked.head.id))
            })
            .collect()
    }

    #[test]
    fn a_lane_that_is_served_less_does_not_take_the_prefetch_from_the_others() {
        const READ_TAKES: usize = 16; // dispatches
        let mut scheduler = Scheduler::new(Rules { prefetch: 64, ..rules() });
        let (heavy, light) = (lane("heavy/event", Priority::P1), lane("light/event", Priority::P1));
        scheduler.set_limits(&heavy.family, Limits { weight: 3, ..Limits::default() });
        for lane in [&light, &heavy] {
            scheduler.add_lane(lane);
            scheduler.expect_more(lane);
        }
        let (mut under_way, mut seq, mut picked) = (VecDeque::new(), 0, Vec::new());
        for turn in 0..8_000 {
            let (lanes, count) = if under_way.len() < 2 { scheduler.refill() } else { Default::default() };
            if !lanes.is_empty() {
                under_way.push_back((turn + READ_TAKES, lanes, count));
            }
            while let Some((_, lanes, count)) = under_way.pop_front_if(|(due, ..)| *due <= turn) {
                for lane in &lanes {
                    scheduler.answered(lane, count);
                    for _ in 0..count {
                        seq += 1;
                        scheduler.offer(lane, head(1, seq));
                    }
                    scheduler.filled(lane, count, count, 1);
                }
            }
            if let Some(next) = scheduler.pick(1) {
                scheduler.finished(&next.lane.family);
                picked.push(next.lane == heavy);
            }
        }
        let of_heavy = picked[picked.len() - 4_000..].iter().filter(|is_heavy| **is_heavy).count();
        assert!(of_heavy.abs_diff(3_000) <= 100, "{of_heavy} of 4000");
    }

    #[test]
    fn ids_of_one_millisecond_go_in_numeric_order() {
        let mut scheduler = Scheduler::new(rules());
        for seq in [11, 9, 10] {
            scheduler.offer(&lane("a/b", Priority::P1), head(5, seq));
        }
        assert_eq!(drain(&mut scheduler, 10, 9), ["a/b:p1 5-9", "a/b:p1 5-10", "a/b:p1 5-11"]);
    }

    #[test]
    fn an_old_p3_goes_before_fresh_p2_of_many() {
        let mut scheduler = Scheduler::new(rules());
        let now = 600_001;
        for n in 0..100 {
            scheduler.offer(&lane("fresh/b", Priority::P2), head(now, n));
        }
        scheduler.offer(&lane("old/b", Priority::P3), Head { read_ms: now, ..head(1, 0) });
        let picked = scheduler.pick(now).unwrap();
        assert_eq!(picked.lane.to_string(), "old/b:p3");
        assert_eq!((picked.effective, picked.promoted_from), (Priority::P1, Some(Priority::P3)));
    }

    #[test]
    fn priorities_age_by_levels_and_stop_at_p1() {
        let table = [
            (Priority::P0, 9_999_999, Priority::P0),
            (Priority::P1, 9_999_999, Priority::P1),
            (Priority::P2, 299_999, Priority::P2),
            (Priority::P2, 300_000, Priority::P1),
            (Priority::P3, 300_000, Priority::P2),
            (Priority::P3, 9_999_999, Priority::P1),
        ];
        for (stored, waited, expected) in table {
            assert_eq!(effective(stored, 1000, 1000 + waited, Duration::from_secs(300)), expected, "{stored} {waited}");
        }
        assert_eq!(
            effective(Priority::P3, 2000, 1000, Duration::from_secs(300)),
            Priority::P3,
            "a clock that went back"
        );
    }

    #[test]
    fn families_share_by_weight() {
        for (weight, expected) in [(1, 500), (3, 750)] {
            let mut scheduler = Scheduler::new(rules());
            scheduler.set_limits(&"a/b".parse().unwrap(), Limits { weight, ..Limits::default() });
            for n in 0..1000 {
                scheduler.offer(&lane("a/b", Priority::P1), head(n, 0));
                scheduler.offer(&lane("c/d", Priority::P1), head(n, 0));
            }
            let order = drain(&mut scheduler, 5000, 1000);
            let a = order.iter().filter(|line| line.starts_with("a/b")).count();
            assert!(a.abs_diff(expected) <= 10, "weight {weight}: {a}");
        }
    }

    #[test]
    fn without_fairness_time_decides() {
        let mut scheduler = Scheduler::new(Rules { fairness: Fairness::Off, ..rules() });
        for n in 0..5 {
            scheduler.offer(&lane("a/b", Priority::P1), head(n, 0));
        }
        scheduler.offer(&lane("c/d", Priority::P1), head(2, 1));
        let order = drain(&mut scheduler, 10, 4);
        assert_eq!(order, ["a/b:p1 0-0", "a/b:p1 1-0", "a/b:p1 2-0", "c/d:p1 2-1"]);
    }

    #[test]
    fn a_held_family_gives_its_heads_back_and_hides_nobody() {
        let mut scheduler = Scheduler::new(rules());
        scheduler.offer(&lane("held/x", Priority::P0), head(1, 0));
        scheduler.offer(&lane("free/x", Priority::P3), head(2, 0));
        assert_eq!(scheduler.set_held(&"held/x".parse().unwrap(), true).len(), 1);
        assert_eq!(drain(&mut scheduler, 10, 5), ["free/x:p3 2-0"]);
        assert_eq!(scheduler.wants_wait().len(), 1, "a held lane is not read");
    }

    #[test]
    fn limits_hold_and_free_again() {
        let mut scheduler = Scheduler::new(rules());
        scheduler.set_limits(&"a/b".parse().unwrap(), Limits { concurrency: 2, ..Limits::default() });
        for n in 0..5 {
            scheduler.offer(&lane("a/b", Priority::P1), head(n, 0));
        }
        assert!(scheduler.pick(10).is_some() && scheduler.pick(10).is_some());
        assert!(scheduler.pick(10).is_none());
        scheduler.finished(&"a/b".parse().unwrap());
        assert!(scheduler.pick(10).is_some());
        assert!(scheduler.pick(10).is_none());
    }

    #[test]
    fn an_ordered_family_waits_for_its_retry() {
        let mut scheduler = Scheduler::new(rules());
        let family = "a/b".parse().unwrap();
        scheduler.set_limits(&family, Limits { ordered: true, ..Limits::default() });
        scheduler.offer(&lane("a/b", Priority::P1), head(2, 0));
        scheduler.set_awaits_retry(&family, true);
        assert!(scheduler.pick(10).is_none());
        scheduler.offer(&lane("a/b", Priority::P1), head(1, 0));
        scheduler.set_awaits_retry(&family, false);
        assert_eq!(drain(&mut scheduler, 10, 5), ["a/b:p1 1-0", "a/b:p1 2-0"]);
    }

    #[test]
    fn a_rate_spaces_starts() {
        let mut scheduler = Scheduler::new(rules());
        scheduler.set_limits(&"a/b".parse().unwrap(), Limits { rate_per_s: Some(10.0), ..Limits::default() });
        for n in 0..5 {
            scheduler.offer(&lane("a/b", Priority::P1), head(n, 0));
        }
        assert_eq!(drain(&mut scheduler, 1000, 5).len(), 1);
        scheduler.wake_rated();
        assert_eq!(drain(&mut scheduler, 1099, 5).len(), 0);
        scheduler.wake_rated();
        assert_eq!(drain(&mut scheduler, 1100, 5).len(), 1);
    }

    #[test]
    fn a_pace_allows_what_was_granted_and_only_while_it_lasts() {
        let mut scheduler = Scheduler::new(rules());
        let family = "a/b".parse().unwrap();
        scheduler.set_grant(&family, Some(Grant::default()));
        for n in 0..9 {
            scheduler.offer(&lane("a/b", Priority::P1), head(n, 0));
        }
        scheduler.offer(&lane("c/d", Priority::P3), head(20, 0));
        assert_eq!(drain(&mut scheduler, 100, 9), ["c/d:p3 20-0"], "others go on");
        assert!(scheduler.wants_grant(&family, 100));
        scheduler.set_grant(&family, Some(Grant { left: 3, until_ms: 200 }));
        assert!(!scheduler.wants_grant(&family, 100));
        assert_eq!(drain(&mut scheduler, 100, 2).len(), 2);
        assert_eq!(drain(&mut scheduler, 200, 2).len(), 0, "what is left of a window ends with it");
        assert!(scheduler.wants_grant(&family, 200));
        scheduler.set_grant(&family, None);
        assert_eq!(drain(&mut scheduler, 200, 9).len(), 7);
    }

    #[test]
    fn another_priority_counts_at_once_and_is_no_promotion() {
        let mut scheduler = Scheduler::new(rules());
        let family = "late/x".parse().unwrap();
        for n in 0..2 {
            scheduler.offer(&lane("late/x", Priority::P3), head(n, 0));
            scheduler.offer(&lane("busy/x", Priority::P1), head(n, 0));
        }
        scheduler.set_priority(&family, Some(Priority::P0));
        let picked = scheduler.pick(10).unwrap();
        assert_eq!((picked.lane.to_string().as_str(), picked.effective), ("late/x:p3", Priority::P0));
        assert_eq!(picked.promoted_from, None);
        scheduler.set_priority(&family, None);
        assert_eq!(drain(&mut scheduler, 10, 9), ["busy/x:p1 0-0", "busy/x:p1 1-0", "late/x:p3 1-0"]);
    }

    #[test]
    fn the_low_share_reaches_the_oldest_below() {
        let mut scheduler = Scheduler::new(Rules { low_share: 5, ..rules() });
        for n in 0..100 {
            scheduler.offer(&lane("busy/x", Priority::P0), head(n, 0));
            scheduler.offer(&lane("low/x", Priority::P2), head(n, 0));
        }
        let order = drain(&mut scheduler, 1000, 100);
        assert_eq!(order.iter().filter(|line| line.starts_with("low")).count(), 5);
    }

    #[test]
    fn refill_asks_for_more_while_heads_are_used_up_quickly() {
        let mut scheduler: Scheduler<()> = Scheduler::new(rules());
        let lane = lane("a/b", Priority::P1);
        scheduler.add_lane(&lane);
        assert_eq!(scheduler.wants_wait(), std::slice::from_ref(&lane));
        for (now, expected) in (1000..).zip([4, 8, 16, 32, 64, 128, 256, 256]) {
            // A full read, all of it picked since.
            scheduler.filled(&lane, 4, 4, now);
            let (lanes, count) = scheduler.refill();
            assert_eq!(lanes.len(), 1);
            assert!(count >= expected.min(128), "{count} after {expected}");
            assert_eq!(scheduler.refill().1, 0, "what is asked for counts");
            scheduler.answered(&lane, count);
        }
    }

    proptest::proptest! {
        #[test]
        fn every_offered_head_is_picked_exactly_once(
            offers in proptest::collection::vec((0usize..5, 0u64..4, 0u64..1000), 0..200),
            weights in proptest::collection::vec(1u32..4, 5),
        ) {
            let mut scheduler = Scheduler::new(Rules { low_share: 5, ..rules() });
            for (n, weight) in weights.iter().enumerate() {
                let limits = Limits { weight: *weight, ..Limits::default() };
                scheduler.set_limits(&format!("f/{}", (b'a' + n as u8) as char).parse().unwrap(), limits);
            }
            for (n, (family, priority, ms)) in offers.iter().enumerate() {
                let name = format!("f/{}", (b'a' + *family as u8) as char);
                scheduler.offer(&lane(&name, Priority::from_number(*priority).unwrap()), head(*ms, n as u64));
            }
            let order = drain(&mut scheduler, 400_000, offers.len() + 1);
            let unique: std::collections::HashSet<_> = order.iter().collect();
            proptest::prop_assert_eq!(order.len(), offers.len());
            proptest::prop_assert_eq!(unique.len(), offers.len());
            proptest::prop_assert_eq!(scheduler.heads(), 0);
        }
    }
}
