//! Functions and methods. A missing argument makes all of them false, but for `size`, which is 0.

use base64::Engine as _;
use cel::common::ast::operators as op;
use serde_json::Value;

use super::super::duration::time_string;
use super::EvalError;
use super::values::{Val, kind, text};

const NAMES: [&str; 26] = [
    "size",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "dyn",
    "timestamp",
    "duration",
    "type",
    "lowercase",
    "uppercase",
    "b64decode",
    "json_parse",
    "date",
    "now",
    "now_plus",
    "now_minus",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "lowerAscii",
    "upperAscii",
    "trim",
    "join",
];
const OPERATORS: [&str; 17] = [
    op::CONDITIONAL,
    op::LOGICAL_AND,
    op::LOGICAL_OR,
    op::LOGICAL_NOT,
    op::SUBSTRACT,
    op::ADD,
    op::MULTIPLY,
    op::DIVIDE,
    op::MODULO,
    op::EQUALS,
    op::NOT_EQUALS,
    op::GREATER_EQUALS,
    op::LESS_EQUALS,
    op::GREATER,
    op::LESS,
    op::NEGATE,
    op::INDEX,
];

/// Whether an expression may call it.
pub(super) fn is_function(name: &str) -> bool {
    NAMES.contains(&name) || OPERATORS.contains(&name) || [op::IN, op::NOT_STRICTLY_FALSE].contains(&name)
}

/// Largest compiled pattern of `matches`, bytes.
const PATTERN_BYTES: usize = 1 << 20;

/// Calls a function; the target of a method is its first argument.
pub(super) fn call<'a>(name: &str, args: Vec<Val<'a>>, now_ms: i64) -> Result<Val<'a>, EvalError> {
    if name == "size" {
        return size(args.first());
    }
    if !is_function(name) {
        return Err(EvalError(format!("there is no function `{name}`")));
    }
    let given: Option<Vec<&Value>> = args.iter().map(Val::as_value).collect();
    let Some(given) = given else { return Ok(Val::own(false)) };
    let wrong = || {
        let kinds: Vec<&str> = given.iter().map(|value| kind(value)).collect();
        EvalError(format!(
            "`{name}` does not take {}",
            if kinds.is_empty() { "nothing".into() } else { kinds.join(" and ") }
        ))
    };
    match (name, &given[..]) {
        (op::NEGATE, [Value::Number(number)]) => match number.as_i64().and_then(i64::checked_neg) {
            Some(negated) => Ok(Val::own(negated)),
            None => Ok(Val::own(-number.as_f64().unwrap_or_default())),
        },
        ("int" | "uint", [value]) => whole(value).map(Val::own).ok_or_else(wrong),
        ("double", [value]) => double(value).map(Val::own).ok_or_else(wrong),
        ("string", [value]) => Ok(Val::own(text(&Val::borrowed(value)))),
        ("dyn", [value]) => Ok(Val::own((*value).clone())),
        ("bool", [Value::Bool(value)]) => Ok(Val::own(*value)),
        ("bool", [Value::String(text)]) => match text.as_str() {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Val::own(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Val::own(false)),
            _ => Err(wrong()),
        },
        ("type", [value]) => Ok(Val::own(match value {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Number(number) if number.is_f64() => "double",
            Value::Number(_) => "int",
            Value::String(_) => "string",
            Value::Array(_) => "list",
            Value::Object(_) => "map",
        })),
        ("timestamp" | "date", [value]) => instant(value).map(Val::own).ok_or_else(wrong),
        ("duration", [Value::String(text)]) => signed(text).map(Val::own).ok_or_else(wrong),
        ("now", []) => Ok(Val::own(now_ms)),
        ("now_plus", [Value::String(text)]) => {
            signed(text).map(|ms| Val::own(now_ms.saturating_add(ms))).ok_or_else(wrong)
        }
        ("now_minus", [Value::String(text)]) => {
            signed(text).map(|ms| Val::own(now_ms.saturating_sub(ms))).ok_or_else(wrong)
        }
        ("lowercase" | "lowerAscii", [Value::String(text)]) => Ok(Val::own(text.to_lowercase())),
        ("uppercase" | "upperAscii", [Value::String(text)]) => Ok(Val::own(text.to_uppercase())),
        ("trim", [Value::String(text)]) => Ok(Val::own(text.trim())),
        ("contains", [Value::String(text), Value::String(part)]) => Ok(Val::own(text.contains(part.as_str()))),
        ("contains", [Value::Array(items), item]) => {
            Ok(Val::own(items.iter().any(|other| super::values::same(item, other))))
        }
        ("startsWith", [Value::String(text), Value::String(part)]) => Ok(Val::own(text.starts_with(part.as_str()))),
        ("endsWith", [Value::String(text), Value::String(part)]) => Ok(Val::own(text.ends_with(part.as_str()))),
        ("matches", [Value::String(text), Value::String(pattern)]) => {
            let compiled = regex::RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build();
            compiled.map(|regex| Val::own(regex.is_match(text))).map_err(|error| EvalError(error.to_string()))
        }
        ("join", [Value::Array(items)]) => Ok(Val::own(joined(items, ""))),
        ("join", [Value::Array(items), Value::String(between)]) => Ok(Val::own(joined(items, between))),
        ("b64decode", [Value::String(text)]) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim()).map_err(|_| wrong())?;
            String::from_utf8(bytes).map(Val::own).map_err(|_| wrong())
        }
        ("json_parse", [Value::String(text)]) => {
            serde_json::from_str::<Value>(text).map(Val::own).map_err(|error| EvalError(error.to_string()))
        }
        _ => Err(wrong()),
    }
}

fn size<'a>(value: Option<&Val<'a>>) -> Result<Val<'a>, EvalError> {
    let size = match value.and_then(Val::as_value) {
        None | Some(Value::Null) => 0,
        Some(Value::String(text)) => text.chars().count(),
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(members)) => members.len(),
        Some(other) => return Err(EvalError(format!("`size` does not take {}", kind(other)))),
    };
    Ok(Val::own(size))
}

fn joined(items: &[Value], between: &str) -> String {
    items.iter().map(|item| text(&Val::borrowed(item))).collect::<Vec<_>>().join(between)
}

#[allow(clippy::cast_possible_truncation)]
fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|number| number as i64)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(value) => Some(i64::from(*value)),
        _ => None,
    }
}

fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A date in the usual ways of writing it, or ms, as ms since the epoch.
fn instant(value: &Value) -> Option<i64> {
    if value.is_number() {
        return whole(value);
    }
    let text = value.as_str()?.trim();
    let midnight = |date: chrono::NaiveDate| date.and_hms_opt(0, 0, 0).map(|at| at.and_utc());
    chrono::DateTime::parse_from_rfc3339(text)
        .or_else(|_| chrono::DateTime::parse_from_rfc2822(text))
        .map(|at| at.to_utc())
        .ok()
        .or_else(|| {
            let naive = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"];
            naive.iter().find_map(|form| chrono::NaiveDateTime::parse_from_str(text, form).ok()).map(|at| at.and_utc())
        })
        .or_else(|| {
            let days = ["%Y-%m-%d", "%Y/%m/%d", "%m/%d/%Y"];
            days.iter().find_map(|form| chrono::NaiveDate::parse_from_str(text, form).ok()).and_then(midnight)
        })
        .map(|at| at.timestamp_millis())
}

fn signed(text: &str) -> Option<i64> {
    let (sign, rest) = text.trim().strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    time_string(rest).and_then(|ms| i64::try_from(ms).ok()).map(|ms| sign * ms)
}
