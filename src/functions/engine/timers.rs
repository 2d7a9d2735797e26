//! Timers: what sleeps, times out or waits for its next attempt.
//!
//! Every process with the drainer's part fires them; one that two fire does its work once. A timer that is late is fired,
//! never dropped: it leaves the set in the script that does its work.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::store::{Advance, Fired, Guard, Scheduled, history};
use super::finish::Ending;
use super::{Engine, Error};
use crate::streams::records::Fact;

/// How late a timer that another process set may be noticed.
const POLL: Duration = Duration::from_millis(500);
/// Timers taken at once.
const BATCH: usize = 256;
/// Of those, under way at once.
const AT_ONCE: usize = 32;

impl Engine {
    pub(super) async fn fire_timers(&self, stop: CancellationToken) {
        let mut paused = HashSet::new();
        loop {
            let wait = match self.fire_due().await {
                Ok((BATCH.., _)) => Duration::ZERO,
                Ok((_, next)) => next.map_or(POLL, |next| next.min(POLL)),
                Err(error) => {
                    tracing::debug!(error = %error, "timers could not be looked at");
                    POLL
                }
            };
            if let Err(error) = self.tend_holds(&mut paused).await {
                tracing::debug!(error = %error, "what waits for paused functions could not be looked at");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.inner.timer_set.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Fires what is due: how many, and how long until the next one is.
    pub async fn fire_due(&self) -> Result<(usize, Option<Duration>), Error> {
        let (due, next, now) = self.runs().due_timers(BATCH).await?;
        let fired = due.len();
        futures_util::stream::iter(due)
            .for_each_concurrent(AT_ONCE, |member| async move {
                if let Err(error) = self.fire(&member).await {
                    tracing::warn!(timer = member, error = %error, "a timer could not be fired; it is tried again");
                }
            })
            .await;
        Ok((fired, next.map(|next| Duration::from_millis(next.saturating_sub(now).max(1)))))
    }

    async fn fire(&self, member: &str) -> Result<(), Error> {
        let mut parts = member.splitn(3, '|');
        let (Some(kind), Some(run), Some(about)) = (parts.next(), parts.next(), parts.next()) else {
            return self.forget(member).await;
        };
        let guard = Guard::Timer(member);
        let mut advance = Advance::new(run, guard, self.settings().limits, self.keep_ms(false));
        match kind {
            "t" => advance.requeue(about),
            "s" => {
                let open = self.runs().live(run).await?.get(&format!("s:{about}")).cloned().unwrap_or_default();
                let kind = open.split('|').next().unwrap_or_default();
                let value = match kind {
                    "invoke" => {
                        let message = "Timed out waiting for invoked function to complete";
                        json!({"error": {
                            "error": format!("InngestInvokeTimeoutError: {message}"),
                            "name": "InngestInvokeTimeoutError",
                            "message": message,
                        }})
                        .to_string()
                    }
                    "" => return self.forget_if_closed(run, member).await,
                    _ => "null".to_owned(),
                };
                let note = history::step_completed(about, "", kind, 0, None, kind == "invoke");
                advance.memo(about, value, note);
                let action = if kind == "invoke" { "function.step.failed" } else { "function.step.completed" };
                advance.fact(Fact::new("functions", action).with("runId", run).with("step", about).with("op", kind));
            }
            "C" => return self.fire_tick(&member[2..], about).await,
            "D" | "B" | "T" | "G" => return self.fire_flow(member).await,
            "S" | "F" => {
                let which = if kind == "S" { "start" } else { "finish" };
                let Some(run) = self.runs().run(run).await? else { return self.forget(member).await };
                self.end_run(&run, guard, &Ending::Cancelled(format!("{which} timeout"))).await?;
                return Ok(());
            }
            _ => return self.forget(member).await,
        }
        self.runs().advance(advance).await?;
        Ok(())
    }

    /// A timer of flow control: what waits goes on, unless its singleton's holder has to be ended first.
    async fn fire_flow(&self, member: &str) -> Result<(), Error> {
        match self.runs().fire(member).await? {
            Fired::Nothing => Ok(()),
            Fired::Went { scheduled: Scheduled::Busy(holder), .. } => {
                self.cancel_for_singleton(&holder).await?;
                self.inner.timer_set.notify_one();
                Ok(())
            }
            Fired::Went { scheduled, correlation, .. } => {
                self.inner.timer_set.notify_one();
                self.answer_invokes(&scheduled, correlation.as_deref()).await
            }
        }
    }

    /// The step has its value, or the run has ended: between our two looks.
    async fn forget_if_closed(&self, run: &str, member: &str) -> Result<(), Error> {
        let step = member.rsplit('|').next().unwrap_or_default();
        if self.runs().live(run).await?.contains_key(&format!("s:{step}")) {
            return Ok(());
        }
        self.forget(member).await
    }

    async fn forget(&self, member: &str) -> Result<(), Error> {
        Ok(self.runs().forget_timer(member).await?)
    }
}
