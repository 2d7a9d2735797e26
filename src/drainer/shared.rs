//! What outlives a session of the drainer, and what its tasks share.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::plan::Plans;
use super::session::Event;
use super::vitals::Vitals;
use crate::streams::bus::Bus;
use crate::streams::family::Family;

/// Handles and flags, cheap to clone.
#[derive(Clone)]
pub struct Shared {
    /// Redis's clock.
    pub clock: Clock,
    /// For the watchdog.
    pub vitals: Arc<Vitals>,
    /// Routes and limits.
    pub plans: Arc<dyn Plans>,
    /// Where handlers run.
    pub handlers: tokio::runtime::Handle,
    /// The data set that is served.
    pub instance_id: String,
    /// How long a session lives without its heartbeat.
    lease: Duration,
    started_ms: i64,
    flags: Arc<Flags>,
}

#[derive(Default)]
struct Flags {
    ticks: AtomicU64,
    others_free: AtomicBool,
    wanted_ordered: Mutex<HashSet<Family>>,
    held_ordered: Mutex<HashSet<String>>,
}

impl Shared {
    pub fn new(
        clock: Clock,
        vitals: Arc<Vitals>,
        plans: Arc<dyn Plans>,
        handlers: tokio::runtime::Handle,
        instance_id: String,
        lease: Duration,
    ) -> Self {
        let started_ms = chrono::Utc::now().timestamp_millis();
        Self { clock, vitals, plans, handlers, instance_id, lease, started_ms, flags: Arc::default() }
    }

    /// `<host>-<pid>-<uuid7>`: never used twice.
    pub fn new_session_id(&self) -> String {
        format!("{}-{}-{}", host(), std::process::id(), uuid::Uuid::now_v7())
    }

    /// What other processes may know of this one.
    pub fn details(&self, in_flight: usize, free: usize, registry: &str, reduced: &HashMap<String, u32>) -> String {
        serde_json::json!({
            "host": host(),
            "pid": std::process::id(),
            "home": super::home::of_this_process(),
            "version": env!("CARGO_PKG_VERSION"),
            "startedAtMs": self.started_ms,
            "leaseMs": u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX),
            "registryHash": registry,
            "inFlight": in_flight,
            "free": free,
            "limits": reduced,
        })
        .to_string()
    }

    /// True on the first tick and on every fifteenth after it.
    pub fn orphan_check_is_due(&self) -> bool {
        self.flags.ticks.fetch_add(1, Ordering::Relaxed).is_multiple_of(15)
    }

    pub fn set_others_free(&self, free: bool) {
        self.flags.others_free.store(free, Ordering::Relaxed);
    }

    pub fn others_have_room(&self) -> bool {
        self.flags.others_free.load(Ordering::Relaxed)
    }

    /// Remembers that this drainer wants to run an ordered family.
    pub fn want_ordered(&self, family: &Family) {
        if let Ok(mut wanted) = self.flags.wanted_ordered.lock() {
            wanted.insert(family.clone());
        }
    }

    /// Lock keys to ask for with the next heartbeat.
    pub fn wanted_ordered(&self, bus: &Bus) -> Vec<String> {
        self.flags
            .wanted_ordered
            .lock()
            .map(|wanted| wanted.iter().map(|family| bus.keys.ordered(family)).collect())
            .unwrap_or_default()
    }

    pub fn set_held_ordered(&self, keys: Vec<String>) {
        if let Ok(mut held) = self.flags.held_ordered.lock() {
            *held = keys.into_iter().collect();
        }
    }

    pub fn holds_ordered(&self, bus: &Bus, family: &Family) -> bool {
        self.flags.held_ordered.lock().is_ok_and(|held| held.contains(&bus.keys.ordered(family)))
    }

    /// Starts the tasks that tell the loop of hints and of registry changes. They end with the returned token.
    pub fn start_feeds(&self, bus: &Bus, events: mpsc::Sender<Event>) -> CancellationToken {
        let cancel = CancellationToken::new();
        let (bus, hints, stop) = (bus.clone(), events.clone(), cancel.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = listen(bus, hints) => {}
            }
        });
        let (plans, stop) = (self.plans.clone(), cancel.clone());
        tokio::spawn(async move {
            let mut version = plans.version();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                }
                let now = plans.version();
                if now != version {
                    version = now;
                    if events.send(Event::PlansChanged).await.is_err() {
                        return;
                    }
                }
            }
        });
        cancel
    }
}

/// Passes hints on. A lost connection loses hints, which only costs the time until the next look.
async fn listen(bus: Bus, events: mpsc::Sender<Event>) {
    loop {
        if let Ok(mut subscriber) = bus.redis.subscriber().await
            && subscriber.subscribe(bus.keys.ctl()).await.is_ok()
        {
            let mut messages = subscriber.on_message();
            while let Some(message) = messages.next().await {
                let Ok(hint) = message.get_payload::<String>() else { continue };
                if events.send(Event::Hint(hint)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn host() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "unknown".into())
}
