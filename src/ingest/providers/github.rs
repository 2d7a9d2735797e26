//! GitHub: finished workflow runs and published packages. Cases: `tests/vectors/webhooks/github.json`.
//!
//! | signature | `x-hub-signature-256`: `sha256=` and hex HMAC-SHA256 of the raw body; the SHA-1 header is ignored |
//! |---|---|
//! | event id | made of `x-github-delivery`: a redelivery has the same id, so it is appended once |
//! | replay | nothing signed carries a time, and the delivery id is not signed: only the dedup window protects |
//! | retries | none by itself; by hand for three days |
//! | body | JSON, or a form with the JSON in its field `payload`; the signature covers the form as sent |

use std::borrow::Cow;
use std::collections::BTreeSet;

use axum::http::HeaderMap;
use serde_json::json;

use super::{DeliveryKey, NormalizedEvent, Provider, Sample, Skip, object, time_ms};
use crate::ingest::fields::{Fields, json_string, object_text};
use crate::ingest::signature::{Delivery, Encoding, Hash, Scheme, Verified};
use crate::streams::json::JsonObject;

/// Longest delivery id that is taken as one; GitHub sends 36 bytes. Leaves room for our part of the event id.
const MAX_DELIVERY_BYTES: usize = 128;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Github {
    /// Events that are passed on as they are: `github/<event>[.<action>]`.
    pub passthrough: BTreeSet<String>,
}

const SECRET: &str = "GITHUB_WEBHOOK_SECRET";

impl Provider for Github {
    fn id(&self) -> &'static str {
        "github"
    }

    fn secrets(&self) -> Vec<Cow<'static, str>> {
        vec![SECRET.into()]
    }

    fn signature(&self, _headers: &HeaderMap) -> (Scheme, Cow<'static, str>) {
        (Scheme::of_body("x-hub-signature-256", "sha256=", Hash::Sha256, Encoding::Hex), SECRET.into())
    }

    fn event_header(&self) -> Option<Cow<'static, str>> {
        Some("x-github-event".into())
    }

    fn redelivers(&self) -> bool {
        false
    }

    fn json(&self, delivery: &Verified<Delivery>) -> Option<String> {
        if !is_form(delivery) {
            return std::str::from_utf8(&delivery.raw).ok().map(str::to_owned);
        }
        let mut fields = form_urlencoded::parse(&delivery.raw);
        fields.find(|(name, _)| name == "payload").map(|(_, payload)| payload.into_owned())
    }

    fn delivery_key(&self, delivery: &Verified<Delivery>, _body: &JsonObject) -> DeliveryKey {
        match sent_id(delivery) {
            Some(id) => DeliveryKey::Id(id.to_owned()),
            None => DeliveryKey::Hash(delivery_id(delivery)),
        }
    }

    fn normalize(&self, delivery: &Verified<Delivery>, body: &JsonObject) -> Result<Vec<NormalizedEvent>, Skip> {
        let kind = delivery.header("x-github-event").map(str::trim).unwrap_or_default();
        let hook = Fields::parse(body.as_str()).unwrap_or_default();
        let action = hook.text("action");
        let event = match (kind, action.as_str()) {
            ("", _) => return Err(Skip::MissingType),
            ("workflow_run", "completed") => workflow_run_completed(&delivery_id(delivery), &hook),
            ("package", "published") => package_published(&delivery_id(delivery), &hook),
            (kind, action) if self.passthrough.contains(kind) => {
                passed_on(kind, action, &delivery_id(delivery), &hook, body)?
            }
            ("workflow_run" | "package", _) => return Err(Skip::FilteredAction),
            _ => return Err(Skip::UnmappedType),
        };
        Ok(vec![event])
    }

    fn own_time_ms(&self, _delivery: &Verified<Delivery>, body: &JsonObject) -> Option<i64> {
        let hook = Fields::parse(body.as_str()).ok()?;
        time_ms(&hook.object("workflow_run").text("updated_at"))
    }

    fn sample(&self, nonce: &str) -> Sample {
        let body = json!({
            "action": "completed",
            "workflow_run": { "id": 1, "name": "sample", "run_number": 1, "status": "completed", "conclusion": "success" },
            "workflow": { "id": 1, "name": "sample" },
            "repository": { "full_name": "sample/sample", "html_url": "https://github.com/sample/sample" },
        });
        let headers = [("x-github-event", "workflow_run"), ("x-github-delivery", nonce)];
        let headers = headers.map(|(name, value)| (name.into(), value.to_owned())).to_vec();
        Sample { body: body.to_string(), headers }
    }
}

fn is_form(delivery: &Delivery) -> bool {
    let kind = delivery.header("content-type").unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The sender's delivery id, where it is one that can be part of an event id.
fn sent_id(delivery: &Delivery) -> Option<&str> {
    let id = delivery.header("x-github-delivery")?.trim();
    let fits = !id.is_empty() && id.len() <= MAX_DELIVERY_BYTES && id.bytes().all(|b| b.is_ascii_graphic());
    fits.then_some(id)
}

/// The delivery id, or one made of the body: the same bytes have the same id.
fn delivery_id(delivery: &Delivery) -> String {
    match sent_id(delivery) {
        Some(id) => id.to_owned(),
        None => format!("nodelivery-{}", &delivery.body_hash()[..24]),
    }
}

fn workflow_run_completed(delivery_id: &str, hook: &Fields<'_>) -> NormalizedEvent {
    let run = hook.object("workflow_run");
    let workflow = hook.object("workflow");
    let repository = hook.object("repository");
    let run_id = run.integer("id").unwrap_or(0);
    let first = |a: (&Fields<'_>, &str), b: (&Fields<'_>, &str)| {
        if a.0.get(a.1).is_some() { a.0.text(a.1) } else { b.0.text(b.1) }
    };
    let workflow_id =
        if workflow.get("id").is_some() { workflow.integer("id") } else { run.integer("workflow_id") }.unwrap_or(0);
    let data = json!({
        "action": "completed",
        "deliveryId": delivery_id,
        "runId": run_id,
        "runNumber": run.integer("run_number"),
        "runAttempt": run.integer("run_attempt"),
        "workflowId": workflow_id,
        "workflowName": first((&workflow, "name"), (&run, "name")),
        "event": run.text("event"),
        "status": run.text("status"),
        "conclusion": run.text("conclusion"),
        "htmlUrl": run.text("html_url"),
        "jobsUrl": run.text("jobs_url"),
        "logsUrl": run.text("logs_url"),
        "branch": run.text("head_branch"),
        "headSha": run.text("head_sha"),
        "actorLogin": run.object("actor").text("login"),
        "repository": repository.text("full_name"),
        "repositoryUrl": repository.text("html_url"),
        "headRepository": first((&run.object("head_repository"), "full_name"), (&repository, "full_name")),
        "createdAt": run.text("created_at"),
        "updatedAt": run.text("updated_at"),
        "completedAt": first((&run, "updated_at"), (&run, "created_at")),
    });
    let id = format!("github-workflow-run-completed-{delivery_id}-{run_id}");
    NormalizedEvent::new("workflow_run.completed", id, object(data))
}

fn package_published(delivery_id: &str, hook: &Fields<'_>) -> NormalizedEvent {
    let package = hook.object("package");
    let repository = hook.object("repository");
    // Real payloads nest the version inside the package.
    let holder = if package.get("package_version").is_some() { &package } else { hook };
    let version = holder.object("package_version");
    let data = json!({
        "action": "published",
        "ecosystem": package.text("ecosystem"),
        "packageName": package.text("name"),
        "packageType": package.text("package_type"),
        "packageHtmlUrl": package.text("html_url"),
        "versionName": version.text("name"),
        "versionHtmlUrl": version.text("html_url"),
        "repository": repository.text("full_name"),
        "repositoryUrl": repository.text("html_url"),
        "sender": hook.object("sender").text("login"),
    });
    NormalizedEvent::new("package.published", format!("github-package-published-{delivery_id}"), object(data))
}

/// An event as it came, for names that the operator asked for.
fn passed_on(
    kind: &str,
    action: &str,
    delivery_id: &str,
    hook: &Fields<'_>,
    body: &JsonObject,
) -> Result<NormalizedEvent, Skip> {
    let name = if action.is_empty() { kind.to_owned() } else { format!("{kind}.{action}") };
    let texts = [
        delivery_id.to_owned(),
        action.to_owned(),
        hook.object("repository").text("full_name"),
        hook.object("sender").text("login"),
    ];
    let [id, action, repository, sender] = texts.map(|text| json_string(&text));
    let data = object_text([
        ("deliveryId", id.as_str()),
        ("action", &action),
        ("repository", &repository),
        ("sender", &sender),
        ("payload", body.as_str()),
    ]);
    let id = format!("github-{name}-{delivery_id}");
    // One level deeper than the body was: at the limit of nesting there is no such event.
    Ok(NormalizedEvent::new(name, id, JsonObject::parse(&data).map_err(|_| Skip::InvalidEvent)?))
}
