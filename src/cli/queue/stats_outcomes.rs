//! Triage held against what came of its events: whether what it would have changed had mattered.
//!
//! Read from the journal when somebody asks, and only where a suggestion differs from the static values: the
//! projections count, they don't join.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::records::Entry;
use crate::streams::redis::Error;

/// A wait below this is none that a higher priority would have shortened, ms.
const SOON_MS: u64 = 1_000;
/// Suggestions that are followed at most.
const MOST: usize = 50_000;
/// How long the journal may be read.
const READING: Duration = Duration::from_secs(4);
/// Journal batches per read.
const PAGE: usize = 512;

/// What came of the suggestions of one family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outcomes {
    /// Priorities that it wanted higher.
    raised: u64,
    /// Of those, events that started.
    raised_started: u64,
    /// Of those, events that waited less than a second anyway.
    raised_soon_anyway: u64,
    /// Priorities that it wanted lower.
    lowered: u64,
    /// Of those, events of which an attempt failed.
    lowered_failed: u64,
    /// Dedup keys whose data differed: they would have swallowed an event.
    keys_declined: u64,
}

impl Outcomes {
    const fn add(&mut self, other: Self) {
        self.raised += other.raised;
        self.raised_started += other.raised_started;
        self.raised_soon_anyway += other.raised_soon_anyway;
        self.lowered += other.lowered;
        self.lowered_failed += other.lowered_failed;
        self.keys_declined += other.keys_declined;
    }
}

/// One event whose priority triage wanted otherwise.
struct Followed {
    family: String,
    is_raise: bool,
    waited_ms: Option<u64>,
    has_failed: bool,
}

/// Joins suggestions with what came of their events. Pure but for what it is given.
#[derive(Default)]
struct Join {
    followed: HashMap<String, Followed>,
    by_family: BTreeMap<String, Outcomes>,
    is_cut: bool,
}

impl Join {
    fn take_suggestion(&mut self, entry: &Entry) {
        let fact = &entry.fact;
        let text = |key: &str| fact.metadata.get(key).and_then(Value::as_str);
        let family = text("family").or_else(|| text("queueEventName")).unwrap_or("unknown");
        match &*fact.action {
            "queue.dedup.declined" => self.by_family.entry(family.to_owned()).or_default().keys_declined += 1,
            "queue.triage.completed" => {
                let (Some(suggested), Some(baseline)) = (text("suggestedPriority"), text("baselinePriority")) else {
                    return;
                };
                let Some(id) = fact.event_id.as_deref().or_else(|| text("eventId")) else { return };
                if suggested == baseline {
                    return;
                }
                if self.followed.len() >= MOST {
                    self.is_cut = true;
                    return;
                }
                // P0 is the highest.
                let is_raise = suggested < baseline;
                let followed = Followed { family: family.to_owned(), is_raise, waited_ms: None, has_failed: false };
                self.followed.insert(id.to_owned(), followed);
            }
            _ => {}
        }
    }

    fn take_end(&mut self, entry: &Entry) {
        let fact = &entry.fact;
        let Some(followed) = fact.event_id.as_ref().and_then(|id| self.followed.get_mut(id)) else { return };
        match &*fact.action {
            "queue.dispatch.started" if followed.waited_ms.is_none() => {
                followed.waited_ms = fact.metadata.get("waitTimeMs").and_then(Value::as_u64);
            }
            "queue.dispatch.failed" => followed.has_failed = true,
            _ => {}
        }
    }

    fn finish(mut self) -> (BTreeMap<String, Outcomes>, bool) {
        for followed in self.followed.into_values() {
            let of = self.by_family.entry(followed.family).or_default();
            if followed.is_raise {
                of.raised += 1;
                of.raised_started += u64::from(followed.waited_ms.is_some());
                of.raised_soon_anyway += u64::from(followed.waited_ms.is_some_and(|waited| waited < SOON_MS));
            } else {
                of.lowered += 1;
                of.lowered_failed += u64::from(followed.has_failed);
            }
        }
        (self.by_family, self.is_cut)
    }
}

/// Adds `outcomes` to the triage part of a result: in all, and of each family.
pub(super) async fn add(triage: &mut Value, bus: &Bus, from: EntryId) -> Result<(), Error> {
    // Where every suggestion says what holds anyway, there is nothing to follow.
    let has_news = triage["agreement"].as_f64().is_some_and(|agreement| agreement < 1.0);
    let (by_family, is_cut) = if has_news { read(bus, from).await? } else { (BTreeMap::new(), false) };
    let mut all = Outcomes::default();
    by_family.values().for_each(|of| all.add(*of));
    triage["outcomes"] = json!(all);
    triage["outcomes"]["truncated"] = json!(is_cut);
    for row in triage["families"].as_array_mut().into_iter().flatten() {
        let of = row["name"].as_str().and_then(|name| by_family.get(name)).copied().unwrap_or_default();
        row["outcomes"] = json!(of);
    }
    Ok(())
}

async fn read(bus: &Bus, from: EntryId) -> Result<(BTreeMap<String, Outcomes>, bool), Error> {
    let mut join = Join::default();
    let started = Instant::now();
    // Twice, because in shadow a suggestion may come after its event has ended.
    for is_first in [true, false] {
        let mut next = Some(from);
        while let Some(at) = next {
            if started.elapsed() > READING {
                join.is_cut = true;
                break;
            }
            let page = bus.journal_page(at, EntryId::MAX, PAGE).await?;
            next = page.last.map(EntryId::next);
            for entry in &page.entries {
                if is_first { join.take_suggestion(entry) } else { join.take_end(entry) }
            }
        }
        if join.followed.is_empty() {
            break;
        }
    }
    Ok(join.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::records::Fact;

    fn entry(fact: Fact) -> Entry {
        Entry { id: EntryId { ms: 1, seq: 0 }, fact }
    }

    #[test]
    fn suggestions_are_held_against_what_came_of_their_events() {
        let mut join = Join::default();
        let told = |id: &str, suggested: &str| {
            let fact = Fact::new("queue-triage", "queue.triage.completed").event(id).with("family", "a/b");
            entry(fact.with("suggestedPriority", suggested).with("baselinePriority", "P2"))
        };
        for (id, suggested) in [("up", "P0"), ("up-slow", "P1"), ("never", "P0"), ("down", "P3"), ("same", "P2")] {
            join.take_suggestion(&told(id, suggested));
        }
        join.take_suggestion(&entry(Fact::new("queue", "queue.dedup.declined").with("family", "a/b")));
        let dispatch = |id: &str, wait: u64| {
            entry(Fact::new("queue-drainer", "queue.dispatch.started").event(id).with("waitTimeMs", wait))
        };
        for (id, wait) in [("up", 999), ("up-slow", 1000), ("up-slow", 5), ("down", 1), ("same", 1)] {
            join.take_end(&dispatch(id, wait));
        }
        join.take_end(&entry(Fact::new("queue-drainer", "queue.dispatch.failed").event("down")));
        let (by_family, is_cut) = join.finish();
        let expected = Outcomes {
            raised: 3,
            raised_started: 2,
            raised_soon_anyway: 1,
            lowered: 1,
            lowered_failed: 1,
            keys_declined: 1,
        };
        assert_eq!((by_family["a/b"], is_cut), (expected, false));
    }
}
