//! Steering: an operator's word about a family that goes on: another priority, or a pace.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:steering` | hash: `priority\|<family>` or `pace\|<family>` → record, JSON | `steer.lua`, `resume.lua`, `expire.lua` |
//! | `:steering-expiry` | zset: the same → when it ends, ms | the same |
//! | `:pace` | hash: family → the window and what of it is used | `pace.lua`, `steer.lua` |
//!
//! # Invariants
//! 1. Nothing moves: an entry stays in the lane of its stored priority, and its family is read as before.
//! 2. A pace holds for all processes together: each start of the family needs a permit, counted in Redis.
//! 3. Each ends by itself, and only an operator sets one: the observer may suggest, never apply.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bus::Bus;
use super::family::Family;
use super::journal;
use super::lane::Lane;
use super::priority::Priority;
use super::records::Fact;
use super::redis::Error;
use super::scripts;

/// The two things that can be said of a family at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Which priority its events count as.
    Priority,
    /// How many start per time.
    Pace,
}

impl Slot {
    /// The field of a family in the hash.
    #[must_use]
    pub fn field(self, family: &str) -> String {
        let slot = match self {
            Self::Priority => "priority",
            Self::Pace => "pace",
        };
        format!("{slot}|{family}")
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Events count as of this priority.
    Priority(Priority),
    /// At most `max` start in every window.
    Batch {
        /// The window.
        every: Duration,
        /// Starts in it.
        max: u32,
    },
    /// The same after a resume, until what waited is through.
    Trickle(Rate),
}

/// Starts per second, as a window that holds a whole number of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The window.
    pub every: Duration,
    /// Starts in it.
    pub max: u32,
}

impl Rate {
    /// The slowest and the fastest that can be asked for, per 1,000 s and per second.
    const LEAST: f64 = 0.001;
    const MOST: f64 = 10_000.0;

    /// `5/s`, `0.5/s`; a bare number is per second too. Spread over the second: no window holds more than a tenth of it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_suffix("/s").unwrap_or(text).trim();
        let per_second: f64 = text.parse().ok().filter(|rate| (Self::LEAST..=Self::MOST).contains(rate))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let max = (per_second / 10.0).ceil().max(1.0) as u32;
        let every = Duration::from_secs_f64(f64::from(max) / per_second);
        #[allow(clippy::cast_possible_truncation)]
        Some(Self { every: Duration::from_millis(every.as_millis().max(1) as u64), max })
    }
}

/// Steering as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Steering {
    /// `reprioritize_family`, `batch_family` or `trickle_family`.
    pub kind: String,
    /// The family.
    pub family: String,
    /// The priority that its events count as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// The window of a pace, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// Starts in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// How long it was asked for, ms.
    #[serde(default)]
    pub ttl_ms: u64,
    /// Why.
    pub reason: String,
    /// Who exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Since when, ms.
    #[serde(default)]
    pub applied_at_ms: u64,
    /// Until when, ms.
    #[serde(default)]
    pub expires_at_ms: u64,
    /// Rises with every change.
    #[serde(default)]
    pub rev: u64,
}

impl Steering {
    /// The priority, where it is about one.
    #[must_use]
    pub fn priority(&self) -> Option<Priority> {
        self.priority.as_deref()?.parse().ok()
    }

    /// In words: `priority P1`, `50 every 300 s`.
    #[must_use]
    pub fn told(&self) -> String {
        match (&self.priority, self.every_ms, self.max) {
            (Some(priority), ..) => format!("counts as {priority}"),
            #[allow(clippy::cast_precision_loss)]
            (_, Some(every), Some(max)) => format!("at most {max} every {} s", every as f64 / 1000.0),
            _ => String::new(),
        }
    }

    /// A pace that ends once nothing waits any more.
    #[must_use]
    pub fn is_trickle(&self) -> bool {
        self.kind == "trickle_family"
    }
}

/// What is in force, by field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steerings(HashMap<String, Steering>);

impl Steerings {
    /// What is in force of a family.
    #[must_use]
    pub fn of(&self, slot: Slot, family: &str) -> Option<&Steering> {
        if self.0.is_empty() { None } else { self.0.get(&slot.field(family)) }
    }

    /// All of it, by when it ends.
    #[must_use]
    pub fn sorted(&self) -> Vec<&Steering> {
        let mut all: Vec<&Steering> = self.0.values().collect();
        all.sort_by(|a, b| (a.expires_at_ms, &a.family).cmp(&(b.expires_at_ms, &b.family)));
        all
    }

    /// Whether nothing is steered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What may start now of a family with a pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permits {
    /// So many.
    pub granted: u32,
    /// When more may, ms.
    pub next_ms: u64,
}

/// The record of a wish, without its times.
pub(super) fn record(wish: Wish, family: &str, reason: &str, actor: &str) -> Value {
    let mut record =
        json!({ "family": family, "reason": reason, "source": "manual", "mode": "manual", "actor": actor });
    let mut pace = |kind: &str, every: Duration, max: u32| {
        record["kind"] = json!(kind);
        record["everyMs"] = json!(u64::try_from(every.as_millis()).unwrap_or(u64::MAX));
        record["max"] = json!(max);
    };
    match wish {
        Wish::Priority(priority) => {
            record["kind"] = json!("reprioritize_family");
            record["priority"] = json!(priority.label());
        }
        Wish::Batch { every, max } => pace("batch_family", every, max),
        Wish::Trickle(Rate { every, max }) => pace("trickle_family", every, max),
    }
    record
}

fn slot_of(wish: Wish) -> Slot {
    if matches!(wish, Wish::Priority(_)) { Slot::Priority } else { Slot::Pace }
}

impl Bus {
    /// What is steered, by Redis's clock.
    pub async fn steerings(&self) -> Result<Steerings, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGETALL").arg(self.keys.steering());
        pipeline.cmd("TIME");
        let mut replies = self.redis.pipeline(&pipeline).await?.into_iter();
        let unexpected = || Error::Reply { command: "HGETALL steering", detail: "not its documented shape".into() };
        let mut next = || replies.next().ok_or_else(unexpected);
        let records: HashMap<String, String> = redis::from_redis_value(next()?).map_err(|_| unexpected())?;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(next()?).map_err(|_| unexpected())?;
        let now = seconds * 1000 + micros / 1000;
        let read = |(field, text): (String, String)| {
            let steering: Steering = serde_json::from_str(&text).ok()?;
            (steering.expires_at_ms > now).then_some((field, steering))
        };
        Ok(Steerings(records.into_iter().filter_map(read).collect()))
    }

    /// Steers a family; also what it replaced.
    pub async fn steer(
        &self,
        family: &Family,
        wish: Wish,
        ttl: Duration,
        reason: &str,
        actor: &str,
    ) -> Result<(Steering, Option<Steering>), Error> {
        let record = record(wish, family.as_str(), reason, actor);
        let mut action = record.clone();
        if let Some(action) = action.as_object_mut() {
            ["source", "mode", "actor"].iter().for_each(|key| drop(action.remove(*key)));
            action.insert("ttlMs".into(), json!(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)));
        }
        let call = self
            .steer_call("set", slot_of(wish), family)
            .arg(journal::encode_facts([fact("queue.control.applied", family, Some(actor), &action)]))
            .number(ttl.as_millis())
            .arg(record.to_string());
        let (_, stored, replaced): (String, String, String) = self.redis.run(call).await?;
        let stored = serde_json::from_str(&stored)
            .map_err(|error| Error::Reply { command: "steer.lua", detail: error.to_string() })?;
        Ok((stored, serde_json::from_str(&replaced).ok()))
    }

    /// Takes it back; what was, or `None` when nothing was in force.
    pub async fn end_steering(
        &self,
        family: &Family,
        slot: Slot,
        reason: &str,
        actor: &str,
    ) -> Result<Option<Steering>, Error> {
        let kind = match slot {
            Slot::Priority => "end_reprioritize_family",
            Slot::Pace => "end_batch_family",
        };
        let action = json!({ "kind": kind, "family": family, "reason": reason });
        let of = |name| fact(name, family, Some(actor), &action);
        let refused = of("queue.control.rejected").failed(format!("queue family {family} is not steered so")).warn();
        let call = self
            .steer_call("clear", slot, family)
            .arg(journal::encode_facts([of("queue.control.applied")]))
            .arg("")
            .arg(journal::encode_facts([refused.with("reason", "not_in_force")]));
        let reply: Vec<String> = self.redis.run(call).await?;
        Ok(reply.get(1).and_then(|text| serde_json::from_str(text).ok()))
    }

    /// Ends a trickle of which nothing waits any more. True when it did.
    pub async fn end_trickle_if_through(&self, trickle: &Steering) -> Result<bool, Error> {
        let Ok(family) = trickle.family.parse::<Family>() else { return Ok(false) };
        let lanes: Vec<Lane> = Priority::ALL.into_iter().map(|priority| Lane::new(family.clone(), priority)).collect();
        let states = self.lane_states(&lanes).await?;
        if !states.iter().all(|state| state.waiting() == Some(0) && state.pending() == 0) {
            return Ok(false);
        }
        let action = json!({ "kind": trickle.kind, "family": family, "reason": "what waited is through" });
        let ended = fact("queue.control.expired", &family, None, &action).with("kind", trickle.kind.as_str());
        let call = self
            .steer_call("clear", Slot::Pace, &family)
            .arg(journal::encode_facts([ended]))
            .number(trickle.rev)
            .arg("");
        let reply: Vec<String> = self.redis.run(call).await?;
        Ok(reply.first().is_some_and(|word| word == "ok"))
    }

    /// Ends steering whose time has come.
    pub async fn expire_steering(&self) -> Result<(), Error> {
        let call = Self::call(&scripts::EXPIRE)
            .key(self.keys.steering())
            .key(self.keys.steering_expiry())
            .key(self.keys.journal())
            .arg(self.keys.ctl())
            .number(64);
        self.redis.run::<(Vec<String>, String)>(call).await.map(|_| ())
    }

    /// Permits to start `asked` events of a family; `None` when it has no pace.
    pub async fn permits(&self, family: &Family, asked: usize) -> Result<Option<Permits>, Error> {
        let call = Self::call(&scripts::PACE)
            .key(self.keys.steering())
            .key(self.keys.steering_expiry())
            .key(self.keys.pace())
            .arg(family.as_str())
            .number(asked);
        let reply: Vec<u64> = self.redis.run(call).await?;
        Ok(match reply.as_slice() {
            [granted, next_ms] => {
                Some(Permits { granted: u32::try_from(*granted).unwrap_or(u32::MAX), next_ms: *next_ms })
            }
            _ => None,
        })
    }

    fn steer_call(&self, op: &'static str, slot: Slot, family: &Family) -> super::redis::ScriptCall<'_> {
        Self::call(&scripts::STEER)
            .key(self.keys.steering())
            .key(self.keys.steering_expiry())
            .key(self.keys.journal())
            .key(self.keys.meta())
            .key(self.keys.pace())
            .arg(op)
            .arg(slot.field(family.as_str()))
            .arg(family.as_str())
            .arg(self.keys.ctl())
    }
}

fn fact(name: &'static str, family: &Family, actor: Option<&str>, action: &Value) -> Fact {
    Fact::new("queue-control", name)
        .with("family", family.as_str())
        .with("sourceType", "manual")
        .with("mode", "manual")
        .with("actor", actor)
        .with("action", action.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_window_with_a_whole_number_of_starts() {
        let table = [("5/s", 200, 1), ("0.5/s", 2000, 1), ("10", 100, 1), ("25/s", 120, 3), ("1000/s", 100, 100)];
        for (text, ms, max) in table {
            assert_eq!(Rate::parse(text), Some(Rate { every: Duration::from_millis(ms), max }), "{text}");
        }
        for text in ["", "0", "-1/s", "x", "5/m", "1000000"] {
            assert_eq!(Rate::parse(text), None, "{text}");
        }
    }
}
