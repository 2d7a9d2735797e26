//! The registry as the two sides see it: admission asks for priority and dedup, the drainer for handlers and limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::{Config, ExternalInngest, NamedSecrets};
use crate::drainer::handlers::Handler;
use crate::drainer::handlers::command::{CommandHandler, CommandSpec};
use crate::drainer::handlers::http::{HttpHandler, HttpOptions};
use crate::drainer::handlers::inngest::{InngestHandler, InngestServer};
use crate::drainer::handlers::local::LocalFunctions;
use crate::drainer::plan::{FamilyPlan, Plans, RetryPolicy};
use crate::ingest::admission::{Route, Routes};
use crate::registry::Registry;
use crate::registry::entry::{Backoff, Entry, HandlerSpec};
use crate::registry::watch::RegistryHandle;
use crate::streams::family::Family;
use crate::streams::json::JsonObject;

/// Longest delay between attempts unless an entry says otherwise (QUEUE_DRAIN_FAILURE_BACKOFF_MS doubles up to it).
const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// What admission asks of the registry.
#[derive(Debug, Clone)]
pub struct AdmissionRoutes {
    /// The table in force.
    pub registry: RegistryHandle,
    /// An `inngest` handler has somewhere to send to.
    pub is_inngest_served: bool,
}

impl Routes for AdmissionRoutes {
    fn route(&self, family: &Family, source: &str, data: &JsonObject) -> Route {
        let registry = self.registry.current();
        let Some(entry) = registry.lookup(family) else { return Route::default() };
        Route {
            priority: entry.priority,
            dedup_window: entry.dedup_window,
            dedup_key: entry.dedup_key.as_ref().and_then(|key| key.derive(family, source, data)),
            is_routed: self.is_inngest_served || !matches!(entry.handler, HandlerSpec::Inngest { .. }),
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
}

/// Builds plans from the registry in force; a handler is built once per table.
pub struct RegistryPlans {
    registry: RegistryHandle,
    settings: HandlerSettings,
    locals: LocalFunctions,
    built: Mutex<Built>,
}

#[derive(Default)]
struct Built {
    /// Hash of the table that the handlers are of.
    table: String,
    handlers: HashMap<String, Result<Arc<dyn Handler>, String>>,
}

impl RegistryPlans {
    /// Plans from `registry`.
    #[must_use]
    pub fn new(registry: RegistryHandle, settings: HandlerSettings) -> Self {
        Self { registry, settings, locals: LocalFunctions::builtin(), built: Mutex::default() }
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
        let registry = self.registry.current();
        let entry = registry.lookup(family);
        let (handler, unrouted_because) = match entry.map(|entry| self.handler(&registry, entry)) {
            Some(Ok(handler)) => (Some(handler), None),
            Some(Err(reason)) => (None, Some(reason)),
            None => (None, Some("no registry entry names it".to_owned())),
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
            ordered: entry.is_some_and(|entry| entry.ordered),
            rate_per_s: entry.and_then(|entry| entry.rate_per_s),
            timeout: entry.and_then(|entry| entry.timeout).unwrap_or(default_timeout),
            max_age: entry.and_then(|entry| entry.max_age),
            retry: self.retry(
                entry.map_or(&Backoff::default(), |entry| &entry.backoff),
                entry.and_then(|entry| entry.attempts),
            ),
        }
    }

    fn version(&self) -> u64 {
        self.registry.version()
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
        }
    }
}
