//! A window of the projection: whole minutes as they are stored, and its two ends folded from the journal.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::latency::read::{self, BySeries};
use super::super::latency::{Sample, Summary, minute_of};
use super::fold::{Fold, State, Table};
use super::{KINDS, NAME};
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::lane::family_of;
use crate::streams::minutes::Fields;
use crate::streams::redis::Error;

/// Journal batches per read.
const PAGE: usize = 256;

/// What happened since a moment.
#[derive(Debug, Default)]
pub struct Window {
    /// Samples and counts.
    pub table: Table,
    /// Pauses and recent records.
    pub state: State,
    /// The first batch that counts.
    pub from: EntryId,
    /// The last batch read.
    pub to: EntryId,
    /// Batches folded here, not read from stored minutes.
    pub folded: u64,
    /// Stored minutes read.
    pub minutes: u64,
    /// Since when anything is known, ms.
    pub known_since_ms: u64,
}

impl Window {
    /// All series of a kind together, as far as `filter` wants them.
    #[must_use]
    pub fn sample(&self, kind: &str, filter: impl Fn(&str) -> bool) -> Sample {
        let mut all = Sample::default();
        for ((_, _), sample) in self.table.samples.iter().filter(|((of, series), _)| of == kind && filter(series)) {
            all.merge(sample);
        }
        all
    }

    /// The same, told.
    #[must_use]
    pub fn summary(&self, kind: &str, filter: impl Fn(&str) -> bool) -> Summary {
        self.sample(kind, filter).summary()
    }

    /// The sum of counters `<what>|…` that `filter` wants; it is given the two parts after `<what>`.
    #[must_use]
    pub fn count(&self, what: &str, filter: impl Fn(&str, &str) -> bool) -> u64 {
        self.counts(what).filter(|(of, detail, _)| filter(of, detail)).map(|(_, _, count)| count).sum()
    }

    /// Counters `<what>|<of>|<detail>`.
    pub fn counts<'a>(&'a self, what: &'a str) -> impl Iterator<Item = (&'a str, &'a str, u64)> + 'a {
        self.table.counts.iter().filter_map(move |(name, count)| {
            let rest = name.strip_prefix(what)?.strip_prefix('|')?;
            let (of, detail) = rest.split_once('|').unwrap_or((rest, ""));
            Some((of, detail, *count))
        })
    }

    fn add(&mut self, kind: Option<&str>, fields: &Fields) {
        let Some(kind) = kind else {
            for (name, value) in fields {
                let count = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
                *self.table.counts.entry(name.clone()).or_default() += count;
            }
            return;
        };
        let mut samples = BySeries::new();
        let broken = read::merge_fields(fields, &mut samples);
        if broken > 0 {
            *self.table.counts.entry("undecodable||".into()).or_default() += broken;
        }
        for (series, sample) in samples {
            self.table.samples.entry((kind.to_owned(), series)).or_default().merge(&sample);
        }
    }
}

/// Everything from `from` (a moment or a batch, included) until now, for moments whose minutes are still stored.
pub async fn window(bus: &Bus, from: EntryId) -> Result<Window, Error> {
    window_within(bus, from, Duration::MAX).await
}

/// The same where minutes are stored for `keep`: older ones are folded from the journal, as far as it reaches back.
pub async fn window_within(bus: &Bus, from: EntryId, keep: Duration) -> Result<Window, Error> {
    let mut all = Window { from, ..Window::default() };
    let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
    let first_kept = minute_of(bus.now_ms().await?.saturating_sub(keep)) + 1;
    let stored = bus.readers().await?.get(NAME).map(|cursor| cursor.id).unwrap_or_default();
    let (_, state, _) = bus.read_open_minute(NAME, &[]).await?;
    let mut state = State::decode(&state);
    let mut first_whole = minute_of(from.ms) + u64::from(!from.ms.is_multiple_of(60_000) || from.seq != 0);
    all.known_since_ms = state.first_minute.unwrap_or_default() * 60_000;
    if first_kept > 1 && first_kept > first_whole && state.first_minute.is_some_and(|first| first < first_kept) {
        first_whole = first_kept;
        let first = bus.journal_batches(EntryId::MIN, EntryId::MAX, 1).await?;
        let journal_ms = first.first().map_or(u64::MAX, |(id, _)| id.ms);
        all.known_since_ms = all.known_since_ms.max(journal_ms.min(first_kept * 60_000));
    }
    let mut tail = from;
    if minute_of(stored.ms) >= first_whole && stored >= from {
        // The head: up to the first whole minute.
        let head_end = EntryId { ms: (first_whole * 60_000).saturating_sub(1), seq: u64::MAX };
        if from < head_end {
            let mut fold = Fold::from_state(state.clone());
            all.folded += fold_range(bus, &mut fold, from, head_end).await?;
            all.table.merge(&fold.total());
        }
        let cursor = stored_minutes(bus, &mut all, &mut state, first_whole, stored).await?;
        all.to = cursor;
        tail = cursor.next();
    }
    let mut fold = Fold::from_state(state);
    all.folded += fold_tail(bus, &mut fold, tail, &mut all.to).await?;
    all.table.merge(&fold.total());
    all.state = fold.state;
    Ok(all)
}

/// Whole minutes from the one of `from_ms` on, as far as they are folded: cheap while much is written, and a little late.
pub async fn folded(bus: &Bus, from_ms: u64) -> Result<Window, Error> {
    let first = minute_of(from_ms);
    let mut all = Window { from: EntryId { ms: first * 60_000, seq: 0 }, ..Window::default() };
    let (stored, state, _) = bus.read_open_minute(NAME, &[]).await?;
    let mut state = State::decode(&state);
    if minute_of(stored.ms) >= first {
        all.to = stored_minutes(bus, &mut all, &mut state, first, stored).await?;
    }
    all.state = state;
    Ok(all)
}

/// Adds the stored minutes from `first` on. Returns the cursor up to which that is, and its state.
async fn stored_minutes(
    bus: &Bus,
    all: &mut Window,
    state: &mut State,
    first: u64,
    stored: EntryId,
) -> Result<EntryId, Error> {
    // No stored minute is older than the journal's first batch can tell; years of empty minutes need not be read.
    let oldest = state.first_minute.unwrap_or_default().max(first);
    let mut open = minute_of(stored.ms);
    let keys_of = |minute: u64| {
        let kinds = KINDS.iter().map(move |kind| (Some(*kind), minute));
        kinds.chain([(None, minute)]).map(|(kind, minute)| match kind {
            Some(kind) => (Some(kind), bus.keys.latency(kind, minute)),
            None => (None, bus.keys.counts(minute)),
        })
    };
    let mut closed = oldest;
    loop {
        // Minutes before the cursor's are closed: nobody writes them any more.
        let wanted: Vec<_> = (closed..open).flat_map(&keys_of).collect();
        let keys: Vec<String> = wanted.iter().map(|(_, key)| key.clone()).collect();
        for ((kind, _), fields) in wanted.iter().zip(bus.read_minutes(&keys).await?) {
            all.add(*kind, &fields);
        }
        all.minutes += open.saturating_sub(closed);
        closed = open.max(closed);
        let wanted: Vec<_> = keys_of(open).collect();
        let keys: Vec<String> = wanted.iter().map(|(_, key)| key.clone()).collect();
        let (cursor, newer, fields) = bus.read_open_minute(NAME, &keys).await?;
        *state = State::decode(&newer);
        if minute_of(cursor.ms) > open {
            // It moved on while we read: that minute is closed now.
            open = minute_of(cursor.ms);
            continue;
        }
        for ((kind, _), fields) in wanted.iter().zip(fields) {
            all.add(*kind, &fields);
        }
        all.minutes += 1;
        return Ok(cursor);
    }
}

/// Folds `from..=to`; how many batches that were.
async fn fold_range(bus: &Bus, fold: &mut Fold, from: EntryId, to: EntryId) -> Result<u64, Error> {
    let mut next = from;
    let mut folded = 0;
    loop {
        let page = bus.journal_batches(next, to, PAGE).await?;
        folded += page.len() as u64;
        let last = page.last().map(|(id, _)| *id);
        let is_full = page.len() == PAGE;
        page.iter().for_each(|(id, fields)| fold.take(*id, fields));
        match last {
            Some(last) if is_full => next = last.next(),
            _ => return Ok(folded),
        }
    }
}

/// Folds all from `from` on, up to what was there when we began.
async fn fold_tail(bus: &Bus, fold: &mut Fold, from: EntryId, to: &mut EntryId) -> Result<u64, Error> {
    let end = bus.journal_end().await?.id;
    if end < from {
        return Ok(0);
    }
    *to = end;
    fold_range(bus, fold, from, end).await
}

/// Counts by family of counters whose second part is a lane.
#[must_use]
pub fn by_family<'a>(counts: impl Iterator<Item = (&'a str, &'a str, u64)>) -> BTreeMap<String, u64> {
    let mut families = BTreeMap::new();
    for (lane, _, count) in counts {
        let family = family_of(lane);
        *families.entry(family.to_owned()).or_default() += count;
    }
    families
}
