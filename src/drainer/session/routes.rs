//! What the loop knows of families: plans, limits, and what holds them.

use std::collections::HashMap;

use super::super::adaptive::Adaptive;
use super::super::plan::FamilyPlan;
use super::super::scheduler::Limits;
use crate::streams::family::Family;
use crate::streams::lane::Lane;
use crate::streams::records::Fact;

use super::Session;

impl Session {
    /// Makes a lane known, with its family's limits and holds.
    pub(super) fn know(&mut self, lane: &Lane) {
        if self.scheduler.add_lane(lane) && !self.plan_of.contains_key(&lane.family) {
            let family = lane.family.clone();
            self.apply_plan(&family);
        }
    }

    pub(super) fn plan(&mut self, family: &Family) -> FamilyPlan {
        if let Some(plan) = self.plan_of.get(family) {
            return plan.clone();
        }
        let plan = self.plans.plan(family);
        self.plan_of.insert(family.clone(), plan.clone());
        plan
    }

    /// What of a family may run at once now.
    fn adapted(&mut self, family: &Family, plan: &FamilyPlan) -> u32 {
        if !plan.aimd {
            self.adaptive.remove(family);
            return plan.concurrency;
        }
        let most = plan.concurrency.min(u32::try_from(self.settings.concurrency).unwrap_or(u32::MAX));
        let adaptive = self.adaptive.entry(family.clone()).or_insert_with(|| Adaptive::new(most));
        adaptive.set_most(most);
        adaptive.limit()
    }

    /// An attempt ended: families whose concurrency adapts learn from it.
    pub(super) fn adapt(&mut self, family: &Family, took_us: u64, verdict: Option<bool>, now: u64) {
        let Some(is_good) = verdict else { return };
        let Some(adaptive) = self.adaptive.get_mut(family) else { return };
        if adaptive.ended(now, took_us, is_good) {
            self.apply_plan(family);
        }
    }

    /// A target has come back.
    pub(super) fn begin_low(&mut self, family: &Family) {
        if let Some(adaptive) = self.adaptive.get_mut(family) {
            adaptive.begin_low();
            self.apply_plan(family);
        }
    }

    /// Families that run less at once than their entries allow, for whoever asks why.
    pub(super) fn reduced(&self) -> HashMap<String, u32> {
        let reduced = self.adaptive.iter().filter(|(_, adaptive)| adaptive.is_reduced());
        reduced.map(|(family, adaptive)| (family.to_string(), adaptive.limit())).collect()
    }

    pub(super) fn apply_plan(&mut self, family: &Family) {
        let plan = self.plan(family);
        let limits = Limits {
            concurrency: self.adapted(family, &plan),
            weight: plan.weight,
            ordered: plan.ordered,
            rate_per_s: plan.rate_per_s,
            slots: plan.slots,
        };
        self.scheduler.set_limits(family, limits);
        if plan.ordered {
            self.shared.want_ordered(family);
        }
        self.apply_hold(family);
    }

    /// A family is held by a pause or its circuit breaker, for want of a handler, or because another drainer runs it in order.
    pub(super) fn apply_hold(&mut self, family: &Family) {
        let plan = self.plan(family);
        let unrouted = plan.handler.is_none();
        if !unrouted {
            self.unrouted.remove(family);
        } else if self.unrouted.insert(family.clone()) {
            let reason = plan.unrouted_because.unwrap_or_default();
            tracing::warn!(family = %family, reason, "no route: its events are kept until one appears");
            let fact = Fact::new("queue", "queue.unrouted").warn();
            self.outbox.fact(fact.with("eventName", family.as_str()).with("reason", reason));
        }
        let elsewhere = plan.ordered && !self.shared.holds_ordered(&self.bus, family);
        let held =
            unrouted || elsewhere || self.pauses.until(family, self.now_ms()).is_some() || self.is_broken(family);
        for (lane, head) in self.scheduler.set_held(family, held) {
            self.hand_back(&lane, &head.item);
        }
    }

    pub(super) fn apply_holds(&mut self) {
        let families: Vec<Family> = self.scheduler.families().cloned().collect();
        let mut explained = Vec::new();
        for family in &families {
            self.apply_hold(family);
            if self.scheduler.is_held(family) || self.scheduler.is_limited(family) {
                explained.push(family.to_string());
            }
        }
        self.vitals.set_explained(explained);
    }

    pub(super) fn replan(&mut self) {
        self.plan_of.clear();
        let families: Vec<Family> = self.scheduler.families().cloned().collect();
        for family in families {
            self.apply_plan(&family);
        }
    }
}
