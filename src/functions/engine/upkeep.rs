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
/// A run younger than this has its work item on the way, ms.
const SETTLE_MS: u64 = 10_000;

impl Engine {
    pub(super) async fn look_after_runs(&self, stop: CancellationToken) {
        let mut wait = FIRST;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = EVERY;
            if let Err(error) = self.reconcile_all().await {
                tracing::warn!(error = %error, "runs could not be looked after");
            }
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
        for group in self.runs().groups().await? {
            let freed = self.runs().sweep(&group.group).await?;
            if freed > 0 {
                tracing::warn!(freed, function = group.function, key = group.key, "slots without a holder were freed");
            }
        }
        self.reconcile_schedules().await
    }

    /// One round over the runs that have not ended: how many were repaired and how many given up.
    pub async fn reconcile_all(&self) -> Result<(usize, usize), Error> {
        let now = self.runs().now_ms().await?;
        let (mut repaired, mut lost) = (0, 0);
        for chunk in self.runs().open(ROUND).await?.chunks(128) {
            for run in self.runs().runs(chunk).await? {
                if run.status.is_terminal() || now.saturating_sub(run.queued_ms) < SETTLE_MS {
                    continue;
                }
                match self.runs().reconcile(&run.id).await? {
                    Reconciled::Ended | Reconciled::Going => {}
                    Reconciled::Repaired => {
                        repaired += 1;
                        tracing::warn!(
                            run = run.id,
                            function = run.function,
                            "nothing would have brought this run on; queued again"
                        );
                    }
                    Reconciled::Lost => {
                        lost += 1;
                        let failure = Failure::limit("lost", "its work item was lost again and again");
                        let ending = Ending::Failed { error: failure.error, text: failure.text };
                        self.end_run(&run, Guard::Any, &ending).await?;
                    }
                }
            }
        }
        Ok((repaired, lost))
    }
}
