//! Metrics from what the projection just added: the counters can't disagree with the journal.

use super::super::latency::{Sample, kind};
use super::super::projection::Taken;
use super::super::projection::fold::Table;
use super::{Counters, Histograms, Labels, Metrics};

impl Metrics {
    /// Adds what one step of the projection added.
    pub fn take(&self, taken: &Taken<'_>) {
        for table in taken.added.values() {
            self.take_counts(table);
            self.take_samples(table);
            self.take_passing(table);
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
            let add = |counters: &Counters, labels: Labels| counters.add(labels, *count);
            let handler = || ("handler_type", self.bounded("handler", detail));
            let reason = || ("reason", self.bounded("reason", detail));
            let told = |level: &str| self.telemetry_events.add(vec![("level", level.to_owned())], *count);
            match what {
                "append" => {
                    told("info");
                    add(&self.appended, vec![family(), priority(), ("outcome", detail.into())]);
                }
                "started" => {
                    told("info");
                    add(&self.leased, vec![priority()]);
                }
                "completed" => {
                    told("info");
                    add(&self.dispatched, vec![family(), handler(), ("outcome", what.into())]);
                }
                "failed_once" => add(&self.dispatched, vec![family(), handler(), ("outcome", "failed".into())]),
                "gave_up" => add(&self.dispatched, vec![family(), handler(), ("outcome", "dead_lettered".into())]),
                "dead" => add(&self.dead_letters, vec![family(), reason()]),
                "retry" => add(&self.retries, vec![family(), reason()]),
                "promoted" => add(&self.promotions, vec![("from", detail.to_owned()), ("to", raised(detail))]),
                "clock_negative" => add(&self.clock_negative, Labels::new()),
                "saturated" => add(&self.hdr_saturated, Labels::new()),
                "stalled" => add(&self.stalls, vec![reason()]),
                "control" => {
                    let outcome = ("outcome", rest.to_owned());
                    add(&self.control, vec![("action", of.into()), ("source", source_of(detail).into()), outcome]);
                }
                "triage" if detail != "started" => {
                    add(&self.triaged, vec![family(), ("mode", rest.into()), ("outcome", detail.into())]);
                }
                "triage_agreements" | "triage_disagreements" => {
                    let result = if what == "triage_agreements" { "agree" } else { "disagree" };
                    add(&self.agreement, vec![family(), ("mode", detail.into()), ("result", result.into())]);
                }
                "triage_applied" => add(&self.triage_applied, vec![family()]),
                "triage_fallback" => add(&self.triage_fallback, vec![family(), reason()]),
                "triage_route_mismatches" => add(&self.route_mismatch, vec![family()]),
                "observer" => {
                    let labels = [("mode", of), ("trigger", detail), ("outcome", rest)];
                    add(&self.observer_runs, labels.map(|(name, value)| (name, value.to_owned())).into());
                }
                "observer_action" => {
                    add(&self.observer_actions, vec![("kind", of.into()), ("disposition", detail.into())]);
                }
                "function" => self.take_function(of, detail, *count),
                "step" => {
                    let labels = vec![self.function(of), ("op", detail.into()), ("outcome", rest.into())];
                    add(&self.function_steps, labels);
                }
                "unmatched" => add(&self.unmatched, vec![family()]),
                "level" => told(of),
                "failure" => add(&self.telemetry_failures, vec![("component", self.bounded("component", of))]),
                "trimmed" => add(&self.trimmed_unread, vec![("projection", self.bounded("sink", of))]),
                _ => {}
            }
        }
    }

    /// Steps that the system itself completes do not say whose they are.
    fn function(&self, name: &str) -> (&'static str, String) {
        ("function", if name.is_empty() { "_unknown".to_owned() } else { self.bounded("function", name) })
    }

    fn take_function(&self, function: &str, what: &str, count: u64) {
        match what {
            "run.completed" | "run.failed" | "run.cancelled" => {
                let status = what.trim_start_matches("run.").to_owned();
                self.function_runs.add(vec![self.function(function), ("status", status)], count);
            }
            "step.errored" => self.function_retries.add(vec![self.function(function)], count),
            "app.registered" => self.registrations.add(vec![("outcome", "ok".to_owned())], count),
            _ => {}
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
                _ => continue,
            };
            observe(histograms, &labels, sample);
        }
    }

    fn take_passing(&self, table: &Table) {
        for ((of, series), sample) in &table.passing {
            let (histograms, labels): (_, Labels) = match *of {
                kind::TRIAGE => (&self.triage_duration, vec![("mode", series.clone())]),
                kind::OBSERVE => (&self.observer_duration, vec![("trigger", series.clone())]),
                kind::RUN => (&self.function_run_duration, vec![self.function(series)]),
                kind::STEP => (&self.function_step_duration, vec![self.function(series)]),
                _ => continue,
            };
            observe(histograms, &labels, sample);
        }
    }
}

fn observe(histograms: &Histograms, labels: &Labels, sample: &Sample) {
    sample.each(|us, count| {
        #[allow(clippy::cast_precision_loss)]
        histograms.observe(labels.clone(), us as f64 / 1e6, count);
    });
}

/// Who pauses, as metrics name it: a person by whatever way, or the observer.
fn source_of(source: &str) -> &'static str {
    if source == "observer" { "observer" } else { "manual" }
}

/// Aging raises by one level at a time, never above P1.
fn raised(from: &str) -> String {
    if from == "P3" { "P2".into() } else { "P1".into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Format;
    use super::*;
    use crate::streams::entry_id::EntryId;
    use crate::streams::journal::{Fields, encode};
    use crate::streams::records::{Fact, Record};
    use crate::telemetry::projection::fold::Fold;

    /// What a scrape tells after these records.
    fn told(facts: Vec<Fact>) -> String {
        let metrics = Metrics::new(64);
        let mut fold = Fold::default();
        let records: Vec<Record> = facts.into_iter().map(Record::Fact).collect();
        fold.take(EntryId { ms: 100_000, seq: 0 }, &Fields { b: Some(encode(&records)), ..Fields::default() });
        metrics.take(&Taken { added: &fold.minutes });
        metrics.render(Format::Text)
    }

    #[track_caller]
    fn assert_line(text: &str, line: &str) {
        assert!(text.lines().any(|told| told == line), "no {line:?} in\n{text}");
    }

    fn triage(action: &'static str) -> Fact {
        Fact::new("queue-triage", action).with("family", "a/b").with("mode", "shadow").with("latencyMs", 20)
    }

    #[test]
    fn triage_is_told_as_its_records_say() {
        let completed = |priority: &str, route: &str, applied: bool| {
            triage("queue.triage.completed")
                .with("suggestedPriority", priority)
                .with("finalPriority", "P2")
                .with("routeCheck", route)
                .with("applied", applied)
        };
        let text = told(vec![
            triage("queue.triage.started"),
            completed("P2", "confirm", false),
            completed("P0", "mismatch", true),
            triage("queue.triage.fallback").with("fallbackReason", "timeout").failed("timeout"),
        ]);
        for line in [
            r#"system_bus_triage_total{family="a/b",mode="shadow",outcome="completed"} 2"#,
            r#"system_bus_triage_total{family="a/b",mode="shadow",outcome="fallback"} 1"#,
            r#"system_bus_triage_agreement_total{family="a/b",mode="shadow",result="agree"} 1"#,
            r#"system_bus_triage_agreement_total{family="a/b",mode="shadow",result="disagree"} 1"#,
            r#"system_bus_triage_applied_total{family="a/b"} 1"#,
            r#"system_bus_triage_fallback_total{family="a/b",reason="timeout"} 1"#,
            r#"system_bus_triage_route_mismatch_total{family="a/b"} 1"#,
            r#"system_bus_triage_duration_seconds_count{mode="shadow"} 3"#,
        ] {
            assert_line(&text, line);
        }
    }

    #[test]
    fn a_dispatch_has_one_end_and_only_what_was_trimmed_is_lost() {
        let failed = |is_final: bool| {
            let fact = Fact::new("queue-drainer", "queue.dispatch.failed").entry(&"a/b:p1", EntryId::MIN).failed("no");
            fact.with("handlerType", "http").with("eventName", "a/b").with("final", is_final)
        };
        let dead =
            Fact::new("queue", "queue.dead").entry(&"a/b:p1", EntryId::MIN).failed("no").with("reason", "rejected");
        let sink = |name: &str| Fact::new("journal", "telemetry.sink.failed").failed("no").with("sink", name);
        let text = told(vec![failed(false), failed(true), dead, sink("otlp"), sink("jsonl").with("trimmed", true)]);
        for line in [
            r#"system_bus_queue_dispatch_total{family="a/b",handler_type="http",outcome="failed"} 1"#,
            r#"system_bus_queue_dispatch_total{family="a/b",handler_type="http",outcome="dead_lettered"} 1"#,
            r#"system_bus_queue_dead_letters_total{family="a/b",reason="rejected"} 1"#,
            r#"system_bus_telemetry_trimmed_unread_total{projection="jsonl"} 1"#,
        ] {
            assert_line(&text, line);
        }
        assert!(!text.contains(r#"handler_type="_any""#) && !text.contains(r#"projection="otlp""#), "{text}");
    }

    #[test]
    fn the_observer_is_told_as_its_records_say() {
        let pass = |action: &'static str| {
            Fact::new("queue-observe", action).with("mode", "enforce").with("trigger", "cron").with("latencyMs", 7)
        };
        let applied = Fact::new("queue-control", "queue.control.applied")
            .with("sourceType", "observer")
            .with("action", json!({ "kind": "pause_family", "family": "a/b" }));
        let text = told(vec![
            pass("queue.observe.started"),
            pass("queue.observe.completed")
                .with("suggestedActionKinds", json!(["escalate", "pause_family"]))
                .with("finalActions", json!([{ "kind": "pause_family" }, { "kind": "pause_family" }])),
            pass("queue.observe.completed").with("provider", "shortcut"),
            applied,
        ]);
        for line in [
            r#"system_bus_observer_runs_total{mode="enforce",trigger="cron",outcome="completed"} 1"#,
            r#"system_bus_observer_runs_total{mode="enforce",trigger="cron",outcome="short_circuit"} 1"#,
            r#"system_bus_observer_actions_total{kind="escalate",disposition="suggested"} 1"#,
            r#"system_bus_observer_actions_total{kind="pause_family",disposition="final"} 2"#,
            r#"system_bus_observer_actions_total{kind="pause_family",disposition="applied"} 1"#,
            r#"system_bus_observer_duration_seconds_count{trigger="cron"} 2"#,
            r#"system_bus_queue_control_total{action="pause",source="observer",outcome="applied"} 1"#,
        ] {
            assert_line(&text, line);
        }
    }

    #[test]
    fn runs_and_steps_of_functions_are_told_with_their_durations() {
        let function = |action: &'static str| Fact::new("functions", action).with("function", "shop-charge");
        let text = told(vec![
            function("function.step.completed").with("op", "StepRun").with("durationMs", 30.0),
            Fact::new("functions", "function.step.completed").with("op", "sleep"),
            function("function.step.errored").warn(),
            function("function.run.completed").with("startedAtMs", 98_500),
        ]);
        for line in [
            r#"system_bus_function_steps_total{function="shop-charge",op="run",outcome="completed"} 1"#,
            r#"system_bus_function_steps_total{function="_unknown",op="sleep",outcome="completed"} 1"#,
            r#"system_bus_function_retries_total{function="shop-charge"} 1"#,
            r#"system_bus_function_runs_total{function="shop-charge",status="completed"} 1"#,
            r#"system_bus_function_run_duration_seconds_bucket{le="1.0",function="shop-charge"} 0"#,
            r#"system_bus_function_run_duration_seconds_bucket{le="2.5",function="shop-charge"} 1"#,
            r#"system_bus_function_step_duration_seconds_count{function="shop-charge"} 1"#,
            r#"system_bus_telemetry_events_total{level="warn"} 1"#,
        ] {
            assert_line(&text, line);
        }
    }
}
