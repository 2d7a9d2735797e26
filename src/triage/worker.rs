//! What triage does beside admission: shadow decisions, and everything that is written down.
//!
//! A service runs it until it stops. A command that emits ends it with [`Worker::finish`], which writes what is there
//! and gives back the shadow decisions that are still to be made.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Job, Note, Triage, records};
use crate::config::TriageMode;
use crate::diagnose::chain;
use crate::streams::bus::Bus;
use crate::streams::records::Fact;

/// Shadow decisions at once. The model's own slots bound it further; rules need none.
const AT_ONCE: usize = 4;
/// Records in one journal entry.
const BATCH: usize = 64;
/// Tries to journal a batch before it is dropped: the decision is in the event, or of no effect.
const TRIES: u32 = 5;
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Worker {
    triage: Triage,
    jobs: mpsc::Receiver<Job>,
    notes: mpsc::Receiver<Note>,
}

/// What [`Worker::finish`] leaves to do.
#[derive(Debug)]
pub struct Left {
    /// Shadow decisions that nobody has made.
    pub jobs: Vec<Job>,
}

impl Worker {
    pub(super) const fn new(triage: Triage, jobs: mpsc::Receiver<Job>, notes: mpsc::Receiver<Note>) -> Self {
        Self { triage, jobs, notes }
    }

    /// Runs until `stop`; then what is decided is still written.
    pub async fn run(self, bus: Bus, stop: CancellationToken) {
        let Self { triage, mut jobs, mut notes } = self;
        let rules = triage.rules().clone().watch(stop.clone());
        let deciding = async {
            let waiting = stream::poll_fn(|context| jobs.poll_recv(context));
            waiting.take_until(stop.cancelled()).for_each_concurrent(AT_ONCE, |job| decide(&triage, job)).await;
        };
        let done = CancellationToken::new();
        let writing = async {
            loop {
                let note = tokio::select! {
                    biased;
                    note = notes.recv() => note,
                    () = done.cancelled() => None,
                };
                let Some(note) = note else { return };
                write(&triage, &bus, &mut notes, note, TRIES).await;
            }
        };
        let decided = async {
            tokio::join!(deciding, rules);
            done.cancel();
        };
        tokio::join!(writing, decided);
    }

    /// Makes every decision that waits, and writes it.
    pub async fn work_off(mut self, bus: &Bus) {
        let mut waiting = Vec::new();
        while let Ok(job) = self.jobs.try_recv() {
            waiting.push(job);
        }
        let triage = self.triage.clone();
        let decided = stream::iter(waiting).for_each_concurrent(AT_ONCE, |job| decide(&triage, job));
        tokio::pin!(decided);
        let mut is_deciding = true;
        while is_deciding {
            tokio::select! {
                () = &mut decided => is_deciding = false,
                Some(note) = self.notes.recv() => write(&triage, bus, &mut self.notes, note, TRIES).await,
            }
        }
        self.finish(bus).await;
    }

    /// Writes what is decided.
    pub async fn flush(&mut self, bus: &Bus) {
        while let Ok(note) = self.notes.try_recv() {
            write(&self.triage, bus, &mut self.notes, note, 1).await;
        }
    }

    /// Writes what is decided, and gives back what is not.
    pub async fn finish(mut self, bus: &Bus) -> Left {
        self.flush(bus).await;
        if self.triage.inner.overflow.load(std::sync::atomic::Ordering::Acquire) > 0 {
            write(&self.triage, bus, &mut self.notes, Note::Facts(Vec::new()), 1).await;
        }
        let mut jobs = Vec::new();
        while let Ok(job) = self.jobs.try_recv() {
            jobs.push(job);
        }
        Left { jobs }
    }
}

async fn decide(triage: &Triage, job: Job) {
    use std::sync::atomic::Ordering;
    let decision = triage.decide(&job.matter, TriageMode::Shadow, None).await;
    triage.record(&job.matter, &decision);
    triage.inner.waiting_bytes.fetch_sub(job.matter.data.as_str().len(), Ordering::AcqRel);
}

/// Writes `first` and what waits behind it.
async fn write(triage: &Triage, bus: &Bus, notes: &mut mpsc::Receiver<Note>, first: Note, tries: u32) {
    let mut facts = Vec::new();
    let mut next = Some(first);
    while let Some(note) = next {
        match note {
            Note::Facts(more) => facts.extend(more),
            Note::Key(key) => facts.extend(declined(bus, &key).await),
        }
        next = if facts.len() < BATCH { notes.try_recv().ok() } else { None };
    }
    let skipped = triage.inner.overflow.swap(0, std::sync::atomic::Ordering::AcqRel);
    if skipped > 0 {
        facts.push(records::overflow(skipped));
    }
    if facts.is_empty() {
        return;
    }
    for attempt in 1..=tries {
        match bus.journal(facts.clone()).await {
            Ok(_) => return,
            Err(error) if attempt == tries => {
                tracing::warn!(error = %chain(&error), records = facts.len(), "triage records are dropped");
            }
            Err(_) => tokio::time::sleep(RETRY_DELAY).await,
        }
    }
}

async fn declined(bus: &Bus, key: &super::ModelKey) -> Option<Fact> {
    let first = bus.first_of_model_key(&key.family, &key.key, &key.data_hash, &key.event_id, key.window).await;
    match first {
        Ok(Some(first)) => Some(records::declined(key.family.as_str(), &key.key, &key.event_id, &first)),
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "a dedup key can't be compared");
            None
        }
    }
}
