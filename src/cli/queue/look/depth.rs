//! `joelclaw queue depth`: what waits, by family and priority.

use std::time::Duration;

use serde_json::json;

use super::super::super::Context;
use super::super::super::output::{Failure, NextAction, Param, Report};
use super::super::super::render::{self, Human};
use super::super::{bus, endpoints, functions, is_routed, redis_of, registry};

/// What waits, by family and priority
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue depth\n  joelclaw queue depth --watch 2")]
pub struct Args {}

/// Runs the command.
pub async fn run(_: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let registry = registry(context)?.current();
    let (functions, endpoints) = (functions(&bus).await?, endpoints(&bus).await?);
    let depth = bus.depth().await?;
    let unrouted: u64 = depth
        .by_family
        .iter()
        .filter(|family| !is_routed(context, &registry, &functions, &endpoints, &family.family))
        .map(|family| family.waiting + family.leased + family.retrying)
        .sum();
    let rows = depth.by_family.iter().map(|family| {
        vec![
            family.family.to_string(),
            family.waiting.to_string(),
            family.leased.to_string(),
            family.retrying.to_string(),
            family.later.to_string(),
            family.oldest_age_ms.map(|ms| render::age(Duration::from_millis(ms))).unwrap_or_default(),
            if family.paused { "paused".into() } else { String::new() },
        ]
    });
    let human = Human::new()
        .pairs([
            ("waiting in all", depth.total.to_string()),
            ("dead letters", depth.dead.to_string()),
            ("without a route", unrouted.to_string()),
        ])
        .table(&["FAMILY", "WAITING", "LEASED", "RETRY", "LATER", "OLDEST", ""], rows);
    let held = depth.by_family.iter().find(|family| family.paused).map(|family| family.family.to_string());
    let mut result = json!(depth);
    result["unrouted"] = unrouted.into();
    result["redis"] = redis_of(&bus, context).await;
    let list = NextAction::new("queue list [--limit <n>]", "See the entries")
        .param("n", Param::new().value(10).default_value(10).description("How many"));
    let mut report = Report::new(result, human).list("byFamily").next(list);
    if let Some(family) = held {
        let resume = NextAction::new("queue resume <family>", "Let the paused family go on");
        report = report.next(resume.param("family", Param::new().value(family).required()));
    }
    Ok(report)
}
