//! Which mode an event is triaged in. Pure: flags and a name in, a mode and its reasons out.
//!
//! Only two families may ever be shaped ([`ENFORCEABLE`]); whatever a flag says, the others reach shadow at most.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Config, TriageDedup, TriageMode};
use crate::model::{Caller, Provider};
use crate::registry::Registry;
use crate::streams::family::Family;

/// The families of which triage may change anything.
pub const ENFORCEABLE: [&str; 2] = ["discovery/noted", "github/workflow_run.completed"];
/// The families that take part unless QUEUE_TRIAGE_FAMILIES says otherwise.
pub const PILOTS: [&str; 5] = [
    "discovery/noted",
    "discovery/captured",
    "content/updated",
    "subscription/check-feeds.requested",
    "github/workflow_run.completed",
];
const SHADOW_TIMEOUT: Duration = Duration::from_secs(45);
const ENFORCE_TIMEOUT: Duration = Duration::from_secs(2);

/// An item of a flag that has no effect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Ignored {
    /// The variable.
    pub variable: &'static str,
    /// The item as it was understood.
    pub item: String,
    /// Why.
    pub why: String,
}

/// The flags in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    /// QUEUE_TRIAGE_MODE.
    pub base: TriageMode,
    /// Event names, aliases resolved.
    pub families: Vec<String>,
    /// The same, reduced to [`ENFORCEABLE`].
    pub enforce: Vec<String>,
    /// Who is asked, in order.
    pub chain: Vec<Provider>,
    /// The model's name.
    pub model: String,
    /// QUEUE_TRIAGE_TIMEOUT_MS.
    pub timeout: Option<Duration>,
    /// What a key that a model made may do.
    pub dedup: TriageDedup,
    ignored: Vec<Ignored>,
}

/// The mode of one event, and how it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// The mode.
    pub mode: TriageMode,
    /// What the flags asked for, where the family may not have it.
    pub clamped_from: Option<TriageMode>,
    /// The rule that matched, 1 to 6.
    pub rule: u8,
}

/// The word of a mode.
#[must_use]
pub const fn word(mode: TriageMode) -> &'static str {
    match mode {
        TriageMode::Off => "off",
        TriageMode::Shadow => "shadow",
        TriageMode::Enforce => "enforce",
    }
}

impl Flags {
    /// From the configuration.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let own = &config.triage;
        let mut flags = Self::new(own.mode, &own.families, &own.enforce_families);
        flags.model.clone_from(&own.model);
        flags.timeout = own.timeout;
        flags.dedup = own.dedup;
        flags.chain.clear();
        for word in &own.providers {
            match Provider::parse(word) {
                Some(provider) if !flags.chain.contains(&provider) => flags.chain.push(provider),
                Some(_) => flags.ignore("QUEUE_TRIAGE_PROVIDER", word, "it is named twice"),
                None => flags.ignore("QUEUE_TRIAGE_PROVIDER", word, "there is no such provider"),
            }
        }
        for warning in config.warnings.iter().filter(|warning| warning.code == "CONFIG_INVALID_VALUE") {
            if warning.message.starts_with("QUEUE_TRIAGE_MODE ") {
                flags.ignore("QUEUE_TRIAGE_MODE", "", &warning.message);
            }
        }
        flags
    }

    /// Mode and lists, as the settings hold them: trimmed and lower case; the rest as by default.
    #[must_use]
    pub fn new(base: TriageMode, families: &[String], enforce: &[String]) -> Self {
        let mut flags = Self {
            base,
            families: Vec::new(),
            enforce: Vec::new(),
            chain: vec![Provider::Rules, Provider::Command],
            model: "anthropic/claude-haiku-4-5".into(),
            timeout: None,
            dedup: TriageDedup::default(),
            ignored: Vec::new(),
        };
        for item in families {
            for name in alias(item) {
                push(&mut flags.families, name);
            }
        }
        if flags.families.is_empty() {
            flags.families = PILOTS.map(str::to_owned).to_vec();
        }
        for item in enforce {
            // The alias of two families stands for the one that may be enforced.
            let names = alias(item).into_iter().filter(|name| ENFORCEABLE.contains(name));
            let names: Vec<&str> = names.collect();
            if names.is_empty() {
                flags.ignore("QUEUE_TRIAGE_ENFORCE_FAMILIES", item, "triage may not change this family");
            }
            names.into_iter().for_each(|name| push(&mut flags.enforce, name));
        }
        flags
    }

    fn ignore(&mut self, variable: &'static str, item: &str, why: &str) {
        self.ignored.push(Ignored { variable, item: item.to_owned(), why: why.to_owned() });
    }

    /// The mode of `name`; `is_registered` says whether the registry knows it.
    #[must_use]
    pub fn resolve(&self, name: &str, is_registered: bool) -> Resolved {
        let name = name.trim().to_lowercase();
        let resolved = |rule, mode| Resolved { mode, clamped_from: None, rule };
        if self.base == TriageMode::Off || !is_registered {
            return resolved(1, TriageMode::Off);
        }
        if !self.families.contains(&name) {
            return resolved(2, TriageMode::Off);
        }
        if self.enforce.contains(&name) {
            return resolved(3, TriageMode::Enforce);
        }
        match (self.base, ENFORCEABLE.contains(&name.as_str())) {
            (TriageMode::Enforce, true) => resolved(4, TriageMode::Enforce),
            (TriageMode::Enforce, false) => {
                Resolved { mode: TriageMode::Shadow, clamped_from: Some(TriageMode::Enforce), rule: 5 }
            }
            _ => resolved(6, self.base),
        }
    }

    /// Every rule with whether it matched, for `explain`.
    #[must_use]
    pub fn steps(&self, name: &str, is_registered: bool) -> Vec<Value> {
        let name = name.trim().to_lowercase();
        let resolved = self.resolve(&name, is_registered);
        let holds = |holds: bool, yes: &str, no: &str| if holds { yes.to_owned() } else { no.to_owned() };
        let is_eligible = ENFORCEABLE.contains(&name.as_str());
        let is_enforce = self.base == TriageMode::Enforce;
        let base = format!("QUEUE_TRIAGE_MODE is {}", word(self.base));
        let whys = [
            holds(is_registered, &base, "the registry has no entry for it"),
            holds(
                self.families.contains(&name),
                "it is in QUEUE_TRIAGE_FAMILIES",
                "it is not in QUEUE_TRIAGE_FAMILIES",
            ),
            holds(
                self.enforce.contains(&name),
                "it is in QUEUE_TRIAGE_ENFORCE_FAMILIES",
                "it is not in QUEUE_TRIAGE_ENFORCE_FAMILIES",
            ),
            format!("{base}; triage {} change it", if is_eligible { "may" } else { "may not" }),
            holds(is_enforce, "clamped: triage may not change it", &base),
            base.clone(),
        ];
        (1_u8..)
            .zip(whys)
            .take(usize::from(resolved.rule))
            .map(|(rule, why)| json!({ "rule": rule, "matched": rule == resolved.rule, "why": why }))
            .collect()
    }

    /// How long a decision may take.
    #[must_use]
    pub fn timeout(&self, mode: TriageMode) -> Duration {
        let default = if mode == TriageMode::Enforce { ENFORCE_TIMEOUT } else { SHADOW_TIMEOUT };
        self.timeout.unwrap_or(default)
    }

    /// Items without effect; with a registry also the names that no entry of it has.
    #[must_use]
    pub fn ignored(&self, registry: Option<&Registry>) -> Vec<Ignored> {
        let mut ignored = self.ignored.clone();
        let Some(registry) = registry else { return ignored };
        for name in &self.families {
            let is_known = name.parse::<Family>().is_ok_and(|family| registry.lookup(&family).is_some());
            if !is_known {
                let why = "no event of this name is registered".to_owned();
                ignored.push(Ignored { variable: "QUEUE_TRIAGE_FAMILIES", item: name.clone(), why });
            }
        }
        ignored
    }
}

/// In whose name the model is asked.
pub(super) const fn caller(mode: TriageMode) -> Caller {
    match mode {
        TriageMode::Enforce => Caller::TriageEnforce,
        TriageMode::Off | TriageMode::Shadow => Caller::TriageShadow,
    }
}

fn alias(item: &str) -> Vec<&str> {
    match item {
        "discovery" => vec!["discovery/noted", "discovery/captured"],
        "content" => vec!["content/updated"],
        "subscriptions" => vec!["subscription/check-feeds.requested"],
        "github" => vec!["github/workflow_run.completed"],
        other => vec![other],
    }
}

fn push(into: &mut Vec<String>, name: &str) {
    if !into.iter().any(|known| known == name) {
        into.push(name.to_owned());
    }
}
