//! Recording what the journal does not tell: a bounded channel in front, a task behind it that keeps this minute's
//! histograms and writes them every two seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Sample, minute_of};
use crate::streams::bus::Bus;
use crate::streams::readers::MinuteWrite;

/// Values waiting for the task.
const WAITING: usize = 65_536;
/// Between two writes.
const FLUSH: Duration = Duration::from_secs(2);
/// Series of one writer in a minute; what is beyond is counted under `_other`.
const SERIES: usize = 1024;
/// The series of everything beyond.
const OTHER: &str = "_other";

type Value = (&'static str, Arc<str>, u64);

/// Takes values and never waits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    values: mpsc::Sender<Value>,
    dropped: Arc<AtomicU64>,
}

/// Writes what a [`Recorder`] took. Its owner spawns [`Flusher::run`].
pub struct Flusher {
    bus: Bus,
    writer: String,
    keep: Duration,
    values: mpsc::Receiver<Value>,
    minute: u64,
    open: HashMap<(&'static str, Arc<str>), Sample>,
    is_changed: bool,
}

impl Recorder {
    /// A recorder and the task that writes for it. `writer` must be this process's own; `keep` is how long minutes stay.
    #[must_use]
    pub fn new(bus: Bus, writer: impl Into<String>, keep: Duration) -> (Self, Flusher) {
        let (sender, values) = mpsc::channel(WAITING);
        // A bar divides series and writer.
        let writer = writer.into().replace('|', "_");
        let flusher = Flusher { bus, writer, keep, values, minute: 0, open: HashMap::new(), is_changed: false };
        (Self { values: sender, dropped: Arc::default() }, flusher)
    }

    /// Records one duration. Full, it drops the value and counts that.
    pub fn record(&self, kind: &'static str, series: impl Into<Arc<str>>, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if self.values.try_send((kind, series.into(), us)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Values that found no room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Flusher {
    /// Writes until `stop`, and once more then.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut due = tokio::time::interval(FLUSH);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(1024);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = due.tick() => self.flush().await,
                taken = self.values.recv_many(&mut batch, 1024) => {
                    if taken == 0 {
                        break;
                    }
                    batch.drain(..).for_each(|value| self.take(value));
                }
            }
        }
        while let Ok(value) = self.values.try_recv() {
            self.take(value);
        }
        self.flush().await;
    }

    fn take(&mut self, (kind, series, us): Value) {
        let is_known = self.open.contains_key(&(kind, series.clone()));
        let series = if is_known || self.open.len() < SERIES { series } else { OTHER.into() };
        self.open.entry((kind, series)).or_default().record(us);
        self.is_changed = true;
    }

    /// Writes this minute's histograms. What can't be written stays and is written with the next: a value may then be
    /// counted in the minute after its own.
    async fn flush(&mut self) {
        let Ok(now) = self.bus.now_ms().await else { return };
        let minute = minute_of(now);
        if self.minute == 0 {
            self.minute = minute;
        }
        if self.is_changed && self.write().await {
            self.is_changed = false;
        }
        if minute != self.minute && !self.is_changed {
            self.open.clear();
            self.minute = minute;
        }
    }

    async fn write(&self) -> bool {
        let mut by_kind: HashMap<&'static str, Vec<(String, Vec<u8>)>> = HashMap::new();
        for ((kind, series), sample) in &self.open {
            let fields = by_kind.entry(kind).or_default();
            fields.push((format!("{series}|{}", self.writer), sample.blob()));
            fields.push((format!("={series}|{}", self.writer), sample.exact().into_bytes()));
        }
        let keep = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
        for (kind, fields) in by_kind {
            let write = MinuteWrite {
                key: self.bus.keys.latency(kind, self.minute),
                expires_ms: ((self.minute + 1) * 60_000).saturating_add(keep),
                is_fresh: false,
                fields,
            };
            if let Err(error) = self.bus.write_minute(&write).await {
                tracing::debug!(error = %error, "histograms are not written yet");
                return false;
            }
        }
        true
    }
}
