//! Triage at admission: the one place where a decision touches an event.
//!
//! Only priority and dedup key are ever set from a decision, and the record and summary that tell of it.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::config::{TriageDedup, TriageMode};
use crate::streams::append::{Appended, NewEvent};
use crate::streams::json::JsonObject;
use crate::triage::decision::Decision;
use crate::triage::{Matter, Triage};

/// Begins a dedup key that a model made, so that it never meets a caller's.
const MODEL_KEY: &str = "m:";

/// What triage has to do with one admitted event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Triaged {
    /// The mode of the event.
    pub mode: TriageMode,
    /// The decision record, in enforce.
    pub record: Option<JsonObject>,
}

/// The events of one batch between preparation and append.
pub(super) struct Pending {
    events: Vec<One>,
}

enum One {
    Off,
    Shadow(Box<Matter>),
    Enforced(Box<Enforced>),
}

struct Enforced {
    matter: Matter,
    decision: Decision,
    key: Option<VerifiedKey>,
}

/// A model's key that counts with the data only.
struct VerifiedKey {
    key: String,
    data_hash: String,
    window: Duration,
}

/// Decides what has to be decided before the append, within `cap`, all at once. `windows` are the families' own.
pub(super) async fn before(
    triage: &Triage,
    events: &mut [NewEvent],
    windows: &[Option<Duration>],
    now: i64,
    cap: Option<Duration>,
) -> Pending {
    let flags = triage.flags();
    let decided = events.iter_mut().zip(windows).map(|(event, window)| {
        let mode = triage.resolve(&event.name).mode;
        let flags = &flags;
        async move {
            let handler = if mode == TriageMode::Off { None } else { triage.handler(&event.name) };
            let Some((handler_type, handler_target)) = handler else { return One::Off };
            if mode == TriageMode::Enforce && event.id.is_none() {
                // The model is told the id, and the record names it.
                event.id = Some(uuid::Uuid::now_v7().to_string());
                event.id_is_fresh = true;
            }
            let matter = Matter {
                event_id: event.id.clone().unwrap_or_default(),
                name: event.name.clone(),
                source: event.source.clone(),
                ts: event.ts.unwrap_or(now),
                data: event.data.clone(),
                meta: event.meta.clone(),
                trace: event.trace.clone(),
                priority: event.priority,
                dedup_key: event.dedup_key.clone(),
                dedup_window_ms: window.and_then(|window| u64::try_from(window.as_millis()).ok()),
                handler_type,
                handler_target,
            };
            if mode == TriageMode::Shadow {
                summarise(event, &[("triageMode", "shadow".into())]);
                return One::Shadow(Box::new(matter));
            }
            let decision = triage.decide(&matter, mode, cap).await;
            let key = apply(event, &decision, *window, flags.dedup);
            One::Enforced(Box::new(Enforced { matter, decision, key }))
        }
    });
    Pending { events: join_all(decided).await }
}

impl Pending {
    /// After the append: starts the shadow decisions and writes the others down. Answers in order, never waits.
    pub(super) fn after(self, triage: &Triage, appended: &[Appended]) -> Vec<Triaged> {
        let told = self.events.into_iter().zip(appended).map(|(one, appended)| match one {
            One::Off => Triaged::default(),
            One::Shadow(mut matter) => {
                // A duplicate was decided about when it came first.
                if appended.duplicate.is_none() {
                    matter.event_id.clone_from(&appended.event_id);
                    triage.shadow(*matter);
                }
                Triaged { mode: TriageMode::Shadow, record: None }
            }
            One::Enforced(decided) => {
                let Enforced { matter, decision, key } = *decided;
                triage.record(&matter, &decision);
                if let (Some(VerifiedKey { key, data_hash, window }), None) = (key, appended.duplicate) {
                    triage.keyed(matter.name, key, data_hash, appended.event_id.clone(), window);
                }
                Triaged { mode: TriageMode::Enforce, record: Some(decision.record().into()) }
            }
        });
        told.collect()
    }
}

/// Sets priority and key. Returns a model's key that counts with the data only.
fn apply(
    event: &mut NewEvent,
    decision: &Decision,
    window: Option<Duration>,
    dedup: TriageDedup,
) -> Option<VerifiedKey> {
    event.priority = decision.last.priority;
    event.triage = Some(decision.record().into());
    summarise(event, &decision.summary());
    let key = decision.last.dedup_key.clone().filter(|_| decision.last.dedup_key != decision.baseline.dedup_key)?;
    event.dedup_window = window;
    if !decision.is_models_key() {
        event.dedup_key = Some(key);
        return None;
    }
    event.dedup_key = Some(format!("{MODEL_KEY}{key}"));
    if dedup != TriageDedup::Verify {
        return None;
    }
    let data_hash = hex::encode(Sha256::digest(event.data.as_str().as_bytes()));
    event.dedup_mark = Some(format!("{MODEL_KEY}{key}:{data_hash}"));
    Some(VerifiedKey { key, data_hash, window: window? })
}

/// Adds the summary keys to `meta`. The emitter has none of these: admission refused them.
fn summarise(event: &mut NewEvent, summary: &[(&str, Value)]) {
    let values = summary.iter().map(|(key, value)| (*key, value.to_string()));
    event.meta = Some(event.meta.take().unwrap_or_default().with(values));
}
