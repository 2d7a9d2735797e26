//! Configuration: one struct per part, every setting declared once (see [`settings`]).
//!
//! A value comes from a flag, else the env file, else the environment, else its default; for the Inngest and telemetry
//! variables the environment comes before the file. The file is `~/.config/system-bus.env` unless `--env-file` or
//! `SYSTEM_BUS_ENV_FILE` names another; one that was named must be readable.
//!
//! # Invariants
//! 1. No secret leaves this module as plain text other than by [`secrecy::ExposeSecret`]: not in `Debug`, warnings,
//!    errors or `joelclaw config`.
//! 2. A value that is not accepted never stops a command: it is replaced by its default, with a warning. Only an env
//!    file that was asked for and an address of Redis that can't be read are errors.
//! 3. Nothing here reads the process's environment but [`Sources::of_process`].
//!
//! What is missing only matters to who needs it: [`Config::external_inngest`] is asked by the drainer alone.

pub mod declare;
pub mod env_file;
pub mod redis_url;
pub mod secret;
pub mod settings;
pub mod units;
pub mod webhook_secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use secrecy::SecretString;

pub use declare::{Declared, Effective, Origin};
pub use redis_url::{ManagedPaths, RedisConfig, RedisOrigin};
pub use secret::{Rotating, Slot};
pub use settings::{
    Bodies, Breakthrough, DrainerConfig, DurabilityClass, Fairness, FunctionsConfig, InngestConfig, MissedTicks,
    ModelConfig, ObserverConfig, ObserverMode, OtlpProtocol, OwnTraces, QueueConfig, RuntimesConfig, ServerConfig,
    SpoolFor, SystemConfig, TelemetryConfig, TraceTrust, TriageConfig, TriageDedup, TriageMode, WebhookConfig,
};
pub use units::{Cidr, MemoryBudget};
pub use webhook_secrets::{SecretRow, Variables, WEBHOOK_SECRETS};

use crate::diagnose::{Diagnose, Exit};
use crate::known_secrets;
use env_file::EnvFile;

/// Everything that decides a value.
#[derive(Clone, Default)]
pub struct Sources {
    /// Settings given as flags, by variable: `REDIS_URL` for `--redis-url`.
    pub flags: BTreeMap<String, String>,
    /// `--env-file`.
    pub env_file: Option<PathBuf>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// The home directory.
    pub home: PathBuf,
}

impl std::fmt::Debug for Sources {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("flags", &self.flags.keys().collect::<Vec<_>>())
            .field("env_file", &self.env_file)
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// Of this process. Variables that are no text are as good as unset.
    pub fn of_process() -> Self {
        Self {
            flags: BTreeMap::new(),
            env_file: None,
            environment: std::env::vars_os()
                .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            home: std::env::home_dir().unwrap_or_else(|| PathBuf::from(".")),
        }
    }

    /// With a setting given as a flag.
    pub fn flag(mut self, key: &str, value: Option<String>) -> Self {
        if let Some(value) = value {
            self.flags.insert(key.to_owned(), value);
        }
        self
    }
}

/// Something an operator should change; the program goes on without.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// Stable UPPER_SNAKE code; `joelclaw explain` knows it.
    pub code: &'static str,
    /// What is wrong and what is used instead.
    pub message: String,
}

/// An emitter that can be put on the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pilot {
    /// GitHub's `workflow_run.completed`.
    Github,
    /// `discovery/noted`.
    Discovery,
    /// `discovery/captured`; not implied by `discovery`.
    DiscoveryCaptured,
    /// `subscription/check-feeds.requested`.
    Subscriptions,
    /// `content/updated` of the content watcher.
    Content,
}

impl Pilot {
    const ALL: [(&'static str, Self); 5] = [
        ("github", Self::Github),
        ("discovery", Self::Discovery),
        ("discovery-captured", Self::DiscoveryCaptured),
        ("subscriptions", Self::Subscriptions),
        ("content", Self::Content),
    ];
}

impl std::fmt::Display for Pilot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::ALL.iter().find(|(_, pilot)| pilot == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// The emitters that use the queue (QUEUE_PILOTS).
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pilots(BTreeSet<Pilot>);

impl Pilots {
    /// Does this emitter use the queue?
    pub fn is_on(&self, pilot: Pilot) -> bool {
        self.0.contains(&pilot)
    }

    fn from_words(words: &[String], warnings: &mut Vec<Warning>) -> Self {
        let find = |word: &String| {
            let known = Pilot::ALL.iter().find(|(name, _)| name == word).map(|&(_, pilot)| pilot);
            if known.is_none() {
                let names = Pilot::ALL.map(|(name, _)| name);
                let hint = nearest(word, names.into_iter()).map(|name| format!("; did you mean `{name}`?"));
                warnings.push(Warning {
                    code: "CONFIG_INVALID_VALUE",
                    message: format!("QUEUE_PILOTS: `{word}` is no pilot, ignored{}", hint.unwrap_or_default()),
                });
            }
            known
        };
        Self(words.iter().filter_map(find).collect())
    }
}

/// An external Inngest server with the key that makes it usable.
#[derive(Debug, Clone)]
pub struct ExternalInngest {
    /// Without a trailing slash.
    pub url: String,
    /// The event key.
    pub event_key: SecretString,
}

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which Redis.
    pub redis: RedisConfig,
    /// Paths, key prefix, log filter.
    pub system: SystemConfig,
    /// What the queue accepts and keeps.
    pub queue: QueueConfig,
    /// How the drainer dispatches.
    pub drainer: DrainerConfig,
    /// The HTTP server.
    pub server: ServerConfig,
    /// The webhook gateway.
    pub webhook: WebhookConfig,
    /// Secrets of the built-in webhook providers, by variable; to be read at use, so that a rotation needs no restart.
    pub webhook_secrets: BTreeMap<&'static str, Rotating>,
    /// Variables whose names only the operator knows.
    pub variables: Variables,
    /// An external Inngest server.
    pub inngest: InngestConfig,
    /// The engine, and the apps that it calls.
    pub functions: FunctionsConfig,
    /// What holds families while their downstream is away.
    pub observer: ObserverConfig,
    /// Triage.
    pub triage: TriageConfig,
    /// The model.
    pub model: ModelConfig,
    /// Where telemetry goes beside the journal.
    pub telemetry: TelemetryConfig,
    /// Runtimes beside this one.
    pub runtimes: RuntimesConfig,
    /// The emitters that use the queue.
    pub pilots: Pilots,
    /// Paths of the managed Redis.
    pub managed: ManagedPaths,
    /// The env file, whether or not it exists.
    pub env_file: PathBuf,
    /// What is wrong, the most important first.
    pub warnings: Vec<Warning>,
    /// Each setting with what chose it, in the order of declaration; secrets are masked.
    pub effective: Vec<Effective>,
}

impl Config {
    /// Reads the env file and decides every value.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        let mut warnings = Vec::new();
        let file = read_env_file(sources, &mut warnings)?;
        let mut loader = declare::Loader::new(sources, &file);
        let system = SystemConfig::load(&mut loader);
        let queue = QueueConfig::load(&mut loader);
        let drainer = DrainerConfig::load(&mut loader);
        let server = ServerConfig::load(&mut loader);
        let webhook = WebhookConfig::load(&mut loader);
        let inngest = InngestConfig::load(&mut loader);
        let functions = FunctionsConfig::load(&mut loader);
        let observer = ObserverConfig::load(&mut loader);
        let triage = TriageConfig::load(&mut loader);
        let model = ModelConfig::load(&mut loader);
        let telemetry = TelemetryConfig::load(&mut loader);
        let runtimes = RuntimesConfig::load(&mut loader);
        let variables = Variables::new(sources, &file);
        let webhook_secrets = webhook_secrets::load(&mut loader, &variables);
        let declare::Loader { effective, warnings: refused, .. } = loader;

        let managed = ManagedPaths::below(&system.data_dir);
        let redis = RedisConfig::resolve(sources, &file, &managed, &mut warnings)?;
        warnings.extend(refused);
        let pilots = Pilots::from_words(&queue.pilot_words, &mut warnings);
        warn_of_unknown_keys(&file, &mut warnings);
        warn_of_exposed_secrets(&file, &mut warnings);
        Ok(Self {
            redis,
            system,
            queue,
            drainer,
            server,
            webhook,
            webhook_secrets,
            variables,
            inngest,
            functions,
            observer,
            triage,
            model,
            telemetry,
            runtimes,
            pilots,
            managed,
            env_file: file.path,
            warnings,
            effective,
        })
    }

    /// The external Inngest server, when one is configured. A URL without a key is an error at start, because every
    /// dispatch would fail.
    pub fn external_inngest(&self) -> Result<Option<ExternalInngest>, Error> {
        match (&self.inngest.url, &self.inngest.event_key) {
            (None, _) => Ok(None),
            (Some(url), Some(key)) => Ok(Some(ExternalInngest { url: url.clone(), event_key: key.clone() })),
            (Some(url), None) => Err(Error::EventKeyMissing { url: url.clone() }),
        }
    }

    /// Secrets that a registry entry names (`secret_env`).
    pub fn named_secrets(&self) -> NamedSecrets {
        NamedSecrets { env_file: self.env_file.clone() }
    }

    /// The names of the settings whose values differ, for `config.changed`.
    pub fn changed_keys(&self, before: &Self) -> Vec<&'static str> {
        let mut changed: Vec<_> = self
            .effective
            .iter()
            .zip(&before.effective)
            .filter(|(now, then)| now.shown != then.shown)
            .map(|(now, _)| now.declared.key)
            .collect();
        // Where nobody named one, it is the managed one as soon as that runs: no setting has changed.
        let is_named = self.redis.is_configured() || before.redis.is_configured();
        if is_named && secrecy::ExposeSecret::expose_secret(&self.redis.url) != before.redis.expose() {
            changed.push("REDIS_URL");
        }
        changed
    }
}

/// Settings that only the operator knows the names of: from the env file, then from the environment. Read at each
/// look-up, so that a secret added together with a registry entry needs no restart.
#[derive(Debug, Clone)]
pub struct NamedSecrets {
    env_file: PathBuf,
}

impl NamedSecrets {
    /// The secret of this name, unless it is unset or blank.
    pub fn get(&self, name: &str) -> Option<SecretString> {
        let from_file = EnvFile::read(&self.env_file).ok().and_then(|file| file.values.get(name).cloned());
        let value = from_file.or_else(|| std::env::var(name).ok())?;
        known_secrets::know(&value);
        (!value.trim().is_empty()).then(|| SecretString::from(value))
    }
}

/// A URL's user and password are credentials, whoever's URL it is.
pub(crate) fn without_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

fn read_env_file(sources: &Sources, warnings: &mut Vec<Warning>) -> Result<EnvFile, Error> {
    let named = sources.environment.get("SYSTEM_BUS_ENV_FILE").filter(|path| !path.is_empty());
    let (path, by) = match (&sources.env_file, named) {
        (Some(path), _) => (path.clone(), Some(Origin::Flag)),
        (None, Some(path)) => (PathBuf::from(path), Some(Origin::Environment)),
        (None, None) => (sources.home.join(".config/system-bus.env"), None),
    };
    let file = match (EnvFile::read(&path), by) {
        (Ok(file), _) => file,
        (Err(source), Some(by)) => return Err(Error::EnvFile { path, by, source }),
        (Err(error), None) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                let message = format!("{} can't be read ({error}); going on without it", path.display());
                warnings.push(Warning { code: "CONFIG_FILE_UNREADABLE", message });
            }
            EnvFile { path, ..EnvFile::default() }
        }
    };
    if let Some(first) = file.bad_lines.first() {
        let others = match file.bad_lines.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        warnings.push(Warning {
            code: "CONFIG_FILE_LINE",
            message: format!("{}: line {first}{others} is no KEY=value, ignored", file.path.display()),
        });
    }
    Ok(file)
}

/// Only prefixes that are ours: the file may serve other programs as well.
const OUR_PREFIXES: [&str; 3] = ["QUEUE_", "WEBHOOK_", "SYSTEM_BUS_"];

fn warn_of_unknown_keys(file: &EnvFile, warnings: &mut Vec<Warning>) {
    let declared = settings::declared();
    for key in file.values.keys() {
        let is_ours = OUR_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        if !is_ours || webhook_secrets::is_patterned(key) || declared.iter().any(|setting| setting.key == key) {
            continue;
        }
        let hint = nearest(key, declared.iter().map(|setting| setting.key));
        let hint = hint.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
        let message = format!("{}: {key} is no setting{hint}", file.path.display());
        warnings.push(Warning { code: "CONFIG_UNKNOWN_KEY", message });
    }
}

fn warn_of_exposed_secrets(file: &EnvFile, warnings: &mut Vec<Warning>) {
    if !file.is_exposed() {
        return;
    }
    let declared = settings::declared();
    let is_secret = |key: &str, value: &str| {
        !value.is_empty()
            && (declared.iter().any(|setting| setting.key == key && setting.is_secret)
                || ["_SECRET", "_TOKEN", "_KEY", "_PASSWORD"].iter().any(|end| key.ends_with(end))
                || (key.ends_with("_URL") && without_userinfo(value) != value))
    };
    if let Some((key, _)) = file.values.iter().find(|(key, value)| is_secret(key, value)) {
        let path = file.path.display();
        let message = format!(
            "{path} holds secrets ({key}) and has mode {:04o}: chmod 600 {path}",
            file.mode.unwrap_or_default()
        );
        warnings.push(Warning { code: "CONFIG_FILE_MODE", message });
    }
}

/// The known name that a typo most likely means, if any is near.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 4).clamp(1, 4);
    known
        .map(|name| (distance(word, name), name))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An env file that was asked for.
    #[error("the env file {} can't be read", path.display())]
    EnvFile {
        /// The file.
        path: PathBuf,
        /// What named it.
        by: Origin,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Falling back to another Redis than the one named would be worse than stopping.
    #[error("the Redis URL ({}) is not usable: {detail}", origin.as_str())]
    RedisUrl {
        /// What gave it.
        origin: RedisOrigin,
        /// What is wrong, without the text itself.
        detail: &'static str,
    },
    /// See [`Config::external_inngest`].
    #[error("INNGEST_URL is set ({url}) but INNGEST_EVENT_KEY is not")]
    EventKeyMissing {
        /// INNGEST_URL.
        url: String,
    },
    /// INNGEST_SIGNING_KEY or its fallback.
    #[error("INNGEST_SIGNING_KEY is no signing key: {0}")]
    SigningKey(#[from] crate::functions::inngest::signing::InvalidKey),
    /// A file of secrets.
    #[error("the secret file {} can't be read", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::EnvFile { .. } => "CONFIG_FILE_UNREADABLE",
            Self::RedisUrl { .. } => "CONFIG_REDIS_URL_INVALID",
            Self::EventKeyMissing { .. } => "EVENT_KEY_MISSING",
            Self::SigningKey(_) => "SIGNING_KEY_INVALID",
            Self::SecretFile { .. } => "CONFIG_SECRET_FILE",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::EnvFile { by: Origin::Flag, .. } | Self::RedisUrl { origin: RedisOrigin::Flag, .. } => Exit::Usage,
            Self::EnvFile { .. }
            | Self::RedisUrl { .. }
            | Self::EventKeyMissing { .. }
            | Self::SigningKey(_)
            | Self::SecretFile { .. } => Exit::Config,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::EnvFile { by: Origin::Flag, .. } => "Name an existing file with --env-file, or leave it out.".into(),
            Self::EnvFile { .. } => "Correct or unset SYSTEM_BUS_ENV_FILE.".into(),
            Self::RedisUrl { .. } => {
                "Write it as redis://user:password@host:6379/0 or unix:///path/redis.sock (% encode special characters)."
                    .into()
            }
            Self::EventKeyMissing { .. } => {
                "Set INNGEST_EVENT_KEY to the server's event key, or unset INNGEST_URL.".into()
            }
            Self::SigningKey(_) => "Make one with: echo signkey-prod-$(openssl rand -hex 32)".into(),
            Self::SecretFile { path, .. } => format!("Make {} readable for this user.", path.display()),
        }
    }
}

#[cfg(test)]
mod tests;
