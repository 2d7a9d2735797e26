//! `joelclaw webhooks`: what comes in, and the endpoints that our events are sent to.

mod deliveries;
mod dlq;
mod endpoint_change;
pub mod endpoints;
mod local;
mod sources;
mod switch;

use super::Context;
use super::output::{Failure, Report};
use crate::ingest::providers::Senders;
use crate::service::senders::Leased;

/// Webhooks: what comes in, and the endpoints that events are sent to
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// The deliveries that came, newest first
    #[command(visible_alias = "deliveries")]
    #[command(after_help = "Examples:\n  joelclaw webhooks list --provider github\n  \
                            joelclaw webhooks list --outcome failed --since 1h")]
    List(deliveries::ListArgs),
    /// One delivery: headers, body, events
    #[command(after_help = "Example:\n  joelclaw webhooks inspect 01J…")]
    Inspect(deliveries::InspectArgs),
    /// Append the events of deliveries once more, made by today's code
    #[command(after_help = "Examples:\n  joelclaw webhooks replay 01J…\n  \
                            joelclaw webhooks replay --outcome failed --since 1h --apply")]
    Replay(deliveries::ReplayArgs),
    /// Send a correctly signed sample to the running server
    #[command(after_help = "Example:\n  joelclaw webhooks test github")]
    Test(sources::TestArgs),
    /// Send a body of yours, signed like the provider's
    #[command(after_help = "Examples:\n  joelclaw webhooks send github --event workflow_run --file run.json\n  \
                            joelclaw webhooks send standard --file - --secret-env MY_SECRET --url https://hooks.example.com")]
    Send(local::SendArgs),
    /// Say which check a delivery fails
    #[command(after_help = "Example:\n  joelclaw webhooks verify github --headers headers.json --body body.json")]
    Verify(local::VerifyArgs),
    /// Answer a provider's deliveries 503 until it is enabled again
    #[command(after_help = "Example:\n  joelclaw webhooks disable vercel --reason 'deploys are frozen'")]
    Disable(switch::DisableArgs),
    /// Take a provider's deliveries again
    #[command(after_help = "Example:\n  joelclaw webhooks enable vercel")]
    Enable(switch::EnableArgs),
    /// Who may send, and whether its secret is set
    #[command(after_help = "Example:\n  joelclaw webhooks sources")]
    Sources,
    /// Where events are sent to: add, change, test, enable and disable
    #[command(visible_alias = "endpoint")]
    Endpoints(Box<endpoints::Args>),
    /// Deliveries that endpoints did not take: list, retry, purge
    Dlq(dlq::Args),
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::List(args) => deliveries::list(args, context).await,
        Command::Inspect(args) => deliveries::inspect(args, context).await,
        Command::Replay(args) => deliveries::replay(args, context).await,
        Command::Test(args) => sources::test(args, context).await,
        Command::Send(args) => local::send(args, context).await,
        Command::Verify(args) => local::verify(args, context).await,
        Command::Disable(args) => switch::disable(args, context).await,
        Command::Enable(args) => switch::enable(args, context).await,
        Command::Sources => sources::sources(context).await,
        Command::Endpoints(args) => endpoints::run(args, context).await,
        Command::Dlq(args) => dlq::run(args, context).await,
    }
}

/// The senders of this configuration. What a command of secrets would say is known to the service alone.
fn senders(context: &Context) -> Result<Senders, Failure> {
    Ok(crate::service::senders::senders(&context.config, &Leased::default())?)
}
