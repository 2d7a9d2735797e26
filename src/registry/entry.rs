//! One entry of the registry.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use reqwest::Url;

use super::dedup_key::DedupKey;
use crate::streams::family::Family;
use crate::streams::priority::Priority;

/// Which names an entry is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This name.
    Exact(Family),
    /// Every name that begins so; kept without its `*`.
    Prefix(String),
}

impl Pattern {
    /// Whether `family` is meant.
    #[must_use]
    pub fn matches(&self, family: &Family) -> bool {
        match self {
            Self::Exact(name) => name == family,
            Self::Prefix(prefix) => family.as_str().starts_with(prefix),
        }
    }

    /// The name, or the prefix without its `*`.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(name) => name.as_str(),
            Self::Prefix(prefix) => prefix,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Who runs an event.
#[derive(Clone, PartialEq, Eq)]
pub enum HandlerSpec {
    /// The functions engine, or an external Inngest event API: sent under this name.
    Inngest {
        /// An event name, never a function id.
        target: Family,
    },
    /// `POST` of the data.
    Http {
        /// URL.
        target: String,
        /// Name of the setting that holds the signing secret.
        secret_env: Option<String>,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// A program with the event on its stdin.
    Command {
        /// Path or name.
        program: String,
        /// Its arguments.
        args: Vec<String>,
        /// Exit codes that mean: never try again.
        permanent_exit: Vec<i32>,
    },
    /// A native function.
    Local {
        /// Its name.
        name: String,
    },
}

impl HandlerSpec {
    /// `inngest`, `http`, `command` or `local`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Inngest { .. } => "inngest",
            Self::Http { .. } => "http",
            Self::Command { .. } => "command",
            Self::Local { .. } => "local",
        }
    }

    /// Event name, URL, program or function, as people may see it: a URL without user, password, query and fragment.
    #[must_use]
    pub fn target(&self) -> Cow<'_, str> {
        match self {
            Self::Inngest { target } => target.as_str().into(),
            Self::Http { target, .. } => {
                Url::parse(target).map_or("no URL".into(), |url| url_without_secrets(&url).into())
            }
            Self::Command { program, .. } => program.into(),
            Self::Local { name } => name.into(),
        }
    }
}

impl fmt::Debug for HandlerSpec {
    /// Without what may be a secret: credentials of a URL, values of headers, arguments of a program.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target();
        match self {
            Self::Inngest { .. } => f.debug_struct("Inngest").field("target", &target).finish(),
            Self::Http { secret_env, headers, .. } => {
                let names: Vec<_> = headers.iter().map(|(name, _)| name).collect();
                let mut shown = f.debug_struct("Http");
                shown.field("target", &target).field("secret_env", secret_env).field("headers", &names).finish()
            }
            Self::Command { args, permanent_exit, .. } => {
                let mut shown = f.debug_struct("Command");
                shown.field("program", &target).field("args", &args.len()).field("permanent_exit", permanent_exit);
                shown.finish()
            }
            Self::Local { .. } => f.debug_struct("Local").field("name", &target).finish(),
        }
    }
}

/// A URL as people may see it: without user, password, query and fragment.
#[must_use]
pub fn url_without_secrets(url: &Url) -> String {
    let mut shown = url.clone();
    // Both fail only for URLs that can't have user or password in the first place.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    shown.to_string()
}

/// How retries are spaced; what is absent comes from the configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Backoff {
    /// After the first failure.
    pub initial: Option<Duration>,
    /// Growth per failure, at least 1.
    pub multiplier: Option<f64>,
    /// Longest delay.
    pub max: Option<Duration>,
    /// Draw the delay between zero and the computed one.
    pub full_jitter: Option<bool>,
}

/// Whether and when a family's circuit breaker opens; what is absent has its default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BreakerSpec {
    /// `false` switches it off.
    pub is_off: bool,
    /// Attempts are counted over this.
    pub window: Option<Duration>,
    /// Fewer attempts than this say nothing.
    pub min: Option<u32>,
    /// The share of failures that opens.
    pub ratio: Option<f64>,
    /// So many distinct events that fail in a row open, too.
    pub consecutive: Option<u32>,
    /// How long it stays open at first.
    pub open: Option<Duration>,
    /// How long at most.
    pub max: Option<Duration>,
    /// Probes that must go well in a row.
    pub close_after: Option<u32>,
}

/// Where an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Compiled in.
    BuiltIn,
    /// `registry.toml`.
    File {
        /// Where its table begins.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::File { line } => write!(f, "registry.toml:{line}"),
        }
    }
}

/// What an event name means. `None` = the configuration's default.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Which names.
    pub pattern: Pattern,
    /// Priority where nobody asks for another.
    pub priority: Priority,
    /// Window in which a dedup key is enforced.
    pub dedup_window: Option<Duration>,
    /// Derives a dedup key where the caller gave none.
    pub dedup_key: Option<DedupKey>,
    /// For people.
    pub description: String,
    /// Who runs it.
    pub handler: HandlerSpec,
    /// Dispatches at once in one process.
    pub concurrency: Option<u32>,
    /// Attempts before the dead letters.
    pub attempts: Option<u32>,
    /// How retries are spaced.
    pub backoff: Backoff,
    /// How long one dispatch may take.
    pub timeout: Option<Duration>,
    /// Starts per second.
    pub rate_per_s: Option<f64>,
    /// Share among families of one priority.
    pub weight: u32,
    /// One at a time, in order.
    pub ordered: bool,
    /// `concurrency` adapts to how its target does.
    pub aimd: bool,
    /// Older events are not run but dead-lettered as `expired`.
    pub max_age: Option<Duration>,
    /// Retry 4xx answers too.
    pub retry_client_errors: bool,
    /// Its circuit breaker.
    pub breaker: BreakerSpec,
    /// Where it comes from.
    pub origin: Origin,
}
