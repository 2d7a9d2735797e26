//! Commands that change something. Each refuses to touch another data set than the running service uses.

pub mod emit;
pub mod resume;

use super::super::Context;
use super::super::output::{Failure, Report};

/// Commands that change something.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Append one event, or a file of them
    Emit(Box<emit::Args>),
    /// Let a paused family go on
    Resume(resume::Args),
}

/// Runs the command.
pub async fn run(command: &Command, context: &Context) -> Result<Report, Failure> {
    match command {
        Command::Emit(args) => emit::run(args, context).await,
        Command::Resume(args) => resume::run(args, context).await,
    }
}
