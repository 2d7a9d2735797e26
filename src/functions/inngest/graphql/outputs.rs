//! Outputs of spans: an opaque id names what is stored, and is resolved when it is asked for.

use std::collections::BTreeMap;

use async_graphql::{Context, Object, Result, SimpleObject};
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::super::ids;
use super::super::super::store::{self, Status};
use super::run_list::{decoded, encoded};
use super::scalars::Bytes;
use super::{Scope, failed, invalid, missing};
use crate::streams::entry_id::EntryId;

/// What an output id names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Of {
    /// What the run ended with.
    Run,
    /// The value of a step, by its hash.
    Step(String),
    /// The error of a failed attempt, by its entry in the history.
    Attempt(EntryId),
}

impl Of {
    /// The id.
    pub(super) fn id(&self, run: &str) -> String {
        encoded(&match self {
            Self::Run => format!("{run}.r"),
            Self::Step(step) => format!("{run}.s.{step}"),
            Self::Attempt(entry) => format!("{run}.a.{entry}"),
        })
    }

    /// Run and subject of an id.
    fn read(id: &str) -> Option<(String, Self)> {
        let text = decoded(id)?;
        let mut parts = text.splitn(3, '.');
        let run = ids::parse(parts.next()?)?.to_string();
        let of = match (parts.next()?, parts.next()) {
            ("r", None) => Self::Run,
            ("s", Some(step)) => Self::Step(step.to_owned()),
            ("a", Some(entry)) => Self::Attempt(entry.parse().ok()?),
            _ => return None,
        };
        Some((run, of))
    }
}

/// Queries about outputs.
#[derive(Default)]
pub(super) struct Queries;

#[Object(name = "OutputQueries")]
impl Queries {
    /// What a span ended with.
    #[graphql(name = "runTraceSpanOutputByID")]
    async fn run_trace_span_output_by_id(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "outputID")] output_id: String,
    ) -> Result<Output> {
        let unknown = || invalid(format!("`{output_id}` is no outputID of a span"));
        let (id, of) = Of::read(&output_id).ok_or_else(unknown)?;
        let runs = Scope::of(ctx)?.runs();
        let gone = || missing(format!("there is no run {id}"));
        let found = match of {
            Of::Run => {
                let run = runs.run(&id).await.map_err(failed)?.ok_or_else(gone)?;
                run.status.is_terminal().then(|| Output::of_run(&run))
            }
            Of::Step(step) => {
                let steps = runs.steps(&id).await.map_err(failed)?;
                steps.into_iter().find(|(hash, _)| *hash == step).map(|(_, value)| Output::of_step(&value))
            }
            Of::Attempt(entry) => {
                let history = runs.details(&id).await.map_err(failed)?.history;
                history.iter().find(|(at, _)| *at == entry).map(|(_, line)| Output::failed(&line["error"]))
            }
        };
        found.ok_or_else(|| missing("this span has no output, or none any more"))
    }
}

/// What a span ended with: data or an error.
#[derive(Debug, PartialEq, Eq, SimpleObject)]
#[graphql(name = "RunTraceSpanOutput")]
struct Output {
    input: Option<Bytes>,
    /// JSON.
    data: Option<Bytes>,
    error: Option<StepError>,
}

/// Why a step or a run failed.
#[derive(Debug, PartialEq, Eq, SimpleObject)]
struct StepError {
    message: String,
    name: Option<String>,
    stack: Option<String>,
    /// JSON.
    cause: Option<Bytes>,
}

impl Output {
    fn of_data(text: &str) -> Self {
        Self { input: None, data: Some(Bytes(text.to_owned())), error: None }
    }

    fn failed(error: &Value) -> Self {
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        let error = StepError {
            message: text("message").unwrap_or_else(|| "Function execution error".into()),
            name: text("name"),
            stack: text("stack"),
            cause: error.get("cause").map(|cause| Bytes(cause.to_string())),
        };
        Self { input: None, data: None, error: Some(error) }
    }

    fn of_run(run: &store::Run) -> Self {
        match run.status {
            Status::Completed => Self::of_data(run.output.as_deref().unwrap_or("null")),
            Status::Failed => Self::failed(&parsed(run.error.as_deref().unwrap_or("null"))),
            status => {
                let message = run.why.clone().unwrap_or_else(|| status.title().to_lowercase());
                Self::failed(&serde_json::json!({"name": status.title(), "message": message}))
            }
        }
    }

    /// A step's value is `{"data": …}`, `{"error": …}`, or the value itself (of waits and sleeps).
    fn of_step(memo: &str) -> Self {
        let members: BTreeMap<&str, &RawValue> = serde_json::from_str(memo).unwrap_or_default();
        let only = members.first_key_value().filter(|_| members.len() == 1);
        match only {
            Some((&"data", value)) => Self::of_data(value.get()),
            Some((&"error", error)) => Self::failed(&parsed(error.get())),
            _ => Self::of_data(memo),
        }
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back() {
        let run = ids::fresh();
        for of in [Of::Run, Of::Step("a.b".into()), Of::Attempt(EntryId { ms: 7, seq: 1 })] {
            assert_eq!(Of::read(&of.id(&run)), Some((run.clone(), of)));
        }
        for bad in ["", "???", &encoded("x.r"), &encoded(&format!("{run}.q"))] {
            assert_eq!(Of::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_value_keeps_its_text() {
        assert_eq!(Output::of_step(r#"{"data":9007199254740993}"#), Output::of_data("9007199254740993"));
        assert_eq!(Output::of_step("null"), Output::of_data("null"));
        let event = r#"{"data":{"x":1},"id":"i","name":"n"}"#;
        assert_eq!(Output::of_step(event), Output::of_data(event));
        let error = Output::of_step(r#"{"error":{"name":"E","message":"m","stack":"s"}}"#).error.unwrap();
        assert_eq!(
            (error.name.as_deref(), error.message.as_str(), error.stack.as_deref()),
            (Some("E"), "m", Some("s"))
        );
    }
}
