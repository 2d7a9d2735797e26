//! `joelclaw queue pause`: hold a family. Its events are kept, no other family waits.

use std::time::Duration;

use chrono::{DateTime, FixedOffset};
use serde_json::{Value, json};

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::{self, Human};
use super::super::control::view;
use super::super::{bus_to_change, redis_of, registry};
use super::{actor, reason_or};
use crate::config::nearest;
use crate::config::units::parse_duration;
use crate::diagnose::Exit;
use crate::registry::{ALIASES, Registry};
use crate::streams::bus::Bus;
use crate::streams::control::{NewPause, Pause, PauseOutcome, PauseSource, Target};
use crate::streams::family::{Family, ParseFamilyError};

/// The shortest pause.
const LEAST: Duration = Duration::from_secs(60);

/// Hold a family, or all whose name begins so: their events are kept, no other family waits
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue pause content/updated --ttl 10m --reason 'downstream is away'\n  \
                        joelclaw queue pause content/updated --until 2026-03-07T19:30:00Z\n  \
                        joelclaw queue pause 'github/*' --ttl 1h --reason 'migration'")]
pub struct Args {
    /// The event name, or the beginning of names with a *
    #[arg(value_parser = target)]
    family: Target,
    /// How long: 60 s to QUEUE_PAUSE_MAX_TTL_MS; bare digits are seconds
    #[arg(long, value_name = "DURATION", default_value = "15m")]
    ttl: String,
    /// Until when, instead of --ttl (ISO-8601)
    #[arg(long, value_name = "TIME", value_parser = DateTime::parse_from_rfc3339, conflicts_with = "ttl")]
    until: Option<DateTime<FixedOffset>>,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
    /// Also replace a pause that ends later
    #[arg(long)]
    yes: bool,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let longest = context.config.queue.pause_max_ttl;
    let asked = match args.until {
        Some(_) => None,
        None => Some(ttl(&args.ttl, longest).ok_or_else(|| invalid(&args.family, "--ttl", &args.ttl, longest))?),
    };
    let bus = bus_to_change(context).await?;
    let ttl = match (asked, args.until) {
        (None, Some(until)) => {
            let ms = u64::try_from(until.timestamp_millis()).unwrap_or(0).saturating_sub(bus.now_ms().await?);
            let ttl = Duration::from_millis(ms);
            within(ttl, longest).ok_or_else(|| invalid(&args.family, "--until", &until.to_rfc3339(), longest))?
        }
        (asked, _) => asked.unwrap_or(LEAST),
    };
    let family = &args.family;
    let new = NewPause {
        family: family.clone(),
        ttl,
        reason: reason_or(args.reason.as_deref(), || format!("Manual pause from joelclaw queue pause for {family}")),
        source: PauseSource::Manual,
        actor: Some(actor(args.actor.as_deref(), context)),
        shorten: args.yes,
    };
    let warning = match family {
        Target::Family(family) => unknown(&bus, registry(context)?.current().as_ref(), family).await?,
        Target::Prefix(_) => None,
    };
    match bus.pause(&new).await? {
        PauseOutcome::Paused { pause, replaced } => {
            let parts = Parts { pause: &pause, replaced: replaced.as_deref(), warning };
            Ok(report(parts, &bus, context).await?)
        }
        PauseOutcome::Refused { standing, .. } => Err(longer_stands(args, standing.as_ref())),
    }
}

/// `<n>`, `<n>s`, `<n>m`, `<n>h`, `<n>d` in any case.
pub(super) fn ttl(text: &str, longest: Duration) -> Option<Duration> {
    let text = text.trim().to_ascii_lowercase();
    let ttl = parse_duration(&text).filter(|_| !text.ends_with("ms"))?;
    within(ttl, longest)
}

fn within(ttl: Duration, longest: Duration) -> Option<Duration> {
    (LEAST..=longest).contains(&ttl).then_some(ttl)
}

/// What a pause may be of. Functions and endpoints have commands of their own, which know more than names.
fn target(text: &str) -> Result<Target, String> {
    let target: Target = text.parse().map_err(|error: ParseFamilyError| error.to_string())?;
    match &target {
        Target::Prefix(prefix)
            if ["inngest/", "outbound/"]
                .iter()
                .any(|own| own.starts_with(prefix.as_str()) || prefix.as_str().starts_with(own)) =>
        {
            Err("functions and endpoints are paused by their own commands".into())
        }
        _ => Ok(target),
    }
}

pub(super) fn invalid_ttl(flag: &str, text: &str, longest: Duration) -> Failure {
    let message = format!("Invalid {flag} value: {text}");
    let fix = format!("Use a duration between 60s and {}, for example --ttl 10m.", render::age(longest));
    Failure::new("QUEUE_CONTROL_INVALID_TTL", Exit::Usage, message, fix)
}

fn invalid(target: &Target, flag: &str, text: &str, longest: Duration) -> Failure {
    let retry = NextAction::new("queue pause <family> --ttl 10m --reason <text>", "Retry with a valid time")
        .param("family", Param::new().value(target.to_string()).required())
        .param("text", Param::new().required());
    invalid_ttl(flag, text, longest).next(retry)
}

fn longer_stands(args: &Args, standing: Option<&Pause>) -> Failure {
    let until = standing.map(|pause| super::super::since::iso(pause.expires_at_ms)).unwrap_or_default();
    let why = standing.map(|pause| format!(" ({})", pause.reason)).unwrap_or_default();
    let message = format!("{} is paused until {until}{why}; this pause would end earlier", args.family);
    let fix = "Add --yes to replace it all the same.";
    let status = NextAction::new("queue control status", "See what is paused");
    Failure::new("QUEUE_PAUSE_SHORTER", Exit::Refused, message, fix).next(status)
}

/// Pausing ahead is allowed; a typo should be seen.
async fn unknown(bus: &Bus, registry: &Registry, family: &Family) -> Result<Option<String>, Failure> {
    if registry.lookup(family).is_some() || bus.lanes().await?.iter().any(|lane| lane.family == *family) {
        return Ok(None);
    }
    let message = format!("no event named {family} is registered or was ever appended");
    if let Some((_, names)) = ALIASES.iter().find(|(alias, _)| *alias == family.as_str()) {
        return Ok(Some(format!("{message}; the names behind that pilot are {}", names.join(", "))));
    }
    let entries = registry.entries();
    let near = nearest(family.as_str(), entries.iter().map(|entry| entry.pattern.text()));
    Ok(Some(near.map_or(message.clone(), |near| format!("{message}; did you mean {near}?"))))
}

struct Parts<'a> {
    pause: &'a Pause,
    replaced: Option<&'a Pause>,
    warning: Option<String>,
}

async fn report(parts: Parts<'_>, bus: &Bus, context: &Context) -> Result<Report, Failure> {
    let Parts { pause, replaced, warning } = parts;
    let left = render::age(Duration::from_millis(pause.ttl_ms));
    let mut human = Human::new().text(format!("{} is paused for {left}. Nothing is lost.", pause.family));
    let mut result = json!({ "ok": true, "pause": view(pause, pause.applied_at_ms) });
    if let Some(replaced) = replaced {
        result["replaced"] = view(replaced, pause.applied_at_ms);
        human = human.text(format!("It replaces a pause with the reason: {}", replaced.reason));
    }
    if let Some(warning) = warning {
        human = human.text(format!("warning: {warning}"));
        result["warnings"] = json!([{ "code": "UNKNOWN_FAMILY", "message": warning }]);
    }
    result["redis"] = redis_of(bus, context).await;
    let resume = NextAction::new("queue resume <family>", "Let it go on")
        .param("family", Param::new().value(Value::from(pause.family.as_str())).required());
    Ok(Report::new(result, human).next(NextAction::new("queue control status", "See what is paused")).next(resume))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_lasts_from_a_minute_to_the_maximum() {
        let day = Duration::from_secs(86_400);
        for text in ["60s", "60", "1m", "1M", "24h", "1d", " 15m "] {
            assert!(ttl(text, day).is_some(), "{text}");
        }
        for text in ["45", "59s", "25h", "bogus", "", "0", "1.5h", "-5m", "90000ms", "2d"] {
            assert_eq!(ttl(text, day), None, "{text}");
        }
        assert!(ttl("2d", 2 * day).is_some(), "the maximum is a setting");
    }
}
