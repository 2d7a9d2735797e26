//! `joelclaw queue config`: what the running service goes by, and where this shell would do otherwise.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::render::Human;
use super::{bus, redis_of, registry};
use crate::config::{Config, Sources};
use crate::observer::flags::{self as observer_flags, Policy};
use crate::registry::ALIASES;
use crate::service::{running_service, settings_of};
use crate::streams::family::Family;
use crate::triage::flags::{Flags, word};

/// What the running service goes by: triage, observer, drainer; and where this shell would do otherwise
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  joelclaw queue config\n\nEvery setting with what chose it: joelclaw config")]
pub struct Args {}

/// Runs the command.
pub async fn run(_: &Args, context: &Context) -> Result<Report, Failure> {
    let ours = settings_of(&context.config);
    let service = running_service(&context.config.system.data_dir);
    let theirs = service.as_ref().map(|note| note.settings.clone()).filter(|settings| !settings.is_empty());
    let config = match &theirs {
        Some(settings) => live(settings)?,
        None => context.config.clone(),
    };
    let table = registry(context)?.current();
    let (flags, policy) = (Flags::from_config(&config), Policy::from_config(&config));
    let mut names: Vec<&str> = ALIASES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    names.extend(flags.families.iter().map(String::as_str).filter(|name| !names.contains(name)).collect::<Vec<_>>());
    let effective: Vec<Value> = names
        .iter()
        .map(|name| {
            let is_registered = name.parse::<Family>().is_ok_and(|family| table.lookup(&family).is_some());
            let resolved = flags.resolve(name, is_registered);
            json!({ "family": name, "mode": word(resolved.mode), "clampedFrom": resolved.clamped_from.map(word) })
        })
        .collect();
    // Told from this shell's reading of the env file: a value that was refused is gone from the service's.
    let mut ignored = Flags::from_config(&context.config).ignored(Some(&table));
    ignored.extend(observer_flags::ignored(&context.config, Some(&table)));
    let differs: Vec<Value> = theirs.iter().flat_map(|theirs| differences(&ours, theirs)).collect();
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let drainer = &config.drainer;
    let providers: Vec<&str> = flags.chain.iter().map(|provider| provider.as_str()).collect();
    let result = json!({
        "ok": true,
        "service": service.as_ref().map(|note| json!({ "pid": note.pid, "instanceId": note.instance_id })),
        "triage": {
            "mode": word(flags.base), "families": flags.families, "enforceFamilies": flags.enforce,
            "provider": providers, "model": flags.model, "dedup": config.triage.dedup,
            "timeoutMs": { "shadow": ms(flags.timeout(crate::config::TriageMode::Shadow)),
                "enforce": ms(flags.timeout(crate::config::TriageMode::Enforce)) },
            "effective": effective,
        },
        "observer": {
            "mode": policy.mode, "families": policy.observe, "autoFamilies": policy.auto,
            "intervalSeconds": config.observer.interval, "effectiveIntervalSeconds": policy.interval.as_secs(),
            "provider": config.observer.providers, "model": policy.model, "timeoutMs": ms(policy.timeout),
            "maxTtlMs": policy.limits.max_ttl_ms, "manualQuietMs": policy.limits.manual_quiet_ms,
            "quietHours": config.observer.quiet_hours, "timeZone": config.observer.time_zone,
        },
        "pilots": config.pilots,
        "drainer": {
            "enabled": drainer.is_enabled, "concurrency": drainer.concurrency, "intervalMs": ms(drainer.interval),
            "leaseMs": ms(drainer.lease), "maxAttempts": drainer.max_attempts, "agingMs": ms(drainer.aging_promotion),
            "breaker": drainer.is_breaker_enabled,
        },
        "redis": redis_of(&bus(context)?, context).await,
        "ignored": ignored,
        "differs": differs,
    });
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows = effective.iter().map(|row| vec![text(&row["family"]), text(&row["mode"]), text(&row["clampedFrom"])]);
    let of = match &service {
        Some(note) => format!("What the service (pid {}) goes by.", note.pid),
        None => "No service of this machine runs: what one would go by.".to_owned(),
    };
    let mut human = Human::new()
        .text(of)
        .pairs([
            ("triage", format!("{}, asks {}", word(flags.base), providers.join(", "))),
            ("observer", format!("{}, every {} s", policy.mode.as_str(), policy.interval.as_secs())),
            ("may pause", if policy.auto.is_empty() { "nothing".to_owned() } else { policy.auto.join(", ") }),
        ])
        .title("Triage by family")
        .table(&["FAMILY", "MODE", "ASKED FOR"], rows);
    if !ignored.is_empty() {
        let rows = ignored.iter().map(|one| vec![one.variable.to_owned(), one.item.clone(), one.why.clone()]);
        human = human.title("Without effect").table(&["VARIABLE", "ITEM", "WHY"], rows);
    }
    if !differs.is_empty() {
        let rows = differs.iter().map(|row| vec![text(&row["key"]), text(&row["cli"]), text(&row["service"])]);
        human = human.title("This shell would do otherwise").table(&["SETTING", "HERE", "SERVICE"], rows);
    }
    Ok(Report::new(result, human)
        .next(NextAction::new("queue triage explain <event>", "Why one event has its mode"))
        .next(NextAction::new("config", "Every setting with what chose it")))
}

/// The configuration that a service told of.
fn live(settings: &BTreeMap<String, String>) -> Result<Config, Failure> {
    // What it told is all there is: nothing of this shell may shine through.
    let sources =
        Sources { flags: settings.clone(), env_file: None, environment: BTreeMap::new(), home: "/dev/null".into() };
    Ok(Config::load(&sources)?)
}

fn differences(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) -> Vec<Value> {
    let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    keys.into_iter()
        .filter(|key| ours.get(*key) != theirs.get(*key))
        .map(|key| json!({ "key": key, "cli": ours.get(key), "service": theirs.get(key) }))
        .collect()
}
