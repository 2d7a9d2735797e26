//! Todoist: tasks and comments. Cases: `tests/vectors/webhooks/todoist.json`.
//!
//! | signature | `x-todoist-hmac-sha256`: base64 HMAC-SHA256 of the raw body with the app's client secret |
//! |---|---|
//! | event id | ends in `x-todoist-delivery-id`: a recurring task completed again is a new event, a retry is not |
//! | replay | nothing signed carries a time that is checked: only the dedup window protects |
//! | retries | a few, about 15 minutes apart, with the same delivery id |
//! | echo | a completion of a task that we closed ourselves is skipped ([`super::NormalizedEvent::echo_of`]) |

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::{DeliveryKey, NormalizedEvent, Provider, Sample, Skip, h16, object, time_ms};
use crate::ingest::fields::Fields;
use crate::ingest::signature::{Delivery, Encoding, Hash, Scheme, Verified};
use crate::streams::json::JsonObject;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Todoist;

const SECRET: &str = "TODOIST_CLIENT_SECRET";

impl Provider for Todoist {
    fn id(&self) -> &'static str {
        "todoist"
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![SECRET.into()]
    }

    fn signature(&self, _headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        (Scheme::of_body("x-todoist-hmac-sha256", "", Hash::Sha256, Encoding::Base64), SECRET.into())
    }

    fn redelivers(&self) -> bool {
        true
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, _body: &JsonObject) -> DeliveryKey {
        DeliveryKey::id_or_body(sent_id(delivery), delivery)
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let hook = Fields::parse(body.as_str()).unwrap_or_default();
        let kind = hook.text("event_name");
        let (task, extra) = (hook.object("event_data"), hook.object("event_data_extra"));
        let (name, data) = match kind.as_str() {
            "" => return Err(Skip::MissingType),
            "note:added" => ("comment.added", comment(&hook, &task, &extra)),
            "item:completed" => ("task.completed", completed(&task, &extra)),
            "item:added" => ("task.created", created(&task)),
            "item:deleted" => ("task.deleted", created(&task)),
            _ => return Err(Skip::UnmappedType),
        };
        let subject = Some(task.text("id")).filter(|id| !id.is_empty());
        let when = sent_id(delivery).or_else(|| hook.first_text(&["triggered_at"])).unwrap_or_else(|| h16(delivery));
        let id = format!("todoist-{kind}-{}-{when}", subject.as_deref().unwrap_or("unknown"));
        let mut event = NormalizedEvent::new(name, id, data);
        event.echo_of = subject.filter(|_| name == "task.completed");
        Ok(vec![event])
    }

    fn own_time_ms(&self, _delivery: &Verified<Delivery>, body: &JsonObject) -> Option<i64> {
        time_ms(&Fields::parse(body.as_str()).ok()?.text("triggered_at"))
    }

    fn sample(&self, nonce: &str) -> Sample {
        let body = json!({
            "event_name": "item:added",
            "user_id": "1",
            "version": "10",
            "event_data": { "id": format!("sample-{nonce}"), "content": "Sample", "project_id": "1", "labels": [] },
        });
        Sample { body: body.to_string(), headers: vec![("x-todoist-delivery-id".into(), nonce.to_owned())] }
    }
}

fn sent_id(delivery: &Delivery) -> Option<String> {
    let id = delivery.header("x-todoist-delivery-id")?.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

fn comment(hook: &Fields<'_>, note: &Fields<'_>, extra: &Fields<'_>) -> JsonObject {
    let initiator = hook.object("initiator").first_text(&["id"]).or_else(|| hook.first_text(&["user_id"]));
    object(json!({
        "taskId": note.first_text(&["item_id", "task_id"]).unwrap_or_default(),
        "commentId": note.text("id"),
        "commentContent": note.text("content"),
        "taskContent": extra.first_text(&["name", "content"]).unwrap_or_default(),
        "projectId": note.text("project_id"),
        "initiatorId": initiator.unwrap_or_default(),
    }))
}

fn completed(task: &Fields<'_>, extra: &Fields<'_>) -> JsonObject {
    let description = task.first_text(&["description"]).or_else(|| extra.first_text(&["description"]));
    object(json!({
        "taskId": task.text("id"),
        "taskContent": task.text("content"),
        "taskDescription": description.unwrap_or_default(),
        "projectId": task.text("project_id"),
        "labels": labels(task),
    }))
}

fn created(task: &Fields<'_>) -> JsonObject {
    object(json!({
        "taskId": task.text("id"),
        "taskContent": task.text("content"),
        "projectId": task.text("project_id"),
        "labels": labels(task),
    }))
}

fn labels(task: &Fields<'_>) -> Vec<Value> {
    task.items("labels").into_iter().filter_map(|label| serde_json::from_str(label).ok()).collect()
}
