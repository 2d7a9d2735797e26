//! The envelope: one event as it is stored in field `e` of a lane entry, a MessagePack map with named keys.
//!
//! Unknown keys are skipped and absent ones read as default, so that a field can be added without a new version.

use serde::{Deserialize, Serialize};

use super::family::Family;
use super::json::JsonObject;
use super::priority::Priority;

/// The version we write. A reader refuses a higher one and never guesses.
pub const ENVELOPE_VERSION: u32 = 1;
/// Longest event id in bytes.
pub const MAX_EVENT_ID_BYTES: usize = 200;
/// Longest `source` in bytes.
pub const MAX_SOURCE_BYTES: usize = 128;
/// Longest dedup key in characters.
pub const MAX_DEDUP_KEY_CHARS: usize = 240;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Format version, [`ENVELOPE_VERSION`].
    pub v: u32,
    /// Identity: supplied by the caller, or a UUIDv7.
    pub id: String,
    /// The family.
    pub name: Family,
    /// Who emitted it: `cli`, `webhook/github`, ….
    pub source: String,
    /// When it happened, ms, as the sender says. Never used for ordering, aging or expiry.
    pub ts: i64,
    /// The payload.
    pub data: JsonObject,
    /// The lane's priority.
    pub priority: Priority,
    /// One event per family and key within the family's window.
    #[serde(rename = "dedupKey", alias = "dedup_key", default, skip_serializing_if = "Option::is_none")]
    pub dedup_key: Option<String>,
    /// Correlation and trace context; `correlationId` is the id where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<JsonObject>,
    /// The triage decision record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triage: Option<JsonObject>,
    /// The emitter's own keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<JsonObject>,
}

/// Why an entry can't be understood. Each ends in the dead letters with the raw bytes kept.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not a MessagePack map of ours.
    #[error("the entry is not a MessagePack envelope: {0}")]
    Undecodable(String),
    /// Written by a newer program.
    #[error("envelope version {0} is newer than this program understands ({ENVELOPE_VERSION})")]
    UnsupportedVersion(u32),
}

impl DecodeError {
    /// The dead letter's reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "undecodable",
            Self::UnsupportedVersion(_) => "unsupported_version",
        }
    }
}

impl Envelope {
    /// The bytes of field `e`.
    pub fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec_named(self)
    }

    /// Reads field `e`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        if !matches!(bytes.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
            return Err(DecodeError::Undecodable("it does not start with a map".into()));
        }
        match rmp_serde::from_slice::<Self>(bytes) {
            Ok(envelope) if envelope.v <= ENVELOPE_VERSION => Ok(envelope),
            Ok(envelope) => Err(DecodeError::UnsupportedVersion(envelope.v)),
            // A newer version may well have changed a field's type: name the version rather than the field.
            Err(error) => match rmp_serde::from_slice::<Version>(bytes) {
                Ok(Version { v }) if v > ENVELOPE_VERSION => Err(DecodeError::UnsupportedVersion(v)),
                _ => Err(DecodeError::Undecodable(error.to_string())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            v: 1,
            id: "evt-1".into(),
            name: "content/updated".parse().unwrap(),
            source: "cli".into(),
            ts: 1,
            data: JsonObject::parse(r#"{"a":1.0}"#).unwrap(),
            priority: Priority::P1,
            dedup_key: None,
            trace: None,
            triage: None,
            meta: None,
        }
    }

    #[test]
    fn an_envelope_survives_the_round_trip() {
        let bytes = envelope().encode().unwrap();
        assert_eq!(Envelope::decode(&bytes).unwrap(), envelope());
    }

    #[test]
    fn other_bytes_are_named_by_reason() {
        assert_eq!(Envelope::decode(b"{\"v\":1}").unwrap_err().reason(), "undecodable");
        assert_eq!(Envelope::decode(b"\x80").unwrap_err().reason(), "undecodable");
        let newer = Envelope { v: 2, ..envelope() }.encode().unwrap();
        assert_eq!(Envelope::decode(&newer).unwrap_err().reason(), "unsupported_version");
        assert_eq!(Envelope::decode(b"\x81\xa1v\x02").unwrap_err().reason(), "unsupported_version");
    }

    #[test]
    fn unknown_fields_and_the_snake_case_key_are_read() {
        let json = serde_json::json!({"v":1,"id":"a","name":"x/y","source":"cli","ts":1,"data":"{}","priority":2,"dedup_key":"k","later":[1]});
        let bytes = rmp_serde::to_vec_named(&json).unwrap();
        assert_eq!(Envelope::decode(&bytes).unwrap().dedup_key.as_deref(), Some("k"));
    }
}
