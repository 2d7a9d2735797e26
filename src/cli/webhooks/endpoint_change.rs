//! The commands that change an endpoint, and the one that tries it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::act::actor;
use super::super::queue::act::emit::read_data;
use super::super::queue::{bus_to_change, redis_of};
use super::super::render::{self, Human};
use super::endpoints::{IdArgs, dead, find, show_action, view};
use crate::config::units::parse_duration;
use crate::diagnose::Exit;
use crate::moment;
use crate::net::guard::Guard;
use crate::outbound::client::Sender;
use crate::outbound::endpoint::{Disabled, Endpoint, Error, Secret};
use crate::outbound::shape::{Condition, Transform};
use crate::outbound::store::{Endpoints, Snapshot, Switch};
use crate::streams::bus::Bus;
use crate::streams::dead::{Operator, Redriven};
use crate::streams::public_id;
use crate::streams::records::Fact;

/// Dead letters sent again by one `enable --redrive`.
const REDRIVE_MAX: usize = 10_000;
/// Dead letters of one call.
const CHUNK: usize = 500;

/// What an endpoint may be given.
#[derive(Debug, Clone, clap::Args)]
pub struct Traits {
    /// A condition (CEL) over `event`: {id, name, source, ts, data}
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// A condition on the content: a JSON pointer, eq|in|prefix|exists|gt, a value; may be given several times, all must hold
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<String>,
    /// Parts of data that are sent, as JSON pointers: /data/id,/data/amount
    #[arg(long, value_name = "POINTERS", value_delimiter = ',')]
    pick: Vec<String>,
    /// Parts of data that are sent elsewhere: /data/id=/data/order,…
    #[arg(long, value_name = "FROM=TO", value_delimiter = ',')]
    rename: Vec<String>,
    /// The body that is sent: a JSON object with {{/data/id}} in its texts, @file, or - for stdin
    #[arg(long, value_name = "JSON")]
    template: Option<String>,
    /// A header of every request, as 'Name: value'; may be given several times
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// Requests per second, at most
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// What you call it
    #[arg(long)]
    description: Option<String>,
}

/// Options of `add`.
#[derive(Debug, Clone, clap::Args)]
pub struct AddArgs {
    /// Where to: https, or http within WEBHOOK_ALLOWED_SUBNETS
    url: String,
    /// Patterns of event names, comma-separated, with * for any text
    #[arg(long, value_delimiter = ',', required = true)]
    events: Vec<String>,
    #[command(flatten)]
    traits: Traits,
    /// One at a time, in the order of the events; a failing one holds up those behind it
    #[arg(long)]
    fifo: bool,
    /// A secret that the receiver has already (whsec_…); otherwise one is made
    #[arg(long, value_name = "SECRET")]
    secret: Option<String>,
}

/// Options of `update`.
#[derive(Debug, Clone, clap::Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Another URL
    #[arg(long)]
    url: Option<String>,
    /// Other patterns
    #[arg(long, value_delimiter = ',')]
    events: Vec<String>,
    #[command(flatten)]
    traits: Traits,
    /// Without a condition
    #[arg(long, conflicts_with = "filter")]
    no_filter: bool,
    /// Without conditions on the content
    #[arg(long, conflicts_with = "conditions")]
    no_where: bool,
    /// Events as they are
    #[arg(long, conflicts_with_all = ["pick", "rename", "template"])]
    no_transform: bool,
    /// Without headers of its own
    #[arg(long, conflicts_with = "header")]
    no_headers: bool,
    /// Without a limit on requests
    #[arg(long, conflicts_with = "rate")]
    no_rate: bool,
    /// Whether deliveries keep the order of the events
    #[arg(long, value_name = "BOOL")]
    fifo: Option<bool>,
}

/// Options of `rotate`.
#[derive(Debug, Clone, clap::Args)]
pub struct RotateArgs {
    #[command(flatten)]
    id: IdArgs,
    /// How long the old secret signs too
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    keep: String,
    /// The new secret (whsec_…); otherwise one is made
    #[arg(long, value_name = "SECRET")]
    secret: Option<String>,
}

/// Options of `enable`.
#[derive(Debug, Clone, clap::Args)]
pub struct EnableArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Send its dead letters again, oldest first
    #[arg(long)]
    redrive: bool,
}

/// Options of `disable`.
#[derive(Debug, Clone, clap::Args)]
pub struct DisableArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Why
    #[arg(long)]
    reason: Option<String>,
}

/// Options of `remove`.
#[derive(Debug, Clone, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Do it
    #[arg(long)]
    yes: bool,
}

/// Everything that a change begins with.
struct Change {
    bus: Bus,
    endpoints: Endpoints,
    snapshot: Snapshot,
    now_ms: u64,
}

impl Change {
    async fn begin(context: &Context) -> Result<Self, Failure> {
        let bus = bus_to_change(context).await?;
        let endpoints = Endpoints::new(bus.clone());
        let (snapshot, now_ms) = (endpoints.load().await?, bus.now_ms().await?);
        Ok(Self { bus, endpoints, snapshot, now_ms })
    }

    async fn put(
        &self,
        before: Option<&Endpoint>,
        after: Option<&Endpoint>,
        switch: Switch,
        action: &'static str,
        context: &Context,
    ) -> Result<(), Failure> {
        let Some(endpoint) = after.or(before) else { return Ok(()) };
        let fact = Fact::new("outbound", action)
            .with("endpoint", endpoint.id.as_str())
            .with("url", endpoint.shown_url())
            .with("actor", actor(None, context));
        if self.endpoints.put(&endpoint.id, before, after, &switch, fact).await? {
            return Ok(());
        }
        let message = format!("{} was changed by somebody else at the same moment", endpoint.id);
        Err(Failure::new("ENDPOINT_CHANGED", Exit::Refused, message, "Look at it, then repeat the command.")
            .next(show_action(&endpoint.id)))
    }

    async fn view(&self, endpoint: &Endpoint, disabled: Option<&Disabled>, context: &Context) -> Value {
        let mut view = view(endpoint, disabled, self.now_ms);
        view["redis"] = redis_of(&self.bus, context).await;
        view
    }
}

fn guard(context: &Context) -> Guard {
    Guard::new(&context.config.webhook.allowed_subnets)
}

fn headers(lines: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut headers = BTreeMap::new();
    for line in lines {
        // The whole line is not repeated: it may hold a token.
        let Some((name, value)) = line.split_once(':') else {
            let name = line.chars().take_while(char::is_ascii_alphanumeric).collect();
            return Err(Error::Header { name, why: "has no value: write 'Name: value'" }.into());
        };
        headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(headers)
}

fn conditions(texts: &[String]) -> Result<Vec<Condition>, Failure> {
    Ok(texts.iter().map(|text| Condition::parse(text).map_err(Error::Condition)).collect::<Result<_, _>>()?)
}

/// The three parts are one: what is not said is not there.
fn transform(traits: &Traits) -> Result<Transform, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((from, to)) => Ok((from.trim().to_owned(), to.trim().to_owned())),
        None => Err(Error::Transform(format!("`{text}` is no FROM=TO"))),
    };
    let template = match &traits.template {
        Some(text) => {
            let read = serde_json::from_str(&read_data(text)?);
            Some(read.map_err(|error| Error::Transform(format!("the template is no JSON: {error}")))?)
        }
        None => None,
    };
    let rename = traits.rename.iter().map(pair).collect::<Result<_, _>>()?;
    Ok(Transform { pick: trimmed(&traits.pick), rename, template })
}

fn trimmed(words: &[String]) -> Vec<String> {
    words.iter().map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

fn secret(asked: Option<&str>) -> Result<Secret, Failure> {
    Ok(asked.map(Secret::parse).transpose()?.unwrap_or_else(Secret::fresh))
}

fn test_action(id: &str) -> NextAction {
    NextAction::new("webhooks endpoints test <id>", "Send it one request now")
        .param("id", Param::new().value(id).required())
}

/// Runs `add`.
pub async fn add(args: &AddArgs, context: &Context) -> Result<Report, Failure> {
    let traits = &args.traits;
    let mut endpoint = Endpoint {
        id: format!("ep_{}", public_id::fresh().to_ascii_lowercase()),
        url: args.url.clone(),
        events: trimmed(&args.events),
        filter: traits.filter.clone(),
        conditions: conditions(&traits.conditions)?,
        transform: transform(traits)?,
        description: traits.description.clone(),
        secret: secret(args.secret.as_deref())?,
        secret_previous: None,
        secret_previous_until_ms: None,
        headers: headers(&traits.header)?,
        rate_limit_per_second: traits.rate,
        fifo: args.fifo,
        created_at_ms: 0,
    };
    endpoint.check(&guard(context))?;
    let change = Change::begin(context).await?;
    endpoint.created_at_ms = change.now_ms;
    change.put(None, Some(&endpoint), Switch::Leave, "webhook.endpoint.added", context).await?;
    let mut result = change.view(&endpoint, None, context).await;
    result["secret"] = endpoint.secret.reveal().into();
    let human = Human::new()
        .text(format!("{} is sent {}.", endpoint.shown_url(), endpoint.events.join(", ")))
        .pairs([("id", endpoint.id.as_str()), ("secret", endpoint.secret.reveal())])
        .text("Give the secret to the receiver now: it is not shown again.");
    Ok(Report::new(result, human).next(test_action(&endpoint.id)).next(show_action(&endpoint.id)))
}

/// Runs `update`.
pub async fn update(args: &UpdateArgs, context: &Context) -> Result<Report, Failure> {
    let change = Change::begin(context).await?;
    let before = find(&change.snapshot, &args.id.id)?;
    let mut after = before.clone();
    let traits = &args.traits;
    if let Some(url) = &args.url {
        after.url.clone_from(url);
    }
    if !args.events.is_empty() {
        after.events = trimmed(&args.events);
    }
    if args.no_filter || traits.filter.is_some() {
        after.filter.clone_from(&traits.filter);
    }
    if args.no_where || !traits.conditions.is_empty() {
        after.conditions = conditions(&traits.conditions)?;
    }
    let transform = transform(traits)?;
    if args.no_transform || !transform.is_none() {
        after.transform = transform;
    }
    if args.no_headers || !traits.header.is_empty() {
        after.headers = headers(&traits.header)?;
    }
    if args.no_rate || traits.rate.is_some() {
        after.rate_limit_per_second = traits.rate;
    }
    if traits.description.is_some() {
        after.description.clone_from(&traits.description);
    }
    after.fifo = args.fifo.unwrap_or(after.fifo);
    after.check(&guard(context))?;
    change.put(Some(&before), Some(&after), Switch::Leave, "webhook.endpoint.updated", context).await?;
    let disabled = change.snapshot.disabled.get(&after.id);
    let human = Human::new().text(format!("{} is changed; what waits for it follows the change.", after.id));
    Ok(Report::new(change.view(&after, disabled, context).await, human).next(show_action(&after.id)))
}

/// Runs `rotate`.
pub async fn rotate(args: &RotateArgs, context: &Context) -> Result<Report, Failure> {
    let Some(keep) = parse_duration(&args.keep).filter(|keep| *keep <= Duration::from_secs(30 * 86_400)) else {
        let message = format!("--keep is no duration up to 30d: {}", args.keep);
        return Err(Failure::new("USAGE_ERROR", Exit::Usage, message, "Use a duration such as --keep 24h."));
    };
    let change = Change::begin(context).await?;
    let before = find(&change.snapshot, &args.id.id)?;
    let mut after = before.clone();
    after.secret = secret(args.secret.as_deref())?;
    after.secret_previous = Some(before.secret.clone());
    let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
    after.secret_previous_until_ms = Some(change.now_ms.saturating_add(keep_ms));
    change.put(Some(&before), Some(&after), Switch::Leave, "webhook.endpoint.rotated", context).await?;
    let mut result = change.view(&after, change.snapshot.disabled.get(&after.id), context).await;
    result["secret"] = after.secret.reveal().into();
    let human = Human::new()
        .text(format!("The old secret signs too for another {}.", render::age(keep)))
        .pairs([("id", after.id.as_str()), ("secret", after.secret.reveal())])
        .text("Give the secret to the receiver now: it is not shown again.");
    Ok(Report::new(result, human).next(test_action(&after.id)).next(show_action(&after.id)))
}

/// Runs `test`. Needs no running service.
pub async fn test(args: &IdArgs, context: &Context) -> Result<Report, Failure> {
    let change = Change::begin(context).await?;
    let endpoint = find(&change.snapshot, &args.id)?;
    let sender = Sender::new(guard(context), context.config.webhook.endpoint_timeout)
        .map_err(|error| Failure::new("INTERNAL_ERROR", Exit::Internal, error, "Look at the message."))?;
    let id = format!("test_{}", public_id::fresh().to_ascii_lowercase());
    let body = json!({
        "type": "webhook/endpoint.test",
        "timestamp": moment::now(),
        "data": { "endpointId": endpoint.id, "message": "A test: nothing happened." },
    });
    let attempt = sender.send(&endpoint, &id, &body.to_string()).await;
    let took = attempt.took;
    let is_taken = attempt.error.is_none();
    let text = match (&attempt.error, attempt.status) {
        (None, Some(status)) => format!("{} answered {status} in {}.", endpoint.shown_url(), render::age(took)),
        (error, _) => format!("{} did not take it: {}", endpoint.shown_url(), error.as_deref().unwrap_or_default()),
    };
    let result = json!({
        "id": endpoint.id,
        "url": endpoint.shown_url(),
        "webhookId": id,
        "delivered": is_taken,
        "status": attempt.status,
        "error": attempt.error,
        "answer": attempt.answer,
        "durationMs": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    });
    let report = Report::new(result, Human::new().text(text)).next(show_action(&endpoint.id));
    Ok(if is_taken { report } else { report.unhealthy(Exit::Unhealthy) })
}

/// Runs `enable`.
pub async fn enable(args: &EnableArgs, context: &Context) -> Result<Report, Failure> {
    let change = Change::begin(context).await?;
    let endpoint = find(&change.snapshot, &args.id.id)?;
    change.put(Some(&endpoint), Some(&endpoint), Switch::Enable, "webhook.endpoint.enabled", context).await?;
    let mut human = Human::new().text(format!("{} is sent events again.", endpoint.shown_url()));
    let mut result = change.view(&endpoint, None, context).await;
    let mut left = dead(&change.bus, &endpoint, REDRIVE_MAX).await?;
    result["dead"] = left.len().into();
    if args.redrive {
        // The oldest first, as they were to be delivered.
        left.reverse();
        let reason = "endpoint enabled".to_owned();
        let operator = Operator { actor: actor(None, context), reason };
        let ids: Vec<_> = left.iter().map(|letter| letter.id).collect();
        let mut sent = 0;
        for chunk in ids.chunks(CHUNK) {
            let outcomes = change.bus.redrive(chunk, &operator, None).await?;
            sent += outcomes.iter().filter(|outcome| matches!(outcome, Redriven::Sent { .. })).count();
        }
        result["redriven"] = sent.into();
        human = human.text(format!("{sent} dead letters are sent again."));
    } else if !left.is_empty() {
        human = human.text(format!("{} dead letters are not sent again without --redrive.", left.len()));
    }
    Ok(Report::new(result, human).next(show_action(&endpoint.id)))
}

/// Runs `disable`.
pub async fn disable(args: &DisableArgs, context: &Context) -> Result<Report, Failure> {
    let change = Change::begin(context).await?;
    let endpoint = find(&change.snapshot, &args.id.id)?;
    let disabled = Disabled { reason: "operator".into(), at_ms: change.now_ms, detail: args.reason.clone() };
    let switch = Switch::Disable(disabled.clone());
    change.put(Some(&endpoint), Some(&endpoint), switch, "webhook.endpoint.disabled", context).await?;
    let human =
        Human::new().text(format!("{} is sent nothing; its deliveries become dead letters.", endpoint.shown_url()));
    let enable = NextAction::new("webhooks endpoints enable <id> --redrive", "Send to it again, with what it missed")
        .param("id", Param::new().value(endpoint.id.as_str()).required());
    Ok(Report::new(change.view(&endpoint, Some(&disabled), context).await, human).next(enable))
}

/// Runs `remove`.
pub async fn remove(args: &RemoveArgs, context: &Context) -> Result<Report, Failure> {
    let change = Change::begin(context).await?;
    let endpoint = find(&change.snapshot, &args.id.id)?;
    if !args.yes {
        let message = format!("{} and its secret would be gone for good", endpoint.shown_url());
        return Err(Failure::new("CONFIRMATION_REQUIRED", Exit::Refused, message, "Add --yes, or disable it instead.")
            .next(show_action(&endpoint.id)));
    }
    change.put(Some(&endpoint), None, Switch::Leave, "webhook.endpoint.removed", context).await?;
    let human = Human::new().text(format!("{} is removed.", endpoint.id));
    let result = json!({ "id": endpoint.id, "removed": true, "redis": redis_of(&change.bus, context).await });
    Ok(Report::new(result, human).next(NextAction::new("webhooks endpoints list", "What is left")))
}
