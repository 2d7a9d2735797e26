//! What the observer may look at and touch, from its settings. Pure.

use std::time::Duration;

use crate::config::{Config, ObserverMode};
use crate::model;
use crate::registry::ALIASES;

/// The families that automatic pauses are for at all; nothing in a configuration can widen it.
pub const AUTO_ALLOWLIST: [&str; 1] = ["content/updated"];

/// The shortest cadence.
pub const LEAST_INTERVAL_SECONDS: u64 = 60;

/// Who asked for a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// The cadence: the only one that may apply anything.
    Cron,
    /// The event `queue/observer.requested`.
    Manual,
    /// `joelclaw queue observe`.
    Cli,
}

impl Trigger {
    /// The word in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cron => "cron",
            Self::Manual => "manual",
            Self::Cli => "cli",
        }
    }
}

/// Who is asked, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// The deterministic policy.
    Rules,
    /// A model.
    Model(model::Provider),
    /// Nobody: every question ends in `model_error`.
    None,
}

/// The least and the most that automatic control may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// An applied pause is cut to this.
    pub max_ttl_ms: u64,
    /// After an operator's resume of a family the observer leaves it alone for so long.
    pub manual_quiet_ms: u64,
    /// After its own resume it doesn't pause again for so long.
    pub resume_dwell_ms: u64,
    /// A pause of its own lasts at least so long.
    pub pause_dwell_ms: u64,
    /// Pauses of one family in a rolling hour.
    pub pauses_per_family: u64,
    /// Pauses in all in a rolling hour.
    pub pauses_in_all: u64,
    /// Held in all per family, in any [`HOLD_WINDOW_MS`].
    pub hold_ms: u64,
}

/// The window of [`Limits::hold_ms`].
pub const HOLD_WINDOW_MS: u64 = 7_200_000;
/// The window of the budget.
pub const BUDGET_WINDOW_MS: u64 = 3_600_000;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_ttl_ms: 900_000,
            manual_quiet_ms: 900_000,
            resume_dwell_ms: 120_000,
            pause_dwell_ms: 60_000,
            pauses_per_family: 2,
            pauses_in_all: 6,
            hold_ms: 3_600_000,
        }
    }
}

/// Everything a pass needs to know beside its snapshot.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What may happen.
    pub mode: ObserverMode,
    /// What the snapshot contains, sorted.
    pub observe: Vec<String>,
    /// What may be paused and resumed, sorted.
    pub auto: Vec<String>,
    /// The cadence.
    pub interval: Duration,
    /// Who is asked.
    pub providers: Vec<Provider>,
    /// The model asked for.
    pub model: String,
    /// One deadline for all that are asked.
    pub timeout: Duration,
    /// Bounds of what is applied.
    pub limits: Limits,
}

impl Policy {
    /// The policy of a configuration.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let own = &config.observer;
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let observe = observed(&own.families);
        Self {
            mode: own.mode,
            auto: auto(&own.auto_families, &observe),
            observe,
            interval: Duration::from_secs(interval_seconds(&own.interval)),
            providers: providers(&own.providers),
            model: own.model.clone(),
            timeout: own.timeout,
            limits: Limits { max_ttl_ms: ms(own.max_ttl), manual_quiet_ms: ms(own.manual_quiet), ..Limits::default() },
        }
    }
}

/// The five families that are observed unless a configuration names others.
fn defaults() -> Vec<String> {
    ALIASES.iter().flat_map(|(_, names)| names.iter().map(|name| (*name).to_owned())).collect()
}

/// `QUEUE_OBSERVER_FAMILIES`: aliases expanded, sorted, without repeats; empty is the default.
#[must_use]
pub fn observed(items: &[String]) -> Vec<String> {
    let expand = |item: &String| match ALIASES.iter().find(|(alias, _)| alias == item) {
        Some((_, names)) => names.iter().map(|name| (*name).to_owned()).collect(),
        None => vec![item.clone()],
    };
    let mut families: Vec<String> = items.iter().flat_map(expand).collect();
    if families.is_empty() {
        families = defaults();
    }
    families.sort_unstable();
    families.dedup();
    families
}

/// `QUEUE_OBSERVER_AUTO_FAMILIES`: only `content` is an alias; reduced to the allowlist and to what is observed.
#[must_use]
pub fn auto(items: &[String], observed: &[String]) -> Vec<String> {
    let expand = |item: &String| if item == "content" { "content/updated".to_owned() } else { item.clone() };
    let mut families: Vec<String> = items.iter().map(expand).collect();
    families.retain(|family| AUTO_ALLOWLIST.contains(&family.as_str()) && observed.contains(family));
    families.sort_unstable();
    families.dedup();
    families
}

/// `QUEUE_OBSERVER_INTERVAL_SECONDS`: a leading integer counts; what is none, or below the floor, is 60.
#[must_use]
pub fn interval_seconds(text: &str) -> u64 {
    let digits: String = text.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u64>().unwrap_or(0).clamp(LEAST_INTERVAL_SECONDS, 86_400)
}

/// The chain of providers; one that is not known is left out, an empty chain asks nobody.
#[must_use]
pub fn providers(words: &[String]) -> Vec<Provider> {
    let chain: Vec<Provider> = words
        .iter()
        .filter_map(|word| match model::Provider::parse(word)? {
            model::Provider::Rules => Some(Provider::Rules),
            model::Provider::None => None,
            other => Some(Provider::Model(other)),
        })
        .collect();
    if chain.is_empty() { vec![Provider::None] } else { chain }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split(',').map(|item| item.trim().to_lowercase()).filter(|item| !item.is_empty()).collect()
    }

    #[test]
    fn families_are_expanded_clamped_and_intersected() {
        assert_eq!(observed(&[]).len(), 5);
        assert_eq!(observed(&list(" , ,")).len(), 5);
        let observe = observed(&list("discovery,content,github"));
        assert_eq!(
            observe,
            ["content/updated", "discovery/captured", "discovery/noted", "github/workflow_run.completed"]
        );
        assert_eq!(auto(&list("content,github"), &observe), ["content/updated"]);
        assert_eq!(auto(&list("content"), &observed(&list("github"))), Vec::<String>::new());
        assert_eq!(auto(&list("content/updated,content"), &observe), ["content/updated"]);
        assert_eq!(auto(&list("discovery/noted,workload/requested"), &observed(&[])), Vec::<String>::new());
    }

    #[test]
    fn the_cadence_has_a_floor_and_reads_a_leading_number() {
        for (text, seconds) in
            [("5", 60), ("60", 60), ("90s", 90), ("120", 120), ("x", 60), ("", 60), ("-5", 60), ("0", 60)]
        {
            assert_eq!(interval_seconds(text), seconds, "{text}");
        }
    }

    #[test]
    fn a_chain_keeps_its_order() {
        let model = |name: &str| Provider::Model(model::Provider::parse(name).unwrap());
        assert_eq!(providers(&list("rules,command")), [Provider::Rules, model("command")]);
        assert_eq!(providers(&list("openai,rules")), [model("openai"), Provider::Rules]);
        assert_eq!(providers(&list("none")), [Provider::None]);
        assert_eq!(providers(&[]), [Provider::None]);
    }
}
