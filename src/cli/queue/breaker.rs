//! `joelclaw queue breaker`: circuit breakers, and an operator's word about them.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::render::{self, Human};
use super::act::{actor, reason_or};
use super::since::iso;
use super::{bus, bus_to_change, redis_of};
use crate::config::units::parse_duration;
use crate::streams::breaker::{Change, Circuit, Thresholds};
use crate::streams::family::Family;

/// Circuit breakers: what is open, and an operator's word about it
#[derive(Debug, Clone, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  joelclaw queue breaker list\n  joelclaw queue breaker open content/updated --for 10m\n  \
                  joelclaw queue breaker reset content/updated"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Breakers that are not closed
    List,
    /// Keep a family from being read, whatever its target does
    Open(ForceArgs),
    /// Keep a family being read, whatever fails
    Close(ForceArgs),
    /// Back to what its attempts say, beginning closed
    Reset(ResetArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct ForceArgs {
    /// The event name
    family: Family,
    /// For how long; without it until it is reset
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    lasts: Option<Duration>,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, Clone, clap::Args)]
struct ResetArgs {
    /// The event name
    family: Family,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, Clone, clap::Args)]
struct Who {
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).filter(|time| !time.is_zero()).ok_or_else(|| "write a duration such as 10m".into())
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let (family, change, who) = match &args.command {
        Command::List => return list(context).await,
        Command::Open(args) => (&args.family, Change::Force { is_open: true, lasts: args.lasts }, &args.who),
        Command::Close(args) => (&args.family, Change::Force { is_open: false, lasts: args.lasts }, &args.who),
        Command::Reset(args) => (&args.family, Change::Reset, &args.who),
    };
    let bus = bus_to_change(context).await?;
    let reason = reason_or(who.reason.as_deref(), || format!("Manual change from {} for {family}", context.command));
    let actor = actor(who.actor.as_deref(), context);
    let circuit = bus.change_breaker(family, &change, &Thresholds::default(), &actor, Some(&reason)).await?;
    let state = circuit.as_ref().map_or("closed", |circuit| circuit.state.as_str());
    let text = format!("The circuit breaker of {family} is {}.", state.replace('_', " "));
    let result = json!({
        "ok": true,
        "family": family,
        "state": state,
        "breaker": circuit.as_ref().map(|circuit| view(family.as_str(), circuit)),
        "redis": redis_of(&bus, context).await,
    });
    let list = NextAction::new("queue breaker list", "See what is open");
    Ok(Report::new(result, Human::new().text(text))
        .next(list)
        .next(NextAction::new("queue control status", "See what is held")))
}

async fn list(context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let breakers = bus.breakers_sorted().await?;
    let rows = breakers.iter().map(|(family, circuit)| {
        let until = circuit.open_until.map(iso).unwrap_or_default();
        vec![family.clone(), circuit.state.as_str().to_owned(), until, render::cut(&circuit.last_error)]
    });
    let human = match breakers.is_empty() {
        true => Human::new().text("Every circuit breaker is closed."),
        false => Human::new().table(&["FAMILY", "STATE", "UNTIL", "LAST ERROR"], rows),
    };
    let views: Vec<Value> = breakers.iter().map(|(family, circuit)| view(family, circuit)).collect();
    let result = json!({ "ok": true, "breakers": views, "redis": redis_of(&bus, context).await });
    Ok(Report::new(result, human).list("breakers").next(NextAction::new("queue control status", "See what is held")))
}

/// A breaker as results show it.
pub fn view(family: &str, circuit: &Circuit) -> Value {
    json!({
        "family": family,
        "state": circuit.state,
        "since": iso(circuit.since),
        "openUntil": circuit.open_until.map(iso),
        "failedProbes": circuit.n,
        "failures": circuit.failures,
        "attempts": circuit.attempts,
        "lastError": circuit.last_error,
        "goodProbes": circuit.successes,
    })
}
