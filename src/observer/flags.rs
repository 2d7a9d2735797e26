//! What the observer may look at and touch, from its settings. Pure.

use std::time::Duration;

use crate::config::{Config, ObserverMode};
use crate::model;
use crate::observer::report;
use crate::registry::{ALIASES, Registry};
use crate::streams::family::Family;
use crate::triage::flags::Ignored;

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

/// What has no effect in the observer's settings, so that a typo does not pass for a choice; with a registry also the
/// names that no entry of it has.
#[must_use]
pub fn ignored(config: &Config, registry: Option<&Registry>) -> Vec<Ignored> {
    let own = &config.observer;
    let mut ignored = Vec::new();
    let mut ignore = |variable: &'static str, item: &str, why: &str| {
        ignored.push(Ignored { variable, item: item.to_owned(), why: why.to_owned() });
    };
    for warning in config.warnings.iter().filter(|warning| warning.code == "CONFIG_INVALID_VALUE") {
        let named = config.effective.iter().map(|setting| setting.declared.key).find(|key| {
            key.starts_with("QUEUE_OBSERVER_")
                && warning.message.strip_prefix(key).is_some_and(|rest| rest.starts_with(' '))
        });
        if let Some(key) = named {
            ignore(key, "", &warning.message);
        }
    }
    let observe = observed(&own.families);
    for item in &own.auto_families {
        if auto(std::slice::from_ref(item), &defaults()).is_empty() {
            ignore("QUEUE_OBSERVER_AUTO_FAMILIES", item, "the observer may not pause this family");
        } else if auto(std::slice::from_ref(item), &observe).is_empty() {
            ignore("QUEUE_OBSERVER_AUTO_FAMILIES", item, "QUEUE_OBSERVER_FAMILIES does not contain it");
        }
    }
    for word in own.providers.iter().filter(|word| model::Provider::parse(word).is_none()) {
        ignore("QUEUE_OBSERVER_PROVIDER", word, "there is no such provider");
    }
    let seconds = interval_seconds(&own.interval);
    if !own.interval.trim().starts_with(&seconds.to_string()) {
        ignore("QUEUE_OBSERVER_INTERVAL_SECONDS", &own.interval, &format!("{seconds} is used"));
    }
    let is_hours = report::parse_quiet_hours(&own.quiet_hours).is_some();
    if !is_hours && !own.quiet_hours.trim().eq_ignore_ascii_case("off") {
        ignore("QUEUE_OBSERVER_QUIET_HOURS", &own.quiet_hours, "write hours such as 23-7, or off; 23-7 is used");
    }
    if own.time_zone.parse::<chrono_tz::Tz>().is_err() {
        ignore("SYSTEM_BUS_TZ", &own.time_zone, "there is no such time zone; UTC is used");
    }
    let Some(registry) = registry else { return ignored };
    for name in &observe {
        if !name.parse::<Family>().is_ok_and(|family| registry.lookup(&family).is_some()) {
            let why = "no event of this name is registered".to_owned();
            ignored.push(Ignored { variable: "QUEUE_OBSERVER_FAMILIES", item: name.clone(), why });
        }
    }
    ignored
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
