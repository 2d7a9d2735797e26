//! The projection: minute histograms and counts, made from the journal behind a stored cursor.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:latency:<kind>:<minute>`, `:counts:<minute>` | hash, PX | `project.lua`, in the step that moves the cursor |
//! | `:journal:cursors`, `:journal:state:stats` | see [`crate::streams::readers`] | the same |
//!
//! One process at a time follows the journal ([`Follower`]); [`window`] reads what it made, and folds for itself the two
//! ends that whole minutes can't tell: from the asked moment to the next minute, and what the cursor has not reached.
//!
//! # Invariants
//! 1. Dropping every key here and replaying ([`replay`]) gives the same bytes: the fold is pure ([`fold`]), a minute is that
//!    of the journal batch, and output and cursor move together.
//! 2. A window is right while the projection is behind, stopped, or in the middle of a replay: it then costs more reading.

mod check;
pub mod fold;
mod follow;
mod window;

use super::latency::kind;

pub use check::{Checked, check};
pub use follow::{Follower, Taken, replay};
pub use window::{Window, by_family, folded, window, window_within};

/// Its name among the readers of the journal.
pub const NAME: &str = "stats";
/// The kinds that it makes; the others are the recorder's.
const KINDS: [&str; 6] = [kind::WAIT, kind::WAIT_ACTIVE, kind::DISPATCH, kind::E2E, kind::TRIAGE, kind::OBSERVE];
/// The writer of its histograms.
const WRITER: &str = "journal";
