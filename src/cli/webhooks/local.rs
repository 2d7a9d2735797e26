//! `joelclaw webhooks send` and `verify`: a delivery of your own, signed like the provider's; and which check one fails.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render::{self, Human};
use super::senders;
use super::sources::{base_url, find, no_sample, post};
use crate::diagnose::Exit;
use crate::ingest::providers::{Provider, Sample, Senders};
use crate::ingest::signature::{Clock, Delivery, Secrets, Verified};
use crate::streams::json::JsonObject;
use crate::streams::public_id;

/// Options of `send`.
#[derive(Debug, Clone, clap::Args)]
pub struct SendArgs {
    /// The provider, as `webhooks sources` names it
    provider: String,
    /// The body; - is standard input
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// What happened, where the provider says so in a header: workflow_run
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// A header more, as 'Name: value'; may be given several times
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// The delivery's id, where the provider has one in a header; one is made otherwise
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The server, instead of the one of this configuration
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The environment variable that holds the secret, instead of the configured one
    #[arg(long, value_name = "VARIABLE")]
    secret_env: Option<String>,
}

/// Options of `verify`.
#[derive(Debug, Clone, clap::Args)]
pub struct VerifyArgs {
    /// The provider, as `webhooks sources` names it
    provider: String,
    /// Its headers: a JSON object, or the list that `webhooks inspect` shows
    #[arg(long, value_name = "FILE")]
    headers: PathBuf,
    /// Its body, byte for byte
    #[arg(long, value_name = "FILE")]
    body: PathBuf,
    /// As if it had come then, in seconds since 1970; now otherwise
    #[arg(long, value_name = "SECONDS")]
    at: Option<i64>,
    /// The environment variable that holds the secret, instead of the configured one
    #[arg(long, value_name = "VARIABLE")]
    secret_env: Option<String>,
}

fn usage(message: String, fix: &str) -> Failure {
    Failure::new("USAGE_ERROR", Exit::Usage, message, fix)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = match path.to_str() {
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
        }
        _ => std::fs::read(path),
    };
    read.map_err(|error| usage(format!("{} can't be read: {error}", path.display()), "Check the name of the file."))
}

/// The senders, with the secret of `provider` for these headers taken from `variable` where one is named.
fn with_secret(
    mut senders: Senders,
    provider: &dyn Provider,
    headers: &HeaderMap,
    variable: Option<&str>,
) -> Result<Senders, Failure> {
    let Some(variable) = variable else { return Ok(senders) };
    let secret = std::env::var(variable).ok().filter(|secret| !secret.trim().is_empty()).ok_or_else(|| {
        usage(format!("the environment variable {variable} holds no secret"), "Export it, or leave --secret-env out.")
    })?;
    let (_, known_as) = provider.signature(headers);
    senders.secrets.insert(known_as.into_owned(), Secrets::new([secret], []));
    Ok(senders)
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    match (HeaderName::try_from(name.trim()), HeaderValue::try_from(value.trim())) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        _ => Err(usage(format!("`{name}` is no header that can be sent"), "Write it as 'Name: value'.")),
    }
}

/// Runs `send`.
pub async fn send(args: &SendArgs, context: &Context) -> Result<Report, Failure> {
    let senders = senders(context)?;
    let provider = find(&senders, &args.provider)?;
    let body = String::from_utf8(read(&args.file)?)
        .map_err(|_| usage(format!("{} is not UTF-8", args.file.display()), "Send a body of text."))?;
    let nonce = args.id.clone().unwrap_or_else(|| public_id::fresh().to_ascii_lowercase());
    let Sample { mut headers, .. } = provider.sample(&nonce);
    if let Some(event) = &args.event {
        let name = provider.event_header().ok_or_else(|| {
            let message = format!("{} says in the body what happened, not in a header", provider.id());
            usage(message, "Leave --event out, and write it into the body.")
        })?;
        headers.retain(|(known, _)| !known.eq_ignore_ascii_case(&name));
        headers.push((name, event.clone()));
    }
    for given in &args.header {
        let (name, value) = given.split_once(':').unwrap_or((given, ""));
        let (name, value) = header(name, value)?;
        headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name.as_str()));
        headers.push((name.to_string().into(), value.to_str().unwrap_or_default().to_owned()));
    }
    let mut sent = HeaderMap::new();
    for (name, value) in &headers {
        let (name, value) = header(name, value)?;
        sent.insert(name, value);
    }
    let senders = with_secret(senders, &*provider, &sent, args.secret_env.as_deref())?;
    let now = chrono::Utc::now().timestamp();
    let signed = senders.sign(&*provider, Sample { body, headers }, now, &nonce).map_err(no_sample)?;
    let base = args.url.clone().unwrap_or_else(|| base_url(context));
    post(&*provider, &base, signed).await
}

/// The headers of a file, in either form.
fn headers_of(path: &Path) -> Result<HeaderMap, Failure> {
    let wrong = || {
        let message = format!("{} holds no headers", path.display());
        usage(message, r#"Write {"name":"value"}, or a list of {"name":…,"value":…} as webhooks inspect shows it."#)
    };
    let json: Value = serde_json::from_slice(&read(path)?).map_err(|_| wrong())?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let pairs: Option<Vec<(String, String)>> = match &json {
        Value::Object(object) => object
            .iter()
            .flat_map(|(name, value)| match value {
                Value::Array(values) => values.iter().map(|value| Some((name.clone(), text(value)?))).collect(),
                value => vec![text(value).map(|value| (name.clone(), value))],
            })
            .collect(),
        Value::Array(list) => list.iter().map(|one| Some((text(&one["name"])?, text(&one["value"])?))).collect(),
        _ => None,
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.ok_or_else(wrong)? {
        let (name, value) = header(&name, &value)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// What each check said, in the order of the gateway's.
#[derive(Default)]
struct Checks(Vec<(&'static str, bool, String)>);

impl Checks {
    fn note(&mut self, name: &'static str, ok: bool, detail: impl Into<String>) -> bool {
        self.0.push((name, ok, detail.into()));
        ok
    }
}

/// Runs `verify`.
pub async fn verify(args: &VerifyArgs, context: &Context) -> Result<Report, Failure> {
    let senders = senders(context)?;
    let provider = find(&senders, &args.provider)?;
    let (headers, raw) = (headers_of(&args.headers)?, Bytes::from(read(&args.body)?));
    let senders = with_secret(senders, &*provider, &headers, args.secret_env.as_deref())?;
    let tolerance_s = i64::try_from(context.config.webhook.timestamp_tolerance.as_secs()).unwrap_or(i64::MAX);
    let clock = Clock { now_s: args.at.unwrap_or_else(|| chrono::Utc::now().timestamp()), tolerance_s };
    let mut checks = Checks::default();
    let events = check(&mut checks, &*provider, &senders, Delivery { headers, raw }, clock);
    let is_valid = checks.0.iter().all(|(_, ok, _)| *ok);
    let rows = checks.0.iter().map(|(name, ok, detail)| {
        vec![(*name).to_owned(), if *ok { "ok" } else { "FAILS" }.to_owned(), render::cut(detail)]
    });
    let human = Human::new().table(&["CHECK", "", "DETAIL"], rows);
    let checks: Vec<Value> =
        checks.0.iter().map(|(name, ok, detail)| json!({ "check": name, "ok": ok, "detail": detail })).collect();
    let result = json!({ "provider": provider.id(), "valid": is_valid, "checks": checks, "events": events });
    let next = NextAction::new("webhooks send <provider> --file <body.json>", "Send one that is signed")
        .param("provider", Param::new().value(provider.id()).required());
    let report = Report::new(result, human).list("checks").next(next);
    Ok(if is_valid { report } else { report.unhealthy(Exit::Unhealthy) })
}

/// The gateway's checks; the events, where it gets so far.
fn check(
    checks: &mut Checks,
    provider: &dyn Provider,
    senders: &Senders,
    delivery: Delivery,
    clock: Clock,
) -> Vec<Value> {
    let (scheme, secrets) = senders.signature(provider, &delivery.headers);
    let variable = provider.signature(&delivery.headers).1;
    let Some(secrets) = secrets else {
        checks.note("secret", false, format!("{variable} is not set, or is no secret of this kind"));
        return Vec::new();
    };
    checks.note("secret", true, variable);
    let delivery = match scheme.verify(delivery, secrets, clock) {
        Ok(delivery) => delivery,
        Err(reason) => {
            checks.note("signature", false, reason.label());
            return Vec::new();
        }
    };
    checks.note("signature", true, format!("made with the {} secret", delivery.slot().label()));
    let body = provider.json(&delivery).and_then(|text| JsonObject::parse(&text).ok());
    let Some(body) = body else {
        checks.note("json", false, "the body is no JSON object");
        return Vec::new();
    };
    checks.note("json", true, format!("{} bytes", delivery.raw.len()));
    normalized(checks, provider, &delivery, &body)
}

fn normalized(
    checks: &mut Checks,
    provider: &dyn Provider,
    delivery: &Verified<Delivery>,
    body: &JsonObject,
) -> Vec<Value> {
    if provider.challenge_post(delivery).is_some() {
        checks.note("handshake", true, "a handshake: it is answered, and makes no events");
        return Vec::new();
    }
    checks.note("delivery", true, provider.delivery_key(delivery, body).as_str());
    match provider.normalize(delivery, body) {
        Ok(events) => {
            checks.note("events", true, format!("{}", events.len()));
            let shown = |name: String, id: &Option<String>, data: &JsonObject| json!({ "name": name, "id": id, "data": data.to_value() });
            events.iter().map(|event| shown(event.full_name(provider), &event.id, &event.data)).collect()
        }
        // It is answered 200: nothing is wrong with it, and nothing comes of it.
        Err(skip) => {
            checks.note("events", true, format!("none: {skip}"));
            Vec::new()
        }
    }
}
