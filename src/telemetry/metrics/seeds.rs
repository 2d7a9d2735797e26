//! What is known from the start: counters at 0, so that `rate()` and alerts see the first increment.

use super::{Labels, Metrics, OTHER, WEBHOOK_OUTCOMES};

/// Why events mostly become dead letters.
const DEAD: [&str; 2] = ["attempts_exhausted", "rejected"];
/// Why failed attempts are tried again.
const RETRIES: [&str; 5] = ["timeout", "http_5xx", "http_4xx", "connect", "handler"];
const TRIAGE_MODES: [&str; 2] = ["shadow", "enforce"];
/// The last ones are rare: only told from the start for [`OTHER`].
const FALLBACKS: [&str; 6] = ["timeout", "model_error", "disabled", "invalid_json", "schema_error", "unsafe_override"];

fn labels<const N: usize>(of: [(&'static str, &str); N]) -> Labels {
    of.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

impl Metrics {
    /// What is known of any system.
    pub(super) fn begin(&self) {
        let each = |counters: &super::Counters, name: &'static str, values: &[&str]| {
            values.iter().for_each(|value| counters.add(labels([(name, value)]), 0));
        };
        each(&self.stalls, "reason", &["tick_hung", "dispatch_hung", "backlog_idle"]);
        each(&self.leased, "priority", &["P0", "P1", "P2", "P3"]);
        each(
            &self.telemetry_dropped,
            "reason",
            &["recorder", "spans", "debug_backpressure_guard", "otel_events_disabled"],
        );
        each(&self.telemetry_events, "level", &["debug", "info", "warn", "error", "fatal"]);
        each(&self.redactions, "kind", &["key", "pattern", "known"]);
        each(&self.trimmed_unread, "projection", &["stats", "jsonl"]);
        each(&self.registrations, "outcome", &["ok", "failed"]);
        each(&self.telemetry_failures, "component", &["queue", "queue-drainer", "queue-control", "functions"]);
        for counters in [
            &self.hdr_saturated,
            &self.clock_negative,
            &self.redis_reconnects,
            &self.redis_refresh_failures,
            &self.redis_evicted,
        ] {
            counters.add(Labels::new(), 0);
        }
        for (from, to) in [("P3", "P2"), ("P2", "P1")] {
            self.promotions.add(labels([("from", from), ("to", to)]), 0);
        }
        for action in ["pause", "resume"] {
            for source in ["manual", "observer"] {
                for outcome in ["applied", "expired", "rejected"] {
                    self.control.add(labels([("action", action), ("source", source), ("outcome", outcome)]), 0);
                }
            }
        }
        for trigger in ["cron", "manual"] {
            for outcome in ["completed", "short_circuit", "fallback", "failed", "skipped"] {
                let of = [("mode", "enforce"), ("trigger", trigger), ("outcome", outcome)];
                self.observer_runs.add(labels(of), 0);
            }
            self.observer_duration.observe(labels([("trigger", trigger)]), 0.0, 0);
        }
        for kind in ["pause_family", "resume_family", "escalate"] {
            for disposition in ["suggested", "final", "applied", "rejected"] {
                self.observer_actions.add(labels([("kind", kind), ("disposition", disposition)]), 0);
            }
        }
        for mode in TRIAGE_MODES {
            self.triage_duration.observe(labels([("mode", mode)]), 0.0, 0);
        }
        for priority in ["P0", "P1", "P2", "P3"] {
            self.active_wait.observe(labels([("priority", priority)]), 0.0, 0);
            self.e2e.observe(labels([("priority", priority)]), 0.0, 0);
        }
        self.know_triage(OTHER);
        self.unmatched.add(labels([("family", OTHER)]), 0);
        for metric in ["family", "function", "function_hdr", "handler", "reason", "route", "provider", "component"] {
            self.overflow.get_or_create(&labels([("metric", metric)])).inc_by(0);
        }
    }

    /// What this process is.
    pub fn know_build(&self, role: &str) {
        let of = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", option_env!("SYSTEM_BUS_REVISION").unwrap_or("unknown")),
            ("rustc", env!("SYSTEM_BUS_RUSTC")),
            ("role", role),
        ];
        self.build_info.replace([(labels(of), 1.0)]);
    }

    /// Event names that have a handler of this kind.
    pub fn know_families<'a>(&self, families: impl IntoIterator<Item = (&'a str, &'a str)>) {
        for (family, handler) in families {
            let family = self.bounded("family", family);
            for outcome in ["completed", "failed", "dead_lettered"] {
                let of = [("family", &*family), ("handler_type", handler), ("outcome", outcome)];
                self.dispatched.add(labels(of), 0);
            }
            for reason in DEAD {
                self.dead_letters.add(labels([("family", &family), ("reason", reason)]), 0);
            }
            for reason in RETRIES {
                self.retries.add(labels([("family", &family), ("reason", reason)]), 0);
            }
            self.know_triage(&family);
            self.unmatched.add(labels([("family", &family)]), 0);
        }
    }

    fn know_triage(&self, family: &str) {
        for mode in TRIAGE_MODES {
            for outcome in ["completed", "failed", "fallback"] {
                self.triaged.add(labels([("family", family), ("mode", mode), ("outcome", outcome)]), 0);
            }
            for result in ["agree", "disagree"] {
                self.agreement.add(labels([("family", family), ("mode", mode), ("result", result)]), 0);
            }
        }
        for reason in &FALLBACKS[..if family == OTHER { FALLBACKS.len() } else { 2 }] {
            self.triage_fallback.add(labels([("family", family), ("reason", reason)]), 0);
        }
        self.triage_applied.add(labels([("family", family)]), 0);
        self.route_mismatch.add(labels([("family", family)]), 0);
    }

    /// Functions that apps serve.
    pub fn know_functions<'a>(&self, functions: impl IntoIterator<Item = &'a str>) {
        for function in functions {
            let function = self.bounded("function", function);
            for status in ["completed", "failed", "cancelled"] {
                self.function_runs.add(labels([("function", &function), ("status", status)]), 0);
            }
            for outcome in ["completed", "failed"] {
                self.function_steps.add(labels([("function", &function), ("op", "run"), ("outcome", outcome)]), 0);
            }
            self.function_retries.add(labels([("function", &function)]), 0);
        }
    }

    /// Webhook providers, and whether their secrets are there.
    pub fn know_providers<'a>(&self, providers: impl IntoIterator<Item = (&'a str, bool)>) {
        let mut loaded = Vec::new();
        for (provider, is_loaded) in providers {
            let provider = self.bounded("provider", provider);
            for outcome in WEBHOOK_OUTCOMES {
                self.webhook_requests.add(labels([("provider", &provider), ("outcome", outcome)]), 0);
            }
            for path in ["queue", "direct"] {
                self.webhook_events.add(labels([("provider", &provider), ("path", path)]), 0);
            }
            for slot in ["current", "previous"] {
                self.webhook_secret_slot.add(labels([("provider", &provider), ("slot", slot)]), 0);
            }
            self.webhook_auth_failures.add(labels([("provider", &provider), ("reason", "mismatch")]), 0);
            if !self.webhook_last.contains(&labels([("provider", &provider)])) {
                self.webhook_last.set(labels([("provider", &provider)]), 0.0);
            }
            self.webhook_duration.observe(labels([("provider", &provider)]), 0.0, 0);
            loaded.push((labels([("provider", &provider)]), f64::from(u8::from(is_loaded))));
        }
        self.secret_loaded.replace(loaded);
    }
}
