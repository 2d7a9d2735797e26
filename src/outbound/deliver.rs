//! One delivery → one request, and what its answer means.
//!
//! | answer | outcome |
//! |---|---|
//! | 2xx | done |
//! | 410 | the endpoint is disabled; dead letter `gone` |
//! | 429, 503 | retry by the schedule, not before `Retry-After` (at most an hour) |
//! | anything else, no answer, an address that is refused | retry by the schedule |
//! | the last attempt failed | dead letter `attempts_exhausted`, and [`super::EXHAUSTED`] |
//!
//! An endpoint is looked up for every attempt: a new URL or secret holds for what waits for a retry too.

use futures_util::future::BoxFuture;

use super::breaker::Phase;
use super::figures::End;
use super::hub::about;
use super::{EXHAUSTED, FAMILY, Outbound};
use crate::drainer::handlers::{Dispatch, Handler, Outcome, identity};

/// Sends the deliveries of one endpoint.
#[derive(Debug, Clone)]
pub struct Deliver {
    outbound: Outbound,
    id: String,
}

impl Deliver {
    /// A handler for the family `outbound/<id>`.
    #[must_use]
    pub fn new(outbound: Outbound, family: &str) -> Self {
        let id = family.strip_prefix(FAMILY).unwrap_or(family).to_owned();
        Self { outbound, id }
    }

    /// Why nothing may be sent now.
    #[must_use]
    pub fn held(&self) -> Option<String> {
        let (phase, left) = self.outbound.phase(&self.id);
        let is_disabled = self.outbound.endpoints().current().disabled.contains_key(&self.id);
        (phase == Phase::Open && !is_disabled).then(|| {
            let left = left.unwrap_or_default().as_secs() + 1;
            format!("the endpoint failed again and again; it is left alone for {left} s")
        })
    }

    /// How many may be sent at once.
    #[must_use]
    pub fn concurrency(&self) -> u32 {
        match self.outbound.phase(&self.id).0 {
            Phase::HalfOpen => 1,
            _ => super::PER_ENDPOINT,
        }
    }

    async fn deliver(&self, dispatch: &Dispatch) -> Outcome {
        let snapshot = self.outbound.endpoints().current();
        let fail = |reason: &'static str, error: String| Outcome::Fail { reason, error, status: None };
        let Some(endpoint) = snapshot.endpoints.get(&self.id) else {
            self.outbound.figures().delivery(End::Removed);
            return fail("endpoint_removed", format!("there is no endpoint {}", self.id));
        };
        if let Some(disabled) = snapshot.disabled.get(&self.id) {
            self.outbound.figures().delivery(End::Disabled);
            return fail("endpoint_disabled", format!("the endpoint is disabled ({})", disabled.reason));
        }
        let envelope = &dispatch.envelope;
        let request = self.outbound.sender().send(endpoint, &envelope.id, envelope.data.as_str());
        let attempt = tokio::select! {
            attempt = request => attempt,
            // The endpoint may have acted on it already: that is an attempt, but not a fault of the endpoint.
            () = dispatch.cancel.cancelled() => {
                let error = "cancelled while the endpoint was working on it".into();
                return Outcome::Retry { error, not_before: None, status: None };
            }
        };
        self.outbound.note(endpoint, &attempt).await;
        let status = attempt.status.map(i32::from);
        let Some(error) = attempt.error else {
            self.outbound.figures().delivery(End::Delivered);
            return Outcome::Done;
        };
        if attempt.status == Some(410) {
            self.outbound.figures().delivery(End::Gone);
            return Outcome::Fail { reason: "gone", error, status };
        }
        let settings = self.outbound.settings();
        if dispatch.attempt >= settings.attempts() {
            self.outbound.figures().delivery(End::Exhausted);
            let mut data = about(endpoint);
            data.insert("eventId".into(), envelope.id.as_str().into());
            data.insert("attempts".into(), dispatch.attempt.into());
            data.insert("lastError".into(), error.as_str().into());
            data.insert("status".into(), status.into());
            let id = identity::dispatch_id(&envelope.id, &self.id, dispatch.redrives);
            self.outbound.tell(EXHAUSTED, Some(format!("exhausted-{id}")), data).await;
        }
        let delay = settings.delay(dispatch.attempt, rand::random());
        let not_before = Some(attempt.retry_after.unwrap_or_default().max(delay));
        Outcome::Retry { error, not_before, status }
    }
}

impl Handler for Deliver {
    fn kind(&self) -> &'static str {
        "outbound"
    }

    fn target(&self) -> &str {
        &self.id
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            if dispatch.cancel.is_cancelled() {
                return Outcome::Cancelled;
            }
            self.deliver(&dispatch).await
        })
    }
}
