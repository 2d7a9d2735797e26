//! What Redis says of itself, and what stands in it.

use std::time::Instant;

use super::super::Context;
use super::super::queue::functions;
use super::Check;
use crate::config::{DurabilityClass, MemoryBudget};
use crate::diagnose::{Diagnose as _, chain};
use crate::service::ServiceNote;
use crate::streams::bus::{Bus, ServerFacts};
use crate::streams::keys::SCHEMA;
use crate::streams::redis::Error;

/// Round trips measured.
const PINGS: usize = 20;
/// A round trip slower than this is told, ms.
const SLOW_MS: f64 = 5.0;
/// Clocks further apart are told, ms.
const SKEW_MS: u64 = 1_000;
/// Of the memory limit, percent.
const FULL_PERCENT: u64 = 85;

/// All checks; one alone when Redis is away.
pub(super) async fn checks(bus: &Bus, context: &Context, service: Option<&ServiceNote>) -> Vec<Check> {
    let facts = match bus.server_facts().await {
        Ok(facts) => facts,
        Err(error) => return vec![Check::fail("redis", chain(&error), error.fix())],
    };
    let mut checks = vec![version(&facts), persistence(&facts), durability(&facts, context), eviction(&facts)];
    checks.push(memory(&facts, context));
    for look in [
        latency(bus).await,
        clock(bus).await,
        instance(bus, service).await,
        drainers(bus, service).await,
        apps(bus).await,
        held(bus).await,
    ] {
        checks.push(look.unwrap_or_else(|error| Check::fail("redis", chain(&error), error.fix())));
    }
    checks
}

fn version(facts: &ServerFacts) -> Check {
    let major: u32 = facts.version.split('.').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    match major {
        7.. => Check::ok("redis version", &facts.version),
        _ => Check::fail("redis version", format!("{} is too old", facts.version), "Install Redis 7 or Valkey 8."),
    }
}

fn persistence(facts: &ServerFacts) -> Check {
    let fsync = facts.appendfsync.as_deref().unwrap_or("unknown");
    match (facts.aof_enabled, fsync) {
        (false, _) => Check::fail(
            "redis persistence",
            "no append-only file: a restart of Redis loses events",
            "redis-cli CONFIG SET appendonly yes, and write it into its configuration",
        ),
        (true, "no") => Check::warn(
            "redis persistence",
            "the append-only file is synced when the system likes",
            "redis-cli CONFIG SET appendfsync everysec",
        ),
        (true, fsync) => Check::ok("redis persistence", format!("append-only file, appendfsync {fsync}")),
    }
}

/// Which class of durability an accepted event has, beside the one that is asked for.
fn durability(facts: &ServerFacts, context: &Context) -> Check {
    let in_force = match (facts.aof_enabled, facts.appendfsync.as_deref()) {
        (true, Some("always")) => "disk",
        _ => "memory",
    };
    let mut version = facts.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let has_waitaof = (version.next().unwrap_or(0), version.next().unwrap_or(0)) >= (7, 2) && facts.aof_enabled;
    let name = "durability";
    match context.config.queue.durability {
        DurabilityClass::Memory => Check::ok(name, format!("asked memory, in force {in_force}")),
        DurabilityClass::Disk if in_force == "disk" => Check::ok(name, "asked disk, in force disk"),
        DurabilityClass::Disk if has_waitaof => Check::ok(name, "asked disk, in force disk (WAITAOF per append)"),
        DurabilityClass::Disk => Check::fail(
            name,
            format!("asked disk, but this Redis gives {in_force}: appends are refused"),
            "redis-cli CONFIG SET appendfsync always, or QUEUE_DURABILITY=memory",
        ),
        DurabilityClass::Replica if facts.replicas > 0 => {
            Check::ok(name, format!("asked replica, {} connected", facts.replicas))
        }
        DurabilityClass::Replica => {
            Check::fail(name, "asked replica, but none is connected", "Connect a replica, or QUEUE_DURABILITY=memory")
        }
    }
}

fn eviction(facts: &ServerFacts) -> Check {
    match facts.eviction_policy.as_str() {
        "noeviction" => Check::ok("redis eviction", "noeviction"),
        policy => Check::fail(
            "redis eviction",
            format!("{policy} may drop whole lanes"),
            "redis-cli CONFIG SET maxmemory-policy noeviction",
        ),
    }
}

fn memory(facts: &ServerFacts, context: &Context) -> Check {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let limit = match context.config.queue.memory_budget {
        MemoryBudget::Bytes(bytes) => bytes,
        MemoryBudget::Percent(percent) => facts.max_memory / 100 * u64::from(percent),
        MemoryBudget::Off => 0,
    };
    let name = "redis memory";
    if limit == 0 {
        let detail = format!("{} used, no limit for appends", mib(facts.used_memory));
        return Check::warn(name, detail, "Set maxmemory in Redis, or QUEUE_MEMORY_BUDGET in bytes.");
    }
    let detail = format!("{} of {} used; appends are refused beyond", mib(facts.used_memory), mib(limit));
    let fix = "Let the drainer catch up, shorten QUEUE_RETAIN, or raise maxmemory.";
    match facts.used_memory.saturating_mul(100) / limit.max(1) {
        100.. => Check::fail(name, detail, fix),
        FULL_PERCENT.. => Check::warn(name, detail, fix),
        _ => Check::ok(name, detail),
    }
}

async fn latency(bus: &Bus) -> Result<Check, Error> {
    let mut took: Vec<f64> = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        bus.now_ms().await?;
        took.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    let (middle, worst) = (took[PINGS / 2], took[PINGS - 1]);
    let detail = format!("{middle:.2} ms a round trip, {worst:.2} ms at worst of {PINGS}");
    Ok(match middle > SLOW_MS {
        true => Check::warn(
            "redis latency",
            detail,
            "Bring Redis nearer, or look for what keeps it busy: redis-cli --latency",
        ),
        false => Check::ok("redis latency", detail),
    })
}

async fn clock(bus: &Bus) -> Result<Check, Error> {
    let redis = bus.now_ms().await?;
    let ours = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0);
    let apart = redis.abs_diff(ours);
    let detail = format!("this machine and Redis are {apart} ms apart");
    Ok(match apart > SKEW_MS {
        true => Check::warn("clock", detail, "Let both machines keep time by NTP."),
        false => Check::ok("clock", detail),
    })
}

async fn instance(bus: &Bus, service: Option<&ServiceNote>) -> Result<Check, Error> {
    let ours = bus.known_instance_id().await?;
    let told = ours.clone().unwrap_or_else(|| "never used".into());
    Ok(match service {
        Some(note) if ours.as_deref() != Some(note.instance_id.as_str()) => Check::fail(
            "redis instance",
            format!("commands reach {told}, the service (pid {}) uses {}", note.pid, note.instance_id),
            "joelclaw config",
        ),
        _ => Check::ok("redis instance", format!("{told} at {}, key schema {SCHEMA}", bus.redis.display())),
    })
}

async fn drainers(bus: &Bus, service: Option<&ServiceNote>) -> Result<Check, Error> {
    let now = bus.now_ms().await?;
    let live: Vec<_> = bus.sessions().await?.into_iter().filter(|session| session.expires_ms > now).collect();
    let of = |key: &str| {
        let mut values: Vec<String> =
            live.iter().filter_map(|session| Some(session.details.as_ref()?.get(key)?.as_str()?.to_owned())).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    let (tables, versions) = (of("registryHash"), of("version"));
    let name = "drainers";
    Ok(match live.len() {
        0 => {
            let fix = if service.is_some() { "joelclaw jobs status" } else { "joelclaw service start" };
            Check::warn(name, "none is alive: events wait", fix)
        }
        n if tables.len() > 1 => Check::warn(
            name,
            format!("{n} live, with {} routing tables", tables.len()),
            "joelclaw queue registry check",
        ),
        n if versions.len() > 1 => {
            Check::warn(name, format!("{n} live, of versions {}", versions.join(", ")), "joelclaw service restart")
        }
        n => Check::ok(name, format!("{n} live")),
    })
}

async fn apps(bus: &Bus) -> Result<Check, Error> {
    let Ok(known) = functions(bus).await else {
        return Ok(Check::warn("apps", "the functions can't be read", "joelclaw functions"));
    };
    let wrong: Vec<String> = known
        .apps
        .iter()
        .filter_map(|(name, record)| Some(format!("{name}: {}", record.health.as_ref()?.problem.as_ref()?)))
        .collect();
    Ok(match (known.apps.len(), wrong.is_empty()) {
        (0, _) => Check::ok("apps", "none is registered"),
        (n, true) => Check::ok("apps", format!("{n} registered, all agree")),
        (_, false) => Check::fail("apps", wrong.join("; "), "joelclaw refresh"),
    })
}

/// What an operator may have forgotten.
async fn held(bus: &Bus) -> Result<Check, Error> {
    let (pauses, breakers, steerings) = (bus.pauses().await?, bus.breakers().await?, bus.steerings().await?);
    let dead = bus.depth().await?.dead;
    let parts = [
        (pauses.active.len() as u64, "paused"),
        (breakers.len() as u64, "with a circuit breaker that is not closed"),
        (steerings.sorted().len() as u64, "steered"),
        (dead, "dead letters"),
    ];
    let told: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    Ok(match told.is_empty() {
        true => Check::ok("held", "nothing is paused, broken, steered or dead"),
        false => Check::warn("held", told.join(", "), "joelclaw queue control status"),
    })
}
