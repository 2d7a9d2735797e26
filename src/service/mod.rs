//! One process that plays its parts: HTTP server, drainer, or both with a Redis of its own (`up`).
//!
//! Every task started here has an owner that waits for it, and ends with the one cancellation token. A first SIGTERM
//! or SIGINT stops gracefully, a second one at once.

mod canary;
mod function_metrics;
mod note;
mod notify;
mod readiness;
mod redis;
mod reload;
pub mod routes;
pub mod senders;
mod telemetry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::ExposeSecret as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::canary::Canary;
use crate::config::{Config, DurabilityClass, Fairness, MemoryBudget, Pilot, Sources, SpoolFor};
use crate::diagnose::{Diagnose, Exit, chain};
use crate::drainer::scheduler::{self, Rules};
use crate::drainer::{self, Drainer, watchdog};
use crate::functions::engine::{self, Engine};
use crate::functions::inngest::Facade;
use crate::functions::inngest::signing::Keys;
use crate::functions::registry::Registry as Functions;
use crate::functions::store::{Keep, Limits};
use crate::ingest::admission::Admission;
use crate::ingest::deliveries::{DeliveryLog, LogSettings};
use crate::ingest::disabled::Disabled;
use crate::ingest::event_api::{EventApi, EventApiSettings};
use crate::ingest::gateway::{Beside, Echoes, Gateway, GatewaySettings};
use crate::ingest::kept::Kept;
use crate::ingest::limiter::Rate;
use crate::ingest::name_filter::NameFilter;
use crate::ingest::spool::Spool;
use crate::model::{self, Models};
use crate::net::guard::Guard;
use crate::observer::controller::Observer;
use crate::observer::flags::Policy;
use crate::observer::post::Post;
use crate::observer::report::Reporter;
use crate::outbound::ahead::Ahead;
use crate::outbound::figures::Figures;
use crate::outbound::store::Endpoints;
use crate::outbound::{self, Outbound};
use crate::registry::watch::RegistryHandle;
use crate::server;
use crate::server::internal::{self, Internal};
use crate::server::internal_inbox::Inbox;
use crate::server::internal_worker::Worker;
use crate::streams::append::{self, Appender};
use crate::streams::bus::Bus;
use crate::streams::family::Family;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::outbox::Outbox;
use crate::telemetry::posted::DebugBudget;
use crate::triage::flags::Flags;
use crate::triage::rules::RulesHandle;
use crate::triage::{self, Triage};
use routes::{AdmissionRoutes, RegistryPlans};
use senders::Leased;

pub use note::{ServiceNote, running_service, settings_of};
pub use telemetry::system_id;

/// Which parts a process plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// Webhooks, event API, health.
    pub http: bool,
    /// The dispatcher.
    pub drainer: bool,
    /// A Redis of our own where none is configured.
    pub managed_redis: bool,
}

impl Role {
    /// What the command that plays it is called.
    const fn name(self) -> &'static str {
        match self {
            Self { managed_redis: true, .. } => "up",
            Self { http: true, drainer: false, .. } => "serve",
            Self { http: false, drainer: true, .. } => "drainer",
            _ => "all",
        }
    }
}

/// Choices of one run that are no settings.
#[derive(Debug, Clone)]
pub struct Options {
    /// Drain although Redis may evict.
    pub unsafe_eviction: bool,
    /// Where the configuration came from, to read it again.
    pub sources: Sources,
}

/// Why a service did not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// The routing table can't be used.
    #[error(transparent)]
    Registry(#[from] crate::registry::Error),
    /// The sources of webhooks can't be used.
    #[error(transparent)]
    Sources(#[from] crate::ingest::sources::Error),
    /// Our own Redis did not start.
    #[error(transparent)]
    Managed(#[from] crate::streams::managed::Error),
    /// The Redis URL can't be used.
    #[error(transparent)]
    Redis(#[from] crate::streams::redis::Error),
    /// The HTTP server did not start.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The drainer did not start.
    #[error(transparent)]
    Drainer(#[from] drainer::Error),
    /// A task ended in a way that is a fault of ours.
    #[error("a part of the service ended unexpectedly: {0}")]
    Task(String),
}

impl Error {
    fn inner(&self) -> Option<&dyn Diagnose> {
        match self {
            Self::Config(error) => Some(error),
            Self::Registry(error) => Some(error),
            Self::Sources(error) => Some(error),
            Self::Managed(error) => Some(error),
            Self::Redis(error) => Some(error),
            Self::Server(error) => Some(error),
            Self::Drainer(error) => Some(error),
            Self::Task(_) => None,
        }
    }
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        self.inner().map_or("INTERNAL_ERROR", Diagnose::code)
    }

    fn exit(&self) -> Exit {
        self.inner().map_or(Exit::Internal, Diagnose::exit)
    }

    fn fix(&self) -> String {
        self.inner().map_or_else(|| "Read the log above; then start it again.".into(), Diagnose::fix)
    }
}

/// What a running service tells its operator once it is up.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Where HTTP is served.
    pub http: Option<SocketAddr>,
    /// URL without password.
    pub redis: String,
    /// Whether this process drains.
    pub drainer: bool,
    /// The routing table.
    pub registry_hash: String,
}

/// Runs until a signal. `started` is called once everything is up.
pub async fn run(config: &Config, role: Role, options: Options, started: impl FnOnce(&Started)) -> Result<(), Error> {
    let registry = RegistryHandle::load(config.system.registry.clone())?;
    let inngest = config.external_inngest()?;
    // The port is taken first: a second service on it should fail before it touches Redis.
    let listener = match role.http {
        true => Some(server::bind(SocketAddr::new(config.server.bind, config.server.port)).await?),
        false => None,
    };
    raise_open_files();
    let stop = CancellationToken::new();
    let at_once = CancellationToken::new();
    tokio::spawn(signals(stop.clone(), at_once.clone()));

    let (redis, managed) = redis::open(config, role.managed_redis).await?;
    let bus = Bus::new(redis, &config.system.key_prefix);
    let mut tasks: JoinSet<Result<(), Error>> = JoinSet::new();

    own(&mut tasks, registry.clone().watch(stop.clone()));
    let note_bus = bus.clone();
    let (note_dir, note_stop) = (config.system.data_dir.clone(), stop.clone());
    let (in_force, told_settings) = tokio::sync::watch::channel(settings_of(config));
    tasks.spawn(async move { note::keep(&note_bus, &note_dir, told_settings, note_stop).await.map_err(Error::from) });

    let telemetry = telemetry::start(config, &bus, &stop, &mut tasks)?;
    let outbox = Outbox::of(config);
    own(&mut tasks, outbox.clone().drain(bus.separate(), stop.clone()));
    telemetry.metrics.know_build(role.name());
    telemetry.know_registry(&registry.current());
    telemetry.serve(&stop, &mut tasks).await;
    let is_inngest_served = inngest.is_some();
    let functions = Functions::new(bus.separate());
    if let Err(error) = functions.refresh().await {
        tracing::warn!(error = %chain(&error), "the functions are not known yet");
    }
    own(&mut tasks, functions.clone().watch(stop.clone()));
    let endpoints = Endpoints::new(bus.separate());
    if let Err(error) = endpoints.refresh().await {
        tracing::warn!(error = %chain(&error), "the endpoints are not known yet");
    }
    own(&mut tasks, endpoints.clone().watch(stop.clone()));
    let appender = Appender::start(&bus, append_settings(config));
    let settings = engine::Settings { recorder: Some(telemetry.recorder.clone()), ..engine_settings(config)? };
    let engine =
        Engine::new(bus.clone(), functions.clone(), appender.clone(), settings, stop.clone()).map_err(Error::Task)?;
    if role.drainer {
        own(&mut tasks, function_metrics::run(telemetry.metrics.clone(), engine.clone(), stop.clone()));
    }
    let mut observed = None;
    if role.drainer {
        let reporter = Reporter::new(config, bus.clone(), appender.clone());
        let models = Models::new(model::Settings::from_config(config), stop.clone());
        let observer = Observer::new(bus.clone(), Policy::from_config(config), Some(reporter), Some(models))
            .with_probe(config.drainer.is_breaker_enabled);
        let post = Post::new(observer);
        own(&mut tasks, post.clone().run(stop.clone()));
        observed = Some(post);
    }
    let mut vitals = None;
    if role.drainer && config.drainer.is_enabled {
        let sending = outbound(config, &bus, endpoints.clone(), &telemetry.metrics)?;
        let (waiting_registry, waiting_functions) = (registry.clone(), functions.clone());
        let waits = move |family: &Family| {
            routes::waits_for_function(&waiting_registry, &waiting_functions, is_inngest_served, family)
        };
        own(&mut tasks, Ahead::new(bus.separate(), sending.clone(), waits).run(stop.clone()));
        own(&mut tasks, outbound::figures::run(sending.clone(), stop.clone()));
        if let Some(keep) = config.webhook.endpoint_dead_retain {
            own(&mut tasks, outbound::expiry::run(bus.separate(), keep, stop.clone()));
        }
        let plans = RegistryPlans::new(
            registry.clone(),
            routes::HandlerSettings::from_config(config, inngest.as_ref()),
            engine.clone(),
        )
        .with_outbound(sending);
        let plans = match &observed {
            Some(post) => plans.with_observer(post.clone()),
            None => plans,
        };
        own(&mut tasks, engine.clone().run(stop.clone()));
        let settings = drainer_settings(config, &options);
        let drainer = Drainer::new(bus.clone(), settings.clone(), Arc::new(plans));
        watchdog::start(
            bus.clone(),
            drainer.vitals(),
            settings.stall_after,
            settings.interval,
            Box::new(|_| std::process::exit(i32::from(Exit::Internal as u8))),
        )
        .map_err(drainer::Error::Thread)?;
        vitals = Some(drainer.vitals());
        telemetry.watch_drainer(drainer.vitals(), &stop, &mut tasks);
        let (stop, at_once) = (stop.clone(), at_once.clone());
        tasks.spawn(async move { drainer.run(stop, at_once).await.map_err(Error::from) });
    } else if role.drainer {
        tracing::warn!("QUEUE_DRAINER_ENABLED is off: nothing is dispatched");
    }

    let (supervised, stall_after) = (vitals.clone(), config.drainer.stall_after);
    let mut told = Started {
        http: None,
        redis: bus.redis.display().to_owned(),
        drainer: vitals.is_some(),
        registry_hash: registry.current().hash().to_owned(),
    };
    let (mut served, mut triaged) = (None, None);
    let leased = Leased::default();
    // Somebody asks for the configuration to be read again.
    let wish = Arc::new(tokio::sync::Notify::new());
    if let Some(listener) = listener {
        told.http = listener.local_addr().ok();
        let routes = AdmissionRoutes {
            registry: registry.clone(),
            functions: functions.clone(),
            endpoints: endpoints.clone(),
            is_inngest_served,
        };
        let (triage, asking) = self::triage(config, &registry, stop.clone());
        let (worker_bus, worker_stop) = (bus.separate(), stop.clone());
        own(&mut tasks, async move { asking.run(worker_bus, worker_stop).await });
        triaged = Some(triage.clone());
        let every = config.server.canary_interval;
        let canary = (vitals.is_some() && !every.is_zero()).then(|| Canary::new(every));
        if let Some(canary) = canary.clone() {
            own(&mut tasks, canary.run(bus.clone(), appender.clone(), stop.clone()));
        }
        let admission = Admission::new(Kept::new(appender, &bus), Arc::new(routes)).with_triage(triage);
        let for_webhooks = admission.clone().triaged_within(WEBHOOK_TRIAGE_LIMIT);
        let senders = senders::senders(config, &leased)?;
        let spool = spool(config);
        if let Some(spool) = &spool {
            own(&mut tasks, spool.clone().drain(for_webhooks.clone(), stop.clone()));
        }
        let (log, writing) = DeliveryLog::start(bus.separate(), log_settings(config), stop.clone());
        own(&mut tasks, writing);
        let disabled = Disabled::default();
        if let Err(error) = disabled.refresh(&bus).await {
            tracing::warn!(error = %chain(&error), "the disabled providers are not known yet");
        }
        let (watched, watched_bus, watched_stop) = (disabled.clone(), bus.separate(), stop.clone());
        own(&mut tasks, async move { watched.watch(watched_bus, watched_stop).await });
        if let Some(spool) = &spool {
            telemetry.watch_spool(spool.clone(), &stop, &mut tasks);
        }
        let beside = Beside {
            echoes: Some(Arc::new(BusEchoes(bus.clone()))),
            spool: spool.clone(),
            log: Some(log),
            disabled: Some(disabled),
        };
        telemetry.metrics.know_providers(senders.loaded());
        let gateway = Gateway::new(gateway_settings(config), senders, for_webhooks, beside);
        served = Some(gateway.clone());
        let is_host = is_host(config);
        if is_host {
            own(&mut tasks, senders::keep(config.clone(), leased.clone(), stop.clone()));
        } else {
            tracing::info!("WORKER_ROLE is cluster: secrets come from the environment and from files alone");
        }
        let worker = note::WorkerStarted { port: config.server.port, is_host, functions: functions.clone() };
        let (worker_bus, worker_stop) = (bus.separate(), stop.clone());
        own(&mut tasks, async move { worker.tell(&worker_bus, worker_stop).await });
        if config.telemetry.emit_token.is_none() && !config.server.bind.is_loopback() {
            tracing::warn!(
                bind = %config.server.bind,
                "OTEL_EMIT_TOKEN is not set: off loopback, /internal and /observability answer 401 to everybody"
            );
        }
        let looked_at = readiness::Parts {
            bus: bus.clone(),
            unsafe_eviction: options.unsafe_eviction,
            vitals,
            canary,
            functions: functions.clone(),
            spool,
            gateway: gateway.clone(),
            leased: leased.clone(),
        };
        let readiness = readiness::readiness(looked_at, config, stop.clone());
        let trusted = config.webhook.trusted_proxies.clone();
        let internal = Internal::new(internal::Parts {
            token: config.telemetry.emit_token.clone(),
            is_loopback: config.server.bind.is_loopback(),
            trusted_proxies: trusted.clone(),
            registry: registry.clone(),
            admission: admission.clone(),
            takes_events: config.telemetry.is_enabled,
            debug_budget: DebugBudget::default(),
            outbox,
            bus: bus.clone(),
            gateway: gateway.clone(),
            log_keep: log_settings(config).keep,
            reload: wish.clone(),
            inbox: Inbox::below(&config.server.claw_dir),
            is_host,
            stop: stop.clone(),
        });
        let parts = server::Parts {
            internal: Some(internal),
            worker: Some(Worker::new(is_host, trusted, functions.clone(), registry.clone())),
            gateway,
            event_api: EventApi::new(event_api_settings(config), admission, Arc::new(bus.clone())),
            facade: Some(Facade::new(engine.clone(), config.webhook.trusted_proxies.clone())),
            readiness: readiness.clone(),
            metrics: Some(telemetry.metrics.clone()),
            tracing: server::trace::Tracing {
                trust: config.telemetry.trust_traceparent,
                trusted_proxies: config.webhook.trusted_proxies.clone(),
                spans: telemetry.spans.clone(),
            },
        };
        telemetry.watch(readiness, &stop, &mut tasks);
        let router = server::router(parts);
        for listener in [Some(listener), sdk_port(config).await].into_iter().flatten() {
            own(&mut tasks, server::serve(listener, router.clone(), stop.clone(), Duration::from_secs(5)));
        }
    }
    let reload = reload::Reload {
        config: config.clone(),
        sources: options.sources.clone(),
        registry: registry.clone(),
        gateway: served,
        leased,
        metrics: telemetry.metrics.clone(),
        triage: triaged,
        observer: observed,
        settings: in_force,
        wish,
        bus: bus.clone(),
    };
    let reload_stop = stop.clone();
    own(&mut tasks, async move { reload.run(reload_stop).await });
    let notify_stop = stop.clone();
    own(&mut tasks, async move { notify::keep(supervised, stall_after, notify_stop).await });
    started(&told);
    let Some(managed) = managed else { return supervise(tasks, &stop).await };
    // It outlives the others: their last completions still need it.
    let ended = CancellationToken::new();
    let keeper = tokio::spawn(redis::keep(managed, ended.clone()));
    let result = supervise(tasks, &stop).await;
    ended.cancel();
    let _ = keeper.await;
    result
}

/// Takes as many open files as the system allows: the usual limit of 256 or 1,024 is less than a burst of webhooks has
/// connections, and what can't be accepted hangs.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const WANTED: u64 = 65_536;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(WANTED);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Waits for every task. The first failure stops the others and is the result.
async fn supervise(mut tasks: JoinSet<Result<(), Error>>, stop: &CancellationToken) -> Result<(), Error> {
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(Error::Task(error.to_string())));
        if let Err(error) = ended {
            tracing::error!(error = %chain(&error), "stopping");
            stop.cancel();
            result = result.and(Err(error));
        }
    }
    result
}

/// The first signal stops gracefully, the second at once.
async fn signals(stop: CancellationToken, at_once: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    for token in [stop, at_once] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    }
}

/// The port where SDK apps look for a dev server, while nobody else has it.
async fn sdk_port(config: &Config) -> Option<tokio::net::TcpListener> {
    let port = config.functions.port;
    if port == 0 || port == config.server.port {
        return None;
    }
    match server::bind(SocketAddr::new(config.server.bind, port)).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(port, error = %chain(&error), "SDK apps must be told where this server is: INNGEST_PORT is taken");
            None
        }
    }
}

/// The telemetry of a process, for a benchmark that measures beside it.
pub fn start_telemetry(
    config: &Config,
    bus: &Bus,
    stop: &CancellationToken,
    tasks: &mut JoinSet<Result<(), Error>>,
) -> Result<(), Error> {
    telemetry::start(config, bus, stop, tasks).map(drop)
}

/// A webhook's sender gives up after 5 s at the earliest; its append has a deadline of its own behind this.
const WEBHOOK_TRIAGE_LIMIT: Duration = Duration::from_millis(1_500);

/// Triage of this process, and the worker that has to run for it. `stop` ends every request to a model.
#[must_use]
pub fn triage(config: &Config, registry: &RegistryHandle, stop: CancellationToken) -> (Triage, triage::Worker) {
    let models = Models::new(model::Settings::from_config(config), stop);
    let rules = RulesHandle::load(config.triage.rules.clone());
    Triage::new(Flags::from_config(config), registry.clone(), rules, models)
}

/// What sends events to endpoints.
fn outbound(config: &Config, bus: &Bus, endpoints: Endpoints, metrics: &Arc<Metrics>) -> Result<Outbound, Error> {
    let limits = append_settings(config);
    // A delivery is its event's data and a little around it.
    let limits = append::Settings { max_event_bytes: limits.max_event_bytes + 4096, ..limits };
    let appender = Appender::start(bus, limits);
    let (settings, figures) = (outbound::Settings::from_config(config), Figures::new(metrics.clone()));
    Outbound::new(bus.separate(), endpoints, appender, settings, figures).map_err(Error::Task)
}

/// What commands that emit use.
pub async fn admission(config: &Config, bus: &Bus, registry: &RegistryHandle, is_inngest_served: bool) -> Admission {
    let appender = Appender::start(bus, append_settings(config));
    let functions = Functions::new(bus.clone());
    // Only the mark `unrouted` depends on it.
    let _ = functions.refresh().await;
    let endpoints = Endpoints::new(bus.clone());
    let _ = endpoints.refresh().await;
    let routes = AdmissionRoutes { registry: registry.clone(), functions, endpoints, is_inngest_served };
    Admission::new(Arc::new(appender), Arc::new(routes))
}

/// Limits and keys of the engine.
pub fn engine_settings(config: &Config) -> Result<engine::Settings, crate::config::Error> {
    let own = &config.functions;
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let alias =
        |text: &String| text.split_once('=').map(|(name, host)| (name.trim().to_owned(), host.trim().to_owned()));
    Ok(engine::Settings {
        keys: Keys::new(config.inngest.signing_key.clone(), config.inngest.signing_key_fallback.clone())?,
        call_timeout: own.call_timeout,
        retry_interval: own.retry_interval,
        limits: Limits { steps: own.max_steps, state_bytes: own.max_state_bytes },
        keep: Keep { done_ms: ms(own.retain), failed_ms: ms(own.retain_failed) },
        cron_missed: own.cron_missed,
        sync_interval: own.sync_interval,
        app_urls: own.app_urls.clone(),
        host_aliases: own.host_aliases.iter().filter_map(alias).collect(),
        guard: Guard::new(&config.webhook.allowed_subnets).with_http(),
        recorder: None,
        clock: None,
    })
}

/// Limits and durability of appends.
#[must_use]
pub fn append_settings(config: &Config) -> append::Settings {
    append::Settings {
        max_event_bytes: config.queue.max_event_bytes,
        max_families: config.queue.max_families,
        seen_window: config.queue.seen_ttl,
        memory_budget: match config.queue.memory_budget {
            MemoryBudget::Off => append::MemoryBudget::Off,
            MemoryBudget::Bytes(bytes) => append::MemoryBudget::Bytes(bytes),
            MemoryBudget::Percent(percent) => append::MemoryBudget::Percent(percent),
        },
        durability: match config.queue.durability {
            DurabilityClass::Memory => append::Durability::Memory,
            DurabilityClass::Disk => append::Durability::Disk,
            DurabilityClass::Replica => append::Durability::Replica,
        },
        deadline: Duration::from_secs(2),
    }
}

fn drainer_settings(config: &Config, options: &Options) -> drainer::Settings {
    let own = &config.drainer;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let low_share = (own.low_share * 100.0).clamp(0.0, 50.0) as u8;
    drainer::Settings {
        concurrency: own.concurrency,
        calls: config.functions.calls,
        interval: own.interval,
        lease: own.lease,
        stall_after: own.stall_after,
        stop_deadline: own.stop_deadline,
        rules: Rules {
            aging: own.aging_promotion,
            fairness: match own.fairness {
                Fairness::Drr => scheduler::Fairness::Drr,
                Fairness::Off => scheduler::Fairness::Off,
            },
            low_share,
            first_window: own.prefetch,
            prefetch: drainer::PREFETCH_IN_ALL,
            prefetch_bytes: own.prefetch_bytes,
        },
        retention: drainer::Retention {
            done: config.queue.retain,
            count: config.queue.retain_count,
            bytes: config.queue.retain_bytes,
            journal: config.queue.journal_retain,
            journal_force_bytes: config.telemetry.trim_force_bytes,
        },
        unsafe_eviction: options.unsafe_eviction,
    }
}

fn gateway_settings(config: &Config) -> GatewaySettings {
    let webhook = &config.webhook;
    let pilots = [Pilot::Github].into_iter().filter(|pilot| config.pilots.is_on(*pilot));
    let id = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let rates = config.variables.between("WEBHOOK_RATE_LIMIT_", "");
    let bodies = config.variables.between("", "_WEBHOOK_MAX_BODY_BYTES");
    let filters = config.variables.between("WEBHOOK_FILTER_", "");
    GatewaySettings {
        max_body_bytes: webhook.max_body_bytes,
        max_body_bytes_of: bodies
            .filter_map(|(name, text)| Some((id(name), MAX_BODY_BYTES.min(given(name, text, parse_size(text))?))))
            .collect(),
        rate_limits: rates.filter_map(|(name, text)| Some((id(name), given(name, text, Rate::parse(text))?))).collect(),
        filters: filters
            .filter_map(|(name, text)| Some((id(name), given(name, text, NameFilter::parse(text))?)))
            .collect(),
        rejects_expired: webhook.reject_expired,
        hash_dedup_window: webhook.hash_dedup_ttl,
        tolerance: webhook.timestamp_tolerance,
        spool_for: webhook.spool,
        max_event_bytes: config.queue.max_event_bytes,
        append_timeout: webhook.append_timeout,
        dedup_window: webhook.dedup_ttl,
        auth_failure_limit: webhook.auth_failure_limit,
        auth_failure_window: webhook.auth_failure_window,
        trusted_proxies: config.webhook.trusted_proxies.clone(),
        pilots: pilots.map(|pilot| pilot.to_string()).collect(),
        ..GatewaySettings::default()
    }
}

/// The largest body that a provider can be allowed.
const MAX_BODY_BYTES: usize = 26_214_400;

fn parse_size(text: &str) -> Option<usize> {
    crate::config::units::parse_bytes(text).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0)
}

/// A limit of one provider; one that can't be read is none, and is told.
fn given<T>(name: &str, text: &str, parsed: Option<T>) -> Option<T> {
    if parsed.is_none() {
        tracing::warn!(
            provider = name,
            value = text,
            "a limit of this provider is not accepted; it has none of its own"
        );
    }
    parsed
}

fn event_api_settings(config: &Config) -> EventApiSettings {
    EventApiSettings {
        keys: event_keys(config),
        is_keyed: config.inngest.signing_key.is_some(),
        max_event_bytes: config.queue.max_event_bytes,
        append_timeout: config.webhook.append_timeout,
        trusted_proxies: config.webhook.trusted_proxies.clone(),
        ..EventApiSettings::default()
    }
}

/// Limits of the log of deliveries.
fn log_settings(config: &Config) -> LogSettings {
    let webhook = &config.webhook;
    LogSettings {
        keep: Duration::from_secs(webhook.log_retention_hours * 3600),
        bodies: webhook.log_bodies,
        count: webhook.log_max_entries,
        bytes: webhook.log_max_bytes,
    }
}

/// Whether this process is where agents run.
fn is_host(config: &Config) -> bool {
    let role = config.server.role.trim().to_ascii_lowercase();
    if !matches!(role.as_str(), "host" | "cluster" | "") {
        tracing::warn!(role, "WORKER_ROLE is host or cluster; it counts as host");
    }
    role != "cluster"
}

/// INNGEST_EVENT_KEY is a list.
fn event_keys(config: &Config) -> Vec<secrecy::SecretString> {
    let Some(keys) = &config.inngest.event_key else { return Vec::new() };
    let keys = keys.expose_secret().split(',').map(str::trim).filter(|key| !key.is_empty());
    keys.map(secrecy::SecretString::from).collect()
}

/// The spool of webhooks, unless it is off or can't be used: then an outage of Redis is answered 503.
fn spool(config: &Config) -> Option<Spool> {
    // What an earlier setting has left there is drained all the same.
    if config.webhook.spool == SpoolFor::Off && !Spool::is_used(&config.webhook.spool_dir) {
        return None;
    }
    match Spool::open(config.webhook.spool_dir.clone(), config.webhook.spool_max_bytes) {
        Ok(spool) => Some(spool),
        Err(error) => {
            tracing::warn!(action = "webhook.spool.unusable", error = %chain(&error), "webhooks are not kept while Redis is away");
            None
        }
    }
}

/// What the system did itself, from the Redis in which it says so.
struct BusEchoes(Bus);

impl Echoes for BusEchoes {
    fn is_ours<'a>(&'a self, task: &'a str) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move { self.0.is_closed_by_us(task).await.map_err(|error| chain(&error)) })
    }
}

/// Makes a task of a part that ends without a result.
fn own(tasks: &mut JoinSet<Result<(), Error>>, part: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        part.await;
        Ok(())
    });
}
