//! Prometheus metrics: names, labels, and where each is fed from.
//!
//! | fed by | what |
//! |---|---|
//! | [`journal`] | counters and histograms of queue, triage, observer and functions: from the projection's steps, so only in the process that follows the journal |
//! | [`refresh`] | gauges of Redis and the queue, every five seconds |
//! | [`process`] | this process, at each scrape |
//! | [`logs`] | log lines of this process |
//! | callers | HTTP requests and webhooks ([`Metrics::http`]), the drainer's vitals, functions |
//!
//! # Invariants
//! 1. A scrape asks nobody: it renders what is in memory, also while Redis is away.
//! 2. Labels come from bounded sets: a new value beyond the cap of its label, or beyond the cap of its metric, is told as
//!    `_other` and counted. All together stay within 10,000 series.
//! 3. Never a label by event, run, key, address or error text.
//! 4. What is true of the whole system is told by one process: the one that follows the journal. Sums over processes are
//!    right.
//! 5. Counters begin at 0 for every set of labels that is known, so that `rate()` sees the first increment ([`seeds`]).

pub mod journal;
pub mod logs;
pub mod process;
pub mod refresh;
mod seeds;
mod series;
mod text;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use series::OTHER;
pub use series::{Counters, Histograms, Labels, Levels};

/// Upper bounds of waits, seconds.
const WAITS: [f64; 19] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0,
    3600.0,
];
/// Upper bounds of durations, seconds.
const DURATIONS: [f64; 18] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// What happened to a webhook delivery.
const WEBHOOK_OUTCOMES: [&str; 13] = [
    "accepted",
    "ignored",
    "duplicate",
    "challenge",
    "bad_signature",
    "stale",
    "bad_payload",
    "too_large",
    "rate_limited",
    "unknown_provider",
    "enqueue_failed",
    "unconfigured",
    "disabled",
];

macro_rules! metrics {
    (
        counters { $($counter:ident = $counter_name:literal, $counter_cap:literal, $counter_help:literal;)* }
        levels { $($level:ident = $level_name:literal, $level_help:literal;)* }
        histograms { $($histogram:ident = $histogram_name:literal, $histogram_cap:literal, $bounds:expr, $histogram_help:literal;)* }
    ) => {
        /// Every metric.
        pub struct Metrics {
            registry: Registry,
            caps: Mutex<HashMap<&'static str, HashSet<String>>>,
            max_families: usize,
            leads: AtomicBool,
            overflow: Family<Labels, Counter>,
            $(#[doc = $counter_help] pub $counter: Counters,)*
            $(#[doc = $level_help] pub $level: Levels,)*
            $(#[doc = $histogram_help] pub $histogram: Histograms,)*
        }

        impl Metrics {
            /// All of them, at nothing. Label values of event names are told apart up to `max_families`.
            #[must_use]
            pub fn new(max_families: usize) -> Arc<Self> {
                let mut registry = Registry::default();
                let overflow = Family::<Labels, Counter>::default();
                registry.register(OVERFLOW.0, OVERFLOW.1, overflow.clone());
                $(let $counter = Counters::new($counter_name, $counter_cap, &overflow);
                  registry.register($counter_name, $counter_help, $counter.family.clone());)*
                $(let $level = Levels::default();
                  registry.register($level_name, $level_help, $level.family.clone());)*
                $(let $histogram = Histograms::new($histogram_name, $histogram_cap, &$bounds, &overflow);
                  registry.register($histogram_name, $histogram_help, $histogram.family.clone());)*
                registry.register_collector(Box::new(process::Process::default()));
                registry.register_collector(Box::new(logs::Lines));
                let metrics = Self {
                    registry, caps: Mutex::default(), max_families, leads: AtomicBool::new(false), overflow,
                    $($counter,)* $($level,)* $($histogram,)*
                };
                metrics.begin();
                $(metrics.overflow.get_or_create(&vec![("metric", $counter_name.into())]).inc_by(0);)*
                $(metrics.overflow.get_or_create(&vec![("metric", $histogram_name.into())]).inc_by(0);)*
                Arc::new(metrics)
            }

            /// Name, type and help of all of them but those of the process, for the docs and the checks of the dashboards.
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

/// Counted by the others.
const OVERFLOW: (&str, &str) =
    ("system_bus_metric_label_overflow", "Label values beyond the cap of their label or metric");

metrics! {
    counters {
        appended = "system_bus_queue_appended", 256, "Events offered to the queue, by what became of them";
        dispatched = "system_bus_queue_dispatch", 256, "Dispatches by their end";
        leased = "system_bus_queue_leased", 8, "Dispatches started, by stored priority";
        promotions = "system_bus_queue_promotions", 8, "Dispatches that aging had raised";
        retries = "system_bus_queue_retries", 192, "Failed attempts that are tried again";
        dead_letters = "system_bus_queue_dead_letters", 192, "Events that became dead letters";
        hdr_saturated = "system_bus_hdr_saturated", 8, "Durations beyond 24 hours, which histograms tell as 24 hours";
        clock_negative = "system_bus_clock_negative", 8, "Dispatches that began before their append, by the clocks";
        stalls = "system_bus_drainer_stalls", 8, "Stalls of a drainer";
        control = "system_bus_queue_control", 32, "Pauses and resumes";
        triaged = "system_bus_triage", 192, "Triage by its end";
        agreement = "system_bus_triage_agreement", 160, "Whether triage agreed with what was done";
        triage_applied = "system_bus_triage_applied", 65, "Suggestions that were applied";
        triage_fallback = "system_bus_triage_fallback", 160, "Triage that could not decide";
        route_mismatch = "system_bus_triage_route_mismatch", 65, "Triage that disputed a route";
        observer_runs = "system_bus_observer_runs", 64, "Passes of the observer";
        observer_actions = "system_bus_observer_actions", 64, "Actions of the observer, by what became of them";
        function_runs = "system_bus_function_runs", 384, "Runs of functions by their end";
        function_steps = "system_bus_function_steps", 256, "Steps of functions";
        function_retries = "system_bus_function_retries", 128, "Calls of functions that are tried again";
        unmatched = "system_bus_function_events_unmatched", 65, "Events that no function and no handler wanted";
        registrations = "system_bus_registration", 8, "Registrations of apps, and how asking them went";
        webhook_requests = "system_bus_webhook_requests", 288, "Webhook deliveries by what became of them";
        webhook_events = "system_bus_webhook_events", 64, "Events that webhooks brought";
        outbound_requests = "system_bus_webhook_outbound_requests", 16, "Requests to endpoints by how they ended";
        outbound_deliveries = "system_bus_webhook_outbound_deliveries", 8, "Deliveries to endpoints by their end";
        webhook_auth_failures = "system_bus_webhook_auth_failures", 128, "Webhook deliveries that are not believed, by cause";
        webhook_secret_slot = "system_bus_webhook_secret_slot", 42, "Webhook deliveries by the secret that verified them";
        http_requests = "system_bus_http_requests", 160, "HTTP requests";
        redis_command_errors = "system_bus_redis_command_errors", 32, "Commands that Redis refused or failed";
        redis_reconnects = "system_bus_redis_reconnects", 8, "Times that Redis answered again after it had not";
        redis_refresh_failures = "system_bus_redis_refresh_failures", 8, "Readings of Redis that failed";
        redis_evicted = "system_bus_redis_evicted_keys", 8, "Keys that Redis dropped for want of memory";
        telemetry_events = "system_bus_telemetry_events", 8, "Journal records by level";
        telemetry_failures = "system_bus_telemetry_failures", 64, "Journal records of something that failed";
        telemetry_dropped = "system_bus_telemetry_dropped", 8, "Telemetry that was dropped";
        trimmed_unread = "system_bus_telemetry_trimmed_unread", 16, "Times that the journal went on without a reader that stood still";
        redactions = "system_bus_telemetry_redactions", 8, "Values taken out of telemetry, by how they were found";
        sink_errors = "system_bus_telemetry_sink_errors", 16, "Writes that a sink did not do";
    }
    levels {
        build_info = "system_bus_build_info", "What runs here; always 1";
        depth = "system_bus_queue_depth", "Open events by priority";
        family_depth = "system_bus_queue_family_depth", "Open events by event name";
        oldest_age = "system_bus_queue_oldest_age_seconds", "Age of the oldest open event; 0 when there is none";
        stream_length = "system_bus_queue_stream_length", "Entries of a stream";
        pending = "system_bus_queue_pending", "Events that a drainer holds or that wait for a retry";
        group_lag = "system_bus_queue_group_lag", "Events that no drainer has read; at least so many where Redis can not tell";
        unindexed = "system_bus_queue_unindexed", "Orphans: events held by a session that has ended";
        retry_scheduled = "system_bus_queue_retry_scheduled", "Events that wait for their next attempt";
        dispatch_inflight = "system_bus_queue_dispatch_inflight", "Dispatches under way in this process";
        dead_depth = "system_bus_queue_dead_letter_depth", "Dead letters by event name, as far as the newest 1000 tell it; the others are _other";
        wait_hdr = "system_bus_queue_wait_hdr_seconds", "Exact percentiles of waits over a window";
        dispatch_hdr = "system_bus_queue_dispatch_hdr_seconds", "Exact percentiles of dispatches over a window";
        drainer_leader = "system_bus_drainer_leader", "1 in the process that follows the journal and tells of the whole system";
        drainer_tick = "system_bus_drainer_last_tick_timestamp_seconds", "When a drainer last renewed its session";
        drainer_slots = "system_bus_drainer_slots", "Dispatches that may be in flight, by whether they are";
        pause_active = "system_bus_queue_pause_active", "1 while an event name is paused";
        pause_applied = "system_bus_queue_pause_applied_timestamp_seconds", "When a pause began";
        pause_expires = "system_bus_queue_pause_expires_timestamp_seconds", "When a pause ends";
        observer_state = "system_bus_observer_state", "What the observer last found: 1 for the state that it is";
        observer_last_run = "system_bus_observer_last_run_timestamp_seconds", "When the observer last ran; 0 is never";
        webhook_last = "system_bus_webhook_last_delivery_timestamp_seconds", "When a provider last sent a delivery that was believed; 0 is never";
        spool_entries = "system_bus_webhook_spool_entries", "Webhook deliveries on the disk of this machine that wait for Redis";
        spool_bytes = "system_bus_webhook_spool_bytes", "Bytes of them";
        spool_oldest = "system_bus_webhook_spool_oldest_seconds", "Age of the oldest of them; 0 when there is none";
        secret_loaded = "system_bus_webhook_secret_loaded", "1 when the secret of a provider is there";
        outbound_endpoints = "system_bus_webhook_outbound_endpoints", "Endpoints, by whether they are enabled";
        outbound_open = "system_bus_webhook_outbound_circuits_open", "Endpoints that this process leaves alone after failures";
        functions_registered = "system_bus_functions_registered", "Functions that apps serve";
        runs_active = "system_bus_function_runs_active", "Runs that have not ended";
        stale_runs = "system_bus_function_stale_runs", "Of the 100 oldest RUNNING runs, those created over an hour ago that wait for nothing";
        registration_success = "system_bus_registration_last_success_timestamp_seconds", "When an app last said what it serves";
        function_slots = "system_bus_function_slots_held", "Slots of concurrency limits that are held";
        function_waiting = "system_bus_function_waiting", "Calls that a limit, a throttle, a batch or a debounce holds back";
        function_queue = "system_bus_function_queue_hdr_seconds", "Exact percentiles from the creation of a run to its first call, five minutes";
        function_step = "system_bus_function_step_hdr_seconds", "Exact percentiles of steps, five minutes";
        redis_up = "system_bus_redis_up", "1 while Redis answers";
        redis_memory_used = "system_bus_redis_memory_used_bytes", "Memory that Redis uses";
        redis_memory_max = "system_bus_redis_memory_max_bytes", "Memory that Redis may use; 0 is no limit";
        redis_clients = "system_bus_redis_connected_clients", "Connections to Redis";
        redis_policy_ok = "system_bus_redis_policy_ok", "1 when Redis never drops keys";
        redis_aof_ok = "system_bus_redis_aof_ok", "1 when Redis writes its append-only file and the last write and rewrite went well";
        redis_refresh_age = "system_bus_redis_refresh_age_seconds", "Age of the figures of Redis";
        sink_lag = "system_bus_telemetry_sink_lag_events", "Journal batches that a reader has not passed";
        sink_success = "system_bus_telemetry_sink_last_success_timestamp_seconds", "When a sink last wrote";
        outbox_bytes = "system_bus_telemetry_outbox_bytes", "Bytes of posted telemetry on the disk of this machine that wait for Redis";
        journal_bytes = "system_bus_journal_bytes", "Memory of the journal, which keeps what sinks have not written yet";
        health_ok = "system_bus_health_check_ok", "1 when a check passes";
        health_duration = "system_bus_health_check_duration_seconds", "How long the checks took the last time";
        heartbeat_age = "system_bus_runtime_heartbeat_age_seconds", "Since when the runtime has not run a timer";
        runtime_tasks = "system_bus_runtime_tasks", "Tasks of the runtime";
        runtime_queue = "system_bus_runtime_queue_depth", "Tasks that wait for a thread of the runtime";
    }
    histograms {
        wait = "system_bus_queue_wait_seconds", 64, WAITS, "From append to the first start";
        active_wait = "system_bus_queue_active_wait_seconds", 4, WAITS, "The same without pauses";
        duration = "system_bus_queue_dispatch_duration_seconds", 64, DURATIONS, "From the start of a dispatch to its end";
        e2e = "system_bus_queue_e2e_seconds", 4, WAITS, "From append to the end";
        tick_duration = "system_bus_drainer_tick_duration_seconds", 1, DURATIONS, "Turns of the drainer's housekeeping";
        triage_duration = "system_bus_triage_duration_seconds", 4, DURATIONS, "Triage of one event";
        observer_duration = "system_bus_observer_duration_seconds", 4, DURATIONS, "One pass of the observer";
        webhook_duration = "system_bus_webhook_duration_seconds", 20, DURATIONS, "Webhook deliveries";
        outbound_duration = "system_bus_webhook_outbound_request_duration_seconds", 1, DURATIONS, "Requests to endpoints";
        http_duration = "system_bus_http_request_duration_seconds", 24, DURATIONS, "HTTP requests";
        function_run_duration = "system_bus_function_run_duration_seconds", 40, DURATIONS, "From the first call of a run to its end";
        function_step_duration = "system_bus_function_step_duration_seconds", 40, DURATIONS, "Steps of functions that run code";
        redis_ping = "system_bus_redis_ping_seconds", 1, DURATIONS, "Round trips to Redis";
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What became of a webhook delivery.
#[derive(Debug, Clone, Copy)]
pub struct Webhook {
    /// Whose; `_unknown` for a provider that there is not.
    pub provider: &'static str,
    /// `accepted`, `ignored`, `duplicate`, `bad_signature` and so on.
    pub outcome: &'static str,
    /// Events that it brought to the queue.
    pub queued: u64,
    /// Events that it brought otherwise.
    pub direct: u64,
    /// The secret that verified it: `current` or `previous`.
    pub slot: Option<&'static str>,
    /// Why it was not believed.
    pub refusal: Option<&'static str>,
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
    /// Whether this process tells of the whole system.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    /// Says so.
    pub fn set_leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Relaxed);
        self.drainer_leader.set(Labels::new(), f64::from(u8::from(leads)));
    }

    /// A value of a label that comes from outside, bounded.
    #[must_use]
    pub fn bounded(&self, label: &'static str, value: &str) -> String {
        let cap = match label {
            "family" => self.max_families,
            "function" => 128,
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

    /// The values of a label that are told apart so far.
    fn names(&self, label: &'static str) -> Vec<String> {
        let caps = self.caps.lock().unwrap_or_else(PoisonError::into_inner);
        caps.get(label).map(|known| known.iter().cloned().collect()).unwrap_or_default()
    }

    /// One HTTP request, and what became of it when it was a webhook delivery.
    pub fn http(&self, route: &str, method: &str, status: u16, webhook: Option<&Webhook>, took: Duration) {
        let (route, took) = (self.bounded("route", route), took.as_secs_f64());
        let method = match method {
            "GET" | "POST" | "PUT" | "DELETE" | "HEAD" | "OPTIONS" | "PATCH" => method,
            _ => OTHER,
        };
        let code = format!("{}xx", status / 100);
        self.http_requests.add(vec![("route", route.clone()), ("method", method.to_owned()), ("code", code)], 1);
        self.http_duration.observe(vec![("route", route)], took, 1);
        if let Some(webhook) = webhook {
            let provider = || ("provider", self.bounded("provider", webhook.provider));
            self.webhook_requests.add(vec![provider(), ("outcome", webhook.outcome.to_owned())], 1);
            self.webhook_duration.observe(vec![provider()], took, 1);
            if let Some(slot) = webhook.slot {
                self.webhook_secret_slot.add(vec![provider(), ("slot", slot.to_owned())], 1);
                #[allow(clippy::cast_precision_loss)]
                self.webhook_last.set(vec![provider()], chrono::Utc::now().timestamp_millis() as f64 / 1000.0);
            }
            if let Some(reason) = webhook.refusal {
                self.webhook_auth_failures.add(vec![provider(), ("reason", reason.to_owned())], 1);
            }
            for (path, events) in [("queue", webhook.queued), ("direct", webhook.direct)] {
                self.webhook_events.add(vec![provider(), ("path", path.to_owned())], events);
            }
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
    fn the_worst_case_is_within_ten_thousand_series() {
        let metrics = Metrics::new(64);
        let name = |of: &'static str, n: usize| metrics.bounded(of, &format!("{of}/{n}"));
        let all = |labels: &[(&'static str, &str)], n: usize| -> Labels {
            labels
                .iter()
                .map(|(of, value)| (*of, if value.is_empty() { name(of, n) } else { (*value).to_owned() }))
                .collect()
        };
        for n in 0..2000 {
            let p = ["P0", "P1", "P2", "P3"][n % 4];
            let labels = all(&[("family", ""), ("priority", p), ("outcome", ["accepted", "duplicate"][n % 2])], n);
            metrics.appended.add(labels.clone(), 1);
            metrics.dispatched.add(labels, 1);
            metrics.wait.observe(all(&[("family", ""), ("priority", p)], n), 1.0, 1);
            metrics.duration.observe(all(&[("family", ""), ("outcome", "completed")], n), 1.0, 1);
            for counters in [&metrics.retries, &metrics.dead_letters, &metrics.triage_fallback] {
                counters.add(all(&[("family", ""), ("reason", "")], n), 1);
            }
            for counters in [&metrics.triaged, &metrics.agreement] {
                counters.add(all(&[("family", ""), ("mode", "shadow"), ("outcome", p)], n), 1);
            }
            for counters in [&metrics.triage_applied, &metrics.route_mismatch, &metrics.unmatched] {
                counters.add(all(&[("family", "")], n), 1);
            }
            for counters in [&metrics.function_runs, &metrics.function_steps, &metrics.function_retries] {
                counters.add(all(&[("function", ""), ("status", p)], n), 1);
            }
            for histograms in [&metrics.function_run_duration, &metrics.function_step_duration] {
                histograms.observe(all(&[("function", "")], n), 1.0, 1);
            }
            for levels in [&metrics.function_slots, &metrics.function_waiting] {
                levels.set(all(&[("function", "")], n), 1.0);
            }
            for levels in [&metrics.function_queue, &metrics.function_step] {
                let function = metrics.bounded("function_hdr", &format!("{n}"));
                levels.set(vec![("function", function), ("q", p.into())], 1.0);
            }
            for levels in [&metrics.family_depth, &metrics.oldest_age, &metrics.dead_depth] {
                levels.set(vec![("family", name("family", n))], 1.0);
            }
            for levels in [&metrics.pause_active, &metrics.pause_applied, &metrics.pause_expires] {
                let family = name("family", n);
                levels.set(vec![("family", family), ("source", "manual".into())], 1.0);
            }
            metrics.telemetry_failures.add(all(&[("component", "")], n), 1);
            let outcome = WEBHOOK_OUTCOMES[n % WEBHOOK_OUTCOMES.len()];
            let webhook = Webhook {
                provider: "github",
                outcome,
                queued: 1,
                direct: 0,
                slot: Some("current"),
                refusal: Some("mismatch"),
            };
            metrics.http(&format!("/{n}"), "GET", 200, Some(&webhook), Duration::ZERO);
            metrics.webhook_requests.add(all(&[("provider", ""), ("outcome", outcome)], n), 1);
            metrics.webhook_duration.observe(all(&[("provider", "")], n), 1.0, 1);
            metrics.webhook_auth_failures.add(all(&[("provider", ""), ("reason", p)], n), 1);
            metrics.webhook_secret_slot.add(all(&[("provider", ""), ("slot", p)], n), 1);
            metrics.webhook_last.set(all(&[("provider", "")], n), 1.0);
        }
        let text = metrics.render(Format::OpenMetrics);
        assert!(text.contains(r#"family="_other""#) && !text.contains("family/1300"));
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series > 5_000, "the worst case is not made: {series}");
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
