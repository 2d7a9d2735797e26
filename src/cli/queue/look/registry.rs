//! `joelclaw queue registry`: what each event name means, and where that is said.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::Human;
use super::super::{bus, endpoints, functions, is_routed, registry};
use crate::diagnose::{Diagnose as _, Exit};
use crate::functions::registry::Snapshot;
use crate::outbound::store::Snapshot as Endpoints;
use crate::registry::entry::{Entry, HandlerSpec};
use crate::registry::{Error, Registry};
use crate::streams::family::Family;

/// How long the functions are waited for.
const FUNCTIONS_WAIT: std::time::Duration = std::time::Duration::from_millis(500);

/// What each event name means: priority, handler, limits
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// The routing table in force, and where each entry comes from
    #[command(after_help = "Example:\n  joelclaw queue registry list")]
    List,
    /// Check a registry file before it is used
    #[command(after_help = "Example:\n  joelclaw queue registry check ./registry.toml")]
    Check {
        /// The file, instead of the configured one
        path: Option<PathBuf>,
    },
    /// How one event name is routed, and what is shadowed
    #[command(after_help = "Example:\n  joelclaw queue registry explain content/updated")]
    Explain {
        /// The event name
        event: Family,
    },
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::List => list(context),
        Command::Check { path } => check(path.clone(), context),
        Command::Explain { event } => explain(event, context).await,
    }
}

fn list(context: &Context) -> Result<Report, Failure> {
    let registry = registry(context)?.current();
    let entries = registry.entries();
    let rows = entries.iter().map(|entry| {
        vec![
            entry.pattern.to_string(),
            entry.priority.to_string(),
            handler(entry),
            entry.description.clone(),
            entry.origin.to_string(),
        ]
    });
    let human = Human::new().table(&["EVENT", "PRIORITY", "HANDLER", "DESCRIPTION", "FROM"], rows);
    let listed: Vec<Value> = entries.iter().map(|entry| entry_json(entry)).collect();
    let result = json!({
        "count": listed.len(),
        "entries": listed,
        "path": context.config.system.registry,
        "hash": registry.hash(),
    });
    let report = Report::new(result, human).list("entries");
    Ok(report.next(NextAction::new("queue registry check", "Check the file after a change")))
}

fn check(path: Option<PathBuf>, context: &Context) -> Result<Report, Failure> {
    let is_named = path.is_some();
    let path = path.unwrap_or_else(|| context.config.system.registry.clone());
    if is_named && !path.exists() {
        let message = format!("{} does not exist", path.display());
        return Err(Failure::new("REGISTRY_UNREADABLE", Exit::Usage, message, "Name an existing file."));
    }
    let problems = match Registry::load(&path) {
        Ok(registry) => {
            let count = registry.entries().len();
            let result = json!({
                "path": path, "exists": path.exists(), "entries": count, "hash": registry.hash(), "problems": [],
            });
            let text =
                if path.exists() { "is right" } else { "does not exist: the built-in entries alone are in force" };
            let human = Human::new().text(format!("{} {text} ({count} entries in all).", path.display()));
            return Ok(
                Report::new(result, human).next(NextAction::new("queue registry list", "See the table in force"))
            );
        }
        Err(Error::Invalid { problems }) => problems,
        Err(error) => return Err(Failure::new(error.code(), Exit::Usage, error.to_string(), error.fix())),
    };
    let human = problems.iter().fold(
        Human::new().text(format!("{} is wrong; what is in force stays as it is.", path.display())),
        |human, problem| human.text(problem),
    );
    let result = json!({ "path": path, "exists": true, "problems": problems });
    let report = Report::new(result, human).list("problems").unhealthy(Exit::Usage);
    Ok(report.next(NextAction::new("queue registry check", "Check it again after mending it")))
}

/// The functions and endpoints, where Redis is there to tell of them: the table itself needs none.
async fn known_targets(context: &Context) -> (Snapshot, Endpoints) {
    let Ok(bus) = bus(context) else { return Default::default() };
    let known = async { Ok::<_, Failure>((functions(&bus).await?, endpoints(&bus).await?)) };
    tokio::time::timeout(FUNCTIONS_WAIT, known).await.ok().and_then(Result::ok).unwrap_or_default()
}

async fn explain(event: &Family, context: &Context) -> Result<Report, Failure> {
    let registry = registry(context)?.current();
    let (functions, endpoints) = known_targets(context).await;
    let explanation = registry.explain(event);
    let is_served = is_routed(context, &registry, &functions, &endpoints, event);
    let target = match explanation.entry.map(|entry| &entry.handler) {
        Some(HandlerSpec::Inngest { target }) => target.as_str(),
        _ => event.as_str(),
    };
    let started: Vec<String> = functions.triggered_by(target).iter().map(|function| function.slug.clone()).collect();
    let path = context.config.system.registry.display().to_string();
    let to_add = format!(
        "[[event]]\nname = \"{event}\"\nhandler = {{ type = \"http\", target = \"http://127.0.0.1:8080/hook\" }}"
    );
    let (text, hint) = match explanation.entry {
        _ if is_served && !started.is_empty() => (format!("{event} starts {}.", started.join(", ")), false),
        None if is_served && endpoints.wants(event.as_str()) => {
            (format!("{event} is sent to endpoints (joelclaw webhooks endpoints list)."), false)
        }
        None if is_served => (format!("{event} is wanted by the functions engine."), false),
        None => (format!("No entry matches {event}: its events are kept until one does."), true),
        Some(entry) if !is_served => (
            format!(
                "{event} is routed to {}, but no Inngest server is configured: its events are kept.",
                handler(entry)
            ),
            true,
        ),
        Some(entry) => (format!("{event} is routed to {} ({}).", handler(entry), entry.origin), false),
    };
    let mut human = Human::new().text(text);
    if let Some(entry) = explanation.entry {
        human = human.pairs([
            ("entry", entry.pattern.to_string()),
            ("from", entry.origin.to_string()),
            ("priority", entry.priority.to_string()),
            ("handler", handler(entry)),
        ]);
    }
    if hint {
        human = human.title(format!("To route it, add to {path}")).text(&to_add);
    }
    if !explanation.shadowed.is_empty() {
        let rows = explanation
            .shadowed
            .iter()
            .map(|entry| vec![entry.pattern.to_string(), handler(entry), entry.origin.to_string()]);
        human = human.title("Shadowed").table(&["EVENT", "HANDLER", "FROM"], rows);
    }
    let shadowed: Vec<Value> = explanation.shadowed.iter().map(|entry| entry_json(entry)).collect();
    let result = json!({
        "event": event,
        "routed": is_served,
        "functions": started,
        "entry": explanation.entry.map(entry_json),
        "shadowed": shadowed,
        "path": path,
        "toAdd": hint.then_some(to_add),
    });
    let list = NextAction::new("queue list [--family <family>]", "See its entries");
    let report = Report::new(result, human)
        .next(NextAction::new("queue registry check", "Check the file after a change"))
        .next(list.param("family", Param::new().value(event.as_str())));
    Ok(report)
}

fn handler(entry: &Entry) -> String {
    format!("{} {}", entry.handler.kind(), entry.handler.target())
}

fn entry_json(entry: &Entry) -> Value {
    let ms = |duration: Option<std::time::Duration>| duration.map(|duration| duration.as_millis() as u64);
    json!({
        "pattern": entry.pattern.to_string(),
        "priority": entry.priority,
        "priorityLabel": entry.priority.label(),
        "description": entry.description,
        "handler": { "type": entry.handler.kind(), "target": entry.handler.target() },
        "dedupWindowMs": ms(entry.dedup_window),
        "hasDedupKey": entry.dedup_key.is_some(),
        "concurrency": entry.concurrency,
        "attempts": entry.attempts,
        "timeoutMs": ms(entry.timeout),
        "ratePerS": entry.rate_per_s,
        "weight": entry.weight,
        "ordered": entry.ordered,
        "aimd": entry.aimd,
        "maxAgeMs": ms(entry.max_age),
        "origin": entry.origin.to_string(),
    })
}
