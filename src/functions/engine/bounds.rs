//! Flow control for one event: every key evaluated, every group named (protocol sections A14, A15).
//!
//! A group is what shares a limit: feature, owner, key as registered and its value. Its id is a hash of these, so that a
//! value of any length and content makes a short name.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::expr::{Expr, Roots, Scope};
use super::super::registry::Function;
use super::super::registry::flow::{self, SingletonMode};
use super::super::store::{Bounds, IntoBatch, IntoDebounce, Rate, Single, SlotLimit, StartThrottle};
use super::Engine;

/// A batch this large goes on, bytes.
const BATCH_BYTES: u64 = 10 << 20;
/// Priority is clamped to this, s.
const PRIORITY_MAX_S: i64 = 43_200;
/// Longest value of a key that is kept to be shown, characters.
const SHOWN: usize = 120;
/// The group of events whose key has no value.
const INVALID: &str = "<invalid>";

/// Which stages an event goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stages {
    /// All.
    All,
    /// A rerun, a replay, a call by hand: no batch, rate limit or debounce.
    Direct,
}

impl Engine {
    /// The bounds of a run of `function` for an event; the error says why there is to be no run.
    pub(super) fn bounds(&self, function: &Function, event: &Value, stages: Stages) -> Result<Bounds, String> {
        let flow = &function.flow;
        let keys = Keys { engine: self, function, event };
        let mut bounds = Bounds {
            limits: flow.concurrency.iter().map(|limit| keys.slots(limit)).collect(),
            throttle: flow.throttle.as_ref().map(|throttle| keys.throttle(throttle)),
            priority_s: flow.priority.as_ref().map_or(0, |text| keys.priority(text)),
            single: flow.singleton.as_ref().and_then(|singleton| keys.single(singleton)),
            ..Bounds::default()
        };
        if stages == Stages::Direct {
            return Ok(bounds);
        }
        match &flow.batch {
            Some(batch) => bounds.batch = keys.batch(batch),
            None => {
                bounds.rate = match &flow.rate_limit {
                    Some(limit) => keys.rate(limit)?,
                    None => None,
                };
                bounds.debounce = flow.debounce.as_ref().map(|debounce| keys.debounce(debounce));
            }
        }
        Ok(bounds)
    }
}

/// The keys of one function, for one event.
struct Keys<'a> {
    engine: &'a Engine,
    function: &'a Function,
    event: &'a Value,
}

impl Keys<'_> {
    fn scope(&self) -> Scope<'_> {
        Scope { event: Some(self.event), async_event: None, now_ms: chrono::Utc::now().timestamp_millis() }
    }

    fn compiled(&self, text: &str) -> Result<Expr, String> {
        let expr = self.engine.expression(text).map_err(|error| error.to_string())?;
        expr.check(Roots::Event).map_err(|error| error.to_string())?;
        Ok(expr)
    }

    fn value(&self, text: &str) -> Result<Value, String> {
        self.compiled(text)?.evaluate(&self.scope()).map_err(|error| error.to_string())
    }

    fn text(&self, text: &str) -> Result<String, String> {
        self.compiled(text)?.key(&self.scope()).map_err(|error| error.to_string())
    }

    fn own(&self) -> String {
        self.function.id.to_string()
    }

    fn slots(&self, limit: &flow::Limit) -> SlotLimit {
        // What can't be evaluated stands for its own text.
        let value = limit.key.as_ref().map(|key| self.text(key).unwrap_or_else(|_| key.clone())).unwrap_or_default();
        let is_shared = limit.scope != flow::Scope::Fn;
        let owner = if is_shared { limit.scope.as_str().to_owned() } else { self.own() };
        let kind = if limit.holds_run { "runs" } else { "steps" };
        SlotLimit {
            g: group("c", &[&owner, kind, limit.key.as_deref().unwrap_or_default(), &value]),
            n: limit.limit,
            k: limit.name(),
            v: shown(&value),
            holds_run: limit.holds_run,
            is_shared,
        }
    }

    fn throttle(&self, throttle: &flow::Throttle) -> StartThrottle {
        let key = throttle.key.clone().unwrap_or_default();
        let value = if key.is_empty() { String::new() } else { self.text(&key).unwrap_or_else(|_| key.clone()) };
        StartThrottle {
            g: group("t", &[&self.own(), &key, &value]),
            n: throttle.limit,
            burst: throttle.burst,
            ms: throttle.period_ms,
            k: format!("throttle {key}").trim_end().to_owned(),
            v: shown(&value),
        }
    }

    /// Not a whole number, or no value: 0.
    fn priority(&self, text: &str) -> i64 {
        let whole = |value: Value| {
            #[allow(clippy::cast_possible_truncation)]
            value.as_i64().or_else(|| value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15).map(|n| n as i64))
        };
        self.value(text).ok().and_then(whole).unwrap_or(0).clamp(-PRIORITY_MAX_S, PRIORITY_MAX_S)
    }

    /// A key that is `false` makes no singleton, and neither does one without a value for this event.
    fn single(&self, singleton: &flow::Singleton) -> Option<Single> {
        let key = singleton.key.clone().unwrap_or_default();
        let value = match self.compiled(&key) {
            _ if key.is_empty() => String::new(),
            Err(_) => key.clone(),
            Ok(expr) => match expr.evaluate(&self.scope()) {
                Ok(Value::Bool(false)) => return None,
                Ok(_) => expr.key(&self.scope()).ok()?,
                Err(error) => {
                    let function = self.function.slug.as_str();
                    tracing::warn!(function, key, error = %error, "no singleton for this event: its key has no value");
                    return None;
                }
            },
        };
        let cancels = singleton.mode == SingletonMode::Cancel;
        Some(Single { g: group("s", &[&self.own(), &key, &value]), cancels })
    }

    /// `None`: the event runs alone.
    fn batch(&self, batch: &flow::Batch) -> Option<IntoBatch> {
        if let Some(condition) = &batch.condition {
            let holds = self.compiled(condition).ok()?.matches(&self.scope()).unwrap_or(false);
            if !holds {
                return None;
            }
        }
        let (key, value) = self.strict(batch.key.as_deref());
        Some(IntoBatch {
            g: group("b", &[&self.own(), &key, &value]),
            n: batch.max_size,
            ms: batch.timeout_ms,
            bytes: BATCH_BYTES,
            k: format!("batch {key}").trim_end().to_owned(),
            v: shown(&value),
        })
    }

    /// `None` for a key that is `false`: not limited.
    fn rate(&self, limit: &flow::RateLimit) -> Result<Option<Rate>, String> {
        let key = limit.key.clone().unwrap_or_default();
        let mut value = String::new();
        if !key.is_empty() {
            let no_value = |error: String| format!("the key `{key}` of its rate limit has no value: {error}");
            if self.value(&key).map_err(no_value)? == Value::Bool(false) {
                return Ok(None);
            }
            value = self.text(&key).map_err(no_value)?;
        }
        let g = group("r", &[&self.own(), &key, &value]);
        Ok(Some(Rate { g, n: limit.limit, ms: limit.period_ms }))
    }

    fn debounce(&self, debounce: &flow::Debounce) -> IntoDebounce {
        let (key, value) = self.strict(debounce.key.as_deref());
        IntoDebounce {
            g: group("d", &[&self.own(), &key, &value]),
            ms: debounce.period_ms,
            max: debounce.timeout_ms,
            ts: self.event["ts"].as_i64().unwrap_or_default(),
            k: format!("debounce {key}").trim_end().to_owned(),
            v: shown(&value),
        }
    }

    /// A key that was checked at registration, and its value; one without a value for this event is one group.
    fn strict(&self, key: Option<&str>) -> (String, String) {
        let key = key.unwrap_or_default();
        let value = if key.is_empty() { String::new() } else { self.text(key).unwrap_or_else(|_| INVALID.to_owned()) };
        (key.to_owned(), value)
    }
}

/// A short name of what shares a limit; lengths keep the parts apart.
fn group(feature: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    format!("{feature}{}", &hex::encode(hash.finalize())[..20])
}

fn shown(value: &str) -> String {
    value.chars().take(SHOWN).collect()
}
