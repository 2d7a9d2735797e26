//! What the observer sees: one value, made from what Redis holds, and all that a decision may look at.
//!
//! Version 2 adds what tells one family's trouble from another's. A snapshot without a version is of version 1: recorded
//! by an older system, or written by hand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::streams::depth::ByPriority;

/// The version made here.
pub const VERSION: u32 = 2;
/// Families told apart; the others are summed as `other`.
pub const MOST_FAMILIES: usize = 200;
/// Characters of a pause's reason.
pub const MOST_REASON: usize = 280;
/// The family of the rest, never a target.
pub const OTHER: &str = "other";

/// The state of the observed families at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// See the module.
    #[serde(default = "version_1", skip_serializing_if = "is_version_1")]
    pub schema_version: u32,
    /// Names it.
    pub snapshot_id: String,
    /// When, ISO-8601.
    pub captured_at: String,
    /// What the counts are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// All families together.
    pub totals: Totals,
    /// Families with anything open: most first, then oldest, then by name.
    pub families: Vec<FamilyView>,
    /// Triage in the window.
    pub triage: TriageView,
    /// Dispatches in the window.
    pub drainer: DrainerView,
    /// Whether anybody may be told.
    pub gateway: GatewayView,
    /// What is held.
    pub control: ControlView,
}

const fn version_1() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_version_1(version: &u32) -> bool {
    *version == 1
}

/// A window of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Span {
    pub hours: u64,
    pub since: String,
    pub until: String,
}

/// All observed families together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Waiting, retrying or leased.
    pub depth: u64,
    /// The same by stored priority.
    pub by_priority: ByPriority,
    /// Since the oldest was appended, ms.
    pub oldest_age_ms: Option<u64>,
    /// Since the newest was appended, ms.
    pub newest_age_ms: Option<u64>,
    /// Of the depth, behind active pauses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_depth: Option<u64>,
    /// The rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_depth: Option<u64>,
}

/// One family.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyView {
    /// The event name.
    pub family: String,
    /// Waiting, retrying or leased.
    pub total: u64,
    /// The same by stored priority.
    pub by_priority: ByPriority,
    /// Since the oldest was appended, ms.
    pub oldest_age_ms: Option<u64>,
    /// Since the newest was appended, ms.
    pub newest_age_ms: Option<u64>,
    /// Behind an active pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// Could start now: neither held, nor waiting for a retry, a limit or a breaker, nor started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// Dispatches in the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent_dispatches: Option<u64>,
    /// Failures in the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent_failures: Option<u64>,
    /// Downstream failures in the window, and after the start of its present pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_failures: Option<u64>,
    /// The last five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "last5m")]
    pub last_5m: Option<Last5m>,
    /// 95th percentile of the waits in the window, without paused time, ms.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "waitP95Ms")]
    pub wait_p95_ms: Option<u64>,
    /// `closed`, `open`, `half_open`, `forced_open` or `forced_closed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<String>,
    /// Since its last dispatch, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_dispatch_age_ms: Option<u64>,
    /// Since its last resume, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resume_age_ms: Option<u64>,
    /// `manual` or `observer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resume_by: Option<String>,
}

/// One family's last five minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Last5m {
    /// Dispatches that started.
    pub attempts: u64,
    /// Downstream failures.
    pub failures: u64,
    /// Distinct events among them, as far as they are told apart.
    pub failed_events: u64,
}

/// Triage in the window, of observed families.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct TriageView {
    pub attempts: u64,
    pub completed: u64,
    pub failed: u64,
    pub fallbacks: u64,
    #[serde(default)]
    pub fallback_by_reason: BTreeMap<String, u64>,
    pub route_mismatches: u64,
    #[serde(default)]
    pub latency_ms: Percentiles,
}

/// Two percentiles, ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
}

/// How dispatching goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Downstream {
    /// Well.
    #[default]
    Healthy,
    /// Something fails or waits.
    Degraded,
    /// Nothing moves.
    Down,
}

impl Downstream {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// Dispatches of the observed families.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainerView {
    /// How dispatching goes.
    pub state: Downstream,
    /// Started in the window.
    pub recent_dispatches: u64,
    /// Failed in the window.
    pub recent_failures: u64,
    /// Started per minute of the window.
    pub throughput_per_minute: Option<f64>,
    /// Downstream failures that no pause explains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_failures: Option<u64>,
    /// Live drainers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumers: Option<u64>,
    /// Since the last dispatch of any, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_dispatch_age_ms: Option<u64>,
}

/// Whether anybody may be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayView {
    /// The operator sleeps.
    pub sleep_mode: bool,
    /// Quiet hours; `None` when there are none.
    pub quiet_hours: Option<bool>,
    /// Channels that get nothing.
    pub muted_channels: Vec<String>,
}

/// What is held.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlView {
    /// Active pauses of observed families, the next to end first.
    pub active_pauses: Vec<PauseView>,
    /// Families held by a record that can't be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invalid: Vec<String>,
    /// Breakers of observed families that are not closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breakers: Vec<BreakerView>,
    /// What was spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetView>,
    /// Nothing is applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_switch: Option<bool>,
}

/// An active pause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PauseView {
    /// Held.
    pub family: String,
    /// Why.
    pub reason: String,
    /// `manual` or `observer`.
    pub source: String,
    /// `manual`, or the observer's mode.
    pub mode: String,
    /// Since when, ISO-8601.
    pub applied_at: String,
    /// Until when, ISO-8601.
    pub expires_at: String,
    /// How long still, ms.
    pub expires_in_ms: u64,
    /// Its revision: what an action about it expects to find.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rev: Option<u64>,
}

impl PauseView {
    /// How old it was at `captured_ms`; `None` when its times can't be read.
    #[must_use]
    pub fn age_ms(&self, captured_ms: u64) -> Option<u64> {
        Some(captured_ms.saturating_sub(ms_of(&self.applied_at)?))
    }

    /// The observer's own.
    #[must_use]
    pub fn is_observers(&self) -> bool {
        self.source == "observer"
    }
}

/// A breaker that is not closed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct BreakerView {
    pub family: String,
    pub state: String,
    pub open_until: Option<String>,
}

/// What the observer spent of its budget.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetView {
    /// Pauses in the last hour.
    pub used_hour: u64,
    /// The same by family.
    pub per_family: BTreeMap<String, u64>,
    /// How long each family was held in the last two hours, ms.
    #[serde(default)]
    pub held_ms: BTreeMap<String, u64>,
}

/// Ms since the epoch of an ISO-8601 time.
#[must_use]
pub fn ms_of(iso: &str) -> Option<u64> {
    u64::try_from(chrono::DateTime::parse_from_rfc3339(iso).ok()?.timestamp_millis()).ok()
}

impl Snapshot {
    /// When it was made, ms.
    #[must_use]
    pub fn captured_ms(&self) -> u64 {
        ms_of(&self.captured_at).unwrap_or_default()
    }

    /// What version 2 adds is there.
    #[must_use]
    pub const fn is_detailed(&self) -> bool {
        self.schema_version >= 2
    }

    /// The view of a family with anything open.
    #[must_use]
    pub fn family(&self, name: &str) -> Option<&FamilyView> {
        self.families.iter().find(|family| family.family == name)
    }

    /// The active pause of a family.
    #[must_use]
    pub fn pause(&self, name: &str) -> Option<&PauseView> {
        self.control.active_pauses.iter().find(|pause| pause.family == name)
    }

    /// A pause, or a record of one that can't be read.
    #[must_use]
    pub fn is_held(&self, name: &str) -> bool {
        self.pause(name).is_some() || self.control.invalid.iter().any(|family| family == name)
    }

    /// Downstream failures of a family that its present pause doesn't explain.
    #[must_use]
    pub fn fresh_failures(&self, name: &str) -> u64 {
        match self.is_detailed() {
            true => self.family(name).and_then(|family| family.fresh_failures).unwrap_or(0),
            false => self.drainer.recent_failures,
        }
    }

    /// The state of a family's breaker.
    #[must_use]
    pub fn breaker(&self, name: &str) -> &str {
        let listed = self.control.breakers.iter().find(|breaker| breaker.family == name);
        let listed = listed.map(|breaker| breaker.state.as_str());
        self.family(name).and_then(|family| family.breaker.as_deref()).or(listed).unwrap_or("closed")
    }

    /// Every queued family has an active observer pause that has stood for a minute, and nothing fails: what waits, waits
    /// because of us.
    #[must_use]
    pub fn is_settled_hold(&self) -> bool {
        let at = self.captured_ms();
        let is_settled = |family: &FamilyView| {
            let pause = self.pause(&family.family).filter(|pause| pause.is_observers());
            pause.and_then(|pause| pause.age_ms(at)).is_some_and(|age| age >= 60_000)
        };
        self.totals.depth > 0
            && !self.families.is_empty()
            && self.families.iter().all(|family| is_settled(family) && self.fresh_failures(&family.family) == 0)
            && self.triage.failed + self.triage.fallbacks == 0
    }

    /// The observer must not read its own hold as an outage.
    pub fn settle(&mut self) {
        if self.is_settled_hold() {
            self.drainer.state = Downstream::Healthy;
        }
    }
}
