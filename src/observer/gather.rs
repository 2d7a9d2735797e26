//! Reads a snapshot from Redis: depth, counts and histograms as they are kept anyway, so that a pass costs the same
//! however much waits or happened. Reads only, but for pauses whose time has come.

use std::collections::BTreeMap;

use super::flags::{BUDGET_WINDOW_MS, HOLD_WINDOW_MS, Policy};
use super::snapshot::*;
use crate::moment::iso;
use crate::streams::breaker::Circuits;
use crate::streams::bus::Bus;
use crate::streams::control::{Pause, PauseSource, Pauses};
use crate::streams::control_observer::Memory;
use crate::streams::depth::{Depth, FamilyDepth};
use crate::streams::entry_id::EntryId;
use crate::streams::lane::family_of;
use crate::streams::redis::Error;
use crate::telemetry::latency::kind;
use crate::telemetry::projection::{Window, window};

/// What was in flight when a pause began may fail for so long without telling anything.
const IN_FLIGHT_MS: u64 = 5_000;
/// A queue younger than this says nothing of what is downstream.
const YOUNG_MS: u64 = 10_000;
/// A wait longer than this, at the 95th percentile, is degraded.
const SLOW_MS: f64 = 5_000.0;

/// Everything that was read.
struct Read {
    now: u64,
    depth: Depth,
    hour: Window,
    recent: Window,
    pauses: Pauses,
    circuits: Circuits,
    memory: BTreeMap<String, Memory>,
    fresh: BTreeMap<String, u64>,
    consumers: u64,
}

/// Makes a snapshot of the observed families.
pub async fn snapshot(bus: &Bus, policy: &Policy, is_quiet: Option<bool>, hours: u64) -> Result<Snapshot, Error> {
    match bus.expire_pauses().await {
        // A user that may only read sees the pauses all the same; those that are over are left out.
        Ok(_) | Err(Error::Refused(_)) => {}
        Err(error) => return Err(error),
    }
    let now = bus.now_ms().await?;
    let from = |ms: u64| EntryId { ms: now.saturating_sub(ms), seq: 0 };
    let (depth, hour, recent, pauses, circuits, memory) = tokio::try_join!(
        bus.depth(),
        window(bus, from(hours.max(1) * 3_600_000)),
        window(bus, from(300_000)),
        bus.pauses(),
        bus.breakers(),
        bus.observer_memory(),
    )?;
    let (kill, gateway, sessions) = tokio::try_join!(bus.kill_switch(), bus.gateway_state(), bus.sessions())?;
    let mut fresh = BTreeMap::new();
    for family in &policy.observe {
        // A pause that replaced another goes on with it; what failed before this one began doesn't count against it.
        let Some((_, Some(pause))) = pauses.of(family) else { continue };
        let since = window(bus, EntryId { ms: pause.applied_at_ms + IN_FLIGHT_MS, seq: 0 }).await?;
        fresh.insert(family.clone(), since.count("downstream", |lane, _| family_of(lane) == family));
    }
    let consumers = sessions.iter().filter(|session| session.expires_ms > now).count() as u64;
    let read = Read { now, depth, hour, recent, pauses, circuits, memory, fresh, consumers };
    let gateway = GatewayView { sleep_mode: gateway.is_asleep, quiet_hours: is_quiet, muted_channels: gateway.muted };
    let mut made = assemble(&read, policy, gateway, hours.max(1));
    made.control.kill_switch = Some(kill.is_some());
    made.settle();
    Ok(made)
}

fn assemble(read: &Read, policy: &Policy, gateway: GatewayView, hours: u64) -> Snapshot {
    let is_observed = |family: &str| policy.observe.iter().any(|observed| observed == family);
    let open = |family: &FamilyDepth| family.waiting + family.leased + family.retrying;
    let mut families: Vec<FamilyView> = read
        .depth
        .by_family
        .iter()
        .filter(|family| is_observed(family.family.as_str()) && open(family) > 0)
        .map(|family| view(family, read))
        .collect();
    families.sort_by(|a, b| {
        (b.total, b.oldest_age_ms).cmp(&(a.total, a.oldest_age_ms)).then_with(|| a.family.cmp(&b.family))
    });
    let mut totals = Totals { held_depth: Some(0), free_depth: Some(0), ..Totals::default() };
    let mut startable = 0;
    for family in &families {
        totals.depth += family.total;
        totals.by_priority.add(family.by_priority);
        totals.oldest_age_ms = totals.oldest_age_ms.max(family.oldest_age_ms);
        totals.newest_age_ms = [totals.newest_age_ms, family.newest_age_ms].into_iter().flatten().min();
        let held = family.held.unwrap_or(0);
        totals.held_depth = totals.held_depth.map(|sum| sum + held);
        totals.free_depth = totals.free_depth.map(|sum| sum + (family.total - held));
        if family.oldest_age_ms.unwrap_or(0) >= YOUNG_MS {
            startable += family.free.unwrap_or(0);
        }
    }
    rest(&mut families);
    let of_observed = |lane: &str, _: &str| is_observed(family_of(lane));
    let dispatches = read.hour.count("started", of_observed);
    let failures = read.hour.count("failed", of_observed);
    let wait = read.hour.summary(kind::WAIT_ACTIVE, |lane| is_observed(family_of(lane)));
    let state = if startable > 0 && dispatches == 0 {
        Downstream::Down
    } else if failures > 0 || wait.p95.is_some_and(|p95| p95 > SLOW_MS) {
        Downstream::Degraded
    } else {
        Downstream::Healthy
    };
    #[allow(clippy::cast_precision_loss)]
    let throughput = (dispatches as f64 / (hours * 60) as f64 * 100.0).round() / 100.0;
    let last = read.hour.state.dispatched.iter().filter(|(family, _)| is_observed(family)).map(|(_, at)| *at).max();
    let at = |ms: u64| iso(ms).unwrap_or_default();
    Snapshot {
        schema_version: VERSION,
        snapshot_id: uuid::Uuid::now_v7().to_string(),
        captured_at: at(read.now),
        window: Some(Span { hours, since: at(read.now.saturating_sub(hours * 3_600_000)), until: at(read.now) }),
        totals,
        drainer: DrainerView {
            state,
            recent_dispatches: dispatches,
            recent_failures: failures,
            throughput_per_minute: Some(throughput),
            fresh_failures: Some(families.iter().filter_map(|family| family.fresh_failures).sum()),
            consumers: Some(read.consumers),
            last_dispatch_age_ms: last.map(|last| read.now.saturating_sub(last)),
        },
        families,
        triage: triage(&read.hour, &is_observed),
        gateway,
        control: control(read, &policy.observe, &is_observed),
    }
}

fn view(family: &FamilyDepth, read: &Read) -> FamilyView {
    let name = family.family.as_str();
    let of = |lane: &str, _: &str| family_of(lane) == name;
    let total = family.waiting + family.leased + family.retrying;
    let is_held = read.pauses.of(name).is_some();
    let circuit = read.circuits.get(name);
    let is_free = !is_held && circuit.is_none_or(|circuit| !circuit.is_closed_gate(read.now));
    let failing = read.hour.state.failing.get(name);
    let since = read.now.saturating_sub(300_000);
    let failed_events = failing.map_or(0, |events| events.iter().filter(|(at, _)| *at >= since).count() as u64);
    let resumed = read.memory.get(name).and_then(|memory| memory.resumed.as_ref());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let p95 = read.hour.summary(kind::WAIT_ACTIVE, |lane| family_of(lane) == name).p95.map(|p95| p95.max(0.0) as u64);
    FamilyView {
        family: name.to_owned(),
        total,
        by_priority: family.by_priority,
        oldest_age_ms: family.oldest_age_ms,
        newest_age_ms: family.newest_age_ms,
        held: Some(if is_held { total } else { 0 }),
        free: Some(if is_free { family.waiting } else { 0 }),
        recent_dispatches: Some(read.hour.count("started", of)),
        recent_failures: Some(read.hour.count("failed", of)),
        fresh_failures: Some(match read.fresh.get(name) {
            Some(fresh) => *fresh,
            None => read.hour.count("downstream", of),
        }),
        last_5m: Some(Last5m {
            attempts: read.recent.count("started", of),
            failures: read.recent.count("downstream", of),
            failed_events,
        }),
        wait_p95_ms: p95,
        breaker: Some(circuit.map_or("closed", |circuit| circuit.state.as_str()).to_owned()),
        last_dispatch_age_ms: read.hour.state.dispatched.get(name).map(|at| read.now.saturating_sub(*at)),
        last_resume_age_ms: resumed.map(|(at, _)| read.now.saturating_sub(*at)),
        last_resume_by: resumed.map(|(_, by)| by.clone()),
    }
}

/// Sums what is beyond the bound.
fn rest(families: &mut Vec<FamilyView>) {
    if families.len() <= MOST_FAMILIES {
        return;
    }
    let mut other = FamilyView { family: OTHER.into(), ..FamilyView::default() };
    for family in families.drain(MOST_FAMILIES..) {
        other.total += family.total;
        other.by_priority.add(family.by_priority);
        other.oldest_age_ms = other.oldest_age_ms.max(family.oldest_age_ms);
    }
    families.push(other);
}

fn triage(hour: &Window, is_observed: &dyn Fn(&str) -> bool) -> TriageView {
    let of = |what: &'static str| {
        hour.count("triage", |family, detail| is_observed(family) && detail.split('|').next() == Some(what))
    };
    let mut by_reason: BTreeMap<String, u64> = BTreeMap::new();
    for (family, reason, count) in hour.counts("triage_fallback") {
        if is_observed(family) {
            let reason = if reason.is_empty() { "unknown" } else { reason };
            *by_reason.entry(reason.to_owned()).or_default() += count;
        }
    }
    let took = hour.summary(kind::TRIAGE, is_observed);
    TriageView {
        attempts: of("started"),
        completed: of("completed"),
        failed: of("failed"),
        fallbacks: of("fallback"),
        fallback_by_reason: by_reason,
        route_mismatches: hour.count("triage_route_mismatches", |family, _| is_observed(family)),
        latency_ms: Percentiles { p50: took.p50, p95: took.p95 },
    }
}

fn control(read: &Read, observe: &[String], is_observed: &dyn Fn(&str) -> bool) -> ControlView {
    let at = |ms: u64| iso(ms).unwrap_or_default();
    let pause = |family: &str, pause: &Pause| PauseView {
        family: family.to_owned(),
        reason: pause.reason.chars().take(MOST_REASON).collect(),
        source: if pause.source == PauseSource::Observer { "observer" } else { "manual" }.into(),
        mode: pause.mode.clone(),
        applied_at: at(pause.applied_at_ms),
        expires_at: at(pause.expires_at_ms),
        expires_in_ms: pause.expires_at_ms.saturating_sub(read.now),
        rev: Some(pause.rev),
    };
    // One of a beginning of names holds each family of that name.
    let observed = || {
        let held = observe.iter().filter_map(|family| Some((family.as_str(), read.pauses.of(family)?)));
        held.filter(|(_, (until, _))| *until > read.now)
    };
    let mut active_pauses: Vec<PauseView> =
        observed().filter_map(|(family, (_, record))| Some(pause(family, record.as_ref()?))).collect();
    active_pauses.sort_by(|a, b| (a.expires_in_ms, &a.family).cmp(&(b.expires_in_ms, &b.family)));
    let mut invalid: Vec<String> =
        observed().filter(|(_, (_, record))| record.is_none()).map(|(family, _)| family.to_owned()).collect();
    invalid.sort_unstable();
    let mut breakers: Vec<BreakerView> = read
        .circuits
        .iter()
        .filter(|(family, _)| is_observed(family))
        .map(|(family, circuit)| BreakerView {
            family: family.clone(),
            state: circuit.state.as_str().into(),
            open_until: circuit.open_until.map(at),
        })
        .collect();
    breakers.sort_by(|a, b| a.family.cmp(&b.family));
    ControlView { active_pauses, invalid, breakers, budget: Some(budget(&read.memory, read.now)), kill_switch: None }
}

/// What was spent of the budget by `now_ms`.
#[must_use]
pub fn budget(memory: &BTreeMap<String, Memory>, now_ms: u64) -> BudgetView {
    let mut budget = BudgetView::default();
    for (family, memory) in memory {
        let recent =
            memory.pauses.iter().filter(|(from, _)| *from > now_ms.saturating_sub(BUDGET_WINDOW_MS)).count() as u64;
        let since = now_ms.saturating_sub(HOLD_WINDOW_MS);
        let held = memory.pauses.iter().map(|(from, to)| (*to).min(now_ms).saturating_sub((*from).max(since))).sum();
        budget.used_hour += recent;
        budget.per_family.insert(family.clone(), recent);
        budget.held_ms.insert(family.clone(), held);
    }
    budget
}
