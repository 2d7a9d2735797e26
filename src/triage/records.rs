//! The journal records of a decision. Answers and payloads are never in them.

use serde_json::Value;

use super::Matter;
use super::decision::{Decision, Fallback};
use super::flags::{Flags, word};
use crate::streams::records::Fact;
use crate::streams::trace::TraceContext;

const COMPONENT: &str = "queue-triage";

/// What one decision is in the journal, in order: started, then completed, or failed and fallback.
pub(super) fn facts(matter: &Matter, decision: &Decision, flags: &Flags) -> Vec<Fact> {
    let about = |action: &'static str| {
        let model = decision.model.clone().unwrap_or_else(|| flags.model.clone());
        let fact = Fact::new(COMPONENT, action)
            .event(matter.event_id.clone())
            .with("eventId", matter.event_id.clone())
            .with("correlationId", matter.correlation_id())
            .with("family", decision.family.clone())
            .with("mode", word(decision.mode))
            .with("model", model)
            .with("queueEventName", matter.name.as_str());
        match matter.trace.as_ref().and_then(TraceContext::of_object) {
            Some(caused_by) => fact.with("causedBy", caused_by.to_string()),
            None => fact,
        }
    };
    let chain: Vec<&str> = flags.chain.iter().map(|provider| provider.as_str()).collect();
    let timeout = u64::try_from(flags.timeout(decision.mode).as_millis()).unwrap_or(u64::MAX);
    let started = about("queue.triage.started").with("provider", chain).with("timeoutMs", timeout);
    let latency = decision.latency_ms;
    let key = |key: &Option<String>| Value::from(key.clone());
    let (last, suggested, baseline) = (&decision.last, &decision.suggested, &decision.baseline);
    let Some(why) = decision.fallback else {
        let completed = about("queue.triage.completed")
            .with("duration_ms", latency)
            .with("suggestedPriority", suggested.priority.label())
            .with("finalPriority", last.priority.label())
            .with("suggestedDedupKey", key(&suggested.dedup_key))
            .with("finalDedupKey", key(&last.dedup_key))
            .with("routeCheck", last.route_check.as_str())
            .with("applied", decision.applied)
            .with("fallbackReason", Value::Null)
            .with("latencyMs", latency)
            .with("baselinePriority", baseline.priority.label())
            .with("baselineDedupKey", key(&baseline.dedup_key))
            .with("provider", decision.provider.map(|provider| provider.as_str()))
            .with("rule", key(&decision.rule));
        return vec![started, completed];
    };
    let detail = decision.detail.clone().unwrap_or_else(|| why.as_str().to_owned());
    let failed = about("queue.triage.failed")
        .failed(detail)
        .with("latencyMs", latency)
        .with("detail", key(&decision.detail))
        .with("outputHash", key(&decision.output_hash));
    let fallback = about("queue.triage.fallback")
        .with("fallbackReason", why.as_str())
        .with("finalPriority", last.priority.label())
        .with("finalDedupKey", key(&last.dedup_key))
        .with("routeCheck", last.route_check.as_str())
        .with("latencyMs", latency)
        .with("provider", decision.provider.map(|provider| provider.as_str()));
    match why {
        // Asked with triage off: nothing failed.
        Fallback::Disabled => vec![started, fallback],
        _ => vec![started, failed, fallback.failed(why.as_str()).warn()],
    }
}

/// Shadow decisions that were not made because too many waited.
pub(super) fn overflow(count: u64) -> Fact {
    Fact::new(COMPONENT, "queue.triage.skipped").warn().with("reason", "shadow_overflow").with("count", count)
}

/// A key that a model made matched, but the data differed: both events are kept.
pub(super) fn declined(family: &str, key: &str, event_id: &str, first_event_id: &str) -> Fact {
    Fact::new(COMPONENT, "queue.dedup.declined")
        .event(event_id)
        .with("family", family)
        .with("key", key)
        .with("firstEventId", first_event_id)
}
