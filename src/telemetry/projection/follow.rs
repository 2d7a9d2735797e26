//! Following the journal: read, fold, write with the cursor. And replay: the same from the beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::latency::minute_of;
use super::super::latency::read::{self, BySeries};
use super::fold::{Fold, State, Table};
use super::{KINDS, NAME, WRITER};
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::readers::{Held, MinuteWrite, Reader, Stretch};
use crate::streams::redis::Error;
use crate::telemetry::pace::Pace;

/// Between two steps while nothing is behind.
const PAUSE: Duration = Duration::from_secs(1);
/// How far behind the figures may be while events are dispatched.
const PATIENCE: Duration = Duration::from_secs(10);
/// Histograms kept in memory; above, they are read again when they are needed.
const OPEN: usize = 384;

/// What one step made of the journal.
pub struct Taken<'a> {
    /// The minutes that the step touched, with only what it added.
    pub added: &'a BTreeMap<u64, Table>,
}

/// Reads the journal behind the cursor. One process does; others wait for its lease to end.
pub struct Follower {
    bus: Bus,
    reader: Reader,
    keep: Duration,
    state: Option<(EntryId, State)>,
    open: BTreeMap<u64, Table>,
}

/// What a step came to.
enum Step {
    /// Nothing is behind it.
    Done,
    /// The cursor is here, and there may be more.
    Moved(EntryId),
    /// Somebody else follows.
    Theirs,
}

impl Follower {
    /// A follower. `owner` names this process; `keep` is how long minutes stay.
    #[must_use]
    pub fn new(bus: Bus, owner: impl Into<String>, keep: Duration) -> Self {
        let reader = Reader { name: NAME, owner: owner.into(), lease: Duration::from_secs(15), is_required: true };
        Self { bus, reader, keep, state: None, open: BTreeMap::new() }
    }

    /// Follows until `stop`. `told` hears what each step added, for counters of this process.
    pub async fn run(mut self, stop: CancellationToken, mut told: impl FnMut(&Taken<'_>) + Send) {
        let mut pace = Pace::new(PATIENCE);
        loop {
            let began = Instant::now();
            let pause = match self.step(&mut told, &mut pace).await {
                Ok(Step::Moved(cursor)) => pace.rest(&self.bus, cursor, began.elapsed()).await,
                Ok(Step::Done) => PAUSE,
                Ok(Step::Theirs) => {
                    self.forget();
                    Duration::from_secs(5)
                }
                Err(error) => {
                    tracing::debug!(error = %error, "the journal can't be followed; trying again");
                    self.forget();
                    PAUSE
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        let _ = self.bus.release_reader(&self.reader).await;
    }

    /// Folds what there is, without waiting for more. Returns false when somebody else follows.
    pub async fn catch_up(&mut self) -> Result<bool, Error> {
        let mut pace = Pace::new(PATIENCE);
        loop {
            match self.step(&mut |_| {}, &mut pace).await? {
                Step::Done => return Ok(true),
                Step::Theirs => return Ok(false),
                Step::Moved(_) => {}
            }
        }
    }

    fn forget(&mut self) {
        self.state = None;
        self.open.clear();
    }

    async fn step(&mut self, told: &mut (impl FnMut(&Taken<'_>) + Send), pace: &mut Pace) -> Result<Step, Error> {
        let held = self.bus.hold_reader(&self.reader).await?;
        let (cursor, state) = match held {
            Held::Ours { cursor, state } => (cursor, state),
            Held::Theirs(_) => return Ok(Step::Theirs),
            Held::Moved(cursor) => return Ok(Step::Moved(cursor)),
        };
        let known = self.state.take().filter(|(at, _)| *at == cursor);
        let state = match known {
            Some((_, state)) => state,
            None => {
                self.open.clear();
                State::decode(&state)
            }
        };
        let mut fold = Fold::from_state(state);
        let mut last = cursor;
        let wanted = pace.batches();
        let rows = self.bus.journal_batches(cursor.next(), EntryId::MAX, wanted).await?;
        pace.learn(&rows);
        let (batches, is_behind) = (rows.len(), rows.len() == wanted);
        for (id, fields) in rows {
            fold.take(id, &fields);
            last = id;
        }
        if batches == 0 {
            self.state = Some((cursor, fold.state));
            return Ok(Step::Done);
        }
        let minutes = self.write_of(minute_of(cursor.ms), &fold.minutes).await?;
        let stretch = Stretch { from: cursor, to: last, batches, is_last: !is_behind };
        match self.bus.move_reader(&self.reader, stretch, &fold.state.encode(), &minutes).await? {
            Held::Ours { .. } => {
                told(&Taken { added: &fold.minutes });
                let newest = minute_of(last.ms);
                self.open.retain(|minute, _| *minute == newest);
                if self.open.values().map(|table| table.samples.len()).sum::<usize>() > OPEN {
                    self.open.clear();
                }
                self.state = Some((last, fold.state));
                Ok(if is_behind { Step::Moved(last) } else { Step::Done })
            }
            Held::Theirs(_) => Ok(Step::Theirs),
            Held::Moved(cursor) => {
                self.forget();
                Ok(Step::Moved(cursor))
            }
        }
    }

    /// The hashes to write: what the step added on top of what is there.
    async fn write_of(&mut self, open: u64, added: &BTreeMap<u64, Table>) -> Result<Vec<MinuteWrite>, Error> {
        let keep = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
        let mut writes = Vec::new();
        for (minute, table) in added {
            // Minutes after the cursor's were not written in this pass: what is there is of an earlier one.
            let is_fresh = *minute > open;
            if !is_fresh {
                self.load(*minute, table).await?;
            }
            let open = self.open.entry(*minute).or_default();
            open.merge(table);
            let mut by_kind: BTreeMap<&str, Vec<(String, Vec<u8>)>> = BTreeMap::new();
            if is_fresh {
                // What an earlier pass left of a kind that this step has nothing of must not be taken for ours later.
                by_kind.extend(KINDS.map(|kind| (kind, Vec::new())));
            }
            for (kind, series) in table.samples.keys() {
                if let Some(sample) = open.samples.get(&(kind.clone(), series.clone())) {
                    let fields = by_kind.entry(kind).or_default();
                    fields.push((format!("{series}|{WRITER}"), sample.blob()));
                    fields.push((format!("={series}|{WRITER}"), sample.exact().into_bytes()));
                }
            }
            let expires_ms = ((minute + 1) * 60_000).saturating_add(keep);
            for (kind, fields) in by_kind {
                let key = self.bus.keys.latency(kind, *minute);
                writes.push(MinuteWrite { key, expires_ms, is_fresh, fields });
            }
            let counts = table.counts.keys();
            let fields = counts
                .filter_map(|name| Some((name.clone(), open.counts.get(name)?.to_string().into_bytes())))
                .collect();
            writes.push(MinuteWrite { key: self.bus.keys.counts(*minute), expires_ms, is_fresh, fields });
        }
        Ok(writes)
    }

    /// Reads what is stored of a minute, as far as `table` will change it and it is not in memory.
    async fn load(&mut self, minute: u64, table: &Table) -> Result<(), Error> {
        let open = self.open.entry(minute).or_default();
        let missing: BTreeSet<String> =
            table.samples.keys().filter(|key| !open.samples.contains_key(*key)).map(|(kind, _)| kind.clone()).collect();
        let kinds: Vec<String> = missing.into_iter().collect();
        let mut keys: Vec<String> = kinds.iter().map(|kind| self.bus.keys.latency(kind, minute)).collect();
        keys.push(self.bus.keys.counts(minute));
        let mut stored = self.bus.read_minutes(&keys).await?.into_iter();
        for kind in kinds {
            let ours: Vec<_> = stored
                .next()
                .unwrap_or_default()
                .into_iter()
                .filter(|(name, _)| name.ends_with(&format!("|{WRITER}")))
                .collect();
            let mut samples = BySeries::new();
            read::merge_fields(&ours, &mut samples);
            for (series, sample) in samples {
                open.samples.entry((kind.clone(), series)).or_insert(sample);
            }
        }
        for (name, value) in stored.next().unwrap_or_default() {
            let count = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            open.counts.entry(name).or_insert(count);
        }
        Ok(())
    }
}

/// Makes everything anew from the journal's first batch. Another process that follows does it itself: then this waits
/// until it is done. Returns the last batch.
pub async fn replay(bus: &Bus, owner: &str, keep: Duration) -> Result<EntryId, Error> {
    let end = bus.journal_end().await?.id;
    bus.forget_reader(NAME).await?;
    let mut follower = Follower::new(bus.clone(), owner, keep);
    while !follower.catch_up().await? {
        let cursor = bus.readers().await?.get(NAME).map(|cursor| cursor.id).unwrap_or_default();
        if cursor >= end {
            return Ok(cursor);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let _ = bus.release_reader(&follower.reader).await;
    Ok(bus.readers().await?.get(NAME).map(|cursor| cursor.id).unwrap_or_default())
}
