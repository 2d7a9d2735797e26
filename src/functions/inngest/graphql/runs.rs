//! One run, in the two shapes that clients know.

use async_graphql::{Context, Enum, ID, InputObject, Object, Result};
use serde_json::Value;

use super::super::super::ids;
use super::super::super::store::{self, Status};
use super::apps::{App, Function};
use super::events::{self, Event};
use super::scalars::{Bytes, Time, Ulid, Uuid};
use super::spans::Span;
use super::{Scope, failed, invalid, limits, trace};

/// The event of a run that a schedule started.
const SCHEDULED: &str = "inngest/scheduled.timer";

/// Queries about one run.
#[derive(Default)]
pub(super) struct Queries;

#[Object(name = "RunQueries")]
impl Queries {
    /// One run; nothing when there is none with this id.
    async fn run(&self, ctx: &Context<'_>, #[graphql(name = "runID")] run_id: String) -> Result<Option<RunV2>> {
        Ok(find(ctx, &run_id).await?.map(RunV2))
    }

    /// The same in its older shape.
    async fn function_run(&self, ctx: &Context<'_>, query: FunctionRunQuery) -> Result<Option<FunctionRun>> {
        Ok(find(ctx, &query.function_run_id).await?.map(FunctionRun))
    }
}

/// Which run.
#[derive(InputObject)]
struct FunctionRunQuery {
    #[graphql(default_with = "ID::from(\"local\")")]
    #[allow(dead_code, reason = "there is one workspace; clients may name it")]
    workspace_id: ID,
    function_run_id: ID,
}

/// A run by its id, if there is one.
pub(super) async fn find(ctx: &Context<'_>, id: &str) -> Result<Option<store::Run>> {
    let id =
        ids::parse(id).ok_or_else(|| invalid(format!("`{id}` is no run id: 26 characters of a ULID are expected")))?;
    Scope::of(ctx)?.runs().run(&id.to_string()).await.map_err(failed)
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "FunctionRunStatus", remote = "Status")]
pub(super) enum RunStatus {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
    Skipped,
}

/// The run's first event, parsed: what started it.
fn first_event(run: &store::Run) -> Option<Value> {
    let events = run.event_list();
    serde_json::from_str(events.first()?.get()).ok()
}

pub(super) fn event_name(run: &store::Run) -> Option<String> {
    Some(first_event(run)?.get("name")?.as_str()?.to_owned())
}

pub(super) fn cron(run: &store::Run) -> Option<String> {
    let event = first_event(run)?;
    (event["name"] == SCHEDULED).then(|| event["data"]["cron"].as_str().map(str::to_owned)).flatten()
}

/// The trace that a run's spans belong to: its id as 32 hex digits.
pub(super) fn trace_id(run: &str) -> String {
    ids::parse(run).map_or_else(String::new, |id| format!("{:032x}", id.0))
}

fn ulids(ids: &[String]) -> Vec<Ulid> {
    ids.iter().cloned().map(Ulid).collect()
}

async fn function_of(ctx: &Context<'_>, run: &store::Run) -> Result<Function> {
    let known = Scope::of(ctx)?.registry().await?;
    Ok(Function::told(&known, &run.function, &run.function_id, &run.app))
}

/// A run.
pub(super) struct RunV2(pub store::Run);

#[Object(name = "FunctionRunV2")]
impl RunV2 {
    async fn id(&self) -> Ulid {
        Ulid(self.0.id.clone())
    }

    #[graphql(name = "appID")]
    async fn app_id(&self) -> Uuid {
        Uuid(ids::app_id(&self.0.app).to_string())
    }

    async fn app(&self, ctx: &Context<'_>) -> Result<App> {
        Ok(App::new(&Scope::of(ctx)?.registry().await?, &self.0.app))
    }

    #[graphql(name = "functionID")]
    async fn function_id(&self) -> Uuid {
        Uuid(self.0.function_id.clone())
    }

    async fn function(&self, ctx: &Context<'_>) -> Result<Function> {
        function_of(ctx, &self.0).await
    }

    #[graphql(name = "traceID")]
    async fn trace_id(&self) -> String {
        trace_id(&self.0.id)
    }

    async fn queued_at(&self) -> Time {
        Time(self.0.queued_ms)
    }

    async fn started_at(&self) -> Option<Time> {
        self.0.started_ms.map(Time)
    }

    async fn ended_at(&self) -> Option<Time> {
        self.0.ended_ms.map(Time)
    }

    async fn status(&self) -> RunStatus {
        self.0.status.into()
    }

    /// The run that invoked it.
    #[graphql(name = "sourceID")]
    async fn source_id(&self) -> Option<&str> {
        self.0.correlation.as_deref().and_then(|correlation| correlation.split('.').next())
    }

    #[graphql(name = "triggerIDs")]
    async fn trigger_ids(&self) -> Vec<Ulid> {
        ulids(&self.0.event_ids)
    }

    async fn event_name(&self) -> Option<String> {
        event_name(&self.0)
    }

    async fn is_batch(&self) -> bool {
        self.0.event_ids.len() > 1
    }

    async fn batch_created_at(&self) -> Option<Time> {
        (self.0.event_ids.len() > 1).then_some(Time(self.0.queued_ms))
    }

    async fn cron_schedule(&self) -> Option<String> {
        cron(&self.0)
    }

    /// What it ended with, JSON: result or error.
    async fn output(&self) -> Option<Bytes> {
        self.0.result().map(|text| Bytes(text.to_owned()))
    }

    /// Why it ended as it did, where there is more to say.
    async fn reason(&self) -> Option<&str> {
        self.0.why.as_deref()
    }

    #[graphql(complexity = "limits::times(1, child_complexity) + limits::TRACE")]
    async fn trace(&self, ctx: &Context<'_>) -> Result<Option<Span>> {
        Ok(Some(trace::of(Scope::of(ctx)?.runs(), &self.0).await?))
    }

    /// Calls of models are steps like any other.
    #[graphql(name = "hasAI")]
    async fn has_ai(&self) -> bool {
        false
    }
}

/// A run, in its older shape.
pub(super) struct FunctionRun(pub store::Run);

#[Object]
impl FunctionRun {
    async fn id(&self) -> ID {
        self.0.id.clone().into()
    }

    #[graphql(name = "functionID")]
    async fn function_id(&self) -> &str {
        &self.0.function_id
    }

    async fn function(&self, ctx: &Context<'_>) -> Result<Option<Function>> {
        function_of(ctx, &self.0).await.map(Some)
    }

    async fn status(&self) -> Option<RunStatus> {
        Some(self.0.status.into())
    }

    async fn started_at(&self) -> Option<Time> {
        Some(Time(self.0.started_ms.unwrap_or(self.0.queued_ms)))
    }

    async fn finished_at(&self) -> Option<Time> {
        self.0.ended_ms.map(Time)
    }

    /// What it ended with, JSON: result or error.
    async fn output(&self) -> Option<&str> {
        self.0.result()
    }

    #[graphql(complexity = "limits::times(10, child_complexity)")]
    async fn event(&self, ctx: &Context<'_>) -> Result<Option<Event>> {
        match self.0.event_ids.first() {
            Some(id) => events::find(ctx, id).await,
            None => Ok(None),
        }
    }

    #[graphql(name = "eventID")]
    async fn event_id(&self) -> ID {
        self.0.event_ids.first().cloned().unwrap_or_default().into()
    }

    async fn batch_created_at(&self) -> Option<Time> {
        (self.0.event_ids.len() > 1).then_some(Time(self.0.queued_ms))
    }

    async fn cron(&self) -> Option<String> {
        cron(&self.0)
    }
}
