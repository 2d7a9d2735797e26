//! Telemetry: what the journal says, made countable, and carried elsewhere.
//!
//! [`latency`] holds percentiles, [`projection`] makes them (and counts) from the journal; [`sinks`] carry its records as
//! [`event`]s to files and collectors, all at a [`pace`] that leaves the machine to the events. Nothing here is on the
//! path of an event: the journal is written with each state change, and everything else reads it.

pub mod event;
pub mod latency;
pub mod metrics;
pub mod outbox;
pub mod pace;
pub mod posted;
pub mod projection;
pub mod sinks;
pub mod spans;
