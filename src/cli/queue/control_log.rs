//! `joelclaw queue control log`: every change of what is held, paced or broken, with who made it: the audit log.

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::render::{self, Human};
use super::since::{Since, iso};
use super::{bus, redis_of};
use crate::streams::entry_id::EntryId;
use crate::streams::records::Entry;

/// Journal batches per read.
const PAGE: usize = 512;

/// Every change of pauses, priorities, paces, breakers and the kill switch, newest first
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue control log --since 2h\n  \
                        joelclaw queue control log --family content/updated --ndjson")]
pub struct Args {
    /// From when on: 15m, a time, or a stream id
    #[arg(long, value_name = "TIME", default_value = "24h")]
    since: String,
    /// Only this family
    #[arg(long)]
    family: Option<String>,
    /// At most so many, the newest
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let since = Since::of(Some(&args.since))?.unwrap_or(Since::Ago(86_400_000));
    let bus = bus(context)?;
    let now = bus.now_ms().await?;
    let from = since.entry(&bus, now).await?;
    let (mut found, mut next) = (Vec::new(), Some(from));
    while let Some(from) = next {
        let page = bus.journal_page(from, EntryId::MAX, PAGE).await?;
        next = page.last.map(EntryId::next);
        found.extend(page.entries.into_iter().filter(|entry| is_meant(entry, args.family.as_deref())));
    }
    let total = found.len();
    let records: Vec<Value> = found.iter().rev().take(args.limit as usize).map(view).collect();
    let rows = records.iter().map(|record| {
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let action = text("action").trim_start_matches("queue.").to_owned();
        vec![text("at"), action, text("kind"), text("family"), text("actor"), render::cut(&text("reason"))]
    });
    let human = Human::new().table(&["AT", "WHAT", "KIND", "FAMILY", "WHO", "WHY"], rows);
    let result = json!({ "ok": true, "sinceIso": iso(from.ms), "total": total, "truncated": total > records.len(),
        "records": records, "redis": redis_of(&bus, context).await });
    Ok(Report::new(result, human).list("records").next(NextAction::new("queue control status", "See what is in force")))
}

fn is_meant(entry: &Entry, family: Option<&str>) -> bool {
    let action = &*entry.fact.action;
    let is_control = action.starts_with("queue.control.") || action.starts_with("queue.breaker.");
    is_control && family.is_none_or(|family| family_of(entry).as_str() == Some(family))
}

fn family_of(entry: &Entry) -> Value {
    let metadata = &entry.fact.metadata;
    let of_action = || metadata.get("action").and_then(|action| action.get("family"));
    metadata.get("family").or_else(of_action).cloned().unwrap_or_default()
}

/// One record: absent values are null.
fn view(entry: &Entry) -> Value {
    let metadata = &entry.fact.metadata;
    let of = |key: &str| metadata.get(key).cloned().unwrap_or_default();
    let of_action = |key: &str| metadata.get("action").and_then(|action| action.get(key)).cloned();
    let time = |key: &str| metadata.get(key).and_then(Value::as_u64).map(iso);
    let previous = metadata.get("previous").map(|previous| {
        let keys = ["kind", "source", "mode", "reason", "actor", "priority", "everyMs", "max", "ttlMs", "rev"];
        let mut told: serde_json::Map<String, Value> =
            keys.iter().filter_map(|key| Some(((*key).to_owned(), previous.get(*key)?.clone()))).collect();
        for (key, ms) in [("appliedAt", "appliedAtMs"), ("expiresAt", "expiresAtMs")] {
            told.insert(key.into(), json!(previous.get(ms).and_then(Value::as_u64).map(iso)));
        }
        told
    });
    json!({
        "id": entry.id.to_string(),
        "at": iso(entry.id.ms),
        "action": entry.fact.action,
        "kind": of_action("kind").unwrap_or_else(|| of("kind")),
        "family": family_of(entry),
        "sourceType": metadata.get("sourceType").or_else(|| metadata.get("source")),
        "mode": of("mode"),
        "actor": of("actor"),
        "reason": super::control::reason_of(entry),
        "error": entry.fact.error,
        "snapshotId": of("snapshotId"),
        "model": of("model"),
        "rev": of("rev"),
        "appliedAt": time("appliedAtMs"),
        "expiresAt": time("expiresAtMs"),
        "expiredAt": time("expiredAtMs"),
        "state": of("state"),
        "actionMetadata": metadata.get("action"),
        "previous": previous,
    })
}
