//! `joelclaw journal …`: the record of everything that happened, live, searched, checked and replayed.

pub mod query;
pub mod replay;
pub mod scan;
pub mod verify;

use super::queue::tail;
use super::{Context, Ending};

/// The record of everything that happened
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Show the journal as it is written
    Tail(tail::Args),
    /// Find records by what they are about
    Query(query::Args),
    /// Make the projection anew, or have a sink begin again
    Replay(replay::Args),
    /// Check that the journal can be read and that what was made of it agrees
    Verify(verify::Args),
}

impl Args {
    /// Prints as it goes, until it is stopped.
    pub(super) const fn is_stream(&self) -> bool {
        matches!(self.command, Command::Tail(_))
    }
}

/// Runs the command.
pub(super) async fn run(args: &Args, context: &Context) -> Ending {
    Ending::Outcome(match &args.command {
        Command::Query(args) => query::run(args, context).await,
        Command::Replay(args) => replay::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Tail(args) => return tail::run(args, context).await,
    })
}
