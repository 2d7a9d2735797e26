//! Commands that only read: depth, list, inspect, why, dead letters, history, registry.

pub mod depth;

use super::super::Context;
use super::super::output::{Failure, Report};

/// Commands that only read.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// What waits, by family and priority
    Depth(depth::Args),
}

/// Runs the command.
pub async fn run(command: &Command, context: &Context) -> Result<Report, Failure> {
    match command {
        Command::Depth(args) => depth::run(args, context).await,
    }
}
