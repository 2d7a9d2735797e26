//! Lists of runs: filter, order and pages.

use async_graphql::{Context, Enum, InputObject, Object, Result, SimpleObject};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::super::super::expr::{Expr, Roots, Scope as Looked};
use super::super::super::ids;
use super::super::super::registry::Snapshot;
use super::super::super::store::{self, Filter, Moment, Page};
use super::runs::{RunStatus, RunV2};
use super::scalars::{Time, Uuid};
use super::{Scope, failed, invalid, limits};

/// Runs on a page unless asked otherwise.
const FIRST: usize = 100;
/// How far back a list goes unless asked otherwise, ms.
pub(super) const DAY_MS: u64 = 86_400_000;
/// Runs looked at where the indexes do not answer alone.
const LOOK: usize = 10_000;

/// Queries about many runs.
#[derive(Default)]
pub(super) struct Queries;

#[Object(name = "RunListQueries")]
impl Queries {
    /// Runs, newest first, of the last 24 h, unless asked otherwise.
    #[graphql(complexity = "limits::times(limits::page(first, FIRST), child_complexity)")]
    async fn runs(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        order_by: Option<Vec<RunsOrderBy>>,
        filter: Option<RunsFilter>,
    ) -> Result<Connection> {
        let scope = Scope::of(ctx)?;
        let asked = filter.unwrap_or_default();
        let condition = asked.query.as_deref().map(condition).transpose()?.flatten();
        let limit = limits::page(first, FIRST);
        let Some(mut wanted) = asked.to_store(scope).await? else { return Ok(Connection::default()) };
        if let Some(order) = order_by.and_then(|orders| orders.into_iter().next()) {
            wanted.order = order.field.into();
            wanted.oldest_first = order.direction == Direction::Asc;
        }
        wanted.after = after.as_deref().map(read_cursor).transpose()?;
        wanted.limit = if condition.is_some() { limits::LOOK } else { limit };
        let mut page = scope.runs().list(&wanted).await.map_err(failed)?;
        if let Some(condition) = condition {
            page.runs.retain(|run| holds(&condition, run));
            page.total = page.runs.len();
            page.has_more = page.runs.len() > limit;
            page.runs.truncate(limit);
        }
        Ok(Connection { page, order: wanted.order, is_continued: wanted.after.is_some() })
    }
}

/// Which runs.
#[derive(Default, InputObject)]
#[graphql(name = "RunsFilterV2")]
struct RunsFilter {
    /// 24 h ago unless given.
    from: Option<Time>,
    until: Option<Time>,
    #[graphql(default)]
    time_field: TimeField,
    status: Option<Vec<RunStatus>>,
    /// UUIDs or slugs.
    #[graphql(name = "functionIDs")]
    function_ids: Option<Vec<Uuid>>,
    /// UUIDs or names.
    #[graphql(name = "appIDs")]
    app_ids: Option<Vec<Uuid>>,
    /// A condition on the run's first event.
    query: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Enum)]
#[graphql(name = "RunsV2OrderByField")]
enum TimeField {
    #[default]
    #[graphql(name = "QUEUED_AT")]
    Queued,
    #[graphql(name = "STARTED_AT")]
    Started,
    #[graphql(name = "ENDED_AT")]
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(name = "RunsOrderByDirection")]
enum Direction {
    Asc,
    Desc,
}

/// By which time, in which direction; the first of several counts.
#[derive(InputObject)]
#[graphql(name = "RunsV2OrderBy")]
struct RunsOrderBy {
    field: TimeField,
    direction: Direction,
}

impl From<TimeField> for Moment {
    fn from(field: TimeField) -> Self {
        match field {
            TimeField::Queued => Self::Queued,
            TimeField::Started => Self::Started,
            TimeField::Ended => Self::Ended,
        }
    }
}

impl RunsFilter {
    /// Nothing where no run can match.
    async fn to_store(&self, scope: &Scope) -> Result<Option<Filter>> {
        let since_ms = match self.from {
            Some(from) => from.0,
            None => now_ms().saturating_sub(DAY_MS),
        };
        let named = |ids: &Option<Vec<Uuid>>| ids.as_ref().filter(|ids| !ids.is_empty()).cloned();
        let functions = match (named(&self.function_ids), named(&self.app_ids)) {
            (None, None) => Vec::new(),
            (functions, apps) => {
                let found = slugs(&*scope.registry().await?, functions.as_deref(), apps.as_deref());
                if found.is_empty() {
                    return Ok(None);
                }
                found
            }
        };
        Ok(Some(Filter {
            status: self.status.iter().flatten().map(|status| (*status).into()).collect(),
            functions,
            time: self.time_field.into(),
            since_ms: Some(since_ms),
            until_ms: self.until.map(|until| until.0),
            look: LOOK,
            ..Filter::default()
        }))
    }
}

/// The functions that ids, slugs and apps name. A slug that is not registered may still have runs.
fn slugs(known: &Snapshot, functions: Option<&[Uuid]>, apps: Option<&[Uuid]>) -> Vec<String> {
    let is_of = |slug: &str| match apps {
        None => true,
        Some(apps) => known.functions.get(slug).is_some_and(|function| {
            let id = ids::app_id(&function.app).to_string();
            apps.iter().any(|app| app.0 == function.app || app.0.eq_ignore_ascii_case(&id))
        }),
    };
    let mut found: Vec<String> = match functions {
        Some(functions) => functions
            .iter()
            .map(|name| known.function(&name.0).map_or_else(|| name.0.clone(), |function| function.slug.clone()))
            .collect(),
        None => known.functions.keys().cloned().collect(),
    };
    found.retain(|slug| is_of(slug));
    found.sort_unstable();
    found.dedup();
    found
}

pub(super) fn now_ms() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or_default()
}

/// A condition on an event; nothing for an empty text.
pub(super) fn condition(text: &str) -> Result<Option<Expr>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    Expr::compile(text, Roots::Event).map(Some).map_err(|error| invalid(format!("query: {error}")))
}

fn holds(condition: &Expr, run: &store::Run) -> bool {
    let events = run.event_list();
    let first = events.first().and_then(|event| serde_json::from_str(event.get()).ok());
    first.is_some_and(|event: Value| holds_for(condition, &event))
}

/// Whether it holds for an event; one that it can't be evaluated on is not meant.
pub(super) fn holds_for(condition: &Expr, event: &Value) -> bool {
    let scope = Looked { event: Some(event), async_event: None, now_ms: chrono::Utc::now().timestamp_millis() };
    condition.matches(&scope).unwrap_or(false)
}

/// A page of runs.
#[derive(Default)]
struct Connection {
    page: Page,
    order: Moment,
    is_continued: bool,
}

#[Object(name = "RunsV2Connection")]
impl Connection {
    async fn edges(&self) -> Vec<Edge> {
        let edge = |run: &store::Run| Edge { cursor: cursor(run, self.order), node: RunV2(run.clone()) };
        self.page.runs.iter().map(edge).collect()
    }

    async fn page_info(&self) -> PageInfo {
        let at = |run: Option<&store::Run>| run.map(|run| cursor(run, self.order));
        PageInfo {
            has_next_page: self.page.has_more,
            has_previous_page: self.is_continued,
            start_cursor: at(self.page.runs.first()),
            end_cursor: at(self.page.runs.last()),
        }
    }

    /// How many match, on other pages too.
    async fn total_count(&self) -> usize {
        self.page.total
    }
}

/// A run on a page.
#[derive(SimpleObject)]
#[graphql(name = "FunctionRunV2Edge")]
struct Edge {
    node: RunV2,
    cursor: String,
}

/// Where a page stands among the others.
#[derive(SimpleObject)]
pub(super) struct PageInfo {
    pub has_next_page: bool,
    pub has_previous_page: bool,
    pub start_cursor: Option<String>,
    pub end_cursor: Option<String>,
}

fn cursor(run: &store::Run, order: Moment) -> String {
    encoded(&format!("{}.{}", run.place_ms(order), run.id))
}

fn read_cursor(text: &str) -> Result<(u64, String)> {
    let place = decoded(text).and_then(|text| {
        let (ms, id) = text.split_once('.')?;
        Some((ms.parse().ok()?, id.to_owned()))
    });
    place.ok_or_else(|| invalid(format!("after: `{text}` is no cursor of this list")))
}

pub(super) fn encoded(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

pub(super) fn decoded(text: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(text.trim()).ok()?).ok()
}
