//! Outbound webhooks: endpoints of other people that are sent our events, signed as Standard Webhooks.
//!
//! An *endpoint* is a URL with patterns of event names, a condition, a secret. A *delivery* is one event for one
//! endpoint: an entry of the endpoint's own family, `outbound/<endpoint id>`. So the drainer's leases, retries, pauses,
//! dead letters and takeover are those of deliveries, and nothing here survives a crash by machinery of its own.
//!
//! | file | does |
//! |---|---|
//! | [`endpoint`] | what an endpoint is; which events it wants |
//! | [`shape`] | conditions on content, and the form in which an event is sent; pure |
//! | [`store`] | endpoints in Redis, and the snapshot that a process works with |
//! | [`fan_out`] | one event → its deliveries |
//! | [`ahead`] | the same for events that wait for a function |
//! | [`deliver`] | one delivery → one request, and what its answer means |
//! | [`sign`] | `webhook-signature` |
//! | [`client`] | the request, to addresses that [`crate::net::guard`] takes |
//! | [`breaker`] | leaves an endpoint alone that fails; pure |
//! | [`figures`] | what Prometheus is told |
//! | [`expiry`] | drops dead letters past their time |
//!
//! | key (after the tag) | type | holds |
//! |---|---|---|
//! | `:outbound:endpoints` | hash | id → endpoint, JSON, with its secret |
//! | `:outbound:disabled` | hash | id → why and since when, JSON |
//! | `:outbound:health:<id>` | hash | `failingSince`, `failures`, `lastSuccess`, `lastFailure`, `lastStatus`, `lastError` |
//! | `:outbound:ahead` | hash | lane → the entry up to which its events were fanned out before their dispatch |
//! | `:outbound:rev` | string | rises with every change of an endpoint |
//!
//! # Invariants
//! 1. A delivery has its event's id, and ids are remembered per family: an event that is dispatched again makes no
//!    second delivery.
//! 2. `webhook-id` is the event's id for every attempt and redrive: receivers tell a repetition by it.
//! 3. The address that was checked is the address that is connected to; redirects are not followed.
//! 4. A secret is shown once, when it is made; no log, error, journal record or `Debug` holds it.
//!
//! # Edges
//! Conditions are evaluated by [`crate::functions::expr`], which depends on nothing else of the functions engine; the
//! arrow is `service`, `cli` → `outbound` → `functions`. The drainer knows nothing of endpoints: the service gives it
//! their families' plans.

pub mod ahead;
pub mod breaker;
pub mod client;
pub mod deliver;
pub mod endpoint;
pub mod expiry;
pub mod fan_out;
pub mod figures;
mod hub;
pub mod shape;
pub mod sign;
pub mod store;

pub use hub::{Outbound, Settings};

/// The start of every family of deliveries.
pub const FAMILY: &str = "outbound/";
/// Deliveries under way to one endpoint, in one process.
pub const PER_ENDPOINT: u32 = 4;
/// The family of an endpoint's end: appended when it is disabled.
pub const DISABLED: &str = "webhook/endpoint.disabled";
/// Appended when a delivery's last attempt failed.
pub const EXHAUSTED: &str = "webhook/endpoint.delivery.exhausted";
