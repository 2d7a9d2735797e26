//! Log lines of this process by level, counted where they are written.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
// One log per process, whatever holds the metrics.
static LINES: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// Counts what the filters before it let through.
#[derive(Debug, Clone, Copy)]
pub struct Count;

impl<S: Subscriber> Layer<S> for Count {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let index = match level {
            Level::ERROR => 0,
            Level::WARN => 1,
            Level::INFO => 2,
            Level::DEBUG => 3,
            _ => 4,
        };
        LINES[index].fetch_add(1, Ordering::Relaxed);
    }
}

/// Tells how many there were.
#[derive(Debug)]
pub(super) struct Lines;

impl Collector for Lines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut family =
            encoder.encode_descriptor("system_bus_log_lines", "Lines of the log.", None, MetricType::Counter)?;
        for (level, lines) in LEVELS.iter().zip(&LINES) {
            let counter = ConstCounter::new(lines.load(Ordering::Relaxed));
            counter.encode(family.encode_family(&[("level", *level)])?)?;
        }
        Ok(())
    }
}
