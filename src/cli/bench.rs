//! `joelclaw bench`: measure the pipeline beside the raw Redis ceiling.

use serde_json::json;

use super::output::{Failure, Human, Report};
use super::{Context, render};
use crate::bench::{self, Plan};
use crate::diagnose::{Diagnose, Exit, chain};
use crate::streams::redis::Redis;

/// Measure appends, draining and latency beside the raw Redis ceiling
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw bench\n  joelclaw bench --only drain --rounds 5\n  joelclaw bench --json > bench.json\n\nStarts a throwaway redis-server of its own (AOF everysec) and leaves nothing behind.")]
pub struct Args {
    /// Events per round of append and drain
    #[arg(long, default_value_t = 200_000)]
    events: usize,
    /// Rounds of each, ours and raw
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Single events of the latency scenarios
    #[arg(long, default_value_t = 2_000)]
    samples: usize,
    /// Entries of the paused family
    #[arg(long, default_value_t = 1_000_000)]
    backlog: usize,
    /// Run only these: append, append_ids, drain, idle_latency, paused_backlog
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Use this Redis instead of an own one. It is EMPTIED, so it must hold nothing
    #[arg(long, value_name = "URL")]
    throwaway_redis: Option<String>,
}

/// Runs the scenarios and prints them.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    const NAMES: [&str; 5] = ["append", "append_ids", "drain", "idle_latency", "paused_backlog"];
    if let Some(unknown) = args.only.iter().find(|name| !NAMES.contains(&name.as_str())) {
        let fix = format!("Use any of {}.", NAMES.join(", "));
        return Err(Failure::new("INVALID_SCENARIO", Exit::Usage, format!("there is no scenario `{unknown}`"), fix));
    }
    let plan = Plan {
        events: args.events.max(1_000),
        rounds: usize::from(args.rounds),
        samples: args.samples.max(100),
        backlog: args.backlog,
        concurrency: context.config.drainer.concurrency.into(),
        only: args.only.clone(),
    };
    let report = match &args.throwaway_redis {
        Some(url) => {
            let redis = Redis::open(url, "the throwaway Redis").map_err(|error| Failure::from(&error))?;
            refuse_if_used(&redis).await?;
            measure(&redis, &plan, context).await?
        }
        None => with_own_redis(&plan, context).await?,
    };
    let rows = report.scenarios.iter().map(row).collect();
    let columns = ["SCENARIO", "PER SECOND", "RAW", "RATIO", "P50", "P99", "TARGET", ""];
    let human = Human::new().table(&columns, rows);
    Ok(Report::new(json!(report), human).list("scenarios"))
}
