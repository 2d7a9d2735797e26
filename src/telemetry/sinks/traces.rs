//! OTLP spans, made from the journal: nothing on the path of an event has to be finished, kept or flushed for them.
//!
//! | span | kind | from |
//! |---|---|---|
//! | `POST /webhooks/{provider}`, `POST /e/{key}` | server | [`HttpSpan`], offered by the server |
//! | `send <lane>` | producer | an append |
//! | `process <family>` | consumer | a dispatch that ended, well or not |
//! | `run <function>` | server | the end of a run |
//! | `step <function>` | internal | a step that has its value |
//! | `triage <family>` | internal | a decision about an event |
//! | `observe` | internal, a trace of its own | a pass of the observer |
//! | `chat <model>` | client | the model's part of these two |
//!
//! Reads and acknowledgements are of many events at once and have no spans: a `process` span tells wait and duration.
//!
//! Ids follow from what a span stands for ([`crate::streams::trace`]): one that is exported twice is one span.
//! Attributes are those of OpenTelemetry's messaging conventions (schema 1.42.0, in development).

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::spans::HttpSpan;
use super::otlp::{Settings, Transport, resource};
use super::{Batches, Failed, Sink};
use crate::streams::entry_id::EntryId;
use crate::streams::journal::{self, Part};
use crate::streams::lane::family_of;
use crate::streams::records::{DispatchRow, Dispatches, Enqueue, Fact};
use crate::streams::trace::TraceContext;

/// Spans in one export.
const MOST: usize = 512;
/// Between two exports of HTTP spans.
const PAUSE: Duration = Duration::from_secs(1);
/// A wait that is told whatever the sampler says, ms.
const LONG_WAIT_MS: u64 = 5_000;
/// Providers of triage and observer that are models.
const MODELS: [&str; 3] = ["command", "openai", "anthropic"];
/// Families of work items, which no append of an event stands behind.
const WORK: &str = "inngest/fn:";

/// Sends spans to an endpoint.
#[derive(Debug)]
pub struct Exporter {
    exporter: SpanExporter,
    scope: InstrumentationScope,
    timeout: Duration,
}

impl Exporter {
    /// An exporter for an endpoint. Nothing is connected yet.
    pub fn new(settings: &Settings) -> Result<Self, Failed> {
        let built = match settings.transport {
            Transport::Http => SpanExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_endpoint(settings.url("v1/traces"))
                .with_timeout(settings.timeout)
                .with_headers(settings.header_map())
                .build(),
            Transport::Grpc => SpanExporter::builder()
                .with_tonic()
                .with_endpoint(settings.endpoint.as_str())
                .with_timeout(settings.timeout)
                .with_metadata(settings.metadata())
                .build(),
        };
        let mut exporter = built.map_err(|error| Failed(format!("the OTLP endpoint can't be used: {error}")))?;
        exporter.set_resource(&resource(settings));
        let scope = InstrumentationScope::builder("system-bus").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { exporter, scope, timeout: settings.timeout })
    }

    async fn export(&self, spans: Vec<Span>) -> Result<(), Failed> {
        let mut spans = spans.into_iter().map(|span| span.data(&self.scope));
        loop {
            let chunk: Vec<SpanData> = spans.by_ref().take(MOST).collect();
            if chunk.is_empty() {
                return Ok(());
            }
            match tokio::time::timeout(self.timeout + Duration::from_secs(1), self.exporter.export(chunk)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(Failed(format!("the OTLP endpoint did not take spans: {error}"))),
                Err(_) => return Err(Failed(format!("the OTLP endpoint did not answer within {:?}", self.timeout))),
            }
        }
    }
}

impl Sink for Exporter {
    const NAME: &'static str = "traces";
    const IS_REQUIRED: bool = false;

    async fn write(&mut self, batches: Batches<'_>) -> Result<(), Failed> {
        let mut spans = Vec::new();
        for (id, fields) in batches.rows() {
            journal::walk(*id, fields, &mut |part| match part {
                Part::Enqueue(batch, lines) => sends(*id, batch, lines, &mut spans),
                Part::Dispatches { batch, ended: true, refused } => processes(batch, refused, &mut spans),
                Part::Dispatches { .. } => {}
                Part::Fact(fact) => {
                    let span = of_fact(*id, &fact);
                    spans.extend(span.as_ref().and_then(|span| chat(&fact, span)));
                    spans.extend(span);
                }
            });
        }
        self.export(spans).await
    }
}

/// Exports what the server offers, until `stop`. What an endpoint does not take is gone: it is of one request, and the
/// events that the request brought have spans of their own.
pub async fn export_http(exporter: Exporter, mut offered: mpsc::Receiver<HttpSpan>, stop: CancellationToken) {
    let mut spans = Vec::new();
    let mut is_failing = false;
    loop {
        let is_stopping = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(PAUSE) => false,
        };
        while let Ok(span) = offered.try_recv() {
            spans.extend(http(span));
        }
        if !spans.is_empty() {
            let failed = exporter.export(std::mem::take(&mut spans)).await.err();
            let was_failing = std::mem::replace(&mut is_failing, failed.is_some());
            if let Some(error) = failed.filter(|_| !was_failing) {
                tracing::warn!(%error, "spans of requests are lost until the endpoint takes them again");
            }
        }
        if is_stopping {
            return;
        }
    }
}

/// A span before it has the exporter's shape.
struct Span {
    context: TraceContext,
    parent: Option<u64>,
    parent_is_remote: bool,
    link: Option<TraceContext>,
    kind: SpanKind,
    name: String,
    began: SystemTime,
    ended: SystemTime,
    attributes: Vec<KeyValue>,
    error: Option<String>,
}

impl Span {
    fn data(self, scope: &InstrumentationScope) -> SpanData {
        let mut links = SpanLinks::default();
        links.links.extend(self.link.map(|link| Link::new(context(&link, true), Vec::new(), 0)));
        SpanData {
            span_context: context(&TraceContext { is_sampled: true, ..self.context }, false),
            parent_span_id: self.parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.to_be_bytes())),
            parent_span_is_remote: self.parent_is_remote,
            span_kind: self.kind,
            name: Cow::Owned(self.name),
            start_time: self.began,
            end_time: self.ended.max(self.began),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: self.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: scope.clone(),
        }
    }
}

fn context(of: &TraceContext, is_remote: bool) -> SpanContext {
    let flags = if of.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let (trace, span) = (TraceId::from_bytes(of.trace_id.to_be_bytes()), SpanId::from_bytes(of.span_id.to_be_bytes()));
    SpanContext::new(trace, span, flags, is_remote, TraceState::NONE)
}

fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

/// What every span about a message says.
fn messaging(operation: (&'static str, &'static str), lane: &str, event_id: &str) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "redis"),
        KeyValue::new("messaging.operation.type", operation.0),
        KeyValue::new("messaging.operation.name", operation.1),
        KeyValue::new("messaging.destination.name", lane.to_owned()),
        KeyValue::new("messaging.message.conversation_id", event_id.to_owned()),
        KeyValue::new("system_bus.family", family_of(lane).to_owned()),
    ]
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn sends(batch_id: EntryId, batch: &Enqueue, lines: &[&str], into: &mut Vec<Span>) {
    let traces = batch.rows.iter().flat_map(|row| row.3.iter().map(|_| row.5));
    for (((lane, event_id, source, bytes, _), caused_by), line) in batch.events().zip(traces).zip(lines) {
        let (Ok(entry), Some(lane)) = (line.parse::<EntryId>(), batch.lanes.get(usize::from(lane))) else { continue };
        let context = TraceContext::send(&event_id, caused_by);
        if !context.is_sampled {
            continue;
        }
        let mut attributes = messaging(("send", "xadd"), lane, &event_id);
        attributes.push(KeyValue::new("messaging.message.id", entry.to_string()));
        attributes.push(KeyValue::new("messaging.message.envelope.size", number(bytes)));
        if let Some(source) = batch.sources.get(usize::from(source)) {
            attributes.push(KeyValue::new("system_bus.source", source.clone()));
        }
        into.push(Span {
            context,
            parent: caused_by.map(|parent| parent.span_id),
            parent_is_remote: true,
            link: None,
            kind: SpanKind::Producer,
            name: format!("send {lane}"),
            began: at(batch_id.ms),
            ended: at(batch_id.ms),
            attributes,
            error: None,
        });
    }
}

/// A dispatch, however it ended.
fn process(lane: &str, event_id: &str, caused_by: Option<TraceContext>, attempt: u32, began_ms: u64) -> Span {
    let context = TraceContext::process(event_id, caused_by, attempt);
    let parent = match caused_by {
        Some(run) if lane.starts_with(WORK) => run,
        caused_by => TraceContext::send(event_id, caused_by),
    };
    let mut attributes = messaging(("process", "dispatch"), lane, event_id);
    attributes.push(KeyValue::new("messaging.consumer.group.name", "drainer"));
    attributes.push(KeyValue::new("system_bus.attempt", i64::from(attempt)));
    Span {
        context,
        parent: Some(parent.span_id),
        parent_is_remote: true,
        link: None,
        kind: SpanKind::Consumer,
        name: format!("process {}", family_of(lane)),
        began: at(began_ms),
        ended: at(began_ms),
        attributes,
        error: None,
    }
}

fn processes(batch: &Dispatches, refused: &[&str], into: &mut Vec<Span>) {
    for row in &batch.rows {
        let DispatchRow { ms, seq, id, attempt, wait_ms, started_ms, duration_us, trace, .. } = row;
        let Some(lane) = batch.lanes.get(usize::from(row.lane)) else { continue };
        // The id of its trace decides for an event without a context: nothing else is made up for it yet.
        let is_told = *attempt > 1 || *wait_ms > LONG_WAIT_MS;
        if !is_told && !TraceContext::send(&id.0, *trace).is_sampled {
            continue;
        }
        let entry = EntryId { ms: *ms, seq: *seq };
        if !refused.is_empty() && refused.contains(&format!("{lane}|{entry}").as_str()) {
            continue;
        }
        let mut span = process(lane, &id.0, *trace, *attempt, *started_ms);
        span.ended = span.began + Duration::from_micros(*duration_us);
        span.attributes.push(KeyValue::new("messaging.message.id", entry.to_string()));
        span.attributes.push(KeyValue::new("system_bus.wait_ms", number(*wait_ms)));
        if let Some((kind, target)) = batch.handlers.get(usize::from(row.handler)) {
            span.attributes.push(KeyValue::new("system_bus.handler.type", kind.clone()));
            span.attributes.push(KeyValue::new("system_bus.handler.target", target.clone()));
        }
        into.push(span);
    }
}

fn of_fact(batch_id: EntryId, fact: &Fact) -> Option<Span> {
    match &*fact.action {
        "queue.dispatch.failed" => failed(batch_id, fact),
        "function.run.completed" | "function.run.failed" | "function.run.cancelled" => run(batch_id, fact),
        "function.step.completed" | "function.step.failed" => step(batch_id, fact),
        "queue.triage.completed" | "queue.triage.fallback" => triage(batch_id, fact),
        "queue.observe.completed" | "queue.observe.fallback" => observe(batch_id, fact),
        _ => None,
    }
}

/// A decision about an event. One that could not be made, or that differs from the static values, is always told.
fn triage(batch_id: EntryId, fact: &Fact) -> Option<Span> {
    let (family, event_id) = (text(fact, "family")?, fact.event_id.as_deref()?);
    let parent = TraceContext::send(event_id, text(fact, "causedBy").and_then(|text| text.parse().ok()));
    let differs = |suggested: &str, baseline: &str| fact.metadata.get(suggested) != fact.metadata.get(baseline);
    let is_told = !fact.success
        || (fact.action == "queue.triage.completed"
            && (differs("suggestedPriority", "baselinePriority") || differs("suggestedDedupKey", "baselineDedupKey")));
    if !parent.is_sampled && !is_told {
        return None;
    }
    let mut span = decided(batch_id, fact, parent.child(&["triage", event_id]), format!("triage {family}"));
    span.parent = Some(parent.span_id);
    span.attributes.push(KeyValue::new("system_bus.family", family.to_owned()));
    span.attributes.push(KeyValue::new("messaging.message.conversation_id", event_id.to_owned()));
    span.attributes.extend(text(fact, "mode").map(|mode| KeyValue::new("system_bus.triage.mode", mode.to_owned())));
    let outcome = fact.action.rsplit('.').next().unwrap_or_default().to_owned();
    span.attributes.push(KeyValue::new("system_bus.triage.outcome", outcome));
    Some(span)
}

/// A pass of the observer. One that failed or applied something is always told.
fn observe(batch_id: EntryId, fact: &Fact) -> Option<Span> {
    let context = TraceContext::root(text(fact, "snapshotId")?);
    let has_applied = fact.metadata.get("appliedCount").and_then(Value::as_u64).is_some_and(|n| n > 0);
    if !context.is_sampled && fact.success && !has_applied {
        return None;
    }
    let mut span = decided(batch_id, fact, context, "observe".to_owned());
    for (key, name) in [
        ("mode", "system_bus.observer.mode"),
        ("trigger", "system_bus.observer.trigger"),
        ("queuePressure", "system_bus.observer.queue_pressure"),
        ("downstreamState", "system_bus.observer.downstream_state"),
    ] {
        span.attributes.extend(text(fact, key).map(|value| KeyValue::new(name, value.to_owned())));
    }
    Some(span)
}

/// What triage and observer have in common: it ended as it was journaled, and took `latencyMs`.
fn decided(batch_id: EntryId, fact: &Fact, context: TraceContext, name: String) -> Span {
    let took = fact.metadata.get("latencyMs").and_then(Value::as_u64).unwrap_or_default();
    let mut attributes = Vec::new();
    attributes.extend(text(fact, "provider").map(|provider| KeyValue::new("system_bus.provider", provider.to_owned())));
    attributes.extend(text(fact, "rule").map(|rule| KeyValue::new("system_bus.rule", rule.to_owned())));
    attributes.extend(text(fact, "fallbackReason").map(|why| KeyValue::new("error.type", why.to_owned())));
    Span {
        context,
        parent: None,
        parent_is_remote: false,
        link: None,
        kind: SpanKind::Internal,
        name,
        began: at(batch_id.ms.saturating_sub(took)),
        ended: at(batch_id.ms),
        attributes,
        error: (!fact.success).then(|| super::event::redact_text(fact.error.as_deref().unwrap_or("failed"))),
    }
}

/// The model's part of a decision, where one was asked.
fn chat(fact: &Fact, of: &Span) -> Option<Span> {
    let provider = text(fact, "provider").filter(|provider| MODELS.contains(provider))?;
    let model = text(fact, "model").unwrap_or("unknown");
    let mut attributes = vec![
        KeyValue::new("gen_ai.operation.name", "chat"),
        KeyValue::new("gen_ai.provider.name", provider.to_owned()),
        KeyValue::new("gen_ai.request.model", model.to_owned()),
    ];
    attributes.extend(of.attributes.iter().find(|attribute| attribute.key.as_str() == "error.type").cloned());
    Some(Span {
        context: of.context.child(&["chat"]),
        parent: Some(of.context.span_id),
        parent_is_remote: false,
        link: None,
        kind: SpanKind::Client,
        name: format!("chat {model}"),
        began: of.began,
        ended: of.ended,
        attributes,
        error: of.error.clone(),
    })
}

fn text<'f>(fact: &'f Fact, key: &str) -> Option<&'f str> {
    fact.metadata.get(key)?.as_str()
}

fn failed(batch_id: EntryId, fact: &Fact) -> Option<Span> {
    let (lane, event_id) = (fact.lane.as_deref()?, fact.event_id.as_deref()?);
    let attempt = fact.metadata.get("attempt").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())?;
    let caused_by = text(fact, "causedBy").and_then(|text| text.parse().ok());
    let began = fact.metadata.get("startedAtMs").and_then(Value::as_u64).unwrap_or(batch_id.ms);
    let mut span = process(lane, event_id, caused_by, attempt, began);
    let duration = fact.metadata.get("durationMs").and_then(Value::as_f64).unwrap_or(0.0);
    span.ended = span.began + Duration::try_from_secs_f64(duration / 1000.0).unwrap_or_default();
    let status = fact.metadata.get("status").and_then(Value::as_i64).map(|status| status.to_string());
    span.attributes.push(KeyValue::new("error.type", status.unwrap_or_else(|| "failed".into())));
    if let Some(is_final) = fact.metadata.get("final").and_then(Value::as_bool) {
        span.attributes.push(KeyValue::new("system_bus.final", is_final));
    }
    span.error = Some(super::event::redact_text(fact.error.as_deref().unwrap_or("failed")));
    Some(span)
}

/// The span that a fact of a run or step tells of (`functions/engine/spans.rs`).
fn told(fact: &Fact, kind: SpanKind, verb: &str) -> Option<Span> {
    let trace_id = u128::from_str_radix(text(fact, "traceId")?, 16).ok()?;
    let hex = |key: &str| u64::from_str_radix(text(fact, key)?, 16).ok();
    let is_sampled = fact.metadata.get("isSampled").and_then(Value::as_bool).unwrap_or(false);
    if !is_sampled && fact.success {
        return None;
    }
    let function = text(fact, "function").unwrap_or("unknown").to_owned();
    let mut attributes = vec![KeyValue::new("code.function.name", function.clone())];
    if let Some(run) = text(fact, "runId") {
        attributes.push(KeyValue::new("faas.invocation_id", run.to_owned()));
    }
    Some(Span {
        context: TraceContext { trace_id, span_id: hex("spanId")?, is_sampled },
        parent: hex("parentSpanId"),
        parent_is_remote: true,
        link: None,
        kind,
        name: format!("{verb} {function}"),
        began: SystemTime::UNIX_EPOCH,
        ended: SystemTime::UNIX_EPOCH,
        attributes,
        error: (!fact.success).then(|| super::event::redact_text(fact.error.as_deref().unwrap_or("failed"))),
    })
}

fn run(batch_id: EntryId, fact: &Fact) -> Option<Span> {
    let mut span = told(fact, SpanKind::Server, "run")?;
    let ms = |key: &str| fact.metadata.get(key).and_then(Value::as_u64);
    span.began = at(ms("startedAtMs").or_else(|| ms("queuedMs")).unwrap_or(batch_id.ms));
    span.ended = at(batch_id.ms);
    let status = fact.action.rsplit('.').next().unwrap_or_default();
    span.attributes.push(KeyValue::new("system_bus.run.status", status.to_owned()));
    Some(span)
}

fn step(batch_id: EntryId, fact: &Fact) -> Option<Span> {
    let mut span = told(fact, SpanKind::Internal, "step")?;
    let ms = |key: &str| fact.metadata.get(key).and_then(Value::as_f64);
    let took = Duration::try_from_secs_f64(ms("durationMs").unwrap_or(0.0) / 1000.0).unwrap_or_default();
    span.began = match fact.metadata.get("startedAtMs").and_then(Value::as_u64) {
        Some(began) => at(began),
        None => at(batch_id.ms).checked_sub(took).unwrap_or(SystemTime::UNIX_EPOCH),
    };
    span.ended = span.began + took;
    for (key, name) in
        [("step", "system_bus.step.name"), ("stepId", "system_bus.step.id"), ("op", "system_bus.step.op")]
    {
        span.attributes.extend(text(fact, key).map(|value| KeyValue::new(name, value.to_owned())));
    }
    if let Some(attempt) = fact.metadata.get("attempt").and_then(Value::as_i64) {
        span.attributes.push(KeyValue::new("system_bus.attempt", attempt));
    }
    Some(span)
}

fn http(offered: HttpSpan) -> Option<Span> {
    let HttpSpan { context, parent, link, began, ended, method, route, provider, status } = offered;
    let is_error = status >= 500;
    if !context.is_sampled && !is_error {
        return None;
    }
    let mut attributes = vec![
        KeyValue::new("http.request.method", method.clone()),
        KeyValue::new("http.route", route.clone()),
        KeyValue::new("http.response.status_code", i64::from(status)),
    ];
    attributes.extend(provider.map(|provider| KeyValue::new("system_bus.webhook.provider", provider)));
    if is_error {
        attributes.push(KeyValue::new("error.type", status.to_string()));
    }
    Some(Span {
        context,
        parent: parent.map(|parent| parent.span_id),
        parent_is_remote: true,
        link,
        kind: SpanKind::Server,
        name: format!("{method} {route}"),
        began,
        ended,
        attributes,
        error: is_error.then(|| format!("HTTP {status}")),
    })
}
