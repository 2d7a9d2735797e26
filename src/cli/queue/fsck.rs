//! `joelclaw queue fsck`: is every accepted event in exactly one place? `--apply` mends what is not.

use std::time::Duration;

use serde_json::json;

use super::super::Context;
use super::super::output::{Failure, NextAction, Report};
use super::super::render::{self, Human};
use super::{bus, bus_to_change, redis_of};
use crate::config::units::duration_arg;
use crate::diagnose::Exit;
use crate::streams::fsck::WINDOW;

/// Findings shown to a person; the result has them all.
const SHOWN: usize = 20;
/// `--apply` only notes it in the journal, so that it is told once.
const LOST: &str = "lost";

/// Check that every accepted event is in exactly one place
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue fsck\n  joelclaw queue fsck --apply")]
pub struct Args {
    /// Mend what can be mended; without it nothing is changed
    #[arg(long)]
    apply: bool,
    /// How far back the journal is held against the lanes [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = duration_arg)]
    window: Option<Duration>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let bus = if args.apply { bus_to_change(context).await? } else { bus(context)? };
    let findings = bus.fsck(args.apply, args.window.unwrap_or(WINDOW)).await?;
    let repaired = findings.iter().filter(|finding| finding.repaired).count();
    let repairable = findings.iter().filter(|finding| finding.repairable && !finding.repaired).count();
    let open = findings.len() - repaired;

    let summary = match (findings.len(), open) {
        (0, _) => "Every accepted event is in exactly one place.".to_owned(),
        (all, 0) => format!("All {all} findings are mended."),
        (_, open) => format!("{open} findings are open, {repaired} mended, {repairable} can be mended."),
    };
    let rows = findings.iter().take(SHOWN).map(|finding| {
        let state = match (finding.repaired, finding.repairable, finding.kind) {
            (true, ..) => "mended",
            (false, _, LOST) => "gone for good",
            (false, true, _) => "can be mended",
            (false, false, _) => "by hand",
        };
        vec![finding.kind.into(), finding.place.clone(), render::cut(&finding.detail), state.into()]
    });
    let mut human = Human::new().text(summary);
    if !findings.is_empty() {
        human = human.table(&["KIND", "WHERE", "WHAT", ""], rows);
    }
    let result = json!({
        "ok": open == 0,
        "applied": args.apply,
        "count": findings.len(),
        "repaired": repaired,
        "open": open,
        "findings": findings,
        "redis": redis_of(&bus, context).await,
    });
    let mut report = Report::new(result, human).list("findings");
    if repairable > 0 && !args.apply {
        report = report.next(NextAction::new("queue fsck --apply", "Mend what can be mended"));
    }
    if open > 0 {
        report = report.unhealthy(Exit::Unhealthy);
    }
    Ok(report.next(NextAction::new("verify", "Hold the journal against the outcomes")))
}
