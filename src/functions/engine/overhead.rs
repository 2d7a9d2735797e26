//! How long the engine takes between an answer of an app and its next request to it.

use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest time told apart, µs.
const HIGHEST_US: u64 = 60_000_000;

/// Percentiles, µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overhead {
    /// Times measured.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
}

/// Collects the times. A clone-free part of the engine: recording takes a lock for nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<Option<Histogram<u64>>>);

impl Recorder {
    pub fn record(&self, took: Duration) {
        let Ok(mut slot) = self.0.lock() else { return };
        if slot.is_none() {
            *slot = Histogram::new_with_bounds(1, HIGHEST_US, 3).ok();
        }
        if let Some(histogram) = slot.as_mut() {
            histogram.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        }
    }

    pub fn read(&self) -> Overhead {
        let Ok(slot) = self.0.lock() else { return Overhead { count: 0, p50_us: 0, p99_us: 0 } };
        let at = |quantile| slot.as_ref().map_or(0, |histogram| histogram.value_at_quantile(quantile));
        Overhead { count: slot.as_ref().map_or(0, Histogram::len), p50_us: at(0.5), p99_us: at(0.99) }
    }

    pub fn forget(&self) {
        if let Ok(mut slot) = self.0.lock() {
            *slot = None;
        }
    }
}
