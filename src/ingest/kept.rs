//! Appends for those who are told "kept" and never send again: confirmed once a kill of Redis can't undo them.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::admission::Append;
use crate::diagnose::chain;
use crate::streams::append::{Appended, Appender, Durability, Error, NewEvent};
use crate::streams::bus::Bus;
use crate::streams::written::Written;

/// An appender that waits until what it appended is written ([`Written`]).
#[derive(Debug, Clone)]
pub struct Kept {
    appender: Appender,
    written: Written,
}

impl Kept {
    /// Appends through `appender`, which appends to `bus`.
    #[must_use]
    pub fn new(appender: Appender, bus: &Bus) -> Arc<Self> {
        Arc::new(Self { appender, written: Written::new(bus) })
    }
}

impl Append for Kept {
    fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>, Error>> {
        Box::pin(async move {
            let appended = self.appender.append(events).await?;
            match self.written.wait().await {
                Ok(()) => Ok(appended),
                // Sent again it is known by its ids, whether it is there or not.
                Err(error) => Err(Error::NotDurable { wanted: Durability::Memory, detail: chain(&error) }),
            }
        })
    }
}
