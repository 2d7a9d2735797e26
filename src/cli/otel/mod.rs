//! `joelclaw otel …`: telemetry events by their facets, for scripts that know it by this name. What happened to an event
//! or run is better asked of `journal` and `queue inspect`.

mod emit;
mod list;
mod stats;

use serde_json::Value;

use super::output::{Failure, Report};
use super::queue::since::{Since, iso};
use super::{Context, Ending};
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;

/// What events are counted by.
const FACETS: [&str; 4] = ["component", "level", "source", "success"];

/// Telemetry events by level, source and component
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// The newest events
    List(list::ListArgs),
    /// The newest events that contain a text
    Search(list::SearchArgs),
    /// How many events there are, and how many of them failed
    Stats(stats::Args),
    /// Write one telemetry event
    Emit(emit::Args),
}

/// Runs the command.
pub(super) async fn run(args: &Args, context: &Context) -> Ending {
    let outcome: Result<Report, Failure> = match &args.command {
        Command::List(args) => list::list(args, context).await,
        Command::Search(args) => list::search(args, context).await,
        Command::Stats(args) => stats::run(args, context).await,
        Command::Emit(args) => emit::run(args, context).await,
    };
    Ending::Outcome(outcome)
}

/// How far back: `--since`, or else `--hours`.
#[derive(Debug, Clone, clap::Args)]
struct Back {
    /// How far back
    #[arg(short = 'h', long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8_760))]
    hours: u64,
    /// From when on, instead of --hours: 15m, a time, or a stream id
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl Back {
    /// The first record that counts, and now, ms.
    async fn from(&self, bus: &Bus) -> Result<(EntryId, u64), Failure> {
        let since = Since::of(self.since.as_deref())?.unwrap_or(Since::Ago(self.hours * 3_600_000));
        let now = bus.now_ms().await?;
        Ok((since.entry(bus, now).await?, now))
    }
}

fn is_one_of(wanted: &[String], event: &Value, field: &str) -> bool {
    wanted.is_empty() || event[field].as_str().is_some_and(|value| wanted.iter().any(|one| one == value))
}

/// The filter in words: what is asked of each field.
fn in_words(from: EntryId, asked: &[(&str, String)]) -> String {
    let asked = asked.iter().filter(|(_, value)| !value.is_empty()).map(|(field, value)| format!("{field}={value}"));
    std::iter::once(format!("timestamp>={}", iso(from.ms))).chain(asked).collect::<Vec<_>>().join(" ")
}
