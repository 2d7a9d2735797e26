//! Pauses: a family that is not read. Nothing moves, nothing is parked, no other family waits.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:pauses` | hash: family, or a beginning of names with `*` → record, JSON | `pause.lua`, `resume.lua`, `expire.lua` |
//! | `:pause-expiry` | zset: family → when it ends, ms | the same |
//! | `:ctl` | channel | hints only, never the truth |
//!
//! # Invariants
//! 1. Hash, zset and journal record change in one script, by Redis's clock.
//! 2. A manual pause beats an observer's.
//! 3. A record that can't be read still holds its family until its expiry; resume removes it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bus::Bus;
use super::family::{Family, ParseFamilyError};
use super::journal;
use super::records::Fact;
use super::redis::Error;
use super::scripts;
use super::steering::{self, Rate, Slot, Steering, Wish};

/// Who set a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseSource {
    /// An operator.
    Manual,
    /// The observer.
    Observer,
}

impl PauseSource {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Observer => "observer",
        }
    }
}

/// What a pause holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One family.
    Family(Family),
    /// Every family whose name begins so.
    Prefix(Family),
}

impl Target {
    /// The word of the record.
    #[must_use]
    pub const fn scope(&self) -> &'static str {
        match self {
            Self::Family(_) => "family",
            Self::Prefix(_) => "prefix",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(family) => write!(f, "{family}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl FromStr for Target {
    type Err = ParseFamilyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().strip_suffix('*') {
            Some(prefix) => prefix.parse().map(Self::Prefix),
            None => text.parse().map(Self::Family),
        }
    }
}

impl From<Family> for Target {
    fn from(family: Family) -> Self {
        Self::Family(family)
    }
}

impl From<&Family> for Target {
    fn from(family: &Family) -> Self {
        Self::Family(family.clone())
    }
}

impl From<&Target> for Target {
    fn from(target: &Target) -> Self {
        target.clone()
    }
}

/// A pause as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    /// Always `pause_family`.
    pub kind: String,
    /// The held family, or a beginning of names with `*`.
    pub family: String,
    /// How long it was asked for, ms.
    pub ttl_ms: u64,
    /// Why.
    pub reason: String,
    /// Who.
    pub source: PauseSource,
    /// `manual`, or the observer's mode.
    pub mode: String,
    /// Since when, ms.
    pub applied_at_ms: u64,
    /// Until when, ms.
    pub expires_at_ms: u64,
    /// Rises with every change.
    #[serde(default)]
    pub rev: u64,
    /// The observer's snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// The observer's model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Who exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// `family` or `prefix`; absent is `family`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// A pause to set.
#[derive(Debug, Clone)]
pub struct NewPause {
    /// What to hold.
    pub family: Target,
    /// How long.
    pub ttl: Duration,
    /// Why; not blank.
    pub reason: String,
    /// Who.
    pub source: PauseSource,
    /// Who exactly.
    pub actor: Option<String>,
    /// Replace a manual pause although this one ends earlier.
    pub shorten: bool,
}

/// What became of a pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseOutcome {
    /// In force.
    Paused {
        /// The pause.
        pause: Pause,
        /// The one it replaced, where that could be read.
        replaced: Option<Box<Pause>>,
    },
    /// Not set: `manual_pause_active`, `already_paused` or `shorter_than_manual`.
    Refused {
        /// Why.
        reason: String,
        /// The one that stands.
        standing: Option<Pause>,
    },
}

/// What became of a resume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeOutcome {
    /// The family goes on.
    Resumed {
        /// The pause that was, where it could be read.
        previous: Option<Box<Pause>>,
    },
    /// It was not paused, but let through slowly; that is over, or goes on at another rate.
    Trickled {
        /// What was.
        previous: Box<Steering>,
    },
    /// It was not paused.
    NotPaused,
    /// A manual pause that the observer may not end.
    ManualPauseActive,
}

/// A trickle that never gets through ends after this.
const TRICKLE_MS: u64 = 86_400_000;

/// The pauses in force.
#[derive(Debug, Clone, Default)]
pub struct Pauses {
    /// Family or `<beginning>*` → (until when ms, the record or `None` when it can't be read).
    pub active: HashMap<String, (u64, Option<Pause>)>,
    /// The counter that every new pause raises: what was read from a lane at a higher one needs a fresh look.
    pub rev: u64,
}

impl Pauses {
    /// What holds a family: the pause of its own, or the one of its name's beginning that ends last.
    #[must_use]
    pub fn of(&self, family: &str) -> Option<&(u64, Option<Pause>)> {
        let is_meant = |key: &str| key.strip_suffix('*').is_some_and(|prefix| family.starts_with(prefix));
        let by_prefix = || self.active.iter().filter(|(key, _)| is_meant(key)).max_by_key(|(_, (until, _))| *until);
        self.active.get(family).or_else(|| by_prefix().map(|(_, pause)| pause))
    }

    /// When the pause of `family` ends, if it is held.
    #[must_use]
    pub fn until(&self, family: &Family, now_ms: u64) -> Option<u64> {
        self.of(family.as_str()).map(|(until, _)| *until).filter(|until| *until > now_ms)
    }

    /// The next end of any pause, ms.
    #[must_use]
    pub fn next_expiry(&self) -> Option<u64> {
        self.active.values().map(|(until, _)| *until).min()
    }
}

impl Bus {
    /// The pauses in force, read only.
    pub async fn pauses(&self) -> Result<Pauses, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGETALL").arg(self.keys.pauses());
        pipeline.cmd("ZRANGE").arg(self.keys.pause_expiry()).arg(0).arg(-1).arg("WITHSCORES");
        pipeline.cmd("TIME");
        pipeline.cmd("HGET").arg(self.keys.meta()).arg("rev");
        let mut replies = self.redis.pipeline(&pipeline).await?.into_iter();
        let unexpected = || Error::Reply { command: "HGETALL pauses", detail: "not its documented shape".into() };
        let mut next = || replies.next().ok_or_else(unexpected);
        let records: HashMap<String, String> = redis::from_redis_value(next()?).map_err(|_| unexpected())?;
        let expiries: Vec<(String, f64)> = redis::from_redis_value(next()?).map_err(|_| unexpected())?;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(next()?).map_err(|_| unexpected())?;
        let rev: Option<u64> = redis::from_redis_value(next()?).map_err(|_| unexpected())?;
        let now = seconds * 1000 + micros / 1000;
        let mut active = HashMap::new();
        for (family, score) in expiries {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let until = score.max(0.0) as u64;
            if until > now
                && let Some(record) = records.get(&family)
            {
                active.insert(family, (until, serde_json::from_str(record).ok()));
            }
        }
        Ok(Pauses { active, rev: rev.unwrap_or(0) })
    }

    /// Holds a family.
    pub async fn pause(&self, new: &NewPause) -> Result<PauseOutcome, Error> {
        let name = new.family.to_string();
        let record = serde_json::json!({
            "kind": "pause_family",
            "family": name,
            "scope": new.family.scope(),
            "reason": new.reason,
            "source": new.source,
            "mode": new.source.as_str(),
            "actor": new.actor,
        });
        let record: serde_json::Map<String, serde_json::Value> = match record {
            serde_json::Value::Object(map) => map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            _ => serde_json::Map::new(),
        };
        let fact = Fact::new("queue-control", "queue.control.applied")
            .with("family", name.as_str())
            .with("sourceType", new.source.as_str())
            .with(
                "action",
                serde_json::json!({
                    "kind": "pause_family", "family": name,
                    "ttlMs": u64::try_from(new.ttl.as_millis()).unwrap_or(u64::MAX), "reason": new.reason,
                }),
            );
        let call = Self::call(&scripts::PAUSE)
            .key(self.keys.pauses())
            .key(self.keys.pause_expiry())
            .key(self.keys.journal())
            .key(self.keys.meta())
            .key(self.keys.observer("memory"))
            .arg(name.as_str())
            .number(new.ttl.as_millis())
            .arg(serde_json::Value::Object(record).to_string())
            .arg(new.source.as_str())
            .arg(if new.shorten { "1" } else { "" })
            .arg(self.keys.ctl())
            .arg(journal::encode_facts([fact]));
        let (status, first, second): (String, String, String) = self.redis.run(call).await?;
        if status == "refused" {
            return Ok(PauseOutcome::Refused { reason: first, standing: serde_json::from_str(&second).ok() });
        }
        let pause = serde_json::from_str(&first)
            .map_err(|error| Error::Reply { command: "pause.lua", detail: error.to_string() })?;
        Ok(PauseOutcome::Paused { pause, replaced: serde_json::from_str(&second).ok() })
    }

    /// Lets a family go on.
    pub async fn resume(
        &self,
        target: impl Into<Target>,
        source: PauseSource,
        reason: &str,
        actor: Option<&str>,
    ) -> Result<ResumeOutcome, Error> {
        self.resume_at(&target.into(), source, reason, actor, None).await
    }

    /// The same, with what waited let through at a rate until it is through.
    pub async fn resume_at(
        &self,
        target: &Target,
        source: PauseSource,
        reason: &str,
        actor: Option<&str>,
        trickle: Option<Rate>,
    ) -> Result<ResumeOutcome, Error> {
        let family = &target.to_string();
        let record = trickle.map(|rate| {
            let mut record = steering::record(Wish::Trickle(rate), family, reason, actor.unwrap_or_default());
            record["ttlMs"] = serde_json::json!(TRICKLE_MS);
            record
        });
        let mut action = serde_json::json!({"kind": "resume_family", "family": family, "reason": reason});
        if let Some(record) = &record {
            action["everyMs"] = record["everyMs"].clone();
            action["max"] = record["max"].clone();
        }
        let fact = |name| {
            Fact::new("queue-control", name)
                .with("family", family.as_str())
                .with("sourceType", source.as_str())
                .with("actor", actor)
                .with("action", action.clone())
        };
        let rejected = fact("queue.control.rejected").failed(format!("queue family {family} is not paused"));
        let call = Self::call(&scripts::RESUME)
            .key(self.keys.pauses())
            .key(self.keys.pause_expiry())
            .key(self.keys.journal())
            .key(self.keys.observer("memory"))
            .key(self.keys.steering())
            .key(self.keys.steering_expiry())
            .key(self.keys.pace())
            .key(self.keys.meta())
            .arg(family.as_str())
            .arg(source.as_str())
            .arg(self.keys.ctl())
            .arg(journal::encode_facts([fact("queue.control.applied")]))
            .arg(journal::encode_facts([rejected]))
            .arg(Slot::Pace.field(family))
            .arg(record.map(|record| record.to_string()).unwrap_or_default());
        let reply: Vec<String> = self.redis.run(call).await?;
        Ok(match reply.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["ok", previous] => ResumeOutcome::Resumed { previous: serde_json::from_str(previous).ok() },
            ["trickled", previous] => match serde_json::from_str(previous) {
                Ok(previous) => ResumeOutcome::Trickled { previous },
                Err(_) => ResumeOutcome::Resumed { previous: None },
            },
            [_, "manual_pause_active", ..] => ResumeOutcome::ManualPauseActive,
            _ => ResumeOutcome::NotPaused,
        })
    }

    /// Ends pauses whose time has come. Returns how many, and when the next ends, ms.
    pub async fn expire_pauses(&self) -> Result<(usize, Option<u64>), Error> {
        let call = Self::call(&scripts::EXPIRE)
            .key(self.keys.pauses())
            .key(self.keys.pause_expiry())
            .key(self.keys.journal())
            .arg(self.keys.ctl())
            .number(64);
        let (ended, next): (Vec<String>, String) = self.redis.run(call).await?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let next = next.parse::<f64>().ok().map(|ms| ms.max(0.0) as u64);
        Ok((ended.len(), next))
    }
}
