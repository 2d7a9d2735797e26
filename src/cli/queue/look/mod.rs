//! Commands that only read: depth, list, inspect, why, dead letters, history, registry.

pub mod depth;
pub mod list;

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};

/// Commands that only read.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// What waits, by family and priority
    Depth(depth::Args),
    /// The open entries in the order in which they will be dispatched
    List(list::Args),
}

/// Runs the command.
pub async fn run(command: &Command, context: &Context) -> Result<Report, Failure> {
    match command {
        Command::Depth(args) => depth::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
    }
}

/// `queue inspect` of something just seen.
pub(super) fn inspect_action(id: &str, description: &str) -> NextAction {
    NextAction::new("queue inspect <id>", description).param("id", Param::new().value(id).required())
}
