//! What was suggested for one event, what is done, and how an answer becomes a suggestion. Pure.
//!
//! # Invariants
//! 1. A [`Suggestion`] has no field that could name a handler.
//! 2. Any text of a model ends as a suggestion or as a [`Fallback`]; a fallback is the static values.
//! 3. A suggestion without a key is no opinion: it never removes a key.

use serde_json::{Map, Value, json};

use super::flags::word;
use crate::config::{TriageDedup, TriageMode};
use crate::model::{Provider, answer};
use crate::streams::priority::Priority;

/// Longest suggested key, characters.
const MAX_KEY_CHARS: usize = 240;
/// Longest reasoning, characters.
const MAX_REASONING_CHARS: usize = 280;
/// Keys by which an answer would choose a handler; named in this order.
const FORBIDDEN: [&str; 6] = ["routeTarget", "handlerTarget", "handler", "target", "routeOverride", "eventName"];

/// What a model says of the handler that the registry names. Only ever counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteCheck {
    /// It fits.
    #[default]
    Confirm,
    /// It looks wrong.
    Mismatch,
}

impl RouteCheck {
    /// The word in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Confirm => "confirm",
            Self::Mismatch => "mismatch",
        }
    }
}

/// All that triage can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// The lane.
    pub priority: Priority,
    /// The key; `None` is no opinion.
    pub dedup_key: Option<String>,
    /// Whether the route fits.
    pub route_check: RouteCheck,
    /// One sentence.
    pub reasoning: Option<String>,
}

impl Suggestion {
    /// What sender and registry say.
    #[must_use]
    pub const fn baseline(priority: Priority, dedup_key: Option<String>) -> Self {
        Self { priority, dedup_key, route_check: RouteCheck::Confirm, reasoning: None }
    }

    fn json(&self) -> Value {
        let mut json = Map::new();
        json.insert("priority".into(), self.priority.label().into());
        json.insert("dedupKey".into(), self.dedup_key.clone().into());
        json.insert("routeCheck".into(), self.route_check.as_str().into());
        if let Some(reasoning) = &self.reasoning {
            json.insert("reasoning".into(), reasoning.clone().into());
        }
        json.into()
    }
}

/// Why the static values are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Triage is off for this event.
    Disabled,
    /// The deadline passed.
    Timeout,
    /// No provider answered.
    ModelError,
    /// The answer is not JSON.
    InvalidJson,
    /// The answer tries to choose a handler.
    UnsafeOverride,
    /// The answer does not keep to the schema.
    SchemaError,
}

impl Fallback {
    /// The word in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Timeout => "timeout",
            Self::ModelError => "model_error",
            Self::InvalidJson => "invalid_json",
            Self::UnsafeOverride => "unsafe_override",
            Self::SchemaError => "schema_error",
        }
    }
}

/// An answer that is not used, with a short reason that quotes nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The class.
    pub fallback: Fallback,
    /// The first thing that is wrong.
    pub detail: String,
}

/// The suggestion in a model's answer.
pub fn parse(text: &str) -> Result<Suggestion, Refused> {
    let refused = |fallback, detail: &str| Refused { fallback, detail: detail.to_owned() };
    let value = answer::json_of(text).map_err(|error| refused(Fallback::InvalidJson, &error.to_string()))?;
    let schema = |detail: &str| refused(Fallback::SchemaError, detail);
    let Value::Object(fields) = value else { return Err(schema("the answer is not an object")) };
    let forbidden: Vec<&str> = FORBIDDEN.into_iter().filter(|key| fields.contains_key(*key)).collect();
    if !forbidden.is_empty() {
        return Err(refused(Fallback::UnsafeOverride, &forbidden.join(", ")));
    }
    if fields.keys().any(|key| !["priority", "dedupKey", "routeCheck", "reasoning"].contains(&key.as_str())) {
        return Err(schema("the answer has a key that is not in the schema"));
    }
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let priority = match text("priority") {
        Some("P0") => Priority::P0,
        Some("P1") => Priority::P1,
        Some("P2") => Priority::P2,
        Some("P3") => Priority::P3,
        _ => return Err(schema("priority must be P0, P1, P2 or P3")),
    };
    let dedup_key = match fields.get("dedupKey") {
        None | Some(Value::Null) => None,
        Some(Value::String(key)) => {
            Some(bounded(key, MAX_KEY_CHARS).ok_or_else(|| schema("dedupKey must be 1 to 240 characters"))?)
        }
        Some(_) => return Err(schema("dedupKey must be a string or null")),
    };
    let route_check = match text("routeCheck") {
        Some("confirm") => RouteCheck::Confirm,
        Some("mismatch") => RouteCheck::Mismatch,
        _ => return Err(schema("routeCheck must be confirm or mismatch")),
    };
    let reasoning = text("reasoning").and_then(|text| bounded(text, MAX_REASONING_CHARS));
    let reasoning = reasoning.ok_or_else(|| schema("reasoning must be 1 to 280 characters"))?;
    Ok(Suggestion { priority, dedup_key, route_check, reasoning: Some(reasoning) })
}

/// Trimmed; `None` when blank or longer than `most`.
pub(super) fn bounded(text: &str, most: usize) -> Option<String> {
    let text = text.trim();
    (1..=most).contains(&text.chars().count()).then(|| text.to_owned())
}

/// The decision about one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The mode it was made in.
    pub mode: TriageMode,
    /// The event name as it was matched.
    pub family: String,
    /// Who answered; `None` when nobody did.
    pub provider: Option<Provider>,
    /// What it used; absent for rules.
    pub model: Option<String>,
    /// The static values.
    pub baseline: Suggestion,
    /// What was answered; the baseline on a fallback.
    pub suggested: Suggestion,
    /// What holds.
    pub last: Suggestion,
    /// It changed something.
    pub applied: bool,
    /// Why the static values hold.
    pub fallback: Option<Fallback>,
    /// How long it took, ms.
    pub latency_ms: u64,
    /// The rule that decided.
    pub rule: Option<String>,
    /// About a fallback, or an answer in spite of an error.
    pub detail: Option<String>,
    /// SHA-256 of a refused answer: to tell answers apart without keeping them.
    pub output_hash: Option<String>,
}

impl Decision {
    /// What holds in `mode` when `suggested` was answered.
    #[must_use]
    pub fn suggested(
        mode: TriageMode,
        family: String,
        baseline: Suggestion,
        suggested: Suggestion,
        provider: Provider,
        dedup: TriageDedup,
    ) -> Self {
        let is_enforced = mode == TriageMode::Enforce;
        // A rule is the operator's own word; a model's key may be for the record only.
        let may_key = is_enforced && (provider == Provider::Rules || dedup != TriageDedup::Off);
        let offered = if may_key { suggested.dedup_key.clone() } else { None };
        let last = Suggestion {
            priority: if is_enforced { suggested.priority } else { baseline.priority },
            dedup_key: baseline.dedup_key.clone().or(offered),
            route_check: suggested.route_check,
            reasoning: suggested.reasoning.clone(),
        };
        let differs = last.priority != baseline.priority || last.dedup_key != baseline.dedup_key;
        Self {
            applied: is_enforced && differs,
            provider: Some(provider),
            model: None,
            fallback: None,
            latency_ms: 0,
            rule: None,
            detail: None,
            output_hash: None,
            mode,
            family,
            baseline,
            suggested,
            last,
        }
    }

    /// The static values hold.
    #[must_use]
    pub fn fallback(
        mode: TriageMode,
        family: String,
        baseline: Suggestion,
        why: Fallback,
        detail: Option<String>,
    ) -> Self {
        Self {
            provider: None,
            model: None,
            suggested: baseline.clone(),
            last: baseline.clone(),
            applied: false,
            fallback: Some(why),
            latency_ms: 0,
            rule: None,
            output_hash: None,
            mode,
            family,
            baseline,
            detail,
        }
    }

    /// The key that holds is a model's.
    #[must_use]
    pub fn is_models_key(&self) -> bool {
        self.last.dedup_key.is_some()
            && self.last.dedup_key != self.baseline.dedup_key
            && self.provider != Some(Provider::Rules)
    }

    /// The record that is stored with the event.
    #[must_use]
    pub fn record(&self) -> Map<String, Value> {
        let mut record = Map::new();
        let mut put = |key: &str, value: Option<Value>| value.map(|value| record.insert(key.to_owned(), value));
        put("mode", Some(word(self.mode).into()));
        put("model", self.model.clone().map(Value::from));
        put("provider", self.provider.map(|provider| provider.as_str().into()));
        put("family", Some(self.family.clone().into()));
        put("suggested", Some(self.suggested.json()));
        put("final", Some(self.last.json()));
        put("applied", Some(self.applied.into()));
        put("fallbackReason", self.fallback.map(|why| why.as_str().into()));
        put("latencyMs", Some(self.latency_ms.into()));
        put("rule", self.rule.clone().map(Value::from));
        put("detail", self.detail.clone().map(Value::from));
        record
    }

    /// The summary in the envelope's `meta`.
    #[must_use]
    pub fn summary(&self) -> [(&'static str, Value); 6] {
        let is_answered = self.fallback.is_none();
        let answered = |value: &str| if is_answered { json!(value) } else { Value::Null };
        [
            ("triageMode", word(self.mode).into()),
            ("triageApplied", self.applied.into()),
            ("triageFallbackReason", self.fallback.map(Fallback::as_str).into()),
            ("triageSuggestedPriority", answered(self.suggested.priority.label())),
            ("triageFinalPriority", self.last.priority.label().into()),
            ("triageRouteCheck", answered(self.last.route_check.as_str())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_text_ends_as_a_suggestion_or_one_of_three_reasons(text in "\\PC*") {
            if let Err(refused) = parse(&text) {
                let reasons = [Fallback::InvalidJson, Fallback::UnsafeOverride, Fallback::SchemaError];
                proptest::prop_assert!(reasons.contains(&refused.fallback));
            }
        }

        #[test]
        fn any_object_of_the_right_keys_keeps_its_bounds(
            priority in "P[0-9]|p1", key in proptest::option::of("\\PC{0,300}"), reasoning in "\\PC{0,300}",
        ) {
            let text = json!({ "priority": priority, "dedupKey": key, "routeCheck": "confirm", "reasoning": reasoning });
            if let Ok(suggestion) = parse(&text.to_string()) {
                proptest::prop_assert!(suggestion.dedup_key.is_none_or(|key| (1..=240).contains(&key.chars().count())));
                proptest::prop_assert!(suggestion.reasoning.is_some_and(|text| (1..=280).contains(&text.chars().count())));
            }
        }
    }
}
