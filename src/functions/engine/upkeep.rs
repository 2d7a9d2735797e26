//! Looking after runs: one that nothing would bring on is repaired, or ended with a reason. A run always ends.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::store::{Guard, Reconciled};
use super::answer::Failure;
use super::finish::Ending;
use super::{Engine, Error};

/// How often.
const EVERY: Duration = Duration::from_secs(60);
/// After the start, when what a crash left behind is taken over by then.
const FIRST: Duration = Duration::from_secs(5);
/// Runs looked at in one round, per status, oldest first.
const ROUND: usize = 10_000;
/// Groups of limits looked at in one round; of more, others each time.
const GROUPS: usize = 5_000;
/// A run younger than this has its work item on the way, ms.
const SETTLE_MS: u64 = 10_000;

impl Engine {
    pub(super) async fn look_after_runs(&self, stop: CancellationToken) {
        let (mut wait, mut from) = (FIRST, 0);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = EVERY;
            // With more runs than fit in a round, the next round goes on where this one ended.
            from = match self.reconcile_some(from).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(error = %error, "runs could not be looked after");
                    0
                }
            };
            if let Err(error) = self.reconcile_flow().await {
                tracing::warn!(error = %error, "limits and schedules could not be looked after");
            }
            if let Err(error) = self.runs().tidy(self.settings().keep).await {
                tracing::warn!(error = %error, "old runs could not be tidied away");
            }
        }
    }

    /// Slots whose holders are gone, lines that nobody calls, schedules without a timer.
    pub async fn reconcile_flow(&self) -> Result<(), Error> {
        for group in self.runs().some_groups(GROUPS).await? {
            let freed = self.runs().sweep(&group).await?;
            if freed > 0 {
                tracing::warn!(freed, group, "slots without a holder were freed");
            }
        }
        self.reconcile_schedules().await
    }

    /// One round over runs that have not ended, from the `from`-th oldest of each status on. Where the next round begins.
    async fn reconcile_some(&self, from: usize) -> Result<usize, Error> {
        let open = self.runs().open(from, ROUND).await?;
        for id in &open {
            match self.runs().reconcile(id, SETTLE_MS).await? {
                Reconciled::Ended | Reconciled::Going => {}
                Reconciled::Repaired => {
                    tracing::warn!(run = id, "nothing would have brought this run on; queued again");
                }
                Reconciled::Lost => {
                    let failure = Failure::limit("lost", "its work item was lost again and again");
                    let ending = Ending::Failed { error: failure.error, text: failure.text };
                    if let Some(run) = self.runs().run(id).await? {
                        self.end_run(&run, Guard::Any, &ending).await?;
                    }
                }
            }
        }
        Ok(if open.is_empty() { 0 } else { from + ROUND })
    }
}
