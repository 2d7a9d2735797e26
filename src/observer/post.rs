//! The observer of a running process: a pass per cadence, a probe per request, and a policy that may change meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::controller::{AFTER_FAILURE, BEAT, Observer};
use super::flags::Policy;
use crate::config::{Config, ObserverMode};
use crate::diagnose::chain;
use crate::drainer::handlers::{Dispatch, Outcome};

/// The native function that answers `queue/observer.requested`.
pub const FUNCTION: &str = "observe";
/// The longest window that may be asked for.
const HOURS_MAX: u64 = 8_760;

/// Cheap to clone; all clones are the same post.
#[derive(Clone)]
pub struct Post(Arc<Shared>);

struct Shared {
    observer: ArcSwap<Observer>,
    changed: Notify,
    version: AtomicU64,
}

impl Post {
    /// A post that `observer` takes.
    #[must_use]
    pub fn new(observer: Observer) -> Self {
        let observer = ArcSwap::from_pointee(observer);
        Self(Arc::new(Shared { observer, changed: Notify::new(), version: AtomicU64::new(0) }))
    }

    fn observer(&self) -> Arc<Observer> {
        self.0.observer.load_full()
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.observer().policy().clone()
    }

    /// Rises with every change of the policy.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Relaxed)
    }

    /// Takes over what a changed configuration says. A pass that is running ends as it began.
    pub fn reconfigure(&self, config: &Config) {
        let next = self.observer().reconfigured(config);
        tell(next.policy());
        self.0.observer.store(Arc::new(next));
        self.0.version.fetch_add(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }

    /// Runs a pass per cadence until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tell(self.observer().policy());
        loop {
            let observer = self.observer();
            let pause = match observer.pass().await {
                Ok(_) => BEAT,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the observer's pass failed; trying again");
                    AFTER_FAILURE
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Answers one request for a probe: it looks, journals what it saw and would do, and changes nothing.
    pub async fn answer(&self, dispatch: Dispatch) -> Outcome {
        let envelope = &dispatch.envelope;
        let data = envelope.data.to_value();
        // Counts are complete, so a `limit` has nothing to cut.
        let hours = data["hours"].as_u64().unwrap_or(1).clamp(1, HOURS_MAX);
        let of = |key: &str| data[key].as_str().map(|text| text.chars().take(280).collect::<String>());
        let asked = Asked { event_id: envelope.id.clone(), by: of("requestedBy"), why: of("reason") };
        let observer = self.observer();
        tokio::select! {
            () = dispatch.cancel.cancelled() => Outcome::Cancelled,
            result = observer.probe_for(hours, Some(&asked)) => match result {
                Ok(_) => Outcome::Done,
                Err(error) => Outcome::Retry { error: chain(&error), not_before: None, status: None },
            },
        }
    }
}

/// Who asked for a probe.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The event that asks.
    pub event_id: String,
    /// As it says.
    pub by: Option<String>,
    /// As it says.
    pub why: Option<String>,
}

impl Asked {
    /// What became of the request, in the event's own history.
    #[must_use]
    pub fn fact(&self, result: &Value) -> crate::streams::records::Fact {
        let fact = crate::streams::records::Fact::new("queue-observe", "queue.observe.requested");
        fact.event(self.event_id.clone())
            .with("requestedBy", self.by.as_deref())
            .with("requestReason", self.why.as_deref())
            .with("trigger", "manual")
            .with("status", result["status"].clone())
            .with("reason", result["reason"].clone())
            .with("snapshotId", result["snapshotId"].clone())
            .with("mode", result["mode"].clone())
    }
}

fn tell(policy: &Policy) {
    if policy.mode == ObserverMode::Off {
        return;
    }
    tracing::info!(mode = policy.mode.as_str(), auto = ?policy.auto, "observer started");
}
