//! A condition on an event, made by whoever looks: streams know nothing of the language that it is written in.

use std::fmt;
use std::sync::Arc;

use super::envelope::Envelope;

/// Cheap to clone.
#[derive(Clone)]
pub struct Condition(Arc<dyn Fn(&Envelope) -> bool + Send + Sync>);

impl Condition {
    /// One that holds where `holds` says so.
    pub fn new(holds: impl Fn(&Envelope) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(holds))
    }

    /// Whether it holds. For an event that can't be decoded it does not.
    #[must_use]
    pub fn holds(&self, event: Option<&Envelope>) -> bool {
        event.is_some_and(|event| (self.0)(event))
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition").finish_non_exhaustive()
    }
}
