//! What Prometheus is told of outbound webhooks: `system_bus_webhook_outbound_…`.
//!
//! Labels are of closed sets: never an endpoint, a URL or an event. How one endpoint does is in its health.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Outbound;
use super::client::{Attempt, Ended};
use crate::telemetry::metrics::Metrics;

/// Between two looks at how many endpoints there are.
const EVERY: Duration = Duration::from_secs(5);

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Delivered,
    Exhausted,
    Gone,
    Disabled,
    Removed,
}

/// See the module. Without metrics nothing is told.
#[derive(Debug, Clone, Default)]
pub struct Figures(Option<Arc<Metrics>>);

impl Figures {
    /// Told to `metrics`.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        for ended in Ended::ALL {
            metrics.outbound_requests.add(vec![("outcome", ended.as_str().to_owned())], 0);
        }
        for end in [End::Delivered, End::Exhausted, End::Gone, End::Disabled, End::Removed] {
            metrics.outbound_deliveries.add(vec![("outcome", end.as_str().to_owned())], 0);
        }
        Self(Some(metrics))
    }

    pub(super) fn request(&self, attempt: &Attempt) {
        let Some(metrics) = &self.0 else { return };
        metrics.outbound_requests.add(vec![("outcome", attempt.ended.as_str().to_owned())], 1);
        metrics.outbound_duration.observe(Vec::new(), attempt.took.as_secs_f64(), 1);
    }

    pub(super) fn delivery(&self, end: End) {
        if let Some(metrics) = &self.0 {
            metrics.outbound_deliveries.add(vec![("outcome", end.as_str().to_owned())], 1);
        }
    }
}

impl End {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Exhausted => "exhausted",
            Self::Gone => "gone",
            Self::Disabled => "disabled",
            Self::Removed => "removed",
        }
    }
}

/// Tells how many endpoints there are and how many are left alone, until `stop`.
pub async fn run(outbound: Outbound, stop: CancellationToken) {
    let Some(metrics) = outbound.figures().0.clone() else { return };
    loop {
        #[allow(clippy::cast_precision_loss)]
        let count = |n: usize| n as f64;
        metrics.outbound_open.set(Vec::new(), count(outbound.open_circuits()));
        // Of the whole system, so one process tells it.
        if metrics.leads() {
            let snapshot = outbound.endpoints().current();
            let disabled = snapshot.endpoints.keys().filter(|id| snapshot.disabled.contains_key(*id)).count();
            let enabled = snapshot.endpoints.len() - disabled;
            let rows = [("enabled", enabled), ("disabled", disabled)];
            let rows = rows.map(|(state, n)| (vec![("state", state.to_owned())], count(n)));
            metrics.outbound_endpoints.replace(rows);
        } else {
            metrics.outbound_endpoints.clear();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
