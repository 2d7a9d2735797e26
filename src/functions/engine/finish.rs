//! The end of a run: once, with the events that tell of it (protocol section A11).

use serde_json::Value;

use super::super::ids;
use super::super::store::{Advance, Advanced, End, Guard, Run, Status};
use super::event::{internal, names, quoted};
use super::{Engine, Error};
use crate::streams::lane::Lane;
use crate::streams::records::Fact;

/// How a run ends.
#[derive(Debug, Clone)]
pub(super) enum Ending {
    /// With a result, JSON text.
    Completed(String),
    /// With an error; `text` is the short one of the events.
    Failed {
        /// As stored.
        error: Value,
        /// `invalid status code: 500`, `NonRetriableError`, a code.
        text: String,
    },
    /// By an operator, an event, a timeout: why.
    Cancelled(String),
}

impl Ending {
    pub(super) const fn status(&self) -> Status {
        match self {
            Self::Completed(_) => Status::Completed,
            Self::Failed { .. } => Status::Failed,
            Self::Cancelled(_) => Status::Cancelled,
        }
    }

    /// Adds the end to an advance, as its last command.
    pub(super) fn add_to(&self, advance: &mut Advance<'_>, run: &Run) {
        let events = self.events(run);
        let mut fact = Fact::new("functions", self.action())
            .event(run.event_ids.first().cloned().unwrap_or_default())
            .with("runId", run.id.clone())
            .with("function", run.function.clone());
        if let Some(started) = run.started_ms {
            fact = fact.with("startedAtMs", started);
        }
        match self {
            Self::Completed(output) => {
                advance.fact(fact);
                advance.end(End { status: self.status(), output, error: "", why: "", events });
            }
            Self::Failed { error, text } => {
                let message = error.get("message").and_then(Value::as_str).unwrap_or(text);
                fact = fact.failed(message.chars().take(500).collect::<String>());
                advance.fact(fact);
                let error = error.to_string();
                advance.end(End { status: self.status(), output: "", error: &error, why: text, events });
            }
            Self::Cancelled(why) => {
                advance.fact(fact.with("reason", why.clone()));
                advance.end(End { status: self.status(), output: "", error: "", why, events });
            }
        }
    }

    const fn action(&self) -> &'static str {
        match self {
            Self::Completed(_) => "function.run.completed",
            Self::Failed { .. } => "function.run.failed",
            Self::Cancelled(_) => "function.run.cancelled",
        }
    }

    /// `finished` always, `failed` or `cancelled` beside it; nothing about a run that such an event started.
    fn events(&self, run: &Run) -> Vec<(Lane, String, Vec<u8>)> {
        let list = run.event_list();
        let Some(first) = list.first().map(|event| event.get()) else { return Vec::new() };
        let name =
            serde_json::from_str::<Value>(first).ok().and_then(|event| Some(event.get("name")?.as_str()?.to_owned()));
        if matches!(name.as_deref(), Some(names::FINISHED | names::FAILED)) {
            return Vec::new();
        }
        let mut data = format!(
            r#"{{"function_id":{},"run_id":"{}","_inngest":{{"status":"{}"}}"#,
            quoted(&run.function),
            run.id,
            self.status().title()
        );
        match self {
            Self::Completed(output) => {
                data.push_str(",\"result\":");
                data.push_str(output);
            }
            Self::Failed { error, text } => {
                let mut told = serde_json::Map::from_iter([("error".to_owned(), Value::from(text.as_str()))]);
                let mut result = serde_json::Map::from_iter([("__serialized".to_owned(), Value::from(true))]);
                if let Value::Object(members) = error {
                    told.extend(members.clone());
                    result.extend(members.clone());
                }
                told.insert("error".into(), text.as_str().into());
                data.push_str(&format!(",\"error\":{},\"result\":{}", Value::Object(told), Value::Object(result)));
            }
            Self::Cancelled(_) => {}
        }
        data.push_str(&format!(",\"event\":{first},\"events\":{}", run.events));
        let ts = chrono::Utc::now().timestamp_millis();
        // Each of a batch's events that an invoke sent has somebody who waits for it.
        let mut correlations = run.correlation.iter().flat_map(|all| all.split(','));
        let told = |correlation: Option<&str>| match correlation {
            Some(correlation) => format!("{data},\"correlation_id\":{}}}", quoted(correlation)),
            None => format!("{data}}}"),
        };
        let first = told(correlations.next());
        let mut events = vec![internal(names::FINISHED, ids::fresh(), &first, ts)];
        events.extend(correlations.map(|other| internal(names::FINISHED, ids::fresh(), &told(Some(other)), ts)));
        match self {
            Self::Completed(_) => {}
            Self::Failed { .. } => events.push(internal(names::FAILED, run.id.clone(), &first, ts)),
            Self::Cancelled(_) => events.push(internal(names::CANCELLED, run.id.clone(), &first, ts)),
        }
        events.into_iter().flatten().collect()
    }
}

impl Engine {
    /// Cancels a run. What it is calling now goes on; the answer is dropped.
    pub async fn cancel(&self, run: &str, why: &str) -> Result<Run, Error> {
        let run = self.runs().run(run).await?.ok_or_else(|| Error::NoRun(run.to_owned()))?;
        if run.status.is_terminal() {
            return Err(Error::Ended);
        }
        match self.end_run(&run, Guard::Any, &Ending::Cancelled(why.to_owned())).await? {
            Advanced::Ended => Err(Error::Ended),
            _ => self.runs().run(&run.id).await?.ok_or_else(|| Error::NoRun(run.id.clone())),
        }
    }

    pub(super) async fn end_run(&self, run: &Run, guard: Guard<'_>, ending: &Ending) -> Result<Advanced, Error> {
        let failed = matches!(ending, Ending::Failed { .. });
        let mut advance = Advance::new(&run.id, guard, self.settings().limits, self.keep_ms(failed));
        ending.add_to(&mut advance, run);
        Ok(self.runs().advance(advance).await?)
    }
}
