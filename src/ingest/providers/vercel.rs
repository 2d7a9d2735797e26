//! Vercel: deployments. Cases: `tests/vectors/webhooks/vercel.json`.
//!
//! | signature | `x-vercel-signature`: hex HMAC-SHA1 of the raw body |
//! |---|---|
//! | event id | `vercel-<type>-<id>-<createdAt>`: a redelivery has the same id, so it is appended once |
//! | replay | nothing signed carries a time that is checked: only the dedup window protects |
//! | retries | for hours, with backoff |

use std::borrow::Cow;

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::{DeliveryKey, NormalizedEvent, Provider, Sample, Skip, h16, object, time_ms};
use crate::ingest::fields::Fields;
use crate::ingest::signature::{Delivery, Encoding, Hash, Scheme, Verified};
use crate::streams::json::JsonObject;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Vercel;

const SECRET: &str = "VERCEL_WEBHOOK_SECRET";

impl Provider for Vercel {
    fn id(&self) -> &'static str {
        "vercel"
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![SECRET.into()]
    }

    fn signature(&self, _headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        (Scheme::of_body("x-vercel-signature", "", Hash::Sha1, Encoding::Hex), SECRET.into())
    }

    fn redelivers(&self) -> bool {
        true
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> DeliveryKey {
        let id = Fields::parse(body.as_str()).unwrap_or_default().text("id");
        DeliveryKey::id_or_body(Some(id), delivery)
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let hook = Fields::parse(body.as_str()).unwrap_or_default();
        let kind = hook.text("type");
        let name = match kind.as_str() {
            "" => return Err(Skip::MissingType),
            "deployment.created" => "deploy.created",
            "deployment.succeeded" => "deploy.succeeded",
            "deployment.error" | "deployment-error" => "deploy.error",
            "deployment.canceled" | "deployment-canceled" => "deploy.canceled",
            "deployment.ready" | "deployment-ready" => "deploy.ready",
            "deployment.promoted" => "deploy.promoted",
            _ => return Err(Skip::UnmappedType),
        };
        let payload = hook.object("payload");
        let deployment = payload.object("deployment");
        let id = Some(hook.text("id")).filter(|id| !id.is_empty()).unwrap_or_else(|| deployment.text("id"));
        let created = hook.first_text(&["createdAt"]).unwrap_or_else(|| h16(delivery));
        Ok(vec![NormalizedEvent::new(name, format!("vercel-{kind}-{id}-{created}"), data(&payload, &deployment))])
    }

    fn own_time_ms(&self, _delivery: &Verified<Delivery>, body: &JsonObject) -> Option<i64> {
        time_ms(&Fields::parse(body.as_str()).ok()?.text("createdAt"))
    }

    fn sample(&self, nonce: &str) -> Sample {
        let body = json!({
            "id": format!("evt_{nonce}"),
            "type": "deployment.succeeded",
            "createdAt": 1_790_000_000_000_i64,
            "payload": {
                "target": "production",
                "deployment": { "id": "dpl_sample", "url": "sample.vercel.app", "name": "sample", "meta": {} },
            },
        });
        Sample { body: body.to_string(), headers: Vec::new() }
    }
}

fn data(payload: &Fields<'_>, deployment: &Fields<'_>) -> JsonObject {
    let meta = deployment.object("meta");
    let links = payload.object("links");
    let git =
        |field: &str| meta.first_text(&[&format!("github{field}"), &format!("gitlab{field}")]).unwrap_or_default();
    let project_name = deployment.first_text(&["name"]).or_else(|| payload.first_text(&["name"]));
    let project_id = payload.object("project").first_text(&["id"]).or_else(|| payload.first_text(&["projectId"]));
    let regions: Vec<Value> =
        payload.items("regions").into_iter().filter_map(|region| serde_json::from_str(region).ok()).collect();
    let (org, repo) = (meta.text("githubCommitOrg"), meta.text("githubCommitRepo"));
    object(json!({
        "deploymentId": deployment.text("id"),
        "deploymentUrl": deployment.text("url"),
        "projectName": project_name.unwrap_or_default(),
        "projectId": project_id.unwrap_or_default(),
        "target": payload.text("target"),
        "plan": payload.text("plan"),
        "regions": regions,
        "dashboardUrl": links.text("deployment"),
        "projectDashboardUrl": links.text("project"),
        "gitCommitSha": git("CommitSha"),
        "gitCommitMessage": git("CommitMessage"),
        "gitCommitAuthor": git("CommitAuthorName"),
        "gitBranch": git("CommitRef"),
        "gitRepo": if org.is_empty() || repo.is_empty() { String::new() } else { format!("{org}/{repo}") },
    }))
}
