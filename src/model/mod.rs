//! The model: one interface to whatever answers a prompt, for triage and for the observer.
//!
//! A [`Models`] is one per process. It asks a chain of providers, in order, within one deadline; it bounds how many
//! requests run and wait, and stops asking a provider that keeps failing. It knows nothing of what is asked: prompts,
//! schemas and rules are their owners'.
//!
//! | file | does |
//! |---|---|
//! | `command` | a program: prompt on stdin, answer on stdout |
//! | `http` | OpenAI- and Anthropic-compatible endpoints |
//! | `key` | where their key comes from |
//! | `circuit` | which provider is left alone for a while |
//! | `answer` | the one JSON value in an answer's text |
//!
//! # Invariants
//! 1. [`Models::ask`] returns at the deadline or before, whatever a program or a server does.
//! 2. An attempt never gets a fresh budget: the deadline is that of the whole chain.
//! 3. No key is in an argument vector, an error, a record or a `Debug`.

pub mod answer;
mod circuit;
mod command;
mod http;
pub mod key;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use circuit::Circuits;
pub use key::KeySource;

/// Longest answer, bytes.
pub const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// Requests that wait for a slot; one more is refused.
const WAITING_ROOM: usize = 64;
/// Longest [`Error::detail`], characters.
pub const MAX_DETAIL_CHARS: usize = 200;

/// Who answers. `rules` is the caller's own, and never asked here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The caller's deterministic rules.
    Rules,
    /// A program.
    Command,
    /// An OpenAI-compatible endpoint.
    OpenAi,
    /// An Anthropic-compatible endpoint.
    Anthropic,
    /// Nobody.
    None,
}

impl Provider {
    /// The word in settings and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Command => "command",
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::None => "none",
        }
    }

    /// The provider of that name, in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Rules, Self::Command, Self::OpenAi, Self::Anthropic, Self::None];
        all.into_iter().find(|provider| provider.as_str().eq_ignore_ascii_case(text.trim()))
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who asks. Each has circuits of its own, so a failing prompt of one doesn't silence the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Triage beside admission.
    TriageShadow,
    /// Triage that an append waits for.
    TriageEnforce,
    /// The observer. One slot is kept for it.
    Observer,
}

impl Caller {
    /// With less time left than this, an attempt isn't started.
    const fn least(self) -> Duration {
        match self {
            Self::TriageEnforce => Duration::from_millis(50),
            Self::TriageShadow | Self::Observer => Duration::from_secs(1),
        }
    }
}

/// What is asked. Has no `Debug` of its texts: they hold payloads.
#[derive(Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The instructions.
    pub system: String,
    /// The matter.
    pub user: String,
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prompt({} + {} bytes)", self.system.len(), self.user.len())
    }
}

/// What was answered. Never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The text, trimmed.
    pub text: String,
    /// Who answered.
    pub provider: Provider,
    /// What it says it used, else what was asked for.
    pub model: String,
    /// `exit 1` of a program that answered all the same.
    pub detail: Option<String>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({} by {}, {} bytes)", self.model, self.provider, self.text.len())
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The chain has nobody to ask.
    #[error("no_provider")]
    NoProvider,
    /// The deadline passed.
    #[error("no answer in time")]
    Timeout,
    /// The process stops.
    #[error("shutdown")]
    Shutdown,
    /// The program did not start.
    #[error("`{program}` can't be started: {reason}")]
    Spawn {
        /// Its name.
        program: String,
        /// Why.
        reason: String,
    },
    /// The program failed and said nothing.
    #[error("exit {0}")]
    Exit(i32),
    /// The program was ended by a signal, not ours, and said nothing.
    #[error("signal {0}")]
    Signal(i32),
    /// The server refused or failed.
    #[error("http {0}")]
    Http(u16),
    /// The server could not be reached, or broke off.
    #[error("connection: {0}")]
    Connection(&'static str),
    /// The answer holds no text.
    #[error("empty output")]
    Empty,
    /// The answer is larger than anybody needs.
    #[error("the answer is over {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    /// The key can't be had.
    #[error("api key: {0}")]
    Key(&'static str),
    /// This provider failed too often of late.
    #[error("circuit_open")]
    CircuitOpen,
    /// Too many requests wait already.
    #[error("busy")]
    Busy,
}

impl Error {
    /// The `fallbackReason` that stands for it.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Timeout | Self::Shutdown => "timeout",
            _ => "model_error",
        }
    }

    /// A short text for records: never a key, an answer or a payload.
    #[must_use]
    pub fn detail(&self) -> String {
        self.to_string().chars().take(MAX_DETAIL_CHARS).collect()
    }

    /// Counts against the provider.
    const fn is_failure(&self) -> bool {
        !matches!(self, Self::NoProvider | Self::Shutdown | Self::CircuitOpen | Self::Busy)
    }
}

/// How providers are reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Requests in flight; one slot is the observer's.
    pub concurrency: usize,
    /// The program and its arguments, with `{model}` and `{system}`.
    pub command: Vec<String>,
    /// The HTTP endpoint; unset is the vendor's.
    pub base_url: Option<String>,
    /// Its key.
    pub key: KeySource,
}

impl Settings {
    /// From the configuration.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let own = &config.model;
        let key = KeySource::new(own.api_key.clone(), own.api_key_file.clone(), own.api_key_command.clone());
        Self { concurrency: own.concurrency, command: own.command.clone(), base_url: own.base_url.clone(), key }
    }
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who asks.
    pub caller: Caller,
    /// Whom to ask, in order; `rules` and `none` are passed over.
    pub chain: &'a [Provider],
    /// The model's name, as `anthropic/claude-haiku-4-5`.
    pub model: &'a str,
    /// What is asked.
    pub prompt: &'a Prompt,
    /// When the caller goes on without an answer.
    pub deadline: Instant,
}

/// The inference service of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Models {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    command: command::CommandProvider,
    http: http::HttpProvider,
    all: Arc<Semaphore>,
    triage: Arc<Semaphore>,
    waiting: AtomicUsize,
    circuits: Circuits,
    stop: CancellationToken,
}

/// One slot of the service; of triage's share as well where triage asks.
struct Slots {
    _share: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Models {
    /// Asks nobody yet. `stop` ends every request at once.
    #[must_use]
    pub fn new(settings: Settings, stop: CancellationToken) -> Self {
        let concurrency = settings.concurrency.max(1);
        let inner = Inner {
            command: command::CommandProvider::new(settings.command),
            http: http::HttpProvider::new(settings.base_url, settings.key),
            all: Arc::new(Semaphore::new(concurrency)),
            triage: Arc::new(Semaphore::new((concurrency - 1).max(1))),
            waiting: AtomicUsize::new(0),
            circuits: Circuits::default(),
            stop,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Asks the chain, one provider after the other, until one answers.
    pub async fn ask(&self, request: Request<'_>) -> Result<Answer, Error> {
        tokio::select! {
            answer = tokio::time::timeout_at(request.deadline, self.within(request)) => match answer {
                Ok(answer) => answer,
                Err(_) => Err(Error::Timeout),
            },
            () = self.inner.stop.cancelled() => Err(Error::Shutdown),
        }
    }

    async fn within(&self, request: Request<'_>) -> Result<Answer, Error> {
        let providers = request.chain.iter().filter(|one| !matches!(one, Provider::Rules | Provider::None));
        let (mut last, began) = (Error::NoProvider, Instant::now());
        for &provider in providers {
            let circuit = (request.caller, provider);
            if !self.inner.circuits.may_ask(circuit) {
                last = Error::CircuitOpen;
                continue;
            }
            // A wait for a slot says nothing about the provider.
            let slots = self.slots(request.caller).await?;
            if !self.inner.circuits.may_ask(circuit) {
                last = Error::CircuitOpen;
                continue;
            }
            let left = request.deadline.saturating_duration_since(Instant::now());
            if left < request.caller.least() {
                return Err(if last == Error::NoProvider { Error::Timeout } else { last });
            }
            // Nor does a deadline that left it less than half of the time.
            let is_fair = left * 2 >= request.deadline.saturating_duration_since(began);
            // Until its end is known, a dropped request (deadline, stop) counts by how it was dropped.
            let attempt = self.inner.circuits.begin(circuit, &self.inner.stop, is_fair.then_some(request.deadline));
            let answer = match provider {
                Provider::Command => self.inner.command.ask(&request).await,
                _ => self.inner.http.ask(provider, &request).await,
            };
            drop(slots);
            match answer {
                Ok(answer) => {
                    attempt.succeeded();
                    return Ok(answer);
                }
                Err(error) => {
                    if error.is_failure() && (is_fair || error.reason() != "timeout") {
                        attempt.failed()
                    } else {
                        attempt.withdraw()
                    }
                    if error.reason() == "timeout" {
                        return Err(error);
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn slots(&self, caller: Caller) -> Result<Slots, Error> {
        let inner = &self.inner;
        let share = if caller == Caller::Observer { None } else { Some(self.slot(&inner.triage).await?) };
        Ok(Slots { _share: share, _all: self.slot(&inner.all).await? })
    }

    async fn slot(&self, of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = of.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let Some(_seat) = Seat::take(&self.inner.waiting) else { return Err(Error::Busy) };
        of.clone().acquire_owned().await.map_err(|_| Error::Shutdown)
    }
}

/// A seat in the waiting room, free again when the request is dropped.
struct Seat<'a>(&'a AtomicUsize);

impl<'a> Seat<'a> {
    fn take(waiting: &'a AtomicUsize) -> Option<Self> {
        let taken = waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < WAITING_ROOM).then_some(n + 1));
        taken.ok().map(|_| Self(waiting))
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
