//! Values, and what operators make of them where they differ from standard CEL.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::EvalError;

/// Longest text that `+` makes, bytes: a chain of doublings must end.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Longest list that `+` makes.
const MAX_ITEMS: usize = 100_000;

/// A value, or the absence of one: a field that is not there.
#[derive(Debug, Clone)]
pub(super) enum Val<'a> {
    Missing,
    Here(Cow<'a, Value>),
}

impl<'a> Val<'a> {
    pub fn own(value: impl Into<Value>) -> Self {
        Self::Here(Cow::Owned(value.into()))
    }

    pub const fn borrowed(value: &'a Value) -> Self {
        Self::Here(Cow::Borrowed(value))
    }

    pub fn as_value(&self) -> Option<&Value> {
        match self {
            Self::Missing => None,
            Self::Here(value) => Some(value),
        }
    }

    pub fn into_value(self) -> Value {
        match self {
            Self::Missing => Value::Null,
            Self::Here(value) => value.into_owned(),
        }
    }

    /// JavaScript's truth, but for empty lists and maps, which are true there too.
    pub fn is_true(&self) -> bool {
        match self.as_value() {
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => *value,
            Some(Value::Number(number)) => number.as_f64().is_some_and(|number| number != 0.0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(_) | Value::Object(_)) => true,
        }
    }

    /// The member of a map, or the item of a list.
    pub fn member(&self, key: &Value) -> Val<'a> {
        let Self::Here(value) = self else { return Self::Missing };
        let pick = |value: &Value| -> Option<Value> { item(value, key).cloned() };
        match value {
            Cow::Borrowed(value) => item(value, key).map_or(Self::Missing, Self::borrowed),
            Cow::Owned(value) => pick(value).map_or(Self::Missing, Self::own),
        }
    }

    pub fn field(&self, name: &str) -> Val<'a> {
        match self {
            Self::Here(Cow::Borrowed(value)) => value.get(name).map_or(Self::Missing, Self::borrowed),
            Self::Here(Cow::Owned(value)) => value.get(name).cloned().map_or(Self::Missing, Self::own),
            Self::Missing => Self::Missing,
        }
    }
}

fn item<'v>(value: &'v Value, key: &Value) -> Option<&'v Value> {
    match (value, key) {
        (Value::Object(members), Value::String(name)) => members.get(name),
        (Value::Array(items), Value::Number(index)) => {
            let index =
                index.as_u64().or_else(|| index.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0).map(floor))?;
            items.get(usize::try_from(index).ok()?)
        }
        _ => None,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn floor(number: f64) -> u64 {
    number as u64
}

pub(super) const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// Missing equals only null.
pub(super) fn equal(one: &Val<'_>, other: &Val<'_>) -> bool {
    match (one.as_value(), other.as_value()) {
        (None, None) => false,
        (None, Some(value)) | (Some(value), None) => value.is_null(),
        (Some(one), Some(other)) => same(one, other),
    }
}

pub(super) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => compare_numbers(one, other) == Some(Ordering::Equal),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}

/// Integers exactly, anything else as doubles.
fn compare_numbers(one: &Number, other: &Number) -> Option<Ordering> {
    let integer = |number: &Number| number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    match (integer(one), integer(other)) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        _ => one.as_f64()?.partial_cmp(&other.as_f64()?),
    }
}

/// `<`, `<=`, `>`, `>=` by what `holds` says of the order. Missing is smaller than anything.
pub(super) fn compare(one: &Val<'_>, other: &Val<'_>, holds: fn(Ordering) -> bool) -> Result<bool, EvalError> {
    let (one, other) = match (one.as_value(), other.as_value()) {
        (None, None) => return Ok(false),
        (None, Some(_)) => return Ok(holds(Ordering::Less)),
        (Some(_), None) => return Ok(holds(Ordering::Greater)),
        (Some(one), Some(other)) => (one, other),
    };
    let zero = |like: &Value| match like {
        Value::Number(_) => Value::from(0),
        Value::String(_) => Value::from(""),
        Value::Bool(_) => Value::from(false),
        other => other.clone(),
    };
    let order = match (one, other) {
        (Value::Null, Value::Null) => Some(Ordering::Equal),
        (Value::Null, other) => order(&zero(other), other),
        (one, Value::Null) => order(one, &zero(one)),
        (one, other) => order(one, other),
    };
    match order {
        Some(order) => Ok(holds(order)),
        None => Err(EvalError(format!("{} and {} can't be compared", kind(one), kind(other)))),
    }
}

fn order(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => compare_numbers(one, other),
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        (Value::Bool(one), Value::Bool(other)) => Some(one.cmp(other)),
        _ => None,
    }
}

/// `+`: a missing side leaves the other, texts take numbers, lists join.
pub(super) fn add<'a>(one: Val<'a>, other: Val<'a>) -> Result<Val<'a>, EvalError> {
    let (left, right) = match (one.as_value(), other.as_value()) {
        (None, None) => return Ok(Val::own(false)),
        (None, Some(_)) | (Some(Value::Null), Some(_)) => return Ok(other),
        (Some(_), None) | (Some(_), Some(Value::Null)) => return Ok(one),
        (Some(left), Some(right)) => (left, right),
    };
    let joined = |text: String| match text.len() {
        0..=MAX_TEXT_BYTES => Ok(Val::own(text)),
        _ => Err(EvalError(format!("a text may grow to {MAX_TEXT_BYTES} bytes"))),
    };
    match (left, right) {
        (Value::String(left), right) => joined(format!("{left}{}", text(&Val::borrowed(right)))),
        (left, Value::String(right)) => joined(format!("{}{right}", text(&Val::borrowed(left)))),
        (Value::Array(left), Value::Array(right)) if left.len() + right.len() > MAX_ITEMS => {
            Err(EvalError(format!("a list may grow to {MAX_ITEMS} items")))
        }
        (Value::Array(left), Value::Array(right)) => Ok(Val::own(left.iter().chain(right).cloned().collect::<Value>())),
        _ => arithmetic("+", &one, &other),
    }
}

/// Numbers only; a missing side makes it false, as any function of a missing field.
pub(super) fn arithmetic<'a>(operator: &str, one: &Val<'a>, other: &Val<'a>) -> Result<Val<'a>, EvalError> {
    let (Some(left), Some(right)) = (one.as_value(), other.as_value()) else { return Ok(Val::own(false)) };
    let (Value::Number(left), Value::Number(right)) = (left, right) else {
        return Err(EvalError(format!("`{operator}` does not take {} and {}", kind(left), kind(right))));
    };
    if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
        let whole = match operator {
            "+" => left.checked_add(right),
            "-" => left.checked_sub(right),
            "*" => left.checked_mul(right),
            "/" if left.checked_rem(right) == Some(0) => left.checked_div(right),
            "%" => left.checked_rem(right),
            _ => None,
        };
        if let Some(whole) = whole {
            return Ok(Val::own(whole));
        }
    }
    let (left, right) = (left.as_f64().unwrap_or(f64::NAN), right.as_f64().unwrap_or(f64::NAN));
    let number = match operator {
        "+" => left + right,
        "-" => left - right,
        "*" => left * right,
        "/" => left / right,
        _ => left % right,
    };
    if !number.is_finite() {
        return Err(EvalError(format!("`{operator}` has no result: division by zero, or too large")));
    }
    Ok(Val::own(number))
}

/// As text: a text as it is, whole numbers without a fraction.
pub(super) fn text(value: &Val<'_>) -> String {
    match value.as_value() {
        None => "null".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => match number.as_f64() {
            #[allow(clippy::cast_possible_truncation)]
            Some(double) if number.is_f64() && double.fract() == 0.0 && double.abs() < 9e15 => {
                (double as i64).to_string()
            }
            _ => number.to_string(),
        },
        Some(other) => other.to_string(),
    }
}
