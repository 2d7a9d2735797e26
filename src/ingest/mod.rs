//! Ingest: how events get in. Every way in ends in [`admission`], and an answer is given only after the append.
//!
//! | way in | file | proof of the sender |
//! |---|---|---|
//! | `POST /webhooks/<provider>` | [`gateway`], `providers/` one file each | the provider's signature over the raw bytes |
//! | `POST /e/<key>` | [`event_api`] | an event key |
//! | `joelclaw queue emit` | the command line calls [`admission`] | access to Redis |
//!
//! # Invariants
//! 1. Only a [`signature::Verified`] delivery can be normalised; normalising is pure.
//! 2. A success answer means that every event of the request is stored, or was stored before.
//! 3. A batch is validated whole before its first append.

pub mod admission;
pub mod answer;
pub mod caused_by;
pub mod deliveries;
pub mod deliveries_replay;
pub mod disabled;
pub mod event_api;
pub mod fields;
pub mod gateway;
pub mod html;
pub mod kept;
pub mod limiter;
pub mod name_filter;
pub mod peer;
pub mod providers;
pub mod request_body;
pub mod signature;
pub mod sources;
pub mod spool;
mod triaged;
