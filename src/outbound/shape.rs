//! What an endpoint wants of an event: conditions on its content, and the form in which it is sent. Declarative and pure.
//!
//! Everything is said in JSON pointers into one document:
//! `{"id", "name", "source", "ts", "timestamp", "data": {…}}`.
//!
//! | part | does |
//! |---|---|
//! | [`Condition`] | `/data/amount gt 100`; all of an endpoint's must hold |
//! | `pick` | keeps these parts of `data`, each at its place, and nothing else |
//! | `rename` | moves parts of `data`, after `pick` |
//! | `template` | the whole body, after both: `{{/data/id}}` alone is the value itself, within a text its text |
//!
//! # Invariants
//! 1. Nothing here fails on an event: what is not there is left out, `null`, or no text.
//! 2. What a body needs is in the event: the same event gives the same body.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Conditions of one endpoint at most, and parts picked or renamed.
pub const MAX_PARTS: usize = 64;
/// Bytes of a template at most.
const MAX_TEMPLATE: usize = 16 << 10;
/// Where `pick` and `rename` may reach.
const DATA: &str = "/data/";

/// How a part of an event is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// It is this value.
    Eq,
    /// It is one of these values.
    In,
    /// Its text begins so.
    Prefix,
    /// It is there; with `false`, it is not.
    Exists,
    /// It is greater: as a number, or as a text.
    Gt,
}

/// A condition on the content of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// Which part: a JSON pointer.
    pub path: String,
    /// How it is compared.
    pub op: Op,
    /// With what.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub value: Value,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Op::Eq => "eq",
            Op::In => "in",
            Op::Prefix => "prefix",
            Op::Exists => "exists",
            Op::Gt => "gt",
        };
        write!(f, "{} {op}", self.path)?;
        if self.value.is_null() { Ok(()) } else { write!(f, " {}", self.value) }
    }
}

impl Condition {
    /// `<pointer> <op> [<value>]`; the value is JSON, or else a text. The error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.trim().splitn(3, char::is_whitespace);
        let (path, op) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let given = words.next().map(str::trim).filter(|value| !value.is_empty());
        let op = match op {
            "eq" => Op::Eq,
            "in" => Op::In,
            "prefix" => Op::Prefix,
            "exists" => Op::Exists,
            "gt" => Op::Gt,
            _ => return Err(format!("`{text}`: write <pointer> eq|in|prefix|exists|gt <value>")),
        };
        let value = given.map_or(Value::Null, |value| {
            serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()))
        });
        let condition = Self { path: path.to_owned(), op, value };
        condition.check()?;
        Ok(condition)
    }

    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        check_pointer(&self.path)?;
        let is_fit = match self.op {
            Op::Eq => true,
            Op::In => self.value.is_array(),
            Op::Prefix => self.value.is_string(),
            Op::Exists => self.value.is_null() || self.value.is_boolean(),
            Op::Gt => self.value.is_number() || self.value.is_string(),
        };
        if is_fit {
            return Ok(());
        }
        let wanted = match self.op {
            Op::In => "a list",
            Op::Prefix => "a text",
            Op::Exists => "true, false or nothing",
            Op::Eq | Op::Gt => "a number or a text",
        };
        Err(format!("`{self}`: the value must be {wanted}"))
    }

    /// Whether it holds.
    #[must_use]
    pub fn holds(&self, event: &Value) -> bool {
        let Some(part) = event.pointer(&self.path) else {
            return self.op == Op::Exists && self.value == Value::Bool(false);
        };
        match self.op {
            Op::Eq => is_same(part, &self.value),
            Op::In => self.value.as_array().is_some_and(|all| all.iter().any(|value| is_same(part, value))),
            Op::Prefix => part.as_str().zip(self.value.as_str()).is_some_and(|(part, with)| part.starts_with(with)),
            Op::Exists => self.value != Value::Bool(false),
            Op::Gt => match (part, &self.value) {
                (Value::Number(part), Value::Number(than)) => {
                    part.as_i64().zip(than.as_i64()).map_or_else(|| part.as_f64() > than.as_f64(), |(a, b)| a > b)
                }
                (Value::String(part), Value::String(than)) => part > than,
                _ => false,
            },
        }
    }
}

/// Equal, where a number is a number however it is written.
fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        _ => left == right,
    }
}

/// In which form events are sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Transform {
    /// Parts of `data` that are kept; none: all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pick: Vec<String>,
    /// Parts of `data` that move, from → to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
    /// The body, instead of `{type, timestamp, data}`: a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Value>,
}

impl Transform {
    /// Whether events are sent as they are.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.pick.len() + self.rename.len() > MAX_PARTS {
            return Err(format!("it has more than {MAX_PARTS} parts"));
        }
        for path in self.pick.iter().chain(self.rename.keys()).chain(self.rename.values()) {
            check_pointer(path)?;
            if !path.starts_with(DATA) {
                return Err(format!("`{path}` must begin with {DATA}"));
            }
        }
        match &self.template {
            Some(template) if !template.is_object() => Err("the template must be a JSON object".into()),
            Some(template) if template.to_string().len() > MAX_TEMPLATE => {
                Err(format!("the template is larger than {MAX_TEMPLATE} bytes"))
            }
            _ => Ok(()),
        }
    }

    /// The body of `event`.
    #[must_use]
    pub fn body(&self, event: &Value) -> Value {
        let mut event = event.clone();
        if !self.pick.is_empty() {
            let mut kept = Value::Object(Map::from_iter([("data".to_owned(), Value::Object(Map::new()))]));
            for path in &self.pick {
                if let Some(part) = event.pointer(path) {
                    put(&mut kept, path, part.clone());
                }
            }
            event["data"] = kept["data"].take();
        }
        // All are taken before one is put: two parts may change places.
        let taken: Vec<(&String, Value)> =
            self.rename.iter().filter_map(|(from, to)| Some((to, take(&mut event, from)?))).collect();
        for (to, part) in taken {
            put(&mut event, to, part);
        }
        match &self.template {
            Some(template) => fill(template, &event),
            None => {
                let mut body = Map::new();
                for (name, part) in [("type", "name"), ("timestamp", "timestamp"), ("data", "data")] {
                    body.insert(name.to_owned(), event[part].take());
                }
                body.into()
            }
        }
    }
}

fn check_pointer(path: &str) -> Result<(), String> {
    if path.starts_with('/') && path.len() <= 512 {
        return Ok(());
    }
    Err(format!("`{path}` is no JSON pointer such as /data/amount"))
}

/// The names on the way to a part.
fn names(path: &str) -> Vec<String> {
    path.split('/').skip(1).map(|name| name.replace("~1", "/").replace("~0", "~")).collect()
}

/// Sets a part; what is missing on the way, and what is no object, becomes one.
fn put(root: &mut Value, path: &str, part: Value) {
    let mut at = root;
    for name in names(path) {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[name.as_str()];
    }
    *at = part;
}

/// Takes a part out. Parts of lists stay: taking one would move the others.
fn take(root: &mut Value, path: &str) -> Option<Value> {
    let mut names = names(path);
    let last = names.pop()?;
    let mut at = root;
    for name in names {
        at = at.as_object_mut()?.get_mut(&name)?;
    }
    at.as_object_mut()?.shift_remove(&last)
}

fn fill(template: &Value, event: &Value) -> Value {
    match template {
        Value::String(text) => fill_text(text, event),
        Value::Array(all) => all.iter().map(|one| fill(one, event)).collect(),
        Value::Object(all) => {
            all.iter().map(|(name, one)| (name.clone(), fill(one, event))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// `{{/pointer}}` in a text. What is not closed, or begins with no `/`, stays as it is written.
fn fill_text(text: &str, event: &Value) -> Value {
    let alone = text.strip_prefix("{{/").and_then(|rest| rest.strip_suffix("}}"));
    if let Some(path) = alone.filter(|path| !path.contains("}}")) {
        return event.pointer(&format!("/{path}")).cloned().unwrap_or_default();
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(begin) = rest.find("{{/") {
        let Some(length) = rest[begin..].find("}}") else { break };
        out.push_str(&rest[..begin]);
        match event.pointer(&rest[begin + 2..begin + length]) {
            None | Some(Value::Null) => {}
            Some(Value::String(part)) => out.push_str(part),
            Some(part) => out.push_str(&part.to_string()),
        }
        rest = &rest[begin + length + 2..];
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event() -> Value {
        json!({
            "id": "e1", "name": "order/placed", "source": "shop", "ts": 1, "timestamp": "2026-11-27T05:00:00.000Z",
            "data": { "id": 7, "amount": 101, "kind": "book", "a/b": 1, "none": null, "by": { "name": "Ü", "mail": "u@x" },
                "lines": [{ "sku": "s1" }] },
        })
    }

    #[test]
    fn conditions_compare_parts_of_the_event() {
        for (text, expected) in [
            ("/data/amount gt 100", true),
            ("/data/amount gt 101", false),
            ("/data/amount gt 100.5", true),
            ("/data/amount gt \"100\"", false),
            ("/timestamp gt 2026-11-27", true),
            ("/timestamp gt 2027", false),
            ("/data/amount eq 101", true),
            ("/data/amount eq 101.0", true),
            ("/data/amount eq \"101\"", false),
            ("/data/kind eq book", true),
            ("/data/kind eq \"book\"", true),
            ("/data/kind in [\"book\",\"cd\"]", true),
            ("/data/kind in [\"cd\"]", false),
            ("/data/id in [7.0]", true),
            ("/name prefix order/", true),
            ("/data/amount prefix \"1\"", false),
            ("/data/by/mail exists", true),
            ("/data/by/mail exists true", true),
            ("/data/by/mail exists false", false),
            ("/data/none exists", true),
            ("/data/nothing exists", false),
            ("/data/nothing exists false", true),
            ("/data/nothing eq 1", false),
            ("/data/a~1b eq 1", true),
            ("/data/lines/0/sku eq s1", true),
            ("/data/by eq {\"name\":\"Ü\",\"mail\":\"u@x\"}", true),
        ] {
            let condition = Condition::parse(text).unwrap();
            assert_eq!(condition.holds(&event()), expected, "{text}");
            assert_eq!(Condition::parse(&condition.to_string()).unwrap(), condition);
        }
        for wrong in
            ["", "data eq 1", "/data", "/data is 1", "/data in 1", "/data prefix 1", "/data exists 3", "/data gt [1]"]
        {
            assert!(Condition::parse(wrong).is_err(), "{wrong}");
        }
    }

    fn transform(value: Value) -> Transform {
        let transform: Transform = serde_json::from_value(value).unwrap();
        transform.check().unwrap();
        transform
    }

    #[test]
    fn picked_parts_keep_their_place_and_renamed_ones_move() {
        let picked = transform(json!({ "pick": ["/data/id", "/data/by/name", "/data/nothing"] })).body(&event());
        assert_eq!(
            picked.to_string(),
            r#"{"type":"order/placed","timestamp":"2026-11-27T05:00:00.000Z","data":{"id":7,"by":{"name":"Ü"}}}"#
        );
        let rename = json!({ "rename": { "/data/id": "/data/order/number", "/data/nothing": "/data/x",
            "/data/amount": "/data/kind", "/data/kind": "/data/amount" } });
        let renamed = transform(rename).body(&event());
        assert_eq!(renamed["data"]["order"], json!({ "number": 7 }));
        assert_eq!((&renamed["data"]["amount"], &renamed["data"]["kind"]), (&json!("book"), &json!(101)));
        assert!(renamed["data"].get("id").is_none() && renamed["data"].get("x").is_none());
        assert_eq!(transform(json!({})).body(&event())["data"], event()["data"]);
    }

    #[test]
    fn a_template_is_the_body() {
        let template = json!({ "template": {
            "text": "{{/data/kind}} for {{/data/amount}} by {{/data/by/name}}{{/data/nothing}} {{ /x }} {{/open",
            "order": "{{/data/order}}", "by": "{{/data/by}}", "missing": "{{/data/missing}}",
            "list": [1, "{{/id}}", { "deep": "{{/data/lines/0/sku}}" }], "two": "{{/id}}{{/ts}}", "fixed": true,
        }, "rename": { "/data/id": "/data/order" } });
        assert_eq!(
            transform(template).body(&event()),
            json!({
                "text": "book for 101 by Ü {{ /x }} {{/open", "order": 7, "by": { "name": "Ü", "mail": "u@x" },
                "missing": null, "list": [1, "e1", { "deep": "s1" }], "two": "e11", "fixed": true,
            })
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for wrong in [
            json!({ "pick": ["/id"] }),
            json!({ "pick": ["data/id"] }),
            json!({ "rename": { "/data/a": "/b" } }),
            json!({ "template": [1] }),
            json!({ "template": { "x": "y".repeat(20_000) } }),
            json!({ "pick": vec!["/data/a"; 65] }),
        ] {
            let transform: Transform = serde_json::from_value(wrong.clone()).unwrap();
            assert!(transform.check().is_err(), "{wrong}");
        }
    }
}
