//! Limits and switches of the gateway.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::config::{Cidr, SpoolFor};
use crate::ingest::limiter::Rate;
use crate::ingest::name_filter::NameFilter;

/// Limits and switches of the gateway. The caller fills it from the configuration.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Largest body in bytes, inclusive.
    pub max_body_bytes: usize,
    /// Exceptions from `max_body_bytes`, by provider id.
    pub max_body_bytes_of: HashMap<String, usize>,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a durable append may take; below every provider's own deadline.
    pub append_timeout: Duration,
    /// How long a delivery id is remembered.
    pub dedup_window: Duration,
    /// How long a delivery known only by its body is remembered.
    pub hash_dedup_window: Duration,
    /// How far a signed time may be from ours, both ways, inclusive.
    pub tolerance: Duration,
    /// Failed verifications per provider and address before its requests are refused.
    pub auth_failure_limit: u32,
    /// The window of that count.
    pub auth_failure_window: Duration,
    /// Most valid deliveries, by provider id.
    pub rate_limits: HashMap<String, Rate>,
    /// Whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Emitters that use the queue, lower case.
    pub pilots: BTreeSet<String>,
    /// Whose deliveries may go into the spool.
    pub spool_for: SpoolFor,
    /// Which of its events are taken, by provider id.
    pub filters: HashMap<String, NameFilter>,
    /// Drop what is, by its own time, older than `dedup_window`, where no signed time tells a replay.
    pub rejects_expired: bool,
    /// The largest event that an append takes, envelope included.
    pub max_event_bytes: usize,
    /// A clock that stands still, seconds since the epoch: for tests and recorded requests. `None` is the system's.
    pub now_s: Option<i64>,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            max_body_bytes: 262_144,
            max_body_bytes_of: HashMap::new(),
            body_timeout: Duration::from_secs(10),
            append_timeout: Duration::from_secs(4),
            dedup_window: Duration::from_secs(604_800),
            hash_dedup_window: Duration::from_secs(300),
            tolerance: Duration::from_secs(300),
            auth_failure_limit: 20,
            auth_failure_window: Duration::from_secs(60),
            rate_limits: HashMap::new(),
            trusted_proxies: Cidr::loopback().to_vec(),
            pilots: BTreeSet::new(),
            spool_for: SpoolFor::NoRetryProviders,
            filters: HashMap::new(),
            rejects_expired: false,
            max_event_bytes: 512 * 1024,
            now_s: None,
        }
    }
}
