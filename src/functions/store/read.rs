//! Reading runs back: one run, its steps and its history.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use redis::Value;
use serde_json::value::RawValue;

use super::{Begun, Runs, Taken};
use crate::streams::entry_id::EntryId;
use crate::streams::redis::Error;
use crate::streams::trace::TraceContext;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Created, not yet called.
    Queued,
    /// Called at least once; sleeping and waiting runs are running.
    Running,
    /// Ended with a result.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended by an operator, an event or a timeout.
    Cancelled,
    /// Never started, by flow control.
    Skipped,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Completed, Self::Failed, Self::Cancelled, Self::Skipped];

    /// As stored, and as the command line and GraphQL say it: `RUNNING`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Skipped => "SKIPPED",
        }
    }

    /// As the REST API says it: `Running`.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Queued => "Scheduled",
            Self::Running => "Running",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::Skipped => "Skipped",
        }
    }

    /// Nothing more will happen to it.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a status; use queued, running, completed, failed, cancelled or skipped")]
pub struct ParseStatusError(String);

impl FromStr for Status {
    type Err = ParseStatusError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = text.trim();
        let found = Self::ALL
            .into_iter()
            .find(|status| status.as_str().eq_ignore_ascii_case(wanted) || status.title().eq_ignore_ascii_case(wanted));
        found.ok_or_else(|| ParseStatusError(text.to_owned()))
    }
}

/// One run.
#[derive(Debug, Clone)]
pub struct Run {
    /// ULID.
    pub id: String,
    /// Slug.
    pub function: String,
    /// UUID.
    pub function_id: String,
    /// App name.
    pub app: String,
    /// Lane of its work items.
    pub lane: String,
    /// Where it stands.
    pub status: Status,
    /// Its events, JSON array text.
    pub events: String,
    /// Their public ids.
    pub event_ids: Vec<String>,
    /// `<parent run>.<step hash>` of an invoked run.
    pub correlation: Option<String>,
    /// `event`, `invoke`, `rerun`, `replay`, `cron`.
    pub cause: String,
    /// Its span.
    pub span: TraceContext,
    /// The span that its event was dispatched in, hex.
    pub parent_span: Option<String>,
    /// Created, ms.
    pub queued_ms: u64,
    /// First called, ms.
    pub started_ms: Option<u64>,
    /// Ended, ms.
    pub ended_ms: Option<u64>,
    /// The SDK's request version; negative while unknown.
    pub version: i64,
    /// Steps are planned instead of run at once.
    pub force_plan: bool,
    /// Result as JSON text, once completed.
    pub output: Option<String>,
    /// Error object as JSON text, once failed.
    pub error: Option<String>,
    /// Why it ended as it did, where there is more to say.
    pub why: Option<String>,
}

impl Run {
    fn read(id: &str, fields: &HashMap<String, String>) -> Option<Self> {
        let text = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let present = |name: &str| fields.get(name).filter(|value| !value.is_empty()).cloned();
        let number = |name: &str| fields.get(name).and_then(|value| value.parse().ok());
        Some(Self {
            id: id.to_owned(),
            status: fields.get("st")?.parse().ok()?,
            function: text("fn"),
            function_id: text("fid"),
            app: text("app"),
            lane: text("lane"),
            events: text("ev"),
            event_ids: text("eids").split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect(),
            correlation: present("corr"),
            cause: text("cause"),
            // Runs of before there were traces have none.
            span: fields.get("tr").and_then(|text| text.parse().ok()).unwrap_or_else(|| TraceContext::root(id)),
            parent_span: present("tp"),
            queued_ms: number("q").unwrap_or_default(),
            started_ms: number("s"),
            ended_ms: number("e"),
            version: fields.get("rv").and_then(|value| value.parse().ok()).unwrap_or(-1),
            force_plan: fields.get("fp").is_some_and(|value| value == "1"),
            output: present("out"),
            error: present("err"),
            why: present("why"),
        })
    }

    /// Its events as JSON texts.
    #[must_use]
    pub fn event_list(&self) -> Vec<Box<RawValue>> {
        serde_json::from_str(&self.events).unwrap_or_default()
    }

    /// What it ended with: result or error, as JSON text.
    #[must_use]
    pub fn result(&self) -> Option<&str> {
        self.output.as_deref().or(self.error.as_deref())
    }
}

/// A run's steps, in the order of completion.
pub type Memos = Vec<(String, String)>;

/// Steps and history of a run.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    /// Step hash and value as JSON text, in the order of completion.
    pub steps: Memos,
    /// When and what, oldest first.
    pub history: Vec<(EntryId, serde_json::Value)>,
}

impl Runs {
    /// One run.
    pub async fn run(&self, id: &str) -> Result<Option<Run>, Error> {
        Ok(self.exactly(&[id.to_owned()]).await?.pop())
    }

    /// Those of these runs that exist. A run that an event would have made, had it not gone into a batch, is the batch's.
    pub async fn runs(&self, ids: &[String]) -> Result<Vec<Run>, Error> {
        let mut found = self.exactly(ids).await?;
        if found.len() == ids.len() {
            return Ok(found);
        }
        let missing: Vec<String> = ids
            .iter()
            .filter(|id| !found.iter().any(|run| run.id == **id))
            .map(|id| self.key(&format!("alias:{id}")))
            .collect();
        let aliases: Vec<Option<String>> = self.bus.redis.query(redis::cmd("MGET").arg(missing)).await?;
        let mut aliases: Vec<String> = aliases.into_iter().flatten().collect();
        aliases.sort();
        aliases.dedup();
        aliases.retain(|id| !ids.contains(id));
        found.extend(self.exactly(&aliases).await?);
        Ok(found)
    }

    async fn exactly(&self, ids: &[String]) -> Result<Vec<Run>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for id in ids {
            pipeline.cmd("HGETALL").arg(self.key(&format!("run:{id}")));
        }
        let values = self.bus.redis.pipeline(&pipeline).await?;
        let read = |(id, value): (&String, Value)| {
            let fields: HashMap<String, String> = redis::from_redis_value(value).ok()?;
            Run::read(id, &fields)
        };
        Ok(ids.iter().zip(values).filter_map(read).collect())
    }

    /// Stack and values of a run, of one moment.
    pub async fn steps(&self, id: &str) -> Result<Memos, Error> {
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("LRANGE").arg(self.key(&format!("stack:{id}"))).arg(0).arg(-1);
        pipeline.cmd("HGETALL").arg(self.key(&format!("steps:{id}")));
        let mut connection = self.bus.redis.dedicated().await?;
        let (stack, mut steps): (Vec<String>, HashMap<String, String>) =
            pipeline.query_async(&mut connection).await.map_err(Error::Refused)?;
        Ok(stack.into_iter().filter_map(|step| steps.remove(&step).map(|value| (step, value))).collect())
    }

    /// Steps and history.
    pub async fn details(&self, id: &str) -> Result<Ending, Error> {
        let steps = self.steps(id).await?;
        let rows: redis::streams::StreamRangeReply =
            self.bus.redis.query(redis::cmd("XRANGE").arg(self.key(&format!("log:{id}"))).arg("-").arg("+")).await?;
        let read = |row: redis::streams::StreamId| {
            let text: String = row.get("j")?;
            Some((row.id.parse().ok()?, serde_json::from_str(&text).ok()?))
        };
        Ok(Ending { steps, history: rows.ids.into_iter().filter_map(read).collect() })
    }

    /// Runs that have not ended, per status the oldest first, at most `limit` from the `from`-th on.
    pub async fn open(&self, from: usize, limit: usize) -> Result<Vec<String>, Error> {
        let mut open = Vec::new();
        for status in [Status::Queued, Status::Running] {
            let key = self.key(&format!("runs:st:{status}"));
            let ids: Vec<String> = self
                .bus
                .redis
                .query(redis::cmd("ZRANGE").arg(key).arg(from).arg(from + limit.saturating_sub(1)))
                .await?;
            open.extend(ids);
        }
        Ok(open)
    }
}

pub(super) fn begun(run: &str, value: Value) -> Result<Taken, Error> {
    let unexpected = |detail: &str| Error::Reply { command: "begin.lua", detail: detail.to_owned() };
    let Value::Array(parts) = value else { return Err(unexpected("not a list")) };
    let mut parts = parts.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    let text = |value: Value| redis::from_redis_value::<String>(value).unwrap_or_default();
    let number = |value: Value| redis::from_redis_value::<u64>(value).unwrap_or_default();
    match text(next()).as_str() {
        "ok" => {}
        "wait" => return Ok(Taken::Wait(number(next()))),
        _ => return Ok(Taken::Gone),
    }
    let (now_ms, thread) = (number(next()), text(next()));
    let (attempt, generation) = (number(next()), number(next()));
    let stack: Vec<String> = redis::from_redis_value(next()).map_err(|error| unexpected(&error.to_string()))?;
    let steps: HashMap<String, String> =
        redis::from_redis_value(next()).map_err(|error| unexpected(&error.to_string()))?;
    let fields: HashMap<String, String> =
        redis::from_redis_value(next()).map_err(|error| unexpected(&error.to_string()))?;
    let run = Run::read(run, &fields).ok_or_else(|| unexpected("the run has no status"))?;
    let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
    Ok(Taken::Begun(Begun { now_ms, thread, attempt, generation, stack, steps, run }))
}
