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

    /// The function of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<dyn Handler>> {
        self.0.get(name).cloned()
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
