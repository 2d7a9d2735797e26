//! JSON kept as the exact text that arrived: large integers, key order, duplicate keys and number spelling survive.
//!
//! `serde_json::value::RawValue` does not survive MessagePack, so events hold this type: a MessagePack string on the
//! wire, raw JSON at the JSON edges.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Deepest accepted nesting of objects and arrays.
pub const MAX_JSON_DEPTH: usize = 128;

/// The text of one JSON object, checked once. Never empty: the default is `{}`. Cheap to clone, however long.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonObject(Arc<str>);

/// Why a text is not an acceptable JSON object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON at all; the source names line and column.
    #[error("not valid JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// JSON, but not an object.
    #[error("must be a JSON object, got {0}")]
    NotAnObject(&'static str),
    /// Over [`MAX_JSON_DEPTH`].
    #[error("nested deeper than {MAX_JSON_DEPTH} levels")]
    TooDeep,
}

impl JsonObject {
    /// Checks `text` and keeps it as it is, without the blanks around it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if depth(text.as_bytes()) > MAX_JSON_DEPTH {
            // Deep text may still be invalid; say so first, since that is the more useful answer.
            serde_json::from_str::<serde::de::IgnoredAny>(text)?;
            return Err(Error::TooDeep);
        }
        serde_json::from_str::<serde::de::IgnoredAny>(text)?;
        match text.as_bytes().first() {
            Some(b'{') => Ok(Self(text.into())),
            Some(b'[') => Err(Error::NotAnObject("an array")),
            Some(b'"') => Err(Error::NotAnObject("a string")),
            Some(b't' | b'f') => Err(Error::NotAnObject("a boolean")),
            Some(b'n') => Err(Error::NotAnObject("null")),
            _ => Err(Error::NotAnObject("a number")),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same with more members behind its own. Values are JSON texts.
    #[must_use]
    pub fn with<'a>(&self, members: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        // It was checked, and has no blanks around it: the last byte closes the object.
        let mut text = self.0.get(..self.0.len().saturating_sub(1)).unwrap_or("{").trim_end().to_owned();
        for (key, value) in members {
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&serde_json::Value::from(key).to_string());
            text.push(':');
            text.push_str(&value);
        }
        text.push('}');
        Self(text.into())
    }

    /// The text as a parsed value. Loses what `serde_json::Value` can't hold: for display and rules only.
    #[must_use]
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

/// Nesting depth, counted outside strings. Correct for valid JSON, harmless for other text.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

impl Default for JsonObject {
    fn default() -> Self {
        Self("{}".into())
    }
}

impl fmt::Debug for JsonObject {
    /// Payloads never reach logs: only the size is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JsonObject({} bytes)", self.0.len())
    }
}

impl From<serde_json::Map<String, serde_json::Value>> for JsonObject {
    fn from(map: serde_json::Map<String, serde_json::Value>) -> Self {
        Self(serde_json::Value::Object(map).to_string().into())
    }
}

impl Serialize for JsonObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
            raw.serialize(serializer)
        } else {
            serializer.serialize_str(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let raw = Box::<RawValue>::deserialize(deserializer)?;
            Self::parse(raw.get()).map_err(serde::de::Error::custom)
        } else {
            // Checked when it was appended; a handler that parses it will find damage, if any.
            let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            if text.starts_with('{') {
                Ok(Self(text.into()))
            } else {
                Err(serde::de::Error::custom("data is not a JSON object"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_added_behind_what_is_there() {
        let with = |text: &str| {
            let object = JsonObject::parse(text).unwrap();
            object.with([("a\"b", "1".to_owned()), ("c", "\"x\"".to_owned())]).as_str().to_owned()
        };
        assert_eq!(with("{}"), r#"{"a\"b":1,"c":"x"}"#);
        assert_eq!(with("{ \n}"), r#"{"a\"b":1,"c":"x"}"#);
        assert_eq!(with(r#" {"n":1e3 } "#), r#"{"n":1e3,"a\"b":1,"c":"x"}"#);
        assert_eq!(JsonObject::default().with([]), JsonObject::default());
    }

    #[test]
    fn the_text_survives_both_encodings_to_the_letter() {
        let text = r#"{"n":9007199254740993,"b":1,"a":1.0,"e":1e3,"b":2}"#;
        let object = JsonObject::parse(text).unwrap();
        let packed = rmp_serde::to_vec_named(&object).unwrap();
        assert_eq!(rmp_serde::from_slice::<JsonObject>(&packed).unwrap().as_str(), text);
        assert_eq!(serde_json::to_string(&object).unwrap(), text);
        assert_eq!(serde_json::from_str::<JsonObject>(text).unwrap().as_str(), text);
    }

    #[test]
    fn only_shallow_objects_are_accepted() {
        assert!(matches!(JsonObject::parse("[1]"), Err(Error::NotAnObject("an array"))));
        assert!(matches!(JsonObject::parse("null"), Err(Error::NotAnObject("null"))));
        assert!(matches!(JsonObject::parse("{\"a\":"), Err(Error::Syntax(_))));
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(JsonObject::parse(&nested(128)).is_ok());
        assert!(matches!(JsonObject::parse(&nested(129)), Err(Error::TooDeep)));
        assert!(JsonObject::parse(r#"{"a":"[[[[\"[["}"#).is_ok());
    }
}
