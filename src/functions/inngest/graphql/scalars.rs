//! Scalars of the API. Ids are read as any text: where they are used they are looked up, and a name may stand for one.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value, scalar};
use serde::{Deserialize, Serialize};

use crate::moment::iso;

/// Ms since the epoch; RFC 3339 with ms on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time(pub u64);

/// RFC 3339, UTC, with milliseconds. Any offset is read.
#[Scalar]
impl ScalarType for Time {
    fn parse(value: Value) -> InputValueResult<Self> {
        let Value::String(text) = &value else { return Err(InputValueError::expected_type(value)) };
        let at = chrono::DateTime::parse_from_rfc3339(text.trim()).ok();
        let ms = at.and_then(|at| u64::try_from(at.timestamp_millis()).ok());
        ms.map(Self).ok_or_else(|| InputValueError::custom(format!("`{text}` is no RFC 3339 date")))
    }

    fn to_value(&self) -> Value {
        iso(self.0).map_or(Value::Null, Value::String)
    }
}

/// A ULID: an event or a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Ulid(pub String);
scalar!(Ulid, "ULID", "26 characters: an event or a run.");

/// A UUID: an app or a function. Filters take a function's slug in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Uuid(pub String);
scalar!(Uuid, "UUID", "An app or a function; filters take a slug or a name in its place.");

/// JSON as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Bytes(pub String);
scalar!(Bytes, "Bytes", "Text, mostly JSON.");

/// A JSON object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Map(pub serde_json::Map<String, serde_json::Value>);
scalar!(Map, "Map", "A JSON object.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_with_any_offset_and_shown_in_utc() {
        let read = Time::parse(Value::String("2026-01-02T03:04:05.678+01:00".into())).unwrap();
        assert_eq!(read.to_value(), Value::String("2026-01-02T02:04:05.678Z".into()));
        assert!(Time::parse(Value::String("yesterday".into())).is_err());
        assert!(Time::parse(Value::from(7)).is_err());
    }
}
