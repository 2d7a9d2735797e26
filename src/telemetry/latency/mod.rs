//! Latency: percentiles over any window, exact to three significant digits, from mergeable histograms of one minute.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:latency:<kind>:<minute>` | hash, PX: `<series>\|<writer>` → `HdrHistogram` V2 blob (deflated), `=<series>\|<writer>` → `count,sum,min,max` in µs | [`super::projection`], [`Recorder`] |
//!
//! A **kind** is what is measured ([`kind`]), a **series** what it is measured of (a lane, a function), a **writer** who
//! measured. Every histogram has one layout, so histograms of minutes, series and writers can be added without loss.
//!
//! # How to record
//! What the journal tells is recorded by the projection: nothing to do. Anything else goes through a [`Recorder`]:
//!
//! ```no_run
//! # async fn example(bus: system_bus::streams::bus::Bus, stop: tokio_util::sync::CancellationToken) {
//! use std::time::Duration;
//! use system_bus::telemetry::latency::{Recorder, kind};
//!
//! let (recorder, flusher) = Recorder::new(bus, "host-1-4711", Duration::from_secs(48 * 3600));
//! tokio::spawn(flusher.run(stop)); // owns the flushing; ends, with a last flush, when `stop` is cancelled
//! // On the hot path: never waits, never fails; 20 ns and an `Arc` clone. A new kind is a new constant in `kind`.
//! recorder.record(kind::STEP, "my-app-resize", Duration::from_micros(1_250));
//! # }
//! ```
//! Read it with [`read::minutes`] (whole minutes), or with [`super::projection::window`], which is exact to the millisecond
//! for what the journal tells. Values are µs up to 24 h; above, they count as 24 h.
//!
//! # Invariants
//! 1. An empty window has no percentiles: `None`, not 0.
//! 2. Count, sum, min and max are exact; quantiles are within 0.05 % of the value of that nearest rank.
//! 3. A recorder that can't keep up drops and counts; a crash loses at most what it recorded since its last flush. The
//!    projection loses nothing: it reads the journal from a stored cursor.

pub mod read;
mod recorder;
mod sample;

pub use recorder::{Flusher, Recorder};
pub use sample::{Broken, Sample, Summary};

/// What is measured.
pub mod kind {
    /// From append to the first start of a dispatch. Series: lane.
    pub const WAIT: &str = "wait";
    /// The same without the time for which the family was paused. Series: lane.
    pub const WAIT_ACTIVE: &str = "wait_active";
    /// From the start of a dispatch to its end, by a monotonic clock. Series: `<lane>|completed` or `<lane>|failed`.
    pub const DISPATCH: &str = "dispatch";
    /// From append to the end of the dispatch that completed, or ended in a dead letter. Series: lane.
    pub const E2E: &str = "e2e";
    /// Admission's triage. Series: family.
    pub const TRIAGE: &str = "triage";
    /// One pass of the observer. Series: mode.
    pub const OBSERVE: &str = "observe";
    /// From scheduling a run to its first call. Series: function.
    pub const RUN_QUEUE: &str = "run_queue";
    /// One step of a function. Series: function.
    pub const STEP: &str = "step";
    /// From the first call of a run to its end; only of metrics. Series: function.
    pub const RUN: &str = "run";
}

/// Minutes since the epoch.
#[must_use]
pub const fn minute_of(ms: u64) -> u64 {
    ms / 60_000
}
