//! The last part of the way: appends a delivery's events, or puts them on the disk.

use std::time::{Duration, Instant};

use super::ready::Ready;
use super::{Gateway, Seen, dropped};
use crate::config::SpoolFor;
use crate::diagnose::{Diagnose, chain};
use crate::ingest::admission::{self, Accepted, Emit};
use crate::ingest::answer::{AnsweredEvent, Refused, Taken};
use crate::ingest::providers::{Answers, DeliveryKey, NormalizedEvent, Provider, Skip};
use crate::ingest::spool::{self, Spool, Spooled, Turn};
use crate::streams::append;

/// The one event name that the `github` pilot counts as queued.
const QUEUED: (&str, &str) = ("github", "workflow_run.completed");
/// More than the envelope of an event adds to its payload.
const ENVELOPE_BYTES: usize = 4096;
/// How long a delivery waits for the last ones on the disk before it goes behind them.
const SOON: Duration = Duration::from_secs(1);
/// Why a delivery goes onto the disk without having tried Redis.
const BEHIND: &str = "earlier deliveries wait on the disk";
/// Why a delivery is refused without having tried Redis.
const AWAY: &str = "Redis is away";

impl Gateway {
    pub(super) async fn append(
        &self,
        provider: &dyn Provider,
        key: &DeliveryKey,
        events: &[NormalizedEvent],
        seen: &mut Seen,
    ) -> Result<Taken, Refused> {
        let settings = &self.0.settings;
        let source = format!("webhook/{}", provider.id());
        let window = match key {
            DeliveryKey::Id(_) => settings.dedup_window,
            DeliveryKey::Hash(_) => settings.hash_dedup_window,
        };
        let ready: Vec<Ready> =
            events.iter().enumerate().map(|(i, event)| Ready::of(provider, key, i, event)).collect();
        let emits: Vec<Emit<'_>> =
            ready.iter().map(|event| event.emit(&source, window, seen.trace.as_deref())).collect();
        let is_queued = |event: &NormalizedEvent| {
            (provider.id(), event.name.as_ref()) == QUEUED && settings.pilots.contains(provider.id())
        };
        seen.events = std::iter::zip(&ready, events)
            .map(|(ready, event)| AnsweredEvent {
                name: ready.name.clone(),
                id: ready.id.clone(),
                stream_id: None,
                is_queued: is_queued(event),
            })
            .collect();
        let began = Instant::now();
        let spool = self.spool_of(provider, &ready);
        let failed = match self.admit(&emits, spool).await {
            Ok(accepted) => return Ok(self.accepted(provider, key, &accepted, seen)),
            Err(NotAdmitted::Refused(error)) => return self.refused(provider, &error),
            Err(NotAdmitted::Later(failed)) => failed,
        };
        let Some(spool) = spool else { return Err(append_failed(provider, &failed)) };
        let delivery = Spooled {
            source: source.clone(),
            received_ms: seen.received_ms,
            events: ready.iter().map(|event| event.spooled(window)).collect(),
            trace: seen.trace.clone(),
        };
        let left = settings.append_timeout.saturating_sub(began.elapsed()).max(Duration::from_millis(500));
        let put = tokio::time::timeout(left, spool.put(&delivery)).await;
        match put.map_err(|_| "not on disk in time".to_owned()).and_then(|put| put.map_err(|error| error.to_string())) {
            Ok(()) => {
                for (told, spooled) in std::iter::zip(&mut seen.events, &delivery.events) {
                    told.id = Some(spooled.id.clone());
                }
                tracing::warn!(
                    action = "webhook.spooled",
                    provider = provider.id(),
                    delivery = key.as_str(),
                    because = failed
                );
                Ok(Taken::Spooled { events: events.len() })
            }
            Err(error) => Err(append_failed(provider, &format!("{failed}; {error}"))),
        }
    }

    /// Appends, unless something waits on the disk already: then these have to wait behind it. Without a spool they are
    /// refused at once while Redis is known to be away.
    async fn admit(&self, emits: &[Emit<'_>], spool: Option<&Spool>) -> Result<Vec<Accepted>, NotAdmitted> {
        let outage = &self.0.outage;
        let later = |why: &str| match self.0.admission.check(emits) {
            Ok(()) => NotAdmitted::Later(why.to_owned()),
            Err(error) => NotAdmitted::Refused(error),
        };
        let mut probe = None;
        match spool {
            Some(spool) => {
                let is_clear = match spool.turn() {
                    Turn::Direct => true,
                    Turn::Soon => tokio::time::timeout(SOON, spool.until_empty()).await.is_ok(),
                    Turn::Behind => false,
                };
                if !is_clear {
                    return Err(later(BEHIND));
                }
            }
            None if outage.is_on() => {
                probe = outage.probe();
                if probe.is_none() {
                    return Err(later(AWAY));
                }
            }
            None => {}
        }
        let given_up = async {
            match spool {
                Some(spool) => {
                    spool.until_held().await;
                    BEHIND
                }
                None if probe.is_some() => std::future::pending().await,
                None => {
                    outage.until_on().await;
                    AWAY
                }
            }
        };
        let admitted = tokio::select! {
            biased;
            admitted = tokio::time::timeout(self.0.settings.append_timeout, self.0.admission.admit_batch(emits)) => admitted,
            // Another one gave up on Redis. Should this append still succeed, it is known by its ids when it comes again.
            why = given_up => return Err(NotAdmitted::Later(why.to_owned())),
        };
        match admitted {
            Ok(Ok(accepted)) => {
                outage.end();
                Ok(accepted)
            }
            Ok(Err(error)) if spool::is_outage(&error) => {
                if matches!(
                    error,
                    admission::Error::Append(append::Error::Unreachable(_) | append::Error::UnknownOutcome { .. })
                ) {
                    outage.begin();
                }
                Err(NotAdmitted::Later(chain(&error)))
            }
            Ok(Err(error)) => Err(NotAdmitted::Refused(error)),
            Err(_) => {
                outage.begin();
                Err(NotAdmitted::Later("not confirmed in time".to_owned()))
            }
        }
    }

    /// The spool, where it takes deliveries of this provider and these events.
    fn spool_of(&self, provider: &dyn Provider, events: &[Ready]) -> Option<&Spool> {
        let settings = &self.0.settings;
        let is_for = match settings.spool_for {
            SpoolFor::All => true,
            SpoolFor::NoRetryProviders => !provider.redelivers(),
            SpoolFor::Off => false,
        };
        let fits = events.iter().all(|event| event.data.as_str().len() + ENVELOPE_BYTES <= settings.max_event_bytes);
        self.0.beside.spool.as_ref().filter(|_| is_for && fits)
    }

    fn accepted(&self, provider: &dyn Provider, key: &DeliveryKey, accepted: &[Accepted], seen: &mut Seen) -> Taken {
        for (told, stored) in std::iter::zip(&mut seen.events, accepted) {
            told.id = Some(stored.event_id.clone());
            told.stream_id = stored.stream_id.map(|id| id.to_string());
        }
        if accepted.iter().all(|event| event.duplicate.is_some()) {
            tracing::info!(action = "webhook.duplicate", provider = provider.id(), delivery = key.as_str());
            return Taken::Duplicate;
        }
        stored(provider, key, accepted, &seen.events)
    }

    /// Nothing that sending it again would mend.
    fn refused(&self, provider: &dyn Provider, error: &admission::Error) -> Result<Taken, Refused> {
        match error {
            admission::Error::Append(append::Error::TooLarge { .. }) => {
                tracing::error!(action = "webhook.forward.failed", provider = provider.id(), error = %error);
                Err(Refused::TooLarge)
            }
            admission::Error::Append(error) => Err(append_failed(provider, &chain(error))),
            // The event itself breaks a rule: sending it again would not help. An intake says so; for the others it is
            // a drop, and it is logged.
            error => {
                tracing::error!(provider = provider.id(), error = %error, "a normalised event was refused");
                match provider.answers() {
                    Answers::Relay => Err(Refused::Relay { status: error.http_status(), error: error.to_string() }),
                    Answers::Gateway => Ok(dropped(provider, Skip::InvalidEvent)),
                }
            }
        }
    }
}

/// Why an append gave no answer that is a success.
enum NotAdmitted {
    /// It never will.
    Refused(admission::Error),
    /// It may, later.
    Later(String),
}

fn stored(provider: &dyn Provider, key: &DeliveryKey, accepted: &[Accepted], events: &[AnsweredEvent]) -> Taken {
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    let queued = events.iter().filter(|event| event.is_queued).count();
    let (total, direct) = (accepted.len(), accepted.len() - queued);
    tracing::info!(action = "webhook.forwarded", provider = provider.id(), total, queued, direct, ?names);
    let ids = accepted.iter().map(|event| event.event_id.clone()).collect();
    Taken::Stored { key: key.as_str().to_owned(), ids, queued, answers: provider.answers() }
}

fn append_failed(provider: &dyn Provider, error: &str) -> Refused {
    tracing::error!(action = "webhook.forward.failed", provider = provider.id(), error);
    match provider.answers() {
        Answers::Gateway => Refused::Append(error.to_owned()),
        Answers::Relay => Refused::Relay { status: 502, error: "Failed to proxy event".to_owned() },
    }
}
