//! Sinks: where journal records go beside Redis. Each is a reader of the journal with a cursor of its own.
//!
//! | sink | file | its cursor holds retention back |
//! |---|---|---|
//! | `jsonl` | [`jsonl`] | yes |
//! | `otlp` | [`otlp`] | no |
//! | `forward` | [`forward`] | no |
//! | `traces` | [`traces`] | no |
//!
//! A sink that fails is tried again, 500 ms later at first, then doubling to 30 s; nobody else waits for it. A batch is
//! passed only after the sink's durable write, so each event arrives at least once; its `id` tells repetitions.

pub mod forward;
pub mod jsonl;
pub mod otlp;
pub mod traces;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::event::{self, Event};
use super::pace::Pace;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::journal::{self, Fields};
use crate::streams::readers::{Held, Reader, Stretch};
use crate::streams::records::Fact;

/// Records of a step, about: to write one costs many times what it costs to read it.
const RECORDS: usize = 1024;
/// How far behind a sink may be while events are dispatched.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks while nothing is new.
const PAUSE: Duration = Duration::from_secs(1);
/// The first wait after a failure, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What a sink could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

/// Journal batches, as a sink gets them.
#[derive(Debug, Clone, Copy)]
pub struct Batches<'a> {
    rows: &'a [(EntryId, Fields)],
    system: &'a str,
}

impl Batches<'_> {
    /// The batches as they are stored.
    #[must_use]
    pub const fn rows(&self) -> &[(EntryId, Fields)] {
        self.rows
    }

    /// Their records in the one shape of telemetry.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (id, fields) in self.rows {
            let mut entries = Vec::new();
            if !journal::expand(*id, fields, &mut entries) {
                tracing::warn!(batch = %id, "a journal batch can't be decoded and is passed over");
            }
            events.extend(event::events_of(&entries, self.system));
        }
        events
    }
}

/// Takes what the journal says, in order.
pub trait Sink: Send {
    /// Its name among the readers of the journal.
    const NAME: &'static str;
    /// Retention waits for it.
    const IS_REQUIRED: bool;

    /// Writes batches durably. On failure none of them counts as written.
    fn write(&mut self, batches: Batches<'_>) -> impl Future<Output = Result<(), Failed>> + Send;

    /// A pause in the work: what is old may be tidied.
    fn idle(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// How a sink stands, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Failed writes.
    pub errors: u64,
    /// When it last wrote, seconds since the epoch.
    pub last_success_s: u64,
}

/// How the sinks of this process stand. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Standings(Arc<Mutex<HashMap<&'static str, Standing>>>);

impl Standings {
    fn change(&self, sink: &'static str, change: impl FnOnce(&mut Standing)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(sink).or_default());
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, Standing)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, standing)| (*name, *standing)).collect()
    }
}

/// Feeds one sink until `stop`. Only one process does at a time.
pub async fn run<S: Sink>(
    bus: Bus,
    owner: String,
    system: String,
    mut sink: S,
    standings: Standings,
    stop: CancellationToken,
) {
    let reader = Reader { name: S::NAME, owner, lease: Duration::from_secs(60), is_required: S::IS_REQUIRED };
    standings.change(S::NAME, |_| {});
    let mut wait = RETRY.0;
    let mut is_failing = false;
    let mut tidied = Instant::now();
    let mut pace = Pace::new(PATIENCE);
    loop {
        let began = Instant::now();
        let pause = match step(&bus, &reader, &system, &mut sink, &standings, &mut pace).await {
            Ok(Step::Done { written, cursor, is_behind }) => {
                if std::mem::take(&mut is_failing) && written > 0 {
                    tracing::info!(sink = S::NAME, "the sink takes events again");
                    let _ = bus.journal([Fact::new("journal", "telemetry.sink.recovered").with("sink", S::NAME)]).await;
                }
                wait = RETRY.0;
                if is_behind { pace.rest(&bus, cursor, began.elapsed()).await } else { PAUSE }
            }
            Ok(Step::Theirs) => Duration::from_secs(5),
            Err(error) => {
                standings.change(S::NAME, |standing| standing.errors += 1);
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(sink = S::NAME, %error, "the sink fails; nothing is lost, it is tried again");
                    let failed = Fact::new("journal", "telemetry.sink.failed").failed(event::redact_text(&error.0));
                    let _ = bus.journal([failed.with("sink", S::NAME)]).await;
                }
                let pause = wait.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                wait = (wait * 2).min(RETRY.1);
                pause
            }
        };
        if tidied.elapsed() > Duration::from_secs(60) {
            tidied = Instant::now();
            sink.idle().await;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    // What was journaled until now, the end of the drainer included, still goes out.
    let _ = tokio::time::timeout(Duration::from_secs(3), async {
        while let Ok(Step::Done { is_behind: true, .. }) =
            step(&bus, &reader, &system, &mut sink, &standings, &mut pace).await
        {}
    })
    .await;
    let _ = bus.release_reader(&reader).await;
}

/// What a step came to.
enum Step {
    /// So many batches are written, up to the cursor.
    Done { written: usize, cursor: EntryId, is_behind: bool },
    /// Somebody else feeds this sink.
    Theirs,
}

/// One read, write and move of the cursor.
async fn step<S: Sink>(
    bus: &Bus,
    reader: &Reader,
    system: &str,
    sink: &mut S,
    standings: &Standings,
    pace: &mut Pace,
) -> Result<Step, Failed> {
    let redis = |error: crate::streams::redis::Error| Failed(crate::diagnose::chain(&error));
    let Held::Ours { cursor, .. } = bus.hold_reader(reader).await.map_err(redis)? else { return Ok(Step::Theirs) };
    let batches = pace.batches();
    let mut page = bus.journal_batches(cursor.next(), EntryId::MAX, batches).await.map_err(redis)?;
    pace.learn(&page);
    let (read, mut records) = (page.len(), 0);
    let enough = page.iter().position(|(id, fields)| {
        records += journal::count(*id, fields);
        records >= RECORDS
    });
    page.truncate(enough.map_or(read, |last| last + 1));
    let (written, is_behind) = (page.len(), page.len() < read || read == batches);
    let mut done = Step::Done { written, cursor, is_behind };
    if let Some((to, _)) = page.last() {
        sink.write(Batches { rows: &page, system }).await?;
        let stretch = Stretch { from: cursor, to: *to, batches: written, is_last: !is_behind };
        match bus.move_reader(reader, stretch, "", &[]).await.map_err(redis)? {
            Held::Ours { cursor, .. } => done = Step::Done { written, cursor, is_behind },
            Held::Theirs(_) | Held::Moved(_) => return Ok(Step::Theirs),
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    standings.change(S::NAME, |standing| standing.last_success_s = now);
    Ok(done)
}
