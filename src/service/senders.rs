//! Who may send webhooks, with their secrets: from the configuration, from files, and from a command.
//!
//! A secret that is set nowhere is asked for by WEBHOOK_SECRETS_COMMAND, all at the same time and beside the start of
//! the service, and again at four fifths of WEBHOOK_SECRETS_TTL. What the command says lives in memory alone.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::config::{Config, Rotating, SecretRow, Slot, WEBHOOK_SECRETS};
use crate::ingest::gateway::Gateway;
use crate::ingest::providers::{self, Options, Provider, SecretTable, Senders};
use crate::ingest::signature::{Scheme, Secrets};
use crate::ingest::sources;
use crate::known_secrets;

/// How long the command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// When a command that failed is asked again.
const RETRY: Duration = Duration::from_secs(600);

/// What the command said, by variable. Cheap to clone.
#[derive(Clone, Default)]
pub struct Leased(Arc<LeasedSecrets>);

#[derive(Default)]
struct LeasedSecrets {
    secrets: Mutex<HashMap<&'static str, (SecretString, Instant)>>,
    changed: Notify,
}

impl Leased {
    fn secrets(&self) -> MutexGuard<'_, HashMap<&'static str, (SecretString, Instant)>> {
        self.0.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the command gave this variable's secret so long ago that it may have ended since.
    pub(super) fn is_stale(&self, variable: &str, ttl: Duration) -> bool {
        self.secrets().get(variable).is_some_and(|(_, at)| at.elapsed() > ttl)
    }

    /// Ends when the command has said something new.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

/// The providers and sources of `config` with the secrets in force.
pub fn senders(config: &Config, leased: &Leased) -> Result<Senders, Error> {
    let webhook = &config.webhook;
    let mut all = providers::builtin(&Options {
        github_passthrough: webhook.github_passthrough.iter().cloned().collect(),
        joelclaw_require_timestamp: webhook.joelclaw_require_timestamp,
        joelclaw_allowed_events: webhook.joelclaw_allowed_events.clone(),
    });
    let taken: Vec<&str> = all.iter().map(|provider| provider.id()).collect();
    let sources = sources::load(&webhook.sources_file, &webhook.sources, &taken)?;
    all.extend(sources.into_iter().map(|source| Arc::new(source) as Arc<dyn Provider>));
    let leased = leased.secrets().clone();
    let mut table = SecretTable::new();
    for provider in &all {
        let (scheme, _) = provider.signature(&axum::http::HeaderMap::new());
        for variable in provider.secrets() {
            let mut rotating = match config.webhook_secrets.get(variable.as_ref()) {
                Some(rotating) => rotating.clone(),
                None => config.variables.rotating(&variable),
            };
            if !rotating.is_set() {
                rotating.current = leased.get(variable.as_ref()).map(|(secret, _)| secret.clone());
            }
            table.insert(variable.into_owned(), read(&rotating, &scheme)?);
        }
    }
    Ok(Senders::new(all, table))
}

/// Each slot's secrets. Those of Standard Webhooks are lists, separated by blanks, which none of them contains.
fn read(rotating: &Rotating, scheme: &Scheme) -> Result<Secrets, Error> {
    let (mut current, mut previous) = (Vec::new(), Vec::new());
    for (slot, secret) in rotating.read()? {
        let list = if slot == Slot::Current { &mut current } else { &mut previous };
        match scheme {
            Scheme::Standard => list.extend(secret.expose_secret().split_whitespace().map(str::to_owned)),
            _ => list.push(secret.expose_secret().to_owned()),
        }
    }
    Ok(Secrets::new(current, previous))
}

/// Asks the command for each secret that is set nowhere. The seconds until it should be asked again; `None` when there
/// is nothing to ask, or nobody.
pub async fn lease(config: &Config, leased: &Leased) -> Option<Duration> {
    let ttl = config.webhook.secrets_ttl;
    let missing = |row: &&SecretRow| config.webhook_secrets.get(row.variable).is_none_or(|secret| !secret.is_set());
    let missing: Vec<&SecretRow> = WEBHOOK_SECRETS.iter().filter(missing).collect();
    let program = config.webhook.secrets_command.split_whitespace().next()?;
    if missing.is_empty() {
        return None;
    }
    let asked = join_all(missing.iter().map(|row| ask(&config.webhook.secrets_command, row.store, ttl))).await;
    if asked.iter().all(|answer| matches!(answer, Err(error) if error.kind() == std::io::ErrorKind::NotFound)) {
        tracing::info!(program, "there is no such program: secrets come from the environment and from files alone");
        return None;
    }
    let mut has_failed = false;
    for (row, answer) in std::iter::zip(missing, asked) {
        match answer {
            Ok(secret) => {
                tracing::info!("[secrets] loaded {}", row.variable);
                leased.secrets().insert(row.variable, (secret, Instant::now()));
            }
            Err(error) => {
                has_failed = true;
                tracing::warn!(variable = row.variable, error = %error, "the command has no secret for {}", row.variable);
            }
        }
    }
    Some(if has_failed { RETRY.min(ttl * 4 / 5) } else { ttl * 4 / 5 })
}

async fn ask(command: &str, store: &str, ttl: Duration) -> std::io::Result<SecretString> {
    let ttl = match ttl.as_secs() {
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s => format!("{s}s"),
    };
    let mut words = command.split_whitespace().map(|word| word.replace("{name}", store).replace("{ttl}", &ttl));
    let program = words.next().unwrap_or_default();
    let mut child = tokio::process::Command::new(program);
    // Its complaints may quote what it was about to say.
    child.args(words).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let failed = |what: String| std::io::Error::other(what);
    let output = tokio::time::timeout(COMMAND_TIMEOUT, child.output())
        .await
        .map_err(|_| failed(format!("no answer within {COMMAND_TIMEOUT:?}")))??;
    if !output.status.success() {
        return Err(failed(format!("the command ended with {}", output.status)));
    }
    let text = String::from_utf8(output.stdout).map_err(|_| failed("the answer is no text".to_owned()))?;
    match text.trim() {
        "" => Err(failed("the answer is empty".to_owned())),
        secret => {
            known_secrets::know(secret);
            Ok(SecretString::from(secret))
        }
    }
}

/// Keeps leased secrets fresh until `stop`. Whoever has the configuration in force takes them up.
pub(super) async fn keep(config: Config, leased: Leased, stop: CancellationToken) {
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = lease(&config, &leased) => next,
        };
        let Some(next) = next else { return };
        leased.0.changed.notify_one();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(next) => {}
        }
    }
}

/// Gives the gateway the senders of `config`; those in force stay when they can't be read.
pub(super) fn swap(config: &Config, leased: &Leased, gateway: &Gateway) {
    match senders(config, leased) {
        Ok(senders) => gateway.replace_senders(senders),
        Err(error) => tracing::error!(
            action = "webhook.secrets.reload_failed",
            error = %crate::diagnose::chain(&error),
            "the new senders and secrets can't be read; the old ones stay"
        ),
    }
}
