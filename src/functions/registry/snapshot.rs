//! The registry at one moment, indexed by event name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use super::definition::Function;
use super::store::AppRecord;
use crate::functions::store::Mark;

/// Names that belong to the engine: always routed to it.
pub const INTERNAL: &str = "inngest/";

/// See the module.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// `:fn:rev` as it was read.
    pub revision: u64,
    /// Apps by name.
    pub apps: BTreeMap<String, AppRecord>,
    /// Functions by slug, archived ones included.
    pub functions: BTreeMap<String, Arc<Function>>,
    /// Slugs that no app serves any more.
    pub archived: HashSet<String>,
    /// Event names that runs wait for.
    pub waited: HashSet<String>,
    /// `fn:<slug>`, `app:<name>` → who paused it and why.
    pub paused: HashMap<String, Mark>,
    by_id: HashMap<Uuid, String>,
    /// Exact names and patterns → slugs, in the order of the slugs.
    by_event: HashMap<String, Vec<Arc<Function>>>,
    cancels: HashSet<String>,
}

impl Snapshot {
    /// Indexes what was read.
    #[must_use]
    pub fn new(
        revision: u64,
        apps: BTreeMap<String, AppRecord>,
        functions: BTreeMap<String, Function>,
        archived: HashSet<String>,
        waited: HashSet<String>,
        paused: HashMap<String, Mark>,
    ) -> Self {
        let functions: BTreeMap<String, Arc<Function>> =
            functions.into_iter().map(|(slug, function)| (slug, Arc::new(function))).collect();
        let mut by_event: HashMap<String, Vec<Arc<Function>>> = HashMap::new();
        let mut cancels = HashSet::new();
        for (slug, function) in &functions {
            cancels.extend(function.cancel.iter().map(|cancel| cancel.event.clone()));
            if archived.contains(slug) {
                continue;
            }
            for event in function.triggers.iter().filter_map(|trigger| trigger.event.as_ref()) {
                let slot = by_event.entry(event.clone()).or_default();
                if !slot.iter().any(|other| other.slug == function.slug) {
                    slot.push(function.clone());
                }
            }
        }
        let by_id = functions.iter().map(|(slug, function)| (function.id, slug.clone())).collect();
        Self { revision, apps, functions, archived, waited, paused, by_id, by_event, cancels }
    }

    /// Functions with a trigger that names this event, each once; conditions are not looked at.
    #[must_use]
    pub fn triggered_by(&self, event: &str) -> Vec<Arc<Function>> {
        let mut found: Vec<Arc<Function>> = Vec::new();
        for pattern in patterns(event) {
            for function in self.by_event.get(pattern.as_ref()).into_iter().flatten() {
                if !found.iter().any(|other| other.slug == function.slug) {
                    found.push(function.clone());
                }
            }
        }
        found
    }

    /// Whether anything is to be done for this event name.
    #[must_use]
    pub fn wants(&self, event: &str) -> bool {
        event.starts_with(INTERNAL)
            || self.waited.contains(event)
            || self.cancels.contains(event)
            || patterns(event).any(|pattern| self.by_event.contains_key(pattern.as_ref()))
    }

    /// A function by id or slug.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<&Arc<Function>> {
        let by_id = Uuid::try_parse(name).ok().and_then(|id| self.by_id.get(&id));
        self.functions.get(by_id.map_or(name, String::as_str))
    }

    /// Who paused a function, itself or with its app.
    #[must_use]
    pub fn paused_by(&self, function: &Function) -> Option<&Mark> {
        self.paused.get(&format!("fn:{}", function.slug)).or_else(|| self.paused.get(&format!("app:{}", function.app)))
    }

    /// Whether its app still serves it.
    #[must_use]
    pub fn is_served(&self, slug: &str) -> bool {
        self.functions.contains_key(slug) && !self.archived.contains(slug)
    }
}

/// The name itself, then every trigger pattern that matches it: `a/b.c` has `a/*` and `a/b.*`.
pub fn patterns(event: &str) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
    let cut = |(at, c): (usize, char)| matches!(c, '/' | '.').then(|| format!("{}*", &event[..=at]).into());
    std::iter::once(event.into()).chain(event.char_indices().filter_map(cut))
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_event_matches_its_name_and_the_patterns_above_it() {
        let all: Vec<_> = super::patterns("a/b/c.d.e").collect();
        assert_eq!(all, ["a/b/c.d.e", "a/*", "a/b/*", "a/b/c.*", "a/b/c.d.*"]);
    }
}
