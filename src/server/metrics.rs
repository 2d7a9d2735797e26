//! `/metrics` for Prometheus: on an address of its own, and on the service's port for requests from this machine, where
//! a proxy in between counts as elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::telemetry::metrics::{Format, Metrics};

/// The routes of the address of its own.
pub fn router(metrics: Arc<Metrics>) -> Router {
    let scrape = async |State(metrics): State<Arc<Metrics>>, headers: HeaderMap| answer(&metrics, &headers);
    Router::new().route("/metrics", get(scrape)).with_state(metrics)
}

/// `/metrics` beside the other routes.
pub(super) async fn local(
    State(metrics): State<Option<Arc<Metrics>>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    let is_near = peer.ip().to_canonical().is_loopback() && !headers.contains_key("x-forwarded-for");
    match metrics {
        Some(metrics) if is_near => answer(&metrics, &headers),
        _ => super::not_found().await,
    }
}

fn answer(metrics: &Metrics, headers: &HeaderMap) -> Response {
    let format = Format::of(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    (StatusCode::OK, [(header::CONTENT_TYPE, format.content_type())], metrics.render(format)).into_response()
}
