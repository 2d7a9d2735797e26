//! Whether Redis is known to be away, so that an outage costs senders no waiting.
//!
//! An append tries for two seconds before it gives up. Did each delivery do so, thousands of requests would hang under
//! load, until sockets run out. So from the first failure on all are refused at once, those that wait included, but one:
//! it tries, and its success is the end of the outage. No clock, no task of its own.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outage {
    is_on: watch::Sender<bool>,
    is_probed: AtomicBool,
}

/// Leave to try Redis during an outage; others get it once this is dropped.
#[derive(Debug)]
pub(super) struct Probe<'a>(&'a AtomicBool);

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Outage {
    pub(super) fn is_on(&self) -> bool {
        *self.is_on.borrow()
    }

    /// An append failed for want of Redis.
    pub(super) fn begin(&self) {
        self.set(true);
    }

    /// An append succeeded.
    pub(super) fn end(&self) {
        self.set(false);
    }

    fn set(&self, on: bool) {
        self.is_on.send_if_modified(|is_on| std::mem::replace(is_on, on) != on);
    }

    /// Leave to try, unless somebody has it.
    pub(super) fn probe(&self) -> Option<Probe<'_>> {
        (!self.is_probed.swap(true, Ordering::SeqCst)).then(|| Probe(&self.is_probed))
    }

    /// Ends when an outage is on.
    pub(super) async fn until_on(&self) {
        // The sender lives as long as `self`.
        let _ = self.is_on.subscribe().wait_for(|on| *on).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_tries_and_the_others_are_told_at_once() {
        let outage = Outage::default();
        assert!(!outage.is_on());
        outage.begin();
        outage.until_on().await;
        let probe = outage.probe();
        assert!(probe.is_some() && outage.probe().is_none());
        drop(probe);
        let second = outage.probe();
        assert!(second.is_some());
        outage.end();
        assert!(!outage.is_on());
    }
}
