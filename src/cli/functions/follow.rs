//! `joelclaw send --follow`: the runs of one event until they have ended.
//!
//! In a pipe: NDJSON, flushed line by line: `start`, a `step` for each run and each of its steps as it begins and ends,
//! `log` for what holds it up, and as the last line `result` or `error`. At a terminal: a spinner on stderr, then a table.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::signal::unix::SignalKind;

use super::super::interrupt::{heard, listen};
use super::super::output::{self, Failure, Mode, Report};
use super::super::queue::look::why::explain;
use super::super::queue::{bus_to_change, redis_of};
use super::super::render::Human;
use super::super::{Context, Ending};
use super::send::{Args, Sent, send};
use super::{badge, duration_ms, millis, name_of, one_line, output as shown, run_action, run_json, runs_of, snapshot};
use crate::diagnose::Exit;
use crate::functions::registry::Snapshot;
use crate::functions::store::{Run, Runs, Status};
use crate::moment;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::family::Family;
use crate::streams::find::Place;
use crate::streams::look::{Hold, Routing, State};

/// Between two looks.
const POLL: Duration = Duration::from_millis(150);
/// When to say why nothing has begun yet, and how often to ask for the registry anew.
const SLOW: Duration = Duration::from_secs(2);

/// Why following ended.
enum End {
    /// The event was dispatched and every run of it has ended.
    Ended,
    /// Nothing wants the event.
    Unmatched,
    Timeout,
    Interrupted(u8),
    Unread,
}

/// Runs the command; in a pipe everything is printed when it returns.
pub(super) async fn run(args: &Args, timeout: Duration, context: &Context) -> Ending {
    let is_human = context.output.mode == Mode::Human;
    match follow(args, timeout, context).await {
        Ok(Finished { end: End::Unread, .. }) => Ending::Streamed(ExitCode::SUCCESS),
        Ok(Finished { end: End::Interrupted(code), .. }) if is_human => Ending::Streamed(ExitCode::from(code)),
        Ok(finished) if is_human => Ending::Outcome(Ok(finished.report)),
        Ok(finished) => {
            let (kind, outcome, exit) = finished.last_line();
            let mut line = output::envelope(&context.command, &outcome);
            line["type"] = kind.into();
            context.output.line(&line);
            Ending::Streamed(ExitCode::from(exit))
        }
        Err(failure) if is_human => Ending::Outcome(Err(failure)),
        Err(failure) => {
            let failure = context.advise(failure);
            let exit = failure.exit();
            let mut line = output::envelope(&context.command, &Err(failure));
            line["type"] = "error".into();
            context.output.line(&line);
            Ending::Streamed(ExitCode::from(exit as u8))
        }
    }
}

struct Finished {
    end: End,
    report: Report,
    failed: Vec<Run>,
}

impl Finished {
    /// Kind, envelope and exit code of the line that ends the stream.
    fn last_line(self) -> (&'static str, Result<Report, Failure>, u8) {
        let Some(first) = self.failed.first() else {
            let exit = match self.end {
                End::Interrupted(code) => code,
                End::Timeout => Exit::Unhealthy as u8,
                _ => 0,
            };
            return ("result", Ok(self.report), exit);
        };
        let error = first.error.as_deref().and_then(|error| serde_json::from_str::<Value>(error).ok());
        let message = error.as_ref().and_then(|error| error["message"].as_str()).unwrap_or("no reason is known");
        let message = match self.failed.len() {
            1 => format!("the run {} of {} failed: {message}", first.id, first.function),
            n => format!("{n} runs failed, the first is {} of {}: {message}", first.id, first.function),
        };
        let fix = format!("joelclaw run {}", first.id);
        let mut failure = Failure::new("RUN_FAILED", Exit::Unhealthy, message, fix);
        for run in self.failed.iter().take(5) {
            failure = failure.next(run_action(&run.id, format!("Why {} failed", run.function)));
        }
        ("error", Err(failure), Exit::Unhealthy as u8)
    }
}

async fn follow(args: &Args, timeout: Duration, context: &Context) -> Result<Finished, Failure> {
    let bus = bus_to_change(context).await?;
    let sent = send(args, &bus, context).await?;
    let mut follow = Follow {
        context,
        runs: Runs::new(bus.clone()),
        known: snapshot(&bus).await?,
        bus: &bus,
        sent: &sent,
        seen: HashMap::new(),
        progress: progress(context),
    };
    let start = json!({
        "type": "start", "command": context.command, "ts": moment::now(), "ids": [sent.id], "event": sent.name(),
    });
    if !follow.tell(&start) {
        return follow.finish(End::Unread, timeout).await;
    }
    let end = follow.until_ended(timeout).await?;
    follow.progress.finish_and_clear();
    follow.finish(end, timeout).await
}

/// What was told of a run so far.
#[derive(Default)]
struct Told {
    last: Option<EntryId>,
    names: HashMap<String, String>,
    is_ended: bool,
}

struct Follow<'a> {
    context: &'a Context,
    bus: &'a Bus,
    runs: Runs,
    known: Snapshot,
    sent: &'a Sent,
    seen: HashMap<String, Told>,
    progress: ProgressBar,
}

impl Follow<'_> {
    async fn until_ended(&mut self, timeout: Duration) -> Result<End, Failure> {
        if self.sent.is_unmatched {
            self.log("warn", &self.sent.unmatched());
            return Ok(End::Unmatched);
        }
        let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
        let began = Instant::now();
        let (mut asked, mut is_told) = (Instant::now(), false);
        loop {
            // Before the runs: what the event starts is there once its entry is done.
            let is_dispatched = self.is_dispatched().await?;
            let runs = self.of_event().await?;
            for run in &runs {
                if !self.report(run).await? {
                    return Ok(End::Unread);
                }
            }
            if is_dispatched && runs.iter().all(|run| run.status.is_terminal()) {
                return Ok(End::Ended);
            }
            if began.elapsed() >= timeout {
                return Ok(End::Timeout);
            }
            if !is_told && runs.is_empty() && began.elapsed() >= SLOW {
                is_told = true;
                self.say_what_holds().await?;
            }
            if asked.elapsed() >= SLOW {
                asked = Instant::now();
                self.known = snapshot(self.bus).await?;
                if self.context.output.mode != Mode::Human && !self.context.output.is_read() {
                    return Ok(End::Unread);
                }
            }
            self.progress.tick();
            tokio::select! {
                biased;
                () = heard(&mut interrupt) => return Ok(End::Interrupted(130)),
                () = heard(&mut terminate) => return Ok(End::Interrupted(143)),
                () = tokio::time::sleep(POLL.min(timeout.saturating_sub(began.elapsed()))) => {}
            }
        }
    }

    async fn is_dispatched(&self) -> Result<bool, Failure> {
        let Some(entry) = self.sent.accepted.stream_id else { return Ok(false) };
        let place = Place::Entry(self.sent.accepted.lane.clone(), entry);
        let state = self.bus.inspect(&place).await?.state;
        Ok(matches!(state, State::Done | State::Dead | State::Acked | State::Missing))
    }

    async fn of_event(&self) -> Result<Vec<Run>, Failure> {
        let mut found = runs_of(&self.runs, &self.known, std::slice::from_ref(&self.sent.id), false).await?;
        Ok(found.remove(&self.sent.id).unwrap_or_default())
    }

    async fn say_what_holds(&mut self) -> Result<(), Failure> {
        let Some(entry) = self.sent.accepted.stream_id else { return Ok(()) };
        let lane = self.sent.accepted.lane.clone();
        let family = lane.family.clone();
        let routing = |_: &Family| Routing { is_routed: true, is_ordered: false };
        let hold = self.bus.why(&Place::Entry(lane, entry), &routing).await?;
        if matches!(hold, Hold::Done | Hold::Missing) {
            return Ok(());
        }
        let explained = explain(&hold, Some(&family), self.bus.now_ms().await?);
        let command = explained.command.map(|command| format!(" ({command})")).unwrap_or_default();
        self.log("warn", &format!("nothing has begun: {}{command}", explained.sentence));
        Ok(())
    }

    /// Tells what is new of a run. False when nobody reads any more.
    async fn report(&mut self, run: &Run) -> Result<bool, Failure> {
        let mut told = match self.seen.remove(&run.id) {
            Some(told) => told,
            None => {
                if !self.step(run, &run.function, "started", json!({})) {
                    return Ok(false);
                }
                Told::default()
            }
        };
        if told.is_ended {
            self.seen.insert(run.id.clone(), told);
            return Ok(true);
        }
        let mut is_read = true;
        for (id, entry) in self.runs.history_after(&run.id, told.last).await? {
            told.last = Some(id);
            is_read &= self.history(run, &entry, &mut told.names);
        }
        if run.status.is_terminal() {
            told.is_ended = true;
            let status = if run.status == Status::Completed { "completed" } else { "failed" };
            let now = self.bus.now_ms().await?;
            let error = run.error.as_deref().and_then(|error| serde_json::from_str::<Value>(error).ok());
            let error =
                error.and_then(|error| error["message"].as_str().map(str::to_owned)).or_else(|| run.why.clone());
            let mut about = json!({ "run_status": run.status.as_str(), "duration_ms": duration_ms(run, now) });
            if let Some(error) = error.filter(|_| status == "failed") {
                about["error"] = error.into();
            }
            is_read &= self.step(run, &run.function, status, about);
        }
        self.seen.insert(run.id.clone(), told);
        Ok(is_read)
    }

    fn history(&self, run: &Run, entry: &Value, names: &mut HashMap<String, String>) -> bool {
        let text = |key: &str| entry[key].as_str().filter(|text| !text.is_empty());
        let name = match (text("step"), text("name")) {
            (Some(step), Some(name)) if name != step || !names.contains_key(step) => {
                names.insert(step.to_owned(), name.to_owned());
                name.to_owned()
            }
            (Some(step), _) => names.get(step).map_or_else(|| step.to_owned(), Clone::clone),
            (None, _) => run.function.clone(),
        };
        match text("type").unwrap_or_default() {
            "StepScheduled" => self.step(run, &name, "started", json!({ "op": entry["op"] })),
            "StepCompleted" => self.step(run, &name, "completed", json!({ "duration_ms": entry["durationMs"] })),
            "StepFailed" => self.step(run, &name, "failed", json!({ "duration_ms": entry["durationMs"] })),
            "StepErrored" | "FunctionErrored" => {
                let message = entry["error"]["message"].as_str().unwrap_or("failed");
                let again = millis(entry["retryInMs"].as_u64().unwrap_or_default());
                self.log("warn", &format!("{name}: {message}; again in {again}"))
            }
            _ => true,
        }
    }

    fn step(&self, run: &Run, name: &str, status: &str, about: Value) -> bool {
        let mut line = json!({
            "type": "step", "name": name, "status": status, "run_id": run.id, "function": run.function, "ts": moment::now(),
        });
        if let (Some(line), Value::Object(about)) = (line.as_object_mut(), about) {
            line.extend(about.into_iter().filter(|(_, value)| !value.is_null()));
        }
        self.progress.set_message(format!("{}  {name} {status}", run.function));
        self.tell(&line)
    }

    fn log(&self, level: &str, message: &str) -> bool {
        if self.context.output.mode == Mode::Human && !self.context.output.is_quiet {
            self.progress.println(message);
        }
        self.tell(&json!({ "type": "log", "level": level, "message": message, "ts": moment::now() }))
    }

    /// A line that only programs get.
    fn tell(&self, line: &Value) -> bool {
        self.context.output.mode == Mode::Human || self.context.output.line(line)
    }

    async fn finish(&self, end: End, timeout: Duration) -> Result<Finished, Failure> {
        let runs = self.of_event().await?;
        let now = self.bus.now_ms().await?;
        let mut result = self.sent.json();
        result["runs"] = runs
            .iter()
            .map(|run| {
                let mut told = run_json(&self.known, run, now);
                told["output"] = run.result().map(|text| shown(text, false)).unwrap_or_default();
                told
            })
            .collect();
        match end {
            End::Timeout => {
                result["reason"] = "timeout".into();
                result["timeout_ms"] = json!(timeout.as_millis());
            }
            End::Interrupted(_) | End::Unread => result["reason"] = "interrupted".into(),
            End::Unmatched => result["reason"] = "unmatched".into(),
            End::Ended => {}
        }
        if runs.is_empty() && matches!(end, End::Ended) {
            let message =
                format!("{} was dispatched and started no run: no trigger's condition holds", self.sent.name());
            result["warnings"] = json!([{ "code": "EVENT_UNMATCHED", "message": message }]);
        }
        result["redis"] = redis_of(self.bus, self.context).await;
        let rows = runs.iter().map(|run| {
            vec![
                badge(run.status).to_owned(),
                run.id.clone(),
                name_of(&self.known, run).to_owned(),
                run.status.to_string(),
                duration_ms(run, now).map(millis).unwrap_or_default(),
                run.result().map(|text| one_line(&shown(text, false))).unwrap_or_default(),
            ]
        });
        let mut human = Human::new()
            .pairs([("event", self.sent.name()), ("id", &self.sent.id)])
            .table(&["", "RUN", "FUNCTION", "STATUS", "TOOK", "RESULT"], rows);
        if let Some(warning) = result["warnings"][0]["message"].as_str() {
            human = human.text(format!("warning: {warning}"));
        }
        if matches!(end, End::Timeout) {
            human = human
                .text(format!("Not over after {}.", millis(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))));
        }
        let failed: Vec<Run> = runs.iter().filter(|run| run.status == Status::Failed).cloned().collect();
        let mut report = Report::new(result, human).list("runs");
        for run in failed.iter().chain(runs.iter().filter(|run| run.status != Status::Failed)).take(3) {
            report = report.next(run_action(&run.id, format!("The run of {}", run.function)));
        }
        if !failed.is_empty() || matches!(end, End::Timeout | End::Interrupted(_)) {
            report = report.unhealthy(Exit::Unhealthy);
        }
        Ok(Finished { end, report: self.sent.next(report), failed })
    }
}

/// On stderr, at a terminal only.
fn progress(context: &Context) -> ProgressBar {
    if context.output.is_quiet || context.output.mode != Mode::Human {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {elapsed}  {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}
