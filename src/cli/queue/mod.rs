//! `joelclaw queue …`: look at the queue and act on it. Talks to Redis directly, so it works with the daemons stopped.
//!
//! [`look`] only reads. [`act`] changes something, each change one script with its journal record.

pub mod act;
pub mod breaker;
mod condition;
mod config;
pub mod control;
mod control_log;
pub mod dead;
mod dead_change;
pub mod fsck;
pub mod look;
pub mod observe;
pub mod shed;
pub mod simulate;
pub mod since;
pub mod stats;
mod stats_outcomes;
pub mod tail;
pub mod triage;

use serde_json::Value;

use super::output::Failure;
use super::{Context, Ending};
use crate::diagnose::Exit;
use crate::functions::registry::{INTERNAL, Registry as Functions, Snapshot};
use crate::outbound;
use crate::registry::Registry;
use crate::registry::entry::HandlerSpec;
use crate::registry::watch::RegistryHandle;
use crate::service::running_service;
use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::streams::redis::Redis;

/// Look at the queue and act on it
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Look(look::Command),
    #[command(flatten)]
    Act(act::Command),
    /// How long events waited and ran, what failed, what triage did
    Stats(stats::Args),
    /// Pauses and their history
    Control(control::Args),
    /// What the running service goes by
    Config(config::Args),
    /// Look at the queue as the observer does, and tell what it would do; or run what it saw through today's policy
    Observe(observe::Args),
    /// Drive the observer's policy through outages on virtual time
    Simulate(simulate::Args),
    /// Circuit breakers: what is open, and an operator's word about it
    Breaker(breaker::Args),
    /// Move what waits of a family to the dead letters; nothing is lost
    Shed(shed::Args),
    /// Check that every accepted event is in exactly one place
    Fsck(fsck::Args),
    /// Show the journal as it is written
    Tail(tail::Args),
    /// The events that no handler could take
    Dead(dead::Args),
    /// Triage: modes, rules, and what a model says
    Triage(triage::Args),
}

/// Runs the command.
pub(super) async fn run(args: &Args, context: &Context) -> Ending {
    Ending::Outcome(match &args.command {
        Command::Look(command) => look::run(command, context).await,
        Command::Act(command) => act::run(command, context).await,
        Command::Stats(args) => stats::run(args, context).await,
        Command::Control(args) => control::run(args, context).await,
        Command::Config(args) => config::run(args, context).await,
        Command::Observe(args) => observe::run(args, context).await,
        Command::Simulate(args) => simulate::run(args),
        Command::Breaker(args) => breaker::run(args, context).await,
        Command::Shed(args) => shed::run(args, context).await,
        Command::Fsck(args) => fsck::run(args, context).await,
        Command::Dead(args) => dead::run(args, context).await,
        Command::Triage(args) => triage::run(args, context).await,
        Command::Tail(args) => return tail::run(args, context).await,
    })
}

impl Args {
    /// Prints as it goes, until it is stopped.
    pub(super) const fn is_stream(&self) -> bool {
        matches!(self.command, Command::Tail(_))
    }
}

/// The bus of this configuration. Opens nothing yet.
pub fn bus(context: &Context) -> Result<Bus, Failure> {
    let redis = Redis::open(context.config.redis.expose(), &context.config.redis.display)?;
    Ok(Bus::new(redis, &context.config.system.key_prefix))
}

/// The bus, for a command that changes something: refuses when the running service of this machine uses another data
/// set, because the change would have no effect there.
pub async fn bus_to_change(context: &Context) -> Result<Bus, Failure> {
    let bus = bus(context)?;
    let ours = bus.known_instance_id().await?;
    let Some(service) = running_service(&context.config.system.data_dir) else { return Ok(bus) };
    if ours.as_deref() == Some(service.instance_id.as_str()) {
        return Ok(bus);
    }
    let message = format!(
        "this command reaches {} (instance {}), but the running service (pid {}) uses {} (instance {})",
        bus.redis.display(),
        ours.as_deref().unwrap_or("never used"),
        service.pid,
        service.redis_url,
        service.instance_id
    );
    Err(Failure::new("REDIS_INSTANCE_MISMATCH", Exit::Unreachable, message, "joelclaw config"))
}

/// `redis: {url, origin, instanceId}` of every result.
pub async fn redis_of(bus: &Bus, context: &Context) -> Value {
    let mut redis = context.redis_origin();
    redis["instanceId"] = bus.known_instance_id().await.ok().flatten().into();
    redis
}

/// The routing table of this configuration.
pub fn registry(context: &Context) -> Result<RegistryHandle, Failure> {
    Ok(RegistryHandle::load(context.config.system.registry.clone())?)
}

/// Whether an `inngest` handler has somewhere to send to. A server without its key counts: the service refuses to start.
pub fn is_inngest_served(context: &Context) -> bool {
    !matches!(context.config.external_inngest(), Ok(None))
}

/// The functions that apps serve, as they are in Redis.
pub async fn functions(bus: &Bus) -> Result<Snapshot, Failure> {
    Ok(Functions::new(bus.clone()).load().await?)
}

/// The endpoints of outbound webhooks, as they are in Redis.
pub async fn endpoints(bus: &Bus) -> Result<outbound::store::Snapshot, Failure> {
    Ok(outbound::store::Endpoints::new(bus.clone()).load().await?)
}

/// Whether some handler, function or endpoint wants the events of this name.
pub fn is_routed(
    context: &Context,
    registry: &Registry,
    functions: &Snapshot,
    endpoints: &outbound::store::Snapshot,
    family: &Family,
) -> bool {
    // What the system appends for itself is always its own.
    if family.as_str().starts_with(INTERNAL) || family.as_str().starts_with(outbound::FAMILY) {
        return true;
    }
    match registry.lookup(family).map(|entry| &entry.handler) {
        None => functions.wants(family.as_str()) || endpoints.wants(family.as_str()),
        // An endpoint alone is no route where a function is to have the event: it waits for that.
        Some(HandlerSpec::Inngest { target }) => is_inngest_served(context) || functions.wants(target.as_str()),
        Some(_) => true,
    }
}
