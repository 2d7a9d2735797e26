//! `webhooks`: signed GitHub deliveries at a steady rate, Redis killed in the middle and started again. Counts answers, and
//! then what is stored: each 2xx has to be there once, and everything else has to have been 503.
//!
//! Gateway, spool, log and server are in this process, put together as the service does it; Redis and the connections are
//! real. Redis syncs once a second, as our own does.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Error, rounded};
use crate::config::{Bodies, SpoolFor};
use crate::ingest::admission::{Admission, Route, Routes};
use crate::ingest::deliveries::{DeliveryLog, LogSettings};
use crate::ingest::event_api::{EventApi, EventApiSettings};
use crate::ingest::gateway::{Beside, Gateway, GatewaySettings};
use crate::ingest::kept::Kept;
use crate::ingest::providers::{self, Options, Provider, Sample, SecretTable, Senders};
use crate::ingest::signature::Secrets;
use crate::ingest::spool::Spool;
use crate::server::{self, Parts, health::Readiness};
use crate::streams::append::{Appender, Settings};
use crate::streams::bus::Bus;
use crate::streams::envelope::Envelope;
use crate::streams::family::Family;
use crate::streams::json::JsonObject;
use crate::streams::lane::Lane;
use crate::streams::managed::{ManagedOptions, ManagedRedis};
use crate::streams::priority::Priority;
use crate::streams::redis::Redis;

/// The event of every delivery.
const FAMILY: &str = "github/workflow_run.completed";
/// What their ids begin with.
const ID: &str = "github-workflow-run-completed-";
/// Requests under way at most: beyond it the rate is not kept.
const IN_FLIGHT: usize = 4096;
/// How long draining may take.
const LIMIT: Duration = Duration::from_secs(300);

/// What to send.
#[derive(Debug, Clone)]
pub struct WebhooksPlan {
    /// Deliveries a second.
    pub rate: u32,
    /// For how long.
    pub seconds: u32,
    /// How long Redis is away, from the middle on.
    pub outage_s: u32,
    /// Whether there is a spool.
    pub has_spool: bool,
    /// The `redis-server` to start; `None` searches.
    pub binary: Option<PathBuf>,
}

/// What became of all of it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Deliveries sent.
    pub sent: usize,
    /// How many a second were answered.
    pub per_s: f64,
    /// Stored before the answer.
    pub answered200: usize,
    /// On the disk before the answer.
    pub answered202: usize,
    /// Refused, to be sent again.
    pub answered503: usize,
    /// Anything else, broken connections included.
    pub answered_otherwise: usize,
    /// Events in Redis at the end.
    pub stored: usize,
    /// Answered 2xx, and not stored.
    pub lost: usize,
    /// Stored more than once.
    pub duplicated: usize,
    /// Answered 503, and stored all the same: sent again, they are known by their ids.
    pub stored_though_refused: usize,
    /// Median of an answer while Redis was there, µs.
    pub p50_us: u64,
    /// 99th percentile of it, µs.
    pub p99_us: u64,
    /// The slowest answer of all, ms.
    pub max_ms: u64,
    /// From the return of Redis until nothing was left on the disk, ms.
    pub drained_ms: u64,
}

impl Counts {
    /// Nothing lost, nothing twice, and no answer but those that are promised.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.sent > 0 && self.lost == 0 && self.duplicated == 0 && self.answered_otherwise == 0
    }
}

struct Anything;

impl Routes for Anything {
    fn route(&self, _: &Family, _: &str, _: &JsonObject) -> Route {
        Route { priority: Priority::P1, is_routed: true, ..Route::default() }
    }
}

/// One answer.
struct Answer {
    delivery: usize,
    /// 0 when there was none.
    status: u16,
    took: Duration,
    /// Sent while Redis was there.
    is_calm: bool,
}

/// Sends, kills, starts again, counts.
pub async fn run(plan: &WebhooksPlan, mut progress: impl FnMut(&str)) -> Result<Counts, Error> {
    let part = |error: &dyn std::fmt::Display| Error::Part(error.to_string());
    let dir = tempfile::tempdir().map_err(|error| part(&error))?;
    let mut options = ManagedOptions::new(dir.path().join("redis"));
    options.binary.clone_from(&plan.binary);
    let mut redis_server = ManagedRedis::start(options).await.map_err(|error| part(&error))?;
    let url = redis_server.url();
    let redis = Redis::open(&url, &url)?;
    let bus = Bus::new(redis.clone(), "bench");
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();

    let appender = Appender::start(&bus, Settings::default());
    let admission = Admission::new(Kept::new(appender, &bus), Arc::new(Anything));
    let spool = match plan.has_spool {
        true => Some(Spool::open(dir.path().join("spool"), 1 << 30).map_err(|error| part(&error))?),
        false => None,
    };
    if let Some(spool) = &spool {
        tokio::spawn(spool.clone().drain(admission.clone(), stop.clone()));
    }
    let secrets = Secrets::new(["bench".to_owned()], []);
    let senders = Senders::new(
        providers::builtin(&Options::default()),
        SecretTable::from([("GITHUB_WEBHOOK_SECRET".to_owned(), secrets)]),
    );
    let log = LogSettings { keep: Duration::from_secs(3600), bodies: Bodies::Redacted, count: 20_000, bytes: 64 << 20 };
    let (log, writing) = DeliveryLog::start(bus.separate(), log, stop.clone());
    tokio::spawn(writing);
    let beside = Beside { spool: spool.clone(), log: Some(log), ..Beside::default() };
    let settings = GatewaySettings { spool_for: SpoolFor::NoRetryProviders, ..GatewaySettings::default() };
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.map_err(|error| part(&error))?;
    let address = listener.local_addr().map_err(|error| part(&error))?;
    let router = server::router(Parts {
        tracing: server::trace::Tracing {
            trust: crate::config::TraceTrust::None,
            trusted_proxies: Vec::new(),
            spans: None,
        },
        gateway: Gateway::new(settings, senders.clone(), admission.clone(), beside),
        event_api: EventApi::new(EventApiSettings::default(), admission, Arc::new(bus.clone())),
        facade: None,
        readiness: Readiness::new(stop.clone()),
        metrics: None,
        internal: None,
        worker: None,
    });
    tokio::spawn(server::serve(listener, router, stop.clone(), Duration::from_secs(5)));

    progress("webhooks: sending");
    let away = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sending = tokio::spawn(send(plan.clone(), format!("http://{address}/webhooks/github"), senders, away.clone()));
    tokio::time::sleep(Duration::from_secs(u64::from(plan.seconds)) / 2).await;
    progress("webhooks: Redis is killed");
    away.store(true, std::sync::atomic::Ordering::SeqCst);
    let pid = i32::try_from(redis_server.pid()).map_err(|error| part(&error))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .map_err(|error| part(&error))?;
    redis_server.wait_exit().await;
    tokio::time::sleep(Duration::from_secs(u64::from(plan.outage_s))).await;
    redis_server.restart().await.map_err(|error| part(&error))?;
    let returned = Instant::now();
    progress("webhooks: Redis is back");
    let mut drained = None;
    if let Some(spool) = &spool {
        while spool.holds_any() {
            if returned.elapsed() > LIMIT {
                return Err(Error::TooSlow { step: "draining the spool", limit: LIMIT });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drained = Some(returned.elapsed());
    }
    away.store(false, std::sync::atomic::Ordering::SeqCst);
    let (answers, took) = sending.await.map_err(|error| part(&error))??;
    while spool.as_ref().is_some_and(Spool::holds_any) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stored = stored(&redis, &bus).await?;
    redis_server.stop().await.map_err(|error| part(&error))?;
    Ok(count(&answers, &stored, took, drained.unwrap_or_default()))
}

/// Sends at the plan's rate, whatever the answers do.
async fn send(
    plan: WebhooksPlan,
    url: String,
    senders: Senders,
    away: Arc<std::sync::atomic::AtomicBool>,
) -> Result<(Vec<Answer>, Duration), Error> {
    let total = plan.rate as usize * plan.seconds as usize;
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build();
    let client = client.map_err(|error| Error::Part(error.to_string()))?;
    let github = senders.find("github").ok_or_else(|| Error::Part("no such provider: github".to_owned()))?;
    let senders = Arc::new(senders);
    let free = Arc::new(Semaphore::new(IN_FLIGHT));
    let (began, mut requests, mut answers) = (Instant::now(), JoinSet::new(), Vec::with_capacity(total));
    for delivery in 0..total {
        let due = Duration::from_secs_f64(delivery as f64 / f64::from(plan.rate));
        tokio::time::sleep_until((began + due).into()).await;
        let Ok(permit) = free.clone().acquire_owned().await else { break };
        let (client, url, senders, github) = (client.clone(), url.clone(), senders.clone(), github.clone());
        let is_calm = !away.load(std::sync::atomic::Ordering::SeqCst);
        requests.spawn(async move {
            let _permit = permit;
            let began = Instant::now();
            let status = deliver(&client, &url, &senders, &*github, delivery).await;
            Answer { delivery, status, took: began.elapsed(), is_calm }
        });
        while let Some(done) = requests.try_join_next() {
            answers.extend(done.ok());
        }
    }
    while let Some(done) = requests.join_next().await {
        answers.extend(done.ok());
    }
    Ok((answers, began.elapsed()))
}

async fn deliver(client: &reqwest::Client, url: &str, senders: &Senders, github: &dyn Provider, n: usize) -> u16 {
    let nonce = format!("bench-{n:08}");
    let sample: Sample = github.sample(&nonce);
    let Ok(signed) = senders.sign(github, sample, 0, &nonce) else { return 0 };
    let sent = client.post(url).headers(signed.headers).body(signed.body).send().await;
    let Ok(response) = sent else { return 0 };
    let status = response.status().as_u16();
    // The connection is free again only once the answer is read.
    if response.bytes().await.is_ok() { status } else { 0 }
}

/// Deliveries that are stored, and how often.
async fn stored(redis: &Redis, bus: &Bus) -> Result<HashMap<usize, usize>, Error> {
    let family: Family = FAMILY.parse().map_err(|error| Error::Part(format!("{error}")))?;
    let key = bus.keys.lane(&Lane::new(family, Priority::P1));
    let (mut counts, mut from) = (HashMap::new(), "-".to_owned());
    loop {
        let mut command = redis::cmd("XRANGE");
        command.arg(&key).arg(&from).arg("+").arg("COUNT").arg(2000);
        let page: redis::streams::StreamRangeReply = redis.query_within(&command, Duration::from_secs(30)).await?;
        let Some(last) = page.ids.last() else { return Ok(counts) };
        from = format!("({}", last.id);
        for row in &page.ids {
            let bytes: Option<Vec<u8>> = row.get("e");
            let envelope = bytes.and_then(|bytes| Envelope::decode(&bytes).ok());
            let delivery = envelope.and_then(|envelope| {
                let rest = envelope.id.strip_prefix(ID)?.strip_prefix("bench-")?;
                rest.get(..8)?.parse::<usize>().ok()
            });
            *counts.entry(delivery.unwrap_or(usize::MAX)).or_default() += 1;
        }
    }
}

fn count(answers: &[Answer], stored: &HashMap<usize, usize>, took: Duration, drained: Duration) -> Counts {
    let mut counts = Counts { sent: answers.len(), ..Counts::default() };
    let mut calm = Histogram::<u64>::new(3).ok();
    for answer in answers {
        let is_stored = stored.contains_key(&answer.delivery);
        match answer.status {
            200 => counts.answered200 += 1,
            202 => counts.answered202 += 1,
            503 => counts.answered503 += 1,
            _ => counts.answered_otherwise += 1,
        }
        match answer.status {
            200..=299 => counts.lost += usize::from(!is_stored),
            _ => counts.stored_though_refused += usize::from(is_stored),
        }
        let us = u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX);
        counts.max_ms = counts.max_ms.max(us / 1000);
        if let Some(calm) = calm.as_mut().filter(|_| answer.is_calm) {
            // It grows with what it is given.
            let _ = calm.record(us);
        }
    }
    counts.stored = stored.values().sum();
    counts.duplicated = stored.values().filter(|times| **times > 1).count();
    counts.per_s = rounded(super::rate(answers.len(), took));
    counts.p50_us = calm.as_ref().map_or(0, |calm| calm.value_at_quantile(0.5));
    counts.p99_us = calm.as_ref().map_or(0, |calm| calm.value_at_quantile(0.99));
    counts.drained_ms = u64::try_from(drained.as_millis()).unwrap_or(u64::MAX);
    counts
}
