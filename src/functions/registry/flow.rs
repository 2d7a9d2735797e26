//! Flow control as a function registers it: limits on what runs at once, how often it starts, and what makes one run of
//! many events (protocol section A14).
//!
//! Keys are expressions on the event. Where existing servers check one at registration (`rateLimit`, `debounce`,
//! `batchEvents`, `idempotency`), one that names what there is not is refused; where they only parse (concurrency,
//! throttle, singleton, priority), it is a warning, and the expression stands for its own text.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::definition::{Invalid, Members, Reader};
use crate::functions::expr::{Expr, Roots};

const MAX_CONCURRENCY: usize = 2;
const DAY_MS: u64 = 86_400_000;
/// Steps of one function at once, where it names no limit.
pub const DEFAULT_LIMIT: u32 = 1_000;
/// Period of an `idempotency` key, ms.
const IDEMPOTENCY_MS: u64 = DAY_MS;

/// What a function asks for; all of it may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Limits of what runs at once; each must admit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub concurrency: Vec<Limit>,
    /// How often runs start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Throttle>,
    /// How many events of a period start runs; the others are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// The last event of a burst starts a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debounce: Option<Debounce>,
    /// One run for many events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
    /// Expression: seconds by which a run goes before others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// One live run per key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub singleton: Option<Singleton>,
}

impl Flow {
    /// The limit of the function's calls at once, where it has one without a key.
    #[must_use]
    pub fn plain_limit(&self) -> Option<u32> {
        self.concurrency.iter().filter(|limit| limit.key.is_none()).map(|limit| limit.limit).min()
    }
}

/// Who shares a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The runs of one function.
    #[default]
    Fn,
    /// All functions of the environment whose key has the same value.
    Env,
    /// The same, of the account. One server is one account.
    Account,
}

impl Scope {
    /// As registered.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fn => "fn",
            Self::Env => "env",
            Self::Account => "account",
        }
    }
}

/// A limit of what runs at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Slots.
    pub limit: u32,
    /// A limit for each value of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Who shares the slots.
    #[serde(default)]
    pub scope: Scope,
    /// A slot is held from the start of a run to its end, not only during its calls.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holds_run: bool,
}

impl Limit {
    /// Scope and key as registered: what names it within its function.
    #[must_use]
    pub fn name(&self) -> String {
        let what = if self.holds_run { "runs" } else { "concurrency" };
        let scope = if self.scope == Scope::Fn { "" } else { self.scope.as_str() };
        let name = [what, scope, self.key.as_deref().unwrap_or_default()];
        name.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ")
    }
}

/// Starts of runs: `limit + burst` from idle, then one per `period / limit`; what is over waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Starts in a period.
    pub limit: u32,
    /// On top of it, from idle.
    #[serde(default)]
    pub burst: u32,
    /// ms.
    pub period_ms: u64,
    /// A throttle for each value of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// At most `limit` runs in any `period`; what is over is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Runs in a period.
    pub limit: u32,
    /// ms.
    pub period_ms: u64,
    /// A limit for each value of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A run starts `period` after the last event, at most `timeout` after the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debounce {
    /// ms.
    pub period_ms: u64,
    /// ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// A debounce for each value of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A run starts at `max_size` events or `timeout` after the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Events.
    pub max_size: u32,
    /// ms.
    pub timeout_ms: u64,
    /// A batch for each value of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// An event for which it does not hold runs alone.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
}

/// What becomes of a run whose singleton is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SingletonMode {
    /// It is skipped.
    Skip,
    /// The live one is cancelled, and it starts.
    Cancel,
}

/// One live run per key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Singleton {
    /// A singleton for each value of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What a competing run does.
    pub mode: SingletonMode,
}

impl Reader<'_> {
    /// Reads and checks all of it.
    pub(super) fn flow(&mut self) -> Result<Flow, Invalid> {
        let concurrency = self.concurrency()?;
        let throttle = self.throttle()?;
        let rate_limit = self.rate_limit()?;
        let debounce = self.debounce()?;
        let singleton = self.singleton()?;
        let priority = self.body.object("priority").and_then(|priority| priority.text("run"));
        if let Some(key) = &priority {
            self.loose_key(key, "priority.run", "it counts as 0")?;
        }
        let batch = self.batch()?;
        if batch.is_some() {
            for (field, is_there) in [
                ("cancel", self.body.list("cancel").is_some()),
                ("debounce", debounce.is_some()),
                ("singleton", singleton.is_some()),
                ("priority.run", priority.is_some()),
            ] {
                if is_there {
                    return Err(self.wrong("batchEvents", format!("can't be combined with {field}")));
                }
            }
        }
        // Sugar for a rate limit, and it replaces one.
        let rate_limit = match self.body.text("idempotency") {
            Some(key) => {
                self.condition(&key, "idempotency", Roots::Event)?;
                Some(RateLimit { limit: 1, period_ms: IDEMPOTENCY_MS, key: Some(key) })
            }
            None => rate_limit,
        };
        Ok(Flow { concurrency, throttle, rate_limit, debounce, batch, priority, singleton })
    }

    /// A number, an object, a list of at most two, or `{"fn": […], "step": […]}`.
    fn concurrency(&mut self) -> Result<Vec<Limit>, Invalid> {
        let Some(registered) = self.body.get("concurrency").filter(|value| !value.is_null()) else {
            return Ok(Vec::new());
        };
        let whole = |holds_run: bool, list: &[Value]| -> Vec<(bool, Value)> {
            list.iter().map(|entry| (holds_run, entry.clone())).collect()
        };
        let entries = match registered {
            Value::Array(list) => whole(false, list),
            Value::Object(object) => {
                let members = Members(object);
                let (of_runs, of_steps) = (members.list("fn"), members.list("step"));
                match (of_runs, of_steps) {
                    (None, None) => vec![(false, registered.clone())],
                    _ => {
                        [whole(true, of_runs.unwrap_or_default()), whole(false, of_steps.unwrap_or_default())].concat()
                    }
                }
            }
            other => vec![(false, other.clone())],
        };
        if entries.len() > MAX_CONCURRENCY {
            let reason = format!("has {} entries; the limit is {MAX_CONCURRENCY}", entries.len());
            return Err(self.wrong("concurrency", reason));
        }
        let mut limits = Vec::with_capacity(entries.len());
        for (index, (holds_run, entry)) in entries.iter().enumerate() {
            let field = format!("concurrency[{index}]");
            let number = |value: &Value| value.as_u64().and_then(|limit| u32::try_from(limit).ok());
            let (limit, key, scope) = match entry {
                Value::Object(object) => {
                    let members = Members(object);
                    let limit = match members.get("limit").filter(|limit| !limit.is_null()) {
                        Some(limit) => {
                            let reason = || self.wrong(&field, format!("limit: {limit} is no number of slots"));
                            Some(number(limit).ok_or_else(reason)?)
                        }
                        None => None,
                    };
                    (limit, members.text("key"), self.scope(members, &field)?)
                }
                other => {
                    let limit = number(other).ok_or_else(|| self.wrong(&field, format!("{other} is no limit")))?;
                    (Some(limit), None, Scope::Fn)
                }
            };
            if scope != Scope::Fn && key.is_none() {
                return Err(self.wrong(&field, format!("scope `{}` needs a key", scope.as_str())));
            }
            if let Some(key) = &key {
                self.loose_key(key, &format!("{field}.key"), "it is one constant group")?;
            }
            let limit = limit.filter(|limit| *limit > 0).unwrap_or(DEFAULT_LIMIT);
            limits.push(Limit { limit, key, scope, holds_run: *holds_run });
        }
        Ok(limits)
    }

    fn scope(&self, entry: Members<'_>, field: &str) -> Result<Scope, Invalid> {
        match entry.text("scope").unwrap_or_default().to_ascii_lowercase().as_str() {
            "" | "fn" | "function" => Ok(Scope::Fn),
            "env" => Ok(Scope::Env),
            "account" => Ok(Scope::Account),
            other => Err(self.wrong(field, format!("scope `{other}` must be fn, env or account"))),
        }
    }

    fn throttle(&mut self) -> Result<Option<Throttle>, Invalid> {
        let Some(throttle) = self.body.object("throttle") else { return Ok(None) };
        let period = self.span(throttle, "period", "throttle.period")?;
        let Some(period_ms) = period.filter(|ms| (1_000..=7 * DAY_MS).contains(ms)) else {
            return Err(self.wrong("throttle.period", "must be 1s to 7d"));
        };
        let limit = self.count(throttle, "limit", "throttle.limit")?.unwrap_or(1).max(1);
        let burst = self.count(throttle, "burst", "throttle.burst")?.unwrap_or(0);
        let key = throttle.text("key");
        if let Some(key) = &key {
            self.loose_key(key, "throttle.key", "it is one constant group")?;
        }
        // Existing servers count whole seconds.
        Ok(Some(Throttle { limit, burst, period_ms: period_ms / 1_000 * 1_000, key }))
    }

    fn rate_limit(&self) -> Result<Option<RateLimit>, Invalid> {
        let Some(limit) = self.body.object("rateLimit") else { return Ok(None) };
        let count = self.count(limit, "limit", "rateLimit.limit")?;
        let Some(count) = count.filter(|count| *count > 0) else {
            return Err(self.wrong("rateLimit.limit", "must be above 0"));
        };
        let period = self.span(limit, "period", "rateLimit.period")?;
        let Some(period_ms) = period.filter(|ms| (1..=DAY_MS).contains(ms)) else {
            return Err(self.wrong("rateLimit.period", "must be at most 24h"));
        };
        Ok(Some(RateLimit { limit: count, period_ms, key: self.strict_key(limit, "rateLimit.key")? }))
    }

    fn debounce(&self) -> Result<Option<Debounce>, Invalid> {
        let Some(debounce) = self.body.object("debounce") else { return Ok(None) };
        let period = self.span(debounce, "period", "debounce.period")?;
        let Some(period_ms) = period.filter(|ms| (1_000..=7 * DAY_MS).contains(ms)) else {
            return Err(self.wrong("debounce.period", "must be 1s to 7d"));
        };
        let timeout_ms = self.span(debounce, "timeout", "debounce.timeout")?.filter(|ms| *ms > 0);
        Ok(Some(Debounce { period_ms, timeout_ms, key: self.strict_key(debounce, "debounce.key")? }))
    }

    fn singleton(&mut self) -> Result<Option<Singleton>, Invalid> {
        let Some(singleton) = self.body.object("singleton") else { return Ok(None) };
        let mode = match singleton.get("mode") {
            None | Some(Value::Null) => SingletonMode::Skip,
            Some(Value::String(mode)) if mode.is_empty() || mode.eq_ignore_ascii_case("skip") => SingletonMode::Skip,
            Some(Value::String(mode)) if mode.eq_ignore_ascii_case("cancel") => SingletonMode::Cancel,
            // The numbers of existing servers' own configuration.
            Some(Value::Number(mode)) if mode.as_u64() == Some(0) => SingletonMode::Skip,
            Some(Value::Number(mode)) if mode.as_u64() == Some(1) => SingletonMode::Cancel,
            Some(other) => return Err(self.wrong("singleton.mode", format!("{other} must be skip or cancel"))),
        };
        let key = singleton.text("key");
        if let Some(key) = &key {
            self.loose_key(key, "singleton.key", "it is one constant group")?;
        }
        Ok(Some(Singleton { key, mode }))
    }

    fn batch(&self) -> Result<Option<Batch>, Invalid> {
        let Some(batch) = self.body.object("batchEvents") else { return Ok(None) };
        let size = self.count(batch, "maxSize", "batchEvents.maxSize")?;
        let Some(max_size) = size.filter(|size| *size >= 2) else {
            return Err(self.wrong("batchEvents.maxSize", "must be at least 2"));
        };
        let timeout = self.span(batch, "timeout", "batchEvents.timeout")?;
        let Some(timeout_ms) = timeout.filter(|ms| *ms >= 1_000) else {
            return Err(self.wrong("batchEvents.timeout", "must be at least 1s"));
        };
        let condition = batch.text("if");
        if let Some(condition) = &condition {
            self.condition(condition, "batchEvents.if", Roots::Event)?;
        }
        Ok(Some(Batch { max_size, timeout_ms, key: self.strict_key(batch, "batchEvents.key")?, condition }))
    }

    /// A whole number; absent and null are none.
    fn count(&self, of: Members<'_>, key: &str, field: &str) -> Result<Option<u32>, Invalid> {
        match of.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                // A negative one is refused by whoever has a lower bound.
                let number = value.as_i64().map(|number| u32::try_from(number.max(0)).unwrap_or(u32::MAX));
                number.map(Some).ok_or_else(|| self.wrong(field, format!("{value} is no whole number")))
            }
        }
    }

    fn strict_key(&self, of: Members<'_>, field: &str) -> Result<Option<String>, Invalid> {
        let key = of.text("key");
        if let Some(key) = &key {
            self.condition(key, field, Roots::Event)?;
        }
        Ok(key)
    }

    /// Where existing servers only parse, an expression that can't be evaluated is a warning.
    fn loose_key(&mut self, key: &str, field: &str, effect: &str) -> Result<(), Invalid> {
        let expr = Expr::parse(key).map_err(|error| self.wrong(field, format!("`{key}`: {error}")))?;
        if let Err(error) = expr.check(Roots::Event) {
            self.warnings.push(format!(
                "{field}: `{key}` can't be evaluated ({error}): {effect}; quote it as `\"{key}\"` to say so"
            ));
        }
        Ok(())
    }
}
