//! Everything Redis holds: lanes, leases, retries, the journal, dead letters, pauses.
//!
//! No other folder names a key or calls a script. This folder knows nothing of handlers, HTTP or functions.

pub mod append;
pub mod entry_id;
pub mod envelope;
pub mod family;
pub mod json;
pub mod lane;
pub mod managed;
pub mod priority;
pub mod redis;
