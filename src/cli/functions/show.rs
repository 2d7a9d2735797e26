//! `joelclaw functions show <function>`: everything about one function, and who holds and waits under its limits.

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::queue::{bus, redis_of};
use super::super::render::Human;
use super::operate::mark_json;
use super::{function_named, no_function, snapshot, when};
use crate::functions::store::{Group, Runs};
use crate::moment::iso;
use crate::telemetry::latency::{Sample, Summary, kind, minute_of, read};

/// Groups shown of a function with many keys.
const SHOWN: usize = 50;
/// Minutes of which percentiles are shown.
const HOUR: u64 = 60;

/// Everything about one function: schedules, limits, who holds and who waits
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  joelclaw functions show shop-charge")]
pub struct Args {
    /// Slug, id, name, or slug without the app
    function: String,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let (known, now) = (snapshot(&bus).await?, bus.now_ms().await?);
    let found = function_named(&known, &args.function);
    let Some(function) = found.first().and_then(|slug| known.functions.get(*slug)) else {
        return Err(no_function(&known, &args.function));
    };
    let runs = Runs::new(bus.clone());
    let limits: Vec<String> = function.flow.concurrency.iter().map(|limit| limit.name()).collect();
    let is_shared = |group: &Group| limits.contains(&group.key) && group.key.starts_with("concurrency account");
    let is_its = |group: &Group| group.function == function.slug || is_shared(group);
    let mut groups: Vec<Group> = runs.groups().await?.into_iter().filter(is_its).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.waiting));
    let (held, waiting) =
        groups.iter().fold((0, 0), |(held, waiting), group| (held + group.held, waiting + group.waiting));
    let mut ticks = Vec::new();
    for series in function.series() {
        if let Some(tick) = runs.next_tick(&series.name).await? {
            ticks.push((series.cron.clone(), tick));
        }
    }
    let latest = runs.latest_of(std::slice::from_ref(&function.slug)).await?.remove(&function.slug);
    let paused = known.paused_by(function);
    let minute = minute_of(now);
    let times = async |kind| -> Result<Summary, Failure> {
        let samples = read::minutes(&bus, kind, minute.saturating_sub(HOUR - 1), minute).await?;
        Ok(samples.get(&function.slug).map(Sample::summary).unwrap_or_default())
    };
    let (queue, step) = (times(kind::RUN_QUEUE).await?, times(kind::STEP).await?);

    let result = json!({
        "function": {
            "slug": function.slug, "uuid": function.id, "name": function.name, "app": function.app,
            "url": function.url, "retries": function.retries, "triggers": function.triggers,
            "flowControl": function.flow, "warnings": function.warnings,
            "served": known.is_served(&function.slug),
            "paused": paused.map(mark_json),
        },
        "nextTicks": ticks.iter().map(|(cron, at)| json!({ "cron": cron, "at": iso(*at) })).collect::<Vec<_>>(),
        "lastHour": { "queueMs": queue, "stepMs": step },
        "slotsHeld": held,
        "waiting": waiting,
        "groups": groups.iter().take(SHOWN).map(|group| json!(group)).collect::<Vec<Value>>(),
        "groupCount": groups.len(),
        "lastRun": latest.as_ref().map(|run| json!({ "id": run.id, "status": run.status.as_str() })),
        "redis": redis_of(&bus, context).await,
    });
    let mut human = Human::new().title(format!("{} ({})", function.name, function.slug));
    if let Some(mark) = paused {
        human = human.text(format!("paused {} by {}: {}", when(mark.at_ms, now), mark.actor, mark.reason));
    }
    human = human.pairs(ticks.iter().map(|(cron, at)| (cron.clone(), format!("next tick {}", when(*at, now)))));
    let told = |summary: &Summary| {
        let ms = |value: Option<f64>| value.map(|ms| format!("{ms:.1} ms")).unwrap_or_default();
        format!("p50 {}, p95 {}, p99 {} of {}", ms(summary.p50), ms(summary.p95), ms(summary.p99), summary.count)
    };
    for (name, summary) in [("queued, last hour", &queue), ("steps, last hour", &step)] {
        if summary.count > 0 {
            human = human.pairs([(name, told(summary))]);
        }
    }
    human = human.pairs([("slots held", held.to_string()), ("waiting", waiting.to_string())]);
    if !groups.is_empty() {
        human = human.table(
            &["LIMIT", "KEY", "HELD", "WAITING"],
            groups.iter().take(SHOWN).map(|group| {
                vec![group.key.clone(), group.value.clone(), group.held.to_string(), group.waiting.to_string()]
            }),
        );
    }
    for warning in &function.warnings {
        human = human.text(format!("warning: {warning}"));
    }
    let list = NextAction::new("runs --function <function>", "Its runs")
        .param("function", Param::new().value(function.slug.as_str()).required());
    Ok(Report::new(result, human).next(list))
}
