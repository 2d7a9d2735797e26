//! Fan-out ahead of dispatch, for events that wait for a function.
//!
//! A registry entry with an `inngest` handler says that a function is to have the event. While there is none, the
//! drainer leaves its lanes unread, so that a function that registers later gets what came before it. Endpoints are not
//! to wait for that: this task reads those lanes beside the drainer and makes their deliveries.
//!
//! | key (after the tag) | type | holds |
//! |---|---|---|
//! | `:outbound:ahead` | hash | lane → the entry up to which its events were fanned out here |
//!
//! # Invariants
//! 1. A mark is written after the deliveries before it were appended: a crash repeats an append, which the deliveries'
//!    ids make harmless, and loses none.
//! 2. At dispatch an event up to its lane's mark is not fanned out again, however long it waited.
//! 3. A lane's events are fanned out in their order. Several processes may do it at once: each appends everything
//!    before what it appends next.
//! 4. A paused family is not fanned out.
//!
//! # Edges
//! Which families wait is the caller's to say. An entry that can't be decoded is passed over: it becomes a dead letter
//! when it is dispatched.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Outbound;
use super::fan_out::FanOut;
use crate::diagnose::chain;
use crate::streams::append;
use crate::streams::beside::Entry;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::family::Family;
use crate::streams::lane::Lane;
use crate::streams::lease::{LaneReader, ReadLane};
use crate::streams::redis;

/// How long one read waits, and how often it is asked anew which lanes wait.
const TICK: Duration = Duration::from_secs(1);
/// How often all lanes are read although none came.
const LANES_ANEW: Duration = Duration::from_secs(30);
/// Lanes of one read: more of them don't block.
const LANES: usize = 128;
/// Entries of a lane in one read.
const ENTRIES: usize = 64;

/// Why a round ended early. It is tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Lanes could not be read, or a mark not be written.
    #[error(transparent)]
    Redis(#[from] redis::Error),
    /// Deliveries could not be appended.
    #[error(transparent)]
    Append(#[from] append::Error),
}

/// See the module.
pub struct Ahead<F> {
    outbound: Outbound,
    fan_out: FanOut,
    bus: Bus,
    reader: LaneReader,
    waits: F,
    /// All lanes, how many there were, and when they were read.
    lanes: (Vec<Lane>, u64, Option<Instant>),
    /// Those that wait, and how far each was read.
    at: BTreeMap<Lane, EntryId>,
}

impl<F: Fn(&Family) -> bool + Send + Sync> Ahead<F> {
    /// For the families of which `waits` says that their events wait for a function.
    #[must_use]
    pub fn new(bus: Bus, outbound: Outbound, waits: F) -> Self {
        let fan_out = FanOut::new(outbound.clone());
        let reader = LaneReader::new(bus.clone(), String::new());
        Self { outbound, fan_out, bus, reader, waits, lanes: (Vec::new(), 0, None), at: BTreeMap::new() }
    }

    /// Runs until `stop`. Redis being away costs time, nothing else.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut looked: Option<Instant> = None;
        while !stop.is_cancelled() {
            let round = async {
                if looked.is_none_or(|at| at.elapsed() >= TICK) {
                    self.look().await?;
                    looked = Some(Instant::now());
                }
                self.read().await
            };
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = round => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(error = %chain(&error), "nothing is fanned out ahead");
                looked = None;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        }
    }

    /// Finds the lanes that wait, and brings those that are new to where the drainer has read.
    async fn look(&mut self) -> Result<(), Error> {
        let endpoints = self.outbound.endpoints().current();
        if endpoints.endpoints.is_empty() {
            self.at.clear();
            return Ok(());
        }
        let (count, (_, known, read)) = (self.bus.lane_count().await?, &self.lanes);
        if count != *known || read.is_none_or(|at| at.elapsed() >= LANES_ANEW) {
            self.lanes = (self.bus.lanes().await?, count, Some(Instant::now()));
        }
        let is_waiting = |lane: &&Lane| endpoints.wants(lane.family.as_str()) && (self.waits)(&lane.family);
        let mut lanes: Vec<Lane> = self.lanes.0.iter().filter(is_waiting).cloned().collect();
        if !lanes.is_empty() {
            let (pauses, now) = (self.bus.pauses().await?, self.bus.now_ms().await?);
            lanes.retain(|lane| pauses.until(&lane.family, now).is_none());
        }
        self.at.retain(|lane, _| lanes.contains(lane));
        for lane in lanes {
            if self.at.contains_key(&lane) {
                continue;
            }
            let mark = self.outbound.endpoints().ahead(&lane).await?.unwrap_or_default();
            // What was read into a drainer's memory and handed back is behind the group's cursor, and still to be sent.
            let (unfinished, read) = self.bus.unfinished(&lane, mark).await?;
            for entries in unfinished.chunks(ENTRIES) {
                self.send(entries).await?;
            }
            let at = mark.max(read);
            self.outbound.endpoints().set_ahead(std::iter::once((&lane, at))).await?;
            self.at.insert(lane, at);
        }
        Ok(())
    }

    /// Reads on, and fans out what is there.
    async fn read(&mut self) -> Result<(), Error> {
        if self.at.is_empty() {
            tokio::time::sleep(TICK).await;
            return Ok(());
        }
        let lanes: Vec<(ReadLane, EntryId)> = self
            .at
            .iter()
            .map(|(lane, at)| (ReadLane { key: self.bus.keys.lane(lane), lane: lane.clone() }, *at))
            .collect();
        let block = (lanes.len() <= LANES).then_some(TICK);
        let mut is_idle = true;
        for some in lanes.chunks(LANES) {
            let mut by_lane: BTreeMap<Lane, Vec<Entry>> = BTreeMap::new();
            for (lane, entry) in self.reader.read_beside(some, ENTRIES, block).await? {
                by_lane.entry(lane).or_default().push(entry);
            }
            for (lane, entries) in by_lane {
                is_idle = false;
                self.send(&entries).await?;
                if let Some(last) = entries.last() {
                    self.outbound.endpoints().set_ahead(std::iter::once((&lane, last.id))).await?;
                    self.at.insert(lane, last.id);
                }
            }
        }
        if is_idle && block.is_none() {
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// Appends the deliveries of these entries.
    async fn send(&self, entries: &[Entry]) -> Result<(), Error> {
        let mut deliveries = Vec::new();
        for event in entries.iter().filter_map(|entry| entry.event.as_ref()) {
            deliveries.extend(self.fan_out.deliveries(event).await);
        }
        Ok(self.fan_out.append(deliveries).await?)
    }
}
