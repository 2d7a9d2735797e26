//! The projection held against the journal: each whole minute folded once more and compared byte for byte.

use std::collections::BTreeMap;

use super::super::latency::minute_of;
use super::fold::{Fold, State};
use super::{NAME, WRITER};
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::journal;
use crate::streams::redis::Error;

/// Journal batches per read.
const PAGE: usize = 256;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Batches read.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Batches that can't be decoded.
    pub undecodable: u64,
    /// Minutes compared.
    pub compared: u64,
    /// Minute and key of what is not as the journal says.
    pub differing: Vec<(u64, String)>,
}

/// Compares every whole minute from `from` on that the projection is done with.
pub async fn check(bus: &Bus, from: EntryId) -> Result<Checked, Error> {
    let (cursor, state, _) = bus.read_open_minute(NAME, &[]).await?;
    let mut checked = Checked::default();
    let mut fold = Fold::from_state(State::decode(&state));
    let mut next = from;
    let mut first = None;
    loop {
        let page = bus.journal_batches(next, EntryId::MAX, PAGE).await?;
        for (id, fields) in &page {
            first.get_or_insert(*id);
            checked.batches += 1;
            let mut entries = Vec::new();
            match journal::expand(*id, fields, &mut entries) {
                true => checked.records += entries.len() as u64,
                false => checked.undecodable += 1,
            }
            fold.take(*id, fields);
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => next = last.next(),
            _ => break,
        }
    }
    // The first minute may be cut, by the question or by retention, and the cursor's is not full yet.
    let whole = first.map_or(0, |first| minute_of(first.ms) + 1)..minute_of(cursor.ms);
    for (minute, table) in fold.minutes.iter().filter(|(minute, _)| whole.contains(minute)) {
        checked.compared += 1;
        let mut expected: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        for ((kind, series), sample) in &table.samples {
            let fields = expected.entry(bus.keys.latency(kind, *minute)).or_default();
            fields.insert(format!("{series}|{WRITER}"), sample.blob());
            fields.insert(format!("={series}|{WRITER}"), sample.exact().into_bytes());
        }
        let counts = expected.entry(bus.keys.counts(*minute)).or_default();
        counts.extend(table.counts.iter().map(|(name, count)| (name.clone(), count.to_string().into_bytes())));
        let keys: Vec<String> = expected.keys().cloned().collect();
        for (key, stored) in keys.iter().zip(bus.read_minutes(&keys).await?) {
            let stored: BTreeMap<String, Vec<u8>> = stored.into_iter().collect();
            if expected.get(key) != Some(&stored) {
                checked.differing.push((*minute, key.clone()));
            }
        }
    }
    Ok(checked)
}
