//! `joelclaw run`: everything about one run; cancels it, or runs its function once more.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::look::why::explain;
use super::super::queue::{bus, redis_of};
use super::super::render::Human;
use super::trace::{self, Trace};
use super::{badge, duration_ms, millis, name_of, no_run, one_line, output, run_action, run_json, snapshot, when};
use crate::diagnose::Exit;
use crate::functions::engine::call::DISCOVERY;
use crate::functions::registry::Snapshot;
use crate::functions::store::{Filter, Pending, Run, Runs};
use crate::moment::iso;
use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::streams::find::{MIN_PREFIX, Place};
use crate::streams::lane::Lane;
use crate::streams::look::Routing;

/// Between two looks at a run that is waited for.
pub(super) const POLL: Duration = Duration::from_millis(100);
/// Runs that an ambiguous beginning names.
const SHOWN: usize = 5;
/// Invoked runs that are looked for, and runs of one function that are looked at for each.
const CHILDREN: (usize, usize) = (20, 200);

/// Everything about one run: steps, errors, what it waits for
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw run 01JZ8Q4T0V\n  joelclaw run 01JZ8Q4T0V --wait-ms 60000   # until it has ended\n  \
                        joelclaw run 01JZ8Q4T0V --cancel --reason 'wrong customer'\n  joelclaw run 01JZ8Q4T0V --rerun"
)]
pub struct Args {
    /// The run's id, or a unique beginning of it (at least 8 characters)
    id: String,
    /// End it; what its function is doing now goes on, its answer is dropped
    #[arg(long, conflicts_with = "rerun")]
    pub(super) cancel: bool,
    /// Run its function once more for the same event
    #[arg(long)]
    pub(super) rerun: bool,
    /// Wait so long for its end; with --cancel 3000 unless given, with --rerun for the new run
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=86_400_000))]
    pub(super) wait_ms: Option<u64>,
    /// Why it is cancelled, for its record
    #[arg(long, requires = "cancel")]
    pub(super) reason: Option<String>,
    /// Outputs and stacks in full, however long
    #[arg(long)]
    full: bool,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    if args.cancel || args.rerun {
        return super::run_change::run(args, context).await;
    }
    let bus = bus(context)?;
    let runs = Runs::new(bus.clone());
    let mut run = resolve(&runs, &args.id).await?;
    if let Some(wait) = args.wait_ms {
        run = until_ended(&runs, run, Duration::from_millis(wait)).await?;
    }
    show(&run, &runs, args.full, context).await
}

impl Args {
    /// As it was asked for.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) const fn is_full(&self) -> bool {
        self.full
    }
}

/// The run that an id or its beginning means.
pub(super) async fn resolve(runs: &Runs, asked: &str) -> Result<Run, Failure> {
    let id = asked.trim().to_ascii_uppercase();
    if !id.bytes().all(|b| b.is_ascii_alphanumeric()) || id.is_empty() {
        let message =
            format!("`{asked}` is no run id: 26 letters and digits, or the first {MIN_PREFIX} or more of them");
        return Err(Failure::new("USAGE_ERROR", Exit::Usage, message, "joelclaw runs"));
    }
    if let Some(run) = runs.run(&id).await? {
        return Ok(run);
    }
    if id.len() < MIN_PREFIX || id.len() >= 26 {
        return Err(no_run(asked).next(event_action(asked)));
    }
    let found = runs.starting_with(&id, SHOWN + 1).await?;
    let mut known = runs.runs(&found).await?;
    match known.len() {
        0 => Err(no_run(asked).next(event_action(asked))),
        1 => Ok(known.remove(0)),
        n => {
            let listed: Vec<String> =
                known.iter().take(SHOWN).map(|run| format!("{} ({})", run.id, run.function)).collect();
            let more = if n > SHOWN { ", …" } else { "" };
            let message = format!("several runs begin with {id}: {}{more}", listed.join(", "));
            let mut failure = Failure::new("AMBIGUOUS_ID", Exit::Usage, message, "Give more characters of the id.");
            for run in known.iter().take(SHOWN) {
                failure = failure.next(run_action(&run.id, format!("This {}", run.function)));
            }
            Err(failure)
        }
    }
}

/// What holds a run, for `queue why`. `None` when the id is none of a run.
pub(in crate::cli) async fn why(id: &str, context: &Context) -> Result<Option<Report>, Failure> {
    let bus = bus(context)?;
    let runs = Runs::new(bus.clone());
    let Some(run) = runs.run(&id.trim().to_ascii_uppercase()).await? else { return Ok(None) };
    let pending = if run.status.is_terminal() { Vec::new() } else { runs.pending(&run.id).await? };
    let trace = Trace::of(&run, &runs.details(&run.id).await?, &pending);
    let waits = waits(&bus, &run, &trace, &pending, runs.now_ms().await?).await?;
    let sentence = match waits.first() {
        Some(wait) => wait.sentence.clone(),
        None => match &run.why {
            Some(why) => format!("it has ended: {} ({why})", run.status),
            None => format!("it has ended: {}", run.status),
        },
    };
    let command = waits.iter().find_map(|wait| wait.command.clone());
    let result = json!({
        "id": run.id, "function": run.function, "status": run.status.as_str(), "sentence": sentence,
        "command": command, "waitsFor": waits.iter().map(|wait| wait.json.clone()).collect::<Vec<_>>(),
    });
    let mut human = Human::new().text(waits.iter().map(|wait| wait.sentence.as_str()).collect::<Vec<_>>().join("\n"));
    if waits.is_empty() {
        human = Human::new().text(&sentence);
    }
    if let Some(command) = &command {
        human = human.pairs([("what changes it", command.as_str())]);
    }
    Ok(Some(Report::new(result, human).next(run_action(&run.id, "Everything known about it"))))
}

fn event_action(asked: &str) -> NextAction {
    let event = NextAction::new("event <event-id>", "If it is an event's id: what it started");
    event.param("event-id", Param::new().value(asked).required())
}

/// The run once it has ended, or as it is when the time is over.
pub(super) async fn until_ended(runs: &Runs, mut run: Run, wait: Duration) -> Result<Run, Failure> {
    let began = Instant::now();
    while !run.status.is_terminal() {
        let left = wait.saturating_sub(began.elapsed());
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(POLL.min(left)).await;
        run = runs.run(&run.id).await?.ok_or_else(|| no_run(&run.id))?;
    }
    Ok(run)
}

/// The report about a run.
pub(super) async fn show(run: &Run, runs: &Runs, is_full: bool, context: &Context) -> Result<Report, Failure> {
    let bus = runs.bus();
    let (known, now) = (snapshot(bus).await?, bus.now_ms().await?);
    let details = runs.details(&run.id).await?;
    let pending = if run.status.is_terminal() { Vec::new() } else { runs.pending(&run.id).await? };
    let mut trace = Trace::of(run, &details, &pending);
    find_children(runs, run, &mut trace).await?;
    let attempts = runs.signs(std::slice::from_ref(&run.id)).await?.pop().unwrap_or_default().attempts;
    let waits = waits(bus, run, &trace, &pending, now).await?;

    let mut about = run_json(&known, run, now);
    about["attempts"] = attempts.into();
    about["output"] = run.result().map(|text| output(text, is_full)).unwrap_or_default();
    about["traceID"] = Value::Null;
    let parent = run.correlation.as_ref().and_then(|of| of.split_once('.')).map(|(parent, _)| parent);
    if let Some(parent) = parent {
        about["parentRun"] = parent.into();
    }
    let next_ms = pending.iter().filter_map(due).min();
    let last_error = trace.failed.last();
    let mut result = json!({
        "run": about,
        "trigger": trigger(run, is_full),
        "steps": trace.steps.iter().map(|step| step.json(is_full)).collect::<Vec<_>>(),
        "trace": root_span(&known, run, &trace, attempts, now),
        "errors": trace::errors_by_step(&trace, is_full),
        "errorList": trace.failed.iter().map(|failed| failed.json(&trace, is_full)).collect::<Vec<_>>(),
        "history": trace.notes.iter().map(|(ms, note)| { let mut note = note.clone(); note["at"] = json!(iso(*ms)); note }).collect::<Vec<_>>(),
    });
    if !run.status.is_terminal() {
        result["waitsFor"] = waits.iter().map(|wait| wait.json.clone()).collect();
        result["nextAttemptAt"] = json!(retry_ms(&pending).and_then(iso));
        result["nextAt"] = json!(next_ms.and_then(iso));
        result["lastError"] = json!(last_error.map(|failed| failed.json(&trace, is_full)));
    }
    result["redis"] = redis_of(bus, context).await;

    let human = human(&known, run, &trace, &waits, attempts, now);
    let mut report = Report::new(result, human).list("steps");
    if trace::is_failed(run.status) {
        report = report.unhealthy(Exit::Unhealthy);
    }
    let id = || Param::new().value(run.id.as_str()).required();
    if let Some(child) = trace.steps.iter().rev().find_map(|step| step.child.as_deref()) {
        report = report.next(run_action(child, "The run that it invoked"));
    }
    if let Some(parent) = parent {
        report = report.next(run_action(parent, "The run that asked for it"));
    }
    if run.status.is_terminal() {
        report = report.next(NextAction::new("run <run-id> --rerun", "Run it once more").param("run-id", id()));
    } else {
        let wait = NextAction::new("run <run-id> --wait-ms 60000", "Wait for its end");
        let cancel = NextAction::new("run <run-id> --cancel", "End it").destructive();
        report = report.next(wait.param("run-id", id())).next(cancel.param("run-id", id()));
    }
    if let Some(event) = run.event_ids.first() {
        let action = NextAction::new("event <event-id>", "The event, and all that it started");
        report = report.next(action.param("event-id", Param::new().value(event.as_str()).required()));
    }
    Ok(report)
}

fn trigger(run: &Run, is_full: bool) -> Value {
    let events: Vec<Value> = run.event_list().iter().map(|event| output(event.get(), is_full)).collect();
    let first = run.event_list().first().and_then(|event| serde_json::from_str::<Value>(event.get()).ok());
    let at = first.as_ref().and_then(|event| event["ts"].as_u64()).and_then(iso);
    json!({
        "eventName": first.as_ref().and_then(|event| event["name"].as_str()),
        "IDs": run.event_ids,
        "timestamp": at,
        "cause": run.cause,
        "events": events,
    })
}

fn root_span(known: &Snapshot, run: &Run, trace: &Trace, attempts: u32, now: u64) -> Value {
    json!({
        "name": name_of(known, run),
        "status": run.status.as_str(),
        "attempts": attempts,
        "duration": duration_ms(run, now),
        "startedAt": run.started_ms.and_then(iso),
        "endedAt": run.ended_ms.and_then(iso),
        "stepOp": null,
        "stepID": null,
        "outputID": null,
        "childrenSpans": trace.steps.iter().map(trace::Step::span).collect::<Vec<_>>(),
    })
}

/// The runs that its steps invoked: they carry run and step.
async fn find_children(runs: &Runs, run: &Run, trace: &mut Trace) -> Result<(), Failure> {
    let asking = trace.steps.iter_mut().filter(|step| step.op == "InvokeFunction").take(CHILDREN.0);
    for step in asking {
        let Some(function) = step.details.get("function").and_then(Value::as_str) else { continue };
        let filter = Filter {
            functions: vec![function.to_owned()],
            since_ms: step.scheduled_ms,
            limit: CHILDREN.1,
            oldest_first: true,
            ..Filter::default()
        };
        let correlation = format!("{}.{}", run.id, step.id);
        let found = runs.list(&filter).await?.runs;
        let child = found.into_iter().find(|child| child.correlation.as_deref() == Some(correlation.as_str()));
        step.child = child.map(|child| child.id);
    }
    Ok(())
}

const fn due(pending: &Pending) -> Option<u64> {
    match pending {
        Pending::Call { .. } | Pending::Line { .. } => None,
        Pending::Retry { at_ms: at, .. }
        | Pending::Sleep { until_ms: at, .. }
        | Pending::Event { until_ms: at, .. }
        | Pending::Invoke { until_ms: at, .. }
        | Pending::Signal { until_ms: at, .. } => *at,
    }
}

fn retry_ms(pending: &[Pending]) -> Option<u64> {
    pending.iter().filter(|one| matches!(one, Pending::Retry { .. })).filter_map(due).min()
}

/// One thing that a run waits for.
struct Wait {
    sentence: String,
    command: Option<String>,
    json: Value,
}

async fn waits(bus: &Bus, run: &Run, trace: &Trace, pending: &[Pending], now: u64) -> Result<Vec<Wait>, Failure> {
    let mut waits = Vec::with_capacity(pending.len());
    for one in pending {
        waits.push(wait(bus, run, trace, one, now).await?);
    }
    Ok(waits)
}

async fn wait(bus: &Bus, run: &Run, trace: &Trace, pending: &Pending, now: u64) -> Result<Wait, Failure> {
    let at = |ms: Option<u64>| match ms {
        Some(ms) => format!("{} ({})", iso(ms).unwrap_or_default(), when(ms, now)),
        None => "an unknown time".to_owned(),
    };
    let what = |thread: &str| match thread {
        DISCOVERY => "the function".to_owned(),
        step => format!("step {}", trace.named(step)),
    };
    let named = |step: &str| trace.named(step).to_owned();
    let (kind, sentence, mut json) = match pending {
        Pending::Call { thread, attempt, entry } => {
            let (kind, sentence, command) = queued(bus, run, entry, now).await?;
            let sentence = format!("the call of {}: {sentence}", what(thread));
            let mut json = json!({ "kind": kind, "sentence": sentence, "attempt": attempt, "streamId": entry });
            if thread != DISCOVERY {
                json["step"] = named(thread).into();
            }
            if let Some(command) = &command {
                json["command"] = command.as_str().into();
            }
            return Ok(Wait { sentence, command, json });
        }
        Pending::Line { thread, attempt, line, ahead } => {
            let (kind, why) = held_by(bus, run, line).await?;
            let before = ahead.map(|ahead| format!(", {ahead} before it")).unwrap_or_default();
            let sentence = format!("the call of {}: {why}{before}", what(thread));
            (kind, sentence, json!({ "attempt": attempt, "line": line, "ahead": ahead }))
        }
        Pending::Retry { thread, attempt, at_ms } => {
            let step = (thread != DISCOVERY).then_some(thread.as_str());
            let last = trace.failed.iter().rev().find(|failed| step.is_none() || failed.step.as_deref() == step);
            let error = last.and_then(|failed| failed.error["message"].as_str());
            let after = error.map(|error| format!(", after: {error}")).unwrap_or_default();
            let sentence = format!("attempt {} of {} at {}{after}", attempt + 1, what(thread), at(*at_ms));
            (
                "retry",
                sentence,
                json!({ "step": step.map(named), "attempt": attempt, "at": at_ms.and_then(iso), "lastError": error }),
            )
        }
        Pending::Sleep { step, until_ms } => (
            "sleep",
            format!("step {} sleeps until {}", named(step), at(*until_ms)),
            json!({ "step": named(step), "until": until_ms.and_then(iso) }),
        ),
        Pending::Event { step, event, until_ms } => (
            "event",
            format!("step {} waits for the event {event} until {}", named(step), at(*until_ms)),
            json!({ "step": named(step), "event": event, "until": until_ms.and_then(iso) }),
        ),
        Pending::Invoke { step, until_ms } => {
            let child = trace.steps.iter().find(|known| known.id == *step);
            let function = child.and_then(|step| step.details.get("function")).and_then(Value::as_str);
            (
                "invoke",
                format!("step {} waits for {} until {}", named(step), function.unwrap_or("a function"), at(*until_ms)),
                json!({
                    "step": named(step), "function": function, "until": until_ms.and_then(iso),
                    "invokedRun": child.and_then(|step| step.child.clone()),
                }),
            )
        }
        Pending::Signal { step, signal, until_ms } => (
            "signal",
            format!("step {} waits for the signal {signal} until {}", named(step), at(*until_ms)),
            json!({ "step": named(step), "signal": signal, "until": until_ms.and_then(iso) }),
        ),
    };
    json["kind"] = kind.into();
    json["sentence"] = sentence.as_str().into();
    Ok(Wait { sentence, command: None, json })
}

/// What a line is for: the limit, throttle or pause that holds back who stands in it.
async fn held_by(bus: &Bus, run: &Run, line: &str) -> Result<(&'static str, String), Failure> {
    if line.starts_with("held:") {
        let sentence = paused(bus, run).await?.map(|(sentence, _)| sentence);
        return Ok(("paused", sentence.unwrap_or_else(|| format!("function {} is paused", run.function))));
    }
    let group = Runs::new(bus.clone()).group(line).await?;
    let Some(group) = group else { return Ok(("limit", "a limit holds it back".to_owned())) };
    let value = if group.value.is_empty() { String::new() } else { format!(" = {}", group.value) };
    Ok(match group.key.starts_with("throttle") {
        true => ("throttle", format!("its start waits for the {}{value}", group.key)),
        false if group.held == 1 => ("limit", format!("the slot of {}{value} is taken", group.key)),
        false => ("limit", format!("the {} slots of {}{value} are taken", group.held, group.key)),
    })
}

/// Who paused the run's function, itself or with its app, and what ends that.
async fn paused(bus: &Bus, run: &Run) -> Result<Option<(String, String)>, Failure> {
    let known = snapshot(bus).await?;
    let mark = known.functions.get(&run.function).and_then(|function| known.paused_by(function));
    Ok(mark.map(|mark| {
        let name = if known.paused.contains_key(&format!("app:{}", run.app)) {
            format!("--app {}", run.app)
        } else {
            run.function.clone()
        };
        let sentence = format!("the function is paused by {}: {}", mark.actor, mark.reason);
        (sentence, format!("joelclaw functions resume {name}"))
    }))
}

/// What holds a queued call, as for any entry of a lane.
async fn queued(
    bus: &Bus,
    run: &Run,
    entry: &str,
    now: u64,
) -> Result<(&'static str, String, Option<String>), Failure> {
    let (Ok(lane), Ok(id)) = (run.lane.parse::<Lane>(), entry.parse()) else {
        return Ok(("queued", format!("it is queued as {entry}"), None));
    };
    let routing = |_: &Family| Routing { is_routed: true, is_ordered: false };
    let family = lane.family.clone();
    let hold = bus.why(&Place::Entry(lane, id), &routing).await?;
    if !matches!(hold, crate::streams::look::Hold::Leased { .. })
        && let Some((sentence, command)) = paused(bus, run).await?
    {
        return Ok(("paused", sentence, Some(command)));
    }
    let explained = explain(&hold, Some(&family), now);
    let kind = match hold {
        crate::streams::look::Hold::Leased { .. } => "running",
        crate::streams::look::Hold::Paused { .. } => "paused",
        _ => "queued",
    };
    Ok((kind, explained.sentence, explained.command))
}

fn human(known: &Snapshot, run: &Run, trace: &Trace, waits: &[Wait], attempts: u32, now: u64) -> Human {
    let mut pairs: Vec<(&str, String)> = vec![
        ("run", run.id.clone()),
        ("function", format!("{} ({})", name_of(known, run), run.function)),
        ("status", format!("{} {}", badge(run.status), run.status)),
    ];
    pairs.extend(run.why.clone().map(|why| ("why", why)));
    let event = trigger(run, false);
    if let Some(name) = event["eventName"].as_str() {
        pairs.push(("event", format!("{name} {}", run.event_ids.join(", "))));
    }
    pairs.push(("created", format!("{} ({})", iso(run.queued_ms).unwrap_or_default(), when(run.queued_ms, now))));
    if let Some(took) = duration_ms(run, now) {
        pairs.push((if run.ended_ms.is_some() { "took" } else { "runs for" }, millis(took)));
    }
    pairs.push(("attempts", attempts.to_string()));
    if let Some(result) = run.output.as_deref() {
        pairs.push(("output", one_line(&output(result, false))));
    }
    let mut human = Human::new().pairs(pairs);
    if !run.status.is_terminal() {
        let lines = waits.iter().map(|wait| match &wait.command {
            Some(command) => format!("{}\n  {command}", wait.sentence),
            None => wait.sentence.clone(),
        });
        let lines: Vec<String> = lines.collect();
        let text = if lines.is_empty() {
            "nothing that is known; it is looked after within a minute".into()
        } else {
            lines.join("\n")
        };
        human = human.title("Waits for").text(text);
    }
    let rows = trace.steps.iter().map(|step| {
        let result = step.output.as_ref().or(step.error.as_ref()).map(one_line).unwrap_or_default();
        vec![
            step.name.clone(),
            step.op.clone(),
            step.status.to_owned(),
            step.attempts.to_string(),
            step.started_ms.or(step.scheduled_ms).or(step.ended_ms).map(|at| when(at, now)).unwrap_or_default(),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            step.duration_ms.map(|ms| millis(ms.max(0.0).round() as u64)).unwrap_or_default(),
            result,
        ]
    });
    human = human.title("Steps").table(&["STEP", "KIND", "STATUS", "ATTEMPTS", "STARTED", "TOOK", "RESULT"], rows);
    if trace.failed.is_empty() {
        return human;
    }
    let errors = trace.failed.iter().map(|failed| {
        let whose = failed.step.as_ref().map_or("(function)", |step| trace.named(step));
        let text = |key: &str| failed.error[key].as_str().unwrap_or_default();
        let again = failed.retry_in_ms.map(|ms| format!(", again in {}", millis(ms))).unwrap_or_default();
        let head = format!("{whose}, attempt {}{again}: {} {}", failed.attempt + 1, text("name"), text("message"));
        match text("stack") {
            "" => head,
            stack => format!("{head}\n{}", indented(stack)),
        }
    });
    human.title("Errors").text(errors.collect::<Vec<_>>().join("\n"))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {}", line.trim_end())).collect::<Vec<_>>().join("\n")
}
