//! Cron: each tick of a schedule makes one run, on whatever server, however many there are (protocol section A13).
//!
//! The next tick of a schedule is in Redis; who takes it creates its run and sets the one after it in the same script.
//! Ticks that nobody was there for are not made up for, but for the last one, as `FUNCTIONS_CRON_MISSED` says.

use serde_json::json;

use super::super::ids;
use super::super::registry::{Function, Series};
use super::super::store::{Scheduled, scheduling_fact};
use super::bounds::Stages;
use super::event::{Event, names};
use super::events::Arrival;
use super::{Engine, Error};
use crate::config::MissedTicks;
use crate::moment::iso;
use crate::streams::entry_id::EntryId;
use crate::streams::priority::Priority;
use crate::streams::records::Fact;

/// A tick that fires later than this was missed, ms.
const LATE_MS: u64 = 10_000;

impl Engine {
    /// A schedule's timer is due.
    pub(super) async fn fire_tick(&self, name: &str, slug: &str) -> Result<(), Error> {
        let snapshot = self.registry().current();
        let function = snapshot.function(slug).filter(|_| snapshot.is_served(slug)).cloned();
        let series = function.as_ref().and_then(|function| function.series().into_iter().find(|one| one.name == name));
        let (Some(function), Some(series)) = (function, series) else {
            // Another server may know it already: what is registered decides, not what this one has read.
            if self.registry().refresh().await? {
                return Ok(());
            }
            return Ok(self.runs().forget_schedule(name).await?);
        };
        let Some(due) = self.runs().next_tick(name).await? else {
            return Ok(self.runs().forget_schedule(name).await?);
        };
        let now = self.runs().now_ms().await?;
        // Another server has fired the tick that was due: this is the one after it.
        if series.fires_ms(due) > now {
            return Ok(());
        }
        let is_late = now.saturating_sub(series.fires_ms(due)) > LATE_MS;
        let (tick, skipped) = match is_late.then(|| series.schedule.last_between(due, now)).flatten() {
            Some((last, _)) => (last, true),
            None => (due, false),
        };
        let fires = !(is_late && self.settings().cron_missed == MissedTicks::Skip);
        let after = if fires { tick } else { now };
        let Some(next) = series.schedule.next_after(after) else {
            return Ok(self.runs().forget_schedule(name).await?);
        };
        let event = tick_event(&function, &series, tick, now);
        let entry = EntryId { ms: now, seq: 0 };
        let arrival = Arrival { event: &event, entry, priority: Priority::default(), span: None };
        let run = match self.new_run(&function, &arrival, "cron", None, Stages::All) {
            Ok(run) => Some(run).filter(|_| fires),
            Err(reason) => {
                self.journal_refused(&function, &event, &reason).await;
                None
            }
        };
        let fact = match &run {
            Some(run) => scheduling_fact("function.cron.ticked", run),
            None => Fact::new("functions", "function.cron.missed").warn().with("function", slug),
        };
        let fact = fact.with("cron", series.cron.clone()).with("scheduledAt", iso(tick));
        let fact = if skipped { fact.with("missedSince", iso(due)) } else { fact };
        let next = (next, series.fires_ms(next));
        let Some(taken) = self.runs().tick(name, due, next, run.as_ref(), fact).await? else { return Ok(()) };
        if let Scheduled::Busy(holder) = taken {
            // The timer is still due, and fires once more.
            self.cancel_for_singleton(&holder).await?;
            self.inner.timer_set.notify_one();
        }
        Ok(())
    }

    /// Makes the schedules in Redis those of the registered functions.
    pub(super) async fn reconcile_schedules(&self) -> Result<(), Error> {
        let known = self.registry().load().await?;
        let mut stored = self.runs().schedules().await?;
        let now = self.runs().now_ms().await?;
        for function in known.functions.values().filter(|function| known.is_served(&function.slug)) {
            for series in function.series() {
                let tick = stored.remove(&series.name).or_else(|| series.schedule.next_after(now));
                if let Some(tick) = tick {
                    self.runs().set_schedule(&series.name, tick, series.fires_ms(tick)).await?;
                }
            }
        }
        for name in stored.keys() {
            self.runs().forget_schedule(name).await?;
        }
        Ok(())
    }
}

fn tick_event(function: &Function, series: &Series, tick_ms: u64, now_ms: u64) -> Event {
    let short = |ms: u64| iso(ms).unwrap_or_default().replace(".000Z", "Z");
    let value = json!({
        "data": {"cron": series.cron, "scheduledAt": short(tick_ms), "fireAt": short(now_ms / 1_000 * 1_000)},
        "id": short(tick_ms), "name": names::TICK, "ts": now_ms, "user": {},
    });
    let public_id = ids::derived(tick_ms, &[&function.id.to_string(), &series.cron]);
    Event { public_id, json: value.to_string(), value }
}
