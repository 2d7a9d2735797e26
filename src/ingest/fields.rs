//! One level of a JSON object with its values as exact text: what normalisers and the event API read from.
//!
//! Nothing is converted until it is asked for, so a value that is only passed on keeps its spelling, and the nesting
//! limit of a full parse does not apply. Of repeated keys the last one counts. A wrong type reads as absent.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Largest integer that every JSON implementation reads exactly: 2^53.
pub const MAX_SAFE_INTEGER: i64 = 1 << 53;

/// The members of one JSON object, in order.
#[derive(Debug, Clone, Default)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Reads the members of the object `text`.
    pub fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The text of a member that is present and not null.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        let (_, value) = self.0.iter().rev().find(|(name, _)| name == key)?;
        (value.get() != "null").then(|| value.get())
    }

    /// The members of a nested object; empty when it is something else.
    #[must_use]
    pub fn object(&self, key: &str) -> Self {
        self.get(key).and_then(|text| Self::parse(text).ok()).unwrap_or_default()
    }

    /// A member that is a string.
    #[must_use]
    pub fn string(&self, key: &str) -> Option<String> {
        self.get(key).and_then(|text| serde_json::from_str(text).ok())
    }

    /// A member as text: a string as it is, a number in its shortest form, a boolean by name, else empty.
    #[must_use]
    pub fn text(&self, key: &str) -> String {
        self.get(key).map(as_text).unwrap_or_default()
    }

    /// A member that is an integer up to 2^53, as a number or as a decimal string.
    #[must_use]
    pub fn integer(&self, key: &str) -> Option<i64> {
        self.get(key).and_then(as_integer)
    }

    /// A member that is an array, item by item; empty when it is something else.
    #[must_use]
    pub fn items(&self, key: &str) -> Vec<&'a str> {
        self.get(key).map(items).unwrap_or_default()
    }

    /// The text of a member that is an object.
    #[must_use]
    pub fn object_text(&self, key: &str) -> Option<&'a str> {
        self.get(key).filter(|text| text.starts_with('{'))
    }

    /// The first of these members that is present and not null, as text.
    #[must_use]
    pub fn first_text(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| self.get(key)).map(as_text)
    }

    /// The members in order, repeated keys included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.get()))
    }
}

/// The items of the array `text`; none when it is something else.
#[must_use]
pub fn items(text: &str) -> Vec<&str> {
    serde_json::from_str::<Vec<&RawValue>>(text)
        .map(|items| items.into_iter().map(RawValue::get).collect())
        .unwrap_or_default()
}

/// `text` without the blanks between its tokens, as `JSON.stringify` writes it but for numbers, which keep their
/// spelling. `None` when it is no JSON. One pass: it runs on text that nobody has vouched for.
#[must_use]
pub fn compact(text: &str) -> Option<String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
    let mut out = String::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b' ' | b'\t' | b'\r' | b'\n' => at += 1,
            b'"' => {
                let (mut end, mut is_escaped) = (at + 1, false);
                while bytes.get(end).is_some_and(|&byte| byte != b'"') {
                    is_escaped |= bytes[end] == b'\\';
                    end += if bytes[end] == b'\\' { 2 } else { 1 };
                }
                let string = text.get(at..=end)?;
                // Half of a surrogate pair, as cutting a text makes it, is no string to us: it stays as it is spelled.
                match is_escaped.then(|| serde_json::from_str::<String>(string)) {
                    Some(Ok(decoded)) => out.push_str(&json_string(&decoded)),
                    _ => out.push_str(string),
                }
                at = end + 1;
            }
            _ => {
                let rest = &bytes[at..];
                let end = rest.iter().position(|b| b" \t\r\n\"".contains(b)).unwrap_or(rest.len());
                out.push_str(text.get(at..at + end)?);
                at += end;
            }
        }
    }
    Some(out)
}

/// Writes an object from members whose values are JSON texts.
#[must_use]
pub fn object_text<'m>(members: impl IntoIterator<Item = (&'m str, &'m str)>) -> String {
    let mut text = String::from("{");
    for (key, value) in members {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&json_string(key));
        text.push(':');
        text.push_str(value);
    }
    text.push('}');
    text
}

/// `text` as a JSON string.
#[must_use]
pub fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A JSON value as text; see [`Fields::text`].
#[must_use]
pub fn as_text(json: &str) -> String {
    match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str(json).unwrap_or_default(),
        Some(b't' | b'f') => json.to_owned(),
        Some(b'{' | b'[') | None => String::new(),
        Some(_) => match as_integer(json) {
            Some(integer) => integer.to_string(),
            // Integers past 2^53 keep their digits; other numbers take the shortest form that reads back the same.
            None if json.bytes().all(|b| b.is_ascii_digit() || b == b'-') => json.to_owned(),
            None => json.parse::<f64>().map(|number| number.to_string()).unwrap_or_default(),
        },
    }
}

fn as_integer(json: &str) -> Option<i64> {
    if json.starts_with('"') {
        let text: String = serde_json::from_str(json).ok()?;
        let digits = text.strip_prefix('-').unwrap_or(&text);
        let is_decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        return is_decimal.then(|| text.parse().ok()).flatten().filter(is_safe);
    }
    if let Ok(integer) = json.parse::<i64>() {
        return Some(integer).filter(is_safe);
    }
    let number = json.parse::<f64>().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53, so exact")]
    (number.fract() == 0.0 && number.abs() <= MAX_SAFE_INTEGER as f64).then_some(number as i64)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature of Option::filter")]
fn is_safe(integer: &i64) -> bool {
    (-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(integer)
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some((Key(key), value)) = map.next_entry()? {
                    members.push((key, value));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members).map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_strings_and_booleans_read_as_text_and_other_types_as_empty() {
        let object =
            r#"{"s":"a\"b","i":7,"f":7.0,"x":1.50,"big":9007199254740993,"b":true,"n":null,"o":{},"l":[1],"e":1e3}"#;
        let fields = Fields::parse(object).unwrap();
        let texts = ["s", "i", "f", "x", "big", "b", "n", "o", "l", "e", "absent"].map(|key| fields.text(key));
        assert_eq!(texts, ["a\"b", "7", "7", "1.5", "9007199254740993", "true", "", "", "", "1000", ""]);
    }

    #[test]
    fn compact_text_is_what_javascript_would_write_and_numbers_keep_their_spelling() {
        let indented = "{ \"a\" : [ 1.50, true ,null ],\n\t\"b c\": \"x \\u00e9\\/ \\\" \\n\" , \"ü\": {} }";
        assert_eq!(compact(indented).unwrap(), r#"{"a":[1.50,true,null],"b c":"x é/ \" \n","ü":{}}"#);
        assert_eq!(compact("{\"a\":"), None);
        assert_eq!(compact(&"[".repeat(100_000)), None);
    }

    #[test]
    fn integers_are_whole_and_exact() {
        let fields =
            Fields::parse(r#"{"a":7,"b":"42","c":7.5,"d":"7x","e":9007199254740993,"f":9007199254740992,"g":"+1"}"#)
                .unwrap();
        let integers = ["a", "b", "c", "d", "e", "f", "g"].map(|key| fields.integer(key));
        assert_eq!(integers, [Some(7), Some(42), None, None, None, Some(MAX_SAFE_INTEGER), None]);
    }

    #[test]
    fn the_last_of_repeated_keys_counts_and_depth_is_not_limited() {
        assert_eq!(Fields::parse(r#"{"a":1,"\u0061":2}"#).unwrap().integer("a"), Some(2));
        let deep = format!("{}1{}", "{\"a\":".repeat(128), "}".repeat(128));
        assert!(Fields::parse(&deep).is_ok());
    }
}
