//! `joelclaw queue tail`: the journal as it is written, until interrupted. Reads only.
//!
//! In a pipe: NDJSON, flushed line by line: `start`, an `event` for each record, `log` when Redis goes away or comes
//! back, and as the last line `result` or `error`. Every `event` has the `id` of its journal batch: `--since <id>` goes
//! on there, and repeats that batch, because a reader may have stopped in the middle of it.

use std::process::ExitCode;
use std::time::Duration;

use chrono::{Local, TimeZone as _};
use clap::builder::styling::{AnsiColor, Style};
use serde_json::{Value, json};
use tokio::signal::unix::SignalKind;
use tokio::time::Instant;

use super::super::interrupt::{heard, listen};
use super::super::output::{self, Failure, Mode};
use super::super::{Context, Ending, render};
use super::since::Since;
use super::{bus, redis_of};
use crate::config::units::duration_arg;
use crate::moment;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::family::Family;
use crate::streams::records::{Entry, Fact, Level};

/// Journal batches per read.
const PAGE: usize = 256;
/// Between two reads that found nothing. Not a blocking read: that would hold a connection of its own.
const POLL: Duration = Duration::from_millis(200);
/// Between two attempts while Redis is away.
const RETRY: Duration = Duration::from_secs(1);

/// Show the journal as it is written
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw queue tail --family content/updated\n  joelclaw queue tail --since 15m | jq -c .data"
)]
pub struct Args {
    /// Only records about this event name
    #[arg(long)]
    family: Option<Family>,
    /// Begin there instead of now: 15m, a time, or the id of a record
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End after so many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "DURATION", value_parser = duration_arg)]
    timeout: Option<Duration>,
}

/// Why a tail ended.
enum End {
    Limit,
    Timeout(Duration),
    /// By a signal, or because nobody reads any more.
    Interrupted(u8),
    Unread,
}

/// Runs the command; everything is printed when it returns.
pub(in crate::cli) async fn run(args: &Args, context: &Context) -> Ending {
    let mut tail = Tail { args, context, shown: 0, last: None };
    let outcome = tail.follow().await;
    let is_human = context.output.mode == Mode::Human;
    match outcome {
        Ok(End::Unread) => Ending::Streamed(ExitCode::SUCCESS),
        Ok(end) => {
            if !is_human {
                context.output.line(&tail.result(&end));
            }
            let exit = if let End::Interrupted(code) = end { code } else { 0 };
            Ending::Streamed(ExitCode::from(exit))
        }
        Err(failure) if is_human => Ending::Outcome(Err(failure)),
        Err(failure) => {
            let failure = context.advise(failure);
            let exit = failure.exit();
            let mut line = output::envelope(&context.command, &Err(failure));
            line["type"] = json!("error");
            context.output.line(&line);
            Ending::Streamed(ExitCode::from(exit as u8))
        }
    }
}

struct Tail<'a> {
    args: &'a Args,
    context: &'a Context,
    shown: u64,
    last: Option<EntryId>,
}

impl Tail<'_> {
    async fn follow(&mut self) -> Result<End, Failure> {
        let since = Since::of(self.args.since.as_deref())?;
        let bus = bus(self.context)?;
        let now = bus.now_ms().await?;
        let mut from = since.unwrap_or(Since::At(now)).entry(&bus, now).await?;
        let redis = redis_of(&bus, self.context).await;
        if !self.tell(&json!({ "type": "start", "command": self.context.command, "ts": moment::now(), "redis": redis }))
        {
            return Ok(End::Unread);
        }
        let deadline = self.args.timeout.map(|timeout| (Instant::now() + timeout, timeout));
        let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
        let mut wait = Duration::ZERO;
        let mut is_away = false;
        loop {
            tokio::select! {
                biased;
                () = heard(&mut interrupt) => return Ok(End::Interrupted(130)),
                () = heard(&mut terminate) => return Ok(End::Interrupted(143)),
                () = tokio::time::sleep(wait) => {}
            }
            let page = self.page(&bus, &mut from, &mut is_away).await?;
            let Some((entries, is_full)) = page else {
                wait = RETRY;
                continue;
            };
            for entry in &entries {
                if self.args.family.as_ref().is_some_and(|family| family_of(&entry.fact) != Some(family.as_str())) {
                    continue;
                }
                self.last = Some(entry.id);
                self.shown += 1;
                if !self.show(entry) {
                    return Ok(End::Unread);
                }
                if Some(self.shown) == self.args.limit {
                    return Ok(End::Limit);
                }
            }
            if let Some((at, timeout)) = deadline
                && Instant::now() >= at
            {
                return Ok(End::Timeout(timeout));
            }
            if !is_full && !self.context.output.is_read() {
                return Ok(End::Unread);
            }
            let left = deadline.map_or(POLL, |(at, _)| at.saturating_duration_since(Instant::now()));
            wait = if is_full { Duration::ZERO } else { POLL.min(left) };
        }
    }

    /// The next records, and whether more wait. `None` while Redis is away: a tail outlives its restart.
    async fn page(
        &self,
        bus: &Bus,
        from: &mut EntryId,
        is_away: &mut bool,
    ) -> Result<Option<(Vec<Entry>, bool)>, Failure> {
        match bus.journal_page(*from, EntryId::MAX, PAGE).await {
            Ok(page) => {
                if std::mem::take(is_away) {
                    self.log("info", "Redis is back");
                }
                if let Some(last) = page.last.or(page.entries.last().map(|entry| entry.id)) {
                    *from = last.next();
                }
                Ok(Some((page.entries, page.last.is_some())))
            }
            Err(error) if error.is_unreachable() => {
                if !std::mem::replace(is_away, true) {
                    self.log("warn", &crate::diagnose::chain(&error));
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn show(&self, entry: &Entry) -> bool {
        let output = &self.context.output;
        if output.mode == Mode::Human {
            return output.text(&human(entry, output.is_colored));
        }
        let ts = super::since::iso(entry.id.ms);
        let id = entry.id.to_string();
        output.line(&json!({ "type": "event", "name": entry.fact.action, "id": id, "data": entry.to_json(), "ts": ts }))
    }

    fn log(&self, level: &str, message: &str) {
        self.tell(&json!({ "type": "log", "level": level, "message": message, "ts": moment::now() }));
        if self.context.output.mode == Mode::Human {
            tracing::error!("{message}");
        }
    }

    /// A line that only programs get.
    fn tell(&self, line: &Value) -> bool {
        self.context.output.mode == Mode::Human || self.context.output.line(line)
    }

    fn result(&self, end: &End) -> Value {
        let mut result = json!({ "events": self.shown, "last": self.last.map(|id| id.to_string()) });
        match end {
            End::Limit => result["reason"] = json!("limit"),
            End::Timeout(timeout) => {
                result["reason"] = json!("timeout");
                result["timeout_ms"] = json!(timeout.as_millis());
            }
            End::Interrupted(_) | End::Unread => result["reason"] = json!("interrupted"),
        }
        json!({ "type": "result", "ok": true, "command": self.context.command, "result": result, "next_actions": [] })
    }
}

/// The event name a record is about.
fn family_of(fact: &Fact) -> Option<&str> {
    let text = |key: &str| fact.metadata.get(key).and_then(Value::as_str);
    let of_lane = || fact.lane.as_deref().and_then(|lane| lane.rsplit_once(":p")).map(|(family, _)| family);
    text("eventName").or_else(|| text("family")).or_else(of_lane)
}

/// `14:03:07  dispatch.completed  content/updated  <event id>  duration 12 ms`.
fn human(entry: &Entry, is_colored: bool) -> String {
    let fact = &entry.fact;
    let time = i64::try_from(entry.id.ms).ok().and_then(|ms| Local.timestamp_millis_opt(ms).single());
    let time = time.map_or_else(|| entry.id.ms.to_string(), |time| time.format("%H:%M:%S").to_string());
    let mut words = vec![family_of(fact).unwrap_or("-").to_owned()];
    words.extend(fact.event_id.clone());
    for (key, label) in [("attempt", "attempt"), ("waitTimeMs", "waited ms"), ("durationMs", "took ms"), ("by", "by")] {
        if let Some(value) = fact.metadata.get(key).filter(|value| !value.is_null()) {
            words.push(format!("{label} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
    }
    if let Some(reason) = fact.error.as_deref().or_else(|| fact.metadata.get("reason").and_then(Value::as_str)) {
        words.push(render::cut(reason));
    }
    let color = match fact.level {
        Level::Debug | Level::Info => None,
        Level::Warn => Some(AnsiColor::Yellow),
        Level::Error | Level::Fatal => Some(AnsiColor::Red),
    };
    let action = format!("{:<22}", fact.action.strip_prefix("queue.").unwrap_or(&fact.action));
    let style = Style::new().fg_color(color.map(Into::into));
    format!("{time}  {}  {}", render::paint(style, &action, is_colored && color.is_some()), words.join("  "))
}
