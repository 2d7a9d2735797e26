//! The watchdog: a thread with a Redis connection of its own that ends the process when the drainer is stuck.
//!
//! It shares nothing with the loop it guards but [`Vitals`], so a blocked runtime or a hung Redis can't silence it.
//! Checked in this order: `tick_hung`, `dispatch_hung`, `backlog_idle`. What a pause, a limit, a missing route or a
//! retry's time explains is never a stall, and neither is an unreachable Redis: restarting would not bring it back.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::vitals::{Snapshot, Vitals};
use crate::streams::bus::Bus;
use crate::streams::keys::{GROUP, HANDBACK_CONSUMER, RETRY_CONSUMER};
use crate::streams::lane::Lane;
use crate::streams::records::Fact;

/// Why the drainer counts as stuck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// `tick_hung`, `dispatch_hung` or `backlog_idle`.
    pub reason: &'static str,
    /// For how long, ms.
    pub age_ms: u64,
}

/// Judges one snapshot. Pure.
#[must_use]
pub fn judge(snapshot: &Snapshot, limit: Duration) -> Option<Stall> {
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let since = |then: u64| snapshot.now.saturating_sub(then);
    let running = snapshot.tick_started > snapshot.tick_finished;
    let tick_age = since(if running { snapshot.tick_started } else { snapshot.tick_finished });
    if tick_age > limit {
        return Some(Stall { reason: "tick_hung", age_ms: tick_age });
    }
    let oldest = snapshot.dispatches.iter().map(|(_, beyond)| *beyond).max().unwrap_or(0);
    if oldest > limit {
        return Some(Stall { reason: "dispatch_hung", age_ms: oldest });
    }
    // An event that came a moment ago to a drainer that had nothing to do for an hour is no stall.
    let idle = since(snapshot.last_progress.max(snapshot.backlog_since));
    if snapshot.depth > 0 && snapshot.dispatches.is_empty() && !snapshot.retry_due_later && idle > limit {
        return Some(Stall { reason: "backlog_idle", age_ms: idle });
    }
    None
}

/// What the watchdog does on a stall after it has reported it: the process ends with exit code 70.
pub type OnStall = Box<dyn FnOnce(Stall) + Send>;

/// Starts the watchdog. It looks every min(`limit`, max(5 s, `interval`)) and ends with the process.
pub fn start(
    bus: Bus,
    vitals: Arc<Vitals>,
    limit: Duration,
    interval: Duration,
    on_stall: OnStall,
) -> std::io::Result<()> {
    let every = limit.min(interval.max(Duration::from_secs(5)));
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        let bus = bus.separate();
        let mut backlog_since = None;
        loop {
            std::thread::sleep(every);
            if vitals.is_stopping() {
                return;
            }
            let mut snapshot = vitals.snapshot();
            // `None`: Redis is away or slow, so nothing can be said of the backlog.
            let depth = runtime.block_on(unexplained_depth(&bus, &vitals));
            snapshot.depth = depth.unwrap_or(0);
            backlog_since = (snapshot.depth > 0).then(|| backlog_since.unwrap_or(snapshot.now));
            snapshot.backlog_since = backlog_since.unwrap_or(snapshot.now);
            let Some(stall) = judge(&snapshot, limit) else { continue };
            // A tick that hangs because Redis does is `redis_down`, which the loop reports by itself.
            if depth.is_none() && stall.reason != "dispatch_hung" {
                continue;
            }
            let fact = stalled(&stall, &snapshot, limit);
            let line = json!({"level": "error", "action": fact.action, "error": fact.error, "metadata": fact.metadata});
            let _ = writeln!(std::io::stderr(), "{line}");
            // The flush is bounded: Redis may be what hangs.
            runtime.block_on(async {
                let _ = tokio::time::timeout(Duration::from_secs(2), bus.journal([fact])).await;
            });
            on_stall(stall);
            return;
        }
    })?;
    Ok(())
}

fn stalled(stall: &Stall, snapshot: &Snapshot, limit: Duration) -> Fact {
    let active: Vec<_> = snapshot
        .dispatches
        .iter()
        .zip(&snapshot.ages)
        .take(50)
        .map(|((id, _), age)| json!({"streamId": id.to_string(), "ageMs": age}))
        .collect();
    Fact::new("queue-drainer", "queue.drainer.stalled")
        .failed(format!("queue drainer stalled: {}", stall.reason))
        .with("reason", stall.reason)
        .with("ageMs", stall.age_ms)
        .with("queueDepth", snapshot.depth)
        .with("stallAfterMs", u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
        .with("lastTickStartedAt", snapshot.tick_started)
        .with("lastTickFinishedAt", snapshot.tick_finished)
        .with("activeDispatchCount", snapshot.dispatches.len())
        .with("activeDispatches", active)
}

/// Entries waiting in lanes of families that nothing explains. What waits for a retry has its reason.
async fn unexplained_depth(bus: &Bus, vitals: &Vitals) -> Option<u64> {
    let explained = vitals.explained();
    let lanes: Vec<Lane> = bus.lanes().await.ok()?;
    let lanes: Vec<Lane> =
        lanes.into_iter().filter(|lane| !explained.iter().any(|family| family == lane.family.as_str())).collect();
    let mut depth = 0;
    for chunk in lanes.chunks(256) {
        let mut pipeline = redis::pipe();
        for lane in chunk {
            pipeline.cmd("XINFO").arg("GROUPS").arg(bus.keys.lane(lane));
            pipeline.cmd("XPENDING").arg(bus.keys.lane(lane)).arg(GROUP);
        }
        let replies = bus.redis.pipeline_values(&pipeline).await.ok()?;
        for pair in replies.chunks(2) {
            let groups: Vec<std::collections::HashMap<String, redis::Value>> =
                pair.first().cloned().and_then(|value| redis::from_redis_value(value).ok()).unwrap_or_default();
            let lag = groups.first().and_then(|group| match group.get("lag") {
                Some(redis::Value::Int(lag)) => u64::try_from(*lag).ok(),
                _ => None,
            });
            let held: Vec<(String, u64)> = pair
                .get(1)
                .cloned()
                .and_then(|value| {
                    redis::from_redis_value::<(u64, redis::Value, redis::Value, Option<Vec<(String, u64)>>)>(value).ok()
                })
                .and_then(|(.., consumers)| consumers)
                .unwrap_or_default();
            let in_memory: u64 = held
                .iter()
                .filter(|(name, _)| name != RETRY_CONSUMER && name != HANDBACK_CONSUMER)
                .map(|(_, count)| count)
                .sum();
            depth += lag.unwrap_or(0) + in_memory;
        }
    }
    Some(depth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::entry_id::EntryId;

    #[test]
    fn stalls_are_told_apart_as_the_specification_does() {
        let limit = Duration::from_secs(10);
        let healthy = Snapshot {
            now: 100_000,
            tick_started: 99_000,
            tick_finished: 99_001,
            last_progress: 99_000,
            ..Snapshot::default()
        };
        assert_eq!(judge(&healthy, limit), None);

        let tick = Snapshot { tick_started: 80_000, tick_finished: 79_000, ..healthy.clone() };
        assert_eq!(judge(&tick, limit), Some(Stall { reason: "tick_hung", age_ms: 20_000 }));

        let dispatches = vec![(EntryId::MIN, 2_000), (EntryId::MIN, 14_000)];
        let hung = Snapshot { dispatches, ..healthy.clone() };
        assert_eq!(judge(&hung, limit), Some(Stall { reason: "dispatch_hung", age_ms: 14_000 }));

        let idle = Snapshot { last_progress: 85_000, depth: 4, ..healthy.clone() };
        assert_eq!(judge(&idle, limit), Some(Stall { reason: "backlog_idle", age_ms: 15_000 }));
        assert_eq!(judge(&Snapshot { retry_due_later: true, ..idle.clone() }, limit), None);
        assert_eq!(judge(&Snapshot { last_progress: 0, backlog_since: 99_000, ..idle.clone() }, limit), None);
        assert_eq!(judge(&Snapshot { depth: 0, ..idle }, limit), None);
    }
}
