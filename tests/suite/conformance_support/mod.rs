//! Apps on the real SDKs against the built binary.
//!
//! ```ignore
//! mod conformance_support;
//! mod support;
//! use conformance_support::{Sdk, Stage, each_sdk};
//!
//! each_sdk!(a_function_returns);                       // js4::a_function_returns, js3::…, py::…
//!
//! async fn a_function_returns(sdk: Sdk) {
//!     let stage = Stage::start().await;                // Redis and `joelclaw up`; gone at drop, like the app
//!     let app = stage.app(sdk).await;                  // started and registered
//!     let run = stage.ended_run_of(&stage.send("conf/hello", json!({})).await).await;
//!     assert_eq!(run.status, "Completed");
//!     assert_eq!(app.steps_of(&run.id).await["which"], 1);
//! }
//! ```
//!
//! The apps are below `tests/conformance`; their functions are in `js/functions.mjs` and `py/functions.py`.
#![allow(dead_code, unused_imports, unused_macros)] // Each test file uses a part of it.

mod app;
mod stage;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, LocalBoxFuture, join_all};

pub use app::{App, Call, Settings};
pub use stage::{Keys, Run, Stage};

/// How long anything may take before a test fails.
pub const LONG: Duration = Duration::from_secs(60);

/// How often each step ran.
pub type Counts = BTreeMap<String, usize>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    Js4,
    Js3,
    Py,
}

impl Sdk {
    pub fn is_js(self) -> bool {
        self != Self::Py
    }

    /// The version of the protocol that it answers with; it decides how parallel branches come together.
    pub fn request_version(self) -> u8 {
        match self {
            Self::Js3 => 1,
            Self::Js4 | Self::Py => 2,
        }
    }

    /// Whether it reports steps while the call goes on, instead of ending the call with each.
    pub fn checkpoints(self) -> bool {
        self == Self::Js4
    }
}

/// A test for each SDK from one function: `each_sdk!(a, b; js: c; js4: d)`, where `c` and `d` are for some of them.
macro_rules! each_sdk {
    ($($all:ident),+ $(; js: $($js:ident),+)? $(; js4: $($js4:ident),+)?) => {
        mod js4 { $crate::conformance_support::sdk_tests!(Js4: $($all),+ $(, $($js),+)? $(, $($js4),+)?); }
        mod js3 { $crate::conformance_support::sdk_tests!(Js3: $($all),+ $(, $($js),+)?); }
        mod py { $crate::conformance_support::sdk_tests!(Py: $($all),+); }
    };
}
macro_rules! sdk_tests {
    ($sdk:ident: $($name:ident),+) => {
        $(#[tokio::test]
        async fn $name() {
            super::$name($crate::conformance_support::Sdk::$sdk).await;
        })+
    };
}
pub(crate) use each_sdk;
pub(crate) use sdk_tests;

/// Runs scenarios side by side on one server and one app, to the end of each, and then names those that failed.
macro_rules! side_by_side {
    ($stage:expr, $app:expr; $($name:ident),+ $(,)?) => {
        $crate::conformance_support::all(vec![
            $((stringify!($name), futures_util::FutureExt::boxed_local($name($stage, $app)))),+
        ]).await
    };
}
pub(crate) use side_by_side;

/// See [`side_by_side`].
pub async fn all(scenarios: Vec<(&'static str, LocalBoxFuture<'_, ()>)>) {
    let guarded = scenarios.into_iter().map(|(name, scenario)| async move {
        let outcome = AssertUnwindSafe(scenario).catch_unwind().await;
        outcome.is_err().then_some(name) // The panic itself has been printed where it happened.
    });
    let failed: Vec<_> = join_all(guarded).await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}
