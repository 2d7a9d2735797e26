//! What operators do to functions and to many runs at once: `functions pause|resume|replay`, `runs cancel|rerun`.
//!
//! What touches many shows first what it would do, and does it with `--apply`. Broken off, it is done again: nothing is
//! cancelled, repeated or replayed twice.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, Mode, NextAction, Param, Report};
use super::super::queue::act::actor;
use super::super::queue::since::{Since, iso};
use super::super::queue::{bus_to_change, redis_of};
use super::super::render::Human;
use super::{engine, engine_failure, function_named, no_function};
use crate::diagnose::Exit;
use crate::functions::engine::operations::{Repeated, Replay, Selection};
use crate::functions::engine::{self as functions, Engine};
use crate::functions::expr::Expr;
use crate::functions::ids;
use crate::functions::registry::Snapshot;
use crate::functions::store::{Mark, Status};

/// Ids shown of many.
const SHOWN: usize = 10;

/// Pause or resume a function or an app.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw functions pause shop-charge --reason 'provider is away'\n  joelclaw functions pause --app shop --reason upgrade\n  joelclaw functions resume shop-charge\n\nWhile a function is paused, new events are recorded as skipped runs (joelclaw runs rerun --status skipped brings them\nback), its running runs wait, and it holds no slot that it shares. To hold its events instead: joelclaw queue pause <event>."
)]
pub struct PauseArgs {
    /// Slug, id, name, or slug without the app
    #[arg(required_unless_present = "app", conflicts_with = "app")]
    function: Option<String>,
    /// All functions of this app, those that it registers later too
    #[arg(long)]
    app: Option<String>,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
}

/// Which runs.
#[derive(Debug, Clone, clap::Args)]
pub struct SelectArgs {
    /// Of this function: slug, id, name, or slug without the app
    #[arg(long)]
    function: String,
    /// Created from when on: 15m, a time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Created before: 15m, a time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only where this holds for the run's event: event.data.user == "ada"
    #[arg(long = "if", value_name = "CEL")]
    condition: Option<String>,
    /// At most so many, the oldest first
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Do it; without it, only show what would be done
    #[arg(long)]
    apply: bool,
}

/// Cancel many runs
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw runs cancel --function shop-charge\n  joelclaw runs cancel --function shop-charge --status queued --if 'event.data.user == \"ada\"' --apply\n\nBroken off, it is run again: what is cancelled stays so."
)]
pub struct CancelArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Only these: queued, running
    #[arg(long, value_delimiter = ',', default_value = "queued,running")]
    status: Vec<Status>,
    /// Why
    #[arg(long)]
    reason: Option<String>,
}

/// Run many runs once more
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw runs rerun --function shop-charge --since 24h\n  joelclaw runs rerun --function shop-charge --since 2026-03-07T19:00:00Z --until 2026-03-07T21:00:00Z --apply\n\nBroken off, it is run again: a run that was rerun is not rerun twice, unless --again names another round."
)]
pub struct RerunArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Only these: failed, cancelled, skipped, completed
    #[arg(long, value_delimiter = ',', default_value = "failed")]
    status: Vec<Status>,
    /// A name for another round: runs that were rerun before are rerun once more
    #[arg(long, value_name = "NAME", default_value = "")]
    again: String,
}

/// Replay events of the log to a function
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw functions replay shop-charge --since 2h\n  joelclaw functions replay shop-charge --since 2h --id fix-17 --apply\n\nEach event makes a run with the cause `replay`, in the order of the log; batch, rate limit and debounce are left out. An\nevent is replayed once under one --id: broken off, the same command goes on."
)]
pub struct ReplayArgs {
    /// Slug, id, name, or slug without the app
    function: String,
    /// Events from when on: 2h, a time, a stream id
    #[arg(long, value_name = "TIME")]
    since: String,
    /// Events before: 15m, a time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only where this holds: event.data.user == "ada"
    #[arg(long = "if", value_name = "CEL")]
    condition: Option<String>,
    /// At most so many, the oldest first
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Names this replay
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Do it; without it, only show what would be done
    #[arg(long)]
    apply: bool,
}

/// `functions pause`, `functions resume`.
pub async fn pause(args: &PauseArgs, is_pause: bool, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    let engine = engine(&bus, context).await?;
    let known = engine.registry().current();
    let (what, name) = match (&args.function, &args.app) {
        (Some(asked), _) => {
            let slug = one_function(&known, asked)?;
            (format!("fn:{slug}"), format!("function {slug}"))
        }
        (None, Some(app)) => {
            if !known.apps.contains_key(app) {
                let near = crate::config::nearest(app, known.apps.keys().map(String::as_str));
                let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                let message = format!("there is no app {app}{hint}");
                return Err(Failure::new("APP_NOT_FOUND", Exit::NotFound, message, "joelclaw functions"));
            }
            (format!("app:{app}"), format!("app {app}"))
        }
        (None, None) => {
            return Err(Failure::new("USAGE_ERROR", Exit::Usage, "name a function or --app", "joelclaw functions"));
        }
    };
    let reason = args.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
    let mark = Mark {
        actor: actor(args.actor.as_deref(), context),
        reason: reason.unwrap_or("paused by an operator").to_owned(),
        at_ms: bus.now_ms().await?,
    };
    let before = engine.runs().set_paused(&what, is_pause.then_some(&mark)).await?;
    let sentence = match (is_pause, &before) {
        (true, None) => format!("{name} is paused: new events are recorded as skipped, running runs wait."),
        (true, Some(before)) => format!("{name} was paused already ({}); the reason is the new one.", before.reason),
        (false, Some(_)) => format!("{name} goes on."),
        (false, None) => format!("{name} was not paused."),
    };
    let result = json!({
        "what": what,
        "paused": is_pause,
        "mark": is_pause.then_some(&mark),
        "before": before,
        "redis": redis_of(&bus, context).await,
    });
    let report = Report::new(result, Human::new().text(sentence));
    Ok(report.next(NextAction::new("functions", "What is paused, and what it does")))
}

/// `runs cancel`.
pub async fn cancel(args: &CancelArgs, context: &Context) -> Result<Report, Failure> {
    only(&args.status, &[Status::Queued, Status::Running])?;
    let (engine, selection) = prepare(&args.select, &args.status, context).await?;
    let runs = engine.select(&selection).await.map_err(engine_failure)?;
    let mut done = Done::new(runs.iter().map(|run| run.id.clone()).collect());
    if args.select.apply {
        let actor = actor(None, context);
        let reason = args.reason.as_deref().unwrap_or("cancelled in bulk");
        let progress = progress(context, runs.len());
        for run in &runs {
            match engine.cancel(&run.id, &format!("{reason} (cancelled by {actor})")).await {
                Ok(_) => done.changed += 1,
                // It ended by itself meanwhile.
                Err(functions::Error::Ended | functions::Error::NoRun(_)) => done.left += 1,
                Err(error) => return Err(engine_failure(error)),
            }
            progress.inc(1);
        }
        engine.journal_bulk("function.runs.cancelled", &selection.function, &actor, done.changed).await?;
    }
    done.report(
        "runs cancel --function <function> --apply",
        "cancelled",
        &selection.function,
        args.select.apply,
        &engine,
        context,
    )
    .await
}

/// `runs rerun`.
pub async fn rerun(args: &RerunArgs, context: &Context) -> Result<Report, Failure> {
    only(&args.status, &[Status::Failed, Status::Cancelled, Status::Skipped, Status::Completed])?;
    let (engine, selection) = prepare(&args.select, &args.status, context).await?;
    let mut runs = engine.select(&selection).await.map_err(engine_failure)?;
    // What a rerun became is not rerun in turn: the first run is, in another round.
    runs.retain(|run| run.cause != "rerun");
    let mut done = Done::new(runs.iter().map(|run| run.id.clone()).collect());
    if args.select.apply {
        let progress = progress(context, runs.len());
        for run in &runs {
            let (id, repeated) = engine.rerun_once(run, &args.again).await.map_err(engine_failure)?;
            done.count(id, repeated);
            progress.inc(1);
        }
        engine.journal_bulk("function.runs.rerun", &selection.function, &actor(None, context), done.changed).await?;
    }
    done.report(
        "runs rerun --function <function> --apply",
        "run once more",
        &selection.function,
        args.select.apply,
        &engine,
        context,
    )
    .await
}

/// `functions replay`.
pub async fn replay(args: &ReplayArgs, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    let engine = engine(&bus, context).await?;
    let now = bus.now_ms().await?;
    let function = one_function(&engine.registry().current(), &args.function)?;
    let replay = Replay {
        since_ms: moment(Some(&args.since), &engine, now).await?.unwrap_or_default(),
        until_ms: moment(args.until.as_deref(), &engine, now).await?.unwrap_or(now + 1),
        condition: condition(args.condition.as_deref())?,
        limit: usize::try_from(args.limit).unwrap_or(usize::MAX),
        id: args.id.clone().unwrap_or_else(ids::fresh),
        function,
    };
    let runs = engine.replayed(&replay).await.map_err(engine_failure)?;
    let mut done = Done::new(runs.iter().filter_map(|run| run.event_ids.first().cloned()).collect());
    if args.apply {
        let progress = progress(context, runs.len());
        for run in &runs {
            done.count(run.id.clone(), engine.offer(run).await.map_err(engine_failure)?);
            progress.inc(1);
        }
        engine.journal_bulk("function.events.replayed", &replay.function, &actor(None, context), done.changed).await?;
    }
    done.replay = Some(replay.id.clone());
    done.report("functions replay <function> --apply", "replayed", &replay.function, args.apply, &engine, context).await
}

async fn prepare(args: &SelectArgs, status: &[Status], context: &Context) -> Result<(Engine, Selection), Failure> {
    let bus = bus_to_change(context).await?;
    let engine = engine(&bus, context).await?;
    let now = bus.now_ms().await?;
    let selection = Selection {
        function: one_function(&engine.registry().current(), &args.function)?,
        status: status.to_vec(),
        since_ms: moment(args.since.as_deref(), &engine, now).await?,
        until_ms: moment(args.until.as_deref(), &engine, now).await?,
        condition: condition(args.condition.as_deref())?,
        limit: usize::try_from(args.limit).unwrap_or(usize::MAX),
    };
    Ok((engine, selection))
}

async fn moment(text: Option<&str>, engine: &Engine, now_ms: u64) -> Result<Option<u64>, Failure> {
    match Since::of(text)? {
        Some(since) => Ok(Some(since.entry(engine.runs().bus(), now_ms).await?.ms)),
        None => Ok(None),
    }
}

fn condition(text: Option<&str>) -> Result<Option<Expr>, Failure> {
    let Some(text) = text else { return Ok(None) };
    Expr::compile(text, crate::functions::expr::Roots::Event).map(Some).map_err(|error| {
        let message = format!("--if: `{text}`: {error}");
        Failure::new("INVALID_EXPRESSION", Exit::Usage, message, "Use for example --if 'event.data.user == \"ada\"'.")
    })
}

fn only(asked: &[Status], allowed: &[Status]) -> Result<(), Failure> {
    let Some(odd) = asked.iter().find(|status| !allowed.contains(status)) else { return Ok(()) };
    let names: Vec<String> = allowed.iter().map(|status| status.as_str().to_lowercase()).collect();
    let message = format!("runs that are {} can't be changed so", odd.as_str().to_lowercase());
    Err(Failure::new("INVALID_STATUS", Exit::Usage, message, format!("Use --status {}.", names.join(","))))
}

/// The one function that is meant.
fn one_function(known: &Snapshot, asked: &str) -> Result<String, Failure> {
    match &function_named(known, asked)[..] {
        [] => Err(no_function(known, asked)),
        [one] => Ok((*one).to_owned()),
        several => {
            let message = format!("several functions are called {asked}: {}", several.join(", "));
            Err(Failure::new("AMBIGUOUS_FUNCTION", Exit::Usage, message, "Give the slug."))
        }
    }
}

/// What was found, and what was done with it.
struct Done {
    found: Vec<String>,
    made: Vec<String>,
    changed: usize,
    before: usize,
    skipped: usize,
    left: usize,
    replay: Option<String>,
}

impl Done {
    fn new(found: Vec<String>) -> Self {
        Self { found, made: Vec::new(), changed: 0, before: 0, skipped: 0, left: 0, replay: None }
    }

    fn count(&mut self, id: String, repeated: Repeated) {
        match repeated {
            Repeated::Started => {
                self.changed += 1;
                self.made.push(id);
            }
            Repeated::Before => self.before += 1,
            Repeated::Skipped => self.skipped += 1,
        }
    }

    async fn report(
        self,
        command: &'static str,
        done: &str,
        function: &str,
        is_applied: bool,
        engine: &Engine,
        context: &Context,
    ) -> Result<Report, Failure> {
        let shown = |ids: &[String]| ids.iter().take(SHOWN).cloned().collect::<Vec<_>>();
        let mut result = json!({
            "function": function,
            "applied": is_applied,
            "matched": self.found.len(),
            "changed": self.changed,
            "alreadyDone": self.before,
            "skipped": self.skipped,
            "endedMeanwhile": self.left,
            "sample": shown(&self.found),
            "runs": shown(&self.made),
            "redis": redis_of(engine.runs().bus(), context).await,
        });
        if let Some(id) = &self.replay {
            result["replayId"] = id.as_str().into();
        }
        let n = self.found.len();
        let mut human = match is_applied {
            true => Human::new().text(format!("{} of {n} {done}.", self.changed)),
            false => Human::new().text(format!("{n} would be {done}; nothing was changed. Add --apply.")),
        };
        for (count, what) in
            [(self.before, "done before"), (self.skipped, "recorded as skipped"), (self.left, "ended meanwhile")]
        {
            if count > 0 {
                human = human.text(format!("{count} {what}."));
            }
        }
        if let Some(id) = self.replay.as_ref().filter(|_| is_applied) {
            human = human.text(format!("To go on with it, or to see that nothing is left: the same with --id {id}."));
        }
        let list = NextAction::new("runs --function <function>", "Its runs")
            .param("function", Param::new().value(Value::from(function)).required());
        let mut report = Report::new(result, human).next(list);
        if !is_applied && n > 0 {
            let again = NextAction::new(command, "Do it, with the same flags");
            report = report.next(again.param("function", Param::new().value(Value::from(function)).required()));
        }
        Ok(report)
    }
}

fn progress(context: &Context, n: usize) -> ProgressBar {
    if context.output.mode != Mode::Human || context.output.is_quiet || n < SHOWN {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(n as u64).with_style(style)
}

/// A mark as commands show it.
pub(super) fn mark_json(mark: &Mark) -> Value {
    json!({ "reason": mark.reason, "actor": mark.actor, "since": iso(mark.at_ms) })
}
