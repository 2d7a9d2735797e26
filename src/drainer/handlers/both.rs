//! Two handlers for one event: the functions that it triggers, then what the registry names.
//!
//! The first must be able to take the same event twice: it is given it again when the second one fails.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Dispatch, Handler, Outcome};

/// See the module.
pub struct Both {
    first: Arc<dyn Handler>,
    second: Arc<dyn Handler>,
}

impl Both {
    /// `second` runs once `first` is done.
    #[must_use]
    pub const fn new(first: Arc<dyn Handler>, second: Arc<dyn Handler>) -> Self {
        Self { first, second }
    }
}

impl Handler for Both {
    fn kind(&self) -> &'static str {
        self.second.kind()
    }

    fn target(&self) -> &str {
        self.second.target()
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.first.run(dispatch.clone()).await {
                Outcome::Done => self.second.run(dispatch).await,
                other => other,
            }
        })
    }
}
