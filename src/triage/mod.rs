//! Triage: what an event's priority and dedup key should be, beside what sender and registry say.
//!
//! | mode | admission |
//! |---|---|
//! | off | nothing happens |
//! | shadow | the event is appended first; the decision is made beside it and only recorded |
//! | enforce | the decision is made within its limit, then the event is appended with it, or with the static values |
//!
//! Deterministic rules are asked first, then providers of [`crate::model`], in the order of QUEUE_TRIAGE_PROVIDER.
//!
//! | file | does |
//! |---|---|
//! | `flags` | which mode an event has; which families may be shaped at all |
//! | `rules` | `triage.toml` |
//! | `prompt` | what a model is told |
//! | `decision` | what an answer may be, and what is done with it |
//! | `records` | the journal's `queue.triage.*` |
//! | `worker` | decides in shadow and writes the journal, behind bounded queues |
//!
//! # Invariants
//! 1. Triage cannot name a handler: [`decision::Suggestion`] has no field for one.
//! 2. [`Triage::decide`] returns within its limit, and never fails: a fallback is the static values.
//! 3. Shadow adds nothing to an append but a bounded, non-blocking send. Too many, and one is skipped and counted.
//! 4. Answers and payloads are never journaled.

pub mod decision;
pub mod flags;
mod prompt;
mod records;
pub mod rules;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::TriageMode;
use crate::model::{Models, Provider, Request};
use crate::registry::watch::RegistryHandle;
use crate::streams::family::Family;
use crate::streams::json::JsonObject;
use crate::streams::priority::Priority;
use crate::streams::records::Fact;
use decision::{Decision, Fallback, RouteCheck, Suggestion};
use flags::{Flags, Resolved};
use rules::RulesHandle;

pub use worker::{Left, Worker};

/// Shadow decisions that may wait.
pub const SHADOW_QUEUE: usize = 1024;
/// Bytes of payload that may wait with them.
const SHADOW_BYTES: usize = 32 << 20;
/// Records that may wait to be journaled.
const RECORD_QUEUE: usize = 4096;

/// An event as triage looks at it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Matter {
    /// Its id.
    pub event_id: String,
    /// Its name.
    pub name: Family,
    /// Who emits.
    pub source: String,
    /// When it happened, ms.
    pub ts: i64,
    /// The payload.
    pub data: JsonObject,
    /// The emitter's own keys.
    pub meta: Option<JsonObject>,
    /// Trace context.
    pub trace: Option<JsonObject>,
    /// The static priority.
    #[serde(with = "label")]
    pub priority: Priority,
    /// The static key.
    pub dedup_key: Option<String>,
    /// The family's window, ms.
    pub dedup_window_ms: Option<u64>,
    /// `inngest`, `http`, …
    pub handler_type: String,
    /// The handler, without secrets.
    pub handler_target: String,
}

/// A priority as its label, in both directions.
mod label {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::streams::priority::Priority;

    pub fn serialize<S: Serializer>(priority: &Priority, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(priority.label())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Priority, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Matter {
    /// The name as flags and rules match it.
    #[must_use]
    pub fn family(&self) -> String {
        self.name.as_str().to_lowercase()
    }

    fn baseline(&self) -> Suggestion {
        Suggestion::baseline(self.priority, self.dedup_key.clone())
    }

    /// The trace's, else the event's.
    fn correlation_id(&self) -> String {
        let of_trace = self.trace.as_ref().and_then(|trace| {
            let trace = trace.to_value();
            ["correlationId", "correlation_id"].iter().find_map(|key| trace[*key].as_str().map(str::to_owned))
        });
        of_trace.unwrap_or_else(|| self.event_id.clone())
    }

    #[cfg(test)]
    fn example() -> Self {
        Self {
            event_id: "e1".into(),
            #[allow(clippy::unwrap_used)]
            name: "discovery/noted".parse().unwrap(),
            source: "test".into(),
            ts: 7,
            data: JsonObject::default(),
            meta: None,
            trace: None,
            priority: Priority::P2,
            dedup_key: None,
            dedup_window_ms: Some(60_000),
            handler_type: "inngest".into(),
            handler_target: "discovery/noted".into(),
        }
    }
}

/// A shadow decision that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The event, as it was appended.
    pub matter: Matter,
}

/// A key of a model that took effect in `verify`: to be noted, so that a declined match is told.
#[derive(Debug, Clone)]
pub struct ModelKey {
    family: Family,
    key: String,
    data_hash: String,
    event_id: String,
    window: Duration,
}

/// What the worker writes down.
#[derive(Debug)]
enum Note {
    Facts(Vec<Fact>),
    Key(ModelKey),
}

/// Triage of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Triage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    flags: ArcSwap<Flags>,
    registry: RegistryHandle,
    rules: RulesHandle,
    models: Models,
    jobs: mpsc::Sender<Job>,
    notes: mpsc::Sender<Note>,
    waiting_bytes: AtomicUsize,
    overflow: AtomicU64,
}

impl Triage {
    /// Triage, and the worker that has to run for it.
    #[must_use]
    pub fn new(flags: Flags, registry: RegistryHandle, rules: RulesHandle, models: Models) -> (Self, Worker) {
        let (jobs, waiting) = mpsc::channel(SHADOW_QUEUE);
        let (notes, told) = mpsc::channel(RECORD_QUEUE);
        let inner = Inner {
            flags: ArcSwap::from_pointee(flags),
            registry,
            rules,
            models,
            jobs,
            notes,
            waiting_bytes: AtomicUsize::new(0),
            overflow: AtomicU64::new(0),
        };
        let triage = Self { inner: Arc::new(inner) };
        let worker = Worker::new(triage.clone(), waiting, told);
        (triage, worker)
    }

    /// The flags in force.
    #[must_use]
    pub fn flags(&self) -> Arc<Flags> {
        self.inner.flags.load_full()
    }

    /// Other flags, from the next event on.
    pub fn replace_flags(&self, flags: Flags) {
        self.inner.flags.store(Arc::new(flags));
    }

    /// The rules of `triage.toml`.
    #[must_use]
    pub fn rules(&self) -> &RulesHandle {
        &self.inner.rules
    }

    /// The mode of an event name.
    #[must_use]
    pub fn resolve(&self, name: &Family) -> Resolved {
        let flags = self.inner.flags.load();
        if flags.base == TriageMode::Off {
            return flags.resolve(name.as_str(), true);
        }
        flags.resolve(name.as_str(), self.inner.registry.current().lookup(name).is_some())
    }

    /// Handler type and target as the registry has them.
    #[must_use]
    pub fn handler(&self, name: &Family) -> Option<(String, String)> {
        let registry = self.inner.registry.current();
        let handler = &registry.lookup(name)?.handler;
        Some((handler.kind().to_owned(), handler.target().into_owned()))
    }

    /// Decides about one event, within the limit of its mode and `cap`.
    pub async fn decide(&self, matter: &Matter, mode: TriageMode, cap: Option<Duration>) -> Decision {
        let flags = self.flags();
        let limit = flags.timeout(mode);
        let started = Instant::now();
        let deadline = started + cap.map_or(limit, |cap| cap.min(limit));
        let mut decision = if mode == TriageMode::Off {
            Decision::fallback(mode, matter.family(), matter.baseline(), Fallback::Disabled, None)
        } else {
            self.ask(matter, mode, &flags, deadline).await
        };
        if mode != TriageMode::Off {
            decision.latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        decision
    }

    async fn ask(&self, matter: &Matter, mode: TriageMode, flags: &Flags, deadline: Instant) -> Decision {
        let suggested = |suggestion, provider| {
            Decision::suggested(mode, matter.family(), matter.baseline(), suggestion, provider, flags.dedup)
        };
        // Rules cost nothing, so a place after a model only says when they are asked.
        let mut chain: &[Provider] = &flags.chain;
        if chain.first() == Some(&Provider::Rules) {
            if let Some(ruled) = self.inner.rules.current().decide(matter) {
                return Decision { rule: ruled.rule, ..suggested(ruled.suggestion, Provider::Rules) };
            }
            chain = &chain[1..];
            if chain.is_empty() {
                return suggested(no_rule(matter), Provider::Rules);
            }
        }
        let is_ruled_last = chain.contains(&Provider::Rules);
        let prompt = prompt::prompt(matter);
        let caller = flags::caller(mode);
        let request = Request { caller, chain, model: &flags.model, prompt: &prompt, deadline };
        let refused = |why, detail| Decision::fallback(mode, matter.family(), matter.baseline(), why, Some(detail));
        match self.inner.models.ask(request).await {
            Err(error) if is_ruled_last && error.reason() != "timeout" => {
                match self.inner.rules.current().decide(matter) {
                    Some(ruled) => Decision { rule: ruled.rule, ..suggested(ruled.suggestion, Provider::Rules) },
                    None => suggested(no_rule(matter), Provider::Rules),
                }
            }
            Err(error) => {
                let why = if error.reason() == "timeout" { Fallback::Timeout } else { Fallback::ModelError };
                refused(why, error.detail())
            }
            Ok(answer) => match decision::parse(&answer.text) {
                Ok(suggestion) => Decision {
                    model: Some(answer.model),
                    detail: answer.detail,
                    ..suggested(suggestion, answer.provider)
                },
                Err(wrong) => Decision {
                    provider: Some(answer.provider),
                    model: Some(answer.model),
                    output_hash: Some(hex::encode(Sha256::digest(answer.text.as_bytes()))),
                    ..refused(wrong.fallback, wrong.detail)
                },
            },
        }
    }

    /// Writes a decision down, beside whatever goes on.
    pub fn record(&self, matter: &Matter, decision: &Decision) {
        let facts = records::facts(matter, decision, &self.flags());
        self.note(Note::Facts(facts));
    }

    fn note(&self, note: Note) {
        if self.inner.notes.try_send(note).is_err() {
            tracing::warn!("too many triage records wait for Redis; one is dropped");
        }
    }

    /// A shadow decision about an event that was just appended. Never waits.
    pub fn shadow(&self, matter: Matter) {
        let bytes = matter.data.as_str().len();
        let waiting = self.inner.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        if waiting + bytes > SHADOW_BYTES || self.inner.jobs.try_send(Job { matter }).is_err() {
            self.inner.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.inner.overflow.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Notes that an event was kept under a model's key.
    pub(crate) fn keyed(&self, family: Family, key: String, data_hash: String, event_id: String, window: Duration) {
        self.note(Note::Key(ModelKey { family, key, data_hash, event_id, window }));
    }
}

/// What rules say when none matched and nobody else is asked.
fn no_rule(matter: &Matter) -> Suggestion {
    Suggestion {
        route_check: RouteCheck::Confirm,
        reasoning: Some("no rule matched".into()),
        ..Suggestion::baseline(matter.priority, None)
    }
}
