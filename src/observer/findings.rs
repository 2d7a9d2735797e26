//! What a snapshot means: pressure and the state of what is downstream. Pure.

use serde::{Deserialize, Serialize};

use super::snapshot::{Downstream, Snapshot};

/// Depth from which a queue is backlogged.
pub const BACKLOGGED_DEPTH: u64 = 25;
/// Age from which a queue is backlogged.
pub const BACKLOGGED_MS: u64 = 900_000;
/// Depth from which a queue is degraded.
pub const DEGRADED_DEPTH: u64 = 5;
/// Age from which a queue is degraded.
pub const DEGRADED_MS: u64 = 300_000;

/// How much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pressure {
    /// Little.
    Healthy,
    /// Some.
    Degraded,
    /// Too much.
    Backlogged,
}

impl Pressure {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Backlogged => "backlogged",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// How much waits.
    pub queue_pressure: Pressure,
    /// How what is downstream does.
    pub downstream_state: Downstream,
    /// In words.
    pub summary: String,
}

/// How much waits.
#[must_use]
pub fn pressure(snapshot: &Snapshot) -> Pressure {
    let (depth, oldest) = (snapshot.totals.depth, snapshot.totals.oldest_age_ms.unwrap_or(0));
    if depth >= BACKLOGGED_DEPTH || oldest >= BACKLOGGED_MS {
        Pressure::Backlogged
    } else if depth >= DEGRADED_DEPTH || oldest >= DEGRADED_MS || snapshot.triage.fallbacks > 0 {
        Pressure::Degraded
    } else {
        Pressure::Healthy
    }
}

/// How what is downstream does.
#[must_use]
pub fn downstream(snapshot: &Snapshot) -> Downstream {
    let is_quiet = snapshot.drainer.recent_failures == 0 && snapshot.triage.failed + snapshot.triage.fallbacks == 0;
    if (snapshot.totals.depth == 0 && is_quiet) || snapshot.is_settled_hold() {
        Downstream::Healthy
    } else if snapshot.drainer.state == Downstream::Down {
        Downstream::Down
    } else if snapshot.drainer.state == Downstream::Degraded || snapshot.drainer.recent_failures > 0 {
        Downstream::Degraded
    } else {
        Downstream::Healthy
    }
}

/// Both, with the summary that needs no model.
#[must_use]
pub fn derive(snapshot: &Snapshot) -> Findings {
    let (queue_pressure, downstream_state) = (pressure(snapshot), downstream(snapshot));
    let summary = format!(
        "Queue depth {}; pressure {}; downstream {}; {} active families; {} active pauses",
        snapshot.totals.depth,
        queue_pressure.as_str(),
        downstream_state.as_str(),
        snapshot.families.len(),
        snapshot.control.active_pauses.len(),
    );
    Findings { queue_pressure, downstream_state, summary }
}

/// An age in a summary: `42s`, `3m`, `2h`.
#[must_use]
pub fn age(ms: Option<u64>) -> String {
    let Some(ms) = ms.filter(|ms| *ms > 0) else { return "0s".into() };
    #[allow(clippy::cast_precision_loss)]
    let of = |unit: u64| ((ms as f64 / unit as f64).round().max(1.0)) as u64;
    match ms {
        0..60_000 => format!("{}s", of(1000)),
        60_000..3_600_000 => format!("{}m", of(60_000)),
        _ => format!("{}h", of(3_600_000)),
    }
}
