//! `joelclaw queue simulate`: the observer's policy through outages, on virtual time. Needs no Redis.

use serde_json::json;

use super::super::output::{Failure, NextAction, Report};
use super::super::render::Human;
use crate::diagnose::Exit;
use crate::observer::lab::{self, Outcome, Scenario, Variant};

/// Drive the observer's policy through outages on virtual time
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue simulate\n  joelclaw queue simulate --scenario flapping --seed 7")]
pub struct Args {
    /// Only this scenario
    #[arg(long, value_enum)]
    scenario: Option<Scenario>,
    /// Only this variant
    #[arg(long, value_enum)]
    variant: Option<Variant>,
    /// The same seed gives the same run
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<Report, Failure> {
    let scenarios = Scenario::ALL.into_iter().filter(|one| args.scenario.is_none_or(|only| only == *one));
    let mut outcomes: Vec<(Scenario, Outcome)> = Vec::new();
    for scenario in scenarios {
        for variant in Variant::ALL.into_iter().filter(|one| args.variant.is_none_or(|only| only == *one)) {
            outcomes.push((scenario, lab::run(scenario, variant, args.seed)));
        }
    }
    // A hostile model may pause its own family for no reason, within the budget: that is what the budget is for.
    let is_bad = |(scenario, outcome): &&(Scenario, Outcome)| {
        let is_wrong = outcome.wrong_pauses > 0 && *scenario != Scenario::ModelHostile;
        outcome.lost + outcome.twice + outcome.trespasses > 0 || is_wrong
    };
    let bad = outcomes.iter().filter(is_bad).count();
    let seconds = |value: Option<u64>| value.map_or_else(|| "–".to_owned(), |s| format!("{s} s"));
    let rows = outcomes.iter().map(|(_, outcome)| {
        vec![
            outcome.scenario.to_owned(),
            outcome.variant.to_owned(),
            outcome.lost.to_string(),
            outcome.twice.to_string(),
            outcome.wrong_pauses.to_string(),
            outcome.pauses.to_string(),
            seconds(outcome.time_to_pause_s),
            seconds(outcome.time_to_resume_s),
            outcome.wasted_attempts.to_string(),
            outcome.dead.to_string(),
            format!("{} s", outcome.longest_healthy_wait_s),
        ]
    });
    let head = [
        "SCENARIO",
        "VARIANT",
        "LOST",
        "TWICE",
        "WRONG",
        "PAUSES",
        "TO PAUSE",
        "TO RESUME",
        "WASTED",
        "DEAD",
        "HEALTHY WAIT",
    ];
    let (lost, wrong) = outcomes.iter().fold((0, 0), |(lost, wrong), (scenario, outcome)| {
        let counts = *scenario != Scenario::ModelHostile;
        (lost + outcome.lost, wrong + if counts { outcome.wrong_pauses } else { 0 })
    });
    let human = Human::new()
        .text(format!("Lost {lost}, wrong pauses of healthy families {wrong}. Seed {}.", args.seed))
        .table(&head, rows);
    let list: Vec<&Outcome> = outcomes.iter().map(|(_, outcome)| outcome).collect();
    let result = json!({ "ok": bad == 0, "seed": args.seed, "lost": lost, "wrongPauses": wrong, "cadenceSeconds": 60, "runs": list });
    let report =
        Report::new(result, human).list("runs").next(NextAction::new("queue observe", "What it says of the queue now"));
    Ok(if bad > 0 { report.unhealthy(Exit::Unhealthy) } else { report })
}
