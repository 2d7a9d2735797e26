//! Operations: what an SDK reports in a 206 answer.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// SHA-1 of `complete`: the id of every `RunComplete`.
pub const COMPLETE: &str = "0737c22d3bfae812339732d14d8c7dbd6dc4e09c";

/// One operation, as sent. Unknown members are ignored.
#[derive(Debug, Clone, Deserialize)]
pub struct Op {
    /// SHA-1 of the step's id, hex.
    #[serde(default)]
    pub id: String,
    /// `StepRun`, `Sleep`, ….
    #[serde(default)]
    pub op: String,
    /// The user's step id; for `Sleep` the duration, for `WaitForEvent` the event.
    #[serde(default)]
    pub name: Option<String>,
    /// For people.
    #[serde(default, rename = "displayName")]
    pub display_name: Option<String>,
    /// Depends on the operation.
    #[serde(default)]
    pub opts: Option<Value>,
    /// The step's result, exact text; `None` for null.
    #[serde(default)]
    pub data: Option<Box<RawValue>>,
    /// The step's error.
    #[serde(default)]
    pub error: Option<Value>,
    /// When the step ran, ns, and for how long.
    #[serde(default)]
    pub timing: Option<Timing>,
}

/// `{"a": <unix ns>, "b": <duration ns>}`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Timing {
    /// When it began.
    #[serde(default)]
    pub a: f64,
    /// How long it took.
    #[serde(default)]
    pub b: f64,
}

impl Op {
    /// What people call the step.
    #[must_use]
    pub fn label(&self) -> &str {
        let named = self.display_name.as_deref().or(self.name.as_deref());
        named.filter(|name| !name.is_empty()).unwrap_or(&self.id)
    }

    /// One of the options as text; empty counts as absent.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        self.opts.as_ref()?.get(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// Its group of parallel steps is a race: discovery follows each.
    #[must_use]
    pub fn is_race(&self) -> bool {
        self.option("parallelMode") == Some("race")
    }

    /// The bare result as JSON text.
    #[must_use]
    pub fn result(&self) -> &str {
        self.data.as_deref().map_or("null", RawValue::get)
    }

    /// Begin and duration, ns.
    #[must_use]
    pub fn times(&self) -> Option<(u64, u64)> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        self.timing.filter(|timing| timing.a > 0.0).map(|timing| (timing.a as u64, timing.b.max(0.0) as u64))
    }

    /// Reported for later, not part of the run's flow.
    #[must_use]
    pub fn is_lazy(&self) -> bool {
        matches!(self.op.as_str(), "DeferAdd" | "DeferAbort" | "None")
    }

    /// Completed only by something that comes after the answer.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        matches!(
            self.op.as_str(),
            "StepPlanned" | "Sleep" | "WaitForEvent" | "WaitForSignal" | "InvokeFunction" | "Gateway" | "AIGateway"
        )
    }
}

/// Reads a 206 body: a list, or one operation.
pub fn parse(body: &str) -> Result<Vec<Op>, String> {
    let text = body.trim_start();
    if text.starts_with('{') {
        return serde_json::from_str(text).map(|op| vec![op]).map_err(|error| error.to_string());
    }
    let ops: Vec<Option<Op>> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    ops.into_iter().map(|op| op.ok_or_else(|| "an operation is null".to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sdks_spellings_are_read() {
        let js = parse(r#"[{"id":"a","op":"StepRun","name":"b","displayName":"Named","opts":{"input":[41]},"data":9007199254740993,"timing":{"a":1795469392061000000,"b":5}}]"#).unwrap();
        assert_eq!((js[0].label(), js[0].result()), ("Named", "9007199254740993"));
        let py = parse(r#"[{"id":"a","op":"Sleep","name":"2026-11-25T00:00:00Z","opts":null,"data":null,"userland":{"id":"a","index":null}}]"#).unwrap();
        assert_eq!((py[0].result(), py[0].option("duration")), ("null", None));
        assert_eq!(parse(r#"{"id":"a","op":"RunComplete","data":{"x":1}}"#).unwrap()[0].result(), r#"{"x":1}"#);
        assert!(parse("[]").unwrap().is_empty());
        assert!(parse("[null]").is_err());
        assert!(parse("<html>").is_err());
    }
}
