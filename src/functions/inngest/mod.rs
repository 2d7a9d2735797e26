//! The server side of the Inngest protocol: what an unmodified SDK app talks to.
//!
//! | file | routes |
//! |---|---|
//! | [`register`] | `/fn/register`, `/fn/remove`, `/dev` |
//! | [`runs`] | `/v1/runs…`, `/v0/runs…`, `/v1/cancellations` |
//! | [`events`] | `/v1/events…`, `/invoke/{slug}`, `/v1/signals` |
//! | [`checkpoint`] | `/v1/checkpoint…` |
//! | `graphql` | `/v0/gql` |
//! | [`event_log`] | reading events back from the lanes |
//! | [`signing`] | keys and signatures |
//!
//! Without signing keys this is dev mode: no authorization, for requests from this machine only. With keys every route
//! but `/health` needs `Authorization: Bearer <signing key or its hash>`.

pub mod checkpoint;
pub mod event_log;
pub mod events;
mod graphql;
pub mod register;
pub mod runs;
pub mod signing;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::engine::{self, Engine};
use crate::config::Cidr;
use crate::diagnose::{Diagnose, chain};
use crate::ingest::peer::Peer;
use crate::moment;

/// Largest body of a registration or a checkpoint, bytes.
const BODY_MAX: usize = 40 << 20;

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Facade {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    trusted_proxies: Vec<Cidr>,
}

impl Facade {
    /// A facade of `engine`.
    #[must_use]
    pub fn new(engine: Engine, trusted_proxies: Vec<Cidr>) -> Self {
        Self { inner: Arc::new(Inner { engine, trusted_proxies }) }
    }

    /// The engine behind it.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// `dev` or `cloud`: the server kind that SDKs compare with their own mode.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.engine().settings().keys.is_keyed() { "cloud" } else { "dev" }
    }

    /// All routes.
    pub fn router(self) -> Router {
        let guarded = register::routes()
            .merge(runs::routes())
            .merge(events::routes())
            .merge(checkpoint::routes())
            .merge(graphql::routes(&self))
            .layer(from_fn_with_state(self.clone(), authorize));
        guarded.with_state(self)
    }
}

/// Marks every response with the server kind.
pub async fn mark(State(kind): State<&'static str>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert("x-inngest-server-kind", HeaderValue::from_static(kind));
    response
}

async fn authorize(State(facade): State<Facade>, request: Request<Body>, next: Next) -> Response {
    let keys = &facade.engine().settings().keys;
    if keys.is_keyed() {
        let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if !keys.accepts(bearer) {
            return Problem::new(
                StatusCode::UNAUTHORIZED,
                "Unauthorized: the signing key is missing or not the one in use here",
            )
            .into_response();
        }
    } else if !Peer::of(request.extensions(), request.headers(), &facade.inner.trusted_proxies).is_local {
        let reason = "Unauthorized: without INNGEST_SIGNING_KEY only this machine is served";
        return Problem::new(StatusCode::UNAUTHORIZED, reason).into_response();
    }
    next.run(request).await
}

/// An error as the REST API says it: `{"error":…,"data":null,"status":N}`.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    code: Option<&'static str>,
    error: String,
    retry_after: Option<u64>,
}

impl Problem {
    /// A problem with this status.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, code: None, error: error.into(), retry_after: None }
    }

    /// 400.
    pub fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 404.
    pub fn missing(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({"error": self.error, "data": null, "status": self.status.as_u16()});
        if let Some(code) = self.code {
            body["code"] = code.into();
        }
        let mut response = (self.status, axum::Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl Problem {
    /// An error of ours with its own status.
    fn of(error: &(impl Diagnose + 'static)) -> Self {
        let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = error.retry_after().map(|wait| wait.as_secs().max(1));
        Self { retry_after, ..Self::new(status, chain(error)) }
    }
}

impl From<crate::streams::redis::Error> for Problem {
    fn from(error: crate::streams::redis::Error) -> Self {
        Self::of(&error)
    }
}

impl From<engine::Error> for Problem {
    fn from(error: engine::Error) -> Self {
        match error {
            engine::Error::Redis(error) => Self::of(&error),
            engine::Error::Append(error) => Self::of(&error),
            engine::Error::NoRun(_) | engine::Error::NoFunction(_) => Self::missing(error.to_string()),
            engine::Error::Ended => Self::new(StatusCode::CONFLICT, error.to_string()),
        }
    }
}

/// A JSON body.
fn read_body<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::bad(format!("the body can't be read: {error}")))
}

/// A date of a query or a body, ms.
fn read_time(field: &str, text: &str) -> Result<u64, Problem> {
    chrono::DateTime::parse_from_rfc3339(text)
        .ok()
        .and_then(|at| u64::try_from(at.timestamp_millis()).ok())
        .ok_or_else(|| Problem::bad(format!("{field}: `{text}` is no RFC 3339 date")))
}

/// `{"data":…,"metadata":{"fetched_at":…,"cached_until":null}}`.
fn enveloped(data: Value) -> axum::Json<Value> {
    axum::Json(json!({"data": data, "metadata": {"fetched_at": moment::now(), "cached_until": null}}))
}

/// JSON text as a value that is written as it is.
fn raw(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}
