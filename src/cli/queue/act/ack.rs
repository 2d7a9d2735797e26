//! `joelclaw queue ack`: acknowledge entries that nothing will dispatch any more, and bring a batch back.
//!
//! One named entry is acknowledged at once. More than one, and every pass by age, is a dry run without `--apply`.

use std::time::Duration;

use clap::ArgGroup;
use serde_json::{Value, json};

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::{self, Human};
use super::super::look::resolve;
use super::super::since::iso;
use super::super::{bus, bus_to_change, endpoints, functions, is_routed, redis_of, registry};
use super::{actor, operator, reason_or};
use crate::config::units::duration_arg;
use crate::diagnose::Exit;
use crate::streams::bus::Bus;
use crate::streams::dead::Operator;
use crate::streams::family::Family;
use crate::streams::find::Place;
use crate::streams::residue::{AckOptions, Acked, Candidate, Pass, Preview, UNDO};

/// Rows shown to a person; the result has them all.
const SHOWN: usize = 20;

/// Acknowledge entries that nothing will dispatch any more
#[derive(Debug, Clone, clap::Args)]
#[command(
    group = ArgGroup::new("which").args(["ids", "older_than", "undo"]).required(true),
    after_help = "Examples:\n  joelclaw queue ack 1749990000000-0 --reason 'sent by hand'\n  \
                  joelclaw queue ack --older-than 2d --family old/name\n  \
                  joelclaw queue ack --older-than 2d --family old/name --apply --reason 'left by the old worker'\n  \
                  joelclaw queue ack --undo <batch>"
)]
pub struct Args {
    /// Stream ids or event ids
    ids: Vec<String>,
    /// Entries appended at least so long ago
    #[arg(long, value_name = "DURATION", value_parser = duration_arg)]
    older_than: Option<Duration>,
    /// Bring back what a batch acknowledged
    #[arg(long, value_name = "BATCH")]
    undo: Option<String>,
    /// Only this event name
    #[arg(long, requires = "older_than")]
    family: Option<Family>,
    /// Only names that no route serves
    #[arg(long, requires = "older_than")]
    unrouted: bool,
    /// At most so many
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Do it; without it the entries are only shown
    #[arg(long)]
    apply: bool,
    /// Only if the dry run's planHash still holds
    #[arg(long, value_name = "HASH")]
    plan: Option<String>,
    /// Why; recorded
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
    /// Also take entries from a live lease; what their handlers report is refused then
    #[arg(long)]
    force: bool,
    /// How long it can be undone [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = duration_arg)]
    keep: Option<Duration>,
    /// The name of an interrupted batch, to go on with it
    #[arg(long, value_name = "BATCH", conflicts_with = "undo")]
    batch: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    if let Some(batch) = &args.undo {
        return undo(batch, args, context).await;
    }
    let acts = args.apply || (args.ids.len() == 1 && args.older_than.is_none());
    if !acts {
        let bus = bus(context)?;
        let preview = preview(args, &bus, context).await?;
        return Ok(dry_run(args, &preview, redis_of(&bus, context).await));
    }
    let operator = operator(args.reason.as_deref(), args.actor.as_deref(), context)?;
    let bus = bus_to_change(context).await?;
    let preview = preview(args, &bus, context).await?;
    check(args, &bus, &preview).await?;
    let defaults = AckOptions::default();
    let options = AckOptions {
        min_age: args.older_than.unwrap_or_default(),
        force: args.force,
        keep: args.keep.unwrap_or(UNDO),
        batch: args.batch.clone().unwrap_or(defaults.batch),
    };
    let acked = bus.operator_ack(&preview.candidates, &options, &operator).await?;
    Ok(done(&acked, &preview, redis_of(&bus, context).await))
}

async fn preview(args: &Args, bus: &Bus, context: &Context) -> Result<Preview, Failure> {
    let Some(older_than) = args.older_than else { return named(args, bus).await };
    let pass = Pass { older_than, family: args.family.clone(), condition: None, limit: args.limit as usize };
    let registry = registry(context)?.current();
    let (functions, endpoints) = (functions(bus).await?, endpoints(bus).await?);
    let is_unrouted = |family: &Family| !is_routed(context, &registry, &functions, &endpoints, family);
    Ok(bus.residue(&pass, args.unrouted.then_some(&is_unrouted as _)).await?)
}

async fn named(args: &Args, bus: &Bus) -> Result<Preview, Failure> {
    let mut entries = Vec::with_capacity(args.ids.len());
    for id in &args.ids {
        match resolve(bus, id).await? {
            Place::Entry(lane, id) => entries.push((lane, id)),
            Place::Dead(dead) => {
                let fix = format!("joelclaw queue dead drop {dead} --apply --reason <text>");
                return Err(not_open(id, "a dead letter", fix));
            }
            Place::Later(..) => {
                let fix = "Pause its family, or acknowledge it once it is due.";
                return Err(not_open(id, "scheduled", fix.into()));
            }
        }
    }
    entries.sort();
    entries.dedup();
    let preview = bus.preview(&entries).await?;
    match preview.missing.first() {
        Some(missing) if preview.candidates.is_empty() => {
            Err(not_open(missing, "done already", "joelclaw queue list".into()))
        }
        _ => Ok(preview),
    }
}

fn not_open(id: &str, what: &str, fix: String) -> Failure {
    let message = format!("`{id}` is {what}: there is nothing to acknowledge");
    Failure::new("QUEUE_MESSAGE_MISSING", Exit::NotFound, message, fix)
        .next(super::super::look::inspect_action(id.rsplit('|').next().unwrap_or(id), "What became of it"))
}

/// What stands in the way of acting.
async fn check(args: &Args, bus: &Bus, preview: &Preview) -> Result<(), Failure> {
    if let Some(plan) = args.plan.as_deref().filter(|plan| *plan != preview.plan_hash) {
        let message = format!("the plan is {} now, not {plan}: entries have come, gone or changed", preview.plan_hash);
        let fix = "Look at the dry run again, then use its planHash.";
        return Err(Failure::new("QUEUE_PLAN_CHANGED", Exit::Refused, message, fix));
    }
    if args.force {
        return Ok(());
    }
    let leased: Vec<&Candidate> =
        preview.candidates.iter().filter(|candidate| candidate.leased_until_ms.is_some()).collect();
    if let Some(first) = leased.first() {
        let owner = first.owner.as_deref().unwrap_or_default();
        let until = first.leased_until_ms.map(iso).unwrap_or_default();
        let message = format!(
            "{} of {} entries are being worked on: {} by {owner}, which is alive until {until}",
            leased.len(),
            preview.candidates.len(),
            first.id
        );
        let fix = "Wait until they are done, or add --force if that drainer is gone for good.";
        let action = super::super::look::inspect_action(&first.id.to_string(), "Who works on it, and since when");
        return Err(Failure::new("QUEUE_ACK_LEASED", Exit::Refused, message, fix).next(action));
    }
    let Some(older_than) = args.older_than else { return Ok(()) };
    let now = bus.now_ms().await?;
    let sessions = bus.sessions().await?;
    let live = sessions.iter().filter(|session| session.expires_ms > now);
    let oldest = live.filter_map(|session| session.details.as_ref()?.get("startedAtMs")?.as_u64()).min();
    let age = u64::try_from(older_than.as_millis()).unwrap_or(u64::MAX);
    match oldest {
        Some(started) if now.saturating_sub(age) > started => {
            let alive = Duration::from_millis(now.saturating_sub(started));
            let message = format!(
                "--older-than {} is younger than the oldest live drainer, which started {}: such entries may be dispatched yet",
                render::age(older_than),
                render::ago(alive)
            );
            let fix = format!("Use --older-than {}s or more, or add --force.", alive.as_secs() + 60);
            Err(Failure::new("QUEUE_ACK_TOO_YOUNG", Exit::Refused, message, fix))
        }
        _ => Ok(()),
    }
}

fn table(candidates: &[Candidate]) -> impl Iterator<Item = Vec<String>> + '_ {
    candidates.iter().take(SHOWN).map(|candidate| {
        vec![
            candidate.id.to_string(),
            candidate.lane.to_string(),
            json!(candidate.state).as_str().unwrap_or_default().to_owned(),
            render::age(Duration::from_millis(candidate.age_ms)),
            candidate.owner.clone().unwrap_or_default(),
        ]
    })
}

fn dry_run(args: &Args, preview: &Preview, redis: Value) -> Report {
    let count = preview.candidates.len();
    let more = if preview.cut { " There are more than --limit." } else { "" };
    let human = Human::new()
        .text(format!("{count} entries would be acknowledged, {} under a live lease.{more}", preview.live_leases))
        .table(&["ID", "LANE", "STATE", "AGE", "OWNER"], table(&preview.candidates));
    let mut result = json!(preview);
    result["ok"] = true.into();
    result["dryRun"] = true.into();
    result["matched"] = count.into();
    result["acked"] = 0.into();
    result["redis"] = redis;
    let report =
        Report::new(result, human).list("candidates").next(NextAction::new("queue depth", "What waits in all"));
    if count == 0 {
        return report;
    }
    report.next(apply_action(args, &preview.plan_hash))
}

/// The same command, with `--apply` and the plan that was shown.
fn apply_action(args: &Args, plan: &str) -> NextAction {
    let mut command = String::from("queue ack");
    let mut params: Vec<(&str, Value)> = Vec::new();
    for (index, id) in args.ids.iter().enumerate().take(ID_SLOTS.len()) {
        command.push_str(&format!(" <{}>", ID_SLOTS[index]));
        params.push((ID_SLOTS[index], id.as_str().into()));
    }
    if let Some(age) = args.older_than {
        command.push_str(" --older-than <age>");
        params.push(("age", format!("{}s", age.as_secs().max(1)).into()));
    }
    if let Some(family) = &args.family {
        command.push_str(" --family <family>");
        params.push(("family", family.as_str().into()));
    }
    command.push_str(if args.unrouted { " --unrouted" } else { "" });
    command.push_str(&format!(" --limit <n> --apply --plan {plan} --reason <text>"));
    params.push(("n", args.limit.into()));
    let mut action = NextAction::new(command, "Acknowledge exactly these").destructive();
    for (name, value) in params {
        action = action.param(name, Param::new().value(value).required());
    }
    action.param("text", Param::new().description("Why").required())
}

/// More ids than these make a command that nobody pastes.
const ID_SLOTS: [&str; 8] = ["id", "id2", "id3", "id4", "id5", "id6", "id7", "id8"];

fn done(acked: &Acked, preview: &Preview, redis: Value) -> Report {
    let until = acked.undo_until.map(iso);
    let mut human = Human::new().text(format!("{} of {} entries are acknowledged.", acked.acked, acked.matched));
    if let Some(until) = &until {
        human = human.text(format!("It can be undone until {until}."));
    }
    if !acked.skipped.is_empty() {
        let rows = acked.skipped.iter().map(|skipped| vec![skipped.id.clone(), skipped.reason.clone()]);
        human = human.title("Skipped").table(&["ENTRY", "WHY"], rows.take(SHOWN));
    }
    let mut result = json!(acked);
    result["ok"] = (acked.acked > 0 || acked.matched == 0).into();
    result["undoUntil"] = json!(until);
    result["byFamily"] = json!(preview.by_family);
    result["isComplete"] = (!preview.cut).into();
    result["redis"] = redis;
    let mut report = Report::new(result, human).next(NextAction::new("queue depth", "What waits in all"));
    if acked.acked > 0 {
        let undo = NextAction::new("queue ack --undo <batch>", "Bring them back");
        report = report.next(undo.param("batch", Param::new().value(acked.batch.as_str()).required()));
    } else if acked.matched > 0 {
        report = report.unhealthy(Exit::Refused);
    }
    report
}

async fn undo(batch: &str, args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    let reason = reason_or(args.reason.as_deref(), || format!("Undo of batch {batch}"));
    let operator = Operator { actor: actor(args.actor.as_deref(), context), reason };
    let restored = bus.undo_ack(batch, &operator).await?;
    if restored.is_empty() {
        let message = format!("there is no batch `{batch}` to undo: its time is over, or it was undone before");
        let fix = "joelclaw queue tail --since 1h";
        return Err(Failure::new("QUEUE_UNDO_EXPIRED", Exit::NotFound, message, fix));
    }
    let rows = restored
        .iter()
        .take(SHOWN)
        .map(|entry| vec![entry.stream_id.clone(), entry.lane.clone(), entry.old_stream_id.clone()]);
    let human = Human::new().text(format!("{} entries are back.", restored.len())).table(&["ID", "LANE", "WAS"], rows);
    let result = json!({
        "ok": true,
        "batch": batch,
        "restored": restored.len(),
        "entries": restored,
        "redis": redis_of(&bus, context).await,
    });
    Ok(Report::new(result, human).list("entries").next(NextAction::new("queue depth", "What waits in all")))
}
