//! Conditions and keys: CEL as Inngest runs it (protocol section A15).
//!
//! The grammar is the `cel` crate's; the evaluator is ours, because the semantics are not standard CEL: a field may be
//! missing, a missing field is smaller than anything, conditions have JavaScript's truthiness, numbers of a payload
//! compare with integers, and text takes numbers by `+`. Instants and durations are numbers of ms.
//!
//! | file | does |
//! |---|---|
//! | `node` | the syntax tree, made of the parser's; what names occur in it |
//! | `eval` | evaluation, bounded by steps |
//! | `values` | equality, order, arithmetic, truth |
//! | `functions` | functions and methods |
//!
//! # Invariants
//! 1. Evaluation ends: at most [`STEPS`] nodes are visited, whatever the payload.
//! 2. No input panics.

mod eval;
mod functions;
mod node;
mod values;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use eval::Evaluation;
use node::Node;

/// Longest source, bytes.
pub const MAX_BYTES: usize = 4096;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 64;
/// Nodes visited by one evaluation.
pub const STEPS: u32 = 100_000;

/// A parsed expression. Cheap to clone.
#[derive(Clone)]
pub struct Expr {
    text: Arc<str>,
    root: Arc<Node>,
}

/// Which names an expression may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roots {
    /// `event`.
    Event,
    /// `event`, and `async`: the arriving event.
    EventAndAsync,
    /// The fields of an envelope, by their own names ([`ENVELOPE`]).
    Envelope,
}

/// What [`Roots::Envelope`] knows.
pub const ENVELOPE: [&str; 7] = ["name", "source", "ts", "data", "priority", "dedupKey", "meta"];

/// What an expression looks at.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The run's event, or the part of it that was kept.
    pub event: Option<&'a Value>,
    /// The arriving event.
    pub async_event: Option<&'a Value>,
    /// For `now()`, ms.
    pub now_ms: i64,
}

/// The text is not an expression, or names what there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", position.map(|at| format!(" (at character {})", at + 1)).unwrap_or_default())]
pub struct ExprError {
    /// What is wrong.
    pub message: String,
    /// Where, bytes from the start.
    pub position: Option<usize>,
}

/// The expression has no value for this event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EvalError(pub String);

impl ExprError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), position: None }
    }
}

impl Expr {
    /// Parses: syntax, size and depth; names are not looked at.
    pub fn parse(text: &str) -> Result<Self, ExprError> {
        if text.len() > MAX_BYTES {
            return Err(ExprError::new(format!("it is {} bytes long; at most {MAX_BYTES} are allowed", text.len())));
        }
        if text.trim().is_empty() {
            return Err(ExprError::new("it is empty"));
        }
        Ok(Self { text: text.into(), root: Arc::new(node::parse(text)?) })
    }

    /// Parses, and checks that only declared names and known functions occur.
    pub fn compile(text: &str, roots: Roots) -> Result<Self, ExprError> {
        let expr = Self::parse(text)?;
        expr.check(roots)?;
        Ok(expr)
    }

    /// The source.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether only declared names and known functions occur.
    pub fn check(&self, roots: Roots) -> Result<(), ExprError> {
        self.root.check(roots, &mut Vec::new())
    }

    /// Its value; a missing field is null.
    pub fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, EvalError> {
        Ok(Evaluation::new(scope).value(&self.root)?.into_value())
    }

    /// For triggers, cancellations and waits: whether it holds. A value that is no boolean is an error.
    pub fn matches(&self, scope: &Scope<'_>) -> Result<bool, EvalError> {
        match Evaluation::new(scope).value(&self.root)?.as_value() {
            Some(Value::Bool(holds)) => Ok(*holds),
            // A missing field in the place of a condition.
            None => Ok(false),
            Some(other) => Err(EvalError(format!("the condition is {}, not true or false", values::kind(other)))),
        }
    }

    /// With [`Roots::Envelope`]: whether it holds for an envelope.
    pub fn holds_for(&self, envelope: &Value) -> Result<bool, EvalError> {
        match self.value_for(envelope)? {
            Value::Bool(holds) => Ok(holds),
            Value::Null => Ok(false),
            other => Err(EvalError(format!("the condition is {}, not true or false", values::kind(&other)))),
        }
    }

    /// With [`Roots::Envelope`]: its value for an envelope.
    pub fn value_for(&self, envelope: &Value) -> Result<Value, EvalError> {
        let scope = Scope { event: Some(envelope), async_event: None, now_ms: 0 };
        Ok(Evaluation::of_envelope(&scope).value(&self.root)?.into_value())
    }

    /// For flow control: its value as text.
    pub fn key(&self, scope: &Scope<'_>) -> Result<String, EvalError> {
        Ok(values::text(&Evaluation::new(scope).value(&self.root)?))
    }

    /// The part of the run's event that the expression looks at: what a wait has to keep of it.
    #[must_use]
    pub fn event_part(&self, event: &Value) -> Value {
        let mut paths = Vec::new();
        self.root.paths("event", &mut paths);
        let mut part = Value::Object(serde_json::Map::new());
        for path in paths {
            if path.is_empty() {
                return event.clone();
            }
            copy(event, &mut part, &path);
        }
        part
    }
}

impl Expr {
    /// A field of `async` that must equal a value known now, for the expression to hold: its path and that value, where
    /// there is such a field. Only what `&&` joins is looked at.
    #[must_use]
    pub fn sought(&self, event: &Value) -> Option<(Vec<String>, Value)> {
        self.root.equalities().into_iter().find_map(|(path, other)| {
            let value = match other {
                Node::Literal(value) => value.clone(),
                other => other.path("event")?.iter().try_fold(event, |value, name| value.get(name))?.clone(),
            };
            let is_scalar = value.is_string() || value.is_number() || value.is_boolean();
            is_scalar.then(|| (path.into_iter().map(str::to_owned).collect(), value))
        })
    }
}

/// Copies what is at `path`, if anything is.
fn copy(from: &Value, to: &mut Value, path: &[&str]) {
    let (Some((first, rest)), Some(object)) = (path.split_first(), to.as_object_mut()) else { return };
    let Some(source) = from.get(first) else { return };
    if rest.is_empty() || !source.is_object() {
        object.insert((*first).to_owned(), source.clone());
    } else {
        let slot = object.entry(*first).or_insert_with(|| Value::Object(serde_json::Map::new()));
        copy(source, slot, rest);
    }
}

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
