//! `joelclaw jobs …`: whether everything that runs jobs is healthy.

pub mod parts;
pub mod status;

use super::Context;
use super::output::{Failure, Report};

/// Whether everything that runs jobs is healthy
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// One snapshot of queue, drainer, functions, observer and Redis, with a verdict and its reasons
    Status(status::Args),
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::Status(args) => status::run(args, context).await,
    }
}
