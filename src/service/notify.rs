//! What systemd hears of a service it supervises: ready, alive, stopping (`sd_notify(3)`). Nothing elsewhere.
//!
//! `WATCHDOG=1` is sent at half of `WatchdogSec`, and only while the drainer's loop ticks and no dispatch outlives its
//! time; the task runs on the runtime that it vouches for, so a blocked runtime falls silent too. Redis being away is no
//! reason to be restarted.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::drainer::vitals::Vitals;
use crate::drainer::watchdog::judge;

/// Between two status lines where no watchdog asks for more.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Tells of the start, then of being alive, then of the stop. Ends with `stop`.
pub async fn keep(vitals: Option<Arc<Vitals>>, stall_after: Duration, stop: CancellationToken) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    tell(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |limit| (limit / 2).min(STATUS_EVERY));
    loop {
        let state = vitals.as_ref().map_or(Health::Alive, |vitals| health(vitals, stall_after));
        let status = match state {
            Health::Alive => "alive",
            Health::RedisDown => "waiting for Redis",
            Health::Stalled(reason) => reason,
        };
        match state {
            Health::Stalled(_) => tell(&[NotifyState::Status(status)]),
            _ if watchdog.is_some() => tell(&[NotifyState::Status(status), NotifyState::Watchdog]),
            _ => tell(&[NotifyState::Status(status)]),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(every) => {}
        }
    }
    tell(&[NotifyState::Stopping]);
}

#[derive(Clone, Copy)]
enum Health {
    Alive,
    RedisDown,
    Stalled(&'static str),
}

fn health(vitals: &Vitals, stall_after: Duration) -> Health {
    if vitals.redis_down() {
        return Health::RedisDown;
    }
    // The backlog is the drainer's own watchdog's: it asks Redis.
    judge(&vitals.snapshot(), stall_after).map_or(Health::Alive, |stall| Health::Stalled(stall.reason))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
