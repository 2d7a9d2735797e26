//! What facts tell of the spans of runs and steps: `traceId`, `spanId`, `parentSpanId`, `isSampled`, `startedAtMs`.
//! Exporting them is `telemetry/sinks/traces.rs`.

use std::time::Duration;

use super::super::store::Run;
use super::ops::Op;
use crate::streams::records::Fact;
use crate::streams::trace::TraceContext;

/// The end of a run.
pub fn run_fact(fact: Fact, run: &Run) -> Fact {
    let fact = told(fact, &run.span, run.parent_span.clone());
    fact.with("queuedMs", run.queued_ms).with("startedAtMs", run.started_ms)
}

/// The end of a step of the run whose span is `run`. `took` is how long its call was, where the SDK does not say more.
pub fn step_fact(fact: Fact, run: &TraceContext, op: &Op, took: Option<Duration>) -> Fact {
    let fact =
        told(fact, &run.child(&["step", &op.id]), Some(format!("{:016x}", run.span_id))).with("stepId", op.id.as_str());
    let fact = fact.with("op", op.op.as_str());
    match (op.times(), took) {
        (Some((began_ns, ns)), _) => {
            let fact = fact.with("startedAtMs", began_ns / 1_000_000);
            fact.with("durationMs", Duration::from_nanos(ns).as_secs_f64() * 1000.0)
        }
        (None, Some(took)) => fact.with("durationMs", took.as_secs_f64() * 1000.0),
        (None, None) => fact,
    }
}

fn told(fact: Fact, span: &TraceContext, parent: Option<String>) -> Fact {
    let fact = fact
        .with("traceId", format!("{:032x}", span.trace_id))
        .with("spanId", format!("{:016x}", span.span_id))
        .with("isSampled", span.is_sampled);
    match parent {
        Some(parent) => fact.with("parentSpanId", parent),
        None => fact,
    }
}
