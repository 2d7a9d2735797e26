//! `/internal/agent-list` and `/internal/agent-cancel`: which requests there are, and that one is to end.
//!
//! A cancellation is an event, `system/agent.cancelled`, for whoever works on the request, and a mark in its snapshot.
//! Where nobody works on it any more, it ends as cancelled half a minute later (see [`super::internal_inbox`]). One that
//! overtakes its request makes the snapshot, so that the request finds itself ended.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::internal::{Internal, failed, refuse};
use super::internal_agent::{bad_id, io};
use super::internal_inbox::{cancelled, is_id, is_terminal, status_of};
use crate::ingest::admission::Emit;
use crate::moment;
use crate::streams::records::Fact;

/// The event that asks for an end.
const CANCELLED: &str = "system/agent.cancelled";
/// Characters of a reason.
const REASON_CHARS: usize = 500;

/// What a list says of each request.
const SHOWN: [&str; 9] =
    ["requestId", "status", "tool", "agent", "startedAt", "updatedAt", "completedAt", "durationMs", "executionMode"];

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    status: Option<String>,
    limit: Option<String>,
}

pub(super) async fn list(State(internal): State<Internal>, Query(asked): Query<Asked>) -> Response {
    if let Some(elsewhere) = internal.elsewhere() {
        return elsewhere;
    }
    let limit = match asked.limit.as_deref().map(str::parse::<usize>) {
        None => 50,
        Some(Ok(limit)) => limit.clamp(1, 500),
        Some(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "limit is no number"),
    };
    let ids = match internal.0.inbox.ids().await {
        Ok(ids) => ids,
        Err(error) => return io(&error),
    };
    let mut items = Vec::new();
    for id in ids {
        if items.len() == limit {
            break;
        }
        // One that went away meanwhile, or can't be read, is left out.
        let Ok(Some(snapshot)) = internal.0.inbox.snapshot(&id).await else { continue };
        if asked.status.as_deref().is_some_and(|status| status != status_of(&snapshot)) {
            continue;
        }
        let shown = SHOWN.into_iter().filter_map(|name| Some((name.to_owned(), snapshot.get(name)?.clone())));
        items.push(Value::Object(shown.collect::<Map<_, _>>()));
    }
    Json(json!({ "ok": true, "count": items.len(), "items": items })).into_response()
}

pub(super) async fn cancel(State(internal): State<Internal>, body: Bytes) -> Response {
    if let Some(elsewhere) = internal.elsewhere() {
        return elsewhere;
    }
    let Ok(Value::Object(asked)) = serde_json::from_slice::<Value>(&body) else {
        return refuse(StatusCode::BAD_REQUEST, "Invalid payload");
    };
    let word = |name: &str| asked.get(name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
    let Some(id) = word("requestId").filter(|id| is_id(id)) else { return bad_id() };
    let reason: Option<String> = word("reason").map(|reason| reason.chars().take(REASON_CHARS).collect());

    let inbox = &internal.0.inbox;
    let writing = inbox.lock().await;
    let known = match inbox.read(id).await {
        Ok(known) => known,
        Err(error) => return io(&error),
    };
    if let Some(known) = known.as_ref().filter(|known| is_terminal(status_of(known))) {
        let fact = Fact::new("system-bus-internal", "agent.dispatch.cancel_ignored").with("requestId", id);
        let _ = internal.0.bus.journal([fact.with("status", status_of(known))]).await;
        return Json(json!({ "ok": true, "requestId": id, "status": status_of(known) })).into_response();
    }
    let attempt = known.as_ref().map_or(1, |known| known["attempt"].as_u64().unwrap_or(1));
    // Told first: a mark without the event would end nothing that is under way.
    let mut data = Map::new();
    data.insert("requestId".into(), id.into());
    if let Some(reason) = &reason {
        data.insert("reason".into(), reason.as_str().into());
    }
    let (data, event_id) = (Value::from(data).to_string(), format!("agent-cancel-{id}-{attempt}"));
    let emit = Emit { name: CANCELLED, data: &data, id: Some(&event_id), source: Some("internal"), ..Emit::default() };
    if let Err(error) = internal.0.admission.admit(emit).await {
        let mut response = failed(&error);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert("retry-after", axum::http::HeaderValue::from_static("5"));
        return response;
    }
    let now = moment::now();
    let (code, status, snapshot) = match known {
        Some(mut running) => {
            if running["cancelRequestedAt"].is_null() {
                running["cancelRequestedAt"] = now.into();
                running["cancelReason"] = reason.into();
            }
            (StatusCode::ACCEPTED, "cancelling", running)
        }
        None => {
            let blank = json!({ "requestId": id, "task": "", "tool": "", "startedAt": now });
            (StatusCode::OK, "cancelled", cancelled(blank, reason.as_deref()))
        }
    };
    if let Err(error) = inbox.replace(id, &snapshot).await {
        return io(&error);
    }
    drop(writing);
    let fact = Fact::new("system-bus-internal", "internal.agent_cancel.requested").event(&event_id);
    let _ = internal.0.bus.journal([fact.with("requestId", id).with("status", status)]).await;
    (code, Json(json!({ "ok": true, "requestId": id, "status": status }))).into_response()
}
