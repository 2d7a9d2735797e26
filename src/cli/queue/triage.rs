//! `joelclaw queue triage …`: what triage would do with an event, and why.

use std::io::BufRead as _;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render::Human;
use super::act::emit::read_data;
use super::{bus, registry};
use crate::config::TriageMode;
use crate::diagnose::Exit;
use crate::service;
use crate::streams::family::Family;
use crate::streams::json::JsonObject;
use crate::triage::flags::{ENFORCEABLE, word};
use crate::triage::{Job, Left, Matter, SHADOW_QUEUE, Triage};

/// Triage: modes, rules, and what a model says
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Which mode an event has, which rule says so, and what would be asked
    Explain(Explain),
    /// Make shadow decisions that an emitting command left behind: NDJSON on stdin
    #[command(hide = true)]
    Work,
}

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue triage explain discovery/noted\n  \
                        joelclaw queue triage explain discovery/noted -d '{\"title\":\"urgent\"}' --run")]
struct Explain {
    /// The event name
    event: String,
    /// The data, a JSON object: text, @file, or - for stdin
    #[arg(short, long, value_name = "JSON")]
    data: Option<String>,
    /// The dedup key a sender would give
    #[arg(long, value_name = "KEY")]
    dedup_key: Option<String>,
    /// Decide as well, asking rules and model as admission would; nothing is appended or recorded
    #[arg(long)]
    run: bool,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    match &args.command {
        Command::Explain(args) => explain(args, context).await,
        Command::Work => work(context).await,
    }
}

async fn explain(args: &Explain, context: &Context) -> Result<Report, Failure> {
    let family: Family = args.event.parse().map_err(|error: crate::streams::family::ParseFamilyError| {
        Failure::new("INVALID_EVENT_NAME", Exit::Usage, error.to_string(), "Use a name such as content/updated.")
    })?;
    let registry = registry(context)?;
    let (triage, _worker) = service::triage(&context.config, &registry, CancellationToken::new());
    let flags = triage.flags();
    let table = registry.current();
    let entry = table.lookup(&family);
    let resolved = flags.resolve(family.as_str(), entry.is_some());
    let name = family.as_str().to_lowercase();
    let chain: Vec<&str> = flags.chain.iter().map(|provider| provider.as_str()).collect();
    let mut ignored: Vec<Value> = flags.ignored(Some(&table)).iter().map(|ignored| json!(ignored)).collect();
    let wrong = triage.rules().problems().into_iter();
    ignored.extend(wrong.map(|why| json!({ "variable": "QUEUE_TRIAGE_RULES", "item": "", "why": why })));
    let mut result = json!({
        "family": name,
        "registered": entry.is_some(),
        "base": word(flags.base),
        "mode": word(resolved.mode),
        "clampedFrom": resolved.clamped_from.map(word),
        "steps": flags.steps(&name, entry.is_some()),
        "eligible": ENFORCEABLE.contains(&name.as_str()),
        "inFamilies": flags.families.contains(&name),
        "inEnforce": flags.enforce.contains(&name),
        "static": entry.map(|entry| json!({
            "priority": entry.priority.label(),
            "dedupWindowMs": entry.dedup_window.map(|window| window.as_millis() as u64),
            "handler": { "type": entry.handler.kind(), "target": entry.handler.target() },
        })),
        "provider": chain,
        "model": flags.model,
        "timeoutMs": flags.timeout(resolved.mode).as_millis() as u64,
        "ignored": ignored,
    });
    let mut human = Human::new().pairs([
        ("family", name.clone()),
        ("mode", word(resolved.mode).to_owned()),
        ("because", because(&result)),
        ("asked", chain.join(", ")),
    ]);
    if args.run {
        let matter = matter(args, &family, &triage, context)?;
        let decision = triage.decide(&matter, resolved.mode, None).await;
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let record = Value::Object(decision.record());
        let answered = decision.provider.map_or("nobody", |provider| provider.as_str());
        human = human.title("Decision").pairs([
            ("answered by", record["rule"].as_str().map_or_else(|| answered.to_owned(), |rule| format!("rule {rule}"))),
            (
                "suggested",
                format!("{} {}", text(&record["suggested"]["priority"]), text(&record["suggested"]["dedupKey"])),
            ),
            ("final", format!("{} {}", text(&record["final"]["priority"]), text(&record["final"]["dedupKey"]))),
            ("fallback", text(&record["fallbackReason"])),
            ("detail", text(&record["detail"])),
            ("took", format!("{} ms", decision.latency_ms)),
        ]);
        result["decision"] = record;
    }
    let rows: Vec<Vec<String>> = ignored
        .iter()
        .map(|row| ["variable", "item", "why"].map(|key| row[key].as_str().unwrap_or_default().to_owned()).to_vec())
        .collect();
    if !rows.is_empty() {
        human = human.title("Without effect").table(&["VARIABLE", "ITEM", "WHY"], rows);
    }
    let report = Report::new(result, human);
    let route = NextAction::new("queue registry explain <event>", "How the event is routed");
    Ok(report
        .next(route.param("event", Param::new().value(family.to_string()).required()))
        .next(NextAction::new("queue stats", "How far suggestions and static values agree")))
}

/// The reason of the step that matched.
fn because(result: &Value) -> String {
    let steps = result["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let step = steps.iter().find(|step| step["matched"] == true);
    step.and_then(|step| step["why"].as_str()).unwrap_or_default().to_owned()
}

/// An event as admission would have prepared it.
fn matter(args: &Explain, family: &Family, triage: &Triage, context: &Context) -> Result<Matter, Failure> {
    let text = read_data(args.data.as_deref().unwrap_or_default())?;
    let data = if text.trim().is_empty() { Ok(JsonObject::default()) } else { JsonObject::parse(&text) };
    let data = data.map_err(|error| {
        let code =
            if matches!(error, crate::streams::json::Error::NotAnObject(_)) { "NOT_AN_OBJECT" } else { "INVALID_JSON" };
        Failure::new(code, Exit::Usage, format!("--data: {error}"), "Give a JSON object such as '{\"title\":\"x\"}'.")
    })?;
    let registry = registry(context)?.current();
    let entry = registry.lookup(family);
    let derived = entry.and_then(|entry| entry.dedup_key.as_ref()?.derive(family, "cli", &data));
    let window = entry.and_then(|entry| entry.dedup_window);
    let (handler_type, handler_target) = triage.handler(family).unwrap_or_default();
    Ok(Matter {
        event_id: uuid::Uuid::now_v7().to_string(),
        name: family.clone(),
        source: "cli".into(),
        ts: chrono::Utc::now().timestamp_millis(),
        data,
        meta: None,
        trace: None,
        priority: entry.map(|entry| entry.priority).unwrap_or_default(),
        dedup_key: args.dedup_key.clone().or(derived),
        dedup_window_ms: window.and_then(|window| u64::try_from(window.as_millis()).ok()),
        handler_type,
        handler_target,
    })
}

async fn work(context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let (triage, worker) = service::triage(&context.config, &registry(context)?, CancellationToken::new());
    let lines = tokio::task::spawn_blocking(|| {
        std::io::stdin().lock().lines().take(SHADOW_QUEUE).collect::<Result<Vec<_>, _>>()
    });
    let lines = lines.await.map_err(std::io::Error::other).and_then(|lines| lines).map_err(|error| {
        Failure::new("INPUT_UNREADABLE", Exit::Usage, format!("stdin can't be read: {error}"), "Give NDJSON on stdin.")
    })?;
    let jobs: Vec<Job> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let count = jobs.len();
    jobs.into_iter().for_each(|job| triage.shadow(job.matter));
    worker.work_off(&bus).await;
    Ok(Report::new(json!({ "decided": count }), Human::new().pairs([("decided", count.to_string())])))
}

/// Hands shadow decisions to a process of their own, so that whoever emitted need not wait for a model.
pub(in crate::cli::queue) async fn hand_over(left: Left, context: &Context) {
    if left.jobs.is_empty() {
        return;
    }
    let (env_file, redis_url) = (context.sources.env_file.clone(), context.sources.flags.get("REDIS_URL").cloned());
    let spawned = tokio::task::spawn_blocking(move || {
        use std::io::{Seek as _, Write as _};
        use std::os::unix::process::CommandExt as _;
        let mut stdin = tempfile::tempfile()?;
        for job in &left.jobs {
            serde_json::to_writer(&mut stdin, job)?;
            stdin.write_all(b"\n")?;
        }
        stdin.rewind()?;
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["queue", "triage", "work", "--quiet"]);
        command.args(env_file.iter().flat_map(|path| ["--env-file".as_ref(), path.as_os_str()]));
        command.args(redis_url.iter().flat_map(|url| ["--redis-url", url.as_str()]));
        // A group of its own: an interrupt of the shell's is not meant for it.
        command.process_group(0).stdin(Stdio::from(stdin)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    });
    if let Ok(Err(error)) = spawned.await {
        tracing::warn!(error = %error, "nobody makes the shadow decisions of this command");
    }
}

/// What the result of an emit says of the decision.
pub(in crate::cli::queue) fn told(result: &mut Value, triaged: &crate::ingest::admission::Triaged, will_decide: bool) {
    if let Some(record) = &triaged.record {
        result["triage"] = record.to_value();
    } else if will_decide && triaged.mode == TriageMode::Shadow {
        result["triage"] = json!({ "pending": true });
    }
}
