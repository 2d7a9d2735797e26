//! Appending events: the types. See `Appender` for the script call.

use std::time::Duration;

use super::entry_id::EntryId;
use super::family::Family;
use super::json::JsonObject;
use super::lane::Lane;
use super::priority::Priority;
use crate::diagnose::{Diagnose, Exit};

/// One event to append, already validated and routed (see [`crate::ingest::admission`]).
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Supplied by the caller; `None` lets the appender make a UUIDv7. Supplied ids are remembered for at least 24 h.
    pub id: Option<String>,
    /// The event name.
    pub name: Family,
    /// Who emits.
    pub source: String,
    /// When it happened, ms; `None` is now.
    pub ts: Option<i64>,
    /// The payload.
    pub data: JsonObject,
    /// The lane.
    pub priority: Priority,
    /// Stored with the event; enforced only with [`NewEvent::dedup_window`].
    pub dedup_key: Option<String>,
    /// The family's window for `dedup_key`.
    pub dedup_window: Option<Duration>,
    /// A delivery that must be appended once within its own window, beside id and dedup key (webhook delivery ids).
    pub once: Option<Once>,
    /// Trace context.
    pub trace: Option<JsonObject>,
    /// The triage decision.
    pub triage: Option<JsonObject>,
    /// The emitter's own keys.
    pub meta: Option<JsonObject>,
    /// Ms since the epoch before which it must not be dispatched; `None` is at once.
    pub at: Option<i64>,
    /// No route is known for this name: journaled as such.
    pub unrouted: bool,
}

/// See [`NewEvent::once`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// What identifies the delivery, e.g. `github:<delivery id>`.
    pub key: String,
    /// How long it is remembered.
    pub window: Duration,
}

/// Which rule found a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DuplicateBy {
    /// The caller's event id was seen before.
    Id,
    /// The dedup key, or the delivery, was seen within its window.
    Window,
}

/// How safely an accepted event is stored when the answer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Redis answered.
    Memory,
    /// On the disk of the Redis that answered.
    Disk,
    /// On a replica as well.
    Replica,
}

/// What became of one event of an append. For a duplicate these are the first event's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Identity of the stored event.
    pub event_id: String,
    /// Where it is stored.
    pub lane: Lane,
    /// The stream id; `None` while it waits for its time (`at`).
    pub entry_id: Option<EntryId>,
    /// Set when nothing was appended because the event was known.
    pub duplicate: Option<DuplicateBy>,
    /// The class in force.
    pub durability: Durability,
}

/// Why an append was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One event is over the limit. Nothing was appended.
    #[error("event {index} (`{name}`) is {size} bytes; the limit is {limit} bytes (QUEUE_MAX_EVENT_BYTES)")]
    TooLarge {
        /// Position in the batch, from 0.
        index: usize,
        /// The event name.
        name: Family,
        /// Bytes of the whole entry.
        size: usize,
        /// The limit in force.
        limit: usize,
    },
    /// Redis is over its byte budget, or full. Nothing was appended.
    #[error("Redis is full: {used} of {limit} bytes are used, appends are refused")]
    Full {
        /// Bytes in use.
        used: u64,
        /// The budget in force.
        limit: u64,
    },
    /// Too many event names are known. Nothing was appended.
    #[error("there are {limit} event names already; `{name}` would be one more")]
    TooManyFamilies {
        /// The refused name.
        name: Family,
        /// QUEUE_MAX_FAMILIES.
        limit: usize,
    },
    /// Nothing was appended: Redis could not be reached.
    #[error("Redis can't be reached")]
    Unreachable(#[source] super::redis::Error),
    /// Nobody knows whether it was appended: repeat it with the same ids.
    #[error("Redis did not confirm the append in time; it may or may not be stored: {}", ids.join(", "))]
    UnknownOutcome {
        /// The events' ids.
        ids: Vec<String>,
        /// What happened to the connection.
        #[source]
        source: super::redis::Error,
    },
    /// Stored in memory, but not as safely as was asked for.
    #[error("appended, but not confirmed on {wanted:?}: {detail}")]
    NotDurable {
        /// The class asked for.
        wanted: Durability,
        /// What is missing.
        detail: String,
    },
    /// A reply or an encoding that can't be: a fault of ours.
    #[error("internal fault while appending: {0}")]
    Internal(String),
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::Full { .. } => "QUEUE_FULL",
            Self::TooManyFamilies { .. } => "TOO_MANY_FAMILIES",
            Self::Unreachable(_) => "REDIS_UNREACHABLE",
            Self::UnknownOutcome { .. } => "UNKNOWN_OUTCOME",
            Self::NotDurable { .. } => "NOT_DURABLE",
            Self::Internal(_) => "INTERNAL_ERROR",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::TooLarge { .. } => Exit::Usage,
            Self::Full { .. } | Self::TooManyFamilies { .. } => Exit::Refused,
            Self::Unreachable(_) => Exit::Unreachable,
            Self::UnknownOutcome { .. } | Self::NotDurable { .. } | Self::Internal(_) => Exit::Internal,
        }
    }

    fn http_status(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 413,
            Self::TooManyFamilies { .. } => 429,
            Self::Full { .. } | Self::Unreachable(_) | Self::UnknownOutcome { .. } | Self::NotDurable { .. } => 503,
            Self::Internal(_) => 500,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::TooLarge { .. } => {
                "Keep the payload in a file or object store and emit a reference, or raise QUEUE_MAX_EVENT_BYTES."
                    .into()
            }
            Self::Full { .. } => "joelclaw queue depth".into(),
            Self::TooManyFamilies { .. } => "Use fewer event names, or raise QUEUE_MAX_FAMILIES.".into(),
            Self::Unreachable(_) => "joelclaw config".into(),
            Self::UnknownOutcome { .. } => {
                "Repeat it with the same id: a stored event is answered as a duplicate.".into()
            }
            Self::NotDurable { .. } => "Check appendfsync or the replicas, then repeat it with the same id.".into(),
            Self::Internal(_) => "Report this with the output of joelclaw config.".into(),
        }
    }
}
