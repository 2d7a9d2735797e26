//! Handlers: what the registry may name as the target of an event.
//!
//! A handler is given one [`Dispatch`] and answers one [`Outcome`]; it never talks to Redis. Retry, dead letters and
//! acknowledgement are decided by the drainer from the outcome.

pub mod answer;
pub mod both;
mod client;
pub mod command;
pub mod http;
pub mod identity;
pub mod inngest;
pub mod local;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::streams::entry_id::EntryId;
use crate::streams::envelope::Envelope;
use crate::streams::trace::TraceContext;

/// One grant of one event to a handler.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// The event.
    pub envelope: Arc<Envelope>,
    /// Its stream id.
    pub entry_id: EntryId,
    /// Which try this is, from 1: the entry's delivery count.
    pub attempt: u32,
    /// Rises with every grant of this entry and is never reused; sent as `X-Fence`.
    pub fence: u64,
    /// How often an operator sent this event round again.
    pub redrives: u32,
    /// How long the handler may take. The drainer enforces it too; a handler uses it to clean up after itself.
    pub timeout: Duration,
    /// Cancelled when the drainer stops and its deadline has passed, or when the lease is lost.
    pub cancel: CancellationToken,
}

impl Dispatch {
    /// The span of this try, for whoever works on it.
    #[must_use]
    pub fn trace(&self) -> TraceContext {
        TraceContext::process(&self.envelope.id, TraceContext::of_envelope(&self.envelope), self.attempt)
    }
}

/// How a dispatch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done; the entry is acknowledged.
    Done,
    /// Worth another try, after the backoff and not before `not_before`.
    Retry {
        /// What happened: a status and at most 500 characters of the answer.
        error: String,
        /// From `Retry-After`.
        not_before: Option<Duration>,
        /// HTTP status or exit code.
        status: Option<i32>,
    },
    /// Will never work: straight to the dead letters.
    Fail {
        /// The dead letter's reason, e.g. `rejected` (4xx), `permanent_exit`, `bad_config`.
        reason: &'static str,
        /// What happened.
        error: String,
        /// HTTP status or exit code.
        status: Option<i32>,
    },
    /// Cancelled before it had an effect; handed back without an attempt charged.
    Cancelled,
}

/// Something that can run events.
pub trait Handler: Send + Sync {
    /// `inngest`, `http`, `command` or `local`: `handlerType` of the journal.
    fn kind(&self) -> &'static str;
    /// URL without secrets, program or function name: `handlerTarget` of the journal.
    fn target(&self) -> &str;
    /// It ends at once and takes microseconds, so that a task of its own would cost more than it does: the drainer's
    /// loop runs it in place. One that does not end at its first poll is a failed attempt.
    fn ends_at_once(&self) -> bool {
        false
    }
    /// Runs one event. Must not panic, must end soon after `dispatch.cancel`.
    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome>;
}
