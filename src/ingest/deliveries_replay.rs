//! Replaying a delivery of the log: its events once more, made by today's code.
//!
//! The ids of the events end in `~r<n>`, so that a replay is neither taken for the delivery it repeats nor for another
//! replay.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::admission::{Accepted, Admission, Emit};
use super::deliveries::Entry;
use super::providers::{NormalizedEvent, Provider, Senders, Skip};
use crate::diagnose::{Diagnose, Exit};
use crate::streams::bus::Bus;
use crate::streams::json::JsonObject;

/// Why a delivery is not replayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log holds no body of it.
    #[error("the body of this delivery was not kept")]
    NoBody,
    /// There is no such provider any more.
    #[error("there is no provider `{0}` any more")]
    NoProvider(String),
    /// Its body has no JSON object.
    #[error("its body is no JSON object")]
    NotJson,
    /// It makes no events.
    #[error("it makes no events: {0}")]
    Skipped(Skip),
    /// An event was not taken.
    #[error(transparent)]
    Admission(#[from] super::admission::Error),
    /// Redis did not count the replay.
    #[error(transparent)]
    Redis(#[from] crate::streams::redis::Error),
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::NoBody => "WEBHOOK_BODY_NOT_KEPT",
            Self::NoProvider(_) => "WEBHOOK_UNKNOWN_PROVIDER",
            Self::NotJson | Self::Skipped(_) => "WEBHOOK_NOTHING_TO_REPLAY",
            Self::Admission(error) => error.code(),
            Self::Redis(error) => error.code(),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoBody | Self::NoProvider(_) => Exit::NotFound,
            Self::NotJson | Self::Skipped(_) => Exit::Unhealthy,
            Self::Admission(error) => error.exit(),
            Self::Redis(error) => error.exit(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoBody => "Set WEBHOOK_LOG_BODIES=redacted to keep bodies from now on.".into(),
            Self::NoProvider(_) => "See the providers with joelclaw webhooks sources.".into(),
            Self::NotJson | Self::Skipped(_) => "Look at it with joelclaw webhooks inspect <ref>.".into(),
            Self::Admission(error) => error.fix(),
            Self::Redis(error) => error.fix(),
        }
    }
}

/// The events of a delivery of the log.
pub fn events(entry: &Entry, provider: &dyn Provider) -> Result<Vec<NormalizedEvent>, Error> {
    let delivery = entry.kept().ok_or(Error::NoBody)?.delivery();
    let text = provider.json(&delivery).ok_or(Error::NotJson)?;
    let body = JsonObject::parse(&text).map_err(|_| Error::NotJson)?;
    provider.normalize(&delivery, &body).map_err(Error::Skipped)
}

/// Replays a second, of many.
pub const RATE: u64 = 10;

/// Replays a delivery of the log: the number of the replay, and what became of its events.
pub async fn run(
    bus: &Bus,
    entry: &Entry,
    senders: &Senders,
    admission: &Admission,
    keep: Duration,
) -> Result<(u64, Vec<Accepted>), Error> {
    let record = &entry.record;
    let provider = senders.find(&record.provider).ok_or_else(|| Error::NoProvider(record.provider.clone()))?;
    // What can't be replayed is not counted as a replay.
    let events = events(entry, &*provider)?;
    let number = bus.count_replay(&record.reference, keep).await?;
    Ok((number, replay(entry, &*provider, &events, number, admission).await?))
}

/// What a replay has done, as commands and endpoints tell it.
#[must_use]
pub fn shown(entry: &Entry, number: u64, accepted: &[Accepted]) -> Value {
    let events = accepted.iter().map(|event| {
        json!({
            "name": event.lane.family,
            "id": event.event_id,
            "streamId": event.stream_id.map(|id| id.to_string()),
        })
    });
    json!({
        "deliveryRef": entry.record.reference,
        "replay": number,
        "events": events.collect::<Vec<_>>(),
    })
}

/// Appends `events`, those of a delivery of the log, as its replay number `number`.
async fn replay(
    entry: &Entry,
    provider: &dyn Provider,
    events: &[NormalizedEvent],
    number: u64,
    admission: &Admission,
) -> Result<Vec<Accepted>, Error> {
    let (source, record) = (format!("webhook/{}", provider.id()), &entry.record);
    let mut seen: HashMap<String, usize> = HashMap::new();
    let ready: Vec<[String; 3]> = events
        .iter()
        .map(|event| {
            let name = event.full_name(provider);
            let base = event.id.clone().unwrap_or_else(|| format!("{}:{name}", record.reference));
            let again = seen.entry(base.clone()).or_default();
            let id = if *again == 0 { format!("{base}~r{number}") } else { format!("{base}:{again}~r{number}") };
            *again += 1;
            let meta =
                json!({ "provider": provider.id(), "normalizedEvent": event.name, "replayOf": record.reference });
            [name, id, meta.to_string()]
        })
        .collect();
    let emits: Vec<Emit<'_>> = ready
        .iter()
        .zip(events)
        .map(|([name, id, meta], event)| Emit {
            name,
            data: event.data.as_str(),
            id: Some(id),
            source: Some(&source),
            meta: Some(meta),
            // A replay is wanted: the family's window is not to swallow it.
            no_dedup: true,
            ..Emit::default()
        })
        .collect();
    Ok(admission.admit_batch(&emits).await?)
}
