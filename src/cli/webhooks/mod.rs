//! `joelclaw webhooks`: endpoints that our events are sent to.

mod endpoint_change;
pub mod endpoints;

use super::Context;
use super::output::{Failure, Report};

/// Webhooks: the endpoints that events are sent to
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Where events are sent to: add, change, test, enable and disable
    #[command(visible_alias = "endpoint")]
    Endpoints(Box<endpoints::Args>),
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::Endpoints(args) => endpoints::run(args, context).await,
    }
}
