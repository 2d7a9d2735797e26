//! Telemetry events of others, as they are posted: one JSON object, an array, or one a line → journal records.
//!
//! A record is `telemetry.posted` for all that counts records: what others say of queues is not what happened in ours.
//! What an event says of itself is kept under [`event::TOLD`] of it, and stands at the top again in every sink.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::event;
use crate::streams::records::{Fact, Level};

/// What a record of a posted event is.
pub const ACTION: &str = "telemetry.posted";
/// Events of one request.
pub const MOST: usize = 500;
/// Longest name of a component or action, characters.
const LONGEST: usize = 200;
/// Debug events of one source, component and action within [`WINDOW`].
const DEBUG_MOST: u32 = 12;
const WINDOW: Duration = Duration::from_secs(60);
/// Keys that are told apart.
const DEBUG_KEYS: usize = 1024;

// What was not stored, for the metrics of the process.
static GUARDED: AtomicU64 = AtomicU64::new(0);
static DISABLED: AtomicU64 = AtomicU64::new(0);

/// How many events this process did not store, by why.
#[must_use]
pub fn drops() -> [(&'static str, u64); 2] {
    [("debug_backpressure_guard", &GUARDED), ("otel_events_disabled", &DISABLED)]
        .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
}

/// Why a body is not taken. Nothing of it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not JSON, or no object.
    #[error("Invalid payload")]
    Payload,
    /// A field that can't be.
    #[error("event {n}: {what}")]
    Field {
        /// Which event, from 1.
        n: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Too many at once.
    #[error("at most {MOST} events are taken at once")]
    TooMany,
}

/// One event.
#[derive(Debug)]
pub struct Posted {
    /// Its id: the sender's, or a new one.
    pub id: String,
    /// Its record.
    pub fact: Fact,
    /// Source, component and action.
    key: String,
}

/// The events of a body that came at `now_ms`, and whether it was a list.
pub fn parse(body: &[u8], now_ms: u64) -> Result<(Vec<Posted>, bool), Error> {
    let (values, is_list) = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Array(values)) => (values, true),
        Ok(value) => (vec![value], false),
        Err(_) => {
            let lines = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
            (lines.take(MOST + 1).collect::<Result<_, _>>().map_err(|_| Error::Payload)?, true)
        }
    };
    if values.len() > MOST {
        return Err(Error::TooMany);
    }
    if values.is_empty() {
        return Err(Error::Payload);
    }
    let events = values.into_iter().enumerate().map(|(n, value)| {
        let Value::Object(fields) = value else { return Err(Error::Payload) };
        one(fields, now_ms).map_err(|what| what.map_or(Error::Payload, |what| Error::Field { n: n + 1, what }))
    });
    Ok((events.collect::<Result<_, _>>()?, is_list))
}

/// The error: what is wrong, or nothing where it is no event at all.
fn one(mut fields: Map<String, Value>, now_ms: u64) -> Result<Posted, Option<&'static str>> {
    let (Some(action), Some(component)) = (word(&mut fields, "action"), word(&mut fields, "component")) else {
        return Err(None);
    };
    let level = match fields.remove("level") {
        None | Some(Value::Null) => Level::Info,
        Some(level) => level.as_str().and_then(Level::of).ok_or("level is debug, info, warn, error or fatal")?,
    };
    let error = word(&mut fields, "error");
    let success = match fields.remove("success") {
        None | Some(Value::Null) => error.is_none(),
        Some(success) => success.as_bool().ok_or("success is true or false")?,
    };
    let mut metadata = match fields.remove("metadata") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(metadata)) => metadata,
        Some(_) => return Err(Some("metadata is an object")),
    };
    let id = word(&mut fields, "id").unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let source = word(&mut fields, "source").unwrap_or_else(|| "unknown".to_owned());
    let key = format!("{source}:{component}:{action}");
    let mut told = Map::from_iter([("id".to_owned(), Value::from(id.clone())), ("source".to_owned(), source.into())]);
    for name in ["sessionId", "systemId"] {
        told.insert(name.to_owned(), word(&mut fields, name).unwrap_or_else(|| "unknown".to_owned()).into());
    }
    let at = fields.remove("timestamp").and_then(|at| at.as_f64()).filter(|at| *at >= 1.0 && *at < MAX_MS);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    told.insert("timestamp".to_owned(), Value::from(at.map_or(now_ms, |at| at as u64)));
    if let Some(took) = fields.remove("duration_ms").filter(|took| !took.is_null()) {
        let took = took.as_f64().filter(|took| *took >= 0.0).ok_or("duration_ms is a number of 0 or more")?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        told.insert("duration_ms".to_owned(), Value::from(took.round() as u64));
    }
    told.extend([("component".to_owned(), Value::from(component)), ("action".to_owned(), action.into())]);
    // What the record says is not what the event says of itself.
    for ours in ["schemaVersion", "journalId"] {
        fields.remove(ours);
    }
    told.extend(fields);
    metadata.shift_insert(0, event::TOLD.to_owned(), Value::Object(told));
    // Whoever posts may have put anything in: not even the journal gets it.
    let Value::Object(metadata) = event::redact_metadata(Value::Object(metadata)) else { return Err(None) };
    let error = error.map(|error| event::redact_text(&error));
    let fact = Fact {
        action: ACTION.into(),
        component: "telemetry".into(),
        level,
        success,
        error,
        event_id: None,
        stream_id: None,
        lane: None,
        metadata,
    };
    Ok(Posted { id, fact, key })
}

/// The year 10000, ms.
const MAX_MS: f64 = 253_402_300_800_000.0;

fn word(fields: &mut Map<String, Value>, name: &str) -> Option<String> {
    let text = fields.remove(name)?;
    let text = text.as_str()?.trim();
    (!text.is_empty()).then(|| text.chars().take(LONGEST).collect())
}

/// Lets through what may be stored: no debug events beyond their budget.
#[derive(Debug, Default)]
pub struct DebugBudget(Mutex<HashMap<String, (Instant, u32)>>);

impl DebugBudget {
    /// Why an event is not stored, where it is not.
    pub fn refusal(&self, posted: &Posted, is_enabled: bool, now: Instant) -> Option<&'static str> {
        if !is_enabled {
            DISABLED.fetch_add(1, Ordering::Relaxed);
            return Some("otel_events_disabled");
        }
        if posted.fact.level != Level::Debug {
            return None;
        }
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= DEBUG_KEYS && !windows.contains_key(&posted.key) {
            windows.retain(|_, (began, _)| now.duration_since(*began) < WINDOW);
            let oldest = windows.iter().min_by_key(|(_, (began, _))| *began).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest.filter(|_| windows.len() >= DEBUG_KEYS) {
                windows.remove(&oldest);
            }
        }
        let (began, count) = windows.entry(posted.key.clone()).or_insert((now, 0));
        if now.duration_since(*began) >= WINDOW {
            (*began, *count) = (now, 0);
        }
        *count += 1;
        let is_over = *count > DEBUG_MOST;
        GUARDED.fetch_add(u64::from(is_over), Ordering::Relaxed);
        is_over.then_some("debug_backpressure_guard")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::entry_id::EntryId;
    use crate::streams::records::Entry;
    use serde_json::json;

    fn only(event: &Value) -> Result<Posted, Error> {
        parse(event.to_string().as_bytes(), 7).map(|(mut events, _)| events.remove(0))
    }

    #[test]
    fn an_event_comes_out_of_a_sink_as_it_was_posted() {
        let posted = only(&json!({
            "id": " t-1 ", "timestamp": 1_772_981_290_859.7, "sessionId": "s", "systemId": "host-b", "level": "fatal",
            "source": "gateway", "component": "telegram", "action": "send.failed", "success": false, "duration_ms": 12.4,
            "eventId": "e-1", "region": "eu", "metadata": { "n": 1 },
        }))
        .unwrap();
        assert_eq!(posted.id, "t-1");
        let id = EntryId { ms: 7, seq: 1 };
        let events = event::events_of(&[Entry { id, fact: posted.fact }], "host-a");
        let expected = json!({
            "id": "t-1", "journalId": "7-1.0", "timestamp": 1_772_981_290_859_u64, "sessionId": "s", "systemId": "host-b",
            "level": "fatal", "source": "gateway", "component": "telegram", "action": "send.failed", "success": false,
            "duration_ms": 12, "error": "operation_failed", "eventId": "e-1", "region": "eu", "schemaVersion": 1,
            "metadata": { "n": 1 },
        });
        assert_eq!(events[0].json, expected);
    }

    #[test]
    fn lists_and_lines_are_taken_whole_or_not_at_all() {
        let event = json!({ "component": "a", "action": "b" });
        let (events, is_list) = parse(event.to_string().as_bytes(), 7).unwrap();
        assert_eq!((events.len(), is_list, uuid::Uuid::parse_str(&events[0].id).is_ok()), (1, false, true));
        assert_eq!(parse(json!([event, event]).to_string().as_bytes(), 7).unwrap().0.len(), 2);
        assert_eq!(parse(format!("{event}\n{event}\n{event}\n").as_bytes(), 7).unwrap().0.len(), 3);
        assert_eq!(parse(Value::from(vec![event.clone(); 501]).to_string().as_bytes(), 7).unwrap_err(), Error::TooMany);
        assert_eq!(parse(format!("{event}\n").repeat(501).as_bytes(), 7).unwrap_err(), Error::TooMany);
        for wrong in ["", "[]", "7", "[7]", "{", "{}", r#"{"component":" ","action":"b"}"#] {
            assert_eq!(parse(wrong.as_bytes(), 7).unwrap_err(), Error::Payload, "{wrong}");
        }
        for (field, value) in [
            ("level", json!("loud")),
            ("level", json!(3)),
            ("success", json!("yes")),
            ("duration_ms", json!(-1)),
            ("duration_ms", json!("long")),
            ("metadata", json!([])),
        ] {
            let mut second = event.clone();
            second[field] = value;
            let error = parse(json!([event, second]).to_string().as_bytes(), 7).unwrap_err();
            assert!(matches!(error, Error::Field { n: 2, what } if what.starts_with(field)), "{error}");
        }
    }

    #[test]
    fn debug_events_have_a_budget_by_what_they_are_and_others_have_none() {
        let (budget, now) = (DebugBudget::default(), Instant::now());
        let debug = |action: &str| only(&json!({ "component": "a", "action": action, "level": "debug" })).unwrap();
        let info = only(&json!({ "component": "a", "action": "b" })).unwrap();
        let stored = |posted: &Posted, now| (0..20).filter(|_| budget.refusal(posted, true, now).is_none()).count();
        assert_eq!((stored(&debug("b"), now), stored(&info, now), stored(&debug("c"), now)), (12, 20, 12));
        assert_eq!(stored(&debug("b"), now + WINDOW), 12);
        assert_eq!(budget.refusal(&info, false, now), Some("otel_events_disabled"));
        for n in 0..3000 {
            budget.refusal(&debug(&n.to_string()), true, now);
        }
        assert!(budget.0.lock().unwrap().len() <= DEBUG_KEYS);
    }
}
