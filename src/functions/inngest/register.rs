//! Registration by the app, and what SDKs ask of a server before they use it (protocol section A4).

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::registry::{Registration, definition};
use super::{BODY_MAX, Facade, Problem};

pub(super) fn routes() -> Router<Facade> {
    Router::new()
        .route("/fn/register", post(register))
        .route("/fn/remove", delete(remove))
        .route("/dev", get(dev))
        .route("/v0/telemetry", post(ignored))
        .route("/v1/traces/userland", post(ignored))
        .route("/v1/realtime/publish", post(ignored))
        .route("/v0/connect/start", post(connect))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_MAX))
}

async fn register(State(facade): State<Facade>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Problem> {
    let document: Value =
        serde_json::from_slice(&body).map_err(|error| Problem::bad(format!("the body is not JSON: {error}")))?;
    let expected = headers.get("x-inngest-expected-server-kind").and_then(|value| value.to_str().ok());
    if let Some(expected) = expected.filter(|expected| !expected.is_empty() && *expected != facade.kind()) {
        return Err(Problem::bad(format!("Expected server kind {}, got {expected}", facade.kind())));
    }
    let registration = Registration::parse(&document, None).map_err(|error| Problem::bad(error.to_string()))?;
    let sdk = &registration.app.sdk;
    if is_vulnerable(sdk) {
        if facade.engine().settings().keys.is_keyed() {
            let error = format!("App sync was blocked: {sdk} has a known vulnerability; use 3.54.0 or newer");
            return Err(Problem::bad(error).code("sdk_version_denied"));
        }
        tracing::warn!(
            app = registration.app.name,
            sdk,
            "this SDK version has a known vulnerability; use 3.54.0 or newer"
        );
    }
    let registered = facade.engine().registry().register(&registration).await?;
    Ok(Json(json!({
        "ok": true,
        "modified": registered.modified,
        "sync_id": uuid::Uuid::now_v7(),
        "app_id": registration.app.id,
        "warnings": registration.functions.iter().flat_map(|function| {
            function.warnings.iter().map(|warning| format!("{}: {warning}", function.slug))
        }).collect::<Vec<_>>(),
    })))
}

/// js 3.22.0 to 3.53.1.
fn is_vulnerable(sdk: &str) -> bool {
    let Some(version) = sdk.strip_prefix("js:").map(|version| version.trim_start_matches('v')) else { return false };
    let numbers: Vec<u32> = version.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    matches!(numbers[..], [3, minor, patch, ..] if (22..=52).contains(&minor) || (minor == 53 && patch <= 1))
}

#[derive(Debug, Deserialize)]
struct ByUrl {
    url: Option<String>,
}

async fn remove(State(facade): State<Facade>, Query(by): Query<ByUrl>) -> Result<Json<Value>, Problem> {
    let url = by.url.ok_or_else(|| Problem::bad("url is missing"))?;
    let registry = facade.engine().registry();
    let known = registry.load().await?;
    let app = known.apps.values().find(|record| definition::same_url(&record.app.url, &url));
    let name =
        app.map(|record| record.app.name.clone()).ok_or_else(|| Problem::missing("no app is served at this url"))?;
    registry.remove(&name).await?;
    Ok(Json(json!({"ok": true})))
}

/// SDKs without an explicit mode probe this: no I/O. There is nothing to see in keyed mode.
async fn dev(State(facade): State<Facade>) -> Response {
    if facade.engine().settings().keys.is_keyed() {
        return Problem::missing("this is no dev server").into_response();
    }
    let current = facade.engine().registry().current();
    let functions: Vec<Value> = current
        .functions
        .values()
        .filter(|function| current.is_served(&function.slug))
        .map(|function| function.config.clone())
        .collect();
    let handlers: Vec<Value> = current
        .apps
        .values()
        .map(|record| json!({"sdk": record.app.sdk, "framework": record.app.framework, "url": record.app.url, "appName": record.app.name}))
        .collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "authed": false,
        "startOpts": {"sdkURLs": facade.engine().settings().app_urls, "urls": [], "poll": true},
        "functions": functions,
        "handlers": handlers,
        "isSingleNodeService": true,
        "isMissingSigningKey": true,
        "isMissingEventKeys": true,
        "features": {},
    }))
    .into_response()
}

async fn ignored() -> Json<Value> {
    Json(json!({"status": 200}))
}

/// The caller is known; there is no connect gateway to send it to.
async fn connect() -> Problem {
    Problem::new(
        StatusCode::NOT_IMPLEMENTED,
        "connect is not served: use the app's HTTP endpoint (unset INNGEST_CONNECT_MODE)",
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn vulnerable_versions_are_known() {
        for (sdk, expected) in [
            ("js:v3.22.0", true),
            ("js:v3.53.1", true),
            ("js:v3.53.2", false),
            ("js:v3.54.2", false),
            ("js:v3.21.9", false),
            ("js:v4.24.0", false),
            ("py:v0.5.19", false),
        ] {
            assert_eq!(super::is_vulnerable(sdk), expected, "{sdk}");
        }
    }
}
