//! Native functions, by name.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _, ready};

use super::{Dispatch, Handler, Outcome};

/// Native functions, by name.
#[derive(Clone, Default)]
pub struct LocalFunctions(HashMap<String, Arc<dyn Handler>>);

impl LocalFunctions {
    /// `noop` and `log`.
    #[must_use]
    pub fn builtin() -> Self {
        let mut functions = Self::default();
        functions.0.insert("noop".into(), Arc::new(Noop));
        functions.0.insert("log".into(), Arc::new(Log));
        functions
    }

    /// Adds `function` as `name`; a function of that name is replaced.
    #[must_use]
    pub fn with<F, R>(mut self, name: &str, function: F) -> Self
    where
        F: Fn(Dispatch) -> R + Send + Sync + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        self.0.insert(name.to_owned(), Arc::new(Native { name: name.to_owned(), function }));
        self
    }

    /// The function of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<dyn Handler>> {
        self.0.get(name).cloned()
    }
}

struct Native<F> {
    name: String,
    function: F,
}

impl<F, R> Handler for Native<F>
where
    F: Fn(Dispatch) -> R + Send + Sync,
    R: Future<Output = Outcome> + Send + 'static,
{
    fn kind(&self) -> &'static str {
        "local"
    }

    fn target(&self) -> &str {
        &self.name
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        if dispatch.cancel.is_cancelled() {
            return ready(Outcome::Cancelled).boxed();
        }
        (self.function)(dispatch).boxed()
    }
}

struct Noop;

impl Handler for Noop {
    fn kind(&self) -> &'static str {
        "local"
    }

    fn target(&self) -> &'static str {
        "noop"
    }

    fn ends_at_once(&self) -> bool {
        true
    }

    fn run(&self, _: Dispatch) -> BoxFuture<'_, Outcome> {
        ready(Outcome::Done).boxed()
    }
}

struct Log;

impl Handler for Log {
    fn kind(&self) -> &'static str {
        "local"
    }

    fn target(&self) -> &'static str {
        "log"
    }

    fn ends_at_once(&self) -> bool {
        true
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        let envelope = &dispatch.envelope;
        tracing::info!(event = %envelope.name, id = envelope.id, attempt = dispatch.attempt, "handled");
        ready(Outcome::Done).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::streams::entry_id::EntryId;
    use crate::streams::envelope::Envelope;
    use crate::streams::json::JsonObject;
    use crate::streams::priority::Priority;

    fn dispatch(attempt: u32) -> Dispatch {
        let envelope = Envelope {
            v: 1,
            id: "evt-1".into(),
            name: "a/b".parse().unwrap(),
            source: "cli".into(),
            ts: 1,
            data: JsonObject::default(),
            priority: Priority::P1,
            dedup_key: None,
            trace: None,
            triage: None,
            meta: None,
        };
        Dispatch {
            envelope: Arc::new(envelope),
            entry_id: EntryId { ms: 1, seq: 2 },
            attempt,
            fence: 1,
            redrives: 0,
            timeout: Duration::from_secs(1),
            cancel: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn the_built_in_functions_end_at_once() {
        for name in ["noop", "log"] {
            let function = LocalFunctions::builtin().get(name).unwrap();
            assert_eq!((function.kind(), function.target(), function.ends_at_once()), ("local", name, true));
            assert_eq!(function.run(dispatch(1)).now_or_never(), Some(Outcome::Done));
        }
        assert!(LocalFunctions::builtin().get("none").is_none());
    }

    #[tokio::test]
    async fn a_function_of_ones_own_is_given_the_dispatch_unless_it_was_cancelled() {
        let functions = LocalFunctions::builtin().with("second", async |dispatch: Dispatch| match dispatch.attempt {
            2.. => Outcome::Done,
            _ => Outcome::Retry { error: "not yet".into(), not_before: None, status: None },
        });
        let function = functions.get("second").unwrap();
        assert_eq!((function.kind(), function.target(), function.ends_at_once()), ("local", "second", false));
        assert!(matches!(function.run(dispatch(1)).await, Outcome::Retry { .. }));
        assert_eq!(function.run(dispatch(2)).await, Outcome::Done);
        let cancelled = dispatch(2);
        cancelled.cancel.cancel();
        assert_eq!(function.run(cancelled).await, Outcome::Cancelled);
    }
}
