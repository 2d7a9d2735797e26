//! `joelclaw queue why`: the one thing that holds an event, and the command that changes it.

use serde_json::{Value, json};

use super::super::super::Context;
use super::super::super::functions::run::why as run_why;
use super::super::super::output::{Failure, NextAction, Report};
use super::super::super::render::Human;
use super::super::{bus, endpoints, functions, is_routed, redis_of, registry};
use super::{inspect_action, missing, resolve, since};
use crate::moment::iso;
use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::streams::find::Place;
use crate::streams::lane::Lane;
use crate::streams::look::{Hold, Routing};

/// The one thing that holds an event or a run, and what changes it
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  joelclaw queue why 1749990000000-0")]
pub struct Args {
    /// Stream id, event id or dead-letter id, or a unique beginning of one (at least 8 characters); or a run's id
    id: String,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let place = match resolve(&bus, &args.id).await {
        Ok(place) => place,
        // What is no entry may be a run.
        Err(failure) => return run_why(&args.id, context).await?.ok_or(failure),
    };
    let hold = hold(&bus, &place, context).await?;
    if hold == Hold::Missing {
        if let Some(report) = run_why(&args.id, context).await? {
            return Ok(report);
        }
        return Err(missing(&bus, &args.id).await?);
    }
    let family = bus.inspect(&place).await?.lane.and_then(|lane| lane.parse::<Lane>().ok()).map(|lane| lane.family);
    let explained = explain(&hold, family.as_ref(), bus.now_ms().await?);
    let mut result = explained.json(&hold);
    result["id"] = args.id.as_str().into();
    result["redis"] = redis_of(&bus, context).await;
    let mut human = Human::new().text(&explained.sentence);
    if let Some(command) = &explained.command {
        human = human.pairs([("what changes it", command.as_str())]);
    }
    let report = Report::new(result, human).next(inspect_action(&args.id, "Everything known about it"));
    Ok(report.next(NextAction::new("queue depth", "What waits in all")))
}

/// The one thing that holds what is at `place`, by the routing table of this configuration.
pub async fn hold(bus: &Bus, place: &Place, context: &Context) -> Result<Hold, Failure> {
    // A registry file that is wrong is no reason not to look at an event.
    let registry = registry(context).ok().map(|handle| handle.current());
    let (functions, endpoints) = (functions(bus).await?, endpoints(bus).await?);
    let routing = |family: &Family| match &registry {
        Some(registry) => Routing {
            is_routed: is_routed(context, registry, &functions, &endpoints, family),
            is_ordered: registry.lookup(family).is_some_and(|entry| entry.ordered),
        },
        None => Routing { is_routed: true, is_ordered: false },
    };
    Ok(bus.why(place, &routing).await?)
}

/// A hold in words.
pub struct Explained {
    /// One sentence.
    pub sentence: String,
    /// The command that changes it, where there is one.
    pub command: Option<String>,
}

impl Explained {
    /// `{hold:{kind,…}, sentence, command}`.
    pub fn json(&self, hold: &Hold) -> Value {
        let mut fields = json!(hold);
        if let Some(fields) = fields.as_object_mut()
            && let Some(kind) = fields.remove("hold")
        {
            fields.insert("kind".into(), kind);
        }
        json!({ "hold": fields, "sentence": self.sentence, "command": self.command })
    }
}

/// Puts a hold into words.
pub fn explain(hold: &Hold, family: Option<&Family>, now_ms: u64) -> Explained {
    let name = family.map_or("its family", Family::as_str);
    let at = |ms: u64| iso(ms).unwrap_or_else(|| ms.to_string());
    let (sentence, command) = match hold {
        Hold::Paused { until_ms, reason, .. } => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            (format!("{name} is paused until {}{reason}.", at(*until_ms)), Some(format!("queue resume {name}")))
        }
        Hold::Paced { kind, every_ms, max, reason, .. } => {
            #[allow(clippy::cast_precision_loss)]
            let window = *every_ms as f64 / 1000.0;
            let end = if kind == "trickle_family" { "resume" } else { "batch" };
            let flag = if kind == "trickle_family" { "" } else { " --end" };
            (
                format!("{name} starts at most {max} every {window} s: {reason}."),
                Some(format!("queue {end} {name}{flag}")),
            )
        }
        Hold::Slowed { limit } => (
            format!("The target of {name} fails or is slow: {limit} at once until it goes well."),
            Some("queue stats --by family".to_owned()),
        ),
        Hold::Broken { state, until_ms, error } => {
            let after = if error.is_empty() { String::new() } else { format!(" after: {error}") };
            let then = match (state.as_str(), until_ms) {
                ("open", Some(until)) => format!("; one event is tried at {}", at(*until)),
                ("half_open", _) => "; one event at a time is tried".to_owned(),
                (_, Some(until)) => format!(" until {}", at(*until)),
                _ => String::new(),
            };
            let sentence = format!("The circuit breaker of {name} is {}{after}{then}.", state.replace('_', " "));
            (sentence, Some(format!("queue breaker reset {name}")))
        }
        Hold::Retry { due_ms, error } => {
            let error = error.as_ref().map(|error| format!(" after: {error}")).unwrap_or_default();
            let due =
                due_ms.map_or_else(|| "its next attempt".to_owned(), |due| format!("its next attempt at {}", at(due)));
            (format!("It waits for {due}{error}."), None)
        }
        Hold::Leased { owner, since_ms } => {
            (format!("The drainer {owner} works on it; it began {}.", since(*since_ms, now_ms)), None)
        }
        Hold::Orphaned { owner } => {
            (format!("Its drainer {owner} has ended; the next one that runs takes it over."), Some("drainer".into()))
        }
        Hold::Unrouted => (
            format!("No route serves {name}: it is kept until one appears."),
            Some(format!("queue registry explain {name}")),
        ),
        Hold::NoDrainer => ("No drainer is running.".into(), Some("drainer".into())),
        Hold::OrderedBehind { stream_id } => (
            format!("{name} is ordered, and {stream_id} before it is not done."),
            Some(format!("queue why {stream_id}")),
        ),
        Hold::AheadInLane { n: 1_000.. } => {
            ("At least 1000 entries of its lane come first.".into(), Some(format!("queue list --family {name}")))
        }
        Hold::AheadInLane { n: 1 } => {
            ("One entry of its lane comes first.".into(), Some(format!("queue list --family {name}")))
        }
        Hold::AheadInLane { n } => {
            (format!("{n} entries of its lane come first."), Some(format!("queue list --family {name}")))
        }
        Hold::Next => ("Nothing holds it: it is the next of its lane.".into(), None),
        Hold::Later { at_ms } => (format!("It is scheduled for {}.", at(*at_ms)), None),
        Hold::Dead { dead_id, reason } => (
            format!("It is a dead letter ({reason}): nothing happens until it is redriven or dropped."),
            Some(format!("queue dead redrive {dead_id}")),
        ),
        Hold::Done => ("It is done.".into(), None),
        Hold::Acked => ("An operator acknowledged it.".into(), None),
        Hold::Missing => ("Nothing is known of it.".into(), None),
    };
    Explained { sentence, command: command.map(|command| format!("joelclaw {command}")) }
}
