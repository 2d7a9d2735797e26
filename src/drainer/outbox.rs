//! The completion batcher: collects how dispatches ended and writes them, with their journal records, in batches.
//!
//! A batch goes out at 128 endings, or 1 ms after its first, and at most two are under way. One that Redis does not
//! take is repeated until it does or the session is lost, so a handler that succeeded is not run again by us.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::session::Event;
use crate::streams::bus::Bus;
use crate::streams::complete::{CompleteError, Completion};
use crate::streams::lane::Lane;
use crate::streams::records::{DispatchRow, Dispatches, Fact, Record};

/// Endings that make a batch full.
const FULL: usize = 128;
/// How long the first ending of a batch waits for company.
const LINGER: Duration = Duration::from_millis(1);
/// Script calls under way at once.
const FLIGHTS: usize = 2;
/// Endings and records in one script call.
const MOST: usize = 512;

/// What happened to a batch.
#[derive(Debug)]
pub enum Flushed {
    /// Written. Entries an operator had taken away by force are named.
    Written {
        /// `<lane>|<entry id>`.
        revoked: Vec<String>,
        /// Which batch.
        flight: u64,
    },
    /// Our session is over.
    Fenced,
}

/// Endings and journal rows waiting to be written.
#[derive(Default)]
pub struct Outbox {
    endings: Vec<Completion>,
    facts: Vec<Fact>,
    completed: Table,
    started: Table,
    since: Option<Instant>,
    /// Batches sent so far: the number of the last one.
    launched: u64,
    /// Those under way.
    under_way: BTreeSet<u64>,
}

/// Dispatch rows with their lanes and handlers numbered.
#[derive(Default)]
struct Table {
    lanes: HashMap<Lane, u16>,
    /// Neighbours are mostly of one lane.
    last_lane: Option<(Lane, u16)>,
    batch: Dispatches,
}

impl Table {
    fn push(&mut self, lane: &Lane, handler: (&str, &str), row: DispatchRow) {
        let lane = match self.last_lane.as_ref().filter(|(last, _)| last == lane) {
            Some((_, number)) => *number,
            None => self.number_of_lane(lane),
        };
        let handler =
            match self.batch.handlers.iter().position(|(kind, target)| (kind.as_str(), target.as_str()) == handler) {
                Some(number) => number,
                None => {
                    self.batch.handlers.push((handler.0.to_owned(), handler.1.to_owned()));
                    self.batch.handlers.len() - 1
                }
            };
        self.batch.rows.push(DispatchRow { lane, handler: u16::try_from(handler).unwrap_or(u16::MAX), ..row });
    }

    fn number_of_lane(&mut self, lane: &Lane) -> u16 {
        let next = u16::try_from(self.batch.lanes.len()).unwrap_or(u16::MAX);
        let number = *self.lanes.entry(lane.clone()).or_insert_with(|| {
            self.batch.lanes.push(lane.to_string());
            next
        });
        self.last_lane = Some((lane.clone(), number));
        number
    }

    fn take(&mut self) -> Option<Dispatches> {
        self.lanes.clear();
        self.last_lane = None;
        let batch = std::mem::take(&mut self.batch);
        (!batch.rows.is_empty()).then_some(batch)
    }
}

impl Outbox {
    /// A dispatch ended well.
    pub fn completed(&mut self, ending: Completion, handler: (&str, &str), row: DispatchRow) {
        self.completed.push(&ending.lane, handler, row);
        self.ending(ending, None);
    }

    /// An entry leaves us another way; `fact` tells how.
    pub fn ending(&mut self, ending: Completion, fact: Option<Fact>) {
        self.since.get_or_insert_with(Instant::now);
        self.endings.push(ending);
        self.facts.extend(fact);
    }

    /// A dispatch has been running long enough to be worth a record of its own.
    pub fn started(&mut self, lane: &Lane, handler: (&str, &str), row: DispatchRow) {
        self.since.get_or_insert_with(Instant::now);
        self.started.push(lane, handler, row);
    }

    /// A record without an ending.
    pub fn fact(&mut self, fact: Fact) {
        self.since.get_or_insert_with(Instant::now);
        self.facts.push(fact);
    }

    /// Endings not yet written, those under way included.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.endings.len() + self.under_way.len() * FULL
    }

    /// The batch that the last ending so far goes with.
    #[must_use]
    pub const fn last_batch(&self) -> u64 {
        self.launched + self.endings.len().div_ceil(MOST) as u64
    }

    /// Whether this batch and all before it are written.
    #[must_use]
    pub fn is_written(&self, batch: u64) -> bool {
        self.launched >= batch && self.under_way.first().is_none_or(|first| *first > batch)
    }

    /// Nothing is waiting or under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.since.is_none() && self.under_way.is_empty()
    }

    /// When the waiting batch must go; `None` while there is none or no flight is free.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.since.filter(|_| self.under_way.len() < FLIGHTS).map(|since| since + LINGER)
    }

    /// Sends what is due. `now_or_never` sends whatever there is.
    pub fn flush(&mut self, bus: &Bus, session: &str, events: &mpsc::Sender<Event>, at_once: bool) {
        while self.under_way.len() < FLIGHTS {
            let Some(since) = self.since else { return };
            if self.endings.len() < FULL && !at_once && since.elapsed() < LINGER {
                return;
            }
            let rest = self.endings.split_off(self.endings.len().min(MOST));
            let endings = std::mem::replace(&mut self.endings, rest);
            let mut records: Vec<Record> = Vec::new();
            records.extend(self.started.take().map(Record::Started));
            records.extend(self.completed.take().map(Record::Dispatch));
            records.extend(std::mem::take(&mut self.facts).into_iter().map(Record::Fact));
            self.since = (!self.endings.is_empty()).then(Instant::now);
            self.launched += 1;
            let flight = self.launched;
            self.under_way.insert(flight);
            let (bus, session, events) = (bus.clone(), session.to_owned(), events.clone());
            tokio::spawn(async move {
                let flushed = write(&bus, &session, &endings, &records, flight).await;
                let _ = events.send(Event::Flushed(flushed)).await;
            });
        }
    }

    /// A flight has landed.
    pub fn landed(&mut self, flight: u64) {
        self.under_way.remove(&flight);
    }
}

async fn write(bus: &Bus, session: &str, endings: &[Completion], records: &[Record], flight: u64) -> Flushed {
    let mut pause = Duration::from_millis(20);
    loop {
        match bus.complete(session, endings, records).await {
            Ok(revoked) => return Flushed::Written { revoked, flight },
            Err(CompleteError::Fenced) => return Flushed::Fenced,
            Err(CompleteError::Redis(error)) => {
                // Unknown outcome is retried as completion, not as dispatch: acknowledging twice changes nothing.
                tracing::warn!(error = %error, endings = endings.len(), "completion not written, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}
