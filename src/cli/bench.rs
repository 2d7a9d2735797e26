//! `joelclaw bench`: measure the pipeline beside the raw Redis ceiling.

use std::io::IsTerminal as _;
use std::time::Duration;

use super::Context;
use super::output::{Failure, Report};
use super::render::{self, Human};
use crate::bench::functions::FunctionsPlan;
use crate::bench::webhooks::{self, WebhooksPlan};
use crate::bench::{self, Plan, Scenario};
use crate::diagnose::{Diagnose, Exit};
use crate::streams::managed::{ManagedOptions, ManagedRedis};
use crate::streams::redis::Redis;

impl Diagnose for bench::Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Redis(error) => error.code(),
            Self::Append(error) => error.code(),
            Self::TooSlow { .. } => "BENCH_TOO_SLOW",
            Self::NoSdk(_) => "SDK_MISSING",
            Self::Part(_) => "BENCH_FAILED",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Redis(error) => error.exit(),
            Self::Append(error) => error.exit(),
            Self::TooSlow { .. } | Self::Part(_) => Exit::Unhealthy,
            Self::NoSdk(_) => Exit::NotFound,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Redis(error) => error.fix(),
            Self::Append(error) => error.fix(),
            Self::NoSdk(_) => "Name a directory with the SDK: npm install inngest, then --sdk-dir .".into(),
            Self::Part(_) => "Read the message; node must be on the PATH.".into(),
            Self::TooSlow { .. } => "Try a smaller run: joelclaw bench --events 20000 --backlog 100000".into(),
        }
    }
}

/// Measure appends, draining and latency beside the raw Redis ceiling
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw bench\n  joelclaw bench --only drain --rounds 5\n  joelclaw bench functions --sdk-dir .\n  joelclaw bench webhooks --rate 1000 --seconds 60\n  joelclaw bench --json > bench.json\n\nStarts a throwaway redis-server of its own (AOF everysec) and leaves nothing behind."
)]
pub struct Args {
    /// `functions` for runs of a Node app with the Inngest SDK, `webhooks` for signed deliveries while Redis is killed; without it, the scenarios of Redis
    #[arg(value_name = "WHAT", value_parser = ["functions", "webhooks"])]
    what: Option<String>,
    /// For functions: a directory whose node_modules has the SDK
    #[arg(long, value_name = "DIR", default_value = "tests/conformance/js")]
    sdk_dir: std::path::PathBuf,
    /// For functions: runs to measure
    #[arg(long, default_value_t = 5_000)]
    runs: usize,
    /// For functions: calls in flight
    #[arg(long, default_value_t = 100)]
    in_flight: usize,
    /// For functions: runs of another function that wait behind a concurrency key of one slot meanwhile; 0 for none
    #[arg(long, default_value_t = 100_000)]
    waiting: usize,
    /// For webhooks: deliveries a second
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// For webhooks: for how long, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=3_600))]
    seconds: u32,
    /// For webhooks: how long Redis is away, from the middle on, in seconds
    #[arg(long, default_value_t = 5)]
    outage: u32,
    /// For webhooks: nothing is kept on disk meanwhile
    #[arg(long)]
    no_spool: bool,
    /// Events per round of append and drain
    #[arg(long, default_value_t = 200_000)]
    events: usize,
    /// Rounds of each, ours and raw
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Single events of the latency scenarios
    #[arg(long, default_value_t = 2_000)]
    samples: usize,
    /// Entries of the paused family
    #[arg(long, default_value_t = 1_000_000)]
    backlog: usize,
    /// Run only these: append, append_ids, drain, drain_telemetry, idle_latency, paused_backlog, triage_shadow
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Use this Redis instead of an own one. It is EMPTIED, so it must hold nothing
    #[arg(long, value_name = "URL")]
    throwaway_redis: Option<String>,
}

/// Runs the scenarios and prints them.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    const NAMES: [&str; 7] =
        ["append", "append_ids", "drain", "drain_telemetry", "idle_latency", "paused_backlog", "triage_shadow"];
    if let Some(unknown) = args.only.iter().find(|name| !NAMES.contains(&name.as_str())) {
        let fix = format!("Use any of {}.", NAMES.join(", "));
        return Err(Failure::new("INVALID_SCENARIO", Exit::Usage, format!("there is no scenario `{unknown}`"), fix));
    }
    if args.what.as_deref() == Some("webhooks") {
        return deliveries(args, context).await;
    }
    let plan = Plan {
        events: args.events.max(1_000),
        rounds: usize::from(args.rounds),
        samples: args.samples.max(100),
        backlog: args.backlog,
        concurrency: context.config.drainer.concurrency,
        config: Box::new(context.config.clone()),
        only: args.only.clone(),
        functions: None,
    };
    let plan = match args.what {
        None => plan,
        // Of the other scenarios, none: a name that is none of theirs.
        Some(_) => Plan {
            only: vec!["functions".into()],
            functions: Some(FunctionsPlan {
                sdk_dir: args.sdk_dir.clone(),
                runs: args.runs.max(100),
                in_flight: args.in_flight.clamp(1, 10_000),
                waiting: args.waiting,
                config: Box::new(context.config.clone()),
            }),
            ..plan
        },
    };
    let report = match &args.throwaway_redis {
        Some(url) => {
            let redis = Redis::open(url, "the throwaway Redis")?;
            refuse_if_used(&redis).await?;
            measure(&redis, &plan, context).await?
        }
        None => with_own_redis(&plan, context).await?,
    };
    let columns = ["SCENARIO", "PER SECOND", "RAW", "RATIO", "P50", "P99", "TARGET", ""];
    let human = Human::new().table(&columns, report.scenarios.iter().map(row));
    Ok(Report::new(report, human).list("scenarios"))
}

/// Signed deliveries while Redis is killed and started again. Anything lost or doubled is a failure.
async fn deliveries(args: &Args, context: &Context) -> Result<Report, Failure> {
    let plan = WebhooksPlan {
        rate: args.rate,
        seconds: args.seconds,
        outage_s: args.outage,
        has_spool: !args.no_spool,
        binary: std::env::var_os("SYSTEM_BUS_REDIS_SERVER").map(Into::into),
    };
    let spinner = spinner(context);
    let counts = webhooks::run(&plan, |what| spinner.set_message(what.to_owned())).await;
    spinner.finish_and_clear();
    let counts = counts?;
    if !counts.is_kept() {
        let told = serde_json::to_string(&counts).unwrap_or_default();
        let message = format!("a promise was not kept: {told}");
        return Err(Failure::new("BENCH_FAILED", Exit::Unhealthy, message, "Report this with the output."));
    }
    let rows = [
        ("sent", counts.sent),
        ("answered 200", counts.answered200),
        ("answered 202 (spooled)", counts.answered202),
        ("answered 503", counts.answered503),
        ("stored", counts.stored),
        ("lost", counts.lost),
        ("stored twice", counts.duplicated),
    ];
    let rows = rows.map(|(what, number)| vec![what.to_owned(), grouped(number as u64)]);
    let human = Human::new().table(&["WHAT", "HOW MANY"], rows);
    Ok(Report::new(counts, human))
}

fn spinner(context: &Context) -> indicatif::ProgressBar {
    let spinner = match std::io::stderr().is_terminal() && !context.output.is_quiet {
        true => indicatif::ProgressBar::new_spinner(),
        false => indicatif::ProgressBar::hidden(),
    };
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// On a Redis of its own, gone afterwards.
async fn with_own_redis(plan: &Plan, context: &Context) -> Result<bench::Report, Failure> {
    let internal = |error: std::io::Error| {
        Failure::new(
            "INTERNAL_ERROR",
            Exit::Internal,
            error.to_string(),
            "Check that the temporary directory is writable.",
        )
    };
    let dir = tempfile::tempdir().map_err(internal)?;
    let mut options = ManagedOptions::new(dir.path().join("redis"));
    options.binary = std::env::var_os("SYSTEM_BUS_REDIS_SERVER").map(Into::into);
    let server = ManagedRedis::start(options).await?;
    let url = server.url();
    let redis = Redis::open(&url, &url)?;
    // A rewrite of the append-only file in the middle would be measured too.
    redis.query::<redis::Value>(redis::cmd("CONFIG").arg("SET").arg("auto-aof-rewrite-percentage").arg(0)).await?;
    let measured = measure(&redis, plan, context).await;
    server.stop().await?;
    measured
}

async fn measure(redis: &Redis, plan: &Plan, context: &Context) -> Result<bench::Report, Failure> {
    let spinner = spinner(context);
    let report = bench::run(redis, plan, |what| spinner.set_message(what.to_owned())).await;
    spinner.finish_and_clear();
    Ok(report?)
}

async fn refuse_if_used(redis: &Redis) -> Result<(), Failure> {
    let keys: u64 = redis.query(&redis::cmd("DBSIZE")).await?;
    if keys == 0 {
        return Ok(());
    }
    let message = format!("that Redis holds {keys} keys; a benchmark would remove them");
    Err(Failure::new(
        "REDIS_NOT_EMPTY",
        Exit::Refused,
        message,
        "joelclaw bench (without --throwaway-redis starts its own)",
    ))
}

fn row(scenario: &Scenario) -> Vec<String> {
    let number = |value: Option<u64>| value.map(grouped).unwrap_or_default();
    let time = |value: Option<u64>| value.map(|us| format!("{us} µs")).unwrap_or_default();
    let mut name = scenario.name.to_owned();
    if let Some(bytes) = scenario.resident_bytes {
        name = format!("{name} ({} resident)", render::bytes(bytes));
    }
    vec![
        name,
        number(scenario.per_s),
        number(scenario.raw_per_s),
        scenario.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        time(scenario.p50_us),
        time(scenario.p99_us),
        scenario.target.to_owned(),
        if scenario.reached { "reached".into() } else { "missed".into() },
    ]
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
