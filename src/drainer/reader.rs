//! Reader tasks: they read lanes for the loop, one request at a time, on connections of their own.
//!
//! One waits for lanes that are empty, the others refill lanes known to hold more and never block. A reader does
//! nothing unasked, so no more is leased than the loop has room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::session::Event;
use crate::streams::bus::Bus;
use crate::streams::lease::{LaneReader, Leased, ReadLane};
use crate::streams::redis::Error;

/// Which reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Waits for entries.
    Wait,
    /// Fetches more at once; there are several, by number.
    Refill(usize),
}

/// What the loop wants read.
#[derive(Debug)]
pub struct Request {
    /// The lanes; empty means: wait for a wake token instead.
    pub lanes: Vec<ReadLane>,
    /// Entries per lane.
    pub count: usize,
    /// How long to wait for the first.
    pub block: Option<Duration>,
}

/// What was read.
#[derive(Debug)]
pub enum Read {
    /// A wake token came, or didn't.
    Woken(bool),
    /// Entries, in the order of the lanes.
    Entries {
        /// The entries.
        entries: Vec<Leased>,
        /// The pauses' counter right after.
        rev: u64,
    },
}

/// What came of it.
#[derive(Debug)]
pub struct Answer {
    /// Who answers.
    pub which: Which,
    /// The request.
    pub request: Request,
    /// What was read.
    pub result: Result<Read, Error>,
}

/// The loop's end of a reader.
pub struct Reader {
    requests: mpsc::Sender<Request>,
    /// A request is under way.
    pub busy: bool,
    client: Arc<AtomicI64>,
    blocked: Arc<AtomicBool>,
}

impl Reader {
    /// Starts a reader for `session`; answers go to `events`. Ends when the loop drops its end.
    pub fn start(bus: &Bus, session: &str, which: Which, events: mpsc::Sender<Event>) -> Self {
        let (requests, mut queue) = mpsc::channel::<Request>(1);
        let client = Arc::new(AtomicI64::new(0));
        let blocked = Arc::new(AtomicBool::new(false));
        let mut reader = LaneReader::new(bus.clone(), session.to_owned());
        let (task_client, task_blocked) = (client.clone(), blocked.clone());
        tokio::spawn(async move {
            while let Some(request) = queue.recv().await {
                let result = async {
                    task_client.store(reader.connect().await?, Ordering::Relaxed);
                    if request.lanes.is_empty() {
                        let woken = reader.wait_for_wake(request.block.unwrap_or_default()).await?;
                        return Ok(Read::Woken(woken));
                    }
                    let (entries, rev) = reader.read(&request.lanes, request.count, request.block).await?;
                    Ok(Read::Entries { entries, rev })
                }
                .await;
                task_blocked.store(false, Ordering::Release);
                if events.send(Event::Read(Answer { which, request, result })).await.is_err() {
                    return;
                }
            }
        });
        Self { requests, busy: false, client, blocked }
    }

    /// Sends a request. The caller has checked that none is under way.
    pub fn ask(&mut self, request: Request) {
        self.blocked.store(request.block.is_some(), Ordering::Release);
        self.busy = self.requests.try_send(request).is_ok();
    }

    /// Ends the wait under way, so that the reader can be asked anew. The command may overtake the read it is meant
    /// for, so it is repeated until the read has ended.
    pub fn unblock(&self, bus: &Bus) {
        let (bus, client, blocked) = (bus.clone(), self.client.clone(), self.blocked.clone());
        tokio::spawn(async move {
            while blocked.load(Ordering::Acquire) {
                let id = client.load(Ordering::Relaxed);
                match bus.unblock(id).await {
                    Ok(true) | Err(_) => return,
                    Ok(false) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        });
    }
}
