//! Bulk cancellations, so that clients can list what they asked for. `:fn:cancellations` (hash): id → JSON.

use super::Runs;
use crate::streams::redis::Error;

impl Runs {
    /// Keeps one.
    pub async fn keep_cancellation(&self, id: &str, text: &str) -> Result<(), Error> {
        self.bus.redis.query(redis::cmd("HSET").arg(self.key("cancellations")).arg(id).arg(text)).await
    }

    /// All of them, the newest first: their ids are ULIDs.
    pub async fn cancellations(&self) -> Result<Vec<(String, String)>, Error> {
        let mut all: Vec<(String, String)> =
            self.bus.redis.query(redis::cmd("HGETALL").arg(self.key("cancellations"))).await?;
        all.sort_by(|one, other| other.0.cmp(&one.0));
        Ok(all)
    }

    /// Forgets one; false when there is none of this id.
    pub async fn forget_cancellation(&self, id: &str) -> Result<bool, Error> {
        let removed: u64 = self.bus.redis.query(redis::cmd("HDEL").arg(self.key("cancellations")).arg(id)).await?;
        Ok(removed > 0)
    }
}
