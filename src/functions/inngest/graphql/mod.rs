//! GraphQL, `POST /v0/gql`: what operators' tools ask a server for (protocol section A18).
//!
//! | file | answers |
//! |---|---|
//! | [`apps`] | `apps`, `app`, `functions`, `functionBySlug` |
//! | [`runs`], [`run_list`] | `run`, `functionRun`; `runs` with filter, order and pages |
//! | [`events`] | `event`, `events`, `eventV2`, `eventsV2`, `runTrigger` |
//! | [`trace`], [`tree`], [`story`], [`spans`] | `runTrace`: the tree made of a run's history |
//! | [`outputs`] | `runTraceSpanOutputByID` |
//! | [`mutations`] | everything that changes something |
//! | [`limits`] | what a query may cost |
//! | [`scalars`] | `Time`, `ULID`, `UUID`, `Bytes`, `Map` |
//!
//! # Invariants
//! 1. A query that can be read is answered with 200; what went wrong is in `errors`, each with a code.
//! 2. Nothing is remembered between requests, so a read after a change sees it.
//! 3. What one query costs is known before it is run.

mod apps;
mod events;
mod limits;
mod mutations;
mod outputs;
mod run_list;
mod runs;
mod scalars;
mod spans;
mod story;
mod trace;
mod tree;

use std::sync::Arc;

use async_graphql::{Context, EmptySubscription, MergedObject, Request, Schema, ServerError, Variables};
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::super::engine;
use super::super::registry::Snapshot;
use super::super::store::Runs;
use super::{Facade, Problem, read_body};
use crate::diagnose::chain;

/// Largest body, bytes: what `invokeFunction` may carry.
const BODY_MAX: usize = 8 << 20;

/// Everything that can be asked.
#[derive(MergedObject, Default)]
struct Query(apps::Queries, runs::Queries, run_list::Queries, trace::Queries, outputs::Queries, events::Queries);

type Api = Schema<Query, mutations::Mutation, EmptySubscription>;

pub(super) fn routes(facade: &Facade) -> Router<Facade> {
    let mut builder = Schema::build(Query::default(), mutations::Mutation, EmptySubscription)
        .limit_depth(limits::DEPTH)
        .limit_complexity(limits::COMPLEXITY);
    if facade.engine().settings().keys.is_keyed() {
        builder = builder.disable_introspection();
    }
    let api = builder.finish();
    let answer =
        move |State(facade): State<Facade>, headers: HeaderMap, body: Bytes| answer(facade, api, headers, body);
    Router::new().route("/v0/gql", post(answer)).layer(DefaultBodyLimit::max(BODY_MAX))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    query: Option<String>,
    variables: Option<Value>,
    operation_name: Option<String>,
}

async fn answer(
    facade: Facade,
    api: Api,
    headers: HeaderMap,
    body: Bytes,
) -> Result<axum::Json<async_graphql::Response>, Problem> {
    if is_from_a_web_page(&headers) {
        let error = "content-type must be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
    }
    let asked: Asked = read_body(&body)?;
    let query = asked.query.filter(|query| !query.trim().is_empty()).ok_or_else(|| Problem::bad("query is missing"))?;
    if query.len() > limits::QUERY_BYTES {
        return Err(Problem::bad(format!("the query is longer than {} bytes", limits::QUERY_BYTES)));
    }
    let mut request = Request::new(query);
    request.operation_name = asked.operation_name.filter(|name| !name.is_empty());
    request.variables = match asked.variables {
        None | Some(Value::Null) => Variables::default(),
        Some(variables @ Value::Object(_)) => Variables::from_json(variables),
        Some(_) => return Err(Problem::bad("variables: an object is expected")),
    };
    let refused = match request.parsed_query() {
        Err(error) => Some((error, "GRAPHQL_PARSE_FAILED")),
        Ok(document) if limits::is_too_wide(document) => {
            Some((ServerError::new("Query is too complex.", None), "GRAPHQL_VALIDATION_FAILED"))
        }
        Ok(_) => None,
    };
    if let Some((error, code)) = refused {
        return Ok(axum::Json(coded(async_graphql::Response::from_errors(vec![error]), code)));
    }
    let request = request.data(Scope { facade, registry: OnceCell::new() });
    Ok(axum::Json(coded(api.execute(request).await, "GRAPHQL_VALIDATION_FAILED")))
}

/// Whether a browser may have sent this on behalf of any page, without having asked: it does so with text and forms, and
/// names the origin. Programs name none.
fn is_from_a_web_page(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_json = kind.split(';').next().is_some_and(|kind| {
        let kind = kind.trim().to_ascii_lowercase();
        kind == "application/json" || kind.ends_with("+json")
    });
    !is_json && headers.contains_key(header::ORIGIN)
}

/// Gives a code to errors that have none: `code` where the query was not run, else it is an argument that can't be read.
fn coded(mut response: async_graphql::Response, code: &str) -> async_graphql::Response {
    for error in response.errors.iter_mut().filter(|error| error.extensions.is_none()) {
        let code = if error.path.is_empty() { code } else { "BAD_USER_INPUT" };
        error.extensions.get_or_insert_default().set("code", code);
    }
    response
}

/// What the fields of one request share.
struct Scope {
    facade: Facade,
    registry: OnceCell<Arc<Snapshot>>,
}

impl Scope {
    fn of<'a>(ctx: &Context<'a>) -> async_graphql::Result<&'a Self> {
        ctx.data()
    }

    fn engine(&self) -> &engine::Engine {
        self.facade.engine()
    }

    fn runs(&self) -> &Runs {
        self.engine().runs()
    }

    /// The registry as it is in Redis, read once per request.
    async fn registry(&self) -> async_graphql::Result<Arc<Snapshot>> {
        let read = || async { self.engine().registry().load().await.map(Arc::new) };
        self.registry.get_or_try_init(read).await.cloned().map_err(failed)
    }
}

/// An error of a field, with a code beside its text.
fn failed(error: impl Into<engine::Error>) -> async_graphql::Error {
    let error = error.into();
    let code = match &error {
        engine::Error::Redis(_) | engine::Error::Append(_) => "UNAVAILABLE",
        engine::Error::NoRun(_) | engine::Error::NoFunction(_) => "NOT_FOUND",
        engine::Error::Ended => "ENDED",
    };
    said(code, chain(&error))
}

fn said(code: &'static str, text: impl Into<String>) -> async_graphql::Error {
    use async_graphql::ErrorExtensions as _;
    async_graphql::Error::new(text).extend_with(|_, extensions| extensions.set("code", code))
}

fn invalid(text: impl Into<String>) -> async_graphql::Error {
    said("BAD_USER_INPUT", text)
}

fn missing(text: impl Into<String>) -> async_graphql::Error {
    said("NOT_FOUND", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two types of one name are found only when the schema is made, which is when the server starts.
    #[test]
    fn the_schema_can_be_made() {
        let api: Api = Schema::build(Query::default(), mutations::Mutation, EmptySubscription).finish();
        assert!(api.sdl().contains("runTrace"));
    }
}
