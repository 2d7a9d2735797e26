//! Telemetry: what the journal says, made countable, and carried elsewhere.
//!
//! [`latency`] holds percentiles, [`projection`] makes them (and counts) from the journal. Nothing here is on the path of an
//! event: the journal is written with each state change, and everything else reads it.

pub mod latency;
pub mod projection;
