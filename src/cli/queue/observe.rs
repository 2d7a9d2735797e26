//! `joelclaw queue observe`: look at the queue as the observer does and tell what it would do. Reads only.
//!
//! With `--replay` it runs snapshots that were journaled, or that stand on standard input, through today's policy:
//! nobody is asked, recorded answers are used again.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render::{self, Human};
use super::since::{Since, iso};
use super::{bus, redis_of};
use crate::config::env_file::EnvFile;
use crate::config::{Config, ObserverMode};
use crate::diagnose::{Diagnose as _, Exit, chain};
use crate::model::{self, Models};
use crate::observer::actions::Action;
use crate::observer::controller::{Look, Observer};
use crate::observer::decide::{self, Reply, Step};
use crate::observer::flags::{self, Policy, Provider, Trigger};
use crate::observer::snapshot::Snapshot;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::records::Entry;
use crate::telemetry::latency::kind;
use crate::telemetry::projection::window;

/// Recent records shown.
const RECENT: usize = 5;

/// Look at the queue as the observer does, and tell what it would do; or run what it saw through today's policy
#[derive(Debug, Clone, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Nothing is ever applied by this command.\n\nExamples:\n  joelclaw queue observe\n  \
                  joelclaw queue observe --no-model\n  joelclaw queue observe --replay 24h\n  \
                  joelclaw queue observe --replay 1749990000000-0..1749993600000-0 --fail-on-change\n  \
                  joelclaw queue observe --replay - < snapshots.ndjson\n  \
                  joelclaw queue observe --replay 24h --policy now.env --policy next.env"
)]
pub struct Args {
    /// How far back the history goes
    #[arg(short = 'h', long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8_760))]
    hours: u64,
    /// How many records are sampled, at most 200; the counts are complete
    #[arg(long, default_value_t = 200)]
    limit: u64,
    /// From when on, instead of --hours: 15m, a time, or a stream id
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Ask no model: the rules alone
    #[arg(long)]
    no_model: bool,
    /// Look at every family that has anything, not only at the observed ones
    #[arg(long)]
    all_families: bool,
    /// Run recorded snapshots through today's policy: from..to of journal ids, a time to begin at, or - for standard input
    #[arg(long, value_name = "RANGE")]
    replay: Option<String>,
    /// Settings QUEUE_OBSERVER_* to decide by instead of those in force, as an env file; given twice, the two are compared
    #[arg(long, value_name = "FILE", requires = "replay")]
    policy: Vec<PathBuf>,
    /// Exit 1 when the replay decides otherwise than was recorded
    #[arg(long, requires = "replay")]
    fail_on_change: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

fn failed(error: crate::streams::redis::Error) -> Failure {
    let failure = Failure::new("QUEUE_OBSERVE_FAILED", error.exit(), chain(&error), error.fix());
    failure
        .next(NextAction::new("queue stats", "See what was dispatched"))
        .next(NextAction::new("queue depth", "See what waits"))
}

/// The policy of a configuration, for a look of an operator: whatever the service is set to.
fn for_a_look(config: &Config, is_asking: bool) -> Policy {
    let mut policy = Policy::from_config(config);
    policy.mode = ObserverMode::DryRun;
    if !is_asking {
        policy.providers.retain(|provider| *provider == Provider::Rules);
    }
    if policy.providers.is_empty() {
        policy.providers = vec![Provider::Rules];
    }
    policy
}

/// The policy in force, but for what the file says of it.
fn of_file(path: &Path, context: &Context) -> Result<Policy, Failure> {
    let file = EnvFile::read(path).map_err(|error| {
        let message = format!("{} can't be read: {error}", path.display());
        Failure::new(
            "INPUT_UNREADABLE",
            Exit::Usage,
            message,
            "Give a file with lines such as QUEUE_OBSERVER_MAX_TTL_MS=600000.",
        )
    })?;
    let mut sources = context.sources.clone();
    sources.flags.extend(file.values.into_iter().filter(|(key, _)| key.starts_with("QUEUE_OBSERVER_")));
    let config = Config::load(&sources)?;
    let wrong = flags::ignored(&config, None).into_iter().find(|one| sources.flags.contains_key(one.variable));
    match wrong {
        Some(one) => {
            let message = format!("{}: {}: {}", path.display(), one.variable, one.why);
            Err(Failure::new("CONFIG_INVALID_VALUE", Exit::Usage, message, "Correct the value in the file."))
        }
        None => Ok(for_a_look(&config, false)),
    }
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let is_asking = !args.no_model && args.replay.is_none();
    let mut policy = for_a_look(&context.config, is_asking);
    if let Some(range) = &args.replay {
        let compared = match args.policy.as_slice() {
            [] => (None, policy),
            [one] => (None, of_file(one, context)?),
            [one, other] => (Some(of_file(one, context)?), of_file(other, context)?),
            _ => {
                let message = "--policy is given more than twice";
                return Err(Failure::new("USAGE_ERROR", Exit::Usage, message, "Compare two policies at a time."));
            }
        };
        return replay(args, range, compared, context).await;
    }
    let since = Since::of(args.since.as_deref())?;
    let bus = bus(context)?;
    let now = bus.now_ms().await.map_err(failed)?;
    let from = since.unwrap_or(Since::Ago(args.hours * 3_600_000)).entry(&bus, now).await?;
    if args.all_families {
        let lanes = bus.lanes().await.map_err(failed)?;
        policy.observe.extend(lanes.into_iter().map(|lane| lane.family.to_string()));
        policy.observe.sort_unstable();
        policy.observe.dedup();
    }
    let stop = tokio_util::sync::CancellationToken::new();
    let models = Models::new(model::Settings::from_config(&context.config), stop);
    let observer = Observer::new(bus.clone(), policy, None, Some(models));
    let Look { snapshot, decision } = observer.look(Trigger::Cli, 1, false).await.map_err(failed)?;
    let history = history(&bus, args, from, since.is_some()).await.map_err(failed)?;
    let control = super::control::status_of(&bus, context).await.map_err(failed)?;
    let mut human = Human::new().text(&decision.findings.summary).pairs([
        (
            "decided by",
            format!(
                "{}{}",
                decision.provider,
                decision.rule.as_ref().map(|rule| format!(" {rule}")).unwrap_or_default()
            ),
        ),
        ("would apply", decision.would_apply.iter().map(told).collect::<Vec<_>>().join("; ")),
    ]);
    let rows = decision.suggested_actions.iter().map(|action| {
        vec![action.kind().to_owned(), action.family().unwrap_or_default().to_owned(), render::cut(action.reason())]
    });
    human = human.title("Suggested").table(&["ACTION", "FAMILY", "WHY"], rows);
    let suggested = decision.would_apply.first().cloned();
    let result = json!({
        "ok": true, "mode": "dry-run", "snapshot": snapshot, "decision": decision, "history": history,
        "control": control, "applied": false, "redis": redis_of(&bus, context).await,
    });
    let mut report = Report::new(result, human);
    let prefilled = |command: &str, text: &str| {
        let with = match &args.since {
            Some(_) => format!("{command} --since <since>"),
            None => format!("{command} --hours <hours>"),
        };
        let action = NextAction::new(with, text);
        match &args.since {
            Some(since) => action.param("since", Param::new().value(since.as_str())),
            None => action.param("hours", Param::new().value(args.hours)),
        }
    };
    report = report.next(prefilled("queue control status", "See what is held"));
    report = report.next(prefilled("queue stats", "See what was dispatched"));
    if let Some(action) = suggested {
        let verb = if matches!(action, Action::PauseFamily { .. }) { "pause" } else { "resume" };
        if let Some(family) = action.family() {
            let next = NextAction::new(format!("queue {verb} <family>"), "Do by hand what it suggests");
            report = report.next(next.param("family", Param::new().value(family).required()));
        }
    }
    Ok(report)
}

fn told(action: &Action) -> String {
    format!("{} {}", action.kind(), action.family().unwrap_or_default()).trim().to_owned()
}

/// What the journal says of the observer's decisions.
async fn history(
    bus: &Bus,
    args: &Args,
    from: EntryId,
    is_anchored: bool,
) -> Result<Value, crate::streams::redis::Error> {
    let told = window(bus, from).await?;
    let of = |action: &str| {
        told.count("action", |component, detail| {
            component == "queue-observe" && detail == format!("queue.observe.{action}")
        })
    };
    let (attempts, completed, failed, fallbacks) = (of("started"), of("completed"), of("failed"), of("fallback"));
    let terminal = completed + fallbacks;
    let records = records(bus, from, EntryId::MAX).await?;
    let metadata = |entry: &Entry, key: &str| entry.fact.metadata.get(key).cloned().unwrap_or_default();
    let view = |entry: &&Entry, keys: &[&str]| {
        let mut view = json!({ "at": iso(entry.id.ms) });
        keys.iter().for_each(|key| view[*key] = metadata(entry, key));
        view
    };
    let newest = |action: &'static str| {
        let mut found: Vec<&Entry> = records.iter().filter(|entry| entry.fact.action == action).collect();
        found.reverse();
        found
    };
    let decisions: Vec<Value> = newest("queue.observe.completed")
        .iter()
        .take(RECENT)
        .map(|entry| {
            view(
                entry,
                &[
                    "snapshotId",
                    "mode",
                    "queuePressure",
                    "downstreamState",
                    "summary",
                    "suggestedCount",
                    "finalCount",
                    "appliedCount",
                    "suggestedActionKinds",
                    "finalActionKinds",
                    "latencyMs",
                ],
            )
        })
        .collect();
    let all_fallbacks = newest("queue.observe.fallback");
    let recent: Vec<Value> = all_fallbacks
        .iter()
        .take(RECENT)
        .map(|entry| {
            let mut view =
                view(entry, &["snapshotId", "mode", "queuePressure", "downstreamState", "summary", "latencyMs"]);
            view["reason"] = metadata(entry, "fallbackReason");
            view
        })
        .collect();
    let mut by_reason: HashMap<String, u64> = HashMap::new();
    for entry in &all_fallbacks {
        let reason = metadata(entry, "fallbackReason");
        *by_reason.entry(reason.as_str().unwrap_or("unknown").to_owned()).or_default() += 1;
    }
    let mut by_reason: Vec<(String, u64)> = by_reason.into_iter().collect();
    by_reason.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    #[allow(clippy::cast_precision_loss)]
    let rate = (terminal > 0).then(|| (completed as f64 / terminal as f64 * 10_000.0).round() / 10_000.0);
    Ok(json!({
        "window": { "hours": args.hours, "sinceTimestamp": is_anchored.then_some(from.ms),
            "sinceIso": is_anchored.then(|| iso(from.ms)), "effectiveSinceIso": iso(from.ms),
            "found": records.len(), "sampled": (records.len() as u64).min(args.limit.clamp(1, 200)), "truncated": false,
            "filterBy": "action:queue.observe.*" },
        "attempts": attempts, "completed": completed, "failed": failed, "fallbacks": fallbacks, "terminal": terminal,
        "successRate": rate,
        "fallbackByReason": by_reason.iter().map(|(reason, count)| json!({ "reason": reason, "count": count })).collect::<Vec<_>>(),
        "latencyMs": told.summary(kind::OBSERVE, |_| true),
        "recentDecisions": decisions,
        "recentFallbacks": recent,
    }))
}

/// The observer's records in a range of the journal.
async fn records(bus: &Bus, from: EntryId, to: EntryId) -> Result<Vec<Entry>, crate::streams::redis::Error> {
    let (mut found, mut next) = (Vec::new(), Some(from));
    while let Some(from) = next {
        let page = bus.journal_page(from, to, 512).await?;
        next = page.last.map(EntryId::next);
        found.extend(page.entries.into_iter().filter(|entry| entry.fact.action.starts_with("queue.observe.")));
    }
    Ok(found)
}

/// A recorded snapshot and what was decided on it then.
struct Recorded {
    at: String,
    snapshot: Snapshot,
    then: Option<Then>,
}

struct Then {
    provider: String,
    rule: Option<String>,
    actions: Vec<Action>,
}

/// With a first policy its decisions are what the second one's are held against; else what was recorded is.
async fn replay(
    args: &Args,
    range: &str,
    (first, policy): (Option<Policy>, Policy),
    context: &Context,
) -> Result<Report, Failure> {
    let recorded = if range == "-" { from_stdin()? } else { from_journal(range, context).await? };
    let (mut rows, mut same, mut changed) = (Vec::new(), 0_u64, 0_u64);
    for Recorded { at, snapshot, then } in &recorded {
        let now = decide_again(snapshot, &policy, then.as_ref());
        let by_first = first.as_ref().map(|first| decide_again(snapshot, first, then.as_ref()));
        let is_same = match &by_first {
            Some(other) => (&other.suggested_actions, &other.would_apply) == (&now.suggested_actions, &now.would_apply),
            None => then.as_ref().is_none_or(|then| then.actions == now.suggested_actions),
        };
        same += u64::from(is_same);
        changed += u64::from(!is_same);
        let why = match (then, is_same) {
            _ if by_first.is_some() => {
                if is_same {
                    "both do the same"
                } else {
                    "the two policies differ"
                }
            }
            (None, _) => "nothing was recorded",
            (Some(_), true) => "the same actions",
            (Some(then), false) if then.rule != now.rule => "another rule matches",
            (Some(_), false) => "the same rule suggests other actions",
        };
        let short = |actions: &[Action]| actions.iter().map(told).collect::<Vec<_>>();
        rows.push(json!({
            "snapshotId": snapshot.snapshot_id,
            "at": at,
            "same": is_same,
            "recorded": then.as_ref().map(|then| json!({ "provider": then.provider, "rule": then.rule, "actions": then.actions })),
            "first": by_first.as_ref().map(|first| json!({ "provider": first.provider, "rule": first.rule,
                "actions": first.suggested_actions, "wouldApply": first.would_apply })),
            "now": { "wouldApply": now.would_apply, "provider": now.provider, "rule": now.rule, "actions": now.suggested_actions, "findings": now.findings },
            "why": why,
            "told": short(&now.suggested_actions),
        }));
    }
    let table = rows.iter().filter(|row| row["same"] == false).map(|row| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        vec![text(&row["at"]), text(&row["recorded"]["rule"]), text(&row["now"]["rule"]), text(&row["why"])]
    });
    let human = Human::new()
        .text(format!("{} snapshots: {same} decided as recorded, {changed} otherwise.", recorded.len()))
        .table(&["AT", "THEN", "NOW", "WHY"], table.collect::<Vec<_>>());
    let result = json!({ "ok": changed == 0 || !args.fail_on_change, "total": recorded.len(), "same": same, "changed": changed, "rows": rows });
    let report = Report::new(result, human)
        .list("rows")
        .next(NextAction::new("queue simulate", "Drive the policy through outages"));
    Ok(if args.fail_on_change && changed > 0 { report.unhealthy(Exit::Unhealthy) } else { report })
}

/// Today's decision. Where a model was asked then, what it suggested stands for its answer.
fn decide_again(snapshot: &Snapshot, policy: &Policy, then: Option<&Then>) -> decide::Decision {
    let was_model = then.filter(|then| {
        model::Provider::parse(&then.provider)
            .is_some_and(|one| one != model::Provider::Rules && one != model::Provider::None)
    });
    let mut policy = policy.clone();
    if was_model.is_some() {
        policy.providers.push(Provider::Model(model::Provider::Command));
    }
    let mut step = decide::begin(snapshot, &policy, Trigger::Cli);
    loop {
        match step {
            Step::Decided(decision) => return *decision,
            Step::Ask { at } => {
                let findings = crate::observer::findings::derive(snapshot);
                let actions = was_model.map(|then| then.actions.clone()).unwrap_or_default();
                let text = json!({ "findings": findings, "actions": actions }).to_string();
                let reply = Reply::Text { text, model: None, detail: None };
                step = decide::resume(at, &reply, snapshot, &policy, Trigger::Cli);
            }
        }
    }
}

fn from_stdin() -> Result<Vec<Recorded>, Failure> {
    let bad = |line: usize, error: String| {
        let message = format!("line {line} of standard input is no snapshot: {error}");
        Failure::new("INVALID_SNAPSHOT", Exit::Usage, message, "Give one snapshot as JSON a line.")
    };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| bad(0, error.to_string()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(n, line)| {
            let snapshot: Snapshot = serde_json::from_str(line).map_err(|error| bad(n + 1, error.to_string()))?;
            Ok(Recorded { at: snapshot.captured_at.clone(), snapshot, then: None })
        })
        .collect()
}

async fn from_journal(range: &str, context: &Context) -> Result<Vec<Recorded>, Failure> {
    let bus = bus(context)?;
    let now = bus.now_ms().await.map_err(failed)?;
    let (from, to) = match range.split_once("..") {
        Some((from, to)) => {
            let end = |text: &str| text.parse::<EntryId>().ok();
            let both = end(from).zip(if to.is_empty() { Some(EntryId::MAX) } else { end(to) });
            both.ok_or_else(|| {
                let message = format!("Invalid --replay value: {range}");
                Failure::new(
                    "INVALID_SINCE",
                    Exit::Usage,
                    message,
                    "Use for example --replay 24h, or two journal ids with .. between.",
                )
            })?
        }
        None => (Since::of(Some(range))?.unwrap_or(Since::Ago(86_400_000)).entry(&bus, now).await?, EntryId::MAX),
    };
    let records = records(&bus, from, to).await.map_err(failed)?;
    let id =
        |entry: &Entry| entry.fact.metadata.get("snapshotId").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut decisions: HashMap<String, Then> = HashMap::new();
    for entry in records.iter().filter(|entry| entry.fact.action == "queue.observe.completed") {
        let of = |key: &str| entry.fact.metadata.get(key);
        let actions = of("suggestedActions").cloned().and_then(|actions| serde_json::from_value(actions).ok());
        let then = Then {
            provider: of("provider").and_then(Value::as_str).unwrap_or_default().to_owned(),
            rule: of("rule").and_then(Value::as_str).map(str::to_owned),
            actions: actions.unwrap_or_default(),
        };
        decisions.insert(id(entry), then);
    }
    let snapshots = records.iter().filter(|entry| entry.fact.action == "queue.observe.snapshot");
    Ok(snapshots
        .filter_map(|entry| {
            let snapshot = serde_json::from_value(entry.fact.metadata.get("snapshot")?.clone()).ok()?;
            Some(Recorded { at: iso(entry.id.ms), snapshot, then: decisions.remove(&id(entry)) })
        })
        .collect())
}
