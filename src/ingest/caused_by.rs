//! Who caused a request: the trace context that its events go on with.
//!
//! The server works it out once (`server/trace.rs`) and leaves it with the request.

use axum::http::Extensions;

use crate::streams::trace::TraceContext;

/// Left in the extensions of a request that belongs to a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausedBy {
    /// The span that the events have as their parent.
    pub context: TraceContext,
    /// `tracestate`, passed on as it came.
    pub state: Option<String>,
}

impl CausedBy {
    /// The envelope's trace object, as JSON text.
    #[must_use]
    pub fn object_of(extensions: &Extensions) -> Option<String> {
        let caused = extensions.get::<Self>()?;
        Some(caused.context.to_object(caused.state.as_deref()).as_str().to_owned())
    }
}
