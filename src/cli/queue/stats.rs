//! `joelclaw queue stats`: depth, what was dispatched and how long it waited, triage and families, over any window.
//!
//! Percentiles are those of every event in the window, from the projection's minutes and, at both ends, from the journal
//! itself: no sample, and right while no service runs. Reads only.

use serde_json::{Value, json};

use super::super::Context;
use super::super::output::{Failure, NextAction, Param, Report};
use super::super::render::Human;
use super::since::{Since, iso};
use super::{bus, redis_of, stats_outcomes};
use crate::diagnose::{Diagnose as _, chain};
use crate::streams::bus::Bus;
use crate::streams::depth::Depth;
use crate::streams::look::{ListFilter, State};
use crate::telemetry::latency::{Sample, Summary, kind};
use crate::telemetry::projection::fold::Recent;
use crate::telemetry::projection::{Window, by_family, window_within};

/// A wait is on target below this, at the 95th percentile.
const TARGET_P95_MS: u64 = 5_000;
/// Recent records shown of each kind.
const RECENT: usize = 5;
/// Open entries whose present age counts in `withQueued`.
const QUEUED: usize = 10_000;

/// How long events waited and ran, what failed, what triage did
#[derive(Debug, Clone, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  joelclaw queue stats\n  joelclaw queue stats --since 15m\n  \
                  joelclaw queue stats --since 2026-03-07T19:33:05Z --by family\n  \
                  joelclaw queue stats --since drainer   # since the newest drainer started"
)]
pub struct Args {
    /// How far back
    #[arg(short = 'h', long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8_760))]
    hours: u64,
    /// From when on, instead of --hours: 15m, a time, or a stream id
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Percentiles of each family or priority as well
    #[arg(long, value_enum)]
    by: Option<By>,
    /// Taken for the sake of scripts; every event counts
    #[arg(long, short = 'n', hide = true)]
    limit: Option<u64>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    Family,
    Priority,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> Result<Report, Failure> {
    let since = Since::of(args.since.as_deref())?;
    let bus = bus(context)?;
    let failed = |error: crate::streams::redis::Error| {
        Failure::new("QUEUE_STATS_FAILED", error.exit(), chain(&error), error.fix())
    };
    let now = bus.now_ms().await?;
    let from = since.unwrap_or(Since::Ago(args.hours * 3_600_000)).entry(&bus, now).await?;
    let keep = context.config.telemetry.minute_retention;
    let (told, depth) = tokio::try_join!(window_within(&bus, from, keep), bus.depth()).map_err(failed)?;
    let queued = queued(&bus, &depth).await.map_err(failed)?;

    let mut result = told_of(&told, &depth, &queued);
    stats_outcomes::add(&mut result["triage"], &bus, from).await.map_err(failed)?;
    let effective = told.known_since_ms.max(from.ms);
    let anchor = since.map(|_| from.ms);
    result["window"] = json!({
        "hours": args.hours,
        "sinceTimestamp": anchor,
        "sinceIso": anchor.map(iso),
        "effectiveSinceIso": iso(effective),
        "found": told.count("action", |_, _| true) + told.count("started", |_, _| true) + told.count("append", |_, _| true),
        "truncated": false,
        "filterBy": "action:queue.*",
    });
    if let Some(by) = args.by {
        result["by"] = parts(&told, by);
    }
    result["redis"] = redis_of(&bus, context).await;

    let human = human(&told, &depth, from.ms, args.by);
    let mut report = Report::new(result, human);
    if let Some(recent) = told.state.failures.back()
        && let Some(id) = &recent.event_id
    {
        let inspect = NextAction::new("queue inspect <id>", "See what failed last");
        report = report.next(inspect.param("id", Param::new().value(id.clone()).required()));
    }
    if depth.dead > 0 {
        report = report.next(NextAction::new("queue dead list", "See why events died"));
    }
    Ok(report
        .next(NextAction::new("queue depth", "See what waits"))
        .next(NextAction::new("jobs status", "See whether all of it is healthy")))
}

/// How long what is still open and not paused has waited by now.
async fn queued(bus: &Bus, depth: &Depth) -> Result<Sample, crate::streams::redis::Error> {
    let mut sample = Sample::default();
    if depth.total == 0 {
        return Ok(sample);
    }
    let paused: Vec<&str> =
        depth.by_family.iter().filter(|family| family.paused).map(|family| family.family.as_str()).collect();
    let filter = ListFilter {
        family: None,
        state: None,
        priority: None,
        older_than: None,
        condition: None,
        limit: QUEUED,
        aging: None,
    };
    for entry in bus.list(&filter).await? {
        if entry.state == State::Waiting && !paused.contains(&entry.family.as_str()) {
            sample.record(entry.age_ms.saturating_mul(1000));
        }
    }
    Ok(sample)
}

fn told_of(told: &Window, depth: &Depth, queued: &Sample) -> Value {
    let any = |_: &str, _: &str| true;
    let (started, completed, failed) =
        (told.count("started", any), told.count("completed", any), told.count("failed", any));
    let terminal = completed + failed;
    let wait = told.sample(kind::WAIT, |_| true);
    let mut latency = json!(wait.summary());
    latency["targetP95"] = TARGET_P95_MS.into();
    #[allow(clippy::cast_precision_loss)]
    let is_within = wait.summary().p95.map(|p95| p95 <= TARGET_P95_MS as f64);
    latency["withinTarget"] = json!(is_within);
    let mut with_queued = wait;
    with_queued.merge(queued);
    let families: Vec<Value> = ranked(by_family(told.counts("started")), "name");
    let ends = |what: &'static str| told.summary(kind::DISPATCH, move |series| series.ends_with(what));
    json!({
        "ok": true,
        "source": match (told.minutes, told.folded) { (0, _) => "log", (_, 0) => "hdr", _ => "mixed" },
        "currentDepth": {
            "total": depth.total,
            "byPriority": depth.by_priority,
            "oldestTimestamp": depth.oldest_timestamp,
            "newestTimestamp": depth.newest_timestamp,
            "oldestAgeSeconds": depth.oldest_age_ms.map(|ms| ms / 1000),
            "dead": depth.dead,
        },
        "accepted": told.count("append", |_, outcome| outcome == "accepted"),
        "duplicates": told.count("append", |_, outcome| outcome == "duplicate"),
        "dispatches": {
            "started": started, "completed": completed, "failed": failed, "terminal": terminal,
            "successRate": rate(completed, terminal),
            "retried": told.count("retry", any), "dead": told.count("dead", any), "acked": told.count("acked", any),
        },
        "queueLatencyMs": latency,
        "activeWaitMs": told.summary(kind::WAIT_ACTIVE, |_| true),
        "withQueued": with_queued.summary(),
        "dispatchDurationMs": told.summary(kind::DISPATCH, |_| true),
        "dispatchOutcomesMs": { "completed": ends("|completed"), "failed": ends("|failed") },
        "e2eMs": told.summary(kind::E2E, |_| true),
        "promotions": told.count("promoted", any),
        "eventFamilies": families,
        "recentFailures": recent(told, told.state.failures.iter(), "error"),
        "deadByReason": ranked(by_detail(told, "dead"), "reason"),
        "triage": triage(told),
        "undecodable": told.count("undecodable", any),
    })
}

/// The counters of `family`, or of all.
struct Triaged<'a> {
    told: &'a Window,
    family: Option<&'a str>,
}

impl Triaged<'_> {
    fn ends(&self, what: &str) -> u64 {
        self.told.count("triage", |of, detail| self.is_meant(of) && detail.split('|').next() == Some(what))
    }

    fn of(&self, what: &str) -> u64 {
        self.told.count(what, |of, _| self.is_meant(of))
    }

    fn is_meant(&self, of: &str) -> bool {
        self.family.is_none_or(|family| family == of)
    }

    /// A failure always has its fallback, so it is no end of its own.
    fn attempts(&self) -> u64 {
        self.ends("started").max(self.ends("completed") + self.ends("fallback"))
    }

    /// Share of suggestions that say what sender and registry say.
    fn agreement(&self) -> Option<f64> {
        rate(self.of("triage_same_as_static"), self.ends("completed"))
    }
}

fn triage_families(told: &Window) -> Vec<Value> {
    let names: std::collections::BTreeSet<&str> = told.counts("triage").map(|(of, _, _)| of).collect();
    let mut rows: Vec<(u64, u64, Value)> = names
        .into_iter()
        .map(|name| {
            let of = Triaged { told, family: Some(name) };
            let (attempts, disagreements) = (of.attempts(), of.of("triage_disagreements"));
            let row = json!({
                "name": if name.is_empty() { "unknown" } else { name },
                "attempts": attempts, "completed": of.ends("completed"), "failed": of.ends("failed"),
                "fallbacks": of.ends("fallback"), "disagreements": disagreements,
                "appliedChanges": of.of("triage_applied"), "suggestedNotApplied": of.of("triage_not_applied"),
                "routeMismatches": of.of("triage_route_mismatches"),
                "enforceChanges": of.of("triage_enforced"), "agreement": of.agreement(),
            });
            (attempts, disagreements, row)
        })
        .filter(|(attempts, ..)| *attempts > 0)
        .collect();
    // By name already; the sort keeps that order among equals.
    rows.sort_by_key(|(attempts, disagreements, _)| std::cmp::Reverse((*attempts, *disagreements)));
    rows.into_iter().map(|(.., row)| row).collect()
}

fn triage(told: &Window) -> Value {
    let all_of = Triaged { told, family: None };
    let (completed, failed, fallbacks) = (all_of.ends("completed"), all_of.ends("failed"), all_of.ends("fallback"));
    let all = |what: &str| all_of.of(what);
    let terminal = completed + fallbacks;
    json!({
        "attempts": all_of.attempts(),
        "completed": completed, "failed": failed, "fallbacks": fallbacks, "terminal": terminal,
        "successRate": rate(completed, terminal),
        "disagreements": all("triage_disagreements"),
        "appliedChanges": all("triage_applied"),
        "suggestedNotApplied": all("triage_not_applied"),
        "routeMismatches": all("triage_route_mismatches"),
        "fallbackByReason": ranked(by_detail(told, "triage_fallback"), "reason"),
        "latencyMs": told.summary(kind::TRIAGE, |_| true),
        "families": triage_families(told),
        "enforceChanges": all("triage_enforced"),
        "agreement": all_of.agreement(),
        "recentMismatchSamples": recent(told, told.state.mismatches.iter(), "routeCheck"),
        "recentFallbacks": recent(told, told.state.fallbacks.iter(), "reason"),
    })
}

/// Share of `part` in `whole`, four digits; `None` of nothing.
fn rate(part: u64, whole: u64) -> Option<f64> {
    #[allow(clippy::cast_precision_loss)]
    (whole > 0).then(|| (part as f64 / whole as f64 * 10_000.0).round() / 10_000.0)
}

fn by_detail(told: &Window, what: &str) -> std::collections::BTreeMap<String, u64> {
    let mut reasons = std::collections::BTreeMap::new();
    for (_, reason, count) in told.counts(what) {
        *reasons.entry(reason.to_owned()).or_default() += count;
    }
    reasons
}

/// Most first, then by name.
fn ranked(counts: std::collections::BTreeMap<String, u64>, label: &str) -> Vec<Value> {
    let mut rows: Vec<(String, u64)> = counts.into_iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    rows.into_iter().map(|(name, count)| json!({ label: name, "count": count })).collect()
}

/// The latest first, of those in the window.
fn recent<'a>(told: &Window, all: impl DoubleEndedIterator<Item = &'a Recent>, label: &str) -> Vec<Value> {
    let rows = all.rev().filter(|recent| recent.at_ms >= told.from.ms).take(RECENT);
    rows.map(|recent| {
        let mut row = json!({
            "at": iso(recent.at_ms), "streamId": recent.stream_id, "eventId": recent.event_id,
            "eventName": recent.family, label: recent.text,
        });
        if let (Some(Value::Object(detail)), Some(row)) = (&recent.detail, row.as_object_mut()) {
            row.extend(detail.clone());
        }
        row
    })
    .collect()
}

/// The lanes of a window, grouped.
fn groups(told: &Window, by: By) -> Vec<String> {
    let lanes = told.table.samples.keys().filter(|(kind, _)| kind == kind::WAIT).map(|(_, lane)| group(lane, by));
    let unique: std::collections::BTreeSet<String> = lanes.collect();
    unique.into_iter().collect()
}

fn group(series: &str, by: By) -> String {
    let lane = series.split('|').next().unwrap_or_default();
    let (family, priority) = lane.rsplit_once(":p").unwrap_or((lane, ""));
    match by {
        By::Family => family.to_owned(),
        By::Priority => format!("P{priority}"),
    }
}

fn parts(told: &Window, by: By) -> Value {
    let rows = groups(told, by).into_iter().map(|name| {
        let of = |kind| told.summary(kind, |series| group(series, by) == name);
        json!({
            "name": name, "queueLatencyMs": of(kind::WAIT), "activeWaitMs": of(kind::WAIT_ACTIVE),
            "dispatchDurationMs": of(kind::DISPATCH), "e2eMs": of(kind::E2E),
        })
    });
    Value::Array(rows.collect())
}

fn human(told: &Window, depth: &Depth, from_ms: u64, by: Option<By>) -> Human {
    let any = |_: &str, _: &str| true;
    let (completed, failed) = (told.count("completed", any), told.count("failed", any));
    let success =
        rate(completed, completed + failed).map_or_else(|| "-".to_owned(), |rate| format!("{:.2} %", rate * 100.0));
    let mut human = Human::new().pairs([
        ("since", iso(from_ms)),
        ("waiting now", depth.total.to_string()),
        ("accepted", told.count("append", |_, outcome| outcome == "accepted").to_string()),
        ("completed", completed.to_string()),
        ("failed attempts", failed.to_string()),
        ("success", success),
        ("dead letters", told.count("dead", any).to_string()),
        ("promotions", told.count("promoted", any).to_string()),
    ]);
    let row = |name: &str, summary: &Summary| {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), duration);
        let mut row = vec![name.to_owned(), summary.count.to_string()];
        row.extend([summary.p50, summary.p95, summary.p99, summary.p999, summary.max].map(ms));
        row
    };
    let headers = ["", "COUNT", "P50", "P95", "P99", "P99.9", "MAX"];
    let rows = [
        ("wait", kind::WAIT),
        ("wait, pauses left out", kind::WAIT_ACTIVE),
        ("dispatch", kind::DISPATCH),
        ("append to end", kind::E2E),
    ];
    human = human.table(&headers, rows.map(|(name, kind)| row(name, &told.summary(kind, |_| true))));
    if let Some(by) = by {
        let rows: Vec<_> = groups(told, by)
            .into_iter()
            .map(|name| row(&name, &told.summary(kind::WAIT, |series| group(series, by) == name)))
            .collect();
        human = human.title("Waits").table(&headers, rows);
    }
    let families = ranked(by_family(told.counts("started")), "name");
    if !families.is_empty() {
        let text = |row: &Value, key: &str| row[key].as_str().map_or_else(|| row[key].to_string(), str::to_owned);
        let rows: Vec<_> =
            families.iter().take(10).map(|family| vec![text(family, "name"), text(family, "count")]).collect();
        human = human.title("Families").table(&["EVENT", "STARTED"], rows);
    }
    let failures: Vec<_> = recent(told, told.state.failures.iter(), "error");
    if !failures.is_empty() {
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let rows: Vec<_> =
            failures.iter().map(|row| vec![text(row, "at"), text(row, "eventName"), text(row, "error")]).collect();
        human = human.title("Failed last").table(&["AT", "EVENT", "ERROR"], rows);
    }
    human
}

/// `850 us`, `12.4 ms`, `3.2 s`, `5 min`.
fn duration(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} us", ms * 1000.0),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 120_000.0 => format!("{:.2} s", ms / 1000.0),
        ms => format!("{:.1} min", ms / 60_000.0),
    }
}
