//! The parts of `joelclaw jobs status`: each looks at one thing and judges it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::Context;
use super::super::queue::control::view;
use super::super::queue::since::iso;
use crate::diagnose::chain;
use crate::functions::registry::Registry as Functions;
use crate::functions::store::{Filter, Runs, Status};
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::redis::Error;
use crate::telemetry::projection::{Window, window};

/// Open entries from which the queue is degraded.
const DEPTH: u64 = 25;
/// Age of the oldest from which it is.
const OLDEST_MS: u64 = 900_000;
/// A run that is queued for longer is a sign.
const QUEUED_MS: u64 = 60_000;
/// How long one HTTP probe may take.
const PROBE: Duration = Duration::from_millis(1_500);

/// How a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All is well.
    Healthy,
    /// It works, with something to look at.
    Degraded,
    /// It does not work.
    Down,
}

impl Health {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// What was found of one part.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its field in the result.
    pub name: &'static str,
    /// `None`: not configured.
    pub status: Option<Health>,
    /// What it adds to the verdict.
    pub counts: Option<Health>,
    /// One sentence.
    pub summary: String,
    /// Its words in the verdict.
    pub word: String,
    /// Why it is not healthy.
    pub reasons: Vec<String>,
    /// Everything else.
    pub detail: Value,
}

impl Part {
    fn new(name: &'static str, status: Health, summary: impl Into<String>, detail: Value) -> Self {
        let word = format!("{name} {}", status.as_str());
        Self {
            name,
            status: Some(status),
            counts: Some(status),
            summary: summary.into(),
            word,
            reasons: Vec::new(),
            detail,
        }
    }

    fn because(mut self, reasons: Vec<String>) -> Self {
        self.reasons = reasons;
        self
    }

    fn disabled(name: &'static str) -> Self {
        Self { status: None, counts: None, ..Self::new(name, Health::Healthy, "", json!({})) }
    }

    /// It did not answer in time.
    pub fn late(name: &'static str) -> Self {
        let late = Self::new(name, Health::Down, "No answer in time.", json!({ "error": "timeout" }));
        late.because(vec!["no answer in time".into()])
    }

    fn failed(name: &'static str, summary: &str, error: &Error) -> Self {
        let why = chain(error);
        Self::new(name, Health::Down, summary, json!({ "error": why })).because(vec![why])
    }

    /// Its part of the result.
    pub fn json(&self) -> Value {
        let Some(status) = self.status else { return json!({ "status": "disabled" }) };
        let mut json = json!({ "status": status, "summary": self.summary });
        if let (Some(all), Value::Object(detail)) = (json.as_object_mut(), &self.detail) {
            all.extend(detail.clone());
        }
        json
    }
}

fn plural(n: usize, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

/// What waits, apart from what is held on purpose.
pub async fn queue(bus: &Bus, context: &Context) -> Part {
    let url = context.config.redis.display.clone();
    let found = async { Ok::<_, Error>((bus.depth().await?, bus.pauses().await?)) }.await;
    let (depth, pauses) = match found {
        Ok(found) => found,
        Err(error) => {
            let mut part = Part::failed("queue", "Queue Redis is unavailable.", &error);
            part.detail = json!({
                "depth": 0, "heldDepth": 0, "byPriority": { "P0": 0, "P1": 0, "P2": 0, "P3": 0 },
                "oldestAgeMs": null, "activePauses": [], "redisUrl": url, "error": chain(&error),
            });
            return part;
        }
    };
    let open = |family: &crate::streams::depth::FamilyDepth| family.waiting + family.leased + family.retrying;
    let held: u64 = depth.by_family.iter().filter(|family| family.paused).map(open).sum();
    let oldest = depth.by_family.iter().filter(|family| !family.paused).filter_map(|family| family.oldest_age_ms).max();
    let free = depth.total.saturating_sub(held);
    let mut active: Vec<(u64, Value)> = pauses
        .active
        .values()
        .filter_map(|(until, record)| Some((*until, view(record.as_ref()?, depth.at_ms))))
        .collect();
    active.sort_by_key(|(until, view)| (*until, view["family"].as_str().unwrap_or_default().to_owned()));
    let count = pauses.active.len();
    let mut reasons = Vec::new();
    if free >= DEPTH {
        reasons.push(format!("{free} open entries that no pause holds (degraded from {DEPTH})"));
    }
    if let Some(oldest) = oldest.filter(|oldest| *oldest >= OLDEST_MS) {
        reasons.push(format!(
            "the oldest of them waits for {} min (degraded from {})",
            oldest / 60_000,
            OLDEST_MS / 60_000
        ));
    }
    let status = if reasons.is_empty() { Health::Healthy } else { Health::Degraded };
    let age = depth.oldest_age_ms.unwrap_or(0);
    let behind = plural(count, "pause");
    let summary = match (depth.total, held, count) {
        (0, _, 0) => "Queue idle.".to_owned(),
        (0, _, n) => format!("Queue idle with {n} active pause(s)."),
        (total, held, _) if held == total => {
            let entries = if total == 1 { "entry" } else { "entries" };
            format!(
                "Queue holding {total} queued {entries} behind {}; oldest age {age}ms.",
                plural(count, "active pause")
            )
        }
        (total, ..) => format!("Queue depth {total}; oldest age {age}ms."),
    };
    let word = match (depth.total, held, count, status) {
        (0, _, 0, _) => "queue idle".to_owned(),
        (0, ..) => format!("queue idle (depth 0, {behind})"),
        (total, held, ..) if held == total => format!("queue held (depth {total}, {behind})"),
        (total, _, _, status) => format!("queue {} (depth {total})", status.as_str()),
    };
    let detail = json!({
        "depth": depth.total,
        "heldDepth": held,
        "byPriority": depth.by_priority,
        "oldestAgeMs": depth.oldest_age_ms,
        "later": depth.later,
        "dead": depth.dead,
        "activePauses": active.into_iter().map(|(_, view)| view).collect::<Vec<_>>(),
        "redisUrl": url,
        "error": null,
    });
    Part { word, ..Part::new("queue", status, summary, detail) }.because(reasons)
}

/// Who dispatches, and whether that moves.
pub async fn drainer(bus: &Bus, context: &Context, hours: u64) -> Part {
    let found = async {
        let now = bus.now_ms().await?;
        let told = window(bus, EntryId { ms: now.saturating_sub(hours * 3_600_000), seq: 0 }).await?;
        Ok::<_, Error>((now, bus.sessions().await?, bus.depth().await?, told))
    };
    let (now, sessions, depth, told): (u64, _, _, Window) = match found.await {
        Ok(found) => found,
        Err(error) => return Part::failed("drainer", "Nothing is known of the drainers.", &error),
    };
    let own = &context.config.drainer;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let live: Vec<_> = sessions.iter().filter(|session| session.expires_ms > now).collect();
    let number =
        |details: &Option<Value>, key: &str| details.as_ref().and_then(|details| details[key].as_u64()).unwrap_or(0);
    let last_tick = live.iter().map(|session| session.ticked_ms()).max();
    let in_flight: u64 = live.iter().map(|session| number(&session.details, "inFlight")).sum();
    let unpaused: u64 = depth
        .by_family
        .iter()
        .filter(|family| !family.paused)
        .map(|family| family.waiting + family.leased + family.retrying)
        .sum();
    let stalls = told.count("stalled", |_, _| true);
    let dead = told.count("dead", |_, _| true);
    let mut reasons = Vec::new();
    let mut status = Health::Healthy;
    if live.is_empty() && unpaused > 0 {
        status = Health::Down;
        reasons.push(format!("no drainer is alive, and {unpaused} entries wait for one"));
    }
    let allowed = millis(own.interval) * 2 + 5_000;
    if let Some(age) = last_tick.map(|tick| now.saturating_sub(tick)).filter(|age| *age > allowed) {
        status = status.max(Health::Degraded);
        reasons.push(format!("its last tick was {age} ms ago (expected within {allowed})"));
    }
    if stalls > 0 {
        status = status.max(Health::Degraded);
        reasons.push(format!("{stalls} stall(s) in the last {hours} h"));
    }
    if dead > 0 {
        status = status.max(Health::Degraded);
        reasons.push(format!("{dead} event(s) became dead letters in the last {hours} h"));
    }
    let summary = match live.len() {
        0 => "No drainer is alive.".to_owned(),
        n => format!("{} alive; {in_flight} in flight.", plural(n, "drainer")),
    };
    let views: Vec<Value> = live
        .iter()
        .map(|session| {
            let field = |key: &str| session.details.as_ref().map_or(Value::Null, |details| details[key].clone());
            let started = field("startedAtMs").as_u64();
            json!({
                "session": session.id, "host": field("host"), "pid": field("pid"), "version": field("version"),
                "startedAt": started.map(iso), "inFlight": field("inFlight"), "free": field("free"),
            })
        })
        .collect();
    let detail = json!({
        "alive": live.len(),
        "sessions": views,
        "lastTickAt": last_tick.map(iso),
        "lastTickAgeMs": last_tick.map(|tick| now.saturating_sub(tick)),
        "inFlight": in_flight,
        "stalls": stalls,
        "lastStall": told.state.last.get("queue.drainer.stalled"),
        "deadLetters": dead,
    });
    Part::new("drainer", status, summary, detail).because(reasons)
}

/// The server, the apps and the latest runs.
pub async fn functions(bus: &Bus, context: &Context, hours: u64, count: usize) -> Part {
    let registry = Functions::new(bus.clone());
    let found = async {
        let now = bus.now_ms().await?;
        let filter =
            Filter { since_ms: Some(now.saturating_sub(hours * 3_600_000)), limit: count, ..Filter::default() };
        Ok::<_, Error>((now, Runs::new(bus.clone()).list(&filter).await?, registry.health().await?))
    };
    let (known, found) = tokio::join!(registry.load(), found);
    let (known, (now, page, health)) = match (known, found) {
        (Ok(known), Ok(found)) => (known, found),
        (Err(error), _) | (_, Err(error)) => {
            return Part::failed("functions", "Nothing is known of the functions.", &error);
        }
    };
    let mut checks = serde_json::Map::new();
    let mut reasons = Vec::new();
    let mut status = Health::Healthy;
    let served = known.functions.keys().filter(|slug| known.is_served(slug)).count();
    if known.apps.is_empty() {
        checks.insert("server".into(), json!({ "ok": true, "detail": "no app is registered" }));
    } else {
        let (ok, detail) = probe(&own_url(context)).await;
        checks.insert("server".into(), json!({ "ok": ok, "detail": detail }));
        if !ok {
            status = Health::Down;
            reasons.push(format!("the server does not answer: {detail}"));
        }
    }
    let mut apps = Vec::new();
    for (name, record) in &known.apps {
        let found = health.get(name);
        let is_ok = found.is_none_or(|found| found.failures == 0);
        let problem = found.and_then(|found| found.problem.clone());
        if !is_ok {
            status = Health::Down;
            reasons.push(format!("app {name}: {}", problem.as_deref().unwrap_or("it does not answer")));
        } else if found.is_some_and(|found| !found.agrees) {
            status = status.max(Health::Degraded);
            reasons.push(format!("app {name} serves something else than what is registered"));
        }
        let detail = problem.clone().unwrap_or_else(|| record.app.url.clone());
        checks.insert(format!("app {name}"), json!({ "ok": is_ok, "detail": detail }));
        apps.push(json!({
            "name": name, "url": record.app.url, "ok": is_ok, "problem": problem,
            "agrees": found.map(|found| found.agrees), "seenAt": found.and_then(|found| found.seen_ms).map(iso),
        }));
    }
    let mut by_status: BTreeMap<String, u64> = BTreeMap::new();
    for run in &page.runs {
        *by_status.entry(run.status.to_string().to_lowercase()).or_default() += 1;
    }
    let failed = page.runs.iter().filter(|run| run.status == Status::Failed).count();
    let waiting =
        page.runs.iter().filter(|run| run.status == Status::Queued && now.saturating_sub(run.queued_ms) > QUEUED_MS);
    let waiting = waiting.count();
    for (n, what) in [(failed, "failed"), (waiting, "queued for more than a minute")] {
        if n > 0 {
            status = status.max(Health::Degraded);
            reasons.push(format!("{} {what} in the last {hours} h", plural(n, "run")));
        }
    }
    let recent: Vec<Value> = page
        .runs
        .iter()
        .map(|run| {
            let name = known.function(&run.function).map_or(run.function.as_str(), |function| function.name.as_str());
            json!({
                "id": run.id, "functionName": name, "status": run.status.to_string(),
                "startedAt": run.started_ms.map(iso), "endedAt": run.ended_ms.map(iso),
            })
        })
        .collect();
    let told: Vec<String> = by_status.iter().map(|(status, n)| format!("{status}:{n}")).collect();
    let told = if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) };
    let word = if status == Health::Down { "not reachable" } else { "healthy" };
    let summary =
        format!("{} · server/apps {word} · {} recent runs{told}.", plural(served, "function"), page.runs.len());
    let detail = json!({
        "checks": checks,
        "apps": apps,
        "registered": served,
        "recentRuns": { "hours": hours, "count": page.runs.len(), "byStatus": by_status, "recent": recent },
    });
    Part::new("functions", status, summary, detail).because(reasons)
}

/// What the observer found last. It never changes the verdict: what it sees is judged by the other parts.
pub async fn observer(bus: &Bus) -> Part {
    let found = async {
        let now = bus.now_ms().await?;
        window(bus, EntryId { ms: now.saturating_sub(60_000), seq: 0 }).await
    };
    let told = match found.await {
        Ok(told) => told,
        Err(error) => {
            return Part { counts: None, ..Part::failed("observer", "Nothing is known of the observer.", &error) };
        }
    };
    let last = ["queue.observe.completed", "queue.observe.fallback"].into_iter();
    let last = last.filter_map(|action| told.state.last.get(action)).max_by_key(|recent| recent.at_ms);
    let field =
        |key: &str| last.and_then(|recent| recent.detail.as_ref()).map_or(Value::Null, |detail| detail[key].clone());
    let summary = match last {
        None => "The observer has not run.".to_owned(),
        Some(recent) => {
            format!("Looked at {}: {}.", iso(recent.at_ms), field("queuePressure").as_str().unwrap_or("no verdict"))
        }
    };
    let detail = json!({
        "mode": match field("mode") { Value::Null => json!("off"), mode => mode },
        "lastRunAt": last.map(|recent| iso(recent.at_ms)),
        "lastDecision": last.and_then(|recent| recent.detail.clone()),
    });
    Part { counts: None, ..Part::new("observer", Health::Healthy, summary, detail) }
}

/// Whether Redis can be relied on. It never changes the verdict by itself: without it the queue is down.
pub async fn redis(bus: &Bus) -> Part {
    Part { counts: None, ..look_at_redis(bus).await }
}

async fn look_at_redis(bus: &Bus) -> Part {
    let began = std::time::Instant::now();
    let facts = match bus.server_facts().await {
        Ok(facts) => facts,
        Err(error) => return Part::failed("redis", "Redis is unavailable.", &error),
    };
    let took = began.elapsed();
    let mut reasons = Vec::new();
    let mut status = Health::Healthy;
    if facts.eviction_policy != "noeviction" {
        status = Health::Degraded;
        reasons.push(format!("maxmemory-policy is `{}`: Redis may drop whole lanes", facts.eviction_policy));
    }
    if facts.max_memory > 0 && facts.used_memory > facts.max_memory / 100 * 85 {
        status = Health::Degraded;
        reasons.push(format!("{} of {} bytes are used", facts.used_memory, facts.max_memory));
    }
    let summary = format!("Redis {} answers in {} ms.", facts.version, took.as_millis());
    let detail = json!({
        "version": facts.version, "usedMemory": facts.used_memory, "maxMemory": facts.max_memory,
        "evictionPolicy": facts.eviction_policy, "aof": facts.aof_enabled, "appendfsync": facts.appendfsync,
        "url": bus.redis.display(),
    });
    Part::new("redis", status, summary, detail).because(reasons)
}

/// A Restate server beside this one.
pub async fn restate(context: &Context) -> Part {
    let Some(url) = &context.config.runtimes.restate_admin_url else { return Part::disabled("restate") };
    let (ok, response) = probe(&format!("{}/health", url.trim_end_matches('/'))).await;
    external("restate", ok, json!({ "adminUrl": url, "admin": { "healthy": ok, "response": response } }), &response)
}

/// A Dkron server beside this one.
pub async fn dkron(context: &Context) -> Part {
    let Some(url) = &context.config.runtimes.dkron_url else { return Part::disabled("dkron") };
    let url = url.trim_end_matches('/');
    let (ok, response) = probe(&format!("{url}/health")).await;
    let jobs = if ok { dkron_jobs(url).await } else { None };
    let detail = json!({
        "api": { "accessible": ok, "response": response, "accessMode": "direct", "baseUrl": url },
        "jobs": jobs,
    });
    external("dkron", ok, detail, &response)
}

async fn dkron_jobs(url: &str) -> Option<Value> {
    let text = client()?.get(format!("{url}/v1/jobs")).send().await.ok()?.text().await.ok()?;
    let jobs: Vec<Value> = serde_json::from_str(&text).ok()?;
    let restate = jobs.iter().filter(|job| job["metadata"]["runtime"] == "restate").count();
    Some(json!({ "total": jobs.len(), "restate": restate }))
}

/// An Inngest server beside this one.
pub async fn inngest(context: &Context) -> Part {
    let Some(url) = &context.config.inngest.url else { return Part::disabled("inngest") };
    let (ok, response) = probe(&format!("{}/health", url.trim_end_matches('/'))).await;
    external("inngest", ok, json!({ "url": url, "checks": { "server": { "ok": ok, "detail": response } } }), &response)
}

/// A runtime that is not ours degrades the whole, and no more.
fn external(name: &'static str, ok: bool, detail: Value, response: &str) -> Part {
    if ok {
        return Part::new(name, Health::Healthy, format!("{name} answers."), detail);
    }
    let down = Part::new(name, Health::Down, format!("{name} does not answer."), detail);
    Part { counts: Some(Health::Degraded), ..down }.because(vec![response.to_owned()])
}

fn client() -> Option<reqwest::Client> {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(PROBE).build().ok()
}

/// Whether an address answers well, and what it said.
async fn probe(url: &str) -> (bool, String) {
    let Some(client) = client() else { return (false, "no HTTP client".into()) };
    match client.get(url).send().await {
        Ok(response) => (response.status().is_success(), format!("HTTP {}", response.status().as_u16())),
        Err(error) => (false, chain(&error.without_url())),
    }
}

fn own_url(context: &Context) -> String {
    let server = &context.config.server;
    let address = match server.bind {
        bind if bind.is_unspecified() => std::net::IpAddr::from([127, 0, 0, 1]),
        bind => bind,
    };
    format!("http://{}/health", std::net::SocketAddr::new(address, server.port))
}
