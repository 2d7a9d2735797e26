//! What the system did itself elsewhere, so that its echo is known when it comes back as a webhook.
//!
//! | key | type | changed by |
//! |---|---|---|
//! | `joelclaw:todoist:agent-closed` | zset: task → ms at which it is forgotten | whoever closes a task in Todoist |
//!
//! The key stands outside our prefix, because programs that are no part of this one add to it:
//! `ZADD joelclaw:todoist:agent-closed <ms, now + 60000> <task id>` before closing, `ZREM` when closing failed.

use super::bus::Bus;
use super::redis::Error;

/// See the module.
pub const CLOSED_TASKS: &str = "joelclaw:todoist:agent-closed";

impl Bus {
    /// Whether we closed this task a moment ago.
    pub async fn is_closed_by_us(&self, task: &str) -> Result<bool, Error> {
        let mut command = redis::cmd("ZSCORE");
        command.arg(CLOSED_TASKS).arg(task);
        let until: Option<f64> = self.redis.query(&command).await?;
        let Some(until) = until else { return Ok(false) };
        Ok(self.now_ms().await? as f64 <= until)
    }
}
