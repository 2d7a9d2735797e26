//! A model's answer: bare JSON, normalised, checked to the last key, and then against the snapshot. Pure.
//!
//! Whatever the bytes are, they end in exactly one of: accepted, `invalid_json`, `schema_error`, `unsafe_action`.

use serde_json::{Map, Value};

use super::actions::{Action, LEAST_TTL_MS, MOST_TTL_MS, Severity};
use super::findings::{Findings, Pressure};
use super::snapshot::{Downstream, OTHER, Snapshot};
use crate::model::answer::json_of;

/// Actions of one answer.
pub const MOST_ACTIONS: usize = 8;
/// Characters of a summary or a message.
const MOST_TEXT: usize = 500;
/// Characters of a reason.
const MOST_REASON: usize = 280;
/// Characters of a family.
const MOST_FAMILY: usize = 160;

/// Why an answer is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No JSON, or prose around it.
    #[error("the answer is not bare JSON")]
    InvalidJson,
    /// Not the agreed shape; the text names the first fault.
    #[error("{0}")]
    Schema(String),
    /// It would touch what the snapshot doesn't hold.
    #[error("{0}")]
    Unsafe(String),
}

/// An accepted answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// What the model found.
    pub findings: Findings,
    /// What it suggests.
    pub actions: Vec<Action>,
}

/// Reads an answer about `snapshot`.
pub fn read(text: &str, snapshot: &Snapshot) -> Result<Accepted, Refused> {
    let value = json_of(text).map_err(|_| Refused::InvalidJson)?;
    let accepted = shape(value).map_err(Refused::Schema)?;
    check(&accepted.actions, snapshot)?;
    Ok(accepted)
}

fn shape(value: Value) -> Result<Accepted, String> {
    let mut answer = object(value, "the answer")?;
    let findings = answer.remove("findings").ok_or("findings is missing")?;
    let actions = answer.remove("actions").ok_or("actions is missing")?;
    nothing_else(&answer, "the answer")?;
    let findings = findings_of(findings)?;
    let Value::Array(actions) = actions else { return Err("actions must be an array".into()) };
    if actions.len() > MOST_ACTIONS {
        return Err(format!("{} actions; at most {MOST_ACTIONS}", actions.len()));
    }
    let actions = actions.into_iter().map(action_of).collect::<Result<_, _>>()?;
    Ok(Accepted { findings, actions })
}

fn findings_of(value: Value) -> Result<Findings, String> {
    let mut fields = object(value, "findings")?;
    let pressure = word(&mut fields, "queuePressure")?;
    let downstream = word(&mut fields, "downstreamState")?;
    let summary = cut(&word(&mut fields, "summary")?, MOST_TEXT).ok_or("findings.summary is blank")?;
    nothing_else(&fields, "findings")?;
    let queue_pressure = match pressure.as_str() {
        "healthy" => Pressure::Healthy,
        "degraded" => Pressure::Degraded,
        "backlogged" => Pressure::Backlogged,
        _ => return Err("findings.queuePressure must be healthy, degraded or backlogged".into()),
    };
    let downstream_state = match downstream.as_str() {
        "healthy" => Downstream::Healthy,
        "degraded" => Downstream::Degraded,
        "down" => Downstream::Down,
        _ => return Err("findings.downstreamState must be healthy, degraded or down".into()),
    };
    Ok(Findings { queue_pressure, downstream_state, summary })
}

fn action_of(value: Value) -> Result<Action, String> {
    let mut fields = normalised(object(value, "an action")?);
    let kind = word(&mut fields, "kind")?;
    let action = match kind.as_str() {
        "noop" => Action::Noop { reason: reason(&mut fields)? },
        "pause_family" => Action::PauseFamily {
            family: family(&mut fields)?,
            ttl_ms: ttl(&mut fields)?,
            reason: reason(&mut fields)?,
        },
        "batch_family" => Action::BatchFamily {
            family: family(&mut fields)?,
            ttl_ms: ttl(&mut fields)?,
            reason: reason(&mut fields)?,
        },
        "resume_family" => Action::ResumeFamily { family: family(&mut fields)?, reason: reason(&mut fields)? },
        "shed_family" => Action::ShedFamily { family: family(&mut fields)?, reason: reason(&mut fields)? },
        "reprioritize_family" => {
            let text = word(&mut fields, "priority")?;
            let is_plain = matches!(text.as_str(), "P0" | "P1" | "P2" | "P3");
            let priority = text.parse().ok().filter(|_| is_plain).ok_or("priority must be P0, P1, P2 or P3")?;
            Action::ReprioritizeFamily { family: family(&mut fields)?, priority, reason: reason(&mut fields)? }
        }
        "escalate" => {
            let channel = word(&mut fields, "channel")?;
            if channel != "telegram" {
                return Err("escalate.channel must be telegram".into());
            }
            let severity = match word(&mut fields, "severity")?.as_str() {
                "info" => Severity::Info,
                "warn" => Severity::Warn,
                "error" => Severity::Error,
                _ => return Err("escalate.severity must be info, warn or error".into()),
            };
            let message = cut(&word(&mut fields, "message")?, MOST_TEXT).ok_or("escalate.message is blank")?;
            Action::Escalate { channel, severity, message }
        }
        _ => return Err(format!("there is no action {:?}", kind.chars().take(40).collect::<String>())),
    };
    nothing_else(&fields, action.kind())?;
    Ok(action)
}

/// Older prompts knew `{kind, channel, reason}` for an escalation: rebuilt with exactly its four keys.
fn normalised(fields: Map<String, Value>) -> Map<String, Value> {
    if fields.get("kind").and_then(Value::as_str) != Some("escalate") {
        return fields;
    }
    let of = |key: &str| fields.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
    let Some(message) = of("message").or_else(|| of("reason")) else { return fields };
    let severity =
        of("severity").map(str::to_lowercase).filter(|word| matches!(word.as_str(), "info" | "warn" | "error"));
    let pairs = [
        ("kind", "escalate".to_owned()),
        ("channel", of("channel").unwrap_or("telegram").to_owned()),
        ("severity", severity.unwrap_or_else(|| "warn".into())),
        ("message", message.to_owned()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect()
}

fn object(value: Value, what: &str) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(format!("{what} must be an object")),
    }
}

fn nothing_else(fields: &Map<String, Value>, what: &str) -> Result<(), String> {
    match fields.keys().next() {
        Some(key) => Err(format!("{what} has no key {:?}", key.chars().take(40).collect::<String>())),
        None => Ok(()),
    }
}

fn word(fields: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match fields.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("{key} must be a string")),
        None => Err(format!("{key} is missing")),
    }
}

fn family(fields: &mut Map<String, Value>) -> Result<String, String> {
    let family = word(fields, "family")?.trim().to_owned();
    match family.chars().count() {
        1..=MOST_FAMILY => Ok(family),
        _ => Err(format!("family must have 1 to {MOST_FAMILY} characters")),
    }
}

fn ttl(fields: &mut Map<String, Value>) -> Result<u64, String> {
    let ttl = fields.remove("ttlMs").ok_or("ttlMs is missing")?;
    let number = ttl.as_u64().or_else(|| {
        // `300000.0` is an integer to whoever writes JSON.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        ttl.as_f64()
            .filter(|number| number.fract() == 0.0 && *number >= 0.0 && *number < 1e15)
            .map(|number| number as u64)
    });
    number
        .filter(|ms| (LEAST_TTL_MS..=MOST_TTL_MS).contains(ms))
        .ok_or_else(|| format!("ttlMs must be an integer {LEAST_TTL_MS} to {MOST_TTL_MS}"))
}

fn reason(fields: &mut Map<String, Value>) -> Result<String, String> {
    cut(&word(fields, "reason")?, MOST_REASON).ok_or_else(|| "reason is blank".into())
}

/// Trimmed, cut, and trimmed again; `None` when nothing is left.
fn cut(text: &str, most: usize) -> Option<String> {
    let cut: String = text.trim().chars().take(most).collect();
    let cut = cut.trim().to_owned();
    (!cut.is_empty()).then_some(cut)
}

/// One bad action voids the whole answer.
fn check(actions: &[Action], snapshot: &Snapshot) -> Result<(), Refused> {
    let about = |bad: Vec<&str>, what: &str| match bad.is_empty() {
        true => Ok(()),
        false => Err(Refused::Unsafe(format!("{what}: {}", bad.join(", ")))),
    };
    let families = || actions.iter().filter_map(Action::family);
    let is_known = |family: &&str| *family != OTHER && (snapshot.family(family).is_some() || snapshot.is_held(family));
    about(families().filter(|family| !is_known(family)).collect(), "not in the snapshot")?;
    let is_unheld_resume = |action: &&Action| {
        matches!(action, Action::ResumeFamily { .. }) && action.family().is_some_and(|family| !snapshot.is_held(family))
    };
    let unheld = actions.iter().filter(is_unheld_resume).filter_map(Action::family).collect();
    about(unheld, "resume without an active pause")?;
    let mut twice: Vec<&str> = families().collect();
    twice.sort_unstable();
    let twice = twice.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    about(twice, "several actions on one family")
}
