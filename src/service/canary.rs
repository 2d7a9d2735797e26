//! The canary: an event that goes the whole way, through append, lane, drainer, handler and acknowledgement, so that
//! ready means more than an open port.
//!
//! A process that serves and drains sends one at its start and then every SYSTEM_BUS_CANARY_INTERVAL_MS, the next only
//! when the last has come back. Any drainer may take it. Figures leave it out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::diagnose::chain;
use crate::streams::append::{Appender, NewEvent};
use crate::streams::bus::Bus;
use crate::streams::family::{CANARY, Family};
use crate::streams::find::Place;
use crate::streams::json::JsonObject;
use crate::streams::look::State;
use crate::streams::priority::Priority;

/// Missed ones in a row until this process is not ready.
const PATIENCE: u32 = 3;
/// After an append that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at one that is under way: at first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// How the canaries of this process fare. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Canary {
    every: Duration,
    standing: Arc<Mutex<Standing>>,
}

#[derive(Debug)]
struct Standing {
    /// When one came back; at first when we began.
    last: Instant,
    has_returned: bool,
    /// What keeps the one that is under way.
    because: String,
}

impl Canary {
    /// None is sent yet.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        let standing = Standing { last: Instant::now(), has_returned: false, because: "it is not sent yet".into() };
        Self { every, standing: Arc::new(Mutex::new(standing)) }
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// For readiness: whether one went the whole way lately.
    pub fn check(&self) -> Result<(), String> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if standing.has_returned && standing.last.elapsed() <= self.every * PATIENCE {
            return Ok(());
        }
        Err(format!("no canary event came back for {} s: {}", standing.last.elapsed().as_secs(), standing.because))
    }

    /// Sends them until `stop`.
    pub async fn run(self, bus: Bus, appender: Appender, stop: CancellationToken) {
        let Ok(family) = CANARY.parse::<Family>() else { return };
        loop {
            let pause = tokio::select! {
                () = stop.cancelled() => return,
                result = self.fly(&bus, &appender, &family) => match result {
                    Ok(()) => self.every,
                    Err(because) => {
                        self.change(|standing| standing.because = because);
                        RETRY
                    }
                },
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Sends one and waits until it is done.
    async fn fly(&self, bus: &Bus, appender: &Appender, family: &Family) -> Result<(), String> {
        let mut event = NewEvent::new(family.clone(), "canary", JsonObject::default());
        event.priority = Priority::P0;
        let appended = appender.append(vec![event]).await.map_err(|error| chain(&error))?;
        let Some(appended) = appended.into_iter().next() else { return Err("the appender answered nothing".into()) };
        let Some(id) = appended.entry_id else { return Err("it is scheduled".into()) };
        let place = Place::Entry(appended.lane, id);
        let mut pause = LOOKS.0;
        loop {
            let state = bus.inspect(&place).await.map_err(|error| chain(&error))?.state;
            match state {
                State::Done => break,
                State::Dead | State::Acked | State::Missing => return Err(format!("it ended as {state:?}")),
                _ => self.change(|standing| standing.because = format!("it is {state:?}").to_lowercase()),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
        self.change(|standing| (standing.last, standing.has_returned) = (Instant::now(), true));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_must_have_come_back_lately() {
        let canary = Canary::new(Duration::from_millis(50));
        assert_eq!(canary.check(), Err("no canary event came back for 0 s: it is not sent yet".into()));
        canary.change(|standing| standing.has_returned = true);
        assert_eq!(canary.check(), Ok(()));
        canary.change(|standing| {
            (standing.last, standing.because) = (standing.last - Duration::from_secs(7), "x".into())
        });
        assert_eq!(canary.check(), Err("no canary event came back for 7 s: x".into()));
    }
}
