//! `functions`: runs of a function with three steps on a Node app with the real SDK, beside what that app could answer at
//! most: a plain echo of its Node server, and the SDK alone, called for the first step again and again.
//!
//! Everything but Node and Redis is in this process: drainer, engine and the server that the SDK reports to. Overhead is
//! what passes between an answer of the app and the next request to it; where the SDK reports steps while its call goes
//! on, it is how long such a report takes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::{Error, Scenario, bus, flush, rate, rounded, whole};
use crate::config::Config;
use crate::drainer::Drainer;
use crate::functions::engine::Engine;
use crate::functions::inngest::Facade;
use crate::functions::registry::Registry;
use crate::functions::store::Status;
use crate::registry::watch::RegistryHandle;
use crate::server;
use crate::service::routes::{HandlerSettings, RegistryPlans};
use crate::streams::append::Appender;
use crate::streams::json::JsonObject;
use crate::streams::redis::Redis;

const APP: &str = include_str!("functions_app.mjs");
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Steps of the function.
const STEPS: usize = 3;

/// What to measure with.
#[derive(Debug, Clone)]
pub struct FunctionsPlan {
    /// Directory whose `node_modules` has the SDK.
    pub sdk_dir: PathBuf,
    /// Runs to measure.
    pub runs: usize,
    /// Calls in flight.
    pub in_flight: usize,
    /// Runs of another function that wait behind a concurrency key of one slot while it is measured once more.
    pub waiting: usize,
    /// Settings of engine and drainer.
    pub config: Box<Config>,
}

/// One scenario per SDK version that is installed.
pub async fn run(redis: &Redis, plan: &FunctionsPlan) -> Result<Vec<Scenario>, Error> {
    let mut scenarios = Vec::new();
    for (major, names) in
        [("4", ["functions_js4", "functions_js4_waiting"]), ("3", ["functions_js3", "functions_js3_waiting"])]
    {
        let installed = [format!("inngest{major}"), "inngest".to_owned()]
            .into_iter()
            .find(|package| is_major(&plan.sdk_dir, package, major));
        if let Some(package) = installed {
            flush(redis).await?;
            scenarios.extend(measure(redis, plan, &package, major, names).await?);
        }
    }
    if scenarios.is_empty() {
        return Err(Error::NoSdk(plan.sdk_dir.clone()));
    }
    Ok(scenarios)
}

fn is_major(dir: &Path, package: &str, major: &str) -> bool {
    let manifest = dir.join("node_modules").join(package).join("package.json");
    let Ok(text) = std::fs::read_to_string(manifest) else { return false };
    let version = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|json| json["version"].as_str().map(str::to_owned));
    version.is_some_and(|version| version.starts_with(&format!("{major}.")))
}

async fn measure(
    redis: &Redis,
    plan: &FunctionsPlan,
    package: &str,
    major: &str,
    names: [&'static str; 2],
) -> Result<Vec<Scenario>, Error> {
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.map_err(|error| Error::Part(error.to_string()))?;
    let origin = format!("http://{}", listener.local_addr().map_err(|error| Error::Part(error.to_string()))?);
    let engine = start(redis, plan, listener, &stop)?;
    let (_app, url) = app(plan, package, major, &origin).await?;

    let echo = answered(&format!("{url}/echo"), plan.in_flight, plan.runs).await?;
    let sdk_url = format!("{url}/api/inngest?fnId=bench-three-steps&stepId=step");
    answered(&sdk_url, plan.in_flight, plan.in_flight * 5).await?;
    let sdk = answered(&sdk_url, plan.in_flight, plan.runs).await?;
    let asked = engine.ask(&format!("{url}/api/inngest"), None).await;
    if let Some(problem) = asked.problem {
        return Err(Error::Part(format!("the app did not register: {problem}")));
    }
    // Node compiles what is hot, and connections open, before anything is measured.
    runs(redis, &engine, plan.in_flight * 2).await?;
    let (per_s, p50, p99) = measured_runs(redis, &engine, plan.runs).await?;
    // Without checkpoints each step is a call, and so is the end.
    #[allow(clippy::cast_precision_loss)]
    let at_most = sdk / (STEPS + 1) as f64;
    let alone = Scenario {
        name: names[0],
        per_s: Some(whole(per_s)),
        raw_per_s: Some(whole(at_most)),
        ratio: Some(rounded(per_s / at_most)),
        echo_per_s: Some(whole(echo)),
        p50_us: Some(p50),
        p99_us: Some(p99),
        target: "overhead p50 ≤ 1 ms, ≥ 450 runs/s",
        reached: p50 <= 1_000 && per_s >= 450.0,
        ..Scenario::default()
    };
    if plan.waiting == 0 {
        return Ok(vec![alone]);
    }
    wait_behind_one_slot(redis, &engine, plan.waiting).await?;
    runs(redis, &engine, plan.in_flight * 2).await?;
    let (beside, p50, p99) = measured_runs(redis, &engine, plan.runs).await?;
    stop.cancel();
    let waiting = Scenario {
        name: names[1],
        per_s: Some(whole(beside)),
        raw_per_s: Some(whole(per_s)),
        ratio: Some(rounded(beside / per_s)),
        p50_us: Some(p50),
        p99_us: Some(p99),
        target: "≥ 0.95 of what it is alone",
        reached: beside >= 0.95 * per_s,
        ..Scenario::default()
    };
    Ok(vec![alone, waiting])
}

/// Runs a second, and the overhead of their steps, µs: p50 and p99.
async fn measured_runs(redis: &Redis, engine: &Engine, count: usize) -> Result<(f64, u64, u64), Error> {
    engine.forget_overhead();
    let began = Instant::now();
    runs(redis, engine, count).await?;
    let per_s = rate(count, began.elapsed());
    let overhead = engine.overhead();
    Ok((per_s, overhead.p50_us, overhead.p99_us))
}

/// Runs of a function whose one slot is held for good: all but one of them wait.
async fn wait_behind_one_slot(redis: &Redis, engine: &Engine, count: usize) -> Result<(), Error> {
    emit(redis, "bench/held", count).await?;
    let began = Instant::now();
    loop {
        let waiting: u64 = engine.runs().groups().await?.iter().map(|group| group.waiting).sum();
        if waiting + 1 >= count as u64 {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            return Err(Error::TooSlow { step: "the runs that wait", limit: LIMIT });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn emit(redis: &Redis, name: &'static str, count: usize) -> Result<(), Error> {
    let appender = Appender::start(&bus(redis), crate::streams::append::Settings::default());
    let data = JsonObject::parse(r#"{"n":1}"#).unwrap_or_default();
    for chunk in 0..count.div_ceil(100) {
        let events = (0..100.min(count - chunk * 100))
            .map(|_| super::event(name, crate::streams::priority::Priority::P1, &data, None))
            .collect::<Vec<_>>();
        appender.append(events).await?;
    }
    Ok(())
}

fn start(
    redis: &Redis,
    plan: &FunctionsPlan,
    listener: tokio::net::TcpListener,
    stop: &CancellationToken,
) -> Result<Engine, Error> {
    let part = |error: &dyn std::fmt::Display| Error::Part(error.to_string());
    let bus = bus(redis);
    let functions = Registry::new(bus.separate());
    let appender = Appender::start(&bus, crate::service::append_settings(&plan.config));
    let settings = crate::service::engine_settings(&plan.config).map_err(|error| part(&error))?;
    let engine = Engine::new(bus.clone(), functions.clone(), appender, settings, stop.clone()).map_err(Error::Part)?;
    let table = RegistryHandle::load("/nonexistent/registry.toml".into()).map_err(|error| part(&error))?;
    let handlers = HandlerSettings::from_config(&plan.config, None);
    let plans = Arc::new(RegistryPlans::new(table, handlers, engine.clone()));
    let mut settings = super::drain::settings(plan.config.drainer.concurrency);
    settings.calls = plan.in_flight;
    let drainer = Drainer::new(bus, settings, plans);
    let (running, ends) = (stop.clone(), stop.clone());
    tokio::spawn(async move { drainer.run(running, ends).await });
    tokio::spawn(engine.clone().run(stop.clone()));
    tokio::spawn(functions.watch(stop.clone()));
    let router = Facade::new(engine.clone(), Vec::new()).router();
    let stop = stop.clone();
    tokio::spawn(async move { server::serve(listener, router, stop, Duration::from_secs(1)).await });
    Ok(engine)
}

async fn app(plan: &FunctionsPlan, package: &str, major: &str, origin: &str) -> Result<(Child, String), Error> {
    let mut child = Command::new("node")
        .args(["--input-type=module", "-e", APP])
        .current_dir(&plan.sdk_dir)
        .env("SDK", package)
        .env("MAJOR", major)
        .env("INNGEST_DEV", origin)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::Part(format!("node could not be started: {error}")))?;
    let output = child.stdout.take().ok_or_else(|| Error::Part("node has no output".into()))?;
    let mut lines = BufReader::new(output).lines();
    let listening = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(port) = line.strip_prefix("listening ") {
                return Some(format!("http://127.0.0.1:{}", port.trim()));
            }
        }
        None
    };
    match tokio::time::timeout(Duration::from_secs(30), listening).await {
        Ok(Some(url)) => Ok((child, url)),
        _ => Err(Error::Part("the Node app did not start".into())),
    }
}

/// The body of a first call, as the engine sends it, without what would make the SDK report back.
const FIRST_CALL: &str = r#"{"ctx":{"attempt":0,"disable_immediate_execution":false,"env":"","fn_id":"","generation_id":1,"job_id":"j","max_attempts":5,"qi_id":"","request_id":"01M88CXM48FHJAN00H6JSWMPRC","run_id":"01M88CXM48FHJAN00H6JSWMPRC","stack":{"current":0,"stack":[]},"step_id":"step","use_api":false},"defers":{},"event":{"data":{"n":1},"id":"e","name":"bench/run","ts":1,"user":{}},"events":[{"data":{"n":1},"id":"e","name":"bench/run","ts":1,"user":{}}],"steps":{},"use_api":false,"version":-1}"#;

/// Requests a second that are answered there, with so many in flight.
async fn answered(url: &str, in_flight: usize, requests: usize) -> Result<f64, Error> {
    let client = reqwest::Client::builder().no_proxy().build().map_err(|error| Error::Part(error.to_string()))?;
    let began = Instant::now();
    let answered = futures_util::stream::iter(0..requests)
        .map(|_| {
            let request = client.post(url).header("content-type", "application/json").body(FIRST_CALL);
            async move { request.send().await?.error_for_status()?.bytes().await.map(drop) }
        })
        .buffer_unordered(in_flight)
        .filter(|answer| std::future::ready(answer.is_ok()))
        .count()
        .await;
    if answered < requests {
        return Err(Error::Part(format!("the Node app answered {answered} of {requests} requests")));
    }
    Ok(rate(requests, began.elapsed()))
}

/// Starts `count` runs and waits until as many more have completed.
async fn runs(redis: &Redis, engine: &Engine, count: usize) -> Result<(), Error> {
    let before = completed(redis).await?;
    emit(redis, "bench/run", count).await?;
    let began = Instant::now();
    while completed(redis).await? < before + count {
        if began.elapsed() > LIMIT {
            let open = engine.runs().open(0, 10).await.unwrap_or_default();
            tracing::warn!(?open, "runs that did not end");
            return Err(Error::TooSlow { step: "the runs", limit: LIMIT });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn completed(redis: &Redis) -> Result<usize, Error> {
    let key = format!("{}:fn:runs:st:{}", bus(redis).keys.tag(), Status::Completed);
    Ok(redis.query(redis::cmd("ZCARD").arg(key)).await?)
}
