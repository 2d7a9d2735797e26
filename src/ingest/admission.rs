//! Admission: turns what a sender asked for into events that may be appended, and appends them.
//!
//! Webhooks, the event API and `joelclaw queue emit` all come through here, so the envelope's rules hold once. A batch
//! is checked whole before its first append; an error names the event by its place in the batch.
//!
//! What is not here: who may send (signatures, event keys), and how an append works ([`crate::streams::append`]). The
//! layers below are two seams, [`Append`] and [`Routes`], which the appender and the registry implement.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::fields::{Fields, json_string, object_text};
use crate::diagnose::{Diagnose, Exit};
use crate::streams::append::{self, Appended, DuplicateBy, Durability, NewEvent, Once};
use crate::streams::entry_id::EntryId;
use crate::streams::envelope::{MAX_DEDUP_KEY_CHARS, MAX_EVENT_ID_BYTES, MAX_SOURCE_BYTES};
use crate::streams::family::{Family, ParseFamilyError};
use crate::streams::json::{self, JsonObject};
use crate::streams::lane::Lane;
use crate::streams::priority::Priority;
use crate::streams::public_id::META_ULID;

/// The source of an event whose emitter names none.
pub const DEFAULT_SOURCE: &str = "queue";

/// Appends checked events, all or none.
pub trait Append: Send + Sync {
    /// One result per event, in order. An error means that nothing is known to be stored.
    fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>, append::Error>>;
}

impl Append for append::Appender {
    fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>, append::Error>> {
        Box::pin(Self::append(self, events))
    }
}

/// What the registry says about an event name.
pub trait Routes: Send + Sync {
    /// The entry for `family`; `source` and `data` let an entry derive a dedup key.
    fn route(&self, family: &Family, source: &str, data: &JsonObject) -> Route;
}

/// See [`Routes::route`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// Priority where the sender asks for none.
    pub priority: Priority,
    /// Window in which a dedup key is enforced.
    pub dedup_window: Option<Duration>,
    /// Dedup key where the sender gave none.
    pub dedup_key: Option<String>,
    /// False when no handler wants this name: the event is kept and reported.
    pub is_routed: bool,
}

/// The priority a sender asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AskedPriority<'a> {
    /// The registry decides.
    #[default]
    Unset,
    /// An unknown value is refused: the command line.
    Strict(&'a str),
    /// An unknown value is ignored, and the answer says so: HTTP, whose clients rely on it.
    Lenient(&'a str),
}

/// When an event may be dispatched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum When {
    /// At once.
    #[default]
    Now,
    /// At this time, ms since the epoch.
    At(i64),
    /// After this much time.
    In(Duration),
}

/// One event as a sender asks for it.
#[derive(Debug, Clone, Default)]
pub struct Emit<'a> {
    /// The event name.
    pub name: &'a str,
    /// The payload, JSON text; blank is `{}`.
    pub data: &'a str,
    /// The wanted lane.
    pub priority: AskedPriority<'a>,
    /// Identity; blank counts as absent.
    pub id: Option<&'a str>,
    /// One event per family and key within the family's window; blank counts as absent.
    pub dedup_key: Option<&'a str>,
    /// Who emits; blank counts as absent.
    pub source: Option<&'a str>,
    /// When it happened, ms.
    pub ts: Option<i64>,
    /// When it may be dispatched.
    pub when: When,
    /// Refuse a name that no route wants.
    pub strict: bool,
    /// Store the dedup key without enforcing it.
    pub no_dedup: bool,
    /// The emitter's own keys: text of a JSON object.
    pub meta: Option<&'a str>,
    /// Correlation and trace context: text of a JSON object.
    pub trace: Option<&'a str>,
    /// A delivery that must be appended once.
    pub once: Option<Once>,
    /// The ULID by which the event API answers for it.
    pub public: Option<PublicId<'a>>,
}

/// See [`Emit::public`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicId<'a> {
    /// It is the event's id, unless the sender supplied another one.
    pub ulid: &'a str,
    /// A repeated request has the same one.
    pub is_repeated: bool,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Identity of the stored event; of the first one for a duplicate.
    pub event_id: String,
    /// Where it is in its lane; `None` while it waits for its time.
    pub stream_id: Option<EntryId>,
    /// Its lane.
    pub lane: Lane,
    /// The priority in force.
    pub priority: Priority,
    /// The rule that found it to be known; nothing was appended then.
    pub duplicate: Option<DuplicateBy>,
    /// How safely it is stored.
    pub durability: Durability,
    /// The asked priority was not one, and was ignored.
    pub priority_ignored: bool,
    /// No route wants it: it is kept until one appears.
    pub unrouted: bool,
}

/// The place of an event in its batch. Shown only where there is more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub index: usize,
    /// Events in the batch.
    pub of: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.of > 1 { write!(f, "event {}: ", self.index) } else { Ok(()) }
    }
}

/// Why nothing was admitted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A JSON text is broken, or too deep. The message names line and column.
    #[error("{place}{field} is {reason}")]
    InvalidJson {
        /// Which event.
        place: Place,
        /// `data`, `meta` or `trace`.
        field: &'static str,
        /// What is wrong, and where.
        reason: json::Error,
    },
    /// JSON, but not an object.
    #[error("{place}{field} must be a JSON object, got {found}")]
    NotAnObject {
        /// Which event.
        place: Place,
        /// `data`, `meta` or `trace`.
        field: &'static str,
        /// What it is instead.
        found: &'static str,
    },
    /// Not one of the four priorities.
    #[error("{place}`{value}` is not a priority")]
    InvalidPriority {
        /// Which event.
        place: Place,
        /// What was asked for.
        value: String,
    },
    /// The name is outside the alphabet of event names.
    #[error("{place}{source}")]
    InvalidEventName {
        /// Which event.
        place: Place,
        /// The rule that it breaks.
        source: ParseFamilyError,
    },
    /// The id is too long or holds control characters.
    #[error("{place}the event id {reason}")]
    InvalidEventId {
        /// Which event.
        place: Place,
        /// The rule that it breaks.
        reason: String,
    },
    /// Source, dedup key or time breaks its rule.
    #[error("{place}{field} {reason}")]
    InvalidField {
        /// Which event.
        place: Place,
        /// The field.
        field: &'static str,
        /// The rule that it breaks.
        reason: String,
    },
    /// Strict, and no route wants this name.
    #[error("{place}no registry entry or function wants `{name}`")]
    Unrouted {
        /// Which event.
        place: Place,
        /// The event name.
        name: Family,
    },
    /// The append was refused or not confirmed.
    #[error(transparent)]
    Append(#[from] append::Error),
}

impl Error {
    /// Which event of the batch is to blame, where one is.
    #[must_use]
    pub const fn index(&self) -> Option<usize> {
        match self {
            Self::InvalidJson { place, .. }
            | Self::NotAnObject { place, .. }
            | Self::InvalidPriority { place, .. }
            | Self::InvalidEventName { place, .. }
            | Self::InvalidEventId { place, .. }
            | Self::InvalidField { place, .. }
            | Self::Unrouted { place, .. } => Some(place.index),
            Self::Append(append::Error::TooLarge { index, .. }) => Some(*index),
            Self::Append(_) => None,
        }
    }
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::InvalidJson { .. } => "INVALID_JSON",
            Self::NotAnObject { .. } => "NOT_AN_OBJECT",
            Self::InvalidPriority { .. } => "INVALID_PRIORITY",
            Self::InvalidEventName { .. } => "INVALID_EVENT_NAME",
            Self::InvalidEventId { .. } => "INVALID_EVENT_ID",
            Self::InvalidField { .. } => "INVALID_FIELD",
            Self::Unrouted { .. } => "UNROUTED",
            Self::Append(error) => error.code(),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Append(error) => error.exit(),
            _ => Exit::Usage,
        }
    }

    fn http_status(&self) -> u16 {
        match self {
            Self::Append(error) => error.http_status(),
            _ => 400,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Append(error) => error.retry_after(),
            _ => None,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::InvalidJson { .. } => "Check the JSON at the position named; nesting may be 128 levels deep.".into(),
            Self::NotAnObject { field, .. } => format!("Wrap it: {field} must be an object such as {{\"value\": …}}."),
            Self::InvalidPriority { .. } => "Use P0, P1, P2 or P3, or leave it out.".into(),
            Self::InvalidEventName { .. } => "Use a name such as content/updated.".into(),
            Self::InvalidEventId { .. } => {
                format!("Use 1 to {MAX_EVENT_ID_BYTES} bytes without control characters, or leave the id out.")
            }
            Self::InvalidField { field, .. } => format!("Correct {field}, or leave it out."),
            Self::Unrouted { .. } => {
                "Add an entry to the registry, or emit without --strict: it is kept until a route appears.".into()
            }
            Self::Append(error) => error.fix(),
        }
    }
}

/// Checks, routes and appends. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    appender: Arc<dyn Append>,
    routes: Arc<dyn Routes>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admission")
    }
}

/// A checked event, with what the answer must say about it.
struct Prepared {
    event: NewEvent,
    priority_ignored: bool,
}

impl Admission {
    /// Admits through `appender`, with priorities and windows from `routes`.
    pub fn new(appender: Arc<dyn Append>, routes: Arc<dyn Routes>) -> Self {
        Self { appender, routes }
    }

    /// Admits one event.
    pub async fn admit(&self, emit: Emit<'_>) -> Result<Accepted, Error> {
        let mut accepted = self.admit_batch(std::slice::from_ref(&emit)).await?;
        accepted.pop().ok_or_else(|| append::Error::Internal("the appender answered nothing".into()).into())
    }

    /// Admits all events or none; answers in order.
    pub async fn admit_batch(&self, emits: &[Emit<'_>]) -> Result<Vec<Accepted>, Error> {
        let now = chrono::Utc::now().timestamp_millis();
        let of = emits.len();
        let mut events = Vec::with_capacity(of);
        let mut flags = Vec::with_capacity(of);
        for (index, emit) in emits.iter().enumerate() {
            let Prepared { event, priority_ignored } = self.prepare(emit, Place { index, of }, now)?;
            flags.push((priority_ignored, event.unrouted));
            events.push(event);
        }
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let appended = self.appender.append(events).await?;
        if appended.len() != of {
            let detail = format!("{} results for {of} events", appended.len());
            return Err(append::Error::Internal(detail).into());
        }
        let accepted = appended.into_iter().zip(flags).map(|(appended, (priority_ignored, unrouted))| Accepted {
            event_id: appended.event_id,
            stream_id: appended.entry_id,
            priority: appended.lane.priority,
            lane: appended.lane,
            duplicate: appended.duplicate,
            durability: appended.durability,
            priority_ignored,
            unrouted,
        });
        Ok(accepted.collect())
    }

    /// Whether these events could be admitted, were there a Redis to take them. No I/O.
    pub fn check(&self, emits: &[Emit<'_>]) -> Result<(), Error> {
        let (now, of) = (chrono::Utc::now().timestamp_millis(), emits.len());
        emits.iter().enumerate().try_for_each(|(index, emit)| self.prepare(emit, Place { index, of }, now).map(drop))
    }

    /// Validates one event and looks its route up. No I/O.
    fn prepare(&self, emit: &Emit<'_>, place: Place, now: i64) -> Result<Prepared, Error> {
        let name: Family = emit.name.parse().map_err(|source| Error::InvalidEventName { place, source })?;
        let data = object(emit.data, "data", place)?;
        let source = source(emit.source, place)?;
        let route = self.routes.route(&name, &source, &data);
        if emit.strict && !route.is_routed {
            return Err(Error::Unrouted { place, name });
        }
        let (priority, priority_ignored) = priority(emit.priority, route.priority, place)?;
        let dedup_key = dedup_key(emit.dedup_key, place)?.or(route.dedup_key);
        let own = event_id(emit.id, place)?;
        let beside = emit.public.filter(|_| own.is_some()).map(|public| json_string(public.ulid));
        let is_public = own.is_none() && emit.public.is_some();
        let event = NewEvent {
            id: own.or_else(|| emit.public.map(|public| public.ulid.to_owned())),
            id_is_fresh: is_public && emit.public.is_some_and(|public| !public.is_repeated),
            meta: Some(meta(emit.meta, beside.as_deref(), &source, place)?),
            trace: emit.trace.map(|text| object(text, "trace", place)).transpose()?,
            dedup_window: if emit.no_dedup { None } else { dedup_key.as_ref().and(route.dedup_window) },
            dedup_key,
            at: at(emit.when, now, place)?,
            unrouted: !route.is_routed,
            ts: emit.ts,
            once: emit.once.clone(),
            triage: None,
            name,
            source,
            data,
            priority,
        };
        Ok(Prepared { event, priority_ignored })
    }
}

fn object(text: &str, field: &'static str, place: Place) -> Result<JsonObject, Error> {
    if text.trim().is_empty() {
        return Ok(JsonObject::default());
    }
    JsonObject::parse(text).map_err(|error| match error {
        json::Error::NotAnObject(found) => Error::NotAnObject { place, field, found },
        reason => Error::InvalidJson { place, field, reason },
    })
}

fn priority(asked: AskedPriority<'_>, default: Priority, place: Place) -> Result<(Priority, bool), Error> {
    match asked {
        AskedPriority::Unset => Ok((default, false)),
        AskedPriority::Lenient(text) => Ok(text.parse().map_or((default, true), |priority| (priority, false))),
        AskedPriority::Strict(text) => text
            .parse()
            .map(|priority| (priority, false))
            .map_err(|_| Error::InvalidPriority { place, value: text.to_owned() }),
    }
}

/// Trimmed; `None` when nothing is left.
fn present(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn event_id(id: Option<&str>, place: Place) -> Result<Option<String>, Error> {
    let Some(id) = present(id) else { return Ok(None) };
    if id.len() > MAX_EVENT_ID_BYTES {
        let reason = format!("is {} bytes long; the limit is {MAX_EVENT_ID_BYTES}", id.len());
        return Err(Error::InvalidEventId { place, reason });
    }
    if id.chars().any(char::is_control) {
        return Err(Error::InvalidEventId { place, reason: "contains a control character".into() });
    }
    Ok(Some(id.to_owned()))
}

fn source(source: Option<&str>, place: Place) -> Result<String, Error> {
    let source = present(source).unwrap_or(DEFAULT_SOURCE);
    if source.len() > MAX_SOURCE_BYTES {
        let reason = format!("is {} bytes long; the limit is {MAX_SOURCE_BYTES}", source.len());
        return Err(Error::InvalidField { place, field: "source", reason });
    }
    if source.chars().any(char::is_control) {
        return Err(Error::InvalidField { place, field: "source", reason: "contains a control character".into() });
    }
    Ok(source.to_owned())
}

fn dedup_key(key: Option<&str>, place: Place) -> Result<Option<String>, Error> {
    let Some(key) = present(key) else { return Ok(None) };
    let chars = key.chars().count();
    if chars > MAX_DEDUP_KEY_CHARS {
        let reason = format!("is {chars} characters long; the limit is {MAX_DEDUP_KEY_CHARS}");
        return Err(Error::InvalidField { place, field: "dedupKey", reason });
    }
    Ok(Some(key.to_owned()))
}

fn at(when: When, now: i64, place: Place) -> Result<Option<i64>, Error> {
    let invalid = |reason: &str| Error::InvalidField { place, field: "at", reason: reason.into() };
    match when {
        When::Now => Ok(None),
        // A time that has passed is no reason to wait, and none to refuse: a script may be late.
        When::At(at) if at >= 0 => Ok((at > now).then_some(at)),
        When::At(_) => Err(invalid("lies before 1970")),
        When::In(delay) => i64::try_from(delay.as_millis())
            .ok()
            .and_then(|delay| now.checked_add(delay))
            .map(|at| (at > now).then_some(at))
            .ok_or_else(|| invalid("lies too far in the future")),
    }
}

/// The emitter's keys over `source`; `envelope_version` is always ours.
fn meta(text: Option<&str>, ulid: Option<&str>, source: &str, place: Place) -> Result<JsonObject, Error> {
    const VERSION: (&str, &str) = ("envelope_version", "\"1\"");
    let checked = object(text.unwrap_or_default(), "meta", place)?;
    let own = Fields::parse(checked.as_str()).map_err(|error| Error::InvalidJson {
        place,
        field: "meta",
        reason: json::Error::Syntax(error),
    })?;
    let source = json_string(source);
    let has_source = own.iter().any(|(key, _)| key == "source");
    let members = std::iter::once(VERSION)
        .chain((!has_source).then_some(("source", source.as_str())))
        .chain(ulid.map(|ulid| (META_ULID, ulid)))
        .chain(own.iter().filter(|(key, _)| *key != VERSION.0 && *key != META_ULID));
    object(&object_text(members), "meta", place)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Registry;
    impl Routes for Registry {
        fn route(&self, family: &Family, _source: &str, _data: &JsonObject) -> Route {
            Route {
                priority: Priority::P1,
                dedup_window: Some(Duration::from_secs(60)),
                dedup_key: None,
                is_routed: family.as_str() != "un/routed",
            }
        }
    }

    struct Nowhere;
    impl Append for Nowhere {
        fn append(&self, _events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>, append::Error>> {
            Box::pin(async { Err(append::Error::Full { used: 1, limit: 1 }) })
        }
    }

    fn prepare(emit: &Emit<'_>) -> Result<Prepared, Error> {
        let admission = Admission::new(Arc::new(Nowhere), Arc::new(Registry));
        admission.prepare(emit, Place { index: 3, of: 9 }, 1_000)
    }

    #[test]
    fn blanks_count_as_absent_and_data_keeps_its_text() {
        let text = r#"{"n":9007199254740993,"b":1,"a":1.0}"#;
        let emit = Emit { name: " a/b ", data: text, id: Some(" "), source: Some(""), ..Emit::default() };
        let event = prepare(&emit).unwrap().event;
        assert_eq!((event.id, event.source.as_str(), event.data.as_str()), (None, "queue", text));
        let event = prepare(&Emit { name: "a/b", data: " ", id: Some(" x "), ..Emit::default() }).unwrap().event;
        assert_eq!((event.id.as_deref(), event.data.as_str()), (Some("x"), "{}"));
    }

    #[test]
    fn an_unknown_priority_is_refused_or_ignored_as_the_caller_asks() {
        let with = |priority| prepare(&Emit { name: "a/b", priority, ..Emit::default() });
        assert_eq!(with(AskedPriority::Unset).unwrap().event.priority, Priority::P1);
        assert_eq!(with(AskedPriority::Strict("p0")).unwrap().event.priority, Priority::P0);
        assert_eq!(with(AskedPriority::Strict("P9")).err().unwrap().code(), "INVALID_PRIORITY");
        let lenient = with(AskedPriority::Lenient("P9")).unwrap();
        assert!(lenient.priority_ignored && lenient.event.priority == Priority::P1);
    }

    #[test]
    fn emitters_keys_win_except_the_version() {
        let own = r#"{"source":"mine","big":9007199254740993,"envelope_version":"7"}"#;
        let event = prepare(&Emit { name: "a/b", meta: Some(own), ..Emit::default() }).unwrap().event;
        let expected = r#"{"envelope_version":"1","source":"mine","big":9007199254740993}"#;
        assert_eq!(event.meta.unwrap().as_str(), expected);
    }

    #[test]
    fn each_broken_rule_has_its_code_and_names_the_event() {
        let long_id = "x".repeat(201);
        let long_source = "x".repeat(129);
        let long_key = "k".repeat(241);
        let base = Emit { name: "a/b", ..Emit::default() };
        let cases = [
            (Emit { name: "a b", ..base.clone() }, "INVALID_EVENT_NAME"),
            (Emit { data: "{\"a\":", ..base.clone() }, "INVALID_JSON"),
            (Emit { data: "[1]", ..base.clone() }, "NOT_AN_OBJECT"),
            (Emit { meta: Some("7"), ..base.clone() }, "NOT_AN_OBJECT"),
            (Emit { id: Some(&long_id), ..base.clone() }, "INVALID_EVENT_ID"),
            (Emit { id: Some("a\u{7}b"), ..base.clone() }, "INVALID_EVENT_ID"),
            (Emit { source: Some(&long_source), ..base.clone() }, "INVALID_FIELD"),
            (Emit { dedup_key: Some(&long_key), ..base.clone() }, "INVALID_FIELD"),
            (Emit { when: When::At(-1), ..base.clone() }, "INVALID_FIELD"),
            (Emit { name: "un/routed", strict: true, ..base.clone() }, "UNROUTED"),
        ];
        for (emit, code) in cases {
            let error = prepare(&emit).err().unwrap();
            assert_eq!((error.code(), error.exit(), error.index()), (code, Exit::Usage, Some(3)), "{error}");
            assert!(error.to_string().starts_with("event 3: "), "{error}");
        }
    }

    #[test]
    fn a_broken_payload_is_located() {
        let error = prepare(&Emit { name: "a/b", data: "{\n\"a\": x}", ..Emit::default() }).err().unwrap();
        assert!(error.to_string().contains("line 2 column 6"), "{error}");
    }

    #[test]
    fn a_dedup_key_is_enforced_only_with_a_window_and_unless_bypassed() {
        let emit = Emit { name: "a/b", dedup_key: Some("k"), ..Emit::default() };
        assert_eq!(prepare(&emit).unwrap().event.dedup_window, Some(Duration::from_secs(60)));
        let bypassed = prepare(&Emit { no_dedup: true, ..emit }).unwrap().event;
        assert_eq!((bypassed.dedup_key.as_deref(), bypassed.dedup_window), (Some("k"), None));
        assert_eq!(prepare(&Emit { name: "a/b", ..Emit::default() }).unwrap().event.dedup_window, None);
    }

    #[test]
    fn times_resolve_against_now() {
        let at = |when| prepare(&Emit { name: "a/b", when, ..Emit::default() }).unwrap().event.at;
        assert_eq!(at(When::Now), None);
        assert_eq!(at(When::At(999)), None);
        assert_eq!(at(When::At(1_001)), Some(1_001));
        assert_eq!(at(When::In(Duration::from_millis(5))), Some(1_005));
    }

    #[tokio::test]
    async fn a_refused_append_keeps_its_status() {
        let admission = Admission::new(Arc::new(Nowhere), Arc::new(Registry));
        let error = admission.admit(Emit { name: "a/b", ..Emit::default() }).await.unwrap_err();
        assert_eq!((error.code(), error.http_status(), error.exit()), ("QUEUE_FULL", 503, Exit::Refused));
    }
}
