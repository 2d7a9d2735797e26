//! `dedup_key = "data.url"`: a CEL expression that derives an event's dedup key where its sender gave none.

use std::fmt;
use std::sync::Arc;

use cel::{Context, Program, Value};

use crate::streams::envelope::MAX_DEDUP_KEY_CHARS;
use crate::streams::family::Family;
use crate::streams::json::JsonObject;

/// A compiled expression over `name`, `source` and `data`.
#[derive(Clone)]
pub struct DedupKey {
    text: String,
    program: Arc<Program>,
}

impl DedupKey {
    /// Compiles an expression; the error names what is wrong.
    pub fn compile(text: &str) -> Result<Self, String> {
        let program = Program::compile(text).map_err(|error| error.to_string())?;
        Ok(Self { text: text.to_owned(), program: Arc::new(program) })
    }

    /// The key of one event; `None` when the expression yields no text, an empty one or one that is too long.
    #[must_use]
    pub fn derive(&self, name: &Family, source: &str, data: &JsonObject) -> Option<String> {
        let mut context = Context::default();
        context.add_variable("name", name.as_str()).ok()?;
        context.add_variable("source", source).ok()?;
        context.add_variable("data", data.to_value()).ok()?;
        let key = match self.program.execute(&context).ok()? {
            Value::String(text) => text.trim().to_owned(),
            Value::Int(number) => number.to_string(),
            Value::UInt(number) => number.to_string(),
            _ => return None,
        };
        (!key.is_empty() && key.chars().count() <= MAX_DEDUP_KEY_CHARS).then_some(key)
    }
}

impl fmt::Debug for DedupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl fmt::Display for DedupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for DedupKey {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_derived_from_the_data_or_not_at_all() {
        let data = JsonObject::parse(r#"{"url":"https://example.com/a","n":7,"list":[]}"#).unwrap();
        let name: Family = "discovery/noted".parse().unwrap();
        let derive = |text: &str| DedupKey::compile(text).unwrap().derive(&name, "cli", &data);
        assert_eq!(derive("data.url").as_deref(), Some("https://example.com/a"));
        assert_eq!(derive("name + ':' + data.url").as_deref(), Some("discovery/noted:https://example.com/a"));
        assert_eq!(derive("data.n").as_deref(), Some("7"));
        assert_eq!(derive("data.missing"), None);
        assert_eq!(derive("data.list"), None);
        assert!(DedupKey::compile("data.").is_err());
    }
}
