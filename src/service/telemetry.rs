//! The telemetry parts of a process: what follows the journal, its sinks, and the recorder for what the journal does
//! not tell.
//!
//! All of it has one thread, with the lowest priority where the system has such a thing per thread, and connections of
//! its own: a full disk, a dead endpoint or a slow Redis holds up no dispatch, and a burst of events is dispatched first
//! and told afterwards.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

use super::{Error, own};
use crate::config::{Config, OtlpProtocol, OwnTraces};
use crate::diagnose::chain;
use crate::drainer::vitals::Vitals;
use crate::ingest::spool::Spool;
use crate::registry::Registry;
use crate::registry::entry::Pattern;
use crate::server;
use crate::server::health::Readiness;
use crate::streams::bus::Bus;
use crate::streams::trace::Sampler;
use crate::telemetry::latency::Recorder;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::metrics::refresh::{self, Fed, Heartbeat};
use crate::telemetry::outbox::Outbox;
use crate::telemetry::projection::{self, Follower};
use crate::telemetry::sinks::forward::Forward;
use crate::telemetry::sinks::jsonl::{self, Jsonl};
use crate::telemetry::sinks::otlp::{self, Otlp, Transport};
use crate::telemetry::sinks::{self, Sink as _, Standings, traces};
use crate::telemetry::spans::{HttpSpan, Spans};

/// What the other parts of a process get of it.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// What Prometheus is told.
    pub metrics: Arc<Metrics>,
    /// Where to listen for it.
    pub address: Option<SocketAddr>,
    /// What the journal does not tell is recorded through it.
    pub recorder: Recorder,
    /// Takes spans of requests, where a collector gets them.
    pub spans: Option<Spans>,
}

/// Between two looks at the drainer.
const LOOKS: Duration = Duration::from_secs(1);
/// Between two looks at the checks of readiness.
const CHECKS: Duration = Duration::from_secs(10);

impl Telemetry {
    /// Serves `/metrics` on its own address. One process of a machine can; the others go without.
    pub(super) async fn serve(&self, stop: &CancellationToken, tasks: &mut JoinSet<Result<(), Error>>) {
        let Some(address) = self.address else { return };
        match server::bind(address).await {
            Ok(listener) => {
                let (router, stop) = (server::metrics::router(self.metrics.clone()), stop.clone());
                super::own(tasks, server::serve(listener, router, stop, Duration::from_secs(1)));
            }
            Err(error) => tracing::warn!(%address, error = %chain(&error), "metrics are not served"),
        }
    }

    /// Tells what the drainer of this process does.
    pub(super) fn watch_drainer(
        &self,
        vitals: Arc<Vitals>,
        stop: &CancellationToken,
        tasks: &mut JoinSet<Result<(), Error>>,
    ) {
        let (metrics, stop) = (self.metrics.clone(), stop.clone());
        own(tasks, async move {
            let mut ticks = tokio::time::interval(LOOKS);
            while next(&mut ticks, &stop).await {
                for took in vitals.take_turns() {
                    metrics.tick_duration.observe(Vec::new(), took.as_secs_f64(), 1);
                }
                let in_flight = vitals.in_flight();
                let kinds =
                    ["function", "inngest", "http", "command", "local"].into_iter().chain(in_flight.keys().copied());
                let rows: BTreeMap<&str, usize> =
                    kinds.map(|kind| (kind, in_flight.get(kind).copied().unwrap_or(0))).collect();
                #[allow(clippy::cast_precision_loss)]
                let rows = rows.into_iter().map(|(kind, n)| (vec![("handler_type", kind.to_owned())], n as f64));
                metrics.dispatch_inflight.replace(rows);
            }
        });
    }

    /// Tells what waits in the spool.
    pub(super) fn watch_spool(&self, spool: Spool, stop: &CancellationToken, tasks: &mut JoinSet<Result<(), Error>>) {
        let (metrics, stop) = (self.metrics.clone(), stop.clone());
        own(tasks, async move {
            let mut ticks = tokio::time::interval(LOOKS);
            while next(&mut ticks, &stop).await {
                let depth = spool.depth();
                #[allow(clippy::cast_precision_loss)]
                for (levels, value) in [
                    (&metrics.spool_entries, depth.deliveries as f64),
                    (&metrics.spool_bytes, depth.bytes as f64),
                    (&metrics.spool_oldest, depth.oldest_age().as_secs_f64()),
                ] {
                    levels.set(Vec::new(), value);
                }
            }
        });
    }

    /// Tells the event names of the registry, so that their counters begin at 0.
    pub(super) fn know_registry(&self, registry: &Registry) {
        let entries = registry.entries();
        let names = entries.iter().filter_map(|entry| match &entry.pattern {
            Pattern::Exact(family) => Some((family.as_str(), entry.handler.kind())),
            Pattern::Prefix(_) => None,
        });
        self.metrics.know_families(names);
    }

    /// Tells how the checks of readiness go.
    pub(super) fn watch(&self, readiness: Readiness, stop: &CancellationToken, tasks: &mut JoinSet<Result<(), Error>>) {
        let (metrics, stop) = (self.metrics.clone(), stop.clone());
        own(tasks, async move {
            let mut ticks = tokio::time::interval(CHECKS);
            while next(&mut ticks, &stop).await {
                let began = Instant::now();
                let (_, report) = readiness.report().await;
                metrics.health_duration.set(vec![("component", "all".to_owned())], began.elapsed().as_secs_f64());
                for (name, found) in report["checks"].as_object().into_iter().flatten() {
                    if let Some(found) = found.as_str() {
                        let labels = vec![("component", name.clone()), ("critical", "true".to_owned())];
                        metrics.health_ok.set(labels, f64::from(u8::from(found == "ok")));
                    }
                }
            }
        });
    }
}

/// Waits for the next look; false when `stop` came first.
async fn next(ticks: &mut Interval, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        _ = ticks.tick() => true,
    }
}

/// What this machine is called in telemetry.
pub fn system_id(config: &Config) -> String {
    config.telemetry.system_id.clone().unwrap_or_else(host)
}

fn host() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let name = name.to_lowercase();
    let short = [".local", ".localdomain"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    if short.is_empty() { "unknown".into() } else { short.to_owned() }
}

/// Starts them. They end with `stop`.
pub(super) fn start(
    config: &Config,
    bus: &Bus,
    stop: &CancellationToken,
    tasks: &mut JoinSet<Result<(), Error>>,
) -> Result<Telemetry, Error> {
    // Never used twice: a lease of a process that is gone must not be taken for ours.
    let owner = format!("{}-{}-{}", host(), std::process::id(), uuid::Uuid::now_v7().simple());
    let bus = bus.separate();
    let (recorder, flusher) = Recorder::new(bus.clone(), owner.as_str(), config.telemetry.minute_retention);
    let metrics = Metrics::new(config.telemetry.metrics_max_families);
    let exports_spans =
        config.telemetry.is_enabled && config.telemetry.traces_are_exported && config.telemetry.otlp_endpoint.is_some();
    let (spans, offered) = exports_spans.then(Spans::new).unzip();
    let fed = Fed {
        standings: Standings::default(),
        recorder: recorder.clone(),
        spans: spans.clone(),
        heartbeat: Heartbeat::default(),
        outbox: Outbox::of(config),
    };
    own(tasks, fed.heartbeat.clone().run(stop.clone()));
    let address = config.telemetry.metrics_addr.as_deref().and_then(|text| {
        let address = text.parse().ok();
        if address.is_none() {
            tracing::warn!(
                "SYSTEM_BUS_METRICS_ADDR is not an address such as 127.0.0.1:9464: metrics are not served there"
            );
        }
        address
    });
    install_sampler(config);
    let telemetry = Telemetry { metrics: metrics.clone(), address, recorder, spans };
    let (done, ended) = tokio::sync::oneshot::channel();
    let (config, stop) = (config.clone(), stop.clone());
    let body = move || {
        lower_priority();
        let result = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let tasks = LocalSet::new();
                tasks.block_on(&runtime, async move {
                    let flushing = tokio::task::spawn_local(flusher.run(stop.clone()));
                    run(&config, &bus, &owner, &metrics, &fed, offered, &stop).await;
                    let _ = flushing.await;
                });
                Ok(())
            }
            Err(error) => Err(Error::Task(format!("the telemetry thread did not start: {error}"))),
        };
        let _ = done.send(result);
    };
    std::thread::Builder::new()
        .name("telemetry".into())
        .spawn(body)
        .map_err(|error| Error::Task(format!("the telemetry thread did not start: {error}")))?;
    tasks.spawn(async move { ended.await.unwrap_or(Err(Error::Task("the telemetry thread ended".into()))) });
    Ok(telemetry)
}

/// Linux has a priority per thread; elsewhere it would be that of the whole process.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::setpriority_process(None, 19);
    }
}

/// Every part of the process decides alike which traces are exported.
fn install_sampler(config: &Config) {
    let wanted = config.telemetry.traces_sampler;
    let own = match wanted.own {
        OwnTraces::On => Sampler::On,
        OwnTraces::Off => Sampler::Off,
        OwnTraces::Ratio => Sampler::Ratio(config.telemetry.traces_sampler_arg),
    };
    own.install(wanted.follows_parent);
}

async fn run(
    config: &Config,
    bus: &Bus,
    owner: &str,
    metrics: &Arc<Metrics>,
    fed: &Fed,
    offered: Option<mpsc::Receiver<HttpSpan>>,
    stop: &CancellationToken,
) {
    let own = &config.telemetry;
    let standings = &fed.standings;
    let Some(instance) = settle(config, bus, stop).await else { return };
    if !own.is_enabled {
        tracing::warn!("OTEL_EVENTS_ENABLED is off: nothing reads the journal");
        stop.cancelled().await;
        return;
    }
    let system = system_id(config);
    let mut tasks = JoinSet::new();
    let counted = metrics.clone();
    let follower = Follower::new(bus.clone(), owner, own.minute_retention);
    tasks.spawn_local(follower.run(stop.clone(), move |taken| counted.take(taken)));
    tasks.spawn_local(refresh::run(metrics.clone(), bus.separate(), owner.to_owned(), fed.clone(), stop.clone()));
    if own.jsonl_is_enabled {
        let settings = jsonl::Settings {
            directory: own.jsonl_dir.clone().unwrap_or_else(|| config.system.data_dir.join("otel")),
            file_bytes: own.jsonl_max_bytes,
            total_bytes: own.jsonl_max_total_bytes,
            keep: own.jsonl_retention,
            instance,
        };
        let sink = Jsonl::new(settings);
        tasks.spawn_local(sinks::run(
            bus.clone(),
            owner.to_owned(),
            system.clone(),
            sink,
            standings.clone(),
            stop.clone(),
        ));
    }
    if let Some(url) = &own.forward_url {
        let token = own.forward_token.clone().or_else(|| own.emit_token.clone());
        match Forward::new(url, token, &system) {
            Ok(sink) => {
                let (bus, owner, standings) = (bus.separate(), owner.to_owned(), standings.clone());
                tasks.spawn_local(sinks::run(bus, owner, system.clone(), sink, standings, stop.clone()));
            }
            Err(error) => tracing::error!(%error, "no records go to OTEL_FORWARD_URL"),
        }
    }
    if let (Some(endpoint), Some(offered)) = (&own.otlp_endpoint, offered) {
        let settings = otlp_settings(config, endpoint);
        match traces::Exporter::new(&settings).and_then(|first| Ok((first, traces::Exporter::new(&settings)?))) {
            Ok((sink, of_requests)) => {
                let (bus, owner, standings) = (bus.separate(), owner.to_owned(), standings.clone());
                tasks.spawn_local(sinks::run(bus, owner, system.clone(), sink, standings, stop.clone()));
                tasks.spawn_local(traces::export_http(of_requests, offered, stop.clone()));
            }
            Err(error) => tracing::error!(%error, "no spans go to OTEL_EXPORTER_OTLP_ENDPOINT"),
        }
    }
    if let Some(endpoint) = &own.otlp_endpoint {
        match Otlp::new(&otlp_settings(config, endpoint)) {
            Ok(sink) => {
                let (bus, owner, standings) = (bus.separate(), owner.to_owned(), standings.clone());
                tasks.spawn_local(sinks::run(bus, owner, system, sink, standings, stop.clone()));
            }
            Err(error) => tracing::error!(%error, "no records go to OTEL_EXPORTER_OTLP_ENDPOINT"),
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Waits for Redis, and forgets the readers that this configuration does not run: retention must not wait for them.
async fn settle(config: &Config, bus: &Bus, stop: &CancellationToken) -> Option<String> {
    let own = &config.telemetry;
    let mut unused = Vec::new();
    if !own.is_enabled {
        unused.push(projection::NAME);
    }
    if !own.is_enabled || !own.jsonl_is_enabled {
        unused.push(Jsonl::NAME);
    }
    loop {
        let settled = async {
            for name in &unused {
                bus.forget_reader(name).await?;
            }
            bus.instance_id().await
        };
        match settled.await {
            Ok(instance) => return Some(instance),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "telemetry waits for Redis");
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = tokio::time::sleep(Duration::from_millis(500)) => {}
                }
            }
        }
    }
}

fn otlp_settings(config: &Config, endpoint: &str) -> otlp::Settings {
    let own = &config.telemetry;
    let headers = own.otlp_headers.as_ref().map(|headers| headers.expose_secret()).unwrap_or_default();
    let pair = |text: &str| {
        let (name, value) = text.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned().into()))
    };
    otlp::Settings {
        endpoint: endpoint.to_owned(),
        transport: match own.otlp_protocol {
            OtlpProtocol::Http => Transport::Http,
            OtlpProtocol::Grpc => Transport::Grpc,
        },
        headers: headers.split(',').filter_map(pair).collect(),
        timeout: own.otlp_timeout,
        service: own.service_name.clone(),
        host: host(),
        instance: instance().to_owned(),
    }
}

/// This process, for as long as it runs.
fn instance() -> &'static str {
    static INSTANCE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    INSTANCE.get_or_init(|| uuid::Uuid::now_v7().to_string())
}
