//! Redis's clock, estimated here: ages and waits are judged by it, not by this machine's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// This machine's clock plus the offset last measured against Redis's.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
}

impl Clock {
    /// Takes a fresh reading of Redis's clock.
    pub fn set(&self, redis_ms: u64) {
        let offset = i64::try_from(redis_ms).unwrap_or(i64::MAX).saturating_sub(local_ms());
        self.offset_ms.store(offset, Ordering::Relaxed);
    }

    /// Now, ms since the epoch by Redis's clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        u64::try_from(local_ms().saturating_add(self.offset_ms.load(Ordering::Relaxed))).unwrap_or(0)
    }
}

fn local_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}
