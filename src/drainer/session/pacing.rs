//! An operator's steering in the loop: other priorities, and permits of families that have a pace.
//!
//! A pace is counted in Redis, for all drainers together. This one asks for permits only for what it has in view, so
//! none lie idle here while another could use them.

use std::collections::{HashMap, HashSet};

use super::super::housekeeping;
use super::super::scheduler::Grant;
use crate::streams::family::Family;
use crate::streams::steering::{Permits, Slot, Steerings};

use super::Session;

/// Permits asked for at once.
const MOST: usize = 64;

/// What the loop knows of steering.
#[derive(Default)]
pub struct Pacing {
    steerings: Steerings,
    /// Families with a pace, and when more may start, ms.
    paced: HashMap<Family, u64>,
    /// Families whose permits are on their way.
    asked: HashSet<Family>,
}

impl Session {
    /// Takes over what Redis says.
    pub(super) fn learn_steering(&mut self, steerings: Steerings) {
        if steerings == self.pacing.steerings {
            return;
        }
        let before = std::mem::replace(&mut self.pacing.steerings, steerings);
        let named = before.sorted().into_iter().chain(self.pacing.steerings.sorted());
        let families: HashSet<Family> = named.filter_map(|steering| steering.family.parse().ok()).collect();
        for family in families {
            let now = |slot| self.pacing.steerings.of(slot, family.as_str());
            let priority = now(Slot::Priority).and_then(|steering| steering.priority());
            let (old, new) = (before.of(Slot::Pace, family.as_str()), now(Slot::Pace));
            let is_other = old.map(|old| old.rev) != new.map(|new| new.rev);
            let has_pace = new.is_some();
            self.scheduler.set_priority(&family, priority);
            if is_other && has_pace {
                self.scheduler.set_grant(&family, Some(Grant::default()));
                self.pacing.paced.insert(family, 0);
            } else if is_other {
                self.scheduler.set_grant(&family, None);
                self.pacing.paced.remove(&family);
            }
        }
    }

    /// Asks for permits where events wait for one.
    pub(super) fn ask_for_permits(&mut self) {
        if self.pacing.paced.is_empty() || self.vitals.redis_down() {
            return;
        }
        let now = self.now_ms();
        let wanted: Vec<(Family, usize)> = self
            .pacing
            .paced
            .iter()
            .filter(|(family, next)| **next <= now && !self.pacing.asked.contains(*family))
            .filter(|(family, _)| self.scheduler.wants_grant(family, now))
            .map(|(family, _)| (family.clone(), self.scheduler.heads_of(family).min(MOST)))
            .collect();
        for (family, count) in wanted {
            self.pacing.asked.insert(family.clone());
            housekeeping::permits(&self.bus, family, count, self.events.clone());
        }
    }

    /// What was granted; `None` when Redis did not say.
    pub(super) fn on_permits(&mut self, family: Family, permits: Option<Permits>) {
        self.pacing.asked.remove(&family);
        let now = self.now_ms();
        let Some(next) = self.pacing.paced.get_mut(&family) else { return };
        match permits {
            Some(Permits { granted: 0, next_ms }) => *next = next_ms.max(now + 1),
            Some(Permits { granted, next_ms }) => {
                self.scheduler.set_grant(&family, Some(Grant { left: granted, until_ms: next_ms }));
            }
            // The pace has just ended, or Redis is away: the next look at the controls tells.
            None => *next = now + 100,
        }
    }

    /// When permits may be asked for again, ms.
    pub(super) fn next_permits(&self) -> Option<u64> {
        if self.vitals.redis_down() || self.stopping.is_some() {
            return None;
        }
        let now = self.now_ms();
        let waits = |family: &Family| !self.pacing.asked.contains(family) && self.scheduler.wants_grant(family, now);
        self.pacing.paced.iter().filter(|(family, _)| waits(family)).map(|(_, next)| *next).min()
    }
}
