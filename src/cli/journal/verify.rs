//! `joelclaw journal verify`: every batch can be read, ids rise, readers are within the journal, and the stored minutes
//! are byte for byte what the journal says. Reads only.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::queue::since::{Since, iso};
use super::super::queue::{bus, redis_of};
use super::super::render::Human;
use crate::diagnose::Exit;
use crate::streams::entry_id::EntryId;
use crate::telemetry::projection;

/// Check that the journal can be read and that what was made of it agrees
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw journal verify\n  joelclaw journal verify --since 7d")]
pub struct Args {
    /// From when on
    #[arg(long, value_name = "TIME", default_value = "24h")]
    since: String,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = bus(context)?;
    let now = bus.now_ms().await?;
    let from = Since::of(Some(&args.since))?.unwrap_or(Since::Ago(86_400_000)).entry(&bus, now).await?;
    let checked = projection::check(&bus, from).await?;
    let end = bus.journal_end().await?;

    let mut problems: Vec<String> = Vec::new();
    if checked.undecodable > 0 {
        problems.push(format!("{} batches can't be decoded", checked.undecodable));
    }
    for (minute, key) in checked.differing.iter().take(5) {
        problems.push(format!("{key} is not what the journal says of the minute {}", iso(minute * 60_000)));
    }
    let mut readers: BTreeMap<String, Value> = BTreeMap::new();
    for (name, cursor) in bus.readers().await? {
        let lag = end.behind(&cursor);
        if cursor.id > end.id && end.id != EntryId::MIN {
            problems.push(format!("{name} is ahead of the journal: it was lost or replaced"));
        }
        readers.insert(
            name,
            json!({
                "cursor": cursor.id.to_string(), "behind": lag, "required": cursor.is_required,
                "movedAt": iso(cursor.moved_ms),
            }),
        );
    }
    let is_good = problems.is_empty();
    let rows = readers.iter().map(|(name, reader)| {
        let text = |key: &str| reader[key].as_str().map_or_else(|| reader[key].to_string(), str::to_owned);
        vec![
            name.clone(),
            text("behind"),
            text("movedAt"),
            if reader["required"] == true { "holds retention" } else { "" }.into(),
        ]
    });
    let mut human = Human::new()
        .text(if is_good { "The journal and what was made of it agree." } else { "Something does not agree." })
        .pairs([
            ("since", iso(from.ms)),
            ("batches", checked.batches.to_string()),
            ("records", checked.records.to_string()),
            ("minutes compared", checked.compared.to_string()),
        ])
        .table(&["READER", "BEHIND", "MOVED", ""], rows);
    for problem in &problems {
        human = human.text(problem.clone());
    }
    let result = json!({
        "ok": is_good, "sinceIso": iso(from.ms), "batches": checked.batches, "records": checked.records,
        "undecodable": checked.undecodable, "minutesCompared": checked.compared,
        "differing": checked.differing.iter().map(|(_, key)| key).collect::<Vec<_>>(),
        "problems": problems, "readers": readers, "redis": redis_of(&bus, context).await,
    });
    let mut report = Report::new(result, human);
    if !is_good {
        report = report.unhealthy(Exit::Unhealthy).next(NextAction::new("journal replay", "Make the figures anew"));
    }
    Ok(report.next(NextAction::new("verify", "Check what became of every event")))
}
