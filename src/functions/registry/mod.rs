//! The registry of apps and functions: what every event starts, wherever it came from.
//!
//! | key (after the tag) | type | holds |
//! |---|---|---|
//! | `:fn:apps` | hash | app name → [`AppRecord`] as JSON |
//! | `:fn:functions` | hash | slug → [`Function`] as JSON |
//! | `:fn:archived` | hash | slug of a function that its app no longer serves → since when, ms |
//! | `:fn:paused` | hash | `fn:<slug>`, `app:<name>` → who paused it and why, as JSON |
//! | `:fn:waited` | hash | event names that runs wait for → since when, ms |
//! | `:fn:rev` | string | rises with every change of these |
//!
//! Every process holds a [`Snapshot`] and asks for the revision once a second.
//!
//! # Invariants
//! 1. An app's functions change in one script; a document with one wrong function changes nothing.
//! 2. A function that is gone is archived, not deleted: its runs end with what they began.

pub mod definition;
pub mod flow;
mod series;
mod snapshot;
mod store;

pub use definition::{App, Cancel, Function, Invalid, Registration, Trigger};
pub use series::Series;
pub use snapshot::{INTERNAL, Snapshot, patterns};
pub use store::{AppRecord, Health, Registered, Registry};
