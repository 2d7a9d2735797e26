//! Durable functions: what runs after an event was dispatched.
//!
//! | folder | does |
//! |---|---|
//! | [`registry`] | which apps and functions there are, and what starts them |
//! | [`engine`] | starts runs, calls functions, brings runs on |
//! | [`store`] | runs as Redis holds them; the scripts |
//! | [`inngest`] | the server side of the Inngest protocol |
//! | [`schedule`] | cron expressions and their ticks |
//! | [`expr`] | conditions and keys: the Inngest flavour of CEL |

pub mod duration;
pub mod engine;
pub mod expr;
pub mod ids;
pub mod inngest;
pub mod registry;
pub mod schedule;
pub mod store;
