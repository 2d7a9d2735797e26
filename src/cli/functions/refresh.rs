//! `joelclaw refresh`: asks every app what it serves and makes the registry agree. What an app does not serve any more is
//! archived after it has answered, so there is no moment in which an event matches nothing.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::{bus_to_change, redis_of};
use super::super::render::Human;
use super::{engine, snapshot};
use crate::diagnose::Exit;
use crate::functions::engine::sync::Asked;
use crate::functions::registry::{Health, Registry, Snapshot, definition::same_url};
use crate::streams::bus::Bus;

/// Ask every app what it serves and make the registry agree
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw refresh\n  joelclaw refresh http://localhost:3000/api/inngest   # an app that is new\n\n\
                        Exit 1 when an app did not answer; its functions stay as they are."
)]
pub struct Args {
    /// Apps to ask beside the registered ones and those of INNGEST_SDK_URLS
    #[arg(value_name = "URL")]
    urls: Vec<String>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    if let Some(url) = args.urls.iter().find(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
        let message = format!("`{url}` is no http:// or https:// URL");
        return Err(Failure::new(
            "USAGE_ERROR",
            Exit::Usage,
            message,
            "joelclaw refresh http://localhost:3000/api/inngest",
        ));
    }
    let bus = bus_to_change(context).await?;
    let engine = engine(&bus, context).await?;
    let before = snapshot(&bus).await?;
    let mut targets: Vec<(Option<String>, String)> =
        before.apps.iter().map(|(name, record)| (Some(name.clone()), record.app.url.clone())).collect();
    for url in args.urls.iter().chain(&context.config.functions.app_urls) {
        if !targets.iter().any(|(_, known)| same_url(known, url)) {
            targets.push((None, url.clone()));
        }
    }
    let asked = join_all(targets.iter().map(|(name, url)| engine.ask(url, name.as_deref()))).await;
    let after = snapshot(&bus).await?;
    for one in &asked {
        note(&bus, &after, one).await?;
    }

    let (served_before, served) = (served(&before), served(&after));
    if served.is_empty() {
        return Err(nothing(&asked));
    }
    let added: Vec<&&str> = served.difference(&served_before).collect();
    let removed: Vec<&&str> = served_before.difference(&served).collect();
    let is_changed = asked.iter().any(|one| one.modified) || !added.is_empty() || !removed.is_empty();
    let apps: Vec<Value> = asked.iter().map(|one| app_json(one, &before, &after)).collect();
    let result = json!({
        "action": if is_changed { "refreshed" } else { "clean" },
        "functionCount": served.len(),
        "added": added,
        "removed": removed,
        "functions": served,
        "apps": apps,
        "redis": redis_of(&bus, context).await,
    });
    let rows = apps.iter().map(|app| {
        let text = |key: &str| app[key].as_str().unwrap_or_default().to_owned();
        vec![text("id"), text("url"), app["before"].to_string(), app["after"].to_string(), text("error")]
    });
    let mut human = Human::new().table(&["APP", "URL", "BEFORE", "AFTER", "ERROR"], rows);
    for (title, list) in [("Added", &added), ("Removed", &removed)] {
        if !list.is_empty() {
            human = human.title(title).text(list.iter().map(|slug| (**slug).to_owned()).collect::<Vec<_>>().join("\n"));
        }
    }
    let mut report = Report::new(result, human).list("apps");
    if asked.iter().any(|one| one.problem.is_some()) {
        report = report.unhealthy(Exit::Unhealthy).next(NextAction::new("inngest status", "See what the apps answer"));
    }
    Ok(report.next(NextAction::new("functions", "What there is now, and what is wrong with it")))
}

fn served(known: &Snapshot) -> BTreeSet<&str> {
    known.functions.keys().map(String::as_str).filter(|slug| known.is_served(slug)).collect()
}

/// Which app answered at this URL.
fn name_of(one: &Asked, known: &Snapshot) -> Option<String> {
    let by_url = || known.apps.values().find(|record| same_url(&record.app.url, &one.url));
    one.app.clone().or_else(|| by_url().map(|record| record.app.name.clone()))
}

fn count(known: &Snapshot, app: Option<&String>) -> usize {
    let is_own = |slug: &str, of: &str| app.is_some_and(|app| app == of) && known.is_served(slug);
    known.functions.values().filter(|function| is_own(&function.slug, &function.app)).count()
}

fn app_json(one: &Asked, before: &Snapshot, after: &Snapshot) -> Value {
    let name = name_of(one, after);
    let mut shown = json!({
        "id": name,
        "url": one.url,
        "before": count(before, name.as_ref()),
        "after": count(after, name.as_ref()),
        "ok": one.problem.is_none(),
        "modified": one.modified,
    });
    if let Some(problem) = &one.problem {
        shown["error"] = problem.as_str().into();
    }
    shown
}

/// `functions` shows how an app was last seen, whoever asked.
async fn note(bus: &Bus, known: &Snapshot, one: &Asked) -> Result<(), Failure> {
    let Some(name) = name_of(one, known) else { return Ok(()) };
    let Some(record) = known.apps.get(&name) else { return Ok(()) };
    let (now, is_there) = (bus.now_ms().await?, one.problem.is_none());
    let was = record.health.as_ref();
    let health = Health {
        asked_ms: now,
        seen_ms: if is_there { Some(now) } else { was.and_then(|was| was.seen_ms) },
        agrees: is_there,
        problem: one.problem.clone(),
        failures: if is_there { 0 } else { was.map_or(0, |was| was.failures).saturating_add(1) },
    };
    Ok(Registry::new(bus.clone()).set_health(&name, &health).await?)
}

fn nothing(asked: &[Asked]) -> Failure {
    let problems = asked.iter().map(|one| match &one.problem {
        Some(problem) => format!("{}: {problem}", one.url),
        None => format!("{} serves none", one.url),
    });
    let problems: Vec<String> = problems.collect();
    let message = match problems.len() {
        0 => "no app is registered, and none is named".to_owned(),
        _ => format!("no function is registered: {}", problems.join("; ")),
    };
    let fix = "Start an app, then joelclaw refresh <its URL>, for example http://localhost:3000/api/inngest.";
    Failure::new("REGISTRATION_EMPTY", Exit::Unhealthy, message, fix)
        .next(NextAction::new("inngest status", "See what the apps answer"))
}
