//! Spans of HTTP requests on their way to the exporter. All other spans are made from the journal
//! ([`super::sinks::traces`]); a request that changed nothing has no record there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::mpsc;

use crate::streams::trace::TraceContext;

/// Spans that may wait; what comes on top of them is dropped and counted.
const WAITING: usize = 2048;

/// One request.
#[derive(Debug, Clone)]
pub struct HttpSpan {
    /// Its own.
    pub context: TraceContext,
    /// The span of a caller that we trust.
    pub parent: Option<TraceContext>,
    /// The span of one that we don't.
    pub link: Option<TraceContext>,
    /// When it came.
    pub began: SystemTime,
    /// When it was answered.
    pub ended: SystemTime,
    /// `POST`.
    pub method: String,
    /// The pattern of the route.
    pub route: String,
    /// The webhook's provider.
    pub provider: Option<&'static str>,
    /// HTTP status.
    pub status: u16,
}

/// Hands spans to the exporter. Cheap to clone; never waits.
#[derive(Debug, Clone)]
pub struct Spans {
    sender: mpsc::Sender<HttpSpan>,
    dropped: Arc<AtomicU64>,
}

impl Spans {
    /// The two ends.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<HttpSpan>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender, dropped: Arc::default() }, receiver)
    }

    /// Offers a span.
    pub fn record(&self, span: HttpSpan) {
        if self.sender.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Spans that found no place.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
