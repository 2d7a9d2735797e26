//! `joelclaw webhooks sources` and `test`: who may send, and whether it would be believed.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::bus;
use super::super::render::{self, Human};
use super::senders;
use crate::config::nearest;
use crate::diagnose::{Exit, chain};
use crate::ingest::deliveries::Filter;
use crate::ingest::providers::{Provider, SampleError, Senders, SignedSample};
use crate::streams::public_id;

/// Entries of the log looked at for a source's last delivery.
const SCAN: usize = 5_000;
/// How long Redis may take to tell of last deliveries: the list itself needs none.
const LOG_WAIT: Duration = Duration::from_millis(1500);
/// How long the server may take.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Options of `test`.
#[derive(Debug, Clone, clap::Args)]
pub struct TestArgs {
    /// The provider, as `webhooks sources` names it
    provider: String,
    /// The server, instead of the one of this configuration
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// The server of this configuration, as this machine reaches it.
pub(super) fn base_url(context: &Context) -> String {
    let server = &context.config.server;
    let host = match server.bind {
        bind if bind.is_unspecified() && bind.is_ipv4() => "127.0.0.1".to_owned(),
        bind if bind.is_unspecified() => "[::1]".to_owned(),
        bind if bind.is_ipv6() => format!("[{bind}]"),
        bind => bind.to_string(),
    };
    format!("http://{host}:{}", server.port)
}

fn is_configured(senders: &Senders, provider: &dyn Provider) -> bool {
    senders.signature(provider, &HeaderMap::new()).1.is_some()
}

/// Runs `sources`.
pub async fn sources(context: &Context) -> Result<Report, Failure> {
    let senders = senders(context)?;
    let log = tokio::time::timeout(LOG_WAIT, last_deliveries(context, &senders)).await.ok().and_then(Result::ok);
    let disabled = async { Ok::<_, Failure>(bus(context)?.disabled_providers().await?) };
    let disabled = tokio::time::timeout(LOG_WAIT, disabled).await.ok().and_then(Result::ok).unwrap_or_default();
    let (mut shown, mut rows) = (Vec::new(), Vec::new());
    for provider in senders.all() {
        let (id, is_set) = (provider.id(), is_configured(&senders, &**provider));
        let last = log.as_ref().and_then(|log| log.iter().find(|(of, _)| *of == id)).map(|(_, last)| last.clone());
        let secrets: Vec<String> = provider.secrets().iter().map(ToString::to_string).collect();
        rows.push(vec![
            id.to_owned(),
            match (disabled.contains_key(id), is_set) {
                (true, _) => "disabled",
                (_, true) => "set",
                (_, false) => "missing",
            }
            .to_owned(),
            secrets.join(", "),
            if provider.redelivers() { "yes" } else { "no" }.to_owned(),
            last.as_ref().and_then(|last| last["receivedAt"].as_str()).unwrap_or("-").to_owned(),
        ]);
        shown.push(json!({
            "id": id,
            "path": format!("/webhooks/{id}"),
            "configured": is_set,
            "disabled": disabled.get(id),
            "secrets": secrets,
            "redelivers": provider.redelivers(),
            "lastDelivery": last,
        }));
    }
    let human = Human::new().table(&["PROVIDER", "SECRET", "VARIABLES", "SENDS AGAIN", "LAST DELIVERY"], rows);
    let set = shown.iter().filter(|source| source["configured"] == true).count();
    let result = json!({ "total": shown.len(), "configured": set, "sources": shown, "server": base_url(context) });
    let test = NextAction::new("webhooks test <provider>", "Send a signed sample to the running server")
        .param("provider", Param::new().one_of(senders.ids()).required());
    Ok(Report::new(result, human).list("sources").next(test).next(NextAction::new("webhooks list", "What came")))
}

/// The last delivery of each source, as far as the log goes back.
async fn last_deliveries(context: &Context, senders: &Senders) -> Result<Vec<(&'static str, Value)>, Failure> {
    let bus = bus(context)?;
    let mut found = Vec::new();
    for id in senders.ids() {
        let filter = Filter { provider: Some(id.to_owned()), ..Filter::default() };
        if let Some(entry) = bus.deliveries(&filter, None, 1, SCAN).await?.entries.pop() {
            let record = entry.record;
            found.push((
                id,
                json!({ "deliveryRef": record.reference, "receivedAt": record.received_at, "outcome": record.outcome }),
            ));
        }
    }
    Ok(found)
}

/// Runs `test`.
pub async fn test(args: &TestArgs, context: &Context) -> Result<Report, Failure> {
    let senders = senders(context)?;
    let provider = find(&senders, &args.provider)?;
    let nonce = public_id::fresh().to_ascii_lowercase();
    let sample = senders.sample(&*provider, chrono::Utc::now().timestamp(), &nonce).map_err(no_sample)?;
    let base = args.url.clone().unwrap_or_else(|| base_url(context));
    post(&*provider, &base, sample).await
}

/// The provider of this id.
pub(super) fn find(senders: &Senders, id: &str) -> Result<Arc<dyn Provider>, Failure> {
    senders.find(id).ok_or_else(|| {
        let near = nearest(id, senders.ids().into_iter());
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        let message = format!("there is no provider `{id}`{hint}");
        let fix = "See the providers with joelclaw webhooks sources.";
        Failure::new("WEBHOOK_UNKNOWN_PROVIDER", Exit::NotFound, message, fix)
            .next(NextAction::new("webhooks sources", "Who may send"))
    })
}

/// Sends a signed delivery to the server at `base` and tells the answer.
pub(super) async fn post(provider: &dyn Provider, base: &str, signed: SignedSample) -> Result<Report, Failure> {
    let url = format!("{}/webhooks/{}", base.trim_end_matches('/'), provider.id());
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
    let client = client.map_err(|error| {
        Failure::new("INTERNAL_ERROR", Exit::Internal, format!("no HTTP client: {error}"), "Look at the message.")
    })?;
    let began = std::time::Instant::now();
    let sent = client.post(&url).headers(signed.headers).body(signed.body).timeout(ANSWER_WAIT).send().await;
    let response = sent.map_err(|error| {
        let message = format!("the server at {base} did not answer: {}", chain(&error.without_url()));
        let fix = "Start it with joelclaw up or joelclaw serve, or name it with --url.";
        Failure::new("SERVER_UNREACHABLE", Exit::Unreachable, message, fix)
    })?;
    let status = response.status();
    let text = response.text().await.unwrap_or_default();
    let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| Value::from(render::cut(&text)));
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let events = answer["events"].as_u64().or(answer["ids"].as_array().map(|ids| ids.len() as u64));
    let human = Human::new().text(format!("{url} answered {} in {took} ms: {}", status.as_u16(), render::cut(&text)));
    let result = json!({
        "provider": provider.id(),
        "url": url,
        "accepted": status.is_success(),
        "status": status.as_u16(),
        "events": events,
        "answer": answer,
        "durationMs": took,
    });
    let list = NextAction::new("webhooks list --provider <provider>", "See it in the log")
        .param("provider", Param::new().value(provider.id()).required());
    let report = Report::new(result, human).next(list);
    Ok(if status.is_success() { report } else { report.unhealthy(Exit::Unhealthy) })
}

pub(super) fn no_sample(error: SampleError) -> Failure {
    let (code, fix) = match &error {
        SampleError::Unconfigured { variable } => {
            ("WEBHOOK_SECRET_MISSING", format!("Put {variable} into the env file of the service."))
        }
        SampleError::VerifiesOnly { .. } => {
            ("WEBHOOK_CANNOT_SIGN", "Only the sender has the private key: have it send a test.".to_owned())
        }
        SampleError::Header => ("INTERNAL_ERROR", "Look at the message.".to_owned()),
    };
    Failure::new(code, Exit::Usage, chain(&error), fix)
}
