//! Reading the journal through a filter: the newest matches, how many there are, and of what kinds.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value};

use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::redis::Error;
use crate::telemetry::event::{Event, events_of};

/// Batches per read.
const PAGE: usize = 256;
/// Batches read at most.
const MOST: usize = 100_000;
/// Values of one facet that are told apart.
const VALUES: usize = 1_000;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest, newest first.
    pub events: Vec<Value>,
    /// How many match.
    pub total: u64,
    /// Field → value → how many match.
    pub facets: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Batches that could not be decoded.
    pub undecodable: u64,
    /// The journal was not read to the end.
    pub is_cut: bool,
}

impl Found {
    /// The facets as JSON.
    pub fn facets(&self) -> Value {
        self.facets
            .iter()
            .map(|(field, counts)| ((*field).to_owned(), counts.clone().into_iter().collect()))
            .collect::<Map<_, _>>()
            .into()
    }
}

/// Reads from `from` to `to` and keeps the `keep` newest that `wants` wants, counting them by these fields.
pub async fn scan(
    bus: &Bus,
    system: &str,
    (from, to): (EntryId, EntryId),
    keep: usize,
    fields: &[&'static str],
    mut wants: impl FnMut(&Value) -> bool,
) -> Result<Found, Error> {
    let mut kept: VecDeque<Event> = VecDeque::new();
    let mut found =
        Found { facets: fields.iter().map(|field| (*field, BTreeMap::new())).collect(), ..Found::default() };
    let (mut batches, mut next) = (0, from);
    found.is_cut = loop {
        let page = bus.journal_page(next, to, PAGE).await?;
        found.undecodable += page.undecodable;
        batches += PAGE;
        for batch in page.entries.chunk_by(|a, b| a.id == b.id) {
            for event in events_of(batch, system) {
                if !wants(&event.json) {
                    continue;
                }
                found.total += 1;
                for (field, counts) in &mut found.facets {
                    let value = match &event.json[*field] {
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    if counts.len() < VALUES || counts.contains_key(&value) {
                        *counts.entry(value).or_default() += 1;
                    }
                }
                kept.push_back(event);
                if kept.len() > keep {
                    kept.pop_front();
                }
            }
        }
        match page.last {
            Some(_) if batches >= MOST => break true,
            Some(last) => next = last.next(),
            None => break false,
        }
    };
    found.events = kept.into_iter().rev().map(|event| event.json).collect();
    Ok(found)
}
