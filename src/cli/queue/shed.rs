//! `joelclaw queue shed`: move what waits of a family to the dead letters, from where it can be redriven.

use std::time::Duration;

use serde_json::json;

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render::Human;
use super::act::operator;
use super::condition::Where;
use super::{bus, bus_to_change, redis_of};
use crate::config::units::parse_duration;
use crate::streams::family::Family;
use crate::streams::residue::Pass;

/// Move what waits of a family to the dead letters; nothing is lost
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  joelclaw queue shed content/updated --to-dead\n  \
                        joelclaw queue shed content/updated --to-dead --older-than 2h --apply --reason 'too old to matter'\n  \
                        joelclaw queue shed content/updated --to-dead --where 'event.data.draft' --apply --reason 'drafts'\n\n\
                        Undo: joelclaw queue dead redrive --family content/updated")]
pub struct Args {
    /// The event name
    family: Family,
    /// Where to: the dead letters are the only place
    #[arg(long, required = true)]
    to_dead: bool,
    /// Only what was appended at least so long ago
    #[arg(long, value_name = "DURATION", value_parser = age)]
    older_than: Option<Duration>,
    #[command(flatten)]
    condition: Where,
    /// At most so many
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Do it; without this it is only counted
    #[arg(long)]
    apply: bool,
    /// Why; recorded
    #[arg(long)]
    reason: Option<String>,
    /// Who, instead of the command, user and host
    #[arg(long)]
    actor: Option<String>,
}

fn age(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a duration such as 2h".into())
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let pass = Pass {
        older_than: args.older_than.unwrap_or_default(),
        family: Some(args.family.clone()),
        condition: args.condition.condition(),
        limit: args.limit as usize,
    };
    let family = &args.family;
    if !args.apply {
        let bus = bus(context)?;
        let preview = bus.residue(&pass, None).await?;
        let count = preview.candidates.len();
        let text =
            format!("{count} entries of {family} would become dead letters. Add --apply --reason <text> to do it.");
        let result = json!({ "ok": true, "family": family, "applied": false, "matched": count, "liveLeases": preview.live_leases,
            "redis": redis_of(&bus, context).await });
        let mut command = "queue shed <family> --to-dead".to_owned();
        let older_than = args.older_than.map(|age| format!("{}ms", age.as_millis()));
        let narrowed = [("older-than", older_than), ("where", args.condition.text().map(str::to_owned))];
        let narrowed = narrowed.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let narrowed: Vec<(&str, String)> = narrowed.collect();
        for (name, _) in &narrowed {
            command.push_str(&format!(" --{name} <{name}>"));
        }
        let apply = NextAction::new(format!("{command} --apply --reason <text>"), "Do it");
        let mut apply = apply.param("family", Param::new().value(family.as_str()).required());
        for (name, value) in narrowed {
            apply = apply.param(name, Param::new().value(value).required());
        }
        let apply = apply.param("text", Param::new().required());
        return Ok(Report::new(result, Human::new().text(text)).next(apply));
    }
    let operator = operator(args.reason.as_deref(), args.actor.as_deref(), context)?;
    let bus = bus_to_change(context).await?;
    let preview = bus.residue(&pass, None).await?;
    let done = bus.shed(&preview.candidates, &operator).await?;
    let text = format!(
        "{} entries of {family} are dead letters now; {} are being worked on and stay.",
        done.shed, done.leased
    );
    let result = json!({ "ok": true, "family": family, "applied": true, "matched": preview.candidates.len(),
        "shed": done.shed, "leased": done.leased, "missing": done.missing, "redis": redis_of(&bus, context).await });
    let undo = NextAction::new("queue dead redrive --family <family> --apply", "Bring them back")
        .param("family", Param::new().value(family.as_str()).required());
    Ok(Report::new(result, Human::new().text(text)).next(undo).next(NextAction::new("queue dead list", "See them")))
}
