//! Everything Redis holds: lanes, leases, retries, the journal, dead letters, pauses.
//!
//! No other folder names a key or calls a script. This folder knows nothing of handlers, HTTP or functions.
//! Time comes from Redis (`TIME`), not from the caller; scripts are bounded (batches ≤ 512).

pub mod append;
pub mod beside;
pub mod breaker;
pub mod bus;
pub mod complete;
pub mod condition;
pub mod control;
pub mod control_observer;
pub mod control_shed;
pub mod dead;
pub mod depth;
pub mod echoes;
pub mod entry_id;
pub mod envelope;
pub mod family;
pub mod find;
pub mod fsck;
pub mod journal;
pub mod json;
pub mod keys;
pub mod lane;
pub mod lease;
pub mod ledger;
pub mod look;
pub mod managed;
pub mod minutes;
mod model_key;
pub mod name_pattern;
pub mod priority;
pub mod public_id;
pub mod readers;
pub mod records;
pub mod redis;
pub mod residue;
pub mod retention;
mod rows;
pub mod scripts;
pub mod sessions;
pub mod steering;
pub mod trace;
pub mod written;
