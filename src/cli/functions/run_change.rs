//! `joelclaw run --cancel` and `--rerun`.

use std::time::Duration;

use serde_json::json;

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::act::actor;
use super::super::queue::{bus_to_change, redis_of};
use super::super::render::Human;
use super::run::{Args, resolve, show, until_ended};
use super::{engine, engine_failure, no_run, run_action};
use crate::diagnose::Exit;
use crate::functions::engine::{self as functions, Engine};
use crate::functions::store::{Run, Status};

/// How long a cancelled run is waited for, ms.
const CANCEL_WAIT_MS: u64 = 3_000;

pub(super) async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    let engine = engine(&bus, context).await?;
    let run = resolve(engine.runs(), args.id()).await?;
    if args.rerun { again(args, &engine, &run, context).await } else { cancel(args, &engine, &run, context).await }
}

async fn cancel(args: &Args, engine: &Engine, run: &Run, context: &Context) -> Result<Report, Failure> {
    let actor = actor(None, context);
    let reason = args.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
    let why =
        reason.map_or_else(|| format!("cancelled by {actor}"), |reason| format!("{reason} (cancelled by {actor})"));
    match engine.cancel(&run.id, &why).await {
        Ok(_) => {}
        Err(functions::Error::Ended) => return Err(ended(engine.runs().run(&run.id).await?.as_ref().unwrap_or(run))),
        Err(error) => return Err(engine_failure(error)),
    }
    let wait_ms = args.wait_ms.unwrap_or(CANCEL_WAIT_MS);
    let cancelled = engine.runs().run(&run.id).await?.ok_or_else(|| no_run(&run.id))?;
    let observed = until_ended(engine.runs(), cancelled, Duration::from_millis(wait_ms)).await?;
    let is_cancelled = observed.status == Status::Cancelled;
    let result = json!({
        "run": { "id": observed.id, "function": observed.function, "status": observed.status.as_str(), "reason": why },
        "cancellation": {
            "requested": true,
            "waitMs": wait_ms,
            "mutation": "cancel",
            "mutationStatus": "accepted",
            "observedStatus": observed.status.as_str(),
            "cancelled": is_cancelled,
        },
        "redis": redis_of(engine.runs().bus(), context).await,
    });
    let human = match is_cancelled {
        true => Human::new().text(format!("{} of {} is cancelled.", observed.id, observed.function)),
        false => {
            Human::new().text(format!("{} of {} ended first: {}.", observed.id, observed.function, observed.status))
        }
    };
    let rerun = NextAction::new("run <run-id> --rerun", "Run it once more");
    let id = super::super::output::Param::new().value(observed.id.as_str()).required();
    let mut report = Report::new(result, human);
    if !is_cancelled {
        report = report.unhealthy(Exit::Unhealthy);
    }
    Ok(report.next(run_action(&observed.id, "What it had done")).next(rerun.param("run-id", id)))
}

/// Cancelling what is over would change nothing, and whoever asked may have meant another run.
fn ended(run: &Run) -> Failure {
    let message = format!("the run {} has ended: {}; nothing was cancelled", run.id, run.status);
    Failure::new("RUN_ALREADY_ENDED", Exit::Refused, message, format!("joelclaw run {}", run.id))
        .next(run_action(&run.id, "How it ended"))
        .next(NextAction::new("runs --status running,queued", "The runs that go on"))
}

async fn again(args: &Args, engine: &Engine, run: &Run, context: &Context) -> Result<Report, Failure> {
    let id = engine.rerun(&run.id).await.map_err(engine_failure)?;
    let runs = engine.runs();
    let mut new = runs.run(&id).await?.ok_or_else(|| no_run(&id))?;
    if let Some(wait) = args.wait_ms {
        new = until_ended(runs, new, Duration::from_millis(wait)).await?;
        if new.status.is_terminal() {
            return show(&new, runs, args.is_full(), context).await;
        }
    }
    let result = json!({
        "run": { "id": new.id, "function": new.function, "status": new.status.as_str() },
        "rerun": { "of": run.id, "runId": new.id, "eventIds": new.event_ids },
        "redis": redis_of(runs.bus(), context).await,
    });
    let human = Human::new().text(format!("{} runs once more, as {}.", new.function, new.id));
    Ok(Report::new(result, human)
        .next(run_action(&new.id, "How it goes"))
        .next(run_action(&run.id, "The run that it repeats")))
}
