//! `joelclaw webhooks endpoints`: where events are sent to.

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::{bus, redis_of};
use super::super::render::{self, Human};
use super::endpoint_change as change;
use crate::diagnose::Exit;
use crate::moment::iso;
use crate::outbound::endpoint::{Disabled, Endpoint};
use crate::outbound::store::{Endpoints, Health, Snapshot};
use crate::streams::bus::Bus;
use crate::streams::dead::DeadFilter;

/// Dead letters looked at for the count of one endpoint.
const SCAN: usize = 20_000;

/// Where events are sent to: add, change, test, enable and disable
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Send events to a URL; its secret is shown this once
    #[command(
        after_help = "Examples:\n  joelclaw webhooks endpoints add https://example.com/hook --events 'github/*'\n  \
                            joelclaw webhooks endpoints add https://example.com/hook --events 'order/*' --filter \
                            'event.data.amount > 100' --fifo\n  \
                            joelclaw webhooks endpoints add https://example.com/hook --events 'order/*' --where \
                            '/data/amount gt 100' --template '{\"text\":\"{{/data/id}} was ordered\"}'"
    )]
    Add(change::AddArgs),
    /// Every endpoint and how it does
    #[command(after_help = "Example:\n  joelclaw webhooks endpoints list")]
    List,
    /// One endpoint: patterns, health, what waits for it, its dead letters
    #[command(after_help = "Example:\n  joelclaw webhooks endpoints show ep_01j…")]
    Show(IdArgs),
    /// Change URL, patterns, filter, headers, limits
    #[command(after_help = "Example:\n  joelclaw webhooks endpoints update ep_01j… --events 'github/*' --no-filter")]
    Update(change::UpdateArgs),
    /// Make a new secret; the old one signs too for a while
    #[command(after_help = "Example:\n  joelclaw webhooks endpoints rotate ep_01j… --keep 24h")]
    Rotate(change::RotateArgs),
    /// Send one signed request now and say what it answered
    #[command(after_help = "Example:\n  joelclaw webhooks endpoints test ep_01j…")]
    Test(IdArgs),
    /// Send to it again; --redrive also sends its dead letters
    #[command(after_help = "Example:\n  joelclaw webhooks endpoints enable ep_01j… --redrive")]
    Enable(change::EnableArgs),
    /// Send nothing to it: deliveries become dead letters
    #[command(after_help = "Example:\n  joelclaw webhooks endpoints disable ep_01j… --reason 'moved house'")]
    Disable(change::DisableArgs),
    /// Forget it; what waits for it becomes dead letters
    #[command(after_help = "Example:\n  joelclaw webhooks endpoints remove ep_01j… --yes")]
    Remove(change::RemoveArgs),
}

/// One endpoint.
#[derive(Debug, Clone, clap::Args)]
pub struct IdArgs {
    /// Its id, or a unique beginning of it (at least 8 characters)
    pub id: String,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::Add(args) => change::add(args, context).await,
        Command::List => list(context).await,
        Command::Show(args) => show(args, context).await,
        Command::Update(args) => change::update(args, context).await,
        Command::Rotate(args) => change::rotate(args, context).await,
        Command::Test(args) => change::test(args, context).await,
        Command::Enable(args) => change::enable(args, context).await,
        Command::Disable(args) => change::disable(args, context).await,
        Command::Remove(args) => change::remove(args, context).await,
    }
}

/// The endpoint that an id leads to.
pub(super) fn find(snapshot: &Snapshot, id: &str) -> Result<Endpoint, Failure> {
    if let Some(endpoint) = snapshot.endpoints.get(id) {
        return Ok(Endpoint::clone(endpoint));
    }
    let id_lower = id.to_ascii_lowercase();
    let mut found = snapshot.endpoints.values().filter(|one| id.len() >= 8 && one.id.starts_with(&id_lower));
    let list = NextAction::new("webhooks endpoints list", "See the endpoints with their ids");
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(Endpoint::clone(one)),
        (None, _) => {
            let fix = "See the ids with joelclaw webhooks endpoints list.";
            let message = format!("there is no endpoint `{id}`");
            Err(Failure::new("ENDPOINT_NOT_FOUND", Exit::NotFound, message, fix).next(list))
        }
        (Some(_), Some(_)) => {
            let message = format!("several endpoints begin with `{id}`");
            Err(Failure::new("AMBIGUOUS_ID", Exit::Usage, message, "Use more characters of the id.").next(list))
        }
    }
}

/// `show` of an endpoint.
pub(super) fn show_action(id: &str) -> NextAction {
    NextAction::new("webhooks endpoints show <id>", "How it does").param("id", Param::new().value(id).required())
}

/// An endpoint without its secrets and the values of its headers.
pub(super) fn view(endpoint: &Endpoint, disabled: Option<&Disabled>, now_ms: u64) -> Value {
    let until = endpoint.secret_previous_until_ms.filter(|until| *until > now_ms);
    let mut view = json!({
        "id": endpoint.id,
        "url": endpoint.shown_url(),
        "events": endpoint.events,
        "filter": endpoint.filter,
        "where": endpoint.conditions.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "transform": (!endpoint.transform.is_none()).then_some(&endpoint.transform),
        "description": endpoint.description,
        "headers": endpoint.headers.keys().collect::<Vec<_>>(),
        "rateLimitPerSecond": endpoint.rate_limit_per_second,
        "fifo": endpoint.fifo,
        "enabled": disabled.is_none(),
        "previousSecretUntil": until.and_then(iso),
        "createdAt": iso(endpoint.created_at_ms),
    });
    if let Some(disabled) = disabled {
        view["disabledReason"] = disabled.reason.as_str().into();
        view["disabledAt"] = iso(disabled.at_ms).into();
        view["disabledDetail"] = disabled.detail.clone().into();
    }
    view
}

fn health_view(health: &Health) -> Value {
    json!({
        "failingSince": health.failing_since_ms.and_then(iso),
        "failures": health.failures,
        "lastSuccessAt": health.last_success_ms.and_then(iso),
        "lastFailureAt": health.last_failure_ms.and_then(iso),
        "lastStatus": health.last_status,
        "lastError": health.last_error,
    })
}

fn state(disabled: Option<&Disabled>, health: &Health) -> String {
    match disabled {
        Some(disabled) => format!("disabled ({})", disabled.reason),
        None if health.failures > 0 => format!("failing ({})", health.failures),
        None => "enabled".into(),
    }
}

async fn list(context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let endpoints = Endpoints::new(bus.clone());
    let (snapshot, now) = (endpoints.load().await?, bus.now_ms().await?);
    let (mut shown, mut rows) = (Vec::new(), Vec::new());
    for endpoint in snapshot.endpoints.values() {
        let (disabled, health) = (snapshot.disabled.get(&endpoint.id), endpoints.health(&endpoint.id).await?);
        let mut view = view(endpoint, disabled, now);
        view["health"] = health_view(&health);
        rows.push(vec![
            endpoint.id.clone(),
            endpoint.shown_url(),
            endpoint.events.join(","),
            state(disabled, &health),
            health.last_error.as_deref().map(render::cut).unwrap_or_default(),
        ]);
        shown.push(view);
    }
    let human = Human::new().table(&["ID", "URL", "EVENTS", "STATE", "LAST ERROR"], rows);
    let result = json!({ "total": shown.len(), "endpoints": shown, "redis": redis_of(&bus, context).await });
    let report = Report::new(result, human).list("endpoints");
    let add = NextAction::new("webhooks endpoints add <url> --events <patterns>", "Send events to another URL")
        .param("url", Param::new().required())
        .param("patterns", Param::new().value("github/*").required());
    Ok(match snapshot.endpoints.keys().next() {
        Some(id) => report.next(show_action(id)).next(add),
        None => report.next(add),
    })
}

async fn show(args: &IdArgs, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let endpoints = Endpoints::new(bus.clone());
    let snapshot = endpoints.load().await?;
    let endpoint = find(&snapshot, &args.id)?;
    let (disabled, health) = (snapshot.disabled.get(&endpoint.id), endpoints.health(&endpoint.id).await?);
    let mut result = view(&endpoint, disabled, bus.now_ms().await?);
    result["health"] = health_view(&health);
    let waiting = waiting(&bus, &endpoint).await?;
    result["waiting"] = waiting.into();
    let dead = dead(&bus, &endpoint, SCAN).await?.len();
    result["dead"] = dead.into();
    result["redis"] = redis_of(&bus, context).await;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let human = Human::new().pairs([
        ("id", endpoint.id.clone()),
        ("url", endpoint.shown_url()),
        ("events", endpoint.events.join(", ")),
        ("filter", endpoint.filter.clone().unwrap_or_else(|| "-".into())),
        (
            "where",
            match endpoint.conditions.as_slice() {
                [] => "-".into(),
                all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            },
        ),
        ("sent", if endpoint.transform.is_none() { "as it is" } else { "transformed (see --json)" }.into()),
        ("state", state(disabled, &health)),
        ("order", if endpoint.fifo { "kept (fifo)" } else { "best effort" }.into()),
        ("last success", text(&result["health"]["lastSuccessAt"])),
        ("last error", health.last_error.clone().unwrap_or_else(|| "-".into())),
        ("waiting", waiting.to_string()),
        ("dead letters", dead.to_string()),
    ]);
    let id = || Param::new().value(endpoint.id.as_str()).required();
    let mut report = Report::new(result, human);
    if disabled.is_some() {
        let enable =
            NextAction::new("webhooks endpoints enable <id> --redrive", "Send to it again, with what it missed");
        report = report.next(enable.param("id", id()));
    }
    if dead > 0 {
        let list = NextAction::new("webhooks dlq list --endpoint <id>", "What could not be delivered");
        report = report.next(list.param("id", id()));
    }
    let test = NextAction::new("webhooks endpoints test <id>", "Send it one request now");
    Ok(report.next(test.param("id", id())))
}

/// Deliveries that were not sent yet, or wait for a retry.
async fn waiting(bus: &Bus, endpoint: &Endpoint) -> Result<u64, Failure> {
    let depth = bus.depth().await?;
    let own = depth.by_family.iter().find(|family| Some(&family.family) == endpoint.family().as_ref());
    Ok(own.map_or(0, |family| family.waiting + family.leased + family.retrying))
}

/// Its dead letters, newest first.
pub(super) async fn dead(
    bus: &Bus,
    endpoint: &Endpoint,
    limit: usize,
) -> Result<Vec<crate::streams::dead::DeadLetter>, Failure> {
    let filter = DeadFilter { family: endpoint.family(), ..DeadFilter::default() };
    Ok(bus.dead_letters(&filter, None, limit, SCAN).await?.letters)
}
