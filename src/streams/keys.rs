//! Every key, in one place. All of one partition share a hash tag, so a script may touch any of them in a cluster.
//!
//! `T` = `{<prefix>:<partition>}`; there is one partition, 0, until more are needed.

use super::family::Family;
use super::lane::Lane;

/// The form of our keys. It rises when an older program could no longer work with them.
pub const SCHEMA: u64 = 1;
/// The consumer group: the drainers' cursor over a lane.
pub const GROUP: &str = "drainer";
/// The consumer that holds entries waiting for a retry.
pub const RETRY_CONSUMER: &str = "~retry";
/// The consumer that holds entries given back before a handler saw them.
pub const HANDBACK_CONSUMER: &str = "~handback";
/// Readers block on lanes up to this many, above it on the wake list (see ARCHITECTURE.md, D3).
pub const MAX_BLOCKING_LANES: usize = 128;

/// Names keys under one prefix.
#[derive(Debug, Clone)]
pub struct Keys {
    tag: String,
}

impl Keys {
    /// Keys under `{<prefix>:0}`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { tag: format!("{{{prefix}:0}}") }
    }

    fn named(&self, name: &str) -> String {
        format!("{}:{name}", self.tag)
    }

    /// The tag itself, for scripts that build `T:seen:<day>` from Redis's own date.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Stream of events, field `e`.
    #[must_use]
    pub fn lane(&self, lane: &Lane) -> String {
        format!("{}:lane:{lane}", self.tag)
    }

    /// Hash: lane → `first_ms,last_ms`.
    #[must_use]
    pub fn lanes(&self) -> String {
        self.named("lanes")
    }

    /// Set of known event names.
    #[must_use]
    pub fn families(&self) -> String {
        self.named("families")
    }

    /// Zset: session → heartbeat expiry, ms; 0 once fenced.
    #[must_use]
    pub fn sessions(&self) -> String {
        self.named("sessions")
    }

    /// String, PX: details of one session as JSON.
    #[must_use]
    pub fn session(&self, id: &str) -> String {
        format!("{}:session:{id}", self.tag)
    }

    /// Zset: family → its earliest due time, ms.
    #[must_use]
    pub fn due(&self) -> String {
        self.named("due")
    }

    /// Zset: `p<0-3>|<entry id>` → due time, ms.
    #[must_use]
    pub fn due_of(&self, family: &Family) -> String {
        format!("{}:due:{family}", self.tag)
    }

    /// Hash: `p<0-3>|<entry id>` → failures so far (MessagePack), only for entries that failed.
    #[must_use]
    pub fn failures_of(&self, family: &Family) -> String {
        format!("{}:failures:{family}", self.tag)
    }

    /// Zset: `<lane>|<event id>` → when, ms.
    #[must_use]
    pub fn later(&self) -> String {
        self.named("later")
    }

    /// Hash: `<lane>|<event id>` → envelope.
    #[must_use]
    pub fn later_data(&self) -> String {
        self.named("later:data")
    }

    /// String, PX: the first event of a dedup window. Keys over 200 bytes are stored as their SHA-256.
    #[must_use]
    pub fn dedup(&self, family: &Family, key: &str) -> String {
        if key.len() > 200 {
            use sha2::Digest as _;
            return format!("{}:dedup:{family}:sha256:{}", self.tag, hex::encode(sha2::Sha256::digest(key)));
        }
        format!("{}:dedup:{family}:{key}", self.tag)
    }

    /// String, PX: the answers of one append call.
    #[must_use]
    pub fn call(&self, token: &str) -> String {
        format!("{}:call:{token}", self.tag)
    }

    /// Set of lanes with something to read, kept above [`MAX_BLOCKING_LANES`].
    #[must_use]
    pub fn ready(&self) -> String {
        self.named("ready")
    }

    /// List of wake tokens.
    #[must_use]
    pub fn wake(&self) -> String {
        self.named("wake")
    }

    /// Stream of dead letters: `e` as it was, `r` the record.
    #[must_use]
    pub fn dead(&self) -> String {
        self.named("dead")
    }

    /// Stream, PX: operator-acknowledged entries of one batch.
    #[must_use]
    pub fn trash(&self, batch: &str) -> String {
        format!("{}:trash:{batch}", self.tag)
    }

    /// Hash: family → pause record, JSON.
    #[must_use]
    pub fn pauses(&self) -> String {
        self.named("pauses")
    }

    /// Zset: family → when its pause ends, ms.
    #[must_use]
    pub fn pause_expiry(&self) -> String {
        self.named("pause-expiry")
    }

    /// Hash: `priority|<family>` or `pace|<family>` → steering, JSON.
    #[must_use]
    pub fn steering(&self) -> String {
        self.named("steering")
    }

    /// Zset: the same → when it ends, ms.
    #[must_use]
    pub fn steering_expiry(&self) -> String {
        self.named("steering-expiry")
    }

    /// Hash: family → what is used of the window of its pace.
    #[must_use]
    pub fn pace(&self) -> String {
        self.named("pace")
    }

    /// Hash: family → circuit breaker, JSON; a closed one has no field.
    #[must_use]
    pub fn breaker(&self) -> String {
        self.named("breaker")
    }

    /// What the observer keeps, by name: `lease`, `last-run`, `open`, `fence`, `last`, `kill`, `memory`, `applied`,
    /// `probe`, `reported`, `digest`.
    #[must_use]
    pub fn observer(&self, name: &str) -> String {
        format!("{}:observer:{name}", self.tag)
    }

    /// Stream of journal batches.
    #[must_use]
    pub fn journal(&self) -> String {
        self.named("journal")
    }

    /// Set: `<lane>|<entry id>` taken from a live lease by force.
    #[must_use]
    pub fn revoked(&self) -> String {
        self.named("revoked")
    }

    /// Channel of hints: pause, resume, new lane.
    #[must_use]
    pub fn ctl(&self) -> String {
        self.named("ctl")
    }

    /// Hash: instance id, schema version, creation time.
    #[must_use]
    pub fn meta(&self) -> String {
        self.named("meta")
    }

    /// String, PX: which session may run an `ordered` family.
    #[must_use]
    pub fn ordered(&self, family: &Family) -> String {
        format!("{}:ordered:{family}", self.tag)
    }

    /// Hash: reader of the journal → `<entry id>,<1 when retention waits for it>,<seconds>`.
    #[must_use]
    pub fn cursors(&self) -> String {
        self.named("journal:cursors")
    }

    /// String, PX: which process reads the journal under this name.
    #[must_use]
    pub fn reader_lease(&self, reader: &str) -> String {
        format!("{}:journal:lease:{reader}", self.tag)
    }

    /// String: what a reader of the journal must remember beside its cursor.
    #[must_use]
    pub fn reader_state(&self, reader: &str) -> String {
        format!("{}:journal:state:{reader}", self.tag)
    }

    /// Outbound webhooks: `endpoints`, `disabled` (hashes by endpoint id), `ahead` (hash by lane) and `rev`.
    #[must_use]
    pub fn outbound(&self, name: &str) -> String {
        format!("{}:outbound:{name}", self.tag)
    }

    /// Hash: how one endpoint of outbound webhooks does.
    #[must_use]
    pub fn outbound_health(&self, endpoint: &str) -> String {
        format!("{}:outbound:health:{endpoint}", self.tag)
    }

    /// Hash: provider of webhooks → why it is disabled, JSON.
    #[must_use]
    pub fn webhooks_disabled(&self) -> String {
        self.named("webhooks:disabled")
    }

    /// Stream: the log of webhook deliveries.
    #[must_use]
    pub fn deliveries(&self) -> String {
        self.named("deliveries")
    }

    /// String: bytes of that log.
    #[must_use]
    pub fn deliveries_bytes(&self) -> String {
        self.named("deliveries:bytes")
    }

    /// String, PX: how often one delivery was replayed.
    #[must_use]
    pub fn deliveries_replays(&self, reference: &str) -> String {
        format!("{}:deliveries:replays:{reference}", self.tag)
    }

    /// Hash, PX: histograms of one kind and minute.
    #[must_use]
    pub fn latency(&self, kind: &str, minute: u64) -> String {
        format!("{}:latency:{kind}:{minute}", self.tag)
    }

    /// Hash, PX: what was counted in one minute.
    #[must_use]
    pub fn counts(&self, minute: u64) -> String {
        format!("{}:counts:{minute}", self.tag)
    }
}
