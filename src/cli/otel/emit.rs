//! `joelclaw otel emit`: writes one telemetry event into the journal; while Redis is away, into the outbox.

use std::io::{IsTerminal as _, Read as _};

use serde_json::{Map, Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::{bus_to_change, redis_of};
use super::super::render::Human;
use crate::diagnose::{Diagnose as _, Exit, chain};
use crate::streams::journal::encode_facts;
use crate::telemetry::outbox::{Error, Outbox, Place};
use crate::telemetry::posted;

/// Longest standard input, bytes.
const LONGEST: u64 = 1 << 20;

/// Write one telemetry event
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw otel emit backup.finished --component backup --metadata '{\"files\":12}'\n  \
                  echo '{\"action\":\"backup.failed\",\"success\":false,\"error\":\"disk full\"}' | joelclaw otel emit\n\n\
                  A JSON object on standard input gives what the options leave open."
)]
pub struct Args {
    /// What happened: a dotted name
    action: Option<String>,
    /// The same
    #[arg(long = "action", value_name = "ACTION", conflicts_with = "action")]
    named: Option<String>,
    /// Which subsystem [default: cli]
    #[arg(long)]
    source: Option<String>,
    /// Which part of it [default: otel-cli]
    #[arg(long)]
    component: Option<String>,
    /// debug, info, warn, error or fatal [default: info]
    #[arg(long)]
    level: Option<String>,
    /// Whether it succeeded [default: true, with --error false]
    #[arg(long)]
    success: Option<bool>,
    /// What went wrong
    #[arg(long)]
    error: Option<String>,
    /// Everything else, a JSON object
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
    /// Its id; events of one id are one
    #[arg(long)]
    id: Option<String>,
    /// When, ms since the epoch
    #[arg(long, value_name = "MS")]
    timestamp: Option<u64>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let event = args.event(context)?;
    let now = chrono::Utc::now().timestamp_millis();
    let parsed = posted::parse(Value::Object(event).to_string().as_bytes(), u64::try_from(now).unwrap_or_default());
    let (mut events, _) = parsed.map_err(|error| match error {
        posted::Error::Payload => invalid("an event has an action: joelclaw otel emit backup.finished"),
        error => invalid(error.to_string()),
    })?;
    let Some(posted) = events.pop() else { return Err(invalid("there is no event")) };
    let batch = encode_facts([posted.fact]);
    let outbox = Outbox::of(&context.config);
    let (status, redis) = match bus_to_change(context).await {
        Ok(bus) => match outbox.write(&bus, batch).await.map_err(failed)? {
            Place::Journal => ("stored", redis_of(&bus, context).await),
            Place::Disk => ("queued", Value::Null),
        },
        Err(failure) if failure.code() == "REDIS_UNREACHABLE" => {
            outbox.keep(batch).await.map_err(failed)?;
            ("queued", Value::Null)
        }
        Err(failure) => return Err(failure),
    };
    let text = match status {
        "stored" => format!("{} is in the journal.", posted.id),
        _ => format!(
            "Redis is away: {} is on disk, and goes in when a service of this machine finds it back.",
            posted.id
        ),
    };
    let result = json!({ "eventId": posted.id, "status": status, "stored": status == "stored", "redis": redis });
    Ok(Report::new(result, Human::new().text(text)).next(NextAction::new("otel list", "See the newest events")))
}

fn failed(error: Error) -> Failure {
    let (exit, fix) = match &error {
        Error::Redis(error) => (error.exit(), error.fix()),
        _ => (Exit::Unreachable, "Bring Redis back, or make room in the outbox (OTEL_OUTBOX_DIR).".into()),
    };
    Failure::new("OTEL_EMIT_FAILED", exit, chain(&error), fix)
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new("OTEL_INVALID_ARGS", Exit::Usage, message, "joelclaw otel emit --help")
}

impl Args {
    /// Options over standard input over defaults.
    fn event(&self, context: &Context) -> Result<Map<String, Value>, Failure> {
        let session = ["SLOG_SESSION_ID", "JOELCLAW_SESSION_ID"].into_iter().find_map(|name| std::env::var(name).ok());
        let mut event = Map::from_iter([
            ("source".to_owned(), json!("cli")),
            ("component".to_owned(), json!("otel-cli")),
            ("systemId".to_owned(), json!(crate::service::system_id(&context.config))),
            ("sessionId".to_owned(), json!(session.unwrap_or_else(|| "unknown".to_owned()))),
        ]);
        event.extend(piped()?);
        let text = |value: &Option<String>| value.as_deref().map(Value::from);
        let given = [
            ("action", text(&self.action).or_else(|| text(&self.named))),
            ("source", text(&self.source)),
            ("component", text(&self.component)),
            ("level", text(&self.level)),
            ("success", self.success.map(Value::from)),
            ("error", text(&self.error)),
            ("id", text(&self.id)),
            ("timestamp", self.timestamp.map(Value::from)),
        ];
        event.extend(given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        if let Some(metadata) = &self.metadata {
            let parsed = serde_json::from_str(metadata).ok().filter(Value::is_object);
            event.insert("metadata".into(), parsed.ok_or_else(|| invalid("--metadata is no JSON object"))?);
        }
        Ok(event)
    }
}

/// The object on standard input, where there is any.
fn piped() -> Result<Map<String, Value>, Failure> {
    let mut text = String::new();
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        stdin.take(LONGEST).read_to_string(&mut text).map_err(|error| invalid(format!("standard input: {error}")))?;
    }
    match text.trim() {
        "" => Ok(Map::new()),
        text => match serde_json::from_str(text) {
            Ok(Value::Object(event)) => Ok(event),
            _ => Err(invalid("standard input is no JSON object")),
        },
    }
}
