//! Sessions: one lease per process covers everything it holds (ARCHITECTURE.md, D1).
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:sessions` | zset: session → heartbeat expiry ms, 0 once fenced | `session.lua`, `reap.lua` |
//! | `:session:<id>` | string, PX: details as JSON | `session.lua` |
//! | `:ordered:<family>` | string, PX: who may run an ordered family | `session.lua` |
//!
//! # Invariants
//! 1. A session id is the consumer name; it is never used again after a restart.
//! 2. Once fenced, a session never comes back: its completions are refused, its results are dropped.

use std::time::Duration;

use redis::Value;

use super::bus::Bus;
use super::entry_id::EntryId;
use super::keys::{GROUP, HANDBACK_CONSUMER, RETRY_CONSUMER};
use super::lane::Lane;
use super::lease::{self, Leased};
use super::redis::Error;
use super::scripts;

/// What a heartbeat found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// The session holds for another lease.
    Live {
        /// Sessions whose heartbeat is overdue: they may be taken over.
        expired: Vec<String>,
        /// Of the ordered families asked for, the lock keys that are ours.
        ordered: Vec<String>,
    },
    /// Somebody took over what this session held.
    Lost,
}

/// What was taken over from an ended session in one lane.
#[derive(Debug)]
pub struct Reaped {
    /// Entries that are ours now, with one delivery more.
    pub entries: Vec<Leased>,
    /// More are left: call again.
    pub more: bool,
}

/// A live or ended session as `:sessions` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// `<host>-<pid>-<uuid7>`.
    pub id: String,
    /// Heartbeat expiry, ms since the epoch; 0 once fenced.
    pub expires_ms: u64,
    /// Host, pid, version, start, as the process reported them.
    pub details: Option<serde_json::Value>,
}

impl SessionInfo {
    /// When its heartbeat came last, ms: each one moves the expiry to one lease from then.
    #[must_use]
    pub fn ticked_ms(&self) -> u64 {
        let told = self.details.as_ref().and_then(|details| details.get("leaseMs")?.as_u64());
        self.expires_ms.saturating_sub(told.unwrap_or(30_000))
    }

    /// What of a family it runs at once, where its target made it run less than its entry allows.
    #[must_use]
    pub fn reduced_limit(&self, family: &str) -> Option<u64> {
        self.details.as_ref()?.get("limits")?.get(family)?.as_u64()
    }
}

impl Bus {
    /// Opens or renews `session`. `open` is for the first call only.
    pub async fn renew_session(
        &self,
        session: &str,
        open: bool,
        lease: Duration,
        details: &str,
        ordered: &[String],
    ) -> Result<Renewal, Error> {
        let mut call = Self::call(&scripts::SESSION)
            .key(self.keys.sessions())
            .key(self.keys.session(session))
            .arg(session)
            .number(lease.as_millis())
            .arg(if open { "open" } else { "renew" })
            .arg(details);
        for key in ordered {
            call.push_arg(key.as_str());
        }
        let (status, expired, ordered): (String, Vec<String>, Vec<String>) = self.redis.run(call).await?;
        Ok(if status == "ok" { Renewal::Live { expired, ordered } } else { Renewal::Lost })
    }

    /// Ends a session. With `holds_entries` it stays as an expired one, so that others take over at their next tick.
    pub async fn close_session(&self, session: &str, holds_entries: bool) -> Result<(), Error> {
        self.end_session(session, if holds_entries { "abandon" } else { "close" }).await
    }

    /// Removes the mark of a fenced session after all it held was taken over.
    pub async fn forget_session(&self, session: &str) -> Result<(), Error> {
        self.end_session(session, "forget").await
    }

    async fn end_session(&self, session: &str, how: &str) -> Result<(), Error> {
        let call = Self::call(&scripts::SESSION)
            .key(self.keys.sessions())
            .key(self.keys.session(session))
            .arg(session)
            .number(0)
            .arg(how)
            .arg("");
        self.redis.run::<Value>(call).await?;
        Ok(())
    }

    /// Takes over up to `count` entries that `ended` holds in `lane`. `None` when that session is still alive.
    pub async fn reap(&self, ended: &str, own: &str, lane: &Lane, count: usize) -> Result<Option<Reaped>, Error> {
        let call = Self::call(&scripts::REAP)
            .key(self.keys.sessions())
            .key(self.keys.lane(lane))
            .key(self.keys.failures_of(&lane.family))
            .arg(ended)
            .arg(own)
            .number(count)
            .arg(format!("p{}|", lane.priority.number()));
        let reply: Value = self.redis.run(call).await?;
        let unexpected = || Error::Reply { command: "reap.lua", detail: "not its documented shape".into() };
        let Value::Array(parts) = reply else { return Err(unexpected()) };
        let mut parts = parts.into_iter();
        if lease::text(parts.next()).as_deref() == Some("live") {
            return Ok(None);
        }
        let (Some(Value::Array(rows)), Some(Value::Int(left))) = (parts.next(), parts.next()) else {
            return Err(unexpected());
        };
        let entries = rows
            .into_iter()
            .map(|row| {
                let Value::Array(row) = row else { return None };
                let mut row = row.into_iter();
                let id: EntryId = lease::text(row.next())?.parse().ok()?;
                let Some(Value::Int(deliveries)) = row.next() else { return None };
                Leased::from_parts(lane.clone(), id, row.next(), deliveries, row.next())
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(unexpected)?;
        Ok(Some(Reaped { entries, more: left > 0 }))
    }

    /// Consumers that hold pending entries, per lane, without the two of our own (`~retry`, `~handback`).
    pub async fn holders(&self, lanes: &[Lane]) -> Result<Vec<(Lane, String, u64)>, Error> {
        let mut holders = Vec::new();
        for chunk in lanes.chunks(256) {
            let mut pipeline = redis::pipe();
            for lane in chunk {
                pipeline.cmd("XPENDING").arg(self.keys.lane(lane)).arg(GROUP);
            }
            // A lane without its group has no holders; `queue fsck` reports it.
            let replies = self.redis.pipeline_values(&pipeline).await?;
            for (lane, reply) in chunk.iter().zip(replies) {
                let Ok((_, _, _, Some(consumers))) =
                    redis::from_redis_value::<(u64, Value, Value, Option<Vec<(String, u64)>>)>(reply)
                else {
                    continue;
                };
                let foreign =
                    consumers.into_iter().filter(|(name, _)| name != RETRY_CONSUMER && name != HANDBACK_CONSUMER);
                holders.extend(foreign.map(|(name, count)| (lane.clone(), name, count)));
            }
        }
        Ok(holders)
    }

    /// Every session Redis knows of.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        let rows: Vec<(String, f64)> =
            self.redis.query(redis::cmd("ZRANGE").arg(self.keys.sessions()).arg(0).arg(-1).arg("WITHSCORES")).await?;
        let mut sessions = Vec::with_capacity(rows.len());
        for (id, score) in rows {
            let details: Option<String> = self.redis.query(redis::cmd("GET").arg(self.keys.session(&id))).await?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let expires_ms = score.max(0.0) as u64;
            sessions.push(SessionInfo { id, expires_ms, details: details.and_then(|d| serde_json::from_str(&d).ok()) });
        }
        Ok(sessions)
    }
}
