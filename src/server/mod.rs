//! The HTTP server: puts the parts' routes together, logs each request, stops gracefully.
//!
//! | path | part |
//! |---|---|
//! | `/` | [`internal_worker`] |
//! | `/internal/…`, `/observability/emit` | [`internal`] |
//! | `/health`, `/health/live`, `/health/ready`; `/livez`, `/startupz`, `/readyz` | [`health`] |
//! | `/metrics` | [`metrics`] |
//! | `/webhooks…` | [`crate::ingest::gateway`] |
//! | `/e/<key>` | [`crate::ingest::event_api`] |
//! | `/fn/register`, `/dev`, `/v0/…`, `/v1/…` | [`crate::functions::inngest`] |
//!
//! A request's log line never holds a query string, a body, a header or an event key. A panic in a handler is a 500
//! and a log line, not the end of the process.

mod connections;
pub mod health;
pub mod internal;
mod internal_agent;
mod internal_agents;
pub mod internal_inbox;
mod internal_logs;
mod internal_replay;
pub mod internal_worker;
pub mod metrics;
pub mod trace;

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;

use crate::diagnose::{Diagnose, Exit};
use crate::functions::inngest::{self, Facade};
use crate::ingest::event_api::EventApi;
use crate::ingest::gateway::{Gateway, ProviderTag};
use crate::telemetry::metrics::{Metrics, Webhook};
pub use connections::serve;
use health::Readiness;
use internal::Internal;
use internal_worker::{Root, Worker};

/// Largest body on routes that set no limit of their own.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The parts that the server serves.
#[derive(Debug, Clone)]
pub struct Parts {
    /// `/webhooks`.
    pub gateway: Gateway,
    /// `/e`.
    pub event_api: EventApi,
    /// What SDK apps talk to.
    pub facade: Option<Facade>,
    /// `/health/ready`.
    pub readiness: Readiness,
    /// `/metrics`.
    pub metrics: Option<Arc<Metrics>>,
    /// Traces of what brings events.
    pub tracing: trace::Tracing,
    /// `/internal`.
    pub internal: Option<Internal>,
    /// What `/` says of the worker.
    pub worker: Option<Worker>,
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else listens there. We never stop the holder.
    #[error("{address} is in use by another process")]
    AddressInUse {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The address can't be used for another reason.
    #[error("can't listen on {address}: {source}")]
    Bind {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::AddressInUse { .. } => "PORT_IN_USE",
            Self::Bind { .. } => "BIND_FAILED",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            // Not a quick restart: the port will still be taken.
            Self::AddressInUse { .. } | Self::Bind { .. } => Exit::Config,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::AddressInUse { address, .. } => {
                format!("Stop what listens on port {}, or set WORKER_PORT to a free one.", address.port())
            }
            Self::Bind { .. } => "Set WORKER_BIND and WORKER_PORT to an address of this machine.".into(),
        }
    }
}

/// Listens on `address`.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => Error::AddressInUse { address, source },
        _ => Error::Bind { address, source },
    })
}

/// All routes.
pub fn router(parts: Parts) -> Router {
    let Parts { gateway, event_api, facade, readiness, metrics, internal, worker, tracing } = parts;
    let kind = facade.as_ref().map_or("dev", Facade::kind);
    let ready = move || {
        let readiness = readiness.clone();
        async move { readiness.answer().await }
    };
    let own = Router::new()
        .route("/", get(internal_worker::root).with_state(Root { gateway: gateway.clone(), worker }))
        .route("/health", get(alive))
        .route("/health/live", get(alive))
        .route("/health/ready", get(ready.clone()))
        // As Kubernetes names them.
        .route("/livez", get(alive))
        .route("/startupz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::local).with_state(metrics.clone()))
        .layer(RequestBodyLimitLayer::new(MAX_BODY_BYTES));
    // Both count bytes while they read, by their own limits.
    let counted = gateway.router().merge(event_api.router());
    let counted = counted.layer(DefaultBodyLimit::disable()).layer(from_fn_with_state(tracing, trace::follow));
    let all = own
        .merge(counted)
        .merge(facade.map(Facade::router).unwrap_or_default())
        .merge(internal.map(Internal::router).unwrap_or_default())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    all.layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(kind, inngest::mark))
        .layer(from_fn_with_state(metrics, log))
}

async fn alive() -> Json<Value> {
    Json(json!({ "ok": true, "status": 200, "message": "OK" }))
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "ok": false, "error": "Not found" }))).into_response()
}

async fn method_not_allowed() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, Json(json!({ "ok": false, "error": "Method not allowed" }))).into_response()
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(action = "server.panic", panic = text.unwrap_or("of unknown type"));
    (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "ok": false, "error": "Internal error" }))).into_response()
}

/// One line a request. The route's pattern is logged where there is one: a path may hold an event key.
async fn log(State(metrics): State<Option<Arc<Metrics>>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let pattern = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
    let route = match request.extensions().get::<MatchedPath>() {
        Some(route) => route.as_str().to_owned(),
        None if request.uri().path().starts_with("/e/") => "/e/…".to_owned(),
        None => request.uri().path().chars().take(120).collect(),
    };
    let response = next.run(request).await;
    let provider = response.extensions().get::<ProviderTag>().map(|tag| tag.0);
    let webhook = response.extensions().get::<Webhook>().copied();
    let (status, ms) = (response.status().as_u16(), began.elapsed().as_millis());
    if let Some(metrics) = metrics {
        // Paths without a route come from outside, in any number.
        let pattern = pattern.as_deref().unwrap_or("_none");
        metrics.http(pattern, method.as_str(), status, webhook.as_ref(), began.elapsed());
    }
    tracing::info!(action = "http.request", %method, ?route, status, provider, ms);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn a_busy_port_is_a_configuration_error_that_names_it() {
        let holder = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(holder.local_addr().unwrap()).await.unwrap_err();
        assert_eq!((error.code(), error.exit()), ("PORT_IN_USE", Exit::Config));
        assert!(error.fix().contains(&holder.local_addr().unwrap().port().to_string()));
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_not_the_end() {
        let failing = Router::new().route("/", get(|| async { panic!("by design") as Response }));
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = failing.layer(CatchPanicLayer::custom(panicked));
        let _served = tokio::spawn(serve(listener, router, stop, Duration::from_secs(1)));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        for _ in 0..2 {
            let response = client.get(format!("http://{address}/")).send().await.unwrap();
            assert_eq!(response.status(), 500);
            assert_eq!(response.text().await.unwrap(), r#"{"ok":false,"error":"Internal error"}"#);
        }
    }
}
