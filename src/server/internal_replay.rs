//! Replays over HTTP: one delivery of the log, or many at ten a second.
//!
//! | endpoint | body | does |
//! |---|---|---|
//! | `POST /internal/webhooks/deliveries/<ref>/replay` | none | replays it |
//! | `POST /internal/webhooks/replay` | `{provider?, outcome?, since?, limit?, apply?}` | says which would be; with `apply`, replays them as they came |

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::internal::{Internal, SCAN, failed, refuse, shown};
use crate::config::units::parse_duration;
use crate::diagnose::{Diagnose as _, chain};
use crate::ingest::deliveries::{Entry, Filter};
use crate::ingest::deliveries_replay::{self, Error};

/// Deliveries of one request at most: ten seconds of them.
const LIMIT_MAX: usize = 100;

/// Which deliveries.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wish {
    provider: Option<String>,
    outcome: Option<String>,
    /// `15m`, `24h`.
    since: Option<String>,
    limit: Option<usize>,
    apply: bool,
}

pub(super) fn routes() -> Router<Internal> {
    Router::new()
        .route("/internal/webhooks/deliveries/{ref}/replay", post(one))
        .route("/internal/webhooks/replay", post(many))
}

async fn replay(internal: &Internal, entry: &Entry) -> Result<Value, Error> {
    let parts = &internal.0;
    let senders = parts.gateway.senders();
    let (number, accepted) =
        deliveries_replay::run(&parts.bus, entry, &senders, &parts.admission, parts.log_keep).await?;
    Ok(deliveries_replay::shown(entry, number, &accepted))
}

fn not_replayed(error: &Error) -> Response {
    let status = match error {
        Error::NoBody | Error::NoProvider(_) => StatusCode::NOT_FOUND,
        Error::NotJson | Error::Skipped(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Error::Admission(_) | Error::Redis(_) => {
            StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
        }
    };
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return refuse(status, chain(error));
    }
    (status, Json(json!({ "ok": false, "error": chain(error), "code": error.code() }))).into_response()
}

async fn one(State(internal): State<Internal>, Path(reference): Path<String>) -> Response {
    let entry = match internal.0.bus.delivery(&reference).await {
        Ok(Some(entry)) => entry,
        Ok(None) => return refuse(StatusCode::NOT_FOUND, "Unknown delivery"),
        Err(error) => return failed(&error),
    };
    match replay(&internal, &entry).await {
        Ok(result) => Json(json!({ "ok": true, "result": result })).into_response(),
        Err(error) => not_replayed(&error),
    }
}

async fn many(State(internal): State<Internal>, body: axum::body::Bytes) -> Response {
    let wish: Wish = match body.is_empty() {
        true => Wish::default(),
        false => match serde_json::from_slice(&body) {
            Ok(wish) => wish,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("Invalid payload: {error}")),
        },
    };
    let since = match wish.since.as_deref().map(parse_duration) {
        None => None,
        Some(Some(since)) => Some(since),
        Some(None) => return refuse(StatusCode::BAD_REQUEST, "since is no duration, such as 15m"),
    };
    if wish.provider.is_none() && wish.outcome.is_none() && since.is_none() {
        return refuse(StatusCode::BAD_REQUEST, "say which: provider, outcome or since");
    }
    let bus = &internal.0.bus;
    let now = match bus.now_ms().await {
        Ok(now) => now,
        Err(error) => return failed(&error),
    };
    let ms = |since: Duration| u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let since_ms = since.map(|since| now.saturating_sub(ms(since)));
    let filter = Filter { provider: wish.provider, outcome: wish.outcome, since_ms };
    let limit = wish.limit.unwrap_or(20).clamp(1, LIMIT_MAX);
    let mut entries = match bus.deliveries(&filter, None, limit, SCAN).await {
        Ok(page) => page.entries,
        Err(error) => return failed(&error),
    };
    // As they came.
    entries.reverse();
    if !wish.apply {
        let rows: Vec<Value> = entries.iter().map(shown).collect();
        let result = json!({ "dryRun": true, "matched": rows.len(), "deliveries": rows });
        return Json(json!({ "ok": true, "result": result })).into_response();
    }
    let mut pace = tokio::time::interval(Duration::from_millis(1000 / deliveries_replay::RATE));
    let (mut rows, mut failures) = (Vec::new(), 0);
    for entry in &entries {
        pace.tick().await;
        match replay(&internal, entry).await {
            Ok(row) => rows.push(row),
            Err(error) => {
                failures += 1;
                rows.push(json!({ "deliveryRef": entry.record.reference, "error": error.code() }));
            }
        }
    }
    let result = json!({
        "dryRun": false,
        "matched": rows.len(),
        "replayed": rows.len() - failures,
        "failed": failures,
        "deliveries": rows,
    });
    Json(json!({ "ok": failures == 0, "result": result })).into_response()
}
