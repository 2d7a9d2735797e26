//! `joelclaw completions <shell>`: the script that a shell sources.

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use super::Cli;
use super::output::{Failure, Report};

/// Print the completion script of a shell
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  joelclaw completions zsh > ~/.zfunc/_joelclaw\n  source <(joelclaw completions bash)"
)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<Report, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "joelclaw", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    Ok(Report::raw(json!({ "shell": args.shell.to_string(), "script": script }), script))
}
