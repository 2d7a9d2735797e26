//! `joelclaw doctor`: everything that must be right around the program, each with the command that fixes it.
//!
//! Reads only. What needs Redis is left out when Redis is away, so that one fault is told once.

mod redis;
mod surroundings;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::output::{Failure, NextAction, Report};
use super::queue::bus;
use super::render::{self, Human};
use crate::diagnose::Exit;
use crate::model::{self, Caller, Models, Prompt, Request};
use crate::observer::flags::{self as observer_flags, Policy};
use crate::service::running_service;
use crate::triage::flags::Flags;

/// Whether everything around the program is as it must be
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw doctor\n  joelclaw doctor --no-model\n\n\
                        Each configured model is sent one tiny question, which may cost a fraction of a cent.")]
pub struct Args {
    /// Ask no model
    #[arg(long)]
    no_model: bool,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Debug, Clone, serde::Serialize)]
struct Check {
    name: String,
    status: Status,
    detail: String,
    /// What to do, a command where there is one.
    fix: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, detail: detail.into(), fix: None }
    }

    fn warn(name: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(name, detail, fix) }
    }
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let service = running_service(&context.config.system.data_dir);
    let mut checks = surroundings::settings(context);
    checks.extend(surroundings::machine(context, service.as_ref()));
    checks.extend(redis::checks(&bus(context)?, context, service.as_ref()).await);
    if !args.no_model {
        checks.extend(models(context).await);
    }
    let worst = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let summary =
        format!("{} ok, {} to look at, {} wrong.", count(Status::Ok), count(Status::Warn), count(Status::Fail));
    let rows = checks.iter().map(|check| {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        let fix = check.fix.clone().unwrap_or_default();
        vec![mark.to_owned(), check.name.clone(), render::cut(&check.detail), fix]
    });
    let human = Human::new().text(&summary).table(&["", "CHECK", "WHAT", "FIX"], rows);
    let result = json!({ "ok": worst != Status::Fail, "status": worst, "summary": summary, "checks": checks });
    let report = Report::new(result, human)
        .list("checks")
        .next(NextAction::new("queue config", "What the running service goes by"))
        .next(NextAction::new("jobs status", "Whether everything that runs jobs is healthy"));
    Ok(if worst == Status::Fail { report.unhealthy(Exit::Unhealthy) } else { report })
}

/// Every provider and model that triage or observer may ask, with who asks.
fn asked(context: &Context) -> Vec<(model::Provider, String, Vec<&'static str>)> {
    let config = &context.config;
    let (triage, observer) = (Flags::from_config(config), Policy::from_config(config));
    let of_observer = observer.providers.iter().filter_map(|provider| match provider {
        observer_flags::Provider::Model(provider) => Some((*provider, observer.model.clone(), "observer")),
        _ => None,
    });
    let of_triage = triage.chain.iter().map(|provider| (*provider, triage.model.clone(), "triage"));
    let mut asked: Vec<(model::Provider, String, Vec<&'static str>)> = Vec::new();
    for (provider, model, who) in of_triage.chain(of_observer) {
        if matches!(provider, model::Provider::Rules | model::Provider::None) {
            continue;
        }
        match asked.iter_mut().find(|(known, name, _)| *known == provider && *name == model) {
            Some((.., known)) => known.push(who),
            None => asked.push((provider, model, vec![who])),
        }
    }
    asked
}

/// One tiny question to each.
async fn models(context: &Context) -> Vec<Check> {
    let models = Models::new(model::Settings::from_config(&context.config), CancellationToken::new());
    let prompt = Prompt {
        system: "Answer with the bare JSON object {\"ok\":true} and nothing else.".into(),
        user: "ping".into(),
    };
    let is_needed = context.config.triage.mode != crate::config::TriageMode::Off
        || context.config.observer.mode != crate::config::ObserverMode::Off;
    let mut checks = Vec::new();
    for (provider, model, who) in asked(context) {
        let began = tokio::time::Instant::now();
        let deadline = began + context.config.observer.timeout.min(std::time::Duration::from_secs(30));
        let request =
            Request { caller: Caller::Observer, chain: &[provider], model: &model, prompt: &prompt, deadline };
        let name = format!("model {provider} {model}");
        let (who, ms) = (who.join(", "), |began: tokio::time::Instant| began.elapsed().as_millis());
        checks.push(match models.ask(request).await {
            Ok(answer) => {
                let is_meant = serde_json::from_str::<Value>(&answer.text).is_ok_and(|value| value["ok"] == true);
                let detail = format!("{} answered in {} ms (asked by {who})", answer.model, ms(began));
                match is_meant {
                    true => Check::ok(name, detail),
                    false => Check::warn(
                        name,
                        format!("{detail}, but not with the bare JSON object that it was asked for"),
                        "Use a model that keeps to the format; the rules go on without one.",
                    ),
                }
            }
            Err(error) => {
                let detail = format!("{}: {} (asked by {who})", error.reason(), error.detail());
                let fix = "Set SYSTEM_BUS_MODEL_COMMAND, or SYSTEM_BUS_MODEL_BASE_URL and a key; or leave rules alone in the chain.";
                match is_needed {
                    true => Check::warn(name, detail, fix),
                    false => Check::ok(name, format!("{detail}; triage and observer are off")),
                }
            }
        });
    }
    checks
}
