//! `joelclaw queue control`: what is in force, what was lately, and the observer's kill switch.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render::{self, Human};
use super::act::{operator, steering};
use super::breaker::view as breaker_view;
use super::since::{Since, iso};
use super::{bus, bus_to_change, control_log, redis_of};
use crate::config::units::parse_duration;
use crate::diagnose::{Diagnose as _, chain};
use crate::observer::flags::Policy;
use crate::observer::gather;
use crate::streams::bus::Bus;
use crate::streams::control::{Pause, Pauses};
use crate::streams::entry_id::EntryId;
use crate::streams::records::Entry;
use crate::streams::redis::Error;

/// Recent events shown.
const RECENT: usize = 5;
/// Journal batches per read.
const PAGE: usize = 512;
/// How long the history may be read; then the counts say that they are cut.
const READING: Duration = Duration::from_secs(3);

/// What is in force, and its history
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// What is paused, and what was paused lately
    Status(StatusArgs),
    /// Every change with who made it: the audit log
    Log(control_log::Args),
    /// Keep the observer from applying anything: the kill switch
    DisableObserver(KillArgs),
    /// Let the observer apply things again
    EnableObserver(KillArgs),
}

/// The kill switch
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue control disable-observer --for 2h --reason 'migration'\n  \
                        joelclaw queue control enable-observer --reason 'migration is done'")]
struct KillArgs {
    /// For how long; without it until it is enabled again
    #[arg(long = "for", value_name = "DURATION", value_parser = lasting)]
    lasts: Option<Duration>,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
}

fn lasting(text: &str) -> Result<Duration, String> {
    parse_duration(text).filter(|time| !time.is_zero()).ok_or_else(|| "write a duration such as 30m or 2h".into())
}

/// What is paused, and what was paused lately
#[derive(Debug, Clone, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  joelclaw queue control status\n  joelclaw queue control status --since 2h"
)]
struct StatusArgs {
    /// How far back the history goes
    #[arg(short = 'h', long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8_760))]
    hours: u64,
    /// How many events are sampled, at most 200; the counts are complete
    #[arg(long, default_value_t = 200)]
    limit: u64,
    /// From when on, instead of --hours: 15m, a time, or a stream id
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::Status(args) => status(args, context).await,
        Command::Log(args) => control_log::run(args, context).await,
        Command::DisableObserver(args) => kill_switch(args, true, context).await,
        Command::EnableObserver(args) => kill_switch(args, false, context).await,
    }
}

async fn kill_switch(args: &KillArgs, is_on: bool, context: &Context) -> Result<Report, Failure> {
    let operator = operator(args.reason.as_deref(), args.actor.as_deref(), context)?;
    let bus = bus_to_change(context).await?;
    bus.throw_kill_switch(is_on, args.lasts.filter(|_| is_on), &operator.actor, &operator.reason).await?;
    let text = match (is_on, args.lasts) {
        (true, Some(lasts)) => format!("The observer applies nothing for {}.", render::age(lasts)),
        (true, None) => "The observer applies nothing until it is enabled again.".to_owned(),
        (false, _) => "The observer may apply what its configuration allows.".to_owned(),
    };
    let result = json!({ "ok": true, "killSwitch": bus.kill_switch().await?, "redis": redis_of(&bus, context).await });
    Ok(Report::new(result, Human::new().text(text))
        .next(NextAction::new("queue control status", "See how things stand")))
}

/// What the observer did last, its budget and its kill switch; what can't be read is left out.
async fn observer_view(bus: &Bus, context: &Context, now: u64) -> Value {
    let policy = Policy::from_config(&context.config);
    let (last, at) = bus.last_observed().await.unwrap_or_default();
    let of = |key: &str| last.as_ref().map_or(Value::Null, |last| last[key].clone());
    let mode = match of("mode") {
        Value::Null => json!(policy.mode),
        mode => mode,
    };
    let interval = u64::try_from(policy.interval.as_millis()).unwrap_or(60_000);
    let budget = gather::budget(&bus.observer_memory().await.unwrap_or_default(), now);
    json!({
        "observer": { "mode": mode, "lastRunAt": at.map(iso), "nextRunAt": at.map(|at| iso(at + interval)),
            "lastSnapshotId": of("snapshotId"), "lastRule": of("rule") },
        "budget": budget,
        "killSwitch": bus.kill_switch().await.ok().flatten(),
    })
}

async fn status(args: &StatusArgs, context: &Context) -> Result<Report, Failure> {
    let since = Since::of(args.since.as_deref())?;
    let bus = bus(context)?;
    let (pauses, now) = pauses(&bus)
        .await
        .map_err(|error| Failure::new("QUEUE_CONTROL_STATUS_FAILED", error.exit(), chain(&error), "joelclaw config"))?;
    let from = since.unwrap_or(Since::Ago(args.hours * 3_600_000)).entry(&bus, now).await?;
    let history = History::read(&bus, from).await;

    let active = views(&pauses, now);
    let invalid: Vec<Value> = pauses
        .active
        .iter()
        .filter(|(_, (_, record))| record.is_none())
        .map(|(family, (until, _))| json!({ "family": family, "expiresAt": iso(*until) }))
        .collect();
    let (found, limit) = (history.found(), args.limit.clamp(1, 200));
    let anchor = since.map(|_| from.ms);
    let control = json!({
        "window": {
            "hours": args.hours,
            "sinceTimestamp": anchor,
            "sinceIso": anchor.map(iso),
            "effectiveSinceIso": iso(from.ms),
            "found": found,
            "sampled": found.min(limit),
            "truncated": history.cut,
            "filterBy": "action:queue.control.*",
        },
        "available": history.error.is_none(),
        "error": history.error,
        "activePauses": active,
        "invalid": invalid,
        "counts": { "applied": history.applied, "expired": history.expired, "rejected": history.rejected },
        "recentEvents": history.recent.iter().rev().map(event_view).collect::<Vec<_>>(),
    });
    let breakers: Vec<Value> = bus
        .breakers_sorted()
        .await
        .unwrap_or_default()
        .iter()
        .map(|(name, circuit)| breaker_view(name, circuit))
        .collect();
    let mut control = control;
    control["breakers"] = json!(breakers);
    let steered: Vec<Value> = bus
        .steerings()
        .await
        .unwrap_or_default()
        .sorted()
        .into_iter()
        .map(|steering| steering::view(steering, now))
        .collect();
    control["steering"] = json!(steered);
    if let Value::Object(more) = observer_view(&bus, context, now).await {
        more.into_iter().for_each(|(key, value)| control[key] = value);
    }
    let mut human = human(&pauses, now, &history);
    if !breakers.is_empty() {
        let rows = breakers.iter().map(|breaker| {
            let text = |key: &str| breaker[key].as_str().unwrap_or_default().to_owned();
            vec![text("family"), text("state"), text("openUntil"), render::cut(&text("lastError"))]
        });
        human = human.title("Circuit breakers").table(&["FAMILY", "STATE", "UNTIL", "LAST ERROR"], rows);
    }
    if !steered.is_empty() {
        let rows = steered.iter().map(|row| {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let what = row["priority"].as_str().map_or_else(
                || format!("{} every {} ms", row["max"], row["everyMs"]),
                |priority| format!("counts as {priority}"),
            );
            vec![text("family"), what, text("expiresAt"), text("actor"), render::cut(&text("reason"))]
        });
        human = human.title("Steered").table(&["FAMILY", "HOW", "UNTIL", "WHO", "WHY"], rows);
    }
    if !control["killSwitch"].is_null() {
        human = human.text("The kill switch is on: the observer applies nothing.");
    }
    let result = json!({ "ok": true, "control": control, "redis": redis_of(&bus, context).await });
    let mut report = Report::new(result, human);
    if let Some(family) = ordered(&pauses).first().map(|(family, ..)| *family) {
        let resume = NextAction::new("queue resume <family>", "Let the family go on that is due first");
        report = report.next(resume.param("family", Param::new().value(family).required()));
    }
    let list = NextAction::new("queue list [--limit <n>]", "See the entries")
        .param("n", Param::new().value(20).default_value(10).description("How many"));
    Ok(report.next(NextAction::new("queue depth", "See what is held back")).next(list))
}

/// What is held now, in short: `control` of `queue observe`.
pub async fn status_of(bus: &Bus, context: &Context) -> Result<Value, Error> {
    let (pauses, now) = pauses(bus).await?;
    let breakers: Vec<Value> =
        bus.breakers_sorted().await?.iter().map(|(name, circuit)| breaker_view(name, circuit)).collect();
    let mut control = json!({ "available": true, "activePauses": views(&pauses, now), "breakers": breakers });
    if let Value::Object(more) = observer_view(bus, context, now).await {
        more.into_iter().for_each(|(key, value)| control[key] = value);
    }
    Ok(control)
}

/// The pauses in force by Redis's clock, after what is due was ended.
async fn pauses(bus: &Bus) -> Result<(Pauses, u64), Error> {
    match bus.expire_pauses().await {
        // A user that may only read sees the pauses all the same: those that are over are left out below.
        Ok(_) | Err(Error::Refused(_)) => {}
        Err(error) => return Err(error),
    }
    Ok((bus.pauses().await?, bus.now_ms().await?))
}

/// By expiry, then name.
fn ordered(pauses: &Pauses) -> Vec<(&str, u64, Option<&Pause>)> {
    let mut rows: Vec<_> =
        pauses.active.iter().map(|(family, (until, record))| (family.as_str(), *until, record.as_ref())).collect();
    rows.sort_unstable_by_key(|(family, until, _)| (*until, *family));
    rows
}

fn views(pauses: &Pauses, now: u64) -> Vec<Value> {
    ordered(pauses).into_iter().filter_map(|(_, _, record)| Some(view(record?, now))).collect()
}

/// A pause as results show it.
pub fn view(pause: &Pause, now_ms: u64) -> Value {
    json!({
        "family": pause.family,
        "ttlMs": pause.ttl_ms,
        "reason": pause.reason,
        "sourceType": pause.source,
        "mode": pause.mode,
        "appliedAt": iso(pause.applied_at_ms),
        "expiresAt": iso(pause.expires_at_ms),
        "expiresInMs": pause.expires_at_ms.saturating_sub(now_ms),
        "snapshotId": pause.snapshot_id,
        "actor": pause.actor,
        "scope": pause.scope.as_deref().unwrap_or("family"),
    })
}

/// What the journal says of pauses.
#[derive(Debug, Default)]
struct History {
    applied: u64,
    expired: u64,
    rejected: u64,
    /// Oldest first.
    recent: Vec<Entry>,
    /// Not everything was read.
    cut: bool,
    /// Why nothing more could be read.
    error: Option<String>,
}

impl History {
    async fn read(bus: &Bus, from: EntryId) -> Self {
        let mut history = Self::default();
        let (mut next, started) = (Some(from), Instant::now());
        while let Some(from) = next {
            if started.elapsed() > READING {
                history.cut = true;
                break;
            }
            match bus.journal_page(from, EntryId::MAX, PAGE).await {
                Ok(page) => {
                    next = page.last.map(EntryId::next);
                    page.entries.into_iter().for_each(|entry| history.take(entry));
                }
                Err(error) => {
                    history.error = Some(chain(&error));
                    break;
                }
            }
        }
        history
    }

    fn take(&mut self, entry: Entry) {
        match &*entry.fact.action {
            "queue.control.applied" => self.applied += 1,
            "queue.control.expired" => self.expired += 1,
            "queue.control.rejected" => self.rejected += 1,
            _ => return,
        }
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(entry);
    }

    const fn found(&self) -> u64 {
        self.applied + self.expired + self.rejected
    }
}

/// Why: of what was refused the refusal's, of what was done its own.
pub(super) fn reason_of(entry: &Entry) -> Option<Value> {
    let metadata = &entry.fact.metadata;
    let of_action = metadata.get("action").and_then(|action| action.get("reason"));
    let of_record = metadata.get("reason");
    let (first, second) = match &*entry.fact.action {
        "queue.control.rejected" => (of_record, of_action),
        _ => (of_action, of_record),
    };
    first.or(second).cloned()
}

/// Absent values are null.
fn event_view(entry: &Entry) -> Value {
    let metadata = &entry.fact.metadata;
    let of = |key: &str| metadata.get(key).cloned().unwrap_or_default();
    let action = metadata.get("action").filter(|action| action.is_object());
    let of_action = |key: &str| action.and_then(|action| action.get(key)).cloned();
    let time = |key: &str| metadata.get(key).and_then(Value::as_u64).map(iso);
    let reason = reason_of(entry);
    json!({
        "at": iso(entry.id.ms),
        "action": entry.fact.action,
        "snapshotId": of("snapshotId"),
        "mode": of("mode"),
        "family": metadata.get("family").cloned().or_else(|| of_action("family")),
        "sourceType": metadata.get("sourceType").or_else(|| metadata.get("source")),
        "actor": of("actor"),
        "expiresAt": time("expiresAtMs"),
        "expiredAt": time("expiredAtMs"),
        "reason": reason.or_else(|| entry.fact.error.clone().map(Value::from)),
        "error": entry.fact.error,
        "actionMetadata": action,
    })
}

fn human(pauses: &Pauses, now: u64, history: &History) -> Human {
    let left = |until: u64| render::age(Duration::from_millis(until.saturating_sub(now)));
    let rows = ordered(pauses).into_iter().map(|(family, until, record)| match record {
        Some(pause) => {
            let who = pause.actor.clone().unwrap_or_else(|| pause.mode.clone());
            vec![family.to_owned(), left(until), who, render::cut(&pause.reason)]
        }
        None => vec![family.to_owned(), left(until), "?".into(), "its record can't be read; resume removes it".into()],
    });
    let human = Human::new().title("Paused").table(&["FAMILY", "ENDS IN", "WHO", "WHY"], rows);
    if let Some(error) = &history.error {
        return human.text(format!("The history can't be read: {error}"));
    }
    let rows = history.recent.iter().rev().map(|entry| {
        let view = event_view(entry);
        let text = |key: &str| view[key].as_str().unwrap_or_default().to_owned();
        let age = render::ago(Duration::from_millis(now.saturating_sub(entry.id.ms)));
        let action = text("action").replace("queue.control.", "");
        vec![age, action, text("family"), text("actor"), render::cut(&text("reason"))]
    });
    let counts = format!("applied {}, expired {}, rejected {}", history.applied, history.expired, history.rejected);
    human.title(format!("Lately ({counts})")).table(&["WHEN", "WHAT", "FAMILY", "WHO", "WHY"], rows)
}
