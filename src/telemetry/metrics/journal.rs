//! Metrics from what the projection just added: the counters can't disagree with the journal.

use super::super::latency::kind;
use super::super::projection::Taken;
use super::super::projection::fold::Table;
use super::{Labels, Metrics};

impl Metrics {
    /// Adds what one step of the projection added.
    pub fn take(&self, taken: &Taken<'_>) {
        for table in taken.added.values() {
            self.take_counts(table);
            self.take_samples(table);
        }
    }

    fn take_counts(&self, table: &Table) {
        for (name, count) in &table.counts {
            let mut parts = name.splitn(4, '|');
            let mut part = || parts.next().unwrap_or_default();
            let (what, of, detail, rest) = (part(), part(), part(), part());
            let (family, priority) = of.rsplit_once(":p").unwrap_or((of, ""));
            let family = || ("family", self.bounded("family", family));
            let priority = || ("priority", format!("P{priority}"));
            let add = |counters: &super::Counters, labels: Labels| {
                counters.get_or_create(&labels).inc_by(*count);
            };
            let handler = || ("handler_type", self.bounded("handler", detail));
            let reason = || ("reason", self.bounded("reason", detail));
            match what {
                "append" => add(&self.appended, vec![family(), priority(), ("outcome", detail.into())]),
                "started" => add(&self.leased, vec![priority()]),
                "completed" | "failed" => {
                    add(&self.dispatched, vec![family(), handler(), ("outcome", what.into())]);
                }
                "dead" => {
                    add(&self.dead_letters, vec![family(), reason()]);
                    add(
                        &self.dispatched,
                        vec![family(), ("handler_type", String::new()), ("outcome", "dead_lettered".into())],
                    );
                }
                "retry" => add(&self.retries, vec![family(), reason()]),
                "promoted" => {
                    let (from, to) = (detail.to_owned(), raised(detail));
                    add(&self.promotions, vec![("from", from), ("to", to)]);
                }
                "stalled" => add(&self.stalls, vec![reason()]),
                "control" => {
                    add(&self.control, vec![("action", of.into()), ("source", detail.into()), ("outcome", rest.into())])
                }
                "triage" if detail != "started" => {
                    add(&self.triaged, vec![family(), ("mode", rest.into()), ("outcome", detail.into())]);
                }
                "triage_agreements" => add(&self.agreement, vec![family(), ("result", "agree".into())]),
                "triage_disagreements" => add(&self.agreement, vec![family(), ("result", "disagree".into())]),
                "triage_applied" => add(&self.triage_applied, vec![family()]),
                "triage_fallback" => add(&self.triage_fallback, vec![family(), reason()]),
                "triage_route_mismatches" => add(&self.route_mismatch, vec![family()]),
                "observe" if detail != "started" => {
                    add(&self.observer_runs, vec![("mode", of.into()), ("outcome", detail.into())]);
                }
                "function" => self.take_function(of, detail, *count),
                "unrouted" => add(&self.unmatched, vec![family()]),
                "action" => add(&self.telemetry_events, vec![("level", "ok".into())]),
                "failure" => {
                    add(&self.telemetry_events, vec![("level", "failed".into())]);
                    add(&self.telemetry_failures, vec![("component", self.bounded("component", of))]);
                }
                _ => {}
            }
        }
    }

    fn take_function(&self, function: &str, what: &str, count: u64) {
        let function = ("function", self.bounded("function", function));
        if let Some(status @ ("completed" | "failed" | "cancelled")) = what.strip_prefix("run.") {
            self.function_runs.get_or_create(&vec![function, ("status", status.to_owned())]).inc_by(count);
        } else if let Some(outcome) = what.strip_prefix("step.") {
            self.function_steps.get_or_create(&vec![function, ("outcome", outcome.to_owned())]).inc_by(count);
        }
    }

    fn take_samples(&self, table: &Table) {
        for ((of, series), sample) in &table.samples {
            let mut parts = series.split('|');
            let lane = parts.next().unwrap_or_default();
            let outcome = parts.next().unwrap_or_default();
            let (family, priority) = lane.rsplit_once(":p").unwrap_or((lane, ""));
            let family = || ("family", self.bounded("family", family));
            let priority = || ("priority", format!("P{priority}"));
            let (histograms, labels): (_, Labels) = match of.as_str() {
                kind::WAIT => (&self.wait, vec![family(), priority()]),
                kind::WAIT_ACTIVE => (&self.active_wait, vec![priority()]),
                kind::DISPATCH => (&self.duration, vec![family(), ("outcome", outcome.to_owned())]),
                kind::E2E => (&self.e2e, vec![priority()]),
                kind::TRIAGE => (&self.triage_duration, Vec::new()),
                kind::OBSERVE => (&self.observer_duration, vec![("mode", lane.to_owned())]),
                _ => continue,
            };
            let histogram = histograms.get_or_create(&labels);
            sample.each(|us, count| {
                #[allow(clippy::cast_precision_loss)]
                let seconds = us as f64 / 1e6;
                (0..count).for_each(|_| histogram.observe(seconds));
            });
        }
    }
}

/// Aging raises by one level at a time, never above P1.
fn raised(from: &str) -> String {
    if from == "P3" { "P2".into() } else { "P1".into() }
}
