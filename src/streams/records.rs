//! Journal records: what happened, as one value from which log lines, counters and projections derive.
//!
//! The two kinds that occur per event on the hot path, appends and dispatches, are rows of a table, so that a batch
//! of 128 costs a few kilobytes; everything else is a [`Fact`]. Wire format: MessagePack arrays in declaration order;
//! fields are only ever added at the end of a row, with a default.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::entry_id::EntryId;
use super::trace::TraceContext;

/// One element of a journal batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// Events offered to `append.lua`; what became of each is in the batch's field `s`.
    #[serde(rename = "enq")]
    Enqueue(Enqueue),
    /// Dispatches that ended well.
    #[serde(rename = "dis")]
    Dispatch(Dispatches),
    /// Dispatches that had started but not ended when the batch was written.
    #[serde(rename = "sta")]
    Started(Dispatches),
    /// Anything else.
    #[serde(rename = "fac")]
    Fact(Fact),
}

/// Rows of appended events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enqueue {
    /// Lanes, as the rows refer to them.
    pub lanes: Vec<String>,
    /// Sources, as the rows refer to them.
    pub sources: Vec<String>,
    /// Runs of events, in the order of the call.
    pub rows: Vec<EnqueueRow>,
}

/// Offered events: lane, id of the first, source, bytes of each entry, 1 when no route was known, who caused it. A row
/// of several stands for ids that follow each other (see [`nth_id`]), which is what the appender makes for a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnqueueRow(pub u16, pub PackedId, pub u16, pub Vec<u32>, pub u8, #[serde(default)] pub Option<TraceContext>);

impl Enqueue {
    /// Lane, event id, source, bytes and the unrouted mark of every event, in order.
    pub fn events(&self) -> impl Iterator<Item = (u16, String, u16, u32, u8)> + '_ {
        self.rows.iter().flat_map(|EnqueueRow(lane, first, source, sizes, unrouted, _)| {
            let base = uuid::Uuid::try_parse(&first.0).ok().filter(|_| sizes.len() > 1);
            sizes.iter().enumerate().map(move |(n, bytes)| {
                let id = match base {
                    Some(base) => nth_id(base, n).to_string(),
                    None => first.0.clone(),
                };
                (*lane, id, *source, *bytes, *unrouted)
            })
        })
    }
}

/// The `n`-th id of a run: `n` is added to the lowest 32 bits, without a carry. Those bits of a UUIDv7 are random and
/// the counter above them is another for each run, so runs don't meet.
#[must_use]
pub const fn nth_id(first: uuid::Uuid, n: usize) -> uuid::Uuid {
    const LOW: u128 = u32::MAX as u128;
    let bits = first.as_u128();
    uuid::Uuid::from_u128((bits & !LOW) | (bits.wrapping_add(n as u128) & LOW))
}

/// Rows of dispatches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatches {
    /// Lanes, as the rows refer to them.
    pub lanes: Vec<String>,
    /// Handler kind and target, as the rows refer to them.
    pub handlers: Vec<(String, String)>,
    /// One per dispatch.
    pub rows: Vec<DispatchRow>,
}

/// One dispatch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DispatchRow {
    /// Index into `lanes`.
    pub lane: u16,
    /// Entry id, milliseconds part.
    pub ms: u64,
    /// Entry id, sequence part.
    pub seq: u64,
    /// Event id.
    pub id: PackedId,
    /// Index into `handlers`.
    pub handler: u16,
    /// Which try, from 1.
    pub attempt: u32,
    /// From append to start, ms.
    pub wait_ms: u64,
    /// When it started, ms since the epoch by the drainer's estimate of Redis's clock.
    pub started_ms: u64,
    /// Monotonic duration, µs; 0 in a started row.
    pub duration_us: u64,
    /// The stored priority, when aging had raised the effective one.
    pub promoted_from: Option<u8>,
    /// Its start was journaled by an earlier batch.
    pub start_known: bool,
    /// Who caused the event, where that is known.
    #[serde(default)]
    pub trace: Option<TraceContext>,
}

/// An event id: a canonical UUID takes 16 bytes instead of 36.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedId(pub String);

impl Serialize for PackedId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match uuid::Uuid::try_parse(&self.0) {
            Ok(uuid) if self.0.len() == 36 && !self.0.bytes().any(|b| b.is_ascii_uppercase()) => {
                serializer.serialize_bytes(uuid.as_bytes())
            }
            _ => serializer.serialize_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for PackedId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = PackedId;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an event id")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PackedId, E> {
                Ok(PackedId(text.to_owned()))
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<PackedId, E> {
                uuid::Uuid::from_slice(bytes).map(|uuid| PackedId(uuid.to_string())).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How much a record matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For whoever looks into something; emitted by others only.
    Debug,
    /// Normal.
    Info,
    /// Degraded, but the operation worked.
    Warn,
    /// The operation failed.
    Error,
    /// And so did everything that rests on it; emitted by others only.
    Fatal,
}

impl Level {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }

    /// By its name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        [Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Fatal].into_iter().find(|level| level.as_str() == name)
    }
}

/// One thing that happened. Names are those of the action catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    /// Dotted name, e.g. `queue.dispatch.failed`.
    pub action: Cow<'static, str>,
    /// Module name, e.g. `queue-drainer`.
    pub component: Cow<'static, str>,
    /// How much it matters.
    pub level: Level,
    /// Whether the operation succeeded.
    pub success: bool,
    /// What went wrong.
    pub error: Option<String>,
    /// The event it is about.
    pub event_id: Option<String>,
    /// Its stream id.
    pub stream_id: Option<String>,
    /// Its lane.
    pub lane: Option<String>,
    /// Everything else.
    pub metadata: Map<String, Value>,
}

impl Fact {
    /// A successful fact without details.
    #[must_use]
    pub fn new(component: &'static str, action: &'static str) -> Self {
        Self {
            action: Cow::Borrowed(action),
            component: Cow::Borrowed(component),
            level: Level::Info,
            success: true,
            error: None,
            event_id: None,
            stream_id: None,
            lane: None,
            metadata: Map::new(),
        }
    }

    /// The same, failed.
    #[must_use]
    pub fn failed(mut self, error: impl Into<String>) -> Self {
        self.level = Level::Error;
        self.success = false;
        self.error = Some(error.into());
        self
    }

    /// The same, as a warning.
    #[must_use]
    pub const fn warn(mut self) -> Self {
        self.level = Level::Warn;
        self
    }

    /// Names the event.
    #[must_use]
    pub fn event(mut self, id: impl Into<String>) -> Self {
        self.event_id = Some(id.into());
        self
    }

    /// Names the entry.
    #[must_use]
    pub fn entry(mut self, lane: &impl ToString, id: EntryId) -> Self {
        self.lane = Some(lane.to_string());
        self.stream_id = Some(id.to_string());
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }
}

/// A fact and when it was journaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The journal batch. Its ms part is when, by Redis's clock.
    pub id: EntryId,
    /// What happened.
    pub fact: Fact,
}

impl Entry {
    /// The record in the one shape that telemetry has everywhere.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let fact = &self.fact;
        let mut metadata = fact.metadata.clone();
        let lift = |key: &str, value: &Option<String>, metadata: &mut Map<String, Value>| {
            if let Some(value) = value {
                metadata.entry(key.to_owned()).or_insert_with(|| Value::from(value.clone()));
            }
        };
        lift("eventId", &fact.event_id, &mut metadata);
        lift("streamId", &fact.stream_id, &mut metadata);
        lift("lane", &fact.lane, &mut metadata);
        let mut json = serde_json::json!({
            "id": self.id.to_string(),
            "timestamp": self.id.ms,
            "level": fact.level,
            "source": "system-bus",
            "component": fact.component,
            "action": fact.action,
            "success": fact.success,
            "metadata": metadata,
        });
        if let (Some(error), Some(object)) = (&fact.error, json.as_object_mut()) {
            object.insert("error".into(), Value::from(error.clone()));
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_survives_the_round_trip_and_uuids_are_short() {
        let uuid = uuid::Uuid::now_v7().to_string();
        let rows = vec![
            EnqueueRow(0, PackedId(uuid.clone()), 0, vec![260, 261], 0, None),
            EnqueueRow(0, PackedId("subscription:a:b".into()), 0, vec![260], 1, None),
            EnqueueRow(0, PackedId(uuid.to_uppercase()), 0, vec![260], 0, None),
        ];
        let batch = vec![
            Record::Enqueue(Enqueue { lanes: vec!["a:p1".into()], sources: vec!["cli".into()], rows }),
            Record::Fact(Fact::new("queue", "queue.dead").event("x").with("attempts", 3)),
        ];
        let bytes = rmp_serde::to_vec(&batch).unwrap();
        assert_eq!(rmp_serde::from_slice::<Vec<Record>>(&bytes).unwrap(), batch);
        let run = EnqueueRow(0, PackedId(uuid), 0, vec![260; 100], 0, None);
        let one = rmp_serde::to_vec(&run).unwrap();
        assert!(one.len() <= 330, "{} bytes", one.len());
        // As rows were before they told who caused an event.
        let old = rmp_serde::to_vec(&(0, PackedId("a".into()), 0, vec![260], 0)).unwrap();
        assert_eq!(rmp_serde::from_slice::<EnqueueRow>(&old).unwrap().5, None);
        let batch = Enqueue { lanes: Vec::new(), sources: Vec::new(), rows: vec![run] };
        let ids: std::collections::HashSet<String> = batch.events().map(|(_, id, ..)| id).collect();
        assert_eq!(ids.len(), 100);
    }
}
