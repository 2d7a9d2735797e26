//! Appending events: what is asked, what is answered, and the [`Appender`] that does it.
//!
//! Appends from many callers are merged: while one script call is under way, whatever arrives goes into the next, up
//! to [`BATCH_MAX`] events. So a burst of single events costs what a batch costs, and nobody waits for a timer.
//!
//! # Invariants
//! 1. `Ok` is given only after Redis said yes under the durability class asked for.
//! 2. A call carries a random token; its answers are kept for ten minutes. A retry after a lost connection is answered
//!    from there, so an event is appended once even when its id was made here.
//! 3. Sizes are checked before the first write: a batch with one bad event appends nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::bus::Bus;
use super::entry_id::EntryId;
use super::envelope::{ENVELOPE_VERSION, Envelope};
use super::family::Family;
use super::journal;
use super::json::JsonObject;
use super::keys::MAX_BLOCKING_LANES;
use super::lane::Lane;
use super::priority::Priority;
use super::records::{Enqueue, EnqueueRow, PackedId, Record, nth_id};
use super::scripts;
use super::trace::TraceContext;
use crate::diagnose::{Diagnose, Exit};

/// Most events in one script call.
pub const BATCH_MAX: usize = 512;
/// Script calls under way at once: one that Redis runs, one that waits in its socket. Measured: two append 8 % more than
/// four, because groups grow larger and nobody is woken in vain.
const CALLS_IN_FLIGHT: usize = 2;
/// How long the answers of a call are kept, ms.
const CALL_PX: u64 = 600_000;

/// One event to append, already validated and routed (see [`crate::ingest::admission`]).
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Supplied by the caller; `None` lets the appender make a UUIDv7. Supplied ids are remembered for at least 24 h.
    pub id: Option<String>,
    /// The id was drawn for this event alone, so there is nothing to remember.
    pub id_is_fresh: bool,
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
    /// What is remembered for `dedup_key`, where it isn't the key alone: a model's key counts with the data only.
    pub dedup_mark: Option<String>,
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

impl NewEvent {
    /// An event with nothing but a name, a source and data: priority P2, an id made here, no dedup.
    #[must_use]
    pub fn new(name: Family, source: impl Into<String>, data: JsonObject) -> Self {
        Self {
            id: None,
            id_is_fresh: false,
            name,
            source: source.into(),
            ts: None,
            data,
            priority: Priority::default(),
            dedup_key: None,
            dedup_window: None,
            dedup_mark: None,
            once: None,
            trace: None,
            triage: None,
            meta: None,
            at: None,
            unrouted: false,
        }
    }
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
#[derive(Debug, Clone, thiserror::Error)]
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
    Unreachable(#[source] Arc<super::redis::Error>),
    /// Nobody knows whether it was appended: repeat it with the same ids.
    #[error("Redis did not confirm the append in time; it may or may not be stored: {}", ids.join(", "))]
    UnknownOutcome {
        /// The events' ids.
        ids: Vec<String>,
        /// What happened to the connection.
        #[source]
        source: Arc<super::redis::Error>,
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

/// Limits and durability of appends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Most bytes of one entry.
    pub max_event_bytes: usize,
    /// Most event names.
    pub max_families: usize,
    /// How long caller-supplied ids are remembered; zero is not at all.
    pub seen_window: Duration,
    /// When appends are refused.
    pub memory_budget: MemoryBudget,
    /// The class asked for.
    pub durability: Durability,
    /// How long one append may try before it reports failure.
    pub deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_event_bytes: 512 * 1024,
            max_families: 10_000,
            seen_window: Duration::from_secs(86_400),
            memory_budget: MemoryBudget::Percent(80),
            durability: Durability::Memory,
            deadline: Duration::from_secs(2),
        }
    }
}

/// How full Redis may get before appends are refused, so that a reserve is left for control and completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBudget {
    /// So much of `maxmemory`; no limit where that is 0.
    Percent(u8),
    /// So many bytes.
    Bytes(u64),
    /// Only Redis's own limit.
    Off,
}

/// Appends events. Cheap to clone; ends with its last clone.
#[derive(Debug, Clone)]
pub struct Appender {
    requests: mpsc::Sender<Request>,
    settings: Arc<Settings>,
}

#[derive(Debug)]
struct Request {
    events: Vec<Encoded>,
    answer: oneshot::Sender<Result<Vec<Appended>, Error>>,
}

/// One event, ready for the script.
#[derive(Debug, Clone)]
struct Encoded {
    lane: Lane,
    source: String,
    id: String,
    /// The same as a number, where it was made here.
    own_id: Option<uuid::Uuid>,
    supplied_id: bool,
    bytes: Bytes,
    dedup: Option<(String, u128)>,
    once: Option<(String, u128)>,
    /// First 8 bytes of the data's SHA-256, hex; only for supplied ids.
    data_hash: String,
    at: Option<i64>,
    unrouted: bool,
    /// Who caused it.
    trace: Option<TraceContext>,
}

impl Appender {
    /// Starts the appender's task on the current runtime.
    #[must_use]
    pub fn start(bus: &Bus, settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let (requests, queue) = mpsc::channel(1024);
        let batcher = Batcher {
            bus: bus.separate(),
            settings: settings.clone(),
            calls: Arc::new(Semaphore::new(CALLS_IN_FLIGHT)),
            facts: Facts::default(),
        };
        tokio::spawn(batcher.run(queue));
        Self { requests, settings }
    }

    /// Appends `events` in order. All are checked before the first is written.
    pub async fn append(&self, events: Vec<NewEvent>) -> Result<Vec<Appended>, Error> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let encoded = self.encode(events)?;
        let mut appended = Vec::with_capacity(encoded.len());
        let mut rest = encoded;
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().min(BATCH_MAX));
            let (answer, answered) = oneshot::channel();
            let stopped = || Error::Internal("the appender has stopped".into());
            self.requests.send(Request { events: rest, answer }).await.map_err(|_| stopped())?;
            appended.extend(answered.await.map_err(|_| stopped())??);
            rest = tail;
        }
        Ok(appended)
    }

    fn encode(&self, events: Vec<NewEvent>) -> Result<Vec<Encoded>, Error> {
        let now = chrono::Utc::now().timestamp_millis();
        let first_id = uuid::Uuid::now_v7();
        let encode =
            |(index, event)| encode_one(index, event, nth_id(first_id, index), now, self.settings.max_event_bytes);
        events.into_iter().enumerate().map(encode).collect()
    }
}

fn encode_one(index: usize, event: NewEvent, own_id: uuid::Uuid, now: i64, limit: usize) -> Result<Encoded, Error> {
    use sha2::Digest as _;
    let own_id = event.id.is_none().then_some(own_id);
    let supplied_id = event.id.is_some() && !event.id_is_fresh;
    let id = event.id.or_else(|| own_id.map(|id| id.to_string())).unwrap_or_default();
    let px = |window: Duration| window.as_millis().max(1);
    let dedup = event
        .dedup_mark
        .or_else(|| event.dedup_key.clone())
        .zip(event.dedup_window)
        .map(|(key, window)| (key, px(window)));
    let data_hash =
        if supplied_id { hex::encode(&sha2::Sha256::digest(event.data.as_str())[..8]) } else { String::new() };
    let lane = Lane::new(event.name.clone(), event.priority);
    let source = event.source.clone();
    let envelope = Envelope {
        v: ENVELOPE_VERSION,
        id: id.clone(),
        name: event.name,
        source: event.source,
        ts: event.ts.unwrap_or(now),
        data: event.data,
        priority: event.priority,
        dedup_key: event.dedup_key,
        trace: event.trace,
        triage: event.triage,
        meta: event.meta,
    };
    let trace = TraceContext::of_envelope(&envelope);
    let bytes = envelope.encode().map_err(|error| Error::Internal(error.to_string()))?;
    if bytes.len() > limit {
        return Err(Error::TooLarge { index, name: envelope.name, size: bytes.len(), limit });
    }
    Ok(Encoded {
        lane,
        source,
        id,
        own_id,
        supplied_id,
        bytes: bytes.into(),
        dedup,
        once: event.once.map(|once| (format!("once:{}", once.key), px(once.window))),
        data_hash,
        at: event.at,
        unrouted: event.unrouted,
        trace,
    })
}

/// What the batcher remembers about the server between calls.
#[derive(Debug, Default)]
struct Facts {
    checked: Option<Instant>,
    full: Option<(u64, u64)>,
    durability: Option<Durability>,
}

struct Batcher {
    bus: Bus,
    settings: Arc<Settings>,
    calls: Arc<Semaphore>,
    facts: Facts,
}

impl Batcher {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut held: Option<Request> = None;
        loop {
            let first = match held.take() {
                Some(request) => request,
                None => match queue.recv().await {
                    Some(request) => request,
                    None => return,
                },
            };
            let mut count = first.events.len();
            let mut group = vec![first];
            // The permit is taken before looking for more: while all calls are under way, the group grows.
            let Ok(permit) = self.calls.clone().acquire_owned().await else { return };
            while let Ok(request) = queue.try_recv() {
                if count + request.events.len() > BATCH_MAX {
                    held = Some(request);
                    break;
                }
                count += request.events.len();
                group.push(request);
            }
            self.refresh_facts().await;
            if let Some((used, limit)) = self.facts.full {
                for request in group {
                    let _ = request.answer.send(Err(Error::Full { used, limit }));
                }
                continue;
            }
            let call = Call {
                bus: self.bus.clone(),
                settings: self.settings.clone(),
                durability: self.facts.durability.unwrap_or(Durability::Memory),
            };
            tokio::spawn(async move {
                call.serve(group).await;
                drop(permit);
            });
        }
    }

    /// Looks at memory and durability twice a second, not per call.
    async fn refresh_facts(&mut self) {
        const EVERY: Duration = Duration::from_millis(500);
        if self.facts.checked.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        // An unreachable Redis is reported by the append itself.
        let Ok(facts) = self.bus.server_facts().await else { return };
        let limit = match self.settings.memory_budget {
            MemoryBudget::Percent(percent) if facts.max_memory > 0 => facts.max_memory / 100 * u64::from(percent),
            MemoryBudget::Bytes(bytes) => bytes,
            MemoryBudget::Percent(_) | MemoryBudget::Off => u64::MAX,
        };
        let synced = facts.aof_enabled && facts.appendfsync.as_deref() == Some("always");
        self.facts = Facts {
            checked: Some(Instant::now()),
            full: (facts.used_memory >= limit).then_some((facts.used_memory, limit)),
            durability: Some(if synced { Durability::Disk } else { Durability::Memory }),
        };
    }
}

/// One script call and the requests merged into it.
struct Call {
    bus: Bus,
    settings: Arc<Settings>,
    /// What Redis gives without being asked: disk under `appendfsync always`.
    durability: Durability,
}

impl Call {
    async fn serve(&self, group: Vec<Request>) {
        let events: Vec<&Encoded> = group.iter().flat_map(|request| &request.events).collect();
        let outcome = self.append(&events).await;
        drop(events);
        match outcome {
            Ok(mut appended) => {
                for request in group {
                    let rest = appended.split_off(request.events.len().min(appended.len()));
                    let _ = request.answer.send(Ok(std::mem::replace(&mut appended, rest)));
                }
            }
            // One caller's new name must not fail its neighbours.
            Err(Error::TooManyFamilies { .. }) if group.len() > 1 => {
                for request in group {
                    let events: Vec<&Encoded> = request.events.iter().collect();
                    let outcome = self.append(&events).await;
                    drop(events);
                    let _ = request.answer.send(outcome);
                }
            }
            Err(error) => {
                for request in group {
                    let error = match &error {
                        Error::UnknownOutcome { source, .. } => Error::UnknownOutcome {
                            ids: request.events.iter().map(|event| event.id.clone()).collect(),
                            source: source.clone(),
                        },
                        other => other.clone(),
                    };
                    let _ = request.answer.send(Err(error));
                }
            }
        }
    }

    /// Calls the script until it answers or the deadline passes. The token makes repeating harmless.
    async fn append(&self, events: &[&Encoded]) -> Result<Vec<Appended>, Error> {
        let token = uuid::Uuid::now_v7().simple().to_string();
        let deadline = Instant::now() + self.settings.deadline;
        let batch = Batch::arrange(events);
        let mut maybe_stored = false;
        loop {
            let error = match self.bus.redis.run::<String>(self.script_call(&token, &batch)).await {
                Ok(answer) => {
                    let durability = self.confirm().await?;
                    return Ok(batch.restore(parse_answer(&answer, &batch.events, durability)?));
                }
                Err(error) => error,
            };
            match error.reply_code() {
                Some("OOM") => return Err(self.full().await),
                Some("TOOMANYFAMILIES") => {
                    let name = error.reply_detail().and_then(|name| name.trim().parse().ok());
                    let name = name.unwrap_or_else(|| events[0].lane.family.clone());
                    return Err(Error::TooManyFamilies { name, limit: self.settings.max_families });
                }
                _ if !error.is_unreachable() => return Err(Error::Internal(error.to_string())),
                _ => {}
            }
            maybe_stored |= error.outcome_unknown();
            if Instant::now() + Duration::from_millis(50) >= deadline {
                let source = Arc::new(error);
                return Err(if maybe_stored {
                    Error::UnknownOutcome { ids: events.iter().map(|event| event.id.clone()).collect(), source }
                } else {
                    Error::Unreachable(source)
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn full(&self) -> Error {
        match self.bus.server_facts().await {
            Ok(facts) => Error::Full { used: facts.used_memory, limit: facts.max_memory },
            Err(_) => Error::Full { used: 0, limit: 0 },
        }
    }

    /// Waits until the append is as safe as was asked for, and says how safe it is.
    async fn confirm(&self) -> Result<Durability, Error> {
        let wanted = self.settings.durability;
        let timeout_ms = u64::try_from(self.settings.deadline.as_millis()).unwrap_or(2_000);
        let mut command = match wanted {
            Durability::Memory => return Ok(self.durability),
            Durability::Disk if self.durability == Durability::Disk => return Ok(Durability::Disk),
            Durability::Disk => redis::cmd("WAITAOF"),
            Durability::Replica => redis::cmd("WAIT"),
        };
        command.arg(1);
        if wanted == Durability::Disk {
            command.arg(0);
        }
        command.arg(timeout_ms);
        let not_durable = |detail: String| Error::NotDurable { wanted, detail };
        let deadline = self.settings.deadline + Duration::from_millis(500);
        let reply: redis::Value =
            self.bus.redis.query_within(&command, deadline).await.map_err(|error| not_durable(error.to_string()))?;
        let confirmed = match &reply {
            redis::Value::Int(count) => *count,
            redis::Value::Array(counts) => match counts.first() {
                Some(redis::Value::Int(count)) => *count,
                _ => 0,
            },
            _ => 0,
        };
        if confirmed >= 1 {
            Ok(wanted)
        } else {
            Err(not_durable(format!("nothing confirmed it within {timeout_ms} ms")))
        }
    }

    /// The call, with the events in the order in which [`arrange`] put them.
    fn script_call(&self, token: &str, batch: &Batch<'_>) -> super::redis::ScriptCall<'static> {
        let keys = &self.bus.keys;
        let mut call = super::redis::ScriptCall::new(&scripts::APPEND)
            .key(keys.call(token))
            .key(keys.lanes())
            .key(keys.families())
            .key(keys.journal())
            .key(keys.ready())
            .key(keys.wake())
            .key(keys.later())
            .key(keys.later_data());
        for lane in &batch.lanes {
            call.push_key(keys.lane(lane.lane));
        }
        call = call
            .arg(keys.tag())
            .arg(keys.ctl())
            .arg(batch.journal_blob())
            .number(CALL_PX)
            .number(self.settings.seen_window.as_secs())
            .number(self.settings.max_families)
            .number(MAX_BLOCKING_LANES)
            .number(batch.lanes.len())
            .number(batch.events.len())
            .number(batch.mode as u8);
        for lane in &batch.lanes {
            call = call.arg(lane.lane.to_string()).arg(lane.lane.family.as_str()).number(lane.events);
        }
        let mut dedup_keys = DedupKeys { keys, numbers: HashMap::new() };
        for (event, lane) in batch.events.iter().zip(&batch.lane_of) {
            if batch.mode == Mode::Anything {
                call.push_arg((lane + 1).to_string());
            }
            call.push_arg(event.bytes.clone());
            match batch.mode {
                Mode::Nothing => {}
                Mode::Ids => {
                    let field = event.supplied_id.then(|| format!("{}|{}", event.lane.family, event.id));
                    call.push_arg(field.unwrap_or_default());
                    call.push_arg(event.data_hash.as_str());
                }
                Mode::Anything => {
                    let (dedup, dedup_px) = dedup_keys.number(event, event.dedup.as_ref(), &mut call);
                    let (once, once_px) = dedup_keys.number(event, event.once.as_ref(), &mut call);
                    call.push_arg(event.id.as_str());
                    call.push_arg(if event.supplied_id { "1" } else { "" });
                    call.push_arg(dedup);
                    call.push_arg(dedup_px);
                    call.push_arg(once);
                    call.push_arg(once_px);
                    call.push_arg(event.data_hash.as_str());
                    call.push_arg(event.at.map(|at| at.to_string()).unwrap_or_default());
                }
            }
        }
        call
    }
}

/// What the script must look up for the events of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nothing = 1,
    Ids = 2,
    Anything = 3,
}

/// Events arranged for one script call: those of one lane together, unless order between lanes matters.
struct Batch<'e> {
    mode: Mode,
    lanes: Vec<LaneOfBatch<'e>>,
    events: Vec<&'e Encoded>,
    /// Per event of `events`, its lane's index.
    lane_of: Vec<usize>,
    /// Per event of `events`, its place in the caller's order.
    place: Vec<usize>,
}

struct LaneOfBatch<'e> {
    lane: &'e Lane,
    events: usize,
}

impl<'e> Batch<'e> {
    fn arrange(events: &[&'e Encoded]) -> Self {
        let mut numbers: HashMap<&Lane, usize> = HashMap::new();
        let mut lanes: Vec<LaneOfBatch<'e>> = Vec::new();
        let number = |event: &&'e Encoded| {
            let number = *numbers.entry(&event.lane).or_insert_with(|| {
                lanes.push(LaneOfBatch { lane: &event.lane, events: 0 });
                lanes.len() - 1
            });
            lanes[number].events += 1;
            number
        };
        let mut lane_of: Vec<usize> = events.iter().map(number).collect();
        let needs_more = |event: &&Encoded| event.dedup.is_some() || event.once.is_some() || event.at.is_some();
        let mut ids = HashSet::new();
        let mut repeats_an_id = || {
            events.iter().filter(|event| event.supplied_id).any(|event| !ids.insert((&event.lane.family, &event.id)))
        };
        let mode = if events.iter().any(needs_more) {
            Mode::Anything
        } else if !events.iter().any(|event| event.supplied_id) {
            Mode::Nothing
        } else if repeats_an_id() {
            // The first in the caller's order counts, so the order must stay.
            Mode::Anything
        } else {
            Mode::Ids
        };
        let mut place: Vec<usize> = (0..events.len()).collect();
        if mode != Mode::Anything && lanes.len() > 1 {
            place.sort_by_key(|&at| lane_of[at]);
            lane_of.sort_unstable();
        }
        let events = place.iter().map(|&at| events[at]).collect();
        Self { mode, lanes, events, lane_of, place }
    }

    fn journal_blob(&self) -> Vec<u8> {
        let mut sources: Vec<String> = Vec::new();
        let short = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let mut rows: Vec<EnqueueRow> = Vec::new();
        // The id that would go on with the last row.
        let mut next: Option<uuid::Uuid> = None;
        let mut first: Option<uuid::Uuid> = None;
        for (event, lane) in self.events.iter().zip(&self.lane_of) {
            let source = sources.iter().rposition(|source| *source == event.source).unwrap_or_else(|| {
                sources.push(event.source.clone());
                sources.len() - 1
            });
            let (lane, source, unrouted) = (short(*lane), short(source), u8::from(event.unrouted));
            let bytes = u32::try_from(event.bytes.len()).unwrap_or(u32::MAX);
            let goes_on = event.own_id.is_some() && event.own_id == next;
            let trace = event.trace;
            match rows.last_mut() {
                Some(row) if goes_on && (row.0, row.2, row.4, row.5) == (lane, source, unrouted, trace) => {
                    row.3.push(bytes);
                }
                _ => {
                    first = event.own_id;
                    rows.push(EnqueueRow(lane, PackedId(event.id.clone()), source, vec![bytes], unrouted, trace));
                }
            }
            next = first.zip(rows.last()).map(|(first, row)| nth_id(first, row.3.len()));
        }
        let lanes = self.lanes.iter().map(|lane| lane.lane.to_string()).collect();
        journal::encode(&[Record::Enqueue(Enqueue { lanes, sources, rows })])
    }

    /// Puts results back into the caller's order.
    fn restore<T>(&self, results: Vec<T>) -> Vec<T> {
        let mut placed: Vec<(usize, T)> = self.place.iter().copied().zip(results).collect();
        placed.sort_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, result)| result).collect()
    }
}

/// Numbers the distinct dedup keys of one call.
struct DedupKeys<'k> {
    keys: &'k super::keys::Keys,
    numbers: HashMap<String, usize>,
}

impl DedupKeys<'_> {
    /// Number and window of a key, both empty where there is none.
    fn number(
        &mut self,
        event: &Encoded,
        key: Option<&(String, u128)>,
        call: &mut super::redis::ScriptCall<'_>,
    ) -> (String, String) {
        let Some((key, px)) = key else { return (String::new(), String::new()) };
        let key = self.keys.dedup(&event.lane.family, key);
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(key.clone()).or_insert_with(|| {
            call.push_key(key);
            next
        });
        (number.to_string(), px.to_string())
    }
}

/// The script's answer as one line per event: `<first entry id>*<events>` stands for a run of entries.
pub(super) fn answer_lines(answer: &str) -> Vec<std::borrow::Cow<'_, str>> {
    let mut lines = Vec::new();
    for line in answer.split('\n') {
        let run = line.split_once('*').and_then(|(first, count)| {
            Some((first.parse::<EntryId>().ok()?, count.parse::<u64>().ok()?.min(BATCH_MAX as u64)))
        });
        match run {
            Some((first, count)) => {
                lines.extend((0..count).map(|n| EntryId { seq: first.seq + n, ..first }.to_string().into()));
            }
            None => lines.push(line.into()),
        }
    }
    lines
}

/// Reads the script's answer (see `append.lua`).
fn parse_answer(answer: &str, events: &[&Encoded], durability: Durability) -> Result<Vec<Appended>, Error> {
    let lines = answer_lines(answer);
    let appended: Option<Vec<Appended>> = lines
        .iter()
        .map(AsRef::as_ref)
        .zip(events)
        .map(|(line, event)| {
            let place = |text: &str| {
                let (lane, entry) = text.trim_end_matches('!').rsplit_once('|')?;
                Some((lane.parse::<Lane>().ok()?, entry.parse::<EntryId>().ok()))
            };
            let known = |event_id: String, (lane, entry_id), by| Appended {
                event_id,
                lane,
                entry_id,
                duplicate: Some(by),
                durability,
            };
            match line.as_bytes().first()? {
                b'i' => Some(known(event.id.clone(), place(&line[1..])?, DuplicateBy::Id)),
                b'w' => {
                    let (first, _) = line[1..].rsplit_once('|')?.0.rsplit_once('|')?;
                    Some(known(first.to_owned(), place(&line[1 + first.len() + 1..])?, DuplicateBy::Window))
                }
                _ => Some(Appended {
                    event_id: event.id.clone(),
                    lane: event.lane.clone(),
                    entry_id: line.parse().ok(),
                    duplicate: None,
                    durability,
                }),
            }
        })
        .collect();
    match appended {
        Some(appended) if appended.len() == events.len() => Ok(appended),
        _ => Err(Error::Internal(format!("append.lua answered {answer:?}"))),
    }
}
