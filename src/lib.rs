//! system-bus: webhooks and scripts append events to Redis Streams; one binary runs handlers on them and loses nothing.
//!
//! Arrows point one way: `cli`, `service`, `bench` → `server`, `observer`, `outbound` → `functions` → `drainer`, `ingest` → `registry` → `streams` → `config`.
//! [`streams`] knows nothing of handlers, HTTP or functions. [`diagnose`], [`known_secrets`], [`moment`], [`net`] and [`whole_file`] are used by every layer.

pub mod bench;
pub mod cli;
pub mod config;
pub mod diagnose;
pub mod drainer;
pub mod functions;
pub mod ingest;
pub mod known_secrets;
pub mod model;
pub mod moment;
pub mod net;
pub mod observer;
pub mod outbound;
pub mod registry;
pub mod server;
pub mod service;
pub mod streams;
pub mod telemetry;
pub mod triage;
pub mod whole_file;
