//! Events, in the two shapes that clients know, and what started a run.

use async_graphql::{Context, Enum, ID, InputObject, Object, Result, SimpleObject};

use super::super::super::ids;
use super::super::super::store::{self, Status};
use super::super::event_log::{self, Stored, Wanted};
use super::super::events::started_by;
use super::run_list::{self, DAY_MS, PageInfo};
use super::runs::{self, FunctionRun, RunV2};
use super::scalars::{Bytes, Time, Ulid};
use super::{Scope, failed, limits, missing};
use crate::streams::entry_id::EntryId;

/// Events on a page unless asked otherwise.
const FIRST: usize = 40;
/// Rows read beyond a page: events of one millisecond that the page before has shown.
const TIES: usize = 64;
/// What the runs of an event cost beside their fields: a look for each function.
const RUNS: usize = 20;

/// Queries about events.
#[derive(Default)]
pub(super) struct Queries;

#[Object(name = "EventQueries")]
impl Queries {
    /// One event; nothing when there is none with this id.
    async fn event(&self, ctx: &Context<'_>, query: EventQuery) -> Result<Option<Event>> {
        find(ctx, &query.event_id).await
    }

    /// The latest events, newest first.
    #[graphql(complexity = "limits::times(FIRST, child_complexity)")]
    async fn events(&self, ctx: &Context<'_>, query: Option<EventsQuery>) -> Result<Option<Vec<Event>>> {
        let filter = EventsFilter { from: Some(Time(0)), ..EventsFilter::default() };
        let after = match query.and_then(|query| query.last_event_id) {
            Some(id) => stored(ctx, &id).await?.map(|stored| place(&stored)),
            None => None,
        };
        let (found, _) = filter.find(Scope::of(ctx)?, after, FIRST).await?;
        Ok(Some(found.into_iter().map(Event).collect()))
    }

    /// One event.
    #[graphql(name = "eventV2")]
    async fn event_v2(&self, ctx: &Context<'_>, id: Ulid) -> Result<EventV2> {
        stored(ctx, &id.0).await?.map(EventV2).ok_or_else(|| missing(format!("there is no event {}", id.0)))
    }

    /// Events, newest first, of the last 24 h, unless asked otherwise.
    #[graphql(name = "eventsV2", complexity = "limits::times(limits::page(first, FIRST), child_complexity)")]
    async fn events_v2(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        filter: Option<EventsFilter>,
    ) -> Result<Connection> {
        let place = after.as_deref().map(read_cursor).transpose()?;
        let is_continued = place.is_some();
        let filter = filter.unwrap_or_default();
        let (events, has_more) = filter.find(Scope::of(ctx)?, place, limits::page(first, FIRST)).await?;
        Ok(Connection { events, has_more, is_continued })
    }

    /// What started a run.
    async fn run_trigger(&self, ctx: &Context<'_>, #[graphql(name = "runID")] run_id: String) -> Result<RunTrigger> {
        let run = runs::find(ctx, &run_id).await?.ok_or_else(|| missing(format!("there is no run {run_id}")))?;
        Ok(RunTrigger::of(&run))
    }
}

/// Which event.
#[derive(InputObject)]
struct EventQuery {
    #[graphql(default_with = "ID::from(\"local\")")]
    #[allow(dead_code, reason = "there is one workspace; clients may name it")]
    workspace_id: ID,
    event_id: ID,
}

/// Which events: those before one of them.
#[derive(InputObject)]
struct EventsQuery {
    #[graphql(default_with = "ID::from(\"local\")")]
    #[allow(dead_code, reason = "there is one workspace; clients may name it")]
    workspace_id: ID,
    last_event_id: Option<ID>,
}

/// Which events.
#[derive(Default, InputObject)]
struct EventsFilter {
    event_names: Option<Vec<String>>,
    /// 24 h ago unless given.
    from: Option<Time>,
    until: Option<Time>,
    /// The engine's own events too.
    #[graphql(default)]
    include_internal_events: bool,
    /// A condition on the event.
    query: Option<String>,
}

/// Where an event is: entry and lane.
type Place = (EntryId, String);

fn place(stored: &Stored) -> Place {
    (stored.entry, stored.lane.to_string())
}

impl EventsFilter {
    /// Those that match, newest first, after a place, and whether there are more.
    async fn find(&self, scope: &Scope, after: Option<Place>, limit: usize) -> Result<(Vec<Stored>, bool)> {
        let condition = self.query.as_deref().map(run_list::condition).transpose()?.flatten();
        let since_ms = self.from.map_or_else(|| run_list::now_ms().saturating_sub(DAY_MS), |from| from.0);
        let continued = after.as_ref().map(|(entry, _)| entry.ms.saturating_add(1));
        let wanted = Wanted {
            since_ms: Some(since_ms),
            until_ms: [self.until.map(|until| until.0), continued].into_iter().flatten().min(),
            internal: self.include_internal_events,
            limit: if condition.is_some() { limits::LOOK } else { limit.saturating_add(TIES) },
            ..Wanted::default()
        };
        let names = self.event_names.as_ref().filter(|names| !names.is_empty());
        let each: Vec<Wanted> = match names {
            None => vec![wanted],
            Some(names) => names.iter().map(|name| Wanted { name: Some(name.clone()), ..wanted.clone() }).collect(),
        };
        let mut found = Vec::new();
        for wanted in each {
            found.extend(event_log::latest(scope.runs().bus(), &wanted).await.map_err(failed)?);
        }
        found.sort_by_cached_key(|stored| std::cmp::Reverse(place(stored)));
        found.dedup_by_key(|stored| place(stored));
        found.retain(|stored| after.as_ref().is_none_or(|after| place(stored) < *after));
        if let Some(condition) = condition {
            found.retain(|stored| run_list::holds_for(&condition, &stored.event.value));
        }
        let has_more = found.len() > limit;
        found.truncate(limit);
        Ok((found, has_more))
    }
}

async fn stored(ctx: &Context<'_>, id: &str) -> Result<Option<Stored>> {
    event_log::find(Scope::of(ctx)?.runs().bus(), id).await.map_err(failed)
}

/// An event by its id, if there is one.
pub(super) async fn find(ctx: &Context<'_>, id: &str) -> Result<Option<Event>> {
    Ok(stored(ctx, id).await?.map(Event))
}

async fn runs_of(ctx: &Context<'_>, stored: &Stored) -> Result<Vec<store::Run>> {
    let scope = Scope::of(ctx)?;
    let known = scope.registry().await?;
    started_by(scope.runs(), &known, &stored.event.public_id).await.map_err(failed)
}

/// The id that its sender gave it, where that is another one.
fn external_id(stored: &Stored) -> Option<&str> {
    Some(stored.envelope.id.as_str()).filter(|id| *id != stored.event.public_id)
}

/// An event, in its older shape.
pub(super) struct Event(Stored);

/// What became of the runs of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
enum EventStatus {
    Running,
    Completed,
    Failed,
    PartiallyFailed,
    NoFunctions,
}

impl EventStatus {
    fn of(runs: &[store::Run]) -> Self {
        let failed = runs.iter().filter(|run| run.status == Status::Failed).count();
        match () {
            () if runs.is_empty() => Self::NoFunctions,
            () if runs.iter().any(|run| !run.status.is_terminal()) => Self::Running,
            () if failed == runs.len() => Self::Failed,
            () if failed > 0 => Self::PartiallyFailed,
            () => Self::Completed,
        }
    }
}

#[Object]
impl Event {
    async fn id(&self) -> Ulid {
        Ulid(self.0.event.public_id.clone())
    }

    #[graphql(name = "externalID")]
    async fn external_id(&self) -> Option<&str> {
        external_id(&self.0)
    }

    async fn name(&self) -> Option<&str> {
        Some(self.0.envelope.name.as_str())
    }

    /// When it was received.
    async fn created_at(&self) -> Option<Time> {
        Some(Time(self.0.entry.ms))
    }

    /// Its data, JSON.
    async fn payload(&self) -> Option<&str> {
        Some(self.0.envelope.data.as_str())
    }

    /// As functions see it, JSON.
    async fn raw(&self) -> Option<&str> {
        Some(&self.0.event.json)
    }

    #[graphql(complexity = "RUNS")]
    async fn status(&self, ctx: &Context<'_>) -> Result<Option<EventStatus>> {
        Ok(Some(EventStatus::of(&runs_of(ctx, &self.0).await?)))
    }

    /// Runs of it that have not ended.
    #[graphql(complexity = "RUNS")]
    async fn pending_runs(&self, ctx: &Context<'_>) -> Result<Option<usize>> {
        let runs = runs_of(ctx, &self.0).await?;
        Ok(Some(runs.iter().filter(|run| !run.status.is_terminal()).count()))
    }

    /// Runs that it started.
    #[graphql(complexity = "RUNS")]
    async fn total_runs(&self, ctx: &Context<'_>) -> Result<Option<usize>> {
        Ok(Some(runs_of(ctx, &self.0).await?.len()))
    }

    #[graphql(complexity = "limits::times(RUNS, child_complexity)")]
    async fn function_runs(&self, ctx: &Context<'_>) -> Result<Option<Vec<FunctionRun>>> {
        Ok(Some(runs_of(ctx, &self.0).await?.into_iter().map(FunctionRun).collect()))
    }
}

/// An event.
struct EventV2(Stored);

#[Object]
impl EventV2 {
    async fn id(&self) -> Ulid {
        Ulid(self.0.event.public_id.clone())
    }

    async fn name(&self) -> &str {
        self.0.envelope.name.as_str()
    }

    /// When it happened, as its sender says.
    async fn occurred_at(&self) -> Time {
        Time(u64::try_from(self.0.envelope.ts).unwrap_or(self.0.entry.ms))
    }

    async fn received_at(&self) -> Time {
        Time(self.0.entry.ms)
    }

    /// As functions see it, JSON.
    async fn raw(&self) -> &str {
        &self.0.event.json
    }

    async fn idempotency_key(&self) -> Option<&str> {
        external_id(&self.0)
    }

    async fn version(&self) -> Option<&str> {
        self.0.event.value.get("v").and_then(serde_json::Value::as_str)
    }

    #[graphql(complexity = "limits::times(RUNS, child_complexity)")]
    async fn runs(&self, ctx: &Context<'_>) -> Result<Vec<RunV2>> {
        Ok(runs_of(ctx, &self.0).await?.into_iter().map(RunV2).collect())
    }
}

/// A page of events.
struct Connection {
    events: Vec<Stored>,
    has_more: bool,
    is_continued: bool,
}

#[Object(name = "EventsConnection")]
impl Connection {
    async fn edges(&self) -> Vec<Edge> {
        let edge = |stored: &Stored| Edge { cursor: cursor(stored), node: EventV2(stored.clone()) };
        self.events.iter().map(edge).collect()
    }

    async fn page_info(&self) -> PageInfo {
        PageInfo {
            has_next_page: self.has_more,
            has_previous_page: self.is_continued,
            start_cursor: self.events.first().map(cursor),
            end_cursor: self.events.last().map(cursor),
        }
    }
}

/// An event on a page.
#[derive(SimpleObject)]
#[graphql(name = "EventsEdge")]
struct Edge {
    node: EventV2,
    cursor: String,
}

fn cursor(stored: &Stored) -> String {
    run_list::encoded(&format!("{} {}", stored.entry, stored.lane))
}

fn read_cursor(text: &str) -> Result<Place> {
    let place = run_list::decoded(text).and_then(|text| {
        let (entry, lane) = text.split_once(' ')?;
        Some((entry.parse().ok()?, lane.to_owned()))
    });
    place.ok_or_else(|| super::invalid(format!("after: `{text}` is no cursor of this list")))
}

/// What started a run.
#[derive(SimpleObject)]
#[graphql(name = "RunTraceTrigger")]
struct RunTrigger {
    event_name: Option<String>,
    #[graphql(name = "IDs")]
    ids: Vec<Ulid>,
    /// The events, JSON.
    payloads: Vec<Bytes>,
    /// When the first of them was received.
    timestamp: Time,
    is_batch: bool,
    #[graphql(name = "batchID")]
    batch_id: Option<Ulid>,
    cron: Option<String>,
}

impl RunTrigger {
    fn of(run: &store::Run) -> Self {
        let first = run.event_ids.first().and_then(|id| ids::parse(id));
        Self {
            event_name: runs::event_name(run),
            ids: run.event_ids.iter().cloned().map(Ulid).collect(),
            payloads: run.event_list().iter().map(|event| Bytes(event.get().to_owned())).collect(),
            timestamp: Time(first.map_or(run.queued_ms, |id| id.timestamp_ms())),
            is_batch: run.event_ids.len() > 1,
            batch_id: None,
            cron: runs::cron(run),
        }
    }
}
