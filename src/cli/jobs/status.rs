//! `joelclaw jobs status`: the parts side by side, each with its own deadline, and the verdict over them. Reads only.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::{bus, redis_of};
use super::super::render::Human;
use super::parts::{self, Health, Part};
use crate::diagnose::Exit;

/// One part may take so long; then it is down, and the others are shown all the same.
const PART: Duration = Duration::from_secs(3);

/// One snapshot of queue, drainer, functions, observer and Redis, with a verdict and its reasons
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw jobs status\n  joelclaw jobs status --strict --quiet   # exit 1 on degraded as well\n\n\
                  Exit 1 when something is down. Restate, Dkron and an external Inngest are looked at when their address is\n\
                  configured (RESTATE_ADMIN_URL, DKRON_URL, INNGEST_URL)."
)]
pub struct Args {
    /// How far back runs and stalls are looked at
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=8_760))]
    hours: u64,
    /// How many recent runs
    #[arg(long, short = 'n', default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    count: u64,
    /// Exit 1 on degraded as well
    #[arg(long, conflicts_with = "exit_zero")]
    strict: bool,
    /// Exit 0 whatever is found
    #[arg(long)]
    exit_zero: bool,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let hours = args.hours;
    let count = usize::try_from(args.count).unwrap_or(usize::MAX);
    let (queue, drainer, functions, observer, redis, restate, dkron, inngest) = tokio::join!(
        guarded("queue", parts::queue(&bus, context)),
        guarded("drainer", parts::drainer(&bus, context, hours)),
        guarded("functions", parts::functions(&bus, context, hours, count)),
        guarded("observer", parts::observer(&bus)),
        guarded("redis", parts::redis(&bus)),
        guarded("restate", parts::restate(context)),
        guarded("dkron", parts::dkron(context)),
        guarded("inngest", parts::inngest(context)),
    );
    let all = [queue, drainer, functions, observer, redis, restate, dkron, inngest];
    let overall = all.iter().filter_map(|part| part.counts).max().unwrap_or(Health::Healthy);
    let summary = summary(&all, overall);
    let reasons: Vec<Value> = all
        .iter()
        .flat_map(|part| part.reasons.iter().map(move |reason| json!({ "part": part.name, "reason": reason })))
        .collect();

    let mut result = json!({
        "checkedAt": crate::moment::now(),
        "overall": { "status": overall, "summary": summary, "reasons": reasons },
    });
    for part in &all {
        result[part.name] = part.json();
    }
    result["connection"] = redis_of(&bus, context).await;

    let rows = all.iter().filter(|part| part.status.is_some()).map(|part| {
        let status = part.status.map_or("", Health::as_str);
        vec![part.name.to_owned(), status.to_owned(), part.summary.clone()]
    });
    let mut human = Human::new().text(summary).table(&["PART", "STATUS", ""], rows);
    for part in &all {
        for reason in &part.reasons {
            human = human.text(format!("{}: {reason}", part.name));
        }
    }
    let mut report = Report::new(result, human);
    let is_bad = overall == Health::Down || (args.strict && overall == Health::Degraded);
    if is_bad && !args.exit_zero {
        report = report.unhealthy(Exit::Unhealthy);
    }
    Ok(next(report, &all))
}

async fn guarded(name: &'static str, part: impl Future<Output = Part>) -> Part {
    tokio::time::timeout(PART, part).await.unwrap_or_else(|_| Part::late(name))
}

fn summary(all: &[Part], overall: Health) -> String {
    let verdict = match overall {
        Health::Healthy => "Runtime healthy",
        Health::Degraded | Health::Down => "Runtime needs attention",
    };
    let words: Vec<&str> = all.iter().filter(|part| part.counts.is_some()).map(|part| part.word.as_str()).collect();
    format!("{verdict}: {}.", words.join("; "))
}

fn next(report: Report, all: &[Part]) -> Report {
    let of = |name: &str| all.iter().find(|part| part.name == name);
    let mut report = report
        .next(NextAction::new("jobs status", "Look again"))
        .next(NextAction::new("queue depth", "See what waits"));
    let queue = of("queue").map(|part| &part.detail);
    if queue.and_then(|detail| detail["depth"].as_u64()).unwrap_or(0) > 0 {
        let list = NextAction::new("queue list [--limit <n>]", "See the entries");
        report = report.next(list.param("n", Param::new().value(20).default_value(10)));
    }
    if let Some(family) = queue.and_then(|detail| detail["activePauses"][0]["family"].as_str()) {
        let resume = NextAction::new("queue resume <family>", "Let the paused family go on");
        report = report.next(resume.param("family", Param::new().value(family).required()));
    }
    report
        .next(NextAction::new("queue control status --hours 1", "See what was paused"))
        .next(NextAction::new("queue stats --hours 1", "See how long events wait"))
        .next(NextAction::new("runs", "See what ran"))
}
