//! `joelclaw queue dead redrive` and `drop`: send dead letters round again, or remove them.
//!
//! A letter leaves the dead letters in the script that appends it again, so an interrupted run is continued by the
//! same command. A removed letter is gone for good: `drop` always needs `--apply`.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render::{self, Human};
use super::act::emit::read_data;
use super::act::operator;
use super::condition::Where;
use super::{bus, bus_to_change, dead, redis_of};
use crate::diagnose::Exit;
use crate::streams::bus::Bus;
use crate::streams::dead::{DeadFilter, DeadLetter, Redriven};
use crate::streams::entry_id::EntryId;
use crate::streams::family::Family;
use crate::streams::json::JsonObject;

/// Letters looked at for a filtered selection.
const SCAN: usize = 100_000;
/// Rows shown to a person; the result has them all.
const SHOWN: usize = 20;
/// Letters per script call when no rate is asked for.
const BATCH: usize = 200;

/// Which letters, and on whose word.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("which").args(["ids", "family", "cause", "expr", "all"]).required(true).multiple(true))]
pub struct Selection {
    /// Dead-letter ids, event ids, or unique beginnings of them
    #[arg(conflicts_with_all = ["family", "cause", "expr", "all"])]
    ids: Vec<String>,
    /// Every letter of this event name
    #[arg(long)]
    family: Option<Family>,
    /// Every letter that died of this, such as attempts_exhausted
    #[arg(long, value_name = "REASON")]
    cause: Option<String>,
    #[command(flatten)]
    condition: Where,
    /// Every letter
    #[arg(long)]
    all: bool,
    /// At most so many, newest first
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Do it; without it the letters are only shown
    #[arg(long)]
    apply: bool,
    /// Why; recorded
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
}

/// Send dead letters round again, attempts from zero
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue dead redrive 1749990000000-0 --reason 'the handler is mended'\n  \
                        joelclaw queue dead redrive --family content/updated --rate 20 --apply --reason 'is back'\n  \
                        joelclaw queue dead redrive 1749990000000-0 --edit @event.json --reason 'wrong path'")]
pub struct RedriveArgs {
    #[command(flatten)]
    selection: Selection,
    /// At most so many a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: Option<u32>,
    /// Other data for the one event named: a JSON object, @file, or - for stdin
    #[arg(long, value_name = "JSON", conflicts_with_all = ["family", "cause", "expr", "all"])]
    edit: Option<String>,
}

/// Remove dead letters for good
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  joelclaw queue dead drop 1749990000000-0 --apply --reason 'a test event'")]
pub struct DropArgs {
    #[command(flatten)]
    selection: Selection,
}

/// Runs `redrive`.
pub async fn redrive(args: &RedriveArgs, context: &Context) -> Result<Report, Failure> {
    let selection = &args.selection;
    let edit = match &args.edit {
        Some(text) if selection.ids.len() == 1 => Some(edited(&read_data(text)?)?),
        Some(_) => {
            let message = "--edit is for one event";
            return Err(Failure::new("USAGE_ERROR", Exit::Usage, message, "Name one dead letter with --edit."));
        }
        None => None,
    };
    if !selection.apply && selection.ids.len() != 1 {
        return dry_run(selection, "redrive", context).await;
    }
    let operator = operator(selection.reason.as_deref(), selection.actor.as_deref(), context)?;
    let bus = bus_to_change(context).await?;
    let letters = selection.letters(&bus).await?;
    let ids: Vec<EntryId> = letters.iter().map(|letter| letter.id).collect();
    let step = args.rate.map_or(BATCH, |rate| (rate as usize).min(BATCH));
    let pause = args.rate.map(|rate| Duration::from_secs(1) * u32::try_from(step).unwrap_or(1) / rate);
    let bar = progress(ids.len(), context);
    let mut outcomes = Vec::with_capacity(ids.len());
    for (index, chunk) in ids.chunks(step).enumerate() {
        if let (true, Some(pause)) = (index > 0, pause) {
            tokio::time::sleep(pause).await;
        }
        outcomes.extend(bus.redrive(chunk, &operator, edit.as_ref()).await?);
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    Ok(redriven(&letters, &outcomes, redis_of(&bus, context).await))
}

/// Runs `drop`.
pub async fn drop(args: &DropArgs, context: &Context) -> Result<Report, Failure> {
    let selection = &args.selection;
    if !selection.apply {
        return dry_run(selection, "drop", context).await;
    }
    let operator = operator(selection.reason.as_deref(), selection.actor.as_deref(), context)?;
    let bus = bus_to_change(context).await?;
    let letters = selection.letters(&bus).await?;
    let ids: Vec<EntryId> = letters.iter().map(|letter| letter.id).collect();
    let removed = bus.drop_dead(&ids, &operator).await?;
    let dropped = removed.iter().filter(|removed| **removed).count();
    let human = Human::new().text(format!("{dropped} dead letters are removed."));
    let result = json!({
        "ok": true,
        "dryRun": false,
        "matched": ids.len(),
        "dropped": dropped,
        "gone": ids.len() - dropped,
        "redis": redis_of(&bus, context).await,
    });
    Ok(Report::new(result, human).next(NextAction::new("queue dead list", "See the other dead letters")))
}

impl Selection {
    async fn letters(&self, bus: &Bus) -> Result<Vec<DeadLetter>, Failure> {
        if self.ids.is_empty() {
            let filter = DeadFilter {
                family: self.family.clone(),
                reason: self.cause.clone(),
                under: None,
                condition: self.condition.condition(),
            };
            return Ok(bus.dead_letters(&filter, None, self.limit as usize, SCAN).await?.letters);
        }
        let mut letters: Vec<DeadLetter> = Vec::with_capacity(self.ids.len());
        for id in &self.ids {
            let letter = dead::letter(bus, id).await?;
            if letters.iter().all(|known| known.id != letter.id) {
                letters.push(letter);
            }
        }
        Ok(letters)
    }

    /// The same selection, with `--apply`.
    fn apply_action(&self, verb: &str) -> NextAction {
        let mut command = format!("queue dead {verb}");
        let mut action_params: Vec<(&str, String)> = Vec::new();
        for (slot, id) in ["id", "id2", "id3", "id4", "id5", "id6", "id7", "id8"].into_iter().zip(&self.ids) {
            command.push_str(&format!(" <{slot}>"));
            action_params.push((slot, id.clone()));
        }
        if let Some(family) = &self.family {
            command.push_str(" --family <family>");
            action_params.push(("family", family.to_string()));
        }
        if let Some(cause) = &self.cause {
            command.push_str(" --cause <cause>");
            action_params.push(("cause", cause.clone()));
        }
        if let Some(text) = self.condition.text() {
            command.push_str(" --where <cel>");
            action_params.push(("cel", text.to_owned()));
        }
        command.push_str(if self.all { " --all" } else { "" });
        command.push_str(&format!(" --limit {} --apply --reason <text>", self.limit));
        let what = if verb == "drop" { "Remove exactly these" } else { "Send them round again" };
        let mut action = NextAction::new(command, what).destructive();
        for (name, value) in action_params {
            action = action.param(name, Param::new().value(value).required());
        }
        action.param("text", Param::new().description("Why").required())
    }
}

/// On stderr, at a terminal only.
fn progress(count: usize, context: &Context) -> ProgressBar {
    if context.output.is_quiet || count <= BATCH {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {per_sec}  {eta} left");
    ProgressBar::new(count as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn edited(text: &str) -> Result<JsonObject, Failure> {
    JsonObject::parse(text).map_err(|error| {
        let fix = "Give the whole new data as one JSON object.";
        Failure::new("INVALID_JSON", Exit::Usage, format!("--edit is no JSON object: {error}"), fix)
    })
}

async fn dry_run(selection: &Selection, verb: &str, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let letters = selection.letters(&bus).await?;
    let rows = letters.iter().take(SHOWN).map(|letter| {
        let family = letter.lane().map(|lane| lane.family.to_string()).unwrap_or_default();
        let error = letter.record.as_ref().map(|record| render::cut(&record.error)).unwrap_or_default();
        vec![letter.id.to_string(), family, letter.reason().to_owned(), error]
    });
    let words = if verb == "drop" { "removed for good" } else { "sent round again" };
    let human = Human::new()
        .text(format!("{} dead letters would be {words}.", letters.len()))
        .table(&["ID", "EVENT", "REASON", "LAST ERROR"], rows);
    let shown: Vec<Value> = letters
        .iter()
        .map(|letter| {
            json!({
                "id": letter.id.to_string(),
                "eventId": letter.event.as_ref().map(|event| event.id.as_str()),
                "family": letter.lane().map(|lane| lane.family),
                "reason": letter.reason(),
            })
        })
        .collect();
    let result = json!({
        "ok": true,
        "dryRun": true,
        "matched": letters.len(),
        "letters": shown,
        "redis": redis_of(&bus, context).await,
    });
    let report =
        Report::new(result, human).list("letters").next(NextAction::new("queue dead list", "See the dead letters"));
    if letters.is_empty() {
        return Ok(report);
    }
    Ok(report.next(selection.apply_action(verb)))
}

fn redriven(letters: &[DeadLetter], outcomes: &[Redriven], redis: Value) -> Report {
    let mut sent = 0_usize;
    let mut gone = 0_usize;
    let mut refused = 0_usize;
    let rows: Vec<Value> = letters
        .iter()
        .zip(outcomes)
        .map(|(letter, outcome)| {
            let mut row = json!({ "id": letter.id.to_string() });
            match outcome {
                Redriven::Sent { lane, stream_id } => {
                    sent += 1;
                    row["outcome"] = "sent".into();
                    row["lane"] = json!(lane);
                    row["streamId"] = json!(stream_id);
                }
                Redriven::Gone => {
                    gone += 1;
                    row["outcome"] = "gone".into();
                }
                Redriven::Refused { detail } => {
                    refused += 1;
                    row["outcome"] = "refused".into();
                    row["detail"] = json!(detail);
                }
            }
            row
        })
        .collect();
    let mut human = Human::new().text(format!("{sent} dead letters are sent round again."));
    if gone + refused > 0 {
        human = human.text(format!("{gone} were gone, {refused} can't be sent."));
    }
    let first = rows.iter().find_map(|row| row["streamId"].as_str()).map(str::to_owned);
    let result = json!({
        "ok": refused == 0,
        "dryRun": false,
        "matched": letters.len(),
        "sent": sent,
        "gone": gone,
        "refused": refused,
        "letters": rows,
        "redis": redis,
    });
    let mut report = Report::new(result, human).list("letters");
    if refused > 0 {
        report = report.unhealthy(Exit::Unhealthy);
    }
    if let Some(first) = first {
        report = report.next(super::look::inspect_action(&first, "Where the first one is now"));
    }
    report.next(NextAction::new("queue dead list", "See what is left"))
}
