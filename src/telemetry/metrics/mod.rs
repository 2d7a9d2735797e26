//! Prometheus metrics: names, labels, and where each is fed from.
//!
//! | fed by | what |
//! |---|---|
//! | [`journal`] | counters and histograms of queue, triage, observer and functions: from the projection's steps, so only in the process that follows the journal |
//! | [`refresh`] | gauges of Redis and the queue, every five seconds |
//! | [`process`] | this process, at each scrape |
//! | callers | HTTP requests and webhooks ([`Metrics::http`]) |
//!
//! # Invariants
//! 1. A scrape asks nobody: it renders what is in memory, also while Redis is away.
//! 2. Labels come from bounded sets: a new value beyond the cap of its label is told as `_other` and counted.
//! 3. Never a label by event, run, key, address or error text.

pub mod journal;
pub mod process;
pub mod refresh;
mod text;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Label names and values.
pub type Labels = Vec<(&'static str, String)>;
/// A float.
pub type Level = Gauge<f64, AtomicU64>;

/// Upper bounds of waits, seconds.
const WAITS: [f64; 19] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0,
    3600.0,
];
/// Upper bounds of durations, seconds.
const DURATIONS: [f64; 18] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// The value of whatever is beyond a cap.
const OTHER: &str = "_other";

/// Makes histograms of one set of bounds.
#[derive(Clone)]
pub struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms = Family<Labels, Histogram, Bounds>;
type Counters = Family<Labels, Counter>;
/// Gauges by their labels.
pub type Levels = Family<Labels, Level>;

macro_rules! metrics {
    (
        counters { $($counter:ident = $counter_name:literal, $counter_help:literal;)* }
        levels { $($level:ident = $level_name:literal, $level_help:literal;)* }
        histograms { $($histogram:ident = $histogram_name:literal, $bounds:expr, $histogram_help:literal;)* }
    ) => {
        /// Every metric.
        pub struct Metrics {
            registry: Registry,
            caps: Mutex<HashMap<&'static str, HashSet<String>>>,
            max_families: usize,
            $(#[doc = $counter_help] pub $counter: Counters,)*
            $(#[doc = $level_help] pub $level: Levels,)*
            $(#[doc = $histogram_help] pub $histogram: Histograms,)*
        }

        impl Metrics {
            /// All of them, at nothing. Label values of event names are told apart up to `max_families`.
            #[must_use]
            pub fn new(max_families: usize) -> Arc<Self> {
                let mut registry = Registry::default();
                $(let $counter = Counters::default();
                  registry.register($counter_name, $counter_help, $counter.clone());)*
                $(let $level = Levels::default();
                  registry.register($level_name, $level_help, $level.clone());)*
                $(let $histogram = Histograms::new_with_constructor(Bounds(&$bounds));
                  registry.register($histogram_name, $histogram_help, $histogram.clone());)*
                registry.register_collector(Box::new(process::Process::default()));
                let metrics = Self {
                    registry, caps: Mutex::default(), max_families, $($counter,)* $($level,)* $($histogram,)*
                };
                metrics.begin();
                Arc::new(metrics)
            }

            /// Names and help of all of them, for the docs and the checks of the dashboards.
            #[must_use]
            pub fn catalogue() -> Vec<(&'static str, &'static str, &'static str)> {
                vec![
                    $((concat!($counter_name, "_total"), "counter", $counter_help),)*
                    $(($level_name, "gauge", $level_help),)*
                    $(($histogram_name, "histogram", $histogram_help),)*
                ]
            }
        }
    };
}

metrics! {
    counters {
        appended = "system_bus_queue_appended", "Events offered to the queue, by what became of them";
        dispatched = "system_bus_queue_dispatch", "Dispatches by their end";
        leased = "system_bus_queue_leased", "Dispatches started";
        promotions = "system_bus_queue_promotions", "Dispatches that aging had raised";
        retries = "system_bus_queue_retries", "Failed attempts that are tried again";
        dead_letters = "system_bus_queue_dead_letters", "Events that became dead letters";
        stalls = "system_bus_drainer_stalls", "Stalls of a drainer";
        control = "system_bus_queue_control", "Pauses and resumes";
        triaged = "system_bus_triage", "Triage by its end";
        agreement = "system_bus_triage_agreement", "Whether triage agreed with what was done";
        triage_applied = "system_bus_triage_applied", "Suggestions that were applied";
        triage_fallback = "system_bus_triage_fallback", "Triage that could not decide";
        route_mismatch = "system_bus_triage_route_mismatch", "Triage that disputed a route";
        observer_runs = "system_bus_observer_runs", "Passes of the observer";
        function_runs = "system_bus_function_runs", "Runs of functions by their end";
        function_steps = "system_bus_function_steps", "Steps of functions";
        unmatched = "system_bus_function_events_unmatched", "Events that no function and no handler wanted";
        webhook_requests = "system_bus_webhook_requests", "Webhook deliveries";
        http_requests = "system_bus_http_requests", "HTTP requests";
        redis_reconnects = "system_bus_redis_refresh_failures", "Readings of Redis that failed";
        telemetry_events = "system_bus_telemetry_events", "Journal records that were counted";
        telemetry_failures = "system_bus_telemetry_failures", "Journal records of something that failed";
        telemetry_dropped = "system_bus_telemetry_dropped", "Telemetry that was dropped";
        sink_errors = "system_bus_telemetry_sink_errors", "Writes that a sink did not do";
        redis_evicted = "system_bus_redis_evicted_keys", "Keys that Redis dropped for want of memory";
        overflow = "system_bus_metric_label_overflow", "Label values beyond the cap of their label";
    }
    levels {
        build_info = "system_bus_build_info", "What runs here; always 1";
        depth = "system_bus_queue_depth", "Open events by priority";
        family_depth = "system_bus_queue_family_depth", "Open events by event name";
        oldest_age = "system_bus_queue_oldest_age_seconds", "Age of the oldest open event; 0 when there is none";
        stream_length = "system_bus_queue_stream_length", "Entries of a stream";
        pending = "system_bus_queue_pending", "Events that a drainer holds or that wait for a retry";
        retry_scheduled = "system_bus_queue_retry_scheduled", "Events that wait for their next attempt";
        dead_depth = "system_bus_queue_dead_letter_depth", "Dead letters";
        wait_hdr = "system_bus_queue_wait_hdr_seconds", "Exact percentiles of waits over a window";
        dispatch_hdr = "system_bus_queue_dispatch_hdr_seconds", "Exact percentiles of dispatches over a window";
        drainer_leader = "system_bus_drainer_leader", "1 in the process that follows the journal";
        drainer_tick = "system_bus_drainer_last_tick_timestamp_seconds", "When a drainer last renewed its session";
        drainer_slots = "system_bus_drainer_slots", "Dispatches that may be in flight, by whether they are";
        pause_active = "system_bus_queue_pause_active", "1 while an event name is paused";
        pause_applied = "system_bus_queue_pause_applied_timestamp_seconds", "When a pause began";
        pause_expires = "system_bus_queue_pause_expires_timestamp_seconds", "When a pause ends";
        functions_registered = "system_bus_functions_registered", "Functions that apps serve";
        runs_active = "system_bus_function_runs_active", "Runs that have not ended";
        function_slots = "system_bus_function_slots_held", "Slots of concurrency limits that are held";
        function_waiting = "system_bus_function_waiting", "Calls that a limit, a throttle, a batch or a debounce holds back";
        function_queue = "system_bus_function_queue_hdr_seconds", "Exact percentiles from a run's creation to its first call, five minutes";
        function_step = "system_bus_function_step_hdr_seconds", "Exact percentiles of steps, five minutes";
        redis_up = "system_bus_redis_up", "1 while Redis answers";
        redis_memory_used = "system_bus_redis_memory_used_bytes", "Memory that Redis uses";
        redis_memory_max = "system_bus_redis_memory_max_bytes", "Memory that Redis may use; 0 is no limit";
        redis_clients = "system_bus_redis_connected_clients", "Connections to Redis";
        redis_policy_ok = "system_bus_redis_policy_ok", "1 when Redis never drops keys";
        redis_aof_ok = "system_bus_redis_aof_ok", "1 when Redis writes its append-only file";
        redis_refresh_age = "system_bus_redis_refresh_age_seconds", "Age of the figures of Redis";
        sink_lag = "system_bus_telemetry_sink_lag_events", "Journal batches that a reader has not passed";
        sink_success = "system_bus_telemetry_sink_last_success_timestamp_seconds", "When a sink last wrote";
        health_ok = "system_bus_health_check_ok", "1 when a check passes";
        heartbeat_age = "system_bus_runtime_heartbeat_age_seconds", "Since when the runtime has not run a timer";
    }
    histograms {
        wait = "system_bus_queue_wait_seconds", WAITS, "From append to the first start";
        active_wait = "system_bus_queue_active_wait_seconds", WAITS, "The same without pauses";
        duration = "system_bus_queue_dispatch_duration_seconds", DURATIONS, "From the start of a dispatch to its end";
        e2e = "system_bus_queue_e2e_seconds", WAITS, "From append to the end";
        triage_duration = "system_bus_triage_duration_seconds", DURATIONS, "Triage of one event";
        observer_duration = "system_bus_observer_duration_seconds", DURATIONS, "One pass of the observer";
        webhook_duration = "system_bus_webhook_duration_seconds", DURATIONS, "Webhook deliveries";
        http_duration = "system_bus_http_request_duration_seconds", DURATIONS, "HTTP requests";
        redis_ping = "system_bus_redis_ping_seconds", DURATIONS, "Round trips to Redis";
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// How a scrape wants its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format 0.0.4.
    Text,
}

impl Format {
    /// What an `Accept` header asks for.
    #[must_use]
    pub fn of(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            Some(accept) if accept.contains("text/plain") => Self::Text,
            _ => Self::OpenMetrics,
        }
    }

    /// The content type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Metrics {
    /// What is known from the start. Counters begin at 0, so that the first increment is seen as one.
    fn begin(&self) {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.build_info.get_or_create(&vec![("version", version)]).set(1.0);
        for reason in ["tick_hung", "dispatch_hung", "backlog_idle"] {
            self.stalls.get_or_create(&vec![("reason", reason.into())]).inc_by(0);
        }
        self.telemetry_dropped.get_or_create(&vec![("reason", "recorder".into())]).inc_by(0);
        for level in ["ok", "failed"] {
            self.telemetry_events.get_or_create(&vec![("level", level.into())]).inc_by(0);
        }
        for action in ["pause", "resume"] {
            for source in ["manual", "observer"] {
                let labels = ["applied", "expired", "rejected"];
                for outcome in labels {
                    let labels =
                        vec![("action", action.into()), ("source", source.into()), ("outcome", outcome.into())];
                    self.control.get_or_create(&labels).inc_by(0);
                }
            }
        }
        for metric in ["family", "function", "handler", "reason", "route"] {
            self.overflow.get_or_create(&vec![("metric", metric.into())]).inc_by(0);
        }
    }

    /// A value of a label that comes from outside, bounded.
    #[must_use]
    pub fn bounded(&self, label: &'static str, value: &str) -> String {
        let cap = match label {
            "family" => self.max_families,
            "function" => 256,
            _ => 64,
        };
        let mut caps = self.caps.lock().unwrap_or_else(PoisonError::into_inner);
        let known = caps.entry(label).or_default();
        if known.contains(value) {
            return value.to_owned();
        }
        if known.len() < cap {
            known.insert(value.to_owned());
            return value.to_owned();
        }
        self.overflow.get_or_create(&vec![("metric", label.into())]).inc();
        OTHER.into()
    }

    /// One HTTP request, and the provider when it was a webhook.
    pub fn http(&self, route: &str, method: &str, status: u16, provider: Option<&'static str>, took: Duration) {
        let route = self.bounded("route", route);
        let labels: Labels =
            vec![("route", route.clone()), ("method", method.to_owned()), ("code", format!("{}xx", status / 100))];
        self.http_requests.get_or_create(&labels).inc();
        self.http_duration.get_or_create(&vec![("route", route)]).observe(took.as_secs_f64());
        if let Some(provider) = provider {
            let outcome = match status {
                200..=299 => "accepted",
                401 | 403 => "bad_signature",
                413 => "too_large",
                429 => "rate_limited",
                503 => "enqueue_failed",
                _ => "bad_payload",
            };
            let labels = vec![("provider", provider.to_owned()), ("outcome", outcome.to_owned())];
            self.webhook_requests.get_or_create(&labels).inc();
            self.webhook_duration.get_or_create(&vec![("provider", provider.to_owned())]).observe(took.as_secs_f64());
        }
    }

    /// The text of a scrape.
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        let mut out = String::with_capacity(64 << 10);
        // Writing to memory can't fail.
        let _ = encode(&mut out, &self.registry);
        match format {
            Format::OpenMetrics => out,
            Format::Text => text::classic(&out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_from_outside_are_bounded_and_the_worst_case_is_within_ten_thousand_series() {
        let metrics = Metrics::new(64);
        for n in 0..500 {
            let family = metrics.bounded("family", &format!("family/{n}"));
            for outcome in ["completed", "failed"] {
                metrics
                    .duration
                    .get_or_create(&vec![("family", family.clone()), ("outcome", outcome.into())])
                    .observe(0.1);
            }
            for priority in ["P0", "P1", "P2", "P3"] {
                let labels = vec![("family", family.clone()), ("priority", priority.into())];
                metrics.wait.get_or_create(&labels).observe(1.0);
            }
            metrics.http(&format!("/{n}"), "GET", 200, None, Duration::ZERO);
        }
        let text = metrics.render(Format::OpenMetrics);
        assert!(text.contains(r#"family="_other""#) && !text.contains("family/300"));
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series < 10_000, "{series}");
    }

    #[test]
    fn the_format_follows_the_header() {
        assert_eq!(Format::of(None), Format::OpenMetrics);
        assert_eq!(
            Format::of(Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")),
            Format::OpenMetrics
        );
        assert_eq!(Format::of(Some("text/plain")), Format::Text);
        let metrics = Metrics::new(64);
        let text = metrics.render(Format::Text);
        assert!(text.contains("# TYPE system_bus_queue_control_total counter"), "{text}");
        assert!(!text.contains("# EOF") && metrics.render(Format::OpenMetrics).ends_with("# EOF\n"));
    }
}
