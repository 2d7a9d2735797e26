//! The registry as the two sides see it: admission asks for priority and dedup, the drainer for handlers and limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::{Config, ExternalInngest, NamedSecrets, ObserverMode};
use crate::drainer::handlers::Handler;
use crate::drainer::handlers::both::Both;
use crate::drainer::handlers::command::{CommandHandler, CommandSpec};
use crate::drainer::handlers::http::{HttpHandler, HttpOptions};
use crate::drainer::handlers::inngest::{InngestHandler, InngestServer};
use crate::drainer::handlers::local::LocalFunctions;
use crate::drainer::plan::{FamilyPlan, Plans, RetryPolicy};
use crate::drainer::scheduler::Slots;
use crate::functions;
use crate::functions::engine::{Engine, EventHandler, WorkHandler};
use crate::functions::registry::INTERNAL;
use crate::functions::registry::flow::DEFAULT_LIMIT;
use crate::functions::store::WORK;
use crate::ingest::admission::{Route, Routes};
use crate::observer::post::{self, Post};
use crate::outbound::deliver::Deliver;
use crate::outbound::fan_out::FanOut;
use crate::outbound::store::Endpoints;
use crate::outbound::{self, Outbound};
use crate::registry::Registry;
use crate::registry::entry::{Backoff, Entry, HandlerSpec};
use crate::registry::watch::RegistryHandle;
use crate::streams::breaker::Thresholds;
use crate::streams::family::{CANARY, Family};
use crate::streams::json::JsonObject;

/// Longest delay between attempts unless an entry says otherwise (QUEUE_DRAIN_FAILURE_BACKOFF_MS doubles up to it).
const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// How long a work item may be under way: it ends with its run, and each of its calls has its own limit.
const WORK_TIMEOUT: Duration = Duration::from_secs(365 * 86_400);
/// Longest delay of a work item that Redis kept from going on.
const WORK_BACKOFF: Duration = Duration::from_secs(5);
/// What a delivery may take beyond its request.
const DELIVERY_MARGIN: Duration = Duration::from_secs(5);

/// Whether events of this name wait for a function: an entry says that one is to have them, and there is none.
#[must_use]
pub fn waits_for_function(
    registry: &RegistryHandle,
    functions: &functions::registry::Registry,
    is_inngest_served: bool,
    family: &Family,
) -> bool {
    match registry.current().lookup(family).map(|entry| &entry.handler) {
        Some(HandlerSpec::Inngest { target }) => !is_inngest_served && !functions.current().wants(target.as_str()),
        _ => false,
    }
}

/// What admission asks of the registries.
#[derive(Debug, Clone)]
pub struct AdmissionRoutes {
    /// The table in force.
    pub registry: RegistryHandle,
    /// Functions that events trigger.
    pub functions: functions::registry::Registry,
    /// Endpoints that events are sent to.
    pub endpoints: Endpoints,
    /// An `inngest` handler has somewhere to send to.
    pub is_inngest_served: bool,
}

impl Routes for AdmissionRoutes {
    fn route(&self, family: &Family, source: &str, data: &JsonObject) -> Route {
        let registry = self.registry.current();
        let functions = self.functions.current();
        let Some(entry) = registry.lookup(family) else {
            let is_wanted = functions.wants(family.as_str()) || self.endpoints.current().wants(family.as_str());
            return Route { is_routed: is_wanted, ..Route::default() };
        };
        // An endpoint alone is no route where a function is to have the event: it waits for that.
        let is_routed = match &entry.handler {
            HandlerSpec::Inngest { target } => self.is_inngest_served || functions.wants(target.as_str()),
            _ => true,
        };
        Route {
            priority: entry.priority,
            dedup_window: entry.dedup_window,
            dedup_key: entry.dedup_key.as_ref().and_then(|key| key.derive(family, source, data)),
            is_routed,
        }
    }
}

/// Defaults that entries don't repeat.
#[derive(Debug, Clone)]
pub struct HandlerSettings {
    /// For `http`, `command` and `local`.
    pub handler_timeout: Duration,
    /// For `inngest`.
    pub send_timeout: Duration,
    /// First delay after a failure.
    pub initial_backoff: Duration,
    /// Attempts before the dead letters.
    pub max_attempts: u32,
    /// The external Inngest server.
    pub inngest: Option<InngestServer>,
    /// Secrets that `secret_env` may name, from the env file and the environment.
    pub secrets: NamedSecrets,
    /// Families have circuit breakers.
    pub is_breaker_enabled: bool,
}

/// Builds plans from the registry in force; a handler is built once per table.
pub struct RegistryPlans {
    registry: RegistryHandle,
    settings: HandlerSettings,
    locals: LocalFunctions,
    engine: Engine,
    outbound: Option<Outbound>,
    observer: Option<Post>,
    built: Mutex<Built>,
}

#[derive(Default)]
struct Built {
    /// Hash of the table that the handlers are of.
    table: String,
    handlers: HashMap<String, Result<Arc<dyn Handler>, String>>,
}

impl RegistryPlans {
    /// Plans from `registry`, with functions run by `engine`.
    #[must_use]
    pub fn new(registry: RegistryHandle, settings: HandlerSettings, engine: Engine) -> Self {
        let locals = LocalFunctions::builtin();
        Self { registry, settings, locals, engine, outbound: None, observer: None, built: Mutex::default() }
    }

    /// The same, with events sent to endpoints too.
    #[must_use]
    pub fn with_outbound(self, outbound: Outbound) -> Self {
        Self { outbound: Some(outbound), ..self }
    }

    /// The same, with an observer that answers requests for a look.
    #[must_use]
    pub fn with_observer(mut self, post: Post) -> Self {
        let asked = post.clone();
        self.locals = self.locals.with(post::FUNCTION, move |dispatch| {
            let post = asked.clone();
            async move { post.answer(dispatch).await }
        });
        Self { observer: Some(post), ..self }
    }

    /// The cadence of an observer that may pause `family`.
    fn cadence(&self, family: &Family) -> Option<Duration> {
        let policy = self.observer.as_ref()?.policy();
        let may_pause = policy.mode == ObserverMode::Enforce && policy.auto.iter().any(|auto| auto == family.as_str());
        may_pause.then_some(policy.interval)
    }

    /// The plan of an endpoint's deliveries.
    fn deliveries(outbound: &Outbound, family: &Family) -> FamilyPlan {
        let id = family.as_str().strip_prefix(outbound::FAMILY).unwrap_or_default();
        let snapshot = outbound.endpoints().current();
        let endpoint = snapshot.endpoints.get(id);
        let deliver = Deliver::new(outbound.clone(), family.as_str());
        let (concurrency, because) = (deliver.concurrency(), deliver.held());
        let handler: Arc<dyn Handler> = Arc::new(deliver);
        FamilyPlan {
            handler: because.is_none().then_some(handler),
            unrouted_because: because,
            concurrency,
            weight: 1,
            ordered: endpoint.is_some_and(|endpoint| endpoint.fifo),
            aimd: false,
            rate_per_s: endpoint.and_then(|endpoint| endpoint.rate_limit_per_second),
            // The request has its own limit; a little is left for what is noted after it.
            timeout: outbound.settings().timeout + DELIVERY_MARGIN,
            max_age: None,
            // The handler says how long to wait.
            retry: RetryPolicy {
                attempts: outbound.settings().attempts(),
                initial: Duration::ZERO,
                multiplier: 1.0,
                max: Duration::ZERO,
                full_jitter: false,
            },
            slots: Slots::Deliveries,
            // An endpoint that fails is disabled by its own rules.
            breaker: None,
        }
    }

    /// The plan of canaries: nothing outside this process can hold them up.
    fn canary(&self) -> FamilyPlan {
        FamilyPlan {
            handler: self.locals.get("noop"),
            unrouted_because: None,
            concurrency: u32::MAX,
            weight: 1,
            ordered: false,
            rate_per_s: None,
            timeout: self.settings.handler_timeout,
            max_age: None,
            retry: self.retry(&Backoff::default(), None),
            slots: Slots::Handlers,
            breaker: None,
            aimd: false,
        }
    }

    /// The plan of a function's work items.
    fn work(&self, family: &Family) -> FamilyPlan {
        let functions = self.engine.registry().current();
        let function = family.as_str().strip_prefix(WORK).and_then(|name| functions.function(name));
        // A paused function has no route until it is resumed: its calls wait, whatever other families do.
        let paused = function.and_then(|function| functions.paused_by(function));
        let because = paused.map(|mark| format!("the function is paused: {}", mark.reason));
        let handler: Arc<dyn Handler> = Arc::new(WorkHandler::new(self.engine.clone()));
        FamilyPlan {
            handler: because.is_none().then_some(handler),
            unrouted_because: because,
            // Limits of the function's own are counted in Redis, for all processes.
            concurrency: match function {
                Some(function) if function.flow.concurrency.is_empty() => DEFAULT_LIMIT,
                _ => u32::MAX,
            },
            weight: 1,
            ordered: false,
            aimd: false,
            rate_per_s: None,
            timeout: WORK_TIMEOUT,
            max_age: None,
            // Attempts of functions are the engine's; these are of work items that Redis kept from going on.
            retry: RetryPolicy {
                attempts: u32::MAX,
                initial: Duration::from_millis(200),
                multiplier: 2.0,
                max: WORK_BACKOFF,
                full_jitter: true,
            },
            slots: Slots::Calls,
            // An app that is away costs no attempt: the engine waits for it.
            breaker: None,
        }
    }

    /// The handler of an event that functions or the engine want, before what the registry names.
    fn with_functions(
        &self,
        family: &Family,
        entry: Option<&Entry>,
        own: Result<Arc<dyn Handler>, String>,
    ) -> Result<Arc<dyn Handler>, String> {
        let target = match entry.map(|entry| &entry.handler) {
            Some(HandlerSpec::Inngest { target }) => target.clone(),
            _ => family.clone(),
        };
        if !self.engine.registry().current().wants(target.as_str()) {
            return own.map_err(|reason| match entry.map(|entry| &entry.handler) {
                None => format!("no registry entry and no function wants `{target}`"),
                Some(HandlerSpec::Inngest { .. }) => format!("no function wants `{target}`, and {reason}"),
                Some(_) => reason,
            });
        }
        let events: Arc<dyn Handler> = Arc::new(EventHandler::new(self.engine.clone(), target));
        Ok(match own {
            Ok(own) if !family.as_str().starts_with(INTERNAL) => Arc::new(Both::new(events, own)),
            _ => events,
        })
    }

    /// The entry's handler, or why this process has none. `table` is the one that `entry` is of: a handler built for it
    /// must not be found under the table that replaces it meanwhile.
    fn handler(&self, table: &Registry, entry: &Entry) -> Result<Arc<dyn Handler>, String> {
        let Ok(mut built) = self.built.lock() else { return self.build(entry) };
        if built.table != table.hash() {
            *built = Built { table: table.hash().to_owned(), handlers: HashMap::new() };
        }
        built.handlers.entry(entry.pattern.to_string()).or_insert_with(|| self.build(entry)).clone()
    }

    fn build(&self, entry: &Entry) -> Result<Arc<dyn Handler>, String> {
        match &entry.handler {
            HandlerSpec::Http { target, secret_env, headers } => {
                let secret = match secret_env {
                    Some(name) => {
                        Some(self.settings.secrets.get(name).ok_or_else(|| format!("the secret {name} is not set"))?)
                    }
                    None => None,
                };
                let options =
                    HttpOptions { secret, retry_client_errors: entry.retry_client_errors, headers: headers.clone() };
                HttpHandler::new(target, options).map(|handler| Arc::new(handler) as Arc<dyn Handler>)
            }
            HandlerSpec::Command { program, args, permanent_exit } => Ok(Arc::new(CommandHandler::new(CommandSpec {
                program: program.clone(),
                args: args.clone(),
                permanent_exit: permanent_exit.clone(),
            }))),
            HandlerSpec::Local { name } => {
                self.locals.get(name).ok_or_else(|| format!("this program has no native function `{name}`"))
            }
            HandlerSpec::Inngest { target } => {
                let server = self.settings.inngest.as_ref().ok_or("INNGEST_URL is not set")?;
                InngestHandler::new(server, target.clone()).map(|handler| Arc::new(handler) as Arc<dyn Handler>)
            }
        }
    }

    /// Thresholds of a family whose handler reaches for something outside this process.
    fn breaker(&self, family: &Family, entry: Option<&Entry>) -> Option<Thresholds> {
        let entry = entry.filter(|entry| self.settings.is_breaker_enabled && !entry.breaker.is_off)?;
        let (own, default) = (&entry.breaker, Thresholds::default());
        let mut thresholds = Thresholds {
            window: own.window.unwrap_or(default.window),
            min: own.min.map_or(default.min, u64::from),
            ratio: own.ratio.unwrap_or(default.ratio),
            consecutive: own.consecutive.map_or(default.consecutive, |n| n as usize),
            open: own.open.unwrap_or(default.open),
            max: own.max.unwrap_or(default.max),
            close_after: own.close_after.unwrap_or(default.close_after),
        };
        if let Some(cadence) = self.cadence(family) {
            // So that a recovery is seen within one cadence of the observer plus one probe.
            thresholds.max = thresholds.max.min(cadence);
        }
        Some(thresholds)
    }

    fn retry(&self, backoff: &Backoff, attempts: Option<u32>) -> RetryPolicy {
        RetryPolicy {
            attempts: attempts.unwrap_or(self.settings.max_attempts),
            initial: backoff.initial.unwrap_or(self.settings.initial_backoff),
            multiplier: backoff.multiplier.unwrap_or(2.0),
            max: backoff.max.unwrap_or(MAX_BACKOFF),
            full_jitter: backoff.full_jitter.unwrap_or(true),
        }
    }
}

impl Plans for RegistryPlans {
    fn plan(&self, family: &Family) -> FamilyPlan {
        if family.as_str().starts_with(WORK) {
            return self.work(family);
        }
        if let Some(outbound) = self.outbound.as_ref().filter(|_| family.as_str().starts_with(outbound::FAMILY)) {
            return Self::deliveries(outbound, family);
        }
        if family.as_str() == CANARY {
            return self.canary();
        }
        let registry = self.registry.current();
        let entry = registry.lookup(family);
        let own = match entry {
            Some(entry) => self.handler(&registry, entry),
            None => Err("no registry entry names it".to_owned()),
        };
        let endpoints = self.outbound.as_ref().map(|outbound| outbound.endpoints().current());
        let is_in_order = endpoints.as_ref().is_some_and(|endpoints| endpoints.wants_in_order(family.as_str()));
        let handler = match (&self.outbound, self.with_functions(family, entry, own)) {
            (Some(outbound), own) if endpoints.is_some_and(|endpoints| endpoints.wants(family.as_str())) => {
                let fan_out: Arc<dyn Handler> = Arc::new(FanOut::new(outbound.clone()));
                match own {
                    Ok(own) => Ok(Arc::new(Both::new(fan_out, own)) as Arc<dyn Handler>),
                    // Nobody else is to have it. A handler that is to be, and is not there, keeps its events waiting;
                    // those that wait for a function are fanned out ahead.
                    Err(_) if entry.is_none() => Ok(fan_out),
                    Err(reason) => Err(reason),
                }
            }
            (_, own) => own,
        };
        let (handler, unrouted_because) = match handler {
            Ok(handler) => (Some(handler), None),
            Err(reason) => (None, Some(reason)),
        };
        let default_timeout = match entry.map(|entry| &entry.handler) {
            Some(HandlerSpec::Inngest { .. }) => self.settings.send_timeout,
            _ => self.settings.handler_timeout,
        };
        FamilyPlan {
            handler,
            unrouted_because,
            concurrency: entry.and_then(|entry| entry.concurrency).unwrap_or(u32::MAX),
            weight: entry.map_or(1, |entry| entry.weight),
            // Deliveries in order are made one after another.
            ordered: is_in_order || entry.is_some_and(|entry| entry.ordered),
            aimd: entry.is_some_and(|entry| entry.aimd),
            rate_per_s: entry.and_then(|entry| entry.rate_per_s),
            timeout: entry.and_then(|entry| entry.timeout).unwrap_or(default_timeout),
            max_age: entry.and_then(|entry| entry.max_age),
            retry: self.retry(
                entry.map_or(&Backoff::default(), |entry| &entry.backoff),
                entry.and_then(|entry| entry.attempts),
            ),
            slots: Slots::Handlers,
            breaker: self.breaker(family, entry),
        }
    }

    fn version(&self) -> u64 {
        let outbound = self.outbound.as_ref().map_or(0, Outbound::version);
        let observer = self.observer.as_ref().map_or(0, Post::version);
        let others = self.engine.registry().version().wrapping_add(outbound.wrapping_mul(1 << 16));
        let others = others.wrapping_add(observer.wrapping_mul(1 << 32));
        self.registry.version().wrapping_mul(1 << 40).wrapping_add(others)
    }

    fn hash(&self) -> String {
        self.registry.current().hash().to_owned()
    }
}

impl HandlerSettings {
    /// The defaults of the configuration.
    #[must_use]
    pub fn from_config(config: &Config, inngest: Option<&ExternalInngest>) -> Self {
        Self {
            handler_timeout: config.drainer.handler_timeout,
            send_timeout: config.drainer.send_timeout,
            initial_backoff: config.drainer.failure_backoff,
            max_attempts: config.drainer.max_attempts,
            inngest: inngest
                .map(|server| InngestServer { base_url: server.url.clone(), key: server.event_key.clone() }),
            secrets: config.named_secrets(),
            is_breaker_enabled: config.drainer.is_breaker_enabled,
        }
    }
}
