//! One advance of a run: a guard, commands, and what came of it. The contract is in `scripts/advance.lua`.

use bytes::Bytes;
use redis::Value;

use super::{Limits, Status};
use crate::streams::lane::Lane;
use crate::streams::records::{Enqueue, EnqueueRow, Fact, PackedId, Record};
use crate::streams::redis::{Error, ScriptCall};
use crate::streams::trace::TraceContext;

/// Under which condition an advance happens; otherwise nothing is written.
#[derive(Debug, Clone, Copy)]
pub enum Guard<'a> {
    /// It answers this generation of a thread, begun under a lane entry.
    Thread {
        /// `d` or a step hash.
        thread: &'a str,
        /// As begun.
        generation: u64,
        /// The entry that the caller holds; `None` for a checkpoint, which holds none.
        entry: Option<&'a str>,
    },
    /// The step is open, as `sleep`, `wait`, `invoke`, `signal` or `plan`.
    Step {
        /// Step hash.
        step: &'a str,
        /// Its kind.
        kind: &'a str,
    },
    /// The timer is due.
    Timer(&'a str),
    /// The run has not ended.
    Any,
}

/// The end of a run.
#[derive(Debug, Clone)]
pub struct End<'a> {
    /// Completed, failed or cancelled.
    pub status: Status,
    /// JSON text.
    pub output: &'a str,
    /// The error object as JSON text, or nothing.
    pub error: &'a str,
    /// In a few words; a code where there is one.
    pub why: &'a str,
    /// Events that tell of the end: lane, event id and envelope.
    pub events: Vec<(Lane, String, Vec<u8>)>,
}

/// What an advance led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advanced {
    /// Done.
    On {
        /// Redis's clock, ms.
        now_ms: u64,
        /// The caller goes on with this thread under the entry it holds, already begun with this generation.
        next: Option<(String, u64)>,
        /// The run's request version; negative while unknown.
        version: i64,
        /// Steps are to be planned instead of run at once.
        force_plan: bool,
        /// Completed steps, so that the caller knows whether its copy is whole.
        completed: usize,
    },
    /// The call is outdated: another worker took the thread, or the step has its value. Nothing was written.
    Stale,
    /// The run has ended. Nothing was written.
    Ended,
    /// A limit of the run would be passed: `steps` or `state`. Nothing was written.
    Limit(String),
    /// Another run waits for this signal. Nothing was written.
    Conflict(String),
    /// The function keeps answering nothing although nothing is under way. Nothing was written.
    Stuck,
}

/// See the module.
#[derive(Debug)]
pub struct Advance<'a> {
    run: &'a str,
    guard: Guard<'a>,
    version: Option<u32>,
    fan: (usize, bool),
    flags: String,
    limits: Limits,
    keep_ms: u64,
    commands: Vec<Bytes>,
    records: Vec<Record>,
    appended: Enqueue,
    span: Option<TraceContext>,
}

macro_rules! command {
    ($self:ident, $($part:expr),* $(,)?) => {{
        $($self.commands.push(Bytes::from($part));)*
    }};
}

impl<'a> Advance<'a> {
    /// An advance of `run` without commands yet.
    #[must_use]
    pub fn new(run: &'a str, guard: Guard<'a>, limits: Limits, keep_ms: u64) -> Self {
        Self {
            run,
            guard,
            version: None,
            fan: (0, false),
            flags: String::new(),
            limits,
            keep_ms,
            commands: Vec::new(),
            records: Vec::new(),
            appended: Enqueue { sources: vec!["functions".into()], ..Enqueue::default() },
            span: None,
        }
    }

    /// The run's span, which causes the events that the advance appends.
    pub fn in_span(&mut self, span: TraceContext) {
        self.span = Some(span);
    }

    /// The request version to hold for the run, if none is known yet.
    pub fn request_version(&mut self, version: Option<u32>) {
        self.version = version;
    }

    /// Steps of a reply that has several: discovery follows when all are done (request version 2).
    pub fn fan_out(&mut self, steps: &[&str], waits: bool) {
        self.fan = (steps.len(), waits);
        if steps.len() >= 2 && waits {
            command!(self, "fan", steps.len().to_string());
            for step in steps {
                command!(self, (*step).to_owned());
            }
        }
    }

    /// The call goes on: values are stored, attempts start anew.
    pub fn checkpoint(&mut self) {
        self.flags.push('k');
    }

    /// Call the function again to discover more.
    pub fn discover(&mut self) {
        self.flags.push('d');
    }

    /// The function answered nothing.
    pub fn empty_answer(&mut self) {
        self.flags.push('e');
    }

    /// A step has its value, JSON text.
    pub fn memo(&mut self, step: &str, value: String, history: String) {
        command!(self, "memo", step.to_owned(), value, history);
    }

    /// Call this step.
    pub fn plan(&mut self, step: &str, race: bool, history: String) {
        command!(self, "plan", step.to_owned(), flag(race), history);
    }

    /// Sleep for `ms`.
    pub fn sleep(&mut self, step: &str, race: bool, ms: u64, history: String) {
        command!(self, "sleep", step.to_owned(), flag(race), ms.to_string(), history);
    }

    /// Wait for an event.
    pub fn wait(&mut self, step: &str, race: bool, event: &str, wait: &super::Wait, ms: u64, history: String) {
        let value = serde_json::to_string(wait).unwrap_or_default();
        command!(self, "wait", step.to_owned(), flag(race), wait.place(event), value, ms.to_string(), history);
    }

    /// Invoke a function by appending the event that asks for it.
    pub fn invoke(&mut self, step: &str, race: bool, ms: u64, event: (Lane, String, Vec<u8>), history: String) {
        let (lane, id, envelope) = event;
        self.journal_append(&lane, id, envelope.len());
        command!(self, "invoke", step.to_owned(), flag(race), ms.to_string(), lane.to_string(), envelope, history);
    }

    /// Wait for a signal.
    pub fn signal(&mut self, step: &str, race: bool, signal: &str, replace: bool, ms: u64, history: String) {
        command!(
            self,
            "signal",
            step.to_owned(),
            flag(race),
            signal.to_owned(),
            flag(replace),
            ms.to_string(),
            history
        );
    }

    /// Try this thread again in `ms`.
    pub fn retry(&mut self, ms: u64, history: String) {
        command!(self, "retry", ms.to_string(), history);
    }

    /// Try this thread again in `ms`, without counting the attempt: the function was never reached.
    pub fn again(&mut self, ms: u64, history: String) {
        command!(self, "again", ms.to_string(), history);
    }

    /// The retry of a thread is due.
    pub fn requeue(&mut self, thread: &str) {
        command!(self, "requeue", thread.to_owned());
    }

    /// A line of history.
    pub fn note(&mut self, history: String) {
        command!(self, "note", history);
    }

    /// The run ends here; commands after this one are not looked at.
    pub fn end(&mut self, end: End<'_>) {
        for (lane, id, envelope) in &end.events {
            self.journal_append(lane, id.clone(), envelope.len());
        }
        command!(
            self,
            "end",
            end.status.as_str(),
            end.output.to_owned(),
            end.error.to_owned(),
            end.why.to_owned(),
            end.events.len().to_string()
        );
        for (lane, _, envelope) in end.events {
            command!(self, lane.to_string(), envelope);
        }
        command!(self, super::history::ended(end.status, end.why));
    }

    /// Journals a fact with this advance.
    pub fn fact(&mut self, fact: Fact) {
        self.records.push(Record::Fact(fact));
    }

    fn journal_append(&mut self, lane: &Lane, id: String, bytes: usize) {
        let name = lane.to_string();
        let lanes = &mut self.appended.lanes;
        let index = lanes.iter().position(|known| *known == name).unwrap_or_else(|| {
            lanes.push(name);
            lanes.len() - 1
        });
        let index = u16::try_from(index).unwrap_or_default();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.appended.rows.push(EnqueueRow(index, PackedId(id), 0, vec![bytes], 0, self.span));
    }

    /// The journal records, appended events first: the script's result lines are theirs.
    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Puts the appended events before the facts; to be called once, before the call is made.
    #[must_use]
    pub fn ready(mut self) -> Self {
        if !self.appended.rows.is_empty() {
            let appended = std::mem::take(&mut self.appended);
            self.records.insert(0, Record::Enqueue(appended));
        }
        self
    }

    pub(super) fn call<'b>(&self, call: ScriptCall<'b>) -> ScriptCall<'b> {
        let (guard, subject, detail, entry) = match self.guard {
            Guard::Thread { thread, generation, entry } => {
                ("thread", thread, generation.to_string(), entry.unwrap_or_default())
            }
            Guard::Step { step, kind } => ("step", step, kind.to_owned(), ""),
            Guard::Timer(member) => ("timer", member, String::new(), ""),
            Guard::Any => ("any", "", String::new(), ""),
        };
        let version = self.version.map(|version| version.to_string()).unwrap_or_default();
        let mut call = call
            .arg(self.run)
            .arg(guard)
            .arg(subject)
            .arg(detail)
            .arg(entry)
            .arg(version)
            .number(self.fan.0)
            .arg(flag(self.fan.1))
            .arg(self.flags.as_str())
            .number(self.limits.steps)
            .number(self.limits.state_bytes)
            .number(self.keep_ms);
        for part in &self.commands {
            call.push_arg(part.clone());
        }
        call
    }
}

const fn flag(value: bool) -> &'static str {
    if value { "1" } else { "0" }
}

pub(super) fn advanced(value: Value) -> Result<Advanced, Error> {
    let unexpected = |detail: &str| Error::Reply { command: "advance.lua", detail: detail.to_owned() };
    let Value::Array(parts) = value else { return Err(unexpected("not a list")) };
    let text = |index: usize| -> String {
        parts.get(index).and_then(|part| redis::from_redis_value_ref(part).ok()).unwrap_or_default()
    };
    let number = |index: usize| -> i64 {
        parts.get(index).and_then(|part| redis::from_redis_value_ref(part).ok()).unwrap_or_default()
    };
    match text(0).as_str() {
        "ok" => {
            let next = text(2);
            Ok(Advanced::On {
                now_ms: u64::try_from(number(1)).unwrap_or_default(),
                next: (!next.is_empty()).then(|| (next, u64::try_from(number(3)).unwrap_or_default())),
                version: number(4),
                force_plan: text(5) == "1",
                completed: usize::try_from(number(6)).unwrap_or_default(),
            })
        }
        "stale" => Ok(Advanced::Stale),
        "ended" => Ok(Advanced::Ended),
        "limit" => Ok(Advanced::Limit(text(1))),
        "conflict" => Ok(Advanced::Conflict(text(1))),
        "stuck" => Ok(Advanced::Stuck),
        other => Err(unexpected(other)),
    }
}
