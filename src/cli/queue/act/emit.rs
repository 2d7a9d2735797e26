//! `joelclaw queue emit`: append one event, or a file of them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use chrono::{DateTime, FixedOffset};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::Human;
use super::super::{bus_to_change, is_inngest_served, redis_of, registry, triage};
use crate::config::units::duration_arg;
use crate::diagnose::{Diagnose as _, Exit, chain};
use crate::ingest::admission::{Accepted, Admission, AskedPriority, Emit, Error, When};
use crate::ingest::fields::Fields;
use crate::service;
use crate::streams::append::{self, DuplicateBy};
use crate::streams::bus::Bus;
use crate::triage::Worker;

/// Between two looks whether Redis is back.
const AWAY: Duration = Duration::from_millis(500);
/// Lines appended together.
const BATCH: usize = 200;
/// A longer line is no event: the limit of an event lies below it.
const LONGEST_LINE: u64 = 8 << 20;
/// Bad lines that the result names.
const ERRORS_SHOWN: usize = 10;
/// Delays between tries while Redis is away.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Append one event, or a file of them
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue emit content/updated -d '{\"source\":\"fswatch\"}' -p P1\n  \
                        joelclaw queue emit report/due --in 10m -d @report.json\n  \
                        joelclaw queue emit --bulk events.ndjson")]
pub struct Args {
    /// The event name; with --bulk, of the lines that name none
    #[arg(required_unless_present = "bulk")]
    event: Option<String>,
    /// The data, a JSON object: text, @file, or - for stdin
    #[arg(short, long, value_name = "JSON", conflicts_with = "bulk")]
    data: Option<String>,
    /// P0 (now) to P3 (whenever), instead of the registry's
    #[arg(short, long)]
    priority: Option<String>,
    /// The event's id: the same id again is a duplicate, so a retry is safe
    #[arg(long, conflicts_with = "bulk")]
    id: Option<String>,
    /// One event per key within the family's window
    #[arg(long, value_name = "KEY", conflicts_with = "bulk")]
    dedup_key: Option<String>,
    /// Who emits
    #[arg(long, default_value = "cli")]
    source: String,
    /// Not before this time (ISO-8601)
    #[arg(long, value_name = "TIME", value_parser = DateTime::parse_from_rfc3339, conflicts_with_all = ["delay", "bulk"])]
    at: Option<DateTime<FixedOffset>>,
    /// Not before this much time has passed
    #[arg(long = "in", id = "delay", value_name = "DURATION", value_parser = duration_arg, conflicts_with = "bulk")]
    delay: Option<Duration>,
    /// Refuse a name that no route wants; with --bulk also stop at the first bad line
    #[arg(long)]
    strict: bool,
    /// Keep the dedup key without enforcing it
    #[arg(long)]
    no_dedup: bool,
    /// In triage mode shadow: stay until the decision is in the journal, instead of leaving it to another process
    #[arg(long, conflicts_with = "bulk")]
    wait_triage: bool,
    /// Keys of your own, a JSON object
    #[arg(long, value_name = "JSON")]
    meta: Option<String>,
    /// One event a line: {"name", "data"?, "id"?, "priority"?, "dedupKey"?, "source"?, "ts"?, "meta"?}; - is stdin
    #[arg(long, value_name = "FILE")]
    bulk: Option<String>,
    /// The line to begin with, to go on after an interruption
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), requires = "bulk")]
    from_line: u64,
    /// How long --bulk waits for Redis to come back
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration_arg)]
    timeout: Duration,
}

/// The bus. A file of events waits for Redis as long as `--timeout` says; one event does not.
async fn bus_to_append(args: &Args, context: &Context) -> Result<Bus, Failure> {
    let started = Instant::now();
    loop {
        match bus_to_change(context).await {
            Err(failure) if failure.code() == "REDIS_UNREACHABLE" && args.bulk.is_some() => {
                if started.elapsed() + AWAY > args.timeout {
                    return Err(failure);
                }
                tokio::time::sleep(AWAY).await;
            }
            answer => return answer,
        }
    }
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let registry = registry(context)?;
    let bus = bus_to_append(args, context).await?;
    let (triage, mut worker) = service::triage(&context.config, &registry, CancellationToken::new());
    let admission = service::admission(&context.config, &bus, &registry, is_inngest_served(context)).await;
    let admission = admission.with_triage(triage);
    let report = match &args.bulk {
        Some(path) => bulk(args, path, &bus, &admission, &mut worker, context).await,
        None => one(args, &bus, &admission, context).await,
    };
    if args.wait_triage {
        worker.work_off(&bus).await;
    } else {
        triage::hand_over(worker.finish(&bus).await, context).await;
    }
    report
}

fn emit_of<'a>(args: &'a Args, data: &'a str) -> Emit<'a> {
    let when = match (args.at, args.delay) {
        (Some(at), _) => When::At(at.timestamp_millis()),
        (None, Some(delay)) => When::In(delay),
        (None, None) => When::Now,
    };
    Emit {
        name: args.event.as_deref().unwrap_or_default(),
        data,
        priority: args.priority.as_deref().map_or(AskedPriority::Unset, AskedPriority::Strict),
        id: args.id.as_deref(),
        dedup_key: args.dedup_key.as_deref(),
        source: Some(&args.source),
        when,
        strict: args.strict,
        no_dedup: args.no_dedup,
        meta: args.meta.as_deref(),
        ..Emit::default()
    }
}

async fn one(args: &Args, bus: &Bus, admission: &Admission, context: &Context) -> Result<Report, Failure> {
    let data = read_data(args.data.as_deref().unwrap_or_default())?;
    let accepted = match admission.admit(emit_of(args, &data)).await {
        Ok(accepted) => accepted,
        Err(error) => return Err(refused(error, args, &data)),
    };
    let family = &accepted.lane.family;
    let mut result = json!({
        "ok": true,
        "streamId": accepted.stream_id.map(|id| id.to_string()),
        "eventId": accepted.event_id,
        "lane": accepted.lane.to_string(),
        "priority": accepted.priority,
        "priorityLabel": accepted.priority.label(),
        "event": family,
        "triageMode": accepted.triage.mode,
        "durability": accepted.durability,
        "redis": redis_of(bus, context).await,
    });
    triage::told(&mut result, &accepted.triage, args.wait_triage && accepted.duplicate.is_none());
    if let Some(duplicate) = accepted.duplicate {
        result["duplicate"] = json!(duplicate);
    }
    let mut human = Human::new()
        .text(sentence(&accepted))
        .pairs([("event id", accepted.event_id.clone()), ("lane", accepted.lane.to_string())]);
    if let Some((until, pause)) = bus.pauses().await.ok().and_then(|pauses| pauses.of(family.as_str()).cloned()) {
        let expires = crate::moment::iso(until);
        human = human.text(format!("{family} is paused until {}.", expires.clone().unwrap_or_default()));
        let source = pause.map(|pause| pause.source);
        result["held"] = json!({ "family": family, "expiresAt": expires, "source": source });
    }
    if accepted.unrouted {
        result["unrouted"] = true.into();
        human = human.text(format!("warning: no route serves {family}; the event is kept until one appears."));
    }
    let (is_unrouted, name) = (accepted.unrouted, family.to_string());
    let mut report = Report::new(result, human);
    report = match &accepted.stream_id {
        Some(id) => report.next(
            NextAction::new("queue inspect <stream-id>", "Look at the accepted event")
                .param("stream-id", Param::new().value(id.to_string()).required()),
        ),
        None => report.next(super::super::look::inspect_action(&accepted.event_id, "Look at the accepted event")),
    };
    if is_unrouted {
        let explain = NextAction::new("queue registry explain <event>", "How to add a route");
        report = report.next(explain.param("event", Param::new().value(name).required()));
    }
    Ok(report.next(NextAction::new("queue depth", "Check the backlog")))
}

fn sentence(accepted: &Accepted) -> String {
    let family = &accepted.lane.family;
    match (&accepted.stream_id, accepted.duplicate) {
        (Some(id), Some(_)) => format!("{family} is there already as {id}; nothing was appended."),
        (None, Some(_)) => format!("{family} is scheduled already; nothing was appended."),
        (Some(id), None) => format!("{family} is appended as {id}."),
        (None, None) => format!("{family} is scheduled."),
    }
}

/// The text of `-d` and its like: as it is, `@file`, or `-`.
pub(in crate::cli) fn read_data(asked: &str) -> Result<String, Failure> {
    let unreadable = |name: &str, error: io::Error| {
        Failure::new("INPUT_UNREADABLE", Exit::Usage, format!("{name} can't be read: {error}"), "Name a readable file.")
    };
    match asked.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| unreadable(path, error)),
        None if asked.trim() == "-" => io::read_to_string(io::stdin()).map_err(|error| unreadable("stdin", error)),
        None => Ok(asked.to_owned()),
    }
}

/// The admission's error in the words of the command line.
fn refused(error: Error, args: &Args, data: &str) -> Failure {
    let name = args.event.as_deref().unwrap_or_default();
    let (code, exit) = (error.code(), error.exit());
    match &error {
        Error::NotAnObject { field: "data", found, .. } => {
            let key = if *found == "an array" { "items" } else { "value" };
            let is_short = data.len() <= 100 && !data.contains('\'');
            let value = if is_short { data.trim() } else { "…" };
            let message = format!("--data must be a JSON object, got {found}");
            let fix = format!("Wrap the value: joelclaw queue emit {name} -d '{{\"{key}\":{value}}}'");
            Failure::new(code, exit, message, fix)
        }
        Error::InvalidJson { field, reason, .. } => {
            Failure::new(code, exit, format!("--{field} is {reason}"), error.fix())
        }
        Error::Unrouted { .. } => {
            let explain = NextAction::new("queue registry explain <event>", "How to add a route");
            Failure::from(error).next(explain.param("event", Param::new().value(name).required()))
        }
        _ => Failure::from(error),
    }
}

/// One line of a bulk file.
struct Line {
    number: u64,
    name: String,
    data: String,
    id: String,
    is_id_ours: bool,
    priority: Option<String>,
    dedup_key: Option<String>,
    source: String,
    ts: Option<i64>,
    meta: Option<String>,
}

impl Line {
    fn parse(number: u64, bytes: &[u8], args: &Args) -> Result<Self, Bad> {
        let bad = |code: &str, message: String| Bad { line: number, code: code.to_owned(), message };
        let text = std::str::from_utf8(bytes).map_err(|error| bad("INVALID_JSON", format!("no UTF-8: {error}")))?;
        let fields = Fields::parse(text).map_err(|error| {
            let code = if error.is_data() { "NOT_AN_OBJECT" } else { "INVALID_JSON" };
            bad(code, error.to_string())
        })?;
        let present = |key: &str| Some(fields.text(key)).filter(|text| !text.trim().is_empty());
        let name = present("name").or_else(|| present("event")).or_else(|| args.event.clone());
        let name = name.ok_or_else(|| bad("INVALID_EVENT_NAME", "the line has no \"name\"".into()))?;
        let ts = match fields.get("ts") {
            None => None,
            Some(_) => {
                let iso = || fields.string("ts").and_then(|ts| DateTime::parse_from_rfc3339(&ts).ok());
                let ts = fields.integer("ts").or_else(|| iso().map(|ts| ts.timestamp_millis()));
                Some(ts.ok_or_else(|| bad("INVALID_FIELD", "ts is neither milliseconds nor an ISO-8601 time".into()))?)
            }
        };
        let id = present("id");
        Ok(Self {
            number,
            name,
            data: fields.get("data").unwrap_or_default().to_owned(),
            is_id_ours: id.is_none(),
            // With an id of its own a line that is sent twice is stored once.
            id: id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
            priority: present("priority").or_else(|| args.priority.clone()),
            dedup_key: present("dedupKey"),
            source: present("source").unwrap_or_else(|| args.source.clone()),
            ts,
            meta: fields.get("meta").map(str::to_owned).or_else(|| args.meta.clone()),
        })
    }

    fn emit(&self, args: &Args) -> Emit<'_> {
        Emit {
            name: &self.name,
            data: &self.data,
            priority: self.priority.as_deref().map_or(AskedPriority::Unset, AskedPriority::Strict),
            id: Some(&self.id),
            dedup_key: self.dedup_key.as_deref(),
            source: Some(&self.source),
            ts: self.ts,
            strict: args.strict,
            no_dedup: args.no_dedup,
            meta: self.meta.as_deref(),
            ..Emit::default()
        }
    }
}

/// A line that was not accepted.
#[derive(Debug, serde::Serialize)]
struct Bad {
    line: u64,
    code: String,
    message: String,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: u64,
    duplicates: u64,
    failed: u64,
    errors: Vec<Bad>,
    /// The line to go on with.
    next_line: u64,
}

impl Counts {
    fn fail(&mut self, bad: Bad) {
        self.failed += 1;
        if self.errors.len() < ERRORS_SHOWN {
            self.errors.push(bad);
        }
    }
}

async fn bulk(
    args: &Args,
    path: &str,
    bus: &Bus,
    admission: &Admission,
    triage: &mut Worker,
    context: &Context,
) -> Result<Report, Failure> {
    let (reader, size) = open(path)?;
    let progress = progress(size, context);
    let mut counts = Counts { next_line: args.from_line, ..Counts::default() };
    let (send, mut batches) = tokio::sync::mpsc::channel(2);
    let reading = tokio::task::spawn_blocking(move || read_lines(reader, &send));
    let mut is_stopped = false;
    while let Some(raw) = batches.recv().await {
        let mut lines = Vec::with_capacity(raw.len());
        let mut read = 0;
        let mut stop = None;
        let last = raw.last().map_or(counts.next_line, |line: &RawLine| line.number + 1);
        for RawLine { number, bytes } in raw {
            read += bytes.len() as u64 + 1;
            if number < args.from_line || bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let parsed = if bytes.len() as u64 >= LONGEST_LINE {
                Err(Bad { line: number, code: "TOO_LARGE".into(), message: "the line is over 8 MiB".into() })
            } else {
                Line::parse(number, &bytes, args)
            };
            match parsed {
                Ok(line) => lines.push(line),
                Err(bad) if args.strict => {
                    stop = Some(bad);
                    break;
                }
                Err(bad) => counts.fail(bad),
            }
        }
        let bad = append(&mut lines, admission, args, &mut counts).await.map_err(|error| {
            progress.finish_and_clear();
            broken_off(error, &counts, path)
        })?;
        triage.flush(bus).await;
        progress.inc(if size.is_some() {
            read
        } else {
            counts.accepted + counts.duplicates + counts.failed - progress.position()
        });
        // The lines before the unreadable one may hold an earlier bad one.
        let refused = bad.or_else(|| {
            let bad = stop?;
            let number = bad.line;
            counts.fail(bad);
            Some(number)
        });
        if let Some(number) = refused {
            counts.next_line = number;
            is_stopped = true;
            break;
        }
        counts.next_line = counts.next_line.max(last);
    }
    drop(batches);
    progress.finish_and_clear();
    // After a stop the reader may wait for more of a pipe; it ends with the process.
    if !is_stopped && let Ok(Err(error)) = reading.await {
        let message = format!("{path} can't be read on: {error}");
        let fix = format!("joelclaw queue emit --bulk {path} --from-line {}", counts.next_line);
        return Err(Failure::new("INPUT_UNREADABLE", Exit::Usage, message, fix));
    }
    counts.errors.sort_by_key(|bad| bad.line);
    let result = json!({
        "accepted": counts.accepted,
        "duplicates": counts.duplicates,
        "failed": counts.failed,
        "errors": counts.errors,
        "nextLine": counts.next_line,
        "redis": redis_of(bus, context).await,
    });
    let mut human = Human::new().pairs([
        ("accepted", counts.accepted.to_string()),
        ("duplicates", counts.duplicates.to_string()),
        ("failed", counts.failed.to_string()),
        ("next line", counts.next_line.to_string()),
    ]);
    if !counts.errors.is_empty() {
        let rows = counts.errors.iter().map(|bad| vec![bad.line.to_string(), bad.code.clone(), bad.message.clone()]);
        human = human.table(&["LINE", "CODE", "ERROR"], rows);
    }
    let report = Report::new(result, human).next(NextAction::new("queue depth", "Check the backlog"));
    Ok(if counts.failed > 0 { report.unhealthy(Exit::Usage) } else { report })
}

/// Appends the lines; bad ones are counted and left out. With `--strict` the first bad one ends it: its number.
async fn append(
    lines: &mut Vec<Line>,
    admission: &Admission,
    args: &Args,
    counts: &mut Counts,
) -> Result<Option<u64>, Error> {
    let mut away_since: Option<Instant> = None;
    let mut delay = FIRST_DELAY;
    let mut may_be_stored = false;
    let mut stop_at = None;
    while !lines.is_empty() {
        let emits: Vec<Emit<'_>> = lines.iter().map(|line| line.emit(args)).collect();
        match admission.admit_batch(&emits).await {
            Ok(accepted) => {
                for (line, accepted) in lines.iter().zip(accepted) {
                    // What an unconfirmed try of ours had stored is no duplicate.
                    let is_ours = may_be_stored && line.is_id_ours && accepted.duplicate == Some(DuplicateBy::Id);
                    match accepted.duplicate {
                        Some(_) if !is_ours => counts.duplicates += 1,
                        _ => counts.accepted += 1,
                    }
                }
                return Ok(stop_at);
            }
            Err(error @ Error::Append(append::Error::Unreachable(_) | append::Error::UnknownOutcome { .. })) => {
                may_be_stored |= matches!(error, Error::Append(append::Error::UnknownOutcome { .. }));
                if away_since.get_or_insert_with(Instant::now).elapsed() + delay > args.timeout {
                    return Err(error);
                }
                tracing::warn!("{}; trying again", chain(&error));
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LONGEST_DELAY);
            }
            Err(error) => {
                let Some(index) = error.index().filter(|index| *index < lines.len()) else { return Err(error) };
                let bad = lines.remove(index);
                counts.fail(Bad { line: bad.number, code: error.code().into(), message: without_place(&error) });
                if args.strict {
                    stop_at = Some(bad.number);
                    lines.truncate(index);
                }
            }
        }
    }
    Ok(stop_at)
}

/// The message without the place in our batch, which nobody outside knows.
fn without_place(error: &Error) -> String {
    let message = chain(error);
    match message.split_once(": ") {
        Some((place, rest)) if place.starts_with("event ") && place[6..].bytes().all(|b| b.is_ascii_digit()) => {
            rest.to_owned()
        }
        _ => message,
    }
}

fn broken_off(error: Error, counts: &Counts, path: &str) -> Failure {
    let Counts { accepted, duplicates, failed, next_line, .. } = counts;
    let message = format!(
        "{} (before that: {accepted} accepted, {duplicates} duplicates, {failed} failed; go on with line {next_line})",
        chain(&error)
    );
    let fix = format!("joelclaw queue emit --bulk {path} --from-line {next_line}");
    Failure::new(error.code(), error.exit(), message, fix).next(NextAction::new("queue depth", "Check the backlog"))
}

struct RawLine {
    number: u64,
    bytes: Vec<u8>,
}

fn open(path: &str) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
    if path == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let file = File::open(path).map_err(|error| {
        let message = format!("{path} can't be read: {error}");
        Failure::new("INPUT_UNREADABLE", Exit::Usage, message, "Name a readable file, or - for stdin.")
    })?;
    let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    Ok((Box::new(BufReader::with_capacity(1 << 16, file)), size))
}

fn read_lines(mut reader: Box<dyn BufRead + Send>, send: &tokio::sync::mpsc::Sender<Vec<RawLine>>) -> io::Result<()> {
    let mut number = 0;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH {
            let mut bytes = Vec::new();
            if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            } else if bytes.len() as u64 == LONGEST_LINE {
                reader.skip_until(b'\n')?;
            }
            number += 1;
            batch.push(RawLine { number, bytes });
        }
        if batch.is_empty() || send.blocking_send(batch).is_err() {
            return Ok(());
        }
    }
}

/// On stderr, at a terminal only.
fn progress(size: Option<u64>, context: &Context) -> ProgressBar {
    if context.output.is_quiet {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:30} {percent}%  {bytes}/{total_bytes}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos} events  {per_sec}"),
    };
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
