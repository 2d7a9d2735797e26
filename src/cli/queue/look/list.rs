//! `joelclaw queue list`: the open entries in the order in which they will be dispatched.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::{self, Human};
use super::super::condition::Where;
use super::super::{bus, redis_of};
use super::inspect_action;
use crate::config::units::duration_arg;
use crate::streams::entry_id::EntryId;
use crate::streams::family::Family;
use crate::streams::look::{ListFilter, Listed, State};
use crate::streams::priority::Priority;

/// The open entries in the order in which they will be dispatched
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue list --limit 50\n  \
                        joelclaw queue list --family content/updated --state retry --older-than 1h\n  \
                        joelclaw queue list --where 'event.data.user == \"ada\"'")]
pub struct Args {
    /// How many at most
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Only this event name
    #[arg(long)]
    family: Option<Family>,
    /// Only entries in this state
    #[arg(long)]
    state: Option<Wanted>,
    /// Only this stored priority
    #[arg(long)]
    priority: Option<Priority>,
    /// Appended at least so long ago
    #[arg(long, value_name = "DURATION", value_parser = duration_arg)]
    older_than: Option<Duration>,
    #[command(flatten)]
    condition: Where,
    /// Values in full, however long
    #[arg(long)]
    full: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Wanted {
    /// In its lane
    Waiting,
    /// A drainer works on it
    Leased,
    /// Failed, waits for its next attempt
    Retry,
    /// Scheduled
    Later,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let filter = ListFilter {
        family: args.family.clone(),
        state: args.state.map(|state| match state {
            Wanted::Waiting => State::Waiting,
            Wanted::Leased => State::Leased,
            Wanted::Retry => State::Retry,
            Wanted::Later => State::Later,
        }),
        priority: args.priority,
        older_than: args.older_than,
        condition: args.condition.condition(),
        limit: args.limit as usize,
        aging: Some(context.config.drainer.aging_promotion),
    };
    let listed = bus.list(&filter).await?;
    let messages: Vec<Value> = listed.iter().map(|line| message(line, args.full)).collect();
    let rows = listed.iter().zip(&messages).map(|(line, message)| {
        vec![
            line.stream_id.clone().or_else(|| line.event_id.clone()).unwrap_or_default(),
            line.family.to_string(),
            priority_text(line),
            render::age(Duration::from_millis(line.age_ms)),
            state_text(line.state).to_owned(),
            line.attempts.to_string(),
            message["payload"].to_string(),
        ]
    });
    let human = Human::new().table(&["ID", "EVENT", "PRIORITY", "AGE", "STATE", "ATTEMPTS", "DATA"], rows);
    let result = json!({ "count": messages.len(), "messages": messages, "redis": redis_of(&bus, context).await });
    let mut report = Report::new(result, human).list("messages");
    for line in listed.iter().take(3) {
        // Two lanes may share a stream id; an event id is one event.
        if let Some(id) = line.event_id.as_ref().or(line.stream_id.as_ref()) {
            report = report.next(inspect_action(id, &format!("Look at this {}", line.family)));
        }
    }
    if listed.len() == filter.limit {
        let more = NextAction::new("queue list [--limit <n>]", "See more");
        let limit = Param::new().value(args.limit.saturating_mul(10).min(10_000)).default_value(10);
        report = report.next(more.param("n", limit.description("How many")));
    }
    Ok(report.next(NextAction::new("queue depth", "What waits in all")))
}

/// The lower-case name of a state.
pub fn state_text(state: State) -> &'static str {
    match state {
        State::Later => "later",
        State::Waiting => "waiting",
        State::Leased => "leased",
        State::Retry => "retry",
        State::Done => "done",
        State::Dead => "dead",
        State::Acked => "acked",
        State::Missing => "missing",
    }
}

fn priority_text(line: &Listed) -> String {
    if line.effective_priority == line.priority {
        line.priority.to_string()
    } else {
        format!("{} as {}", line.priority, line.effective_priority)
    }
}

/// One line: what older scripts read, and beside it what is new.
fn message(line: &Listed, is_full: bool) -> Value {
    let mut message = json!(line);
    let payload = line.envelope.as_ref().map(|event| event.data.to_value());
    message["id"] = json!(line.stream_id.as_ref().or(line.event_id.as_ref()));
    message["timestamp"] = json!(line.stream_id.as_ref().and_then(|id| id.parse::<EntryId>().ok()).map(|id| id.ms));
    message["age"] = json!(line.age_ms);
    message["acked"] = json!(false);
    message["payload"] = match payload {
        Some(payload) if !is_full => render::cut_values(&payload),
        payload => json!(payload),
    };
    message
}
