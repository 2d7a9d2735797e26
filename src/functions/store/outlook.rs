//! What operators ask beside the run itself: what it waits for, how often it was tried, whose id begins so. Reads only.

use std::collections::HashMap;

use redis::Value;

use super::waits::event_of;
use super::{Run, Runs};
use crate::streams::entry_id::EntryId;
use crate::streams::redis::Error;

/// Logs read in one round trip: each may be long.
const LOGS: usize = 32;
/// Ids asked for in one round trip.
const IDS: usize = 1_024;
/// Members looked at in one step of a scan.
const SCAN: usize = 10_000;

/// One thing that will bring a run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// A call of the function is queued or under way.
    Call {
        /// `d` for a discovery, else a step hash.
        thread: String,
        /// From 0.
        attempt: u32,
        /// The lane entry that carries it.
        entry: String,
    },
    /// A call that a limit, a throttle or a pause holds back.
    Line {
        /// As above.
        thread: String,
        /// From 0.
        attempt: u32,
        /// The group it waits for (see `joelclaw functions`), or `held:<function>` while its family is paused.
        line: String,
        /// How many come before it.
        ahead: Option<u64>,
    },
    /// The next attempt of a call that failed.
    Retry {
        /// As above.
        thread: String,
        /// The one that comes, from 0.
        attempt: u32,
        /// When, ms.
        at_ms: Option<u64>,
    },
    /// A sleep.
    Sleep {
        /// Step hash.
        step: String,
        /// Until when, ms.
        until_ms: Option<u64>,
    },
    /// An event.
    Event {
        /// Step hash.
        step: String,
        /// Its name.
        event: String,
        /// When the wait ends, ms.
        until_ms: Option<u64>,
    },
    /// The end of a run that this one asked for.
    Invoke {
        /// Step hash.
        step: String,
        /// When the wait ends, ms.
        until_ms: Option<u64>,
    },
    /// A signal.
    Signal {
        /// Step hash.
        step: String,
        /// Its name.
        signal: String,
        /// When the wait ends, ms.
        until_ms: Option<u64>,
    },
}

/// What the hash of a run does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signs {
    /// Attempts: the first one and every one after a failure.
    pub attempts: u32,
    /// Nothing of it is queued or called: it sleeps, waits for something or for its next attempt.
    pub is_waiting: bool,
}

impl Runs {
    /// Everything that will bring a run on, the nearest first. Nothing for an ended run.
    pub async fn pending(&self, run: &str) -> Result<Vec<Pending>, Error> {
        let live = self.live(run).await?;
        let mut asked = Vec::new();
        for (field, value) in &live {
            match field.split_once(':') {
                Some(("t", thread)) if value.ends_with('|') => asked.push(format!("t|{run}|{thread}")),
                Some(("s", step)) if !value.starts_with("plan|") => asked.push(format!("s|{run}|{step}")),
                _ => {}
            }
        }
        let due = self.due_of(&asked).await?;
        let timer = |kind: &str, name: &str| due.get(&format!("{kind}|{run}|{name}")).copied();
        let mut pending: Vec<(u64, Pending)> = Vec::new();
        for (field, value) in live {
            let Some((kind, name)) = field.split_once(':') else { continue };
            let name = name.to_owned();
            let found = match kind {
                "t" => {
                    let mut parts = value.splitn(3, '|');
                    let attempt = parts.next().and_then(|text| text.parse().ok()).unwrap_or_default();
                    let entry = parts.nth(1).unwrap_or_default().to_owned();
                    match (entry.is_empty(), entry.strip_prefix('~')) {
                        (true, _) => Pending::Retry { at_ms: timer("t", &name), thread: name, attempt },
                        (_, Some(line)) => {
                            let line = line.to_owned();
                            let ahead = self.ahead(&line, &format!("{run}|{name}")).await?;
                            Pending::Line { thread: name, attempt, line, ahead }
                        }
                        _ => Pending::Call { thread: name, attempt, entry },
                    }
                }
                "s" => {
                    let mut parts = value.splitn(3, '|');
                    let kind = parts.next().unwrap_or_default();
                    let about = parts.nth(1).unwrap_or_default().to_owned();
                    let until_ms = timer("s", &name);
                    match kind {
                        "sleep" => Pending::Sleep { step: name, until_ms },
                        "wait" => Pending::Event { step: name, event: event_of(&about).to_owned(), until_ms },
                        "invoke" => Pending::Invoke { step: name, until_ms },
                        "signal" => Pending::Signal { step: name, signal: about, until_ms },
                        // A planned step has a thread of its own.
                        _ => continue,
                    }
                }
                _ => continue,
            };
            let at = match &found {
                Pending::Call { .. } | Pending::Line { .. } => 0,
                Pending::Retry { at_ms: at, .. }
                | Pending::Sleep { until_ms: at, .. }
                | Pending::Event { until_ms: at, .. }
                | Pending::Invoke { until_ms: at, .. }
                | Pending::Signal { until_ms: at, .. } => at.unwrap_or(u64::MAX),
            };
            pending.push((at, found));
        }
        pending.sort_by_key(|(at, _)| *at);
        Ok(pending.into_iter().map(|(_, pending)| pending).collect())
    }

    async fn ahead(&self, line: &str, member: &str) -> Result<Option<u64>, Error> {
        self.bus.redis.query(redis::cmd("ZRANK").arg(self.key(&format!("line:{line}"))).arg(member)).await
    }

    /// Members of the timers → when they are due, ms.
    async fn due_of(&self, members: &[String]) -> Result<HashMap<String, u64>, Error> {
        if members.is_empty() {
            return Ok(HashMap::new());
        }
        let scores: Vec<Option<f64>> =
            self.bus.redis.query(redis::cmd("ZMSCORE").arg(self.key("timers")).arg(members)).await?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let due = |(member, score): (&String, Option<f64>)| Some((member.clone(), score?.max(0.0) as u64));
        Ok(members.iter().zip(scores).filter_map(due).collect())
    }

    /// For each of these runs, in their order.
    pub async fn signs(&self, ids: &[String]) -> Result<Vec<Signs>, Error> {
        let mut signs = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(LOGS) {
            let mut pipeline = redis::pipe();
            for id in chunk {
                pipeline.cmd("HGETALL").arg(self.key(&format!("live:{id}")));
                pipeline.cmd("XRANGE").arg(self.key(&format!("log:{id}"))).arg("-").arg("+");
            }
            let mut values = self.bus.redis.pipeline(&pipeline).await?.into_iter();
            for _ in chunk {
                let live: HashMap<String, String> = values.next().map(read).unwrap_or_default();
                let log: redis::streams::StreamRangeReply = values.next().map(read).unwrap_or_default();
                let is_called = live
                    .iter()
                    .any(|(field, value)| field.starts_with("t:") && !value.ends_with('|') && !value.contains("|~"));
                let mut attempts = 0;
                for row in log.ids {
                    let Some(entry) = history_of(&row) else { continue };
                    attempts += match entry["type"].as_str().unwrap_or_default() {
                        "FunctionStarted" => 1,
                        // An app that could not be reached costs no attempt.
                        "StepErrored" | "FunctionErrored" if entry["error"]["code"] != "http_unreachable" => 1,
                        _ => 0,
                    };
                }
                signs.push(Signs { attempts, is_waiting: !live.is_empty() && !is_called });
            }
        }
        Ok(signs)
    }

    /// The history of a run after an entry of it.
    pub async fn history_after(
        &self,
        id: &str,
        after: Option<EntryId>,
    ) -> Result<Vec<(EntryId, serde_json::Value)>, Error> {
        let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(self.key(&format!("log:{id}"))).arg(from).arg("+");
        let rows: redis::streams::StreamRangeReply = self.bus.redis.query(&cmd).await?;
        let read = |row: redis::streams::StreamId| Some((row.id.parse().ok()?, history_of(&row)?));
        Ok(rows.ids.into_iter().filter_map(read).collect())
    }

    /// The latest run of each of these functions that has one, by slug.
    pub async fn latest_of(&self, slugs: &[String]) -> Result<HashMap<String, Run>, Error> {
        let mut ids = Vec::new();
        for chunk in slugs.chunks(IDS) {
            let mut pipeline = redis::pipe();
            for slug in chunk {
                pipeline.cmd("ZRANGE").arg(self.key(&format!("runs:fn:{slug}"))).arg(-1).arg(-1);
            }
            for value in self.bus.redis.pipeline(&pipeline).await? {
                ids.extend(read::<Vec<String>>(value));
            }
        }
        let runs = self.many(&ids).await?;
        Ok(runs.into_iter().map(|run| (run.function.clone(), run)).collect())
    }

    /// Those of these runs that exist, however many are asked for.
    pub async fn many(&self, ids: &[String]) -> Result<Vec<Run>, Error> {
        let mut found = Vec::new();
        for chunk in ids.chunks(IDS) {
            found.extend(self.runs(chunk).await?);
        }
        Ok(found)
    }

    /// Ids of runs that begin so, at most `limit`.
    pub async fn starting_with(&self, prefix: &str, limit: usize) -> Result<Vec<String>, Error> {
        let pattern = format!("{prefix}*");
        let mut found: Vec<String> = Vec::new();
        let mut cursor = 0_u64;
        loop {
            let mut cmd = redis::cmd("ZSCAN");
            cmd.arg(self.key("runs")).arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN);
            let (next, rows): (u64, Vec<(String, f64)>) = self.bus.redis.query(&cmd).await?;
            for (id, _) in rows {
                // A scan may show a member twice.
                if !found.contains(&id) {
                    found.push(id);
                }
            }
            cursor = next;
            if cursor == 0 || found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }
}

fn history_of(row: &redis::streams::StreamId) -> Option<serde_json::Value> {
    serde_json::from_str(&row.get::<String>("j")?).ok()
}

/// What is not its documented shape reads as absent.
fn read<T: redis::FromRedisValue + Default>(value: Value) -> T {
    redis::from_redis_value(value).unwrap_or_default()
}
