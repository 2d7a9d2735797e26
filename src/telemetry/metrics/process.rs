//! This process, as `/proc` tells it. Elsewhere only the start time is known.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Read at each scrape.
#[derive(Debug)]
pub struct Process {
    started: f64,
}

impl Default for Process {
    fn default() -> Self {
        Self { started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() }
    }
}

/// Clock ticks per second, which Linux fixes for user space.
const TICKS: f64 = 100.0;

#[derive(Default)]
struct Found {
    cpu_seconds: Option<f64>,
    threads: Option<u64>,
    virtual_bytes: Option<u64>,
    resident_bytes: Option<u64>,
    open_files: Option<u64>,
    max_files: Option<u64>,
}

fn look() -> Found {
    let mut found = Found::default();
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return found };
    // The name, in parentheses, may hold anything; the fields after it are counted from the third.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let number = |index: usize| fields.get(index - 3).and_then(|field| field.parse::<u64>().ok());
    #[allow(clippy::cast_precision_loss)]
    let cpu = number(14).zip(number(15)).map(|(user, system)| (user + system) as f64 / TICKS);
    found.cpu_seconds = cpu;
    found.threads = number(20);
    found.virtual_bytes = number(23);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    found.resident_bytes = kilobytes.map(|kb| kb * 1024);
    found.open_files = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    found.max_files =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    found
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let found = look();
        let start = ConstGauge::new(self.started);
        start.encode(encoder.encode_descriptor(
            "process_start_time_seconds",
            "When this process started.",
            None,
            start.metric_type(),
        )?)?;
        if let Some(seconds) = found.cpu_seconds {
            let cpu = ConstCounter::new(seconds);
            cpu.encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                "Processor time of this process.",
                None,
                cpu.metric_type(),
            )?)?;
        }
        for (name, help, value) in [
            ("process_threads", "Threads of this process.", found.threads),
            ("process_virtual_memory_bytes", "Address space of this process.", found.virtual_bytes),
            ("process_resident_memory_bytes", "Memory of this process.", found.resident_bytes),
            ("process_open_fds", "Open files of this process.", found.open_files),
            ("process_max_fds", "Files that this process may open.", found.max_files),
        ] {
            if let Some(value) = value.and_then(|value| i64::try_from(value).ok()) {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}
