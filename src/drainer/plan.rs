//! What the drainer must know of a family: who handles it, and within which limits.
//!
//! Built from the registry; the scheduler and the loop see nothing else of it.

use std::sync::Arc;
use std::time::Duration;

use super::handlers::Handler;
use super::scheduler::Slots;
use crate::streams::breaker::Thresholds;
use crate::streams::family::Family;

/// How often and how far apart an event is tried.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts before the dead letters.
    pub attempts: u32,
    /// Delay after the first failure.
    pub initial: Duration,
    /// Growth per failure.
    pub multiplier: f64,
    /// Longest delay.
    pub max: Duration,
    /// Draw the delay between zero and the computed one.
    pub full_jitter: bool,
}

impl RetryPolicy {
    /// How long to wait after the `failures`-th failure (from 1): `initial × multiplier^(failures − 1)`, at most `max`;
    /// with full jitter a uniformly drawn share of that. `random` is in `0..1`.
    #[must_use]
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial.as_secs_f64() * self.multiplier.max(1.0).powi(exponent);
        let capped = grown.min(self.max.as_secs_f64());
        let share = if self.full_jitter { random.clamp(0.0, 1.0) } else { 1.0 };
        Duration::try_from_secs_f64(capped * share).unwrap_or(self.max)
    }
}

/// One family's route and limits.
#[derive(Clone)]
pub struct FamilyPlan {
    /// Who runs it; `None` holds the family as unrouted.
    pub handler: Option<Arc<dyn Handler>>,
    /// Why there is no handler.
    pub unrouted_because: Option<String>,
    /// Dispatches at once in this process.
    pub concurrency: u32,
    /// Share among families of the same effective priority.
    pub weight: u32,
    /// One at a time, in order; a retry holds the family back.
    pub ordered: bool,
    /// `concurrency` adapts to how the target does.
    pub aimd: bool,
    /// Starts per second, at most.
    pub rate_per_s: Option<f64>,
    /// How long one dispatch may take.
    pub timeout: Duration,
    /// An event older than this is not run but moved to the dead letters as `expired`.
    pub max_age: Option<Duration>,
    /// Retries.
    pub retry: RetryPolicy,
    /// Whose slots its dispatches take.
    pub slots: Slots,
    /// When its circuit breaker opens; `None`: it has none.
    pub breaker: Option<Thresholds>,
}

/// Where plans come from. Asked again whenever `version` changes.
pub trait Plans: Send + Sync {
    /// The plan of one family.
    fn plan(&self, family: &Family) -> FamilyPlan;
    /// Changes with every change of any plan.
    fn version(&self) -> u64;
    /// Identifies the table in `queue.drainer.started` and session details.
    fn hash(&self) -> String;
}
