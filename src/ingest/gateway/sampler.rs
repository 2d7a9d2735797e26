//! Reports of what strangers cause, thinned out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::ingest::signature::Refusal;

/// One report per provider and cause within a span, with the number of cases since the last one: senders of bad
/// signatures are anybody, and must not be able to fill a log.
#[derive(Debug, Default)]
pub(super) struct Sampler(Mutex<HashMap<Cause, (Instant, u64)>>);

/// Provider and refusal; no refusal is a missing secret.
type Cause = (&'static str, Option<Refusal>);

impl Sampler {
    /// Counts a case; the count when it is to be reported now.
    pub(super) fn count(&self, provider: &'static str, cause: Option<Refusal>, span: Duration) -> Option<u64> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let Some((reported, waiting)) = seen.get_mut(&(provider, cause)) else {
            seen.insert((provider, cause), (now, 0));
            return Some(1);
        };
        *waiting += 1;
        if now.duration_since(*reported) < span {
            return None;
        }
        *reported = now;
        Some(std::mem::take(waiting))
    }
}
