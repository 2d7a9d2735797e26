//! A run to create, and what becomes of it. The wire format is in `scripts/schedule.lua`.

use serde::ser::SerializeSeq as _;
use serde::{Serialize, Serializer};

use super::Wait;
use crate::streams::lane::Lane;
use crate::streams::trace::TraceContext;

/// A run to create.
#[derive(Debug, Clone, Serialize)]
pub struct NewRun {
    /// Its id.
    pub id: String,
    /// Function slug.
    #[serde(rename = "fn")]
    pub function: String,
    /// Function id.
    #[serde(rename = "fid", serialize_with = "text")]
    pub function_id: uuid::Uuid,
    /// App name.
    pub app: String,
    /// Where its work items go.
    #[serde(serialize_with = "text")]
    pub lane: Lane,
    /// Its events, JSON texts.
    #[serde(rename = "evs")]
    pub events: Vec<String>,
    /// Their public ids.
    #[serde(rename = "eids")]
    pub event_ids: Vec<String>,
    /// `<parent run>.<step hash>` of an invoked run.
    #[serde(rename = "corr", skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// `event`, `invoke`, `rerun`, `replay`, `cron`.
    pub cause: &'static str,
    /// The span that its event was dispatched in.
    #[serde(skip)]
    pub caused_by: Option<TraceContext>,
    /// Where its event stands in the log, ms and thousandths: its place among those who wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<f64>,
    /// Cancelled when not started within, ms.
    #[serde(rename = "st", skip_serializing_if = "Option::is_none")]
    pub start_timeout_ms: Option<u64>,
    /// Cancelled when not ended within, after its start, ms.
    #[serde(rename = "ft", skip_serializing_if = "Option::is_none")]
    pub finish_timeout_ms: Option<u64>,
    /// Events that cancel it, with what the index of waits holds for each.
    #[serde(serialize_with = "cancels")]
    pub cancels: Vec<(String, Wait)>,
    /// Flow control, for its event.
    #[serde(flatten)]
    pub bounds: Bounds,
}

impl NewRun {
    /// Its span: of its event's trace, or the root of one of its own.
    #[must_use]
    pub fn span(&self) -> TraceContext {
        match self.caused_by {
            Some(parent) => parent.child(&["run", &self.id]),
            None => TraceContext::root(&self.id),
        }
    }
}

/// Flow control of one function for one event: every key evaluated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// Limits of what runs at once.
    #[serde(rename = "lim", skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<SlotLimit>,
    /// Throttle of starts.
    #[serde(rename = "thr", skip_serializing_if = "Option::is_none")]
    pub throttle: Option<StartThrottle>,
    /// Seconds by which it goes before others.
    #[serde(rename = "pr", skip_serializing_if = "is_zero")]
    pub priority_s: i64,
    /// Its event goes into a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<IntoBatch>,
    /// Events over it are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Its event opens or goes into a debounce.
    #[serde(rename = "deb", skip_serializing_if = "Option::is_none")]
    pub debounce: Option<IntoDebounce>,
    /// One live run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub single: Option<Single>,
}

/// A limit of what runs at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotLimit {
    /// Group.
    pub g: String,
    /// Slots.
    pub n: u32,
    /// Scope and key as registered; names the limit within its function.
    pub k: String,
    /// Value of the key.
    pub v: String,
    /// Held from the run's start to its end.
    #[serde(rename = "r", skip_serializing_if = "std::ops::Not::not")]
    pub holds_run: bool,
    /// Shared by functions.
    #[serde(rename = "s", skip_serializing_if = "std::ops::Not::not")]
    pub is_shared: bool,
}

/// A throttle of starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StartThrottle {
    /// Group.
    pub g: String,
    /// Starts in a period.
    pub n: u32,
    /// On top of it, from idle.
    pub burst: u32,
    /// Period.
    pub ms: u64,
    /// Key as registered.
    pub k: String,
    /// Its value.
    pub v: String,
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IntoBatch {
    /// Group.
    pub g: String,
    /// Events that make it full.
    pub n: u32,
    /// Its age that makes it full.
    pub ms: u64,
    /// Its size that makes it full.
    pub bytes: u64,
    /// Key as registered.
    pub k: String,
    /// Its value.
    pub v: String,
}

/// A rate limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// Group.
    pub g: String,
    /// Runs in a period.
    pub n: u32,
    /// Period.
    pub ms: u64,
}

/// A debounce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IntoDebounce {
    /// Group.
    pub g: String,
    /// After the last event.
    pub ms: u64,
    /// After the first event, at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// The event's own time; an older event never replaces a newer one.
    pub ts: i64,
    /// Key as registered.
    pub k: String,
    /// Its value.
    pub v: String,
}

/// A singleton.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Single {
    /// Group.
    pub g: String,
    /// The live run is cancelled instead of the new one being skipped.
    #[serde(rename = "cancel", skip_serializing_if = "std::ops::Not::not")]
    pub cancels: bool,
}

/// What became of a run to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheduled {
    /// It is new.
    New,
    /// It was created before, or its event was taken before.
    Known {
        /// `SKIPPED` when it was skipped then, with the reason.
        skipped: Option<String>,
    },
    /// It is recorded as skipped: `singleton`, `paused`.
    Skipped {
        /// Why.
        why: String,
        /// The live run, of a singleton.
        by: Option<String>,
    },
    /// Over the rate limit: there is no run.
    Limited,
    /// Its event waits in a batch.
    Batched,
    /// Its event waits in a debounce.
    Debounced {
        /// An invoke whose event another one replaced, or which came too late.
        lost: Option<String>,
    },
    /// Its singleton is held by this run, which has to be cancelled first; nothing was written.
    Busy(String),
}

impl Scheduled {
    /// Reads a result of the scripts.
    pub(super) fn read(line: &str) -> Self {
        let mut parts = line.splitn(3, '|');
        let (what, first, second) =
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let present = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        match what {
            "known" => Self::Known { skipped: (first == "SKIPPED").then(|| second.to_owned()) },
            "skipped" => Self::Skipped { why: first.to_owned(), by: present(second) },
            "limited" => Self::Limited,
            "batched" => Self::Batched,
            "debounced" => Self::Debounced { lost: present(first) },
            "busy" => Self::Busy(first.to_owned()),
            _ => Self::New,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn cancels<S: Serializer>(cancels: &[(String, Wait)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(cancels.len()))?;
    for (event, wait) in cancels {
        list.serialize_element(&(wait.place(event), serde_json::to_string(wait).unwrap_or_default()))?;
    }
    list.end()
}
