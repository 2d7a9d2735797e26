//! `joelclaw webhooks disable` and `enable`: whether a provider's deliveries are taken.

use serde_json::json;

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::act::actor;
use super::super::queue::{bus_to_change, redis_of};
use super::super::render::Human;
use super::senders;
use super::sources::find;
use crate::ingest::disabled::Why;

/// Options of `disable`.
#[derive(Debug, Clone, clap::Args)]
pub struct DisableArgs {
    /// The provider, as `webhooks sources` names it
    provider: String,
    /// Why
    #[arg(long)]
    reason: Option<String>,
}

/// Options of `enable`.
#[derive(Debug, Clone, clap::Args)]
pub struct EnableArgs {
    /// The provider
    provider: String,
}

fn action(command: &str, why: &str, provider: &str) -> NextAction {
    NextAction::new(format!("webhooks {command} <provider>"), why.to_owned())
        .param("provider", Param::new().value(provider).required())
}

/// Runs `disable`.
pub async fn disable(args: &DisableArgs, context: &Context) -> Result<Report, Failure> {
    let senders = senders(context)?;
    let provider = find(&senders, &args.provider)?;
    let bus = bus_to_change(context).await?;
    let why = Why { by: actor(None, context), reason: args.reason.clone(), at_ms: bus.now_ms().await? };
    let is_new = bus.disable_provider(provider.id(), &why).await?;
    let after = match provider.redelivers() {
        true => "it sends again, and catches up once enabled",
        false => "it does not send again by itself: what it sends meanwhile is gone",
    };
    let human = match is_new {
        true => Human::new().text(format!("{} is answered 503 from now on; {after}.", provider.id())),
        false => Human::new().text(format!("{} was disabled already.", provider.id())),
    };
    let result = json!({
        "provider": provider.id(),
        "disabled": true,
        "changed": is_new,
        "redelivers": provider.redelivers(),
        "redis": redis_of(&bus, context).await,
    });
    Ok(Report::new(result, human).next(action("enable", "Take its deliveries again", provider.id())))
}

/// Runs `enable`.
pub async fn enable(args: &EnableArgs, context: &Context) -> Result<Report, Failure> {
    let bus = bus_to_change(context).await?;
    // Also one that no configuration knows any more.
    let was = bus.enable_provider(&args.provider, &actor(None, context)).await?;
    if !was {
        find(&senders(context)?, &args.provider)?;
    }
    let human = match was {
        true => Human::new().text(format!("{} is taken again.", args.provider)),
        false => Human::new().text(format!("{} was not disabled.", args.provider)),
    };
    let result = json!({
        "provider": args.provider,
        "disabled": false,
        "changed": was,
        "redis": redis_of(&bus, context).await,
    });
    Ok(Report::new(result, human).next(action("test", "Send a signed sample", &args.provider)))
}
