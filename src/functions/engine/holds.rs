//! Functions that are paused, by a mark of theirs or by their family's pause: what waits for them gives up its slots, so that nobody else waits with it.
//!
//! New calls of a paused function stand in a line of their own from the start (`limits.lua`); here are those that had a
//! slot already when the pause came, and the end of the pause.

use std::collections::HashSet;

use super::super::registry::flow::Scope;
use super::super::store::{WORK, work_family};
use super::{Engine, Error};

impl Engine {
    /// Looks for pauses that began or ended since the last look; `paused` is what was seen then.
    pub(super) async fn tend_holds(&self, paused: &mut HashSet<String>) -> Result<(), Error> {
        let snapshot = self.registry().current();
        let pauses = self.runs().bus().pauses().await?;
        let by_family = pauses.active.keys().filter_map(|family| snapshot.function(family.strip_prefix(WORK)?));
        let by_mark = snapshot.functions.values().filter(|function| snapshot.paused_by(function).is_some());
        let now: HashSet<String> = by_family.chain(by_mark).map(|function| function.slug.clone()).collect();
        let held = self.runs().held().await?;
        let over = held.iter().filter(|slug| !now.contains(*slug));
        for slug in now.difference(paused).chain(over) {
            let Some(function) = snapshot.function(slug) else { continue };
            let names: Vec<(String, Scope)> =
                function.flow.concurrency.iter().map(|limit| (limit.name(), limit.scope)).collect();
            if names.is_empty() && function.flow.throttle.is_none() {
                continue;
            }
            let is_its = |group: &super::super::store::Group| {
                names
                    .iter()
                    .any(|(name, scope)| *name == group.key && (*scope != Scope::Fn || group.function == function.slug))
            };
            let groups: Vec<String> =
                self.runs().groups().await?.into_iter().filter(is_its).map(|group| group.group).collect();
            self.runs().hold(slug, &function.app, &work_family(slug, function.id), &groups).await?;
        }
        *paused = now;
        Ok(())
    }
}
