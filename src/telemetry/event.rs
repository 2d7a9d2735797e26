//! The one shape of a telemetry event, as every sink gets it: a journal record with an id of its own, lifted ids, and
//! nothing secret.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::known_secrets;
use crate::streams::entry_id::EntryId;
use crate::streams::records::Entry;

/// The version of the shape.
const SCHEMA_VERSION: u64 = 1;
/// Longest string, characters.
const LONGEST: usize = 4096;
/// Deepest nesting.
const DEEPEST: usize = 8;
/// Most elements of an array.
const ELEMENTS: usize = 100;
/// Most keys of the metadata.
const KEYS: usize = 64;
/// Most bytes of the metadata, encoded.
const BYTES: usize = 16 * 1024;
/// Under this key of its metadata a record holds what a posted event says of itself: it stands at the top again.
pub const TOLD: &str = "_event";

// How often something was taken out, for the metrics of the process.
static BY_KEY: AtomicU64 = AtomicU64::new(0);
static BY_PATTERN: AtomicU64 = AtomicU64::new(0);
static KNOWN: AtomicU64 = AtomicU64::new(0);

/// How often this process took something secret out of telemetry: by the key it was under, by what it looked like, as a
/// secret of its own configuration.
#[must_use]
pub fn redactions() -> [(&'static str, u64); 3] {
    [("key", &BY_KEY), ("pattern", &BY_PATTERN), ("known", &KNOWN)]
        .map(|(kind, count)| (kind, count.load(Ordering::Relaxed)))
}

/// A record's place: its batch and its number in it. `Ord` is the order of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct EventId {
    /// The batch.
    pub batch: EntryId,
    /// The number in it, from 0.
    pub n: u64,
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.batch, self.n)
    }
}

impl std::str::FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (batch, n) = text.split_once('.').ok_or(())?;
        Ok(Self { batch: batch.parse().map_err(|_| ())?, n: n.parse().map_err(|_| ())? })
    }
}

/// A record as sinks get it.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its place, and its id.
    pub id: EventId,
    /// The whole event.
    pub json: Value,
}

/// The records of one batch.
#[must_use]
pub fn events_of(entries: &[Entry], system: &str) -> Vec<Event> {
    let event = |(n, entry): (usize, &Entry)| {
        let id = EventId { batch: entry.id, n: n as u64 };
        Event { id, json: json_of(entry, id, system) }
    };
    entries.iter().enumerate().map(event).collect()
}

fn json_of(entry: &Entry, id: EventId, system: &str) -> Value {
    let mut json = entry.to_json();
    let metadata = json["metadata"].take();
    let mut metadata = redact_metadata(metadata);
    let told = metadata.as_object_mut().and_then(|metadata| metadata.shift_remove(TOLD));
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let lane = text("lane").and_then(|lane| lane.rsplit_once(":p")).map(|(family, _)| family);
    let family = text("eventName").or_else(|| text("family")).or(lane).map(str::to_owned);
    let lifted: Vec<(&str, Value)> = ["eventId", "streamId", "runId", "traceId", "spanId"]
        .into_iter()
        .filter_map(|key| Some((key, Value::from(text(key)?))))
        .chain(family.map(|family| ("family", Value::from(family))))
        .collect();
    let duration = ["durationMs", "duration_ms", "latencyMs"].into_iter().find_map(|key| metadata.get(key)?.as_f64());
    let error = json["error"].as_str().map(redact_text);
    if let Some(object) = json.as_object_mut() {
        object.insert("id".into(), Value::from(id.to_string()));
        object.insert("schemaVersion".into(), Value::from(SCHEMA_VERSION));
        object.insert("sessionId".into(), json!("journal"));
        object.insert("systemId".into(), Value::from(system));
        for (key, value) in lifted {
            object.insert(key.into(), value);
        }
        if let Some(duration) = duration {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            object.insert("duration_ms".into(), Value::from(duration.max(0.0).round() as u64));
        }
        if let Some(error) = error {
            object.insert("error".into(), Value::from(error));
        } else if object.get("success") == Some(&Value::Bool(false)) {
            object.insert("error".into(), json!("operation_failed"));
        }
        object.insert("metadata".into(), metadata);
        if let Some(Value::Object(told)) = told {
            object.insert("journalId".into(), Value::from(id.to_string()));
            object.extend(told);
        }
    }
    json
}

/// Makes metadata harmless.
#[must_use]
pub fn redact_metadata(metadata: Value) -> Value {
    let Value::Object(all) = metadata else { return json!({}) };
    let mut is_cut = all.len() > KEYS;
    let mut kept: Map<String, Value> = all.into_iter().take(KEYS).collect();
    for (key, value) in &mut kept {
        redact(key, value, 1, &mut is_cut);
    }
    is_cut |= shorten(&mut kept);
    if is_cut {
        kept.insert("_truncated".into(), json!(true));
    }
    Value::Object(kept)
}

/// Takes out the largest values until the rest is small enough. Whether it took any.
fn shorten(metadata: &mut Map<String, Value>) -> bool {
    let size = |value: &Value| match value {
        // Most are short texts and numbers: those are not worth encoding.
        Value::String(text) => text.len() + 2,
        Value::Array(_) | Value::Object(_) => value.to_string().len(),
        _ => 8,
    };
    let mut sizes: Vec<(usize, String)> = metadata.iter().map(|(key, value)| (size(value), key.clone())).collect();
    let mut all: usize = sizes.iter().map(|(size, key)| size + key.len() + 4).sum();
    if all <= BYTES {
        return false;
    }
    sizes.sort_unstable();
    while let Some((size, key)) = sizes.pop().filter(|_| all > BYTES) {
        metadata.insert(key, Value::from(format!("[{size} bytes]")));
        all -= size;
    }
    true
}

/// Makes a value harmless: by its key, by what it looks like, by its size.
fn redact(key: &str, value: &mut Value, depth: usize, is_cut: &mut bool) {
    if is_secret_key(key) && !value.is_null() && !value.is_boolean() {
        BY_KEY.fetch_add(1, Ordering::Relaxed);
        *value = json!("[redacted]");
        return;
    }
    match value {
        Value::String(text) => {
            *is_cut |= text.len() > LONGEST && text.chars().count() > LONGEST;
            *text = redact_text(text);
        }
        Value::Array(_) | Value::Object(_) if depth >= DEEPEST => {
            *value = json!("[too deep]");
            *is_cut = true;
        }
        Value::Array(values) => {
            *is_cut |= values.len() > ELEMENTS;
            values.truncate(ELEMENTS);
            values.iter_mut().for_each(|value| redact("", value, depth + 1, is_cut));
        }
        Value::Object(values) => values.iter_mut().for_each(|(key, value)| redact(key, value, depth + 1, is_cut)),
        _ => {}
    }
}

fn is_secret_key(key: &str) -> bool {
    /// Names that hold a secret, lower case without dashes and underscores.
    const WHOLE: [&str; 9] =
        ["authorization", "cookie", "setcookie", "password", "passwd", "secret", "token", "dsn", "signature"];
    const ENDS: [&str; 9] =
        ["apikey", "privatekey", "password", "passwd", "secret", "token", "signature256", "credential", "credentials"];
    let plain: String = key.chars().filter(|c| *c != '-' && *c != '_').map(|c| c.to_ascii_lowercase()).collect();
    // STRIPE_KEY is one, a monkey is none.
    let is_a_key = ["_KEY", "_key", "-key"].iter().any(|end| key.ends_with(end));
    is_a_key
        || WHOLE.contains(&plain.as_str())
        || ENDS.iter().any(|end| plain.ends_with(end))
        || plain.ends_with("signature")
}

/// A text without what looks like a secret, and not too long.
#[must_use]
pub fn redact_text(text: &str) -> String {
    let known = known_secrets::hide(text);
    if known.is_some() {
        KNOWN.fetch_add(1, Ordering::Relaxed);
    }
    let text = known.as_deref().unwrap_or(text);
    let mut text = match SECRETS.is_match(text) {
        true => {
            BY_PATTERN.fetch_add(1, Ordering::Relaxed);
            SECRETS.replace_all(text, "[redacted]").into_owned()
        }
        false => text.to_owned(),
    };
    let length = text.chars().count();
    if length > LONGEST {
        text = text.chars().take(LONGEST).collect();
        text.push_str(&format!("…[{length} chars]"));
    }
    text
}

#[allow(clippy::expect_used)]
static SECRETS: LazyLock<Regex> = LazyLock::new(|| {
    let patterns = [
        r"(?i:bearer)\s+[A-Za-z0-9._~+/=-]{8,}",
        r"signkey-[A-Za-z0-9_-]{8,}",
        r"-----BEGIN [A-Z ]+-----[A-Za-z0-9+/=\s]*(-----END [A-Z ]+-----)?",
        r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
        r"\b(sk-|ghp_|github_pat_|xox[abp]-|whsec_|AKIA)[A-Za-z0-9_-]{8,}",
        r"://[^/\s@]+@",
        r"(?i:[?&][^=&\s]*(?:token|key|secret|signature|password|passwd|credential)=)[^&\s]+",
    ];
    Regex::new(&patterns.join("|")).expect("the patterns are constants")
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::records::Fact;

    #[test]
    fn an_event_has_an_id_of_its_own_and_its_ids_at_the_top() {
        let id = EntryId { ms: 1_772_981_290_859, seq: 3 };
        let fact = Fact::new("queue-drainer", "queue.dispatch.failed")
            .event("evt_1")
            .entry(&"content/updated:p1", id)
            .failed("no")
            .with("eventName", "content/updated")
            .with("durationMs", 12.6);
        let entries = [Entry { id, fact: fact.clone() }, Entry { id, fact }];
        let events = events_of(&entries, "host-a");
        assert_eq!(events[1].id.to_string(), "1772981290859-3.1");
        assert_eq!("1772981290859-3.1".parse(), Ok(events[1].id));
        let json = &events[0].json;
        assert_eq!((&json["id"], &json["timestamp"]), (&json!("1772981290859-3.0"), &json!(1_772_981_290_859_u64)));
        assert_eq!((&json["eventId"], &json["family"]), (&json!("evt_1"), &json!("content/updated")));
        assert_eq!(
            (&json["duration_ms"], &json["error"], &json["systemId"]),
            (&json!(13), &json!("no"), &json!("host-a"))
        );
    }

    #[test]
    fn no_sink_gets_a_secret() {
        let planted = "ghp_0123456789abcdefghij";
        let fact = Fact::new("queue", "queue.dead")
            .failed(format!("POST https://me:{planted}@host/x?token={planted} said Bearer {planted}"))
            .with("apiKey", planted)
            .with("headers", json!({ "Authorization": planted, "x-hub-signature-256": planted, "plain": planted }))
            .with("text", "x".repeat(5000));
        crate::known_secrets::know("four word pass phrase");
        let fact = fact.with("pin_password", 12_345_678).with("url", "https://me0123@host/x?access_token=abcdef0123");
        let fact = fact.with("STRIPE_KEY", planted).with("said", "it is four word pass phrase, you know");
        let events = events_of(&[Entry { id: EntryId::MIN, fact }], "h");
        let text = events[0].json.to_string();
        for secret in [planted, "pass phrase", "12345678", "me0123", "abcdef0123"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        assert_eq!(events[0].json["metadata"]["_truncated"], true);
        assert!(events[0].json["metadata"]["text"].as_str().unwrap().ends_with("…[5000 chars]"));
    }

    #[test]
    fn metadata_is_cut_from_its_largest_value_on() {
        let list: Vec<String> = (0..90).map(|n| format!("{n}-{}", "y".repeat(150))).collect();
        let fact = Fact::new("a", "b").with("list", list).with("text", "x".repeat(4000)).with("n", 7);
        let json = &events_of(&[Entry { id: EntryId::MIN, fact }], "h")[0].json;
        let metadata = &json["metadata"];
        assert_eq!((&metadata["_truncated"], &metadata["n"]), (&json!(true), &json!(7)));
        assert!(metadata["list"].as_str().is_some_and(|text| text.ends_with(" bytes]")), "{metadata}");
        assert_eq!(metadata["text"].as_str().map(str::len), Some(4000));
        assert!(metadata.to_string().len() <= BYTES);
    }
}
