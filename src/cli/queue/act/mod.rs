//! Commands that change something. Each refuses to touch another data set than the running service uses.

pub mod ack;
pub mod batch;
pub mod emit;
pub mod pause;
pub mod reprioritize;
pub mod resume;
pub mod steering;

use super::super::Context;
use super::super::output::{Failure, Report};
use crate::diagnose::Exit;
use crate::streams::dead::Operator;

/// Commands that change something.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Append one event, or a file of them
    Emit(Box<emit::Args>),
    /// Hold a family: its events are kept, no other family waits
    Pause(pause::Args),
    /// Let a paused family go on
    Resume(resume::Args),
    /// Let the events of a family count as of another priority, for a while
    Reprioritize(reprioritize::Args),
    /// Let a family run in batches, for a while
    Batch(batch::Args),
    /// Acknowledge entries that nothing will dispatch any more
    Ack(ack::Args),
}

/// Runs the command.
pub async fn run(command: &Command, context: &Context) -> Result<Report, Failure> {
    match command {
        Command::Emit(args) => emit::run(args, context).await,
        Command::Pause(args) => pause::run(args, context).await,
        Command::Ack(args) => ack::run(args, context).await,
        Command::Resume(args) => resume::run(args, context).await,
        Command::Reprioritize(args) => reprioritize::run(args, context).await,
        Command::Batch(args) => batch::run(args, context).await,
    }
}

/// Who changes something: as asked, else the command with user and host.
pub(in crate::cli) fn actor(asked: Option<&str>, context: &Context) -> String {
    let named = asked.map(str::trim).filter(|actor| !actor.is_empty());
    named.map_or_else(
        || {
            let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
            let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
            let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
            format!("{} ({}@{})", context.command, or_unknown(user), or_unknown(host))
        },
        str::to_owned,
    )
}

/// A reason that was given, or one that says which command it was.
pub(in crate::cli) fn reason_or(asked: Option<&str>, fallback: impl FnOnce() -> String) -> String {
    asked.map(str::trim).filter(|reason| !reason.is_empty()).map_or_else(fallback, str::to_owned)
}

/// Who and why, for a change that nobody should find later without its reason.
pub(in crate::cli) fn operator(
    reason: Option<&str>,
    actor: Option<&str>,
    context: &Context,
) -> Result<Operator, Failure> {
    let Some(reason) = reason.map(str::trim).filter(|reason| !reason.is_empty()) else {
        let message = "this change is recorded and needs a reason";
        return Err(Failure::new("REASON_REQUIRED", Exit::Usage, message, "Add --reason with a few words."));
    };
    Ok(Operator { actor: self::actor(actor, context), reason: reason.to_owned() })
}
