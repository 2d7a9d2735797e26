//! What the observer keeps in Redis, and the one way in which it changes anything.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:observer:lease`, `:last-run`, `:open`, `:fence`, `:last` | strings | `observer.lua` |
//! | `:observer:memory` | hash: family → pauses and last resume, JSON | `observe_apply.lua`, `pause.lua`, `resume.lua` |
//! | `:observer:applied` | hash, PX: `<snapshot>:<index>` → answer | `observe_apply.lua` |
//! | `:observer:kill` | string, PX: who threw the kill switch, and why, JSON | `kill_switch.lua` |
//! | `:observer:probe` | string, PX: the one probe that runs | [`Bus::begin_probe`] |
//! | `:observer:reported`, `:digest` | hash, list: what was told, and what waits to be told | the controller that has the lease |
//!
//! # Invariants
//! 1. One controller at a time; what it applies is judged, changed and journaled in one script.
//! 2. A decision is applied at most once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::bus::Bus;
use super::control::Pause;
use super::family::Family;
use super::journal;
use super::lane::Lane;
use super::priority::Priority;
use super::records::Fact;
use super::redis::Error;
use super::scripts;

/// What came of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Ours: the pass begins.
    Run {
        /// Proves it.
        token: String,
        /// When, ms.
        now_ms: u64,
        /// The pass before, ms.
        last_ms: Option<u64>,
        /// A pass that was begun and not ended: what was decided in it, where it came that far.
        open: Option<String>,
    },
    /// Too early.
    Early {
        /// When the next is due, ms.
        next_ms: u64,
        /// When the last was, ms.
        last_ms: u64,
    },
    /// Another process runs one.
    Held,
}

/// The lease is another's, or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// An action to apply.
#[derive(Debug, Clone)]
pub struct Application<'a> {
    /// The lease.
    pub token: &'a str,
    /// The snapshot that it was decided on.
    pub snapshot_id: &'a str,
    /// Its number in the decision.
    pub index: usize,
    /// Which family.
    pub family: &'a Family,
    /// How long a pause lasts.
    pub ttl_ms: Option<u64>,
    /// The action as it was suggested.
    pub action: &'a Value,
    /// Reason and message of a refusal that needs no look at Redis; it is recorded as any other is.
    pub refused: Option<(&'a str, &'a str)>,
    /// The observer's mode.
    pub mode: &'a str,
    /// The model that decided.
    pub model: Option<&'a str>,
    /// The pause that the snapshot saw.
    pub seen_rev: Option<u64>,
    /// When the snapshot was made, ms.
    pub captured_ms: u64,
    /// How old it may be, and the rest of the bounds.
    pub bounds: &'a Bounds,
    /// A resume tries one event first.
    pub with_probe: bool,
}

/// Bounds of what is applied, ms and counts.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Bounds {
    pub snapshot_ms: u64,
    pub max_ttl_ms: u64,
    pub manual_quiet_ms: u64,
    pub resume_dwell_ms: u64,
    pub pause_dwell_ms: u64,
    pub per_family: u64,
    pub in_all: u64,
    pub hold_ms: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// Done, now or by an earlier try.
    Done(Option<Box<Pause>>),
    /// Refused.
    Rejected {
        /// A code of the closed set.
        reason: String,
        /// In words.
        message: String,
    },
    /// The lease was lost: nothing was done.
    Lost,
}

/// What is remembered of a family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The observer's pauses: from, to, ms.
    pub pauses: Vec<(u64, u64)>,
    /// The last resume that ended one of them: when, ms, and by whom.
    pub resumed: Option<(u64, String)>,
}

/// The gateway's state, as far as it decides whether anybody may be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateway {
    /// The operator sleeps.
    pub is_asleep: bool,
    /// Channels that get nothing.
    pub muted: Vec<String>,
}

impl Bus {
    /// Asks for the next pass. `early` before its time counts as on time.
    pub async fn claim_observer(
        &self,
        owner: &str,
        lease: Duration,
        interval: Duration,
        early: Duration,
    ) -> Result<Claim, Error> {
        let call = self.observer_call("claim").arg(owner).number(lease.as_millis());
        let call = call.number(interval.as_millis()).number(early.as_millis());
        let reply: Vec<String> = self.redis.run(call).await?;
        let bad = || Error::Reply { command: "observer.lua", detail: reply.join(" ") };
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
        match reply.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["run", token, now, last, open] => Ok(Claim::Run {
                token: (*token).to_owned(),
                now_ms: number(now)?,
                last_ms: last.parse().ok(),
                open: (!open.is_empty()).then(|| (*open).to_owned()),
            }),
            ["early", next, last] => Ok(Claim::Early { next_ms: number(next)?, last_ms: number(last)? }),
            ["held", _] => Ok(Claim::Held),
            _ => Err(bad()),
        }
    }

    /// Renews the lease of a pass; with the decision, where it was made.
    pub async fn keep_observer(
        &self,
        token: &str,
        lease: Duration,
        decided: Option<&str>,
    ) -> Result<Result<(), Lost>, Error> {
        let call = self.observer_call(if decided.is_some() { "decided" } else { "renew" });
        let call = call.arg(token).number(lease.as_millis()).arg(decided.unwrap_or_default());
        let reply: Vec<String> = self.redis.run(call).await?;
        Ok(if reply.first().is_some_and(|word| word == "ok") { Ok(()) } else { Err(Lost) })
    }

    /// Ends a pass, with the records that tell of it. `last_run` moves the cadence: back for a pass that failed, on for
    /// one that took its time.
    pub async fn end_observer(
        &self,
        token: &str,
        last_run: Option<u64>,
        result: Option<&Value>,
        facts: Vec<Fact>,
    ) -> Result<Result<(), Lost>, Error> {
        let blob = if facts.is_empty() { Vec::new() } else { journal::encode_facts(facts) };
        let call = self
            .observer_call("end")
            .arg(token)
            .arg(last_run.map(|ms| ms.to_string()).unwrap_or_default())
            .arg(result.map(Value::to_string).unwrap_or_default())
            .arg(blob);
        let reply: Vec<String> = self.redis.run(call).await?;
        Ok(if reply.first().is_some_and(|word| word == "ok") { Ok(()) } else { Err(Lost) })
    }

    fn observer_call(&self, op: &'static str) -> super::redis::ScriptCall<'_> {
        let keys = ["lease", "last-run", "open", "fence", "last"];
        let call = Self::call(&scripts::OBSERVER);
        let call = keys.iter().fold(call, |call, name| call.key(self.keys.observer(name)));
        call.key(self.keys.journal()).arg(op)
    }

    /// Applies an action, if every gate lets it pass.
    pub async fn apply_observed(&self, application: &Application<'_>) -> Result<Applied, Error> {
        let Application { family, action, ttl_ms, snapshot_id, mode, model, .. } = application;
        let kind = action["kind"].as_str().unwrap_or_default();
        let mut record = json!({
            "kind": "pause_family", "family": family, "reason": action["reason"], "source": "observer", "mode": mode,
            "snapshotId": snapshot_id, "actor": ACTOR,
        });
        if let Some(model) = model {
            record["model"] = json!(model);
        }
        let fact = control_fact("queue.control.applied", application);
        let (refused, message) = application.refused.unwrap_or_default();
        let mut call = Self::call(&scripts::OBSERVE_APPLY)
            .key(self.keys.pauses())
            .key(self.keys.pause_expiry())
            .key(self.keys.journal())
            .key(self.keys.meta())
            .key(self.keys.breaker())
            .key(self.keys.observer("kill"))
            .key(self.keys.observer("memory"))
            .key(self.keys.observer("applied"))
            .key(self.keys.observer("lease"));
        for priority in Priority::ALL {
            call = call.key(self.keys.lane(&Lane::new((*family).clone(), priority)));
        }
        let bounds = serde_json::to_string(application.bounds).unwrap_or_default();
        let call = call
            .arg(application.token)
            .arg(format!("{snapshot_id}:{}", application.index))
            .arg(kind)
            .arg(family.as_str())
            .number(ttl_ms.unwrap_or(0))
            .arg(record.to_string())
            .arg(application.seen_rev.map(|rev| rev.to_string()).unwrap_or_default())
            .number(application.captured_ms)
            .arg(bounds)
            .arg(self.keys.ctl())
            .arg(journal::encode_facts([fact]))
            .arg(if application.with_probe { "1" } else { "" })
            .arg(refused)
            .arg(message);
        let reply: Vec<String> = self.redis.run(call).await?;
        Ok(match reply.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["applied", record, ..] => Applied::Done(serde_json::from_str(record).ok()),
            ["rejected", reason, message, ..] => {
                Applied::Rejected { reason: (*reason).to_owned(), message: (*message).to_owned() }
            }
            _ => Applied::Lost,
        })
    }

    /// What is remembered of every family that the observer ever held.
    pub async fn observer_memory(&self) -> Result<BTreeMap<String, Memory>, Error> {
        let rows: BTreeMap<String, String> =
            self.redis.query(redis::cmd("HGETALL").arg(self.keys.observer("memory"))).await?;
        let read = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap_or_default();
            // An empty list is written as `{}` by Lua.
            let spans = value["pauses"].as_array().cloned().unwrap_or_default();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let ms = |value: &Value| value.as_f64().map(|ms| ms.max(0.0) as u64);
            Memory {
                pauses: spans.iter().filter_map(|span| Some((ms(&span[0])?, ms(&span[1])?))).collect(),
                resumed: ms(&value["at"]).zip(value["by"].as_str().map(str::to_owned)),
            }
        };
        Ok(rows.into_iter().map(|(family, text)| (family, read(&text))).collect())
    }

    /// Who threw the kill switch, and why.
    pub async fn kill_switch(&self) -> Result<Option<Value>, Error> {
        let text: Option<String> = self.redis.query(redis::cmd("GET").arg(self.keys.observer("kill"))).await?;
        Ok(text.map(|text| serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Throws the kill switch, for a while or for good, or takes it back. Seen by the very script that applies.
    pub async fn throw_kill_switch(
        &self,
        is_on: bool,
        lasts: Option<Duration>,
        actor: &str,
        reason: &str,
    ) -> Result<(), Error> {
        let key = self.keys.observer("kill");
        let now = self.now_ms().await?;
        let ms = lasts.map(|lasts| u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX));
        let until = ms.map(|ms| now.saturating_add(ms));
        let text = if is_on {
            json!({ "actor": actor, "reason": reason, "at": now, "until": until }).to_string()
        } else {
            String::new()
        };
        let fact = Fact::new("queue-control", "queue.control.killswitch")
            .with("on", is_on)
            .with("until", until)
            .with("actor", actor)
            .with("reason", reason);
        let call = Self::call(&scripts::KILL_SWITCH)
            .key(key)
            .key(self.keys.journal())
            .arg(text)
            .arg(ms.filter(|_| is_on).map(|ms| ms.max(1).to_string()).unwrap_or_default())
            .arg(journal::encode_facts([fact]));
        self.redis.run::<String>(call).await.map(|_| ())
    }

    /// The result of the last pass of the cadence, and when it was.
    pub async fn last_observed(&self) -> Result<(Option<Value>, Option<u64>), Error> {
        let mut cmd = redis::cmd("MGET");
        cmd.arg(self.keys.observer("last")).arg(self.keys.observer("last-run"));
        let (last, at): (Option<String>, Option<String>) = self.redis.query(&cmd).await?;
        Ok((last.and_then(|text| serde_json::from_str(&text).ok()), at.and_then(|text| text.parse().ok())))
    }

    /// Whether anybody may be told. Keys of the gateway, outside our prefix.
    pub async fn gateway_state(&self) -> Result<Gateway, Error> {
        let sleep: Option<String> = self.redis.query(redis::cmd("GET").arg("system:sleep")).await?;
        let muted: Option<String> = self.redis.query(redis::cmd("GET").arg("gateway:health:muted-channels")).await?;
        let muted: Vec<Value> = muted.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let mut muted: Vec<String> =
            muted.iter().filter_map(|channel| Some(channel.as_str()?.trim().to_owned())).collect();
        muted.retain(|channel| !channel.is_empty());
        muted.sort_unstable();
        muted.dedup();
        Ok(Gateway { is_asleep: sleep.is_some_and(|text| !text.trim().is_empty()), muted })
    }

    /// Adds to what the gateway tells when its operator wakes up.
    pub async fn add_to_sleep_digest(&self, entry: &Value, is_first: bool) -> Result<(), Error> {
        let mut cmd = redis::cmd(if is_first { "LPUSH" } else { "RPUSH" });
        cmd.arg("sleep:queue").arg(entry.to_string());
        self.redis.query::<u64>(&cmd).await.map(|_| ())
    }

    /// Keeps a report for the end of the quiet hours.
    pub async fn add_to_digest(&self, text: &str) -> Result<(), Error> {
        let key = self.keys.observer("digest");
        let mut pipeline = redis::pipe();
        pipeline.cmd("RPUSH").arg(&key).arg(text);
        pipeline.cmd("LTRIM").arg(&key).arg(-100).arg(-1);
        self.redis.pipeline(&pipeline).await.map(|_| ())
    }

    /// What was kept, oldest first.
    pub async fn digest(&self) -> Result<Vec<String>, Error> {
        self.redis.query(redis::cmd("LRANGE").arg(self.keys.observer("digest")).arg(0).arg(-1)).await
    }

    /// Forgets the oldest `told` that were kept.
    pub async fn forget_digest(&self, told: usize) -> Result<(), Error> {
        let mut cmd = redis::cmd("LTRIM");
        cmd.arg(self.keys.observer("digest")).arg(told).arg(-1);
        self.redis.query::<redis::Value>(&cmd).await.map(|_| ())
    }

    /// When something was told last, ms, and how often it came up since.
    pub async fn reported(&self, key: &str) -> Result<Option<(u64, u64)>, Error> {
        let text: Option<String> =
            self.redis.query(redis::cmd("HGET").arg(self.keys.observer("reported")).arg(key)).await?;
        Ok(text.and_then(|text| {
            let (at, times) = text.split_once(' ')?;
            Some((at.parse().ok()?, times.parse().ok()?))
        }))
    }

    /// Remembers that.
    pub async fn set_reported(&self, key: &str, at_ms: u64, times: u64) -> Result<(), Error> {
        let hash = self.keys.observer("reported");
        let mut pipeline = redis::pipe();
        pipeline.cmd("HSET").arg(&hash).arg(key).arg(format!("{at_ms} {times}"));
        pipeline.cmd("PEXPIRE").arg(&hash).arg(86_400_000);
        self.redis.pipeline(&pipeline).await.map(|_| ())
    }

    /// Begins the one probe that may run; false when another runs.
    pub async fn begin_probe(&self, token: &str, lease: Duration) -> Result<bool, Error> {
        let mut cmd = redis::cmd("SET");
        cmd.arg(self.keys.observer("probe"))
            .arg(token)
            .arg("NX")
            .arg("PX")
            .arg(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        Ok(self.redis.query::<Option<String>>(&cmd).await?.is_some())
    }

    /// Ends it.
    pub async fn end_probe(&self, token: &str) -> Result<(), Error> {
        let key = self.keys.observer("probe");
        let holder: Option<String> = self.redis.query(redis::cmd("GET").arg(&key)).await?;
        if holder.as_deref() == Some(token) {
            self.redis.query::<u64>(redis::cmd("DEL").arg(&key)).await?;
        }
        Ok(())
    }
}

/// The observer's name in records.
pub const ACTOR: &str = "queue-observer";

fn control_fact(name: &'static str, application: &Application<'_>) -> Fact {
    Fact::new("queue-control", name)
        .with("snapshotId", application.snapshot_id)
        .with("mode", application.mode)
        .with("model", application.model)
        .with("family", application.family.as_str())
        .with("sourceType", "observer")
        .with("actor", ACTOR)
        .with("action", application.action.clone())
}
