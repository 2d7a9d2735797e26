//! `joelclaw runs`: the latest runs, by status, function and time.

use std::str::FromStr;

use chrono::{Local, TimeZone as _};
use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::since::{Since, iso};
use super::super::queue::{bus, redis_of};
use super::super::render::Human;
use super::{
    badge, duration_ms, function_named, millis, name_of, no_function, operate, run_action, run_json, snapshot, when,
};
use crate::functions::registry::Snapshot;
use crate::functions::store::{Filter, Run, Runs, Signs, Status};

/// Runs looked at when only waiting ones are wanted.
const LOOK: usize = 2_000;
/// Characters of a function's name in the short form.
const NAME_SHORT: usize = 35;
/// Characters of an id in the short form.
const ID_SHORT: usize = 12;

/// The latest runs of functions
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw runs\n  joelclaw runs --status failed --hours 72\n  \
                        joelclaw runs --function shop-charge --status running,queued --count 50\n  \
                        joelclaw runs --since 15m --ndjson")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many at most
    #[arg(long, short = 'n', visible_alias = "limit", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Only these: queued, running, waiting (a running one that sleeps or waits), completed, failed, cancelled, skipped
    #[arg(long, value_delimiter = ',')]
    status: Vec<Wanted>,
    /// How far back
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=24 * 366))]
    hours: u64,
    /// Only this function: slug, id, name, or slug without the app
    #[arg(long)]
    function: Option<String>,
    /// From when on, instead of --hours: 15m, a time, or a stream id
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Short rows
    #[arg(long)]
    compact: bool,
}

/// What is done with many runs.
#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Cancel many runs
    Cancel(operate::CancelArgs),
    /// Run many runs once more
    Rerun(operate::RerunArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Stored(Status),
    Waiting,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().eq_ignore_ascii_case("waiting") {
            return Ok(Self::Waiting);
        }
        let unknown = |_| {
            format!("`{text}` is not a status; use queued, running, waiting, completed, failed, cancelled or skipped")
        };
        text.parse().map(Self::Stored).map_err(unknown)
    }
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        None => show(args, context).await,
        Some(Command::Cancel(args)) => operate::cancel(args, context).await,
        Some(Command::Rerun(args)) => operate::rerun(args, context).await,
    }
}

async fn show(args: &Args, context: &Context) -> Result<Report, Failure> {
    let since = Since::of(args.since.as_deref())?.unwrap_or(Since::Ago(args.hours * 3_600_000));
    let bus = bus(context)?;
    let (known, now) = (snapshot(&bus).await?, bus.now_ms().await?);
    let since_ms = since.entry(&bus, now).await?.ms;
    let runs = Runs::new(bus.clone());
    let (listed, total) = list(args, &runs, &known, since_ms).await?;

    let rows: Vec<Value> = match args.compact {
        true => listed.iter().map(|(run, signs)| compact(&known, run, *signs)).collect(),
        false => listed.iter().map(|(run, signs)| row(&known, run, *signs, now)).collect(),
    };
    let human = Human::new().table(
        &["", "RUN", "FUNCTION", "STATUS", "STARTED", "TOOK", "ATTEMPTS"],
        listed.iter().map(|(run, signs)| {
            vec![
                badge(run.status).to_owned(),
                if args.compact { short(&run.id, ID_SHORT) } else { run.id.clone() },
                short(name_of(&known, run), NAME_SHORT),
                state(run, *signs),
                when(run.started_ms.unwrap_or(run.queued_ms), now),
                duration_ms(run, now).map(millis).unwrap_or_default(),
                signs.attempts.to_string(),
            ]
        }),
    );
    let result = json!({
        "count": rows.len(),
        "total": total,
        "since": iso(since_ms),
        "runs": rows,
        "redis": redis_of(&bus, context).await,
    });
    let mut report = Report::new(result, human).list("runs");
    // What went wrong is what is looked at next.
    let (failed, other): (Vec<_>, Vec<_>) = listed.iter().partition(|(run, _)| run.status == Status::Failed);
    for (run, _) in failed.into_iter().chain(other).take(3) {
        let text = if run.status == Status::Failed { "Why it failed" } else { "Its steps" };
        report = report.next(run_action(&run.id, text));
    }
    if total > listed.len() {
        let more = NextAction::new("runs [--count <n>]", "See more");
        let count = Param::new().value(args.count.saturating_mul(10).min(10_000)).default_value(10);
        report = report.next(more.param("n", count.description("How many")));
    }
    if listed.is_empty() {
        report = report.next(NextAction::new("functions", "What would start a run"));
    }
    Ok(report.next(NextAction::new("events", "The latest events and what they started")))
}

async fn list(
    args: &Args,
    runs: &Runs,
    known: &Snapshot,
    since_ms: u64,
) -> Result<(Vec<(Run, Signs)>, usize), Failure> {
    let functions: Vec<String> = match &args.function {
        None => Vec::new(),
        Some(asked) => {
            let found = function_named(known, asked);
            // Runs of a function outlive its registration.
            if found.is_empty() { vec![asked.clone()] } else { found.into_iter().map(str::to_owned).collect() }
        }
    };
    let only_waiting = !args.status.is_empty() && args.status.iter().all(|wanted| *wanted == Wanted::Waiting);
    let mut status: Vec<Status> = Vec::new();
    for wanted in &args.status {
        let stored = match wanted {
            Wanted::Stored(status) => *status,
            Wanted::Waiting => Status::Running,
        };
        if !status.contains(&stored) {
            status.push(stored);
        }
    }
    let limit = args.count as usize;
    let filter = Filter {
        status,
        functions: functions.clone(),
        since_ms: Some(since_ms),
        limit: if only_waiting { LOOK } else { limit },
        ..Filter::default()
    };
    let page = runs.list(&filter).await?;
    if page.total == 0
        && let Some(asked) = &args.function
        && function_named(known, asked).is_empty()
    {
        let ever = Filter { functions, limit: 1, ..Filter::default() };
        if runs.list(&ever).await?.total == 0 {
            return Err(no_function(known, asked));
        }
    }
    let ids: Vec<String> = page.runs.iter().map(|run| run.id.clone()).collect();
    let signs = runs.signs(&ids).await?;
    let mut listed: Vec<(Run, Signs)> = page.runs.into_iter().zip(signs).collect();
    if !only_waiting {
        return Ok((listed, page.total));
    }
    listed.retain(|(_, signs)| signs.is_waiting);
    let total = listed.len();
    listed.truncate(limit);
    Ok((listed, total))
}

fn state(run: &Run, signs: Signs) -> String {
    let status = run.status.as_str();
    if run.status == Status::Running && signs.is_waiting { format!("{status} (waiting)") } else { status.to_owned() }
}

fn row(known: &Snapshot, run: &Run, signs: Signs, now: u64) -> Value {
    let mut row = run_json(known, run, now);
    row["attempts"] = signs.attempts.into();
    row["waiting"] = (run.status == Status::Running && signs.is_waiting).into();
    row
}

fn compact(known: &Snapshot, run: &Run, signs: Signs) -> Value {
    let at = i64::try_from(run.started_ms.unwrap_or(run.queued_ms)).ok();
    let at = at.and_then(|ms| Local.timestamp_millis_opt(ms).single());
    json!({
        "statusBadge": badge(run.status),
        "functionName": short(name_of(known, run), NAME_SHORT),
        "started": at.map(|at| at.format("%H:%M").to_string()),
        "runIdShort": short(&run.id, ID_SHORT),
        "status": run.status.as_str(),
        "waiting": run.status == Status::Running && signs.is_waiting,
    })
}

fn short(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}
