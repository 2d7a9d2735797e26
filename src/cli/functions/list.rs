//! `joelclaw functions`: what there is, what starts it, what limits it, and what is wrong with it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::{bus, redis_of};
use super::super::render::Human;
use super::{operate, show, snapshot, when};
use crate::diagnose::Exit;
use crate::functions::registry::{AppRecord, Function, Snapshot, Trigger};
use crate::functions::store::{Run, Runs, work_family};
use crate::moment::iso;
use crate::streams::control::Pauses;

/// Members of a function's configuration that limit or order its runs.
const FLOW: [&str; 10] = [
    "concurrency",
    "throttle",
    "rateLimit",
    "debounce",
    "batchEvents",
    "priority",
    "singleton",
    "idempotency",
    "cancel",
    "timeouts",
];
/// Suggested events: more would hide the rest.
const SENDS: usize = 5;

/// The functions that apps serve: triggers, flow control, last run, what is wrong
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw functions\n  joelclaw functions --app shop\n  \
                        joelclaw functions --unhealthy   # exit 1 when there is something to mend")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only functions of this app
    #[arg(long)]
    app: Option<String>,
    /// Only functions with a warning; exit 1 when there are any
    #[arg(long)]
    unhealthy: bool,
}

/// What is done with one function.
#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Everything about one function: schedules, limits, who holds and who waits
    Show(show::Args),
    /// Record new events of a function or an app as skipped, and let its running runs wait
    Pause(operate::PauseArgs),
    /// Let a paused function or app go on
    Resume(operate::PauseArgs),
    /// Replay events of the log to a function
    Replay(operate::ReplayArgs),
}

/// Something to mend.
struct Warning {
    code: &'static str,
    message: String,
}

impl Warning {
    fn json(&self) -> Value {
        json!({ "code": self.code, "message": self.message })
    }
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        None => list(args, context).await,
        Some(Command::Show(args)) => show::run(args, context).await,
        Some(Command::Pause(args)) => operate::pause(args, true, context).await,
        Some(Command::Resume(args)) => operate::pause(args, false, context).await,
        Some(Command::Replay(args)) => operate::replay(args, context).await,
    }
}

async fn list(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let (known, pauses, now) = (snapshot(&bus).await?, bus.pauses().await?, bus.now_ms().await?);
    if let Some(app) = &args.app
        && !known.apps.contains_key(app)
        && !known.functions.values().any(|function| function.app == *app)
    {
        let near = crate::config::nearest(app, known.apps.keys().map(String::as_str));
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        let message = format!("there is no app {app}{hint}");
        return Err(Failure::new("APP_NOT_FOUND", Exit::NotFound, message, "joelclaw functions"));
    }
    let is_asked = |function: &Function| args.app.as_ref().is_none_or(|app| *app == function.app);
    let served: Vec<&Function> = known
        .functions
        .values()
        .map(AsRef::as_ref)
        .filter(|function| is_asked(function) && known.is_served(&function.slug))
        .collect();
    if served.is_empty() && !args.unhealthy {
        return Err(nothing(&known));
    }
    let slugs: Vec<String> = served.iter().map(|function| function.slug.clone()).collect();
    let latest = Runs::new(bus.clone()).latest_of(&slugs).await?;

    let (mut functions, mut rows, mut healthy) = (Vec::new(), Vec::new(), 0);
    for function in &served {
        let warnings = warnings_of(function, known.apps.get(&function.app), now);
        if warnings.is_empty() {
            healthy += 1;
            if args.unhealthy {
                continue;
            }
        }
        functions.push(shown(function, &known, &pauses, &latest, &warnings));
        rows.push(row(function, &known, &pauses, &latest, &warnings, now));
    }
    let stale = archived_triggers(&known, args.app.as_deref());
    let apps: Vec<Value> = known.apps.iter().map(|(name, record)| app_json(name, record, now)).collect();
    let archived: Vec<&String> = known.archived.iter().collect();
    let result = json!({
        "count": functions.len(),
        "total": served.len(),
        "functions": functions,
        "apps": apps,
        "archived": archived,
        "warnings": stale.iter().map(Warning::json).collect::<Vec<_>>(),
        "redis": redis_of(&bus, context).await,
    });
    let mut human = Human::new()
        .table(&["FUNCTION", "APP", "TRIGGERS", "FLOW CONTROL", "LAST SEEN", "LAST RUN", ""], rows)
        .text(format!("{} function(s) of {} app(s), {healthy} without a warning", served.len(), apps.len()));
    let mut told: Vec<String> = Vec::new();
    for function in &served {
        for warning in warnings_of(function, known.apps.get(&function.app), now) {
            // What is wrong with an app is wrong with each of its functions, and said once.
            let text = match warning.code {
                "FUNCTION_WARNING" => format!("{}: {}", function.slug, warning.message),
                _ => warning.message,
            };
            if !told.contains(&text) {
                told.push(text);
            }
        }
    }
    told.extend(stale.iter().map(|warning| warning.message.clone()));
    if !told.is_empty() {
        human = human.title("Warnings").text(told.join("\n"));
    }
    let mut report = Report::new(result, human).list("functions");
    if args.unhealthy && !told.is_empty() {
        report = report.unhealthy(Exit::Unhealthy);
    }
    if !told.is_empty() {
        report = report.next(NextAction::new("refresh", "Ask every app what it serves"));
    }
    let mut events: Vec<&str> = Vec::new();
    for event in served.iter().flat_map(|function| &function.triggers).filter_map(|trigger| trigger.event.as_deref()) {
        if !event.contains('*') && !events.contains(&event) && events.len() < SENDS {
            events.push(event);
        }
    }
    for event in events {
        let send = NextAction::new("send <event>", "Start what it triggers");
        report = report.next(send.param("event", Param::new().value(event).required()));
    }
    Ok(report.next(NextAction::new("runs", "What ran lately")))
}

fn nothing(known: &Snapshot) -> Failure {
    let message = match known.apps.len() {
        0 => "no app has registered a function".to_owned(),
        n => format!("{n} app(s) are registered, none serves a function"),
    };
    let fix = "joelclaw refresh (asks the apps), or start one: INNGEST_DEV=1 and its dev command";
    Failure::new("REGISTRATION_EMPTY", Exit::Unhealthy, message, fix)
        .next(NextAction::new("refresh", "Ask every app what it serves"))
        .next(NextAction::new("inngest status", "See whether the apps answer"))
}

/// What is wrong with a function or with the app that serves it.
fn warnings_of(function: &Function, app: Option<&AppRecord>, now: u64) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if let Some(record) = app {
        let health = record.health.as_ref();
        if let Some(problem) = health.and_then(|health| health.problem.as_ref()) {
            let seen = health.and_then(|health| health.seen_ms).unwrap_or(record.synced_ms);
            let is_silent = health.is_some_and(|health| health.failures > 0);
            let code = if is_silent { "APP_SILENT" } else { "APP_DISAGREES" };
            let message =
                format!("app {} ({}): {problem}; last seen {}", function.app, record.app.url, when(seen, now));
            warnings.push(Warning { code, message });
        } else if health.is_some_and(|health| !health.agrees) {
            let message = format!("app {} ({}) serves something else", function.app, record.app.url);
            warnings.push(Warning { code: "APP_DISAGREES", message });
        }
        if let Some(other) = &record.replaced_url {
            let message = format!("two URLs serve app {}: {} took over from {other}", function.app, record.app.url);
            warnings.push(Warning { code: "APP_MOVED", message });
        }
    }
    let own = function.warnings.iter();
    warnings.extend(own.map(|text| Warning { code: "FUNCTION_WARNING", message: text.clone() }));
    warnings
}

/// Events that only functions are triggered by which no app serves any more.
fn archived_triggers(known: &Snapshot, app: Option<&str>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for function in known.functions.values() {
        if known.is_served(&function.slug) || app.is_some_and(|app| app != function.app) {
            continue;
        }
        for event in function.triggers.iter().filter_map(|trigger| trigger.event.as_deref()) {
            let is_consumed = known
                .functions
                .values()
                .filter(|other| known.is_served(&other.slug))
                .any(|other| other.triggers.iter().any(|trigger| trigger.event.as_deref() == Some(event)))
                || !known.triggered_by(event).is_empty();
            if !is_consumed {
                let message = format!(
                    "{event} starts nothing: {} was its function, and no app serves it any more",
                    function.slug
                );
                warnings.push(Warning { code: "TRIGGER_ARCHIVED", message });
            }
        }
    }
    warnings
}

/// When the app was last known to be there.
fn seen_ms(record: &AppRecord) -> u64 {
    record.health.as_ref().and_then(|health| health.seen_ms).unwrap_or(0).max(record.synced_ms)
}

fn app_json(name: &str, record: &AppRecord, now: u64) -> Value {
    let health = record.health.as_ref();
    json!({
        "app": name,
        "url": record.app.url,
        "sdk": record.app.sdk,
        "framework": record.app.framework,
        "functions": record.app.functions.len(),
        "syncedAt": iso(record.synced_ms),
        "lastSeenAt": iso(seen_ms(record)),
        "lastSeenAgeMs": now.saturating_sub(seen_ms(record)),
        "askedAt": health.and_then(|health| iso(health.asked_ms)),
        "agrees": health.map(|health| health.agrees),
        "problem": health.and_then(|health| health.problem.clone()),
        "failures": health.map(|health| health.failures),
        "replacedUrl": record.replaced_url,
    })
}

fn trigger_json(trigger: &Trigger) -> Value {
    let (kind, value) = match (&trigger.event, &trigger.cron) {
        (Some(event), _) => ("event", event.as_str()),
        (None, cron) => ("cron", cron.as_deref().unwrap_or_default()),
    };
    let mut shown = json!({ "type": kind, "value": value });
    if let Some(expression) = &trigger.expression {
        shown["if"] = expression.as_str().into();
    }
    shown
}

/// The pause of the function itself, and those of the events that trigger it.
fn pauses_of(function: &Function, known: &Snapshot, pauses: &Pauses) -> (Option<Value>, Vec<String>) {
    let marked = known.paused_by(function).map(operate::mark_json);
    let own = pauses.active.get(work_family(&function.slug, function.id).as_str()).map(|(until, pause)| {
        json!({ "expiresAt": iso(*until), "reason": pause.as_ref().map(|pause| pause.reason.clone()) })
    });
    let events = function.triggers.iter().filter_map(|trigger| trigger.event.clone());
    (marked.or(own), events.filter(|event| pauses.of(event).is_some()).collect())
}

fn shown(
    function: &Function,
    known: &Snapshot,
    pauses: &Pauses,
    latest: &HashMap<String, Run>,
    warnings: &[Warning],
) -> Value {
    let (paused, held) = pauses_of(function, known, pauses);
    let last = latest.get(&function.slug);
    json!({
        "id": function.slug,
        "slug": function.slug,
        "uuid": function.id,
        "name": function.name,
        "app": function.app,
        "triggers": function.triggers.iter().map(trigger_json).collect::<Vec<_>>(),
        "retries": function.retries,
        "flowControl": flow(&function.config),
        "lastSeenAt": known.apps.get(&function.app).and_then(|record| iso(seen_ms(record))),
        "lastRun": last.map(|run| json!({
            "id": run.id, "status": run.status.as_str(), "queuedAt": iso(run.queued_ms), "endedAt": run.ended_ms.and_then(iso),
        })),
        "paused": paused,
        "pausedEvents": held,
        "warnings": warnings.iter().map(Warning::json).collect::<Vec<_>>(),
    })
}

fn row(
    function: &Function,
    known: &Snapshot,
    pauses: &Pauses,
    latest: &HashMap<String, Run>,
    warnings: &[Warning],
    now: u64,
) -> Vec<String> {
    let triggers = function.triggers.iter().map(|trigger| {
        let text = trigger.event.clone().or_else(|| trigger.cron.as_ref().map(|cron| format!("cron {cron}")));
        let condition = trigger.expression.as_ref().map(|text| format!(" if {text}")).unwrap_or_default();
        text.unwrap_or_default() + &condition
    });
    let (paused, held) = pauses_of(function, known, pauses);
    let mut marks: Vec<String> = Vec::new();
    if let Some(pause) = &paused {
        marks.push(match pause["expiresAt"].as_str() {
            Some(until) => format!("paused until {until}"),
            None => format!("paused: {}", pause["reason"].as_str().unwrap_or_default()),
        });
    }
    marks.extend(held.iter().map(|event| format!("{event} is paused")));
    if !warnings.is_empty() {
        marks.push(format!("{} warning(s)", warnings.len()));
    }
    let last = latest.get(&function.slug);
    vec![
        function.slug.clone(),
        function.app.clone(),
        triggers.collect::<Vec<_>>().join("\n"),
        flow_text(&function.config),
        known.apps.get(&function.app).map(|record| when(seen_ms(record), now)).unwrap_or_default(),
        last.map(|run| format!("{} {}", run.status, when(run.queued_ms, now))).unwrap_or_default(),
        marks.join("\n"),
    ]
}

fn member<'a>(config: &'a Value, name: &str) -> Option<&'a Value> {
    let found = config.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)?;
    let is_absent = found.is_null() || found.as_array().is_some_and(Vec::is_empty);
    (!is_absent).then_some(found)
}

/// The members of flow control that a function has, as registered.
fn flow(config: &Value) -> Value {
    let members = FLOW.iter().filter_map(|name| Some(((*name).to_owned(), member(config, name)?.clone())));
    Value::Object(members.collect::<Map<_, _>>())
}

/// The same in a few words: `concurrency 5 per event.data.id · throttle 10/1m`.
fn flow_text(config: &Value) -> String {
    let parts = FLOW.iter().filter_map(|name| Some(flow_part(name, member(config, name)?)));
    parts.collect::<Vec<_>>().join("\n")
}

fn flow_part(name: &str, value: &Value) -> String {
    let text = |value: &Value, key: &str| match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let keyed = |value: &Value| match text(value, "key").as_str() {
        "" => String::new(),
        key => format!(" per {key}"),
    };
    let one = |value: &Value| match (name, value) {
        (_, Value::Number(number)) => number.to_string(),
        (_, Value::String(text)) => text.clone(),
        ("concurrency", _) => {
            let scope = Some(text(value, "scope")).filter(|scope| !scope.is_empty() && scope != "fn");
            let scope = scope.map(|scope| format!(" in the {scope}")).unwrap_or_default();
            format!("{}{}{scope}", text(value, "limit"), keyed(value))
        }
        ("throttle" | "rateLimit", _) => format!("{}/{}{}", text(value, "limit"), text(value, "period"), keyed(value)),
        ("debounce", _) => {
            let most = Some(text(value, "timeout")).filter(|most| !most.is_empty());
            let most = most.map(|most| format!(", at most {most}")).unwrap_or_default();
            format!("{}{most}{}", text(value, "period"), keyed(value))
        }
        ("batchEvents", _) => format!("{} or {}{}", text(value, "maxSize"), text(value, "timeout"), keyed(value)),
        ("priority", _) => text(value, "run"),
        ("singleton", _) => format!("{}{}", text(value, "mode"), keyed(value)).trim().to_owned(),
        ("cancel", _) => match text(value, "if").as_str() {
            "" => format!("on {}", text(value, "event")),
            condition => format!("on {} if {condition}", text(value, "event")),
        },
        ("timeouts", _) => {
            let parts = ["start", "finish"].map(|which| (which, text(value, which)));
            let known = parts.iter().filter(|(_, span)| !span.is_empty());
            known.map(|(which, span)| format!("{which} {span}")).collect::<Vec<_>>().join(", ")
        }
        (_, other) => other.to_string(),
    };
    let described = match value {
        Value::Array(list) => list.iter().map(one).collect::<Vec<_>>().join(", "),
        other => one(other),
    };
    format!("{name} {described}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_control_in_a_few_words() {
        for (config, expected) in [
            (json!({"concurrency": 5}), "concurrency 5"),
            (
                json!({"concurrency": [{"limit": 2, "key": "event.data.id"}, {"limit": 9, "scope": "account"}]}),
                "concurrency 2 per event.data.id, 9 in the account",
            ),
            (json!({"throttle": {"limit": 10, "period": "1m"}}), "throttle 10/1m"),
            (json!({"debounce": {"period": "45s", "timeout": "3m"}}), "debounce 45s, at most 3m"),
            (json!({"batchEvents": {"maxSize": 10, "timeout": "5s"}}), "batchEvents 10 or 5s"),
            (json!({"singleton": {"key": "event.data.id", "mode": "skip"}}), "singleton skip per event.data.id"),
            (json!({"cancel": [{"event": "a/b", "if": "x"}, {"event": "c/d"}]}), "cancel on a/b if x, on c/d"),
            (json!({"timeouts": {"start": "30m", "finish": "12h"}}), "timeouts start 30m, finish 12h"),
            (json!({"priority": {"run": "100"}, "retries": 3, "cancel": []}), "priority 100"),
        ] {
            assert_eq!(flow_text(&config), expected);
        }
    }
}
