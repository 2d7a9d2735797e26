//! The fold: journal batches in, samples and counts out. Pure: it knows no clock and no Redis, only ids and records, so
//! the same batches give the same bytes whenever and however often they are folded.

use std::collections::{BTreeMap, HashSet, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::latency::{Sample, kind, minute_of};
use super::super::posted;
use crate::streams::entry_id::EntryId;
use crate::streams::family::CANARY;
use crate::streams::journal::{self, Fields, Part};
use crate::streams::lane::family_of;
use crate::streams::records::{Dispatches, Enqueue, Fact};

/// Pauses of one family that are remembered.
const PAUSES: usize = 512;
/// Families with remembered pauses.
const PAUSED_FAMILIES: usize = 4096;
/// Families whose last dispatch and failures are remembered.
const FAMILIES: usize = 512;
/// Failing events of one family that are told apart.
const FAILING: usize = 8;
/// Recent samples of each kind that are remembered.
const RECENT: usize = 25;
/// Clocks that agree within this agree.
const CLOCK_MS: u64 = 100;
/// Above, histograms tell this.
const LONGEST_MS: u64 = 86_400_000;
/// A record's text is remembered up to here.
const TEXT: usize = 300;

/// Samples by kind and series, and counts.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Kind and series → durations.
    pub samples: BTreeMap<(String, String), Sample>,
    /// Counter → number. Names are `<what>|<family, lane or function>|<detail>`.
    pub counts: BTreeMap<String, u64>,
    /// Samples that nobody stores: metrics hear of them, once.
    pub passing: BTreeMap<(&'static str, String), Sample>,
}

impl Table {
    /// Adds all of another table that is stored.
    pub fn merge(&mut self, other: &Self) {
        for (key, sample) in &other.samples {
            self.samples.entry(key.clone()).or_default().merge(sample);
        }
        for (name, count) in &other.counts {
            *self.counts.entry(name.clone()).or_default() += count;
        }
    }

    fn record(&mut self, kind: &str, series: &str, us: u64) {
        self.samples.entry((kind.to_owned(), series.to_owned())).or_default().record(us);
    }

    fn pass(&mut self, kind: &'static str, series: &str, us: u64) {
        self.passing.entry((kind, series.to_owned())).or_default().record(us);
    }

    fn count(&mut self, name: String, by: u64) {
        *self.counts.entry(name).or_default() += by;
    }
}

/// A failure, a mismatch or a fallback that `queue stats` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recent {
    /// When, ms.
    pub at_ms: u64,
    /// The journal batch.
    pub id: String,
    /// The event name.
    pub family: String,
    /// The event.
    pub event_id: Option<String>,
    /// The entry.
    pub stream_id: Option<String>,
    /// What went wrong, or why.
    pub text: String,
    /// What was suggested and what came of it; only of triage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Value>,
}

/// Name → when each pause began and ended, ms.
type PausesByName = BTreeMap<String, Vec<(u64, u64)>>;

/// What the fold must remember from batch to batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Family → when it was paused, ms: from, to. A pause that is in force ends at its expiry, unless it is ended before.
    pauses: PausesByName,
    /// The same of beginnings of names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    prefix_pauses: PausesByName,
    /// The last batch that it knows of.
    seen: (u64, u64),
    /// The minute of the first.
    pub(super) first_minute: Option<u64>,
    /// What is folded is older than what is remembered: it changes nothing here.
    #[serde(skip)]
    is_past: bool,
    /// Failed dispatches, oldest first.
    pub failures: VecDeque<Recent>,
    /// Triage that suggested something else than what was done.
    pub mismatches: VecDeque<Recent>,
    /// Triage that could not decide.
    pub fallbacks: VecDeque<Recent>,
    /// Family → the last distinct events that failed downstream, with when, ms.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failing: BTreeMap<String, VecDeque<(u64, String)>>,
    /// Family → when something of it last started, ms.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dispatched: BTreeMap<String, u64>,
    /// Action → its last record, of the few actions that [`LAST`] names.
    pub last: BTreeMap<String, Recent>,
}

/// Actions whose last record says how things stand.
const LAST: [&str; 5] = [
    "queue.observe.completed",
    "queue.observe.fallback",
    "queue.drainer.started",
    "queue.drainer.stopped",
    "queue.drainer.stalled",
];

impl State {
    /// Reads what [`State::encode`] wrote; what can't be read is begun anew.
    #[must_use]
    pub fn decode(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The state as text. The same state gives the same text.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For how many ms of `from..to` the family was paused.
    fn paused_ms(&self, family: &str, from: u64, to: u64) -> u64 {
        let overlap = |(start, end): &(u64, u64)| (*end).min(to).saturating_sub((*start).max(from));
        self.pauses_of(family).map(overlap).sum::<u64>().min(to.saturating_sub(from))
    }

    /// When a family was paused, by its own name or by the beginning of it.
    fn pauses_of(&self, family: &str) -> impl Iterator<Item = &(u64, u64)> {
        let by_prefix = self.prefix_pauses.iter().filter(move |(prefix, _)| family.starts_with(prefix.as_str()));
        self.pauses.get(family).into_iter().flatten().chain(by_prefix.flat_map(|(_, pauses)| pauses))
    }

    /// Something of `family` started.
    fn dispatched(&mut self, family: &str, at: u64) {
        if self.is_past {
            return;
        }
        if let Some(last) = self.dispatched.get_mut(family) {
            *last = at.max(*last);
        } else if self.dispatched.len() < FAMILIES {
            self.dispatched.insert(family.to_owned(), at);
        }
    }

    /// An event of `family` failed downstream.
    fn failed(&mut self, family: &str, event_id: &str, at: u64) {
        if self.is_past || (self.failing.len() >= FAMILIES && !self.failing.contains_key(family)) {
            return;
        }
        let events = self.failing.entry(family.to_owned()).or_default();
        events.retain(|(_, id)| id != event_id);
        events.push_back((at, event_id.to_owned()));
        if events.len() > FAILING {
            events.pop_front();
        }
    }

    fn pauses_named<'a>(&mut self, name: &'a str) -> (&'a str, &mut PausesByName) {
        match name.strip_suffix('*') {
            Some(prefix) => (prefix, &mut self.prefix_pauses),
            None => (name, &mut self.pauses),
        }
    }

    fn pause_begins(&mut self, family: &str, at: u64, until: u64) {
        if self.is_past {
            return;
        }
        let (name, map) = self.pauses_named(family);
        if map.len() >= PAUSED_FAMILIES && !map.contains_key(name) {
            return;
        }
        let pauses = map.entry(name.to_owned()).or_default();
        match pauses.last_mut() {
            // A pause that replaces another goes on with it.
            Some((_, end)) if *end > at => *end = until,
            _ => pauses.push((at, until)),
        }
        if pauses.len() > PAUSES {
            pauses.remove(0);
        }
    }

    fn pause_ends(&mut self, family: &str, at: u64) {
        if self.is_past {
            return;
        }
        let (name, map) = self.pauses_named(family);
        if let Some((start, end)) = map.get_mut(name).and_then(|pauses| pauses.last_mut()) {
            *end = (*end).min(at.max(*start));
        }
    }
}

/// What a control record is about: `pause`, `resume`, `reprioritize`, `batch`, ….
fn control_kind(fact: &Fact) -> &str {
    let kind = fact.metadata.get("action").and_then(|action| action.get("kind")).and_then(Value::as_str);
    kind.map_or("pause", |kind| kind.trim_end_matches("_family"))
}

/// Adds to one of the lists of recent records.
fn remember(is_past: bool, list: &mut VecDeque<Recent>, recent: Recent) {
    if is_past {
        return;
    }
    list.push_back(recent);
    if list.len() > RECENT {
        list.pop_front();
    }
}

/// Batches folded by minute.
#[derive(Debug, Default)]
pub struct Fold {
    /// What it remembers.
    pub state: State,
    /// Minute → what happened in it.
    pub minutes: BTreeMap<u64, Table>,
}

impl Fold {
    /// A fold that goes on from `state`.
    #[must_use]
    pub fn from_state(state: State) -> Self {
        Self { state, minutes: BTreeMap::new() }
    }

    /// All minutes together.
    #[must_use]
    pub fn total(&self) -> Table {
        let mut total = Table::default();
        self.minutes.values().for_each(|table| total.merge(table));
        total
    }

    /// Folds one journal batch.
    pub fn take(&mut self, id: EntryId, fields: &Fields) {
        let Self { state, minutes } = self;
        state.is_past = (id.ms, id.seq) <= state.seen;
        if !state.is_past {
            state.seen = (id.ms, id.seq);
            state.first_minute.get_or_insert(minute_of(id.ms));
        }
        let table = minutes.entry(minute_of(id.ms)).or_default();
        let is_read = journal::walk(id, fields, &mut |part| match part {
            Part::Enqueue(batch, lines) => take_enqueue(batch, lines, table),
            Part::Dispatches { batch, ended, refused } => {
                take_dispatches(batch, ended, refused, state, table);
            }
            Part::Fact(fact) => take_fact(id, &fact, state, table),
        });
        if !is_read {
            table.count("undecodable||".into(), 1);
        }
    }
}

fn take_enqueue(batch: &Enqueue, lines: &[&str], table: &mut Table) {
    let lanes = batch.rows.iter().flat_map(|row| std::iter::repeat_n((usize::from(row.0), row.4 != 0), row.3.len()));
    // Neighbours are mostly alike: one look-up for a run of them.
    let mut run: Option<(usize, &'static str, u64)> = None;
    let tell = |(lane, outcome, count): (usize, &str, u64), table: &mut Table| {
        let lane = batch.lanes.get(lane).map_or("", String::as_str);
        if family_of(lane) == CANARY {
            return;
        }
        table.count(format!("append|{lane}|{outcome}"), count);
    };
    for ((lane, is_unrouted), line) in lanes.zip(lines) {
        let outcome = match line.as_bytes().first() {
            Some(b'L') => "scheduled",
            Some(b'i' | b'w') => "duplicate",
            _ => "accepted",
        };
        if is_unrouted && outcome == "accepted" {
            let family = family_of(batch.lanes.get(lane).map_or("", String::as_str));
            table.count(format!("unmatched|{family}|"), 1);
        }
        match &mut run {
            Some((of, was, count)) if *of == lane && *was == outcome => *count += 1,
            _ => {
                if let Some(run) = run.replace((lane, outcome, 1)) {
                    tell(run, table);
                }
            }
        }
    }
    if let Some(run) = run {
        tell(run, table);
    }
}

fn take_dispatches(batch: &Dispatches, ended: bool, refused: &[&str], state: &mut State, table: &mut Table) {
    let refused: HashSet<&str> = refused.iter().copied().collect();
    let mut totals: BTreeMap<(u16, u16), (u64, u64)> = BTreeMap::new();
    // Samples of a lane are looked up once for a run of its rows.
    let mut rows = batch.rows.as_slice();
    while let Some(first) = rows.first() {
        let run = rows.iter().take_while(|row| row.lane == first.lane).count();
        let (of_lane, rest) = rows.split_at(run);
        rows = rest;
        let lane = batch.lanes.get(usize::from(first.lane)).map_or("", String::as_str);
        let family = family_of(lane);
        if family == CANARY {
            continue;
        }
        let has_pauses = state.pauses_of(family).next().is_some();
        let (mut waits, mut active, mut ends, mut whole) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in of_lane {
            let total = totals.entry((row.lane, row.handler)).or_default();
            if row.started_ms + CLOCK_MS < row.ms {
                table.count("clock_negative||".into(), 1);
            }
            if row.wait_ms > LONGEST_MS {
                table.count("saturated||".into(), 1);
            }
            if !row.start_known {
                total.0 += 1;
                if row.attempt <= 1 {
                    let paused = match has_pauses {
                        true => state.paused_ms(family, row.started_ms.saturating_sub(row.wait_ms), row.started_ms),
                        false => 0,
                    };
                    waits.push(row.wait_ms.saturating_mul(1000));
                    active.push(row.wait_ms.saturating_sub(paused).saturating_mul(1000));
                } else {
                    table.count(format!("retried|{lane}|"), 1);
                }
                if let Some(from) = row.promoted_from {
                    table.count(format!("promoted|{lane}|P{from}"), 1);
                }
            }
            let is_refused = || {
                !refused.is_empty()
                    && refused.contains(format!("{lane}|{}", EntryId { ms: row.ms, seq: row.seq }).as_str())
            };
            if ended && !is_refused() {
                total.1 += 1;
                ends.push(row.duration_us);
                whole.push(row.wait_ms.saturating_mul(1000).saturating_add(row.duration_us));
            }
        }
        if let Some(last) = of_lane.iter().filter(|row| !row.start_known).map(|row| row.started_ms).max() {
            state.dispatched(family, last);
        }
        let done = format!("{lane}|completed");
        let all: [(&str, &str, Vec<u64>); 4] = [
            (kind::WAIT, lane, waits),
            (kind::WAIT_ACTIVE, lane, active),
            (kind::DISPATCH, &done, ends),
            (kind::E2E, lane, whole),
        ];
        for (kind, series, values) in all {
            if !values.is_empty() {
                let sample = table.samples.entry((kind.to_owned(), series.to_owned())).or_default();
                values.into_iter().for_each(|us| sample.record(us));
            }
        }
    }
    for ((lane, handler), (started, completed)) in totals {
        let lane = batch.lanes.get(usize::from(lane)).map_or("", String::as_str);
        let handler = batch.handlers.get(usize::from(handler)).map_or("", |(kind, _)| kind.as_str());
        for (what, count) in [("started", started), ("completed", completed)] {
            if count > 0 {
                table.count(format!("{what}|{lane}|{handler}"), count);
            }
        }
    }
}

fn take_fact(id: EntryId, fact: &Fact, state: &mut State, table: &mut Table) {
    let text = |key: &str| fact.metadata.get(key).and_then(Value::as_str).unwrap_or_default();
    let lane = fact.lane.as_deref().unwrap_or_default();
    let family = ["eventName", "family", "queueEventName"].into_iter().map(text).find(|name| !name.is_empty());
    let family = family.unwrap_or_else(|| family_of(lane));
    if family == CANARY {
        return;
    }
    let us = |key: &str| {
        let ms = fact.metadata.get(key).and_then(Value::as_f64).filter(|ms| *ms >= 0.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        ms.map(|ms| (ms * 1000.0).round() as u64)
    };
    let recent = |text: &str, detail: Option<Value>| Recent {
        at_ms: id.ms,
        id: id.to_string(),
        family: family.to_owned(),
        event_id: fact.event_id.clone(),
        stream_id: fact.stream_id.clone(),
        text: text.chars().take(TEXT).collect(),
        detail,
    };
    table.count(format!("action|{}|{}", fact.component, fact.action), 1);
    if fact.action == posted::ACTION {
        return;
    }
    table.count(format!("level|{}|", fact.level.as_str()), 1);
    if !fact.success {
        table.count(format!("failure|{}|", fact.component), 1);
    }
    if LAST.contains(&&*fact.action) && !state.is_past {
        let of = recent(fact.error.as_deref().unwrap_or_default(), Some(Value::Object(fact.metadata.clone())));
        state.last.insert(fact.action.to_string(), of);
    }
    match &*fact.action {
        "queue.dispatch.failed" => {
            let is_final = fact.metadata.get("final").and_then(Value::as_bool) == Some(true);
            let handler = text("handlerType");
            table.count(format!("failed|{lane}|{handler}"), 1);
            // How a dispatch ended: each has one end.
            table.count(format!("{}|{lane}|{handler}", if is_final { "gave_up" } else { "failed_once" }), 1);
            let took = us("durationMs");
            if let Some(took) = took {
                table.record(kind::DISPATCH, &format!("{lane}|failed"), took);
            }
            if is_final {
                if let (Some(wait), Some(took)) = (us("waitTimeMs"), took) {
                    table.record(kind::E2E, lane, wait.saturating_add(took));
                }
            } else {
                table.count(format!("retry|{lane}|{}", retry_reason(fact)), 1);
            }
            // Older records don't say: a failure is then one of the target.
            if fact.metadata.get("downstream").and_then(Value::as_bool) != Some(false) {
                table.count(format!("downstream|{lane}|"), 1);
                state.failed(family, fact.event_id.as_deref().unwrap_or_default(), id.ms);
            }
            let error = fact.error.as_deref().unwrap_or_default();
            remember(state.is_past, &mut state.failures, recent(error, None));
        }
        "queue.dead" => table.count(format!("dead|{lane}|{}", text("reason")), 1),
        "queue.expired" => table.count(format!("dead|{lane}|expired"), 1),
        "queue.ack" => table.count(format!("acked|{lane}|"), 1),
        "queue.unrouted" => table.count(format!("unrouted|{family}|"), 1),
        "queue.drainer.stalled" => table.count(format!("stalled||{}", text("reason")), 1),
        "queue.control.applied" => {
            let what = control_kind(fact);
            if text("sourceType") == "observer" {
                table.count(format!("observer_action|{what}_family|applied"), 1);
            }
            table.count(format!("control|{what}|{}|applied", text("sourceType")), 1);
            if what == "pause" {
                let number = |key: &str| fact.metadata.get(key).and_then(Value::as_u64);
                state.pause_begins(
                    family,
                    number("appliedAtMs").unwrap_or(id.ms),
                    number("expiresAtMs").unwrap_or(u64::MAX),
                );
            } else if what == "resume" {
                state.pause_ends(family, id.ms);
            }
        }
        "queue.control.expired" => {
            let source = fact.metadata.get("source").and_then(Value::as_str).unwrap_or("manual");
            let kind = fact.metadata.get("kind").and_then(Value::as_str).unwrap_or("pause_family");
            let what = kind.trim_end_matches("_family");
            table.count(format!("control|{what}|{source}|expired"), 1);
            if what == "pause" {
                // It ended when its time was up, not when somebody noticed.
                let ended = fact.metadata.get("expiresAtMs").and_then(Value::as_u64).unwrap_or(id.ms);
                state.pause_ends(family, ended.min(id.ms));
            }
        }
        "queue.control.rejected" => {
            let what = control_kind(fact);
            table.count(format!("control|{what}|{}|rejected", text("sourceType")), 1);
            if text("sourceType") == "observer" {
                table.count(format!("observer_action|{what}_family|rejected"), 1);
            }
        }
        action if action.starts_with("queue.triage.") => {
            take_triage(action, family, fact, state, table, &recent, us("latencyMs").or_else(|| us("duration_ms")));
        }
        action if action.starts_with("queue.observe.") => {
            let outcome = action.trim_start_matches("queue.observe.");
            table.count(format!("observe|{}|{outcome}", text("mode")), 1);
            take_observe(outcome, fact, &recent, us("latencyMs").or_else(|| us("duration_ms")), state, table);
            // A failed pass is told once more as a fallback, with the same time.
            if matches!(outcome, "completed" | "fallback")
                && let Some(took) = us("latencyMs").or_else(|| us("duration_ms"))
            {
                table.record(kind::OBSERVE, text("mode"), took);
            }
        }
        action if action.starts_with("function.") => {
            let function =
                ["function", "functionId", "functionSlug"].into_iter().map(text).find(|name| !name.is_empty());
            let what = action.trim_start_matches("function.");
            let function = function.unwrap_or_default();
            table.count(format!("function|{function}|{what}"), 1);
            let started = fact.metadata.get("startedAtMs").and_then(Value::as_u64);
            if let (true, Some(started)) = (what.starts_with("run."), started) {
                table.pass(kind::RUN, function, id.ms.saturating_sub(started).saturating_mul(1000));
            }
            if let Some(outcome) = what.strip_prefix("step.").filter(|outcome| *outcome != "errored") {
                table.count(format!("step|{function}|{}|{outcome}", op_of(text("op"))), 1);
                if let Some(took) = us("durationMs") {
                    table.pass(kind::STEP, function, took);
                }
            }
        }
        "telemetry.sink.failed" if fact.metadata.get("trimmed") == Some(&Value::Bool(true)) => {
            table.count(format!("trimmed|{}|", text("sink")), 1);
        }
        _ => {}
    }
}

/// A step's kind as metrics name it, from the protocol's name.
fn op_of(op: &str) -> &'static str {
    match op {
        "StepRun" | "Step" | "StepError" | "StepFailed" => "run",
        "Sleep" | "sleep" => "sleep",
        "WaitForEvent" | "wait" => "waitForEvent",
        "InvokeFunction" | "invoke" => "invoke",
        "WaitForSignal" | "signal" => "waitForSignal",
        "Gateway" | "AIGateway" => "gateway",
        _ => "other",
    }
}

/// One pass of the observer: its end, what it suggested, and how long it took.
fn take_observe(
    outcome: &str,
    fact: &Fact,
    recent: &impl Fn(&str, Option<Value>) -> Recent,
    took: Option<u64>,
    state: &mut State,
    table: &mut Table,
) {
    let text = |key: &str| fact.metadata.get(key).and_then(Value::as_str).unwrap_or_default();
    if !matches!(outcome, "completed" | "fallback" | "failed" | "skipped") {
        return;
    }
    let trigger = if text("trigger") == "cron" { "cron" } else { "manual" };
    let is_shortcut = outcome == "completed" && text("provider") == "shortcut";
    let end = if is_shortcut { "short_circuit" } else { outcome };
    table.count(format!("observer|{}|{trigger}|{end}", text("mode")), 1);
    if let Some(took) = took.filter(|_| outcome != "failed") {
        table.pass(kind::OBSERVE, trigger, took);
    }
    for (disposition, whole, kinds) in
        [("suggested", "suggestedActions", "suggestedActionKinds"), ("final", "finalActions", "finalActionKinds")]
    {
        // The kinds alone name each once.
        let whole = fact.metadata.get(whole).and_then(Value::as_array);
        let actions = whole.or_else(|| fact.metadata.get(kinds).and_then(Value::as_array));
        for action in actions.into_iter().flatten() {
            if let Some(kind) = action.get("kind").unwrap_or(action).as_str() {
                table.count(format!("observer_action|{kind}|{disposition}"), 1);
            }
        }
    }
    // A failed pass is told once more as a fallback.
    if outcome != "failed" && !state.is_past {
        state.last.insert(format!("observer|{trigger}"), recent(end, None));
    }
}

fn retry_reason(fact: &Fact) -> &'static str {
    let error = fact.error.as_deref().unwrap_or_default();
    match fact.metadata.get("status").and_then(Value::as_i64) {
        Some(500..=599) => "http_5xx",
        Some(400..=499) => "http_4xx",
        _ if error.contains("did not end within") || error.contains("timed out") => "timeout",
        _ if error.contains("connect") => "connect",
        _ => "handler",
    }
}

fn take_triage(
    action: &str,
    family: &str,
    fact: &Fact,
    state: &mut State,
    table: &mut Table,
    recent: &impl Fn(&str, Option<Value>) -> Recent,
    took: Option<u64>,
) {
    let value = |key: &str| fact.metadata.get(key).filter(|value| !value.is_null());
    let text = |key: &str| value(key).and_then(Value::as_str).unwrap_or_default();
    let outcome = action.trim_start_matches("queue.triage.");
    table.count(format!("triage|{family}|{outcome}|{}", text("mode")), 1);
    if outcome == "fallback" {
        let reason = text("fallbackReason");
        table.count(format!("triage_fallback|{family}|{reason}"), 1);
        let keys = ["family", "mode", "finalPriority", "routeCheck", "latencyMs"];
        let detail = keys.into_iter().map(|key| (key.to_owned(), value(key).cloned().unwrap_or_default()));
        remember(state.is_past, &mut state.fallbacks, recent(reason, Some(Value::Object(detail.collect()))));
    }
    if outcome == "completed" {
        let differs = |a: &str, b: &str| value(a).is_some() && value(a) != value(b);
        let is_mismatch = text("routeCheck") == "mismatch";
        let priority = differs("suggestedPriority", "finalPriority");
        let dedup = differs("suggestedDedupKey", "finalDedupKey");
        let base_priority = differs("suggestedPriority", "baselinePriority");
        let base_dedup = differs("suggestedDedupKey", "baselineDedupKey");
        let is_applied = value("applied").and_then(Value::as_bool) == Some(true);
        for (is_so, what) in [
            (priority || dedup || is_mismatch, "disagreements"),
            (!(priority || dedup || is_mismatch), "agreements"),
            (is_applied, "applied"),
            (!is_applied && (priority || dedup || is_mismatch), "not_applied"),
            // In enforce suggested is final: what triage did shows only against the static values.
            (is_applied && text("mode") == "enforce", "enforced"),
            (!base_priority && !base_dedup, "same_as_static"),
            (is_mismatch, "route_mismatches"),
        ] {
            if is_so {
                table.count(format!("triage_{what}|{family}|{}", text("mode")), 1);
            }
        }
        if priority || dedup || is_mismatch {
            let keys = [
                "family",
                "mode",
                "suggestedPriority",
                "finalPriority",
                "suggestedDedupKey",
                "finalDedupKey",
                "routeCheck",
                "applied",
            ];
            let detail = keys.into_iter().map(|key| (key.to_owned(), value(key).cloned().unwrap_or_default()));
            remember(
                state.is_past,
                &mut state.mismatches,
                recent(text("routeCheck"), Some(Value::Object(detail.collect()))),
            );
        }
    }
    // A failure is followed by its fallback, which has the same time.
    if matches!(outcome, "completed" | "fallback")
        && let Some(took) = took
    {
        table.record(kind::TRIAGE, family, took);
        table.pass(kind::TRIAGE, text("mode"), took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::journal::encode;
    use crate::streams::records::{DispatchRow, EnqueueRow, PackedId, Record};

    fn fields(records: &[Record]) -> Fields {
        Fields { b: Some(encode(records)), ..Fields::default() }
    }

    fn at(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    fn dispatched(wait_ms: u64, started_ms: u64, attempt: u32) -> Record {
        let row = DispatchRow {
            lane: 0,
            ms: started_ms - wait_ms,
            seq: 0,
            id: PackedId("e".into()),
            handler: 0,
            attempt,
            wait_ms,
            started_ms,
            duration_us: 1500,
            promoted_from: Some(3),
            start_known: false,
            trace: None,
        };
        Record::Dispatch(Dispatches {
            lanes: vec!["a/b:p1".into()],
            handlers: vec![("local".into(), "x".into())],
            rows: vec![row],
        })
    }

    fn control(kind: &str) -> Record {
        let fact =
            Fact::new("queue-control", "queue.control.applied").with("family", "a/b").with("sourceType", "manual");
        Record::Fact(fact.with("action", serde_json::json!({ "kind": kind, "family": "a/b" })))
    }

    #[test]
    fn a_pause_is_no_latency() {
        let mut fold = Fold::default();
        fold.take(at(100_000), &fields(&[control("pause_family")]));
        fold.take(at(130_000), &fields(&[control("resume_family")]));
        // Waited from 90 s to 140 s, of which 30 s were a pause.
        fold.take(at(140_001), &fields(&[dispatched(50_000, 140_000, 1)]));
        let total = fold.total();
        let max = |kind: &str| total.samples[&(kind.to_owned(), "a/b:p1".to_owned())].summary().max;
        assert_eq!((max("wait"), max("wait_active")), (Some(50_000.0), Some(20_000.0)));
        assert_eq!(total.samples[&("e2e".into(), "a/b:p1".into())].summary().max, Some(50_001.5));
        assert_eq!(total.counts["promoted|a/b:p1|P3"], 1);
    }

    #[test]
    fn neither_is_one_of_a_beginning_of_names_and_a_pace_is_no_pause() {
        let mut fold = Fold::default();
        let of = |kind: &str, family: &str| {
            let fact = Fact::new("queue-control", "queue.control.applied").with("family", family);
            let fact = fact.with("sourceType", "manual").with("action", serde_json::json!({ "kind": kind }));
            Record::Fact(fact)
        };
        fold.take(
            at(100_000),
            &fields(&[of("pause_family", "a/*"), of("pause_family", "c/*"), of("batch_family", "a/b")]),
        );
        fold.take(at(130_000), &fields(&[of("resume_family", "a/*")]));
        fold.take(at(140_001), &fields(&[dispatched(50_000, 140_000, 1)]));
        let total = fold.total();
        let max = |kind: &str| total.samples[&(kind.to_owned(), "a/b:p1".to_owned())].summary().max;
        assert_eq!((max("wait"), max("wait_active")), (Some(50_000.0), Some(20_000.0)));
        assert_eq!(total.counts["control|batch|manual|applied"], 1);
        assert_eq!(State::decode(&fold.state.encode()), fold.state);
    }

    #[test]
    fn only_the_first_start_is_a_wait_and_a_stored_state_goes_on() {
        let mut fold = Fold::default();
        fold.take(at(100_000), &fields(&[control("pause_family"), dispatched(10, 100_000, 2)]));
        let mut rest = Fold::from_state(State::decode(&fold.state.encode()));
        assert_eq!(rest.state, fold.state);
        rest.take(at(110_000), &fields(&[control("resume_family")]));
        rest.take(at(120_000), &fields(&[dispatched(30_000, 120_000, 1)]));
        assert!(!fold.total().samples.contains_key(&("wait".into(), "a/b:p1".into())));
        assert_eq!(rest.total().samples[&("wait_active".into(), "a/b:p1".into())].summary().max, Some(20_000.0));
    }

    #[test]
    fn appends_are_counted_by_what_became_of_them() {
        let batch = Enqueue {
            lanes: vec!["a/b:p1".into()],
            sources: vec!["cli".into()],
            rows: vec![EnqueueRow(0, PackedId(uuid::Uuid::now_v7().to_string()), 0, vec![1, 1, 1, 1], 0, None)],
        };
        let mut fold = Fold::default();
        let fields = Fields { s: Some("5-0*2\niq|1-0\nL".into()), ..fields(&[Record::Enqueue(batch)]) };
        fold.take(at(1), &fields);
        let counts = fold.total().counts;
        let of = |outcome: &str| counts.get(&format!("append|a/b:p1|{outcome}")).copied();
        assert_eq!((of("accepted"), of("duplicate"), of("scheduled")), (Some(2), Some(1), Some(1)));
    }
}
