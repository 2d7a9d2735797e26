//! One event → its deliveries.
//!
//! Runs when the event is dispatched, before its other handlers, and may run twice for one event: each delivery has
//! the event's id, so the second time finds it appended. A disabled endpoint gets its deliveries too: they become dead
//! letters, which can be sent once it is enabled.
//!
//! An event that waits for its function was fanned out ahead of its dispatch ([`super::ahead`]): here it is passed over.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Outbound;
use super::endpoint::Endpoint;
use crate::diagnose::chain;
use crate::drainer::handlers::{Dispatch, Handler, Outcome};
use crate::moment::iso;
use crate::streams::append::{self, NewEvent};
use crate::streams::envelope::Envelope;
use crate::streams::json::JsonObject;
use crate::streams::lane::Lane;
use crate::streams::priority::Priority;
use crate::streams::records::Fact;

/// See the module.
#[derive(Debug, Clone)]
pub struct FanOut {
    outbound: Outbound,
}

impl FanOut {
    /// A handler of every event that some endpoint wants.
    #[must_use]
    pub const fn new(outbound: Outbound) -> Self {
        Self { outbound }
    }

    pub(super) async fn deliveries(&self, envelope: &Envelope) -> Vec<NewEvent> {
        let snapshot = self.outbound.endpoints().current();
        let name = envelope.name.as_str();
        let mut wanted: Vec<&Arc<Endpoint>> =
            snapshot.endpoints.values().filter(|endpoint| endpoint.wants(name)).collect();
        let mut event = Value::Null;
        if wanted.iter().any(|endpoint| endpoint.looks_inside() || name.starts_with("webhook/endpoint.")) {
            event = as_seen(envelope);
            // What is said about an endpoint is not sent to it: one that fails would never hear the end of it.
            wanted.retain(|endpoint| {
                !name.starts_with("webhook/endpoint.") || event["data"]["endpointId"] != endpoint.id.as_str()
            });
            let mut admitted = Vec::new();
            for endpoint in wanted {
                match endpoint.admits(&event) {
                    Ok(true) => admitted.push(endpoint),
                    Ok(false) => {}
                    Err(error) => {
                        let fact = Fact::new("outbound", "webhook.endpoint.filter_failed")
                            .event(envelope.id.as_str())
                            .failed(error)
                            .with("endpoint", endpoint.id.as_str());
                        self.outbound.journal(fact.warn()).await;
                    }
                }
            }
            wanted = admitted;
        }
        let Some(body) = body(envelope) else { return Vec::new() };
        let deliveries = wanted.into_iter().filter_map(|endpoint| {
            if endpoint.transform.is_none() {
                return delivery(endpoint, envelope, body.clone());
            }
            let own = JsonObject::parse(&endpoint.transform.body(&event).to_string()).ok()?;
            delivery(endpoint, envelope, own)
        });
        deliveries.collect()
    }

    /// Appends them. One that is too large is told and left out: it would hold up the others for good.
    pub(super) async fn append(&self, mut deliveries: Vec<NewEvent>) -> Result<(), append::Error> {
        loop {
            match self.outbound.appender().append(deliveries.clone()).await {
                Ok(_) => return Ok(()),
                Err(error @ append::Error::TooLarge { index, .. }) if index < deliveries.len() => {
                    let delivery = deliveries.remove(index);
                    let mut fact = Fact::new("outbound", "webhook.endpoint.delivery_refused").failed(error.to_string());
                    fact.event_id = delivery.id;
                    self.outbound.journal(fact.with("family", delivery.name.as_str())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The event as conditions and transformations see it.
fn as_seen(envelope: &Envelope) -> Value {
    json!({
        "id": envelope.id,
        "name": envelope.name.as_str(),
        "source": envelope.source,
        "ts": envelope.ts,
        "timestamp": timestamp(envelope),
        "data": envelope.data.to_value(),
    })
}

fn timestamp(envelope: &Envelope) -> String {
    iso(u64::try_from(envelope.ts).unwrap_or_default()).unwrap_or_default()
}

/// `{type, timestamp, data}`, with the data as its sender wrote it.
fn body(envelope: &Envelope) -> Option<JsonObject> {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'a str,
        timestamp: String,
        data: &'a RawValue,
    }
    let data: &RawValue = serde_json::from_str(envelope.data.as_str()).ok()?;
    let body = Body { r#type: envelope.name.as_str(), timestamp: timestamp(envelope), data };
    JsonObject::parse(&serde_json::to_string(&body).ok()?).ok()
}

fn delivery(endpoint: &Endpoint, envelope: &Envelope, body: JsonObject) -> Option<NewEvent> {
    let mut meta = Map::new();
    meta.insert("event".into(), envelope.name.as_str().into());
    Some(NewEvent {
        id: Some(envelope.id.clone()),
        ts: Some(envelope.ts),
        // Lanes of different priority overtake each other.
        priority: if endpoint.fifo { Priority::default() } else { envelope.priority },
        trace: envelope.trace.clone(),
        meta: Some(meta.into()),
        ..NewEvent::new(endpoint.family()?, "outbound", body)
    })
}

impl Handler for FanOut {
    fn kind(&self) -> &'static str {
        "outbound"
    }

    fn target(&self) -> &str {
        "endpoints"
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let retry = |what: &str, error: String| Outcome::Retry {
                error: format!("{what}: {error}"),
                not_before: None,
                status: None,
            };
            let envelope = &dispatch.envelope;
            let lane = Lane::new(envelope.name.clone(), envelope.priority);
            match self.outbound.endpoints().ahead(&lane).await {
                Ok(Some(mark)) if dispatch.entry_id <= mark => return Outcome::Done,
                Ok(_) => {}
                Err(error) => return retry("whether it was sent already is not known", chain(&error)),
            }
            match self.append(self.deliveries(envelope).await).await {
                Ok(()) => Outcome::Done,
                Err(error) => retry("its deliveries were not appended", chain(&error)),
            }
        })
    }
}
