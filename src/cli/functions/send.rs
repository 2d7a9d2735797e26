//! `joelclaw send`: an event for functions, and with `--follow` the runs that it starts until they have ended.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::{bus_to_change, is_inngest_served, redis_of, registry};
use super::super::render::Human;
use super::super::{Context, Ending};
use super::event::is_unmatched;
use super::{bounded, follow, read_data, snapshot};
use crate::config::units::duration_arg;
use crate::diagnose::{Diagnose as _, Exit};
use crate::functions::registry::INTERNAL;
use crate::ingest::admission::{Accepted, AskedPriority, Emit, Error, PublicId};
use crate::ingest::fields::{Fields, json_string, object_text};
use crate::moment::iso;
use crate::service;
use crate::streams::bus::Bus;
use crate::streams::public_id;

/// Send an event to functions, and follow the runs that it starts
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw send shop/order.placed -d '{\"orderId\":42}'\n  \
                        joelclaw send shop/order.placed -d @order.json --follow --timeout 2m\n\n\
                        With --follow: exit 1 when a run failed or the time is over; in a pipe one JSON line per step.")]
pub struct Args {
    /// The event name
    event: String,
    /// The data, a JSON object: text, @file, or - for stdin
    #[arg(short, long, value_name = "JSON")]
    data: Option<String>,
    /// Put this into the data as `url`
    #[arg(long)]
    url: Option<String>,
    /// The event's id: the same id again is a duplicate, so a retry is safe
    #[arg(long)]
    id: Option<String>,
    /// P0 (now) to P3 (whenever), instead of the registry's
    #[arg(short, long)]
    priority: Option<String>,
    /// Wait until the runs that it starts have ended
    #[arg(long)]
    follow: bool,
    /// How long to follow
    #[arg(long, value_name = "DURATION", default_value = "300s", value_parser = duration_arg)]
    timeout: Duration,
}

/// An event that is stored.
pub(super) struct Sent {
    pub accepted: Accepted,
    /// The ULID by which everything else knows it.
    pub id: String,
    /// As it was stored.
    pub data: Value,
    /// Neither function nor route wants it.
    pub is_unmatched: bool,
}

impl Sent {
    pub fn name(&self) -> &str {
        self.accepted.lane.family.as_str()
    }

    /// What every ending says about it.
    pub fn json(&self) -> Value {
        let mut shown = json!({
            "event": self.name(),
            "data": bounded(self.data.clone(), false),
            "response": { "ids": [self.id], "status": 200 },
            "eventId": self.accepted.event_id,
            "streamId": self.accepted.stream_id.map(|id| id.to_string()),
            "durability": self.accepted.durability,
        });
        if let Some(duplicate) = self.accepted.duplicate {
            shown["duplicate"] = json!(duplicate);
        }
        if self.is_unmatched {
            shown["warnings"] = json!([{ "code": "EVENT_UNMATCHED", "message": self.unmatched() }]);
        }
        shown
    }

    pub fn unmatched(&self) -> String {
        format!("no function and no route wants {}: it is kept, and starts nothing until one does", self.name())
    }

    pub fn next(&self, report: Report) -> Report {
        let event = NextAction::new("event <event-id>", "What it started");
        let report = report.next(event.param("event-id", Param::new().value(self.id.as_str()).required()));
        match self.is_unmatched {
            true => report.next(NextAction::new("functions", "What there is, and what starts it")),
            false => report.next(NextAction::new("runs", "What ran lately")),
        }
    }
}

/// Runs the command.
pub(in crate::cli) async fn run(args: &Args, context: &Context) -> Ending {
    if args.follow {
        return follow::run(args, args.timeout, context).await;
    }
    Ending::Outcome(once(args, context).await)
}

async fn once(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    let sent = send(args, &bus, context).await?;
    let mut result = sent.json();
    let text = match sent.accepted.duplicate {
        Some(_) => format!("{} was sent already; nothing was stored.", sent.name()),
        None => format!("{} is sent.", sent.name()),
    };
    let mut human = Human::new().text(text).pairs([("id", sent.id.clone())]);
    if let Some((until, _)) = bus.pauses().await.ok().and_then(|pauses| pauses.of(sent.name()).cloned()) {
        let until = iso(until).unwrap_or_default();
        human = human.text(format!("{} is paused until {until}.", sent.name()));
        result["held"] = json!({ "family": sent.name(), "expiresAt": until });
    }
    if sent.is_unmatched {
        human = human.text(format!("warning: {}", sent.unmatched()));
    }
    result["redis"] = redis_of(&bus, context).await;
    Ok(sent.next(Report::new(result, human)))
}

/// Stores the event.
pub(super) async fn send(args: &Args, bus: &Bus, context: &Context) -> Result<Sent, Failure> {
    if args.event.trim().get(..INTERNAL.len()).is_some_and(|start| start.eq_ignore_ascii_case(INTERNAL)) {
        let message = format!("event name is reserved for internal use: {}", args.event.trim());
        return Err(Failure::new(
            "INVALID_EVENT_NAME",
            Exit::Usage,
            message,
            "Use a name of your own, such as shop/order.placed.",
        ));
    }
    let mut data = read_data(args.data.as_deref().unwrap_or_default())?;
    if let Some(url) = &args.url {
        data = with_url(&data, url)?;
    }
    let registry = registry(context)?;
    let admission = service::admission(&context.config, bus, &registry, is_inngest_served(context)).await;
    let ulid = public_id::fresh();
    let emit = Emit {
        name: &args.event,
        data: &data,
        priority: args.priority.as_deref().map_or(AskedPriority::Unset, AskedPriority::Strict),
        id: args.id.as_deref(),
        source: Some("cli"),
        public: Some(PublicId { ulid: &ulid, is_repeated: false }),
        ..Emit::default()
    };
    let accepted = admission.admit(emit).await.map_err(refused)?;
    // Of a duplicate everything knows the first one.
    let known = match (accepted.duplicate, accepted.stream_id) {
        (Some(_), Some(entry)) => bus.stored_public_id(&accepted.lane, entry).await?,
        (Some(_), None) => public_id::parse(&accepted.event_id).map(|id| id.to_string()),
        (None, _) => None,
    };
    let is_unmatched = is_unmatched(bus, &snapshot(bus).await?, accepted.lane.family.as_str(), context).await;
    let data = serde_json::from_str(&data).unwrap_or_else(|_| json!({}));
    Ok(Sent { id: known.unwrap_or(ulid), data, is_unmatched, accepted })
}

fn refused(error: Error) -> Failure {
    match &error {
        Error::NotAnObject { field: "data", found, .. } => {
            let message = format!("--data must be a JSON object, got {found}");
            Failure::new("INVALID_JSON", Exit::Usage, message, "Wrap the value: -d '{\"value\": …}'")
        }
        Error::InvalidJson { field, reason, .. } => {
            Failure::new(error.code(), Exit::Usage, format!("--{field} is {reason}"), error.fix())
        }
        _ => error.into(),
    }
}

/// The object with this `url`; everything else keeps its exact text.
fn with_url(data: &str, url: &str) -> Result<String, Failure> {
    let text = if data.trim().is_empty() { "{}" } else { data };
    let fields = Fields::parse(text).map_err(|error| {
        let message = format!("--data must be a JSON object: {error}");
        Failure::new("INVALID_JSON", Exit::Usage, message, "Use -d '{\"n\":1}', or leave --url out.")
    })?;
    let url = json_string(url);
    let own = fields.iter().filter(|(key, _)| *key != "url");
    Ok(object_text(own.chain(std::iter::once(("url", url.as_str())))))
}

#[cfg(test)]
mod tests {
    use super::with_url;

    #[test]
    fn a_url_is_put_in_and_the_rest_keeps_its_text() {
        assert_eq!(with_url("", "http://a").unwrap(), r#"{"url":"http://a"}"#);
        let given = r#"{"n":12345678901234567890123,"url":"old","t":1.0}"#;
        assert_eq!(with_url(given, "http://a").unwrap(), r#"{"n":12345678901234567890123,"t":1.0,"url":"http://a"}"#);
        assert!(with_url("[1]", "http://a").is_err());
    }
}
