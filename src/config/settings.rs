//! Every setting, once: variable, kind, default, meaning. `joelclaw config --docs` prints this file as a table.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::declare::{
    Declared, argv, bytes, choice, cidrs, count, flag, fraction, http_url, ip, key_prefix, list, memory_budget, ms,
    optional, optional_text, path, seconds, secret, settings, share, span, span_or_off, spans, text, words,
};
use super::units::{Cidr, MemoryBudget};
pub use super::webhook_secrets::{PATTERNS, SecretRow, Variables, WEBHOOK_SECRETS};

/// The largest event anyone can allow: an entry has to fit a script call, a lane read and a journal page.
pub const MAX_EVENT_BYTES_LIMIT: u64 = 3 << 20;
/// The first delay doubles with each failure up to this.
pub const MAX_BACKOFF: Duration = Duration::from_secs(600);

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

const DATA_DIR: &str =
    if cfg!(target_os = "macos") { "~/Library/Application Support/system-bus" } else { "~/.local/share/system-bus" };

/// No tools, no session: the model reads untrusted payloads.
const MODEL_COMMAND: &str = r#"["pi","-p","--no-session","--mode","json","--no-extensions","--no-tools","--models","{model}","--system-prompt","{system}"]"#;

/// What triage may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TriageMode {
    /// Nothing.
    #[default]
    Off,
    /// Decide beside admission, change nothing.
    Shadow,
    /// Shape priority and dedup key.
    Enforce,
}

/// What a dedup key that a model made may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TriageDedup {
    /// Suppress an event whose data is the same as the first one's.
    #[default]
    Verify,
    /// Suppress on the key alone.
    Trust,
    /// Nothing: it is recorded.
    Off,
}

/// How families of one priority share the drainer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fairness {
    /// Deficit round robin: a burst of one family can't starve another.
    Drr,
    /// Strict time order.
    Off,
}

/// What becomes of ticks of a cron schedule that no server was there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissedTicks {
    /// The last one fires.
    Last,
    /// None fires.
    Skip,
}

/// When an append is answered as accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurabilityClass {
    /// Redis answered.
    Memory,
    /// On the disk of the Redis that answered.
    Disk,
    /// On a replica as well.
    Replica,
}

/// Whose deliveries are kept on disk while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolFor {
    /// Of providers that never send again.
    NoRetryProviders,
    /// Of all.
    All,
    /// Of none.
    Off,
}

/// What the log of webhook deliveries keeps of headers and bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bodies {
    /// Nothing.
    Off,
    /// The body, and headers without whatever may be a credential.
    Redacted,
    /// The body, and headers without signatures and authorization.
    Full,
}

/// How an OpenTelemetry collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// HTTP with protobuf bodies.
    Http,
    /// gRPC.
    Grpc,
}

/// Whose `traceparent` is the parent of what follows from a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceTrust {
    /// Nobody's.
    None,
    /// This machine's and private networks'.
    Internal,
    /// Everybody's.
    All,
}

/// `OTEL_TRACES_SAMPLER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceSampler {
    /// What decides about a trace that begins here.
    pub own: OwnTraces,
    /// A context from outside decides about its trace.
    pub follows_parent: bool,
}

/// Which traces that begin here are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnTraces {
    /// All.
    On,
    /// None.
    Off,
    /// The share that `OTEL_TRACES_SAMPLER_ARG` says.
    Ratio,
}

/// The names that OpenTelemetry gives them.
const SAMPLERS: [(&str, TraceSampler); 6] = [
    ("always_on", TraceSampler { own: OwnTraces::On, follows_parent: false }),
    ("always_off", TraceSampler { own: OwnTraces::Off, follows_parent: false }),
    ("traceidratio", TraceSampler { own: OwnTraces::Ratio, follows_parent: false }),
    ("parentbased_always_on", TraceSampler { own: OwnTraces::On, follows_parent: true }),
    ("parentbased_always_off", TraceSampler { own: OwnTraces::Off, follows_parent: true }),
    ("parentbased_traceidratio", TraceSampler { own: OwnTraces::Ratio, follows_parent: true }),
];

/// Which reports break through quiet hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakthrough {
    /// None.
    None,
    /// Escalations of severity `error`.
    Error,
}

/// What the observer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObserverMode {
    /// Nothing: it does not run.
    Off,
    /// It looks and says what it would do.
    DryRun,
    /// It pauses and resumes.
    Enforce,
}

impl ObserverMode {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::DryRun => "dry-run",
            Self::Enforce => "enforce",
        }
    }
}

settings! {
    /// Where things are, and how the program talks.
    pub struct SystemConfig in "system" {
        /// The routing table, merged over the built-in entries; relative to the env file. A change is picked up without a restart.
        registry: PathBuf = path(), "SYSTEM_BUS_REGISTRY", default "registry.toml";
        /// The start of every key in Redis. Two installations on one Redis need two prefixes.
        key_prefix: String = key_prefix(), "SYSTEM_BUS_KEY_PREFIX", default "joelclaw:bus";
        /// Data of the managed Redis, and its socket. The default on macOS is `~/Library/Application Support/system-bus`.
        data_dir: PathBuf = path(), "SYSTEM_BUS_DATA_DIR", default DATA_DIR;
        /// Log filter, as `info` or `system_bus=debug,warn`. Unset: errors for commands, info for services.
        log: Option<String> = optional(text()), "SYSTEM_BUS_LOG", default "";
    }

    /// What the queue accepts and keeps.
    pub struct QueueConfig in "queue" {
        /// Emitters that use the queue: github, discovery, discovery-captured, subscriptions, content.
        pilot_words: Vec<String> = words(), "QUEUE_PILOTS", default "";
        /// When an append is answered: in Redis's memory, on its disk, or on a replica.
        durability: DurabilityClass = choice(&[("memory", DurabilityClass::Memory), ("disk", DurabilityClass::Disk), ("replica", DurabilityClass::Replica)]), "QUEUE_DURABILITY", default "memory";
        /// The largest event, envelope included. Keep bigger payloads elsewhere and emit a reference.
        max_event_bytes: usize = bytes(1024..=MAX_EVENT_BYTES_LIMIT), "QUEUE_MAX_EVENT_BYTES", default "512KiB";
        /// Event names known at most: names come from outside, and each lane costs about 5 KB in Redis.
        max_families: usize = count(1..=1_000_000), "QUEUE_MAX_FAMILIES", default "10000";
        /// Appends are refused above this much of Redis's memory; acknowledging, pausing and redriving go on.
        memory_budget: MemoryBudget = memory_budget(), "QUEUE_MEMORY_BUDGET", default "80%";
        /// How long finished entries stay, to inspect and replay. Undelivered ones are never trimmed.
        retain: Option<Duration> = span_or_off(), "QUEUE_RETAIN", default "24h";
        /// Finished entries kept per family, newest first. Unset: no limit by count.
        retain_count: Option<u64> = optional(count(1..=1_000_000_000)), "QUEUE_RETAIN_COUNT", default "";
        /// Bytes of finished entries kept per family. Unset: no limit by size.
        retain_bytes: Option<u64> = optional(bytes(1024..=1 << 50)), "QUEUE_RETAIN_BYTES", default "";
        /// How long the journal of what happened stays.
        journal_retain: Duration = span(), "QUEUE_JOURNAL_RETAIN", default "7d";
        /// How long an id given by the caller is remembered; 0 turns that off.
        seen_ttl: Duration = ms(0..=30 * DAY_MS), "QUEUE_SEEN_TTL_MS", default "86400000";
        /// The longest pause anyone may ask for.
        pause_max_ttl: Duration = ms(60_000..=30 * DAY_MS), "QUEUE_PAUSE_MAX_TTL_MS", default "86400000";
    }

    /// How the drainer dispatches.
    pub struct DrainerConfig in "drainer" {
        /// Off: the process stays up and reports `disabled`.
        is_enabled: bool = flag(), "QUEUE_DRAINER_ENABLED", default "true";
        /// Dispatches in flight in this process. Raise it when handlers wait on the network; family limits hold below it.
        concurrency: usize = count(1..=4096), "QUEUE_DRAINER_CONCURRENCY", default "16";
        /// The safety tick: due retries, expiries, lost wake-ups. New events wake the drainer at once.
        interval: Duration = ms(50..=HOUR_MS), "QUEUE_DRAIN_INTERVAL_MS", default "2000";
        /// Delay before the second attempt; doubles to 10 min with each failure, with full jitter.
        failure_backoff: Duration = ms(1..=600_000), "QUEUE_DRAIN_FAILURE_BACKOFF_MS", default "1000";
        /// Attempts before an entry becomes a dead letter.
        max_attempts: u32 = count(1..=1000), "QUEUE_DRAIN_MAX_ATTEMPTS", default "12";
        /// Connect and answer of an append to an external Inngest server.
        send_timeout: Duration = ms(1..=HOUR_MS), "QUEUE_DRAIN_SEND_TIMEOUT_MS", default "10000";
        /// `http` and `command` handlers, unless their registry entry says otherwise.
        handler_timeout: Duration = ms(1..=DAY_MS), "QUEUE_DRAIN_HANDLER_TIMEOUT_MS", default "15000";
        /// How long a dispatch may go unrenewed before another drainer takes the entry. Renewed at a third.
        lease: Duration = ms(1000..=HOUR_MS), "QUEUE_DRAIN_LEASE_MS", default "30000";
        /// The watchdog ends the process when nothing moved for this long and nothing explains it.
        stall_after: Duration = ms(1000..=DAY_MS), "QUEUE_DRAIN_STALL_AFTER_MS", default "45000";
        /// P2 and P3 gain one level per this much waiting, never above P1.
        aging_promotion: Duration = ms(100..=30 * DAY_MS), "QUEUE_AGING_PROMOTION_MS", default "300000";
        /// How long a stop waits for handlers before it hands their entries back.
        stop_deadline: Duration = ms(1..=HOUR_MS), "QUEUE_STOP_DEADLINE_MS", default "10000";
        /// Entries read ahead per lane. They are leased while they wait, so keep it small.
        prefetch: usize = count(1..=256), "QUEUE_PREFETCH", default "4";
        /// Bytes read ahead in all.
        prefetch_bytes: usize = bytes(64 << 10..=1 << 30), "QUEUE_PREFETCH_BYTES", default "8MiB";
        /// A family whose target fails again and again is not read for a while, then tried with one event at a time. An entry of the registry may set its own thresholds, or `breaker = false`.
        is_breaker_enabled: bool = flag(), "QUEUE_BREAKER", default "on";
        /// `drr` shares fairly among the families of one priority; `off` is strict time order.
        fairness: Fairness = choice(&[("drr", Fairness::Drr), ("off", Fairness::Off)]), "QUEUE_FAIRNESS", default "drr";
        /// Dispatches that go to the oldest entry below the chosen level, so that endless P0 can't stop P2.
        low_share: f64 = share(), "QUEUE_LOW_SHARE", default "5%";
    }

    /// The HTTP server.
    pub struct ServerConfig in "server" {
        /// The port.
        port: u16 = count(1..=65_535), "WORKER_PORT", default "3111";
        /// The address to listen on. Loopback unless set: the operator endpoints share the port with the webhooks, so opening it to a network is a decision (a tunnel or reverse proxy reaches loopback).
        bind: IpAddr = ip(), "WORKER_BIND", default "127.0.0.1";
        /// How often a process that serves and drains sends an event through itself; it is ready while they come back. 0 turns it off.
        canary_interval: Duration = ms(0..=DAY_MS), "SYSTEM_BUS_CANARY_INTERVAL_MS", default "20000";
        /// What this process is among several: `host`, where agents run, or `cluster`. Anything else counts as `host`.
        role: String = text(), "WORKER_ROLE", default "host";
        /// Where files that agents leave for each other are.
        claw_dir: PathBuf = path(), "JOELCLAW_DATA_DIR", default "~/.joelclaw";
    }

    /// The webhook gateway.
    pub struct WebhookConfig in "webhook" {
        /// The largest body of a delivery.
        max_body_bytes: usize = bytes(1..=26_214_400), "WEBHOOK_MAX_BODY_BYTES", default "262144";
        /// How long a delivery id is remembered. A week covers GitHub's three days of manual redelivery.
        dedup_ttl: Duration = seconds(1..=2_592_000), "WEBHOOK_DEDUP_TTL_SECONDS", default "604800";
        /// Failed verifications per provider and address before 429.
        auth_failure_limit: u32 = count(1..=1_000_000), "WEBHOOK_AUTH_FAILURE_LIMIT", default "20";
        /// The window of that limit.
        auth_failure_window: Duration = seconds(1..=86_400), "WEBHOOK_AUTH_FAILURE_WINDOW_SECONDS", default "60";
        /// Deadline of the append; below every provider's own deadline, the shortest being 5 s.
        append_timeout: Duration = ms(1..=60_000), "WEBHOOK_APPEND_TIMEOUT_MS", default "4000";
        /// Whose `x-forwarded-for` is believed.
        trusted_proxies: Vec<Cidr> = cidrs(), "WEBHOOK_TRUSTED_PROXIES", default "127.0.0.0/8,::1";
        /// How far a signed time may be from ours, both ways.
        timestamp_tolerance: Duration = seconds(1..=86_400), "WEBHOOK_TIMESTAMP_TOLERANCE_SECONDS", default "300";
        /// How long a delivery that only its body tells from others is remembered.
        hash_dedup_ttl: Duration = seconds(1..=2_592_000), "WEBHOOK_HASH_DEDUP_TTL_SECONDS", default "300";
        /// Senders that follow Standard Webhooks, by id, comma-separated: each is served at `/webhooks/<id>`.
        sources: Vec<String> = list(), "WEBHOOK_SOURCES", default "";
        /// Senders that need no code, described in a file; relative to the env file. A change is picked up without a restart.
        sources_file: PathBuf = path(), "WEBHOOK_SOURCES_FILE", default "webhooks.toml";
        /// Asked for each secret that is set nowhere else: its words, with `{name}` for the name in the store and `{ttl}` for the time. Not asked when there is no such program. Empty turns it off.
        secrets_command: String = optional_text(), "WEBHOOK_SECRETS_COMMAND", default "secrets lease {name} --ttl {ttl}";
        /// How long a secret of that command is good; it is asked again at four fifths of it.
        secrets_ttl: Duration = span(), "WEBHOOK_SECRETS_TTL", default "24h";
        /// Whose deliveries are kept on disk while Redis is away: of providers that never send again, of all, or of none.
        spool: SpoolFor = choice(&[("no-retry-providers", SpoolFor::NoRetryProviders), ("all", SpoolFor::All), ("off", SpoolFor::Off)]), "WEBHOOK_SPOOL", default "no-retry-providers";
        /// Where.
        spool_dir: PathBuf = path(), "WEBHOOK_SPOOL_DIR", default "~/.joelclaw/webhook-spool";
        /// Bytes of them; beyond it the answer is 503.
        spool_max_bytes: u64 = bytes(64 << 10..=1 << 40), "WEBHOOK_SPOOL_MAX_BYTES", default "256MiB";
        /// Drop what is, by its own time, older than WEBHOOK_DEDUP_TTL_SECONDS, where no signed time tells a replay (github, vercel, todoist, front rules). Off unless set: a delivery that somebody sends again by hand may be of any age.
        reject_expired: bool = flag(), "WEBHOOK_REJECT_EXPIRED", default "false";
        /// GitHub events that are passed on as they are, comma-separated: `push,pull_request`. They are named `github/<event>.<action>`.
        github_passthrough: Vec<String> = list(), "GITHUB_WEBHOOK_PASSTHROUGH", default "";
        /// The relay must sign a time.
        joelclaw_require_timestamp: bool = flag(), "JOELCLAW_WEBHOOK_REQUIRE_TIMESTAMP", default "false";
        /// Events that the relay may emit, comma-separated, with `*` for any text. Empty: all but `inngest/…`.
        joelclaw_allowed_events: Vec<String> = list(), "JOELCLAW_WEBHOOK_ALLOWED_EVENTS", default "";
        /// Address ranges that endpoints of outbound webhooks, and requests that functions have the server make, may reach although they are not public; endpoints there also by http.
        allowed_subnets: Vec<Cidr> = cidrs(), "WEBHOOK_ALLOWED_SUBNETS", default "";
        /// How long one request to an endpoint may take.
        endpoint_timeout: Duration = ms(100..=300_000), "WEBHOOK_ENDPOINT_TIMEOUT_MS", default "15000";
        /// What is waited after each failed attempt, a fifth more or less. When the attempt after the last one fails, the delivery is a dead letter.
        endpoint_retries: Vec<Duration> = spans(), "WEBHOOK_ENDPOINT_RETRIES", default "5s,5m,30m,2h,5h,10h,10h";
        /// An endpoint that did nothing but fail for so long is disabled.
        endpoint_disable_after: Option<Duration> = span_or_off(), "WEBHOOK_ENDPOINT_DISABLE_AFTER", default "5d";
        /// How long deliveries that an endpoint did not take stay among the dead letters.
        endpoint_dead_retain: Option<Duration> = span_or_off(), "WEBHOOK_ENDPOINT_DEAD_RETAIN", default "14d";
        /// How long deliveries that came in stay in their log.
        log_retention_hours: u64 = count(1..=8_760), "WEBHOOK_LOG_RETENTION_HOURS", default "72";
        /// What the log keeps of them: the body and headers without credentials, headers without signatures and authorization alone, or neither headers nor body.
        log_bodies: Bodies = choice(&[("redacted", Bodies::Redacted), ("full", Bodies::Full), ("off", Bodies::Off)]), "WEBHOOK_LOG_BODIES", default "redacted";
        /// Deliveries in the log at most.
        log_max_entries: u64 = count(1..=10_000_000), "WEBHOOK_LOG_MAX_ENTRIES", default "20000";
        /// Bytes of the log at most.
        log_max_bytes: u64 = bytes(64 << 10..=1 << 40), "WEBHOOK_LOG_MAX_BYTES", default "64MiB";
    }

    /// An external Inngest server for `inngest` handlers.
    pub struct InngestConfig in "inngest" {
        /// The server. Needs INNGEST_EVENT_KEY.
        url: Option<String> = optional(http_url()), "INNGEST_URL", default "", environment_first;
        /// Its event key.
        event_key: Option<SecretString> = optional(secret()), "INNGEST_EVENT_KEY", default "", environment_first;
        /// The signing key: apps and this server prove to each other who they are. Unset: dev mode, for this machine only.
        signing_key: Option<SecretString> = optional(secret()), "INNGEST_SIGNING_KEY", default "", environment_first;
        /// The key before or after a rotation, accepted too.
        signing_key_fallback: Option<SecretString> = optional(secret()), "INNGEST_SIGNING_KEY_FALLBACK", default "", environment_first;
    }

    /// Functions: the engine, and the apps that it calls.
    pub struct FunctionsConfig in "functions" {
        /// Where SDK apps look for a dev server; served beside WORKER_PORT while the port is free. 0 turns it off.
        port: u16 = count(0..=65_535), "INNGEST_PORT", default "8288";
        /// Calls of functions in flight in this process.
        calls: usize = count(1..=100_000), "FUNCTIONS_CONCURRENCY", default "1000";
        /// How long one call of a function may take.
        call_timeout: Duration = ms(100..=7 * DAY_MS), "FUNCTIONS_CALL_TIMEOUT_MS", default "7200000";
        /// A constant delay between attempts, instead of 15 s growing to 2 h.
        retry_interval: Option<Duration> = optional(seconds(1..=86_400)), "INNGEST_RETRY_INTERVAL", default "";
        /// Steps of one run.
        max_steps: u32 = count(1..=10_000), "FUNCTIONS_MAX_STEPS", default "1000";
        /// Bytes of all step results of one run.
        max_state_bytes: u64 = bytes(1 << 20..=512 << 20), "FUNCTIONS_MAX_STATE_BYTES", default "32MiB";
        /// How long completed and cancelled runs stay.
        retain: Duration = span(), "FUNCTIONS_RETAIN", default "7d";
        /// How long failed runs stay.
        retain_failed: Duration = span(), "FUNCTIONS_RETAIN_FAILED", default "30d";
        /// Ticks of cron schedules that no server was there for: `last` runs the last one, `skip` none.
        cron_missed: MissedTicks = choice(&[("last", MissedTicks::Last), ("skip", MissedTicks::Skip)]), "FUNCTIONS_CRON_MISSED", default "last";
        /// How often every app is asked what it serves.
        sync_interval: Duration = seconds(1..=3_600), "INNGEST_POLL_INTERVAL", default "10";
        /// Apps that need not register themselves, comma-separated: `http://localhost:3000/api/inngest`.
        app_urls: Vec<String> = list(), "INNGEST_SDK_URLS", default "";
        /// Names in app URLs that stand for other hosts, comma-separated: `host.docker.internal=127.0.0.1`.
        host_aliases: Vec<String> = list(), "INNGEST_HOST_ALIASES", default "";
    }

    /// The observer: looks at the queue, and holds a family while what is downstream of it is away.
    pub struct ObserverConfig in "observer" {
        /// Off, looking on (`dry-run`), or pausing and resuming (`enforce`).
        mode: ObserverMode = choice(&[("off", ObserverMode::Off), ("dry-run", ObserverMode::DryRun), ("enforce", ObserverMode::Enforce)]), "QUEUE_OBSERVER_MODE", default "off";
        /// Event names that it looks at, or the aliases discovery, content, subscriptions, github. Empty: all that the aliases stand for.
        families: Vec<String> = words(), "QUEUE_OBSERVER_FAMILIES", default "";
        /// Event names that it may pause and resume; only `content/updated` (alias `content`) can be one.
        auto_families: Vec<String> = words(), "QUEUE_OBSERVER_AUTO_FAMILIES", default "";
        /// Seconds between two passes, at least 60.
        interval: String = text(), "QUEUE_OBSERVER_INTERVAL_SECONDS", default "60";
        /// Who decides, in order: rules, command, openai, anthropic, none. A model is asked only where the rules before it have nothing to say.
        providers: Vec<String> = words(), "QUEUE_OBSERVER_PROVIDER", default "rules,command";
        /// The model asked for.
        model: String = text(), "QUEUE_OBSERVER_MODEL", default "anthropic/claude-sonnet-4-6";
        /// How long all providers of one pass may take together.
        timeout: Duration = ms(100..=600_000), "QUEUE_OBSERVER_TIMEOUT_MS", default "60000";
        /// The longest pause that it applies.
        max_ttl: Duration = ms(60_000..=DAY_MS), "QUEUE_OBSERVER_MAX_TTL_MS", default "900000";
        /// After an operator's resume it leaves the family alone for so long.
        manual_quiet: Duration = ms(0..=DAY_MS), "QUEUE_OBSERVER_MANUAL_QUIET_MS", default "900000";
        /// Hours of the day, in SYSTEM_BUS_TZ, in which reports are kept back: `23-7`, or `off`.
        quiet_hours: String = text(), "QUEUE_OBSERVER_QUIET_HOURS", default "23-7";
        /// Reports that are sent in quiet hours all the same.
        breakthrough: Breakthrough = choice(&[("none", Breakthrough::None), ("error", Breakthrough::Error)]), "QUEUE_OBSERVER_BREAKTHROUGH", default "none";
        /// The time zone of quiet hours, as `Europe/Berlin`.
        time_zone: String = text(), "SYSTEM_BUS_TZ", default "UTC";
    }

    /// Where telemetry goes beside the journal.
    pub struct TelemetryConfig in "telemetry" {
        /// `/observability/emit` of another node, which gets every journal record in lists. Unset: none does.
        forward_url: Option<String> = optional(http_url()), "OTEL_FORWARD_URL", default "", environment_first;
        /// Sent there as `x-otel-emit-token`. Unset: OTEL_EMIT_TOKEN.
        forward_token: Option<SecretString> = optional(secret()), "OTEL_FORWARD_TOKEN", default "", environment_first;
        /// What callers of `/internal/…` and `/observability/emit` have to send as `x-otel-emit-token`.
        emit_token: Option<SecretString> = optional(secret()), "OTEL_EMIT_TOKEN", default "", environment_first;
        /// Off: the journal is still written, but nothing reads it: no percentiles ahead of time, no sinks, no metrics of the queue.
        is_enabled: bool = flag(), "OTEL_EVENTS_ENABLED", default "true";
        /// Where telemetry that others post waits while Redis is away. Unset: `outbox` in SYSTEM_BUS_DATA_DIR.
        outbox_dir: Option<PathBuf> = optional(path()), "OTEL_OUTBOX_DIR", default "";
        /// Bytes of it; beyond that such telemetry is refused.
        outbox_max_bytes: u64 = bytes(64 << 10..=1 << 40), "OTEL_OUTBOX_MAX_BYTES", default "256MiB";
        /// Every journal record is written to files as well, one JSON document a line.
        jsonl_is_enabled: bool = flag(), "OTEL_JSONL_ENABLED", default "true";
        /// Where. Unset: `otel` in SYSTEM_BUS_DATA_DIR.
        jsonl_dir: Option<PathBuf> = optional(path()), "OTEL_JSONL_DIR", default "";
        /// Bytes of one of these files; then it is packed.
        jsonl_max_bytes: u64 = bytes(64 << 10..=1 << 40), "OTEL_JSONL_MAX_BYTES", default "64MiB";
        /// Bytes of all of them; then the oldest go.
        jsonl_max_total_bytes: u64 = bytes(1 << 20..=1 << 50), "OTEL_JSONL_MAX_TOTAL_BYTES", default "2GiB";
        /// How long they stay.
        jsonl_retention: Duration = span(), "OTEL_JSONL_RETENTION", default "14d";
        /// An OpenTelemetry collector that gets every journal record as a log, and spans. Unset: none does.
        otlp_endpoint: Option<String> = optional(http_url()), "OTEL_EXPORTER_OTLP_ENDPOINT", default "", environment_first;
        /// How it is spoken to.
        otlp_protocol: OtlpProtocol = choice(&[("http/protobuf", OtlpProtocol::Http), ("grpc", OtlpProtocol::Grpc)]), "OTEL_EXPORTER_OTLP_PROTOCOL", default "http/protobuf", environment_first;
        /// Headers for it: `key=value`, comma-separated.
        otlp_headers: Option<SecretString> = optional(secret()), "OTEL_EXPORTER_OTLP_HEADERS", default "", environment_first;
        /// How long one export may take.
        otlp_timeout: Duration = ms(100..=600_000), "OTEL_EXPORTER_OTLP_TIMEOUT", default "10000", environment_first;
        /// Whether it gets spans: `otlp`, or `none`.
        traces_are_exported: bool = choice(&[("otlp", true), ("none", false)]), "OTEL_TRACES_EXPORTER", default "otlp", environment_first;
        /// Which traces it gets. Errors, retries, dead letters and waits above 5 s are always told.
        traces_sampler: TraceSampler = choice(&SAMPLERS), "OTEL_TRACES_SAMPLER", default "parentbased_traceidratio", environment_first;
        /// The share of traces that the samplers with `ratio` keep.
        traces_sampler_arg: f64 = fraction(), "OTEL_TRACES_SAMPLER_ARG", default "0.1", environment_first;
        /// Whose `traceparent` header is the parent of what a request causes; that of others is only a link.
        trust_traceparent: TraceTrust = choice(&[("none", TraceTrust::None), ("internal", TraceTrust::Internal), ("all", TraceTrust::All)]), "SYSTEM_BUS_TRUST_TRACEPARENT", default "internal";
        /// The name of this service there.
        service_name: String = text(), "OTEL_SERVICE_NAME", default "system-bus", environment_first;
        /// The name of this machine in telemetry. Unset: its host name.
        system_id: Option<String> = optional(text()), "SLOG_SYSTEM_ID", default "", environment_first;
        /// Where `/metrics` is served for Prometheus. Empty turns it off; requests from this machine get it at WORKER_PORT as well.
        metrics_addr: Option<String> = optional(text()), "SYSTEM_BUS_METRICS_ADDR", default "127.0.0.1:9464";
        /// Event names that metrics tell apart; the others are `_other`.
        metrics_max_families: usize = count(1..=1000), "SYSTEM_BUS_METRICS_MAX_FAMILIES", default "64";
        /// How long the histograms of one minute stay. Below QUEUE_JOURNAL_RETAIN, older windows are told from less.
        minute_retention: Duration = span(), "OTEL_HDR_MINUTE_RETENTION", default "7d";
        /// Bytes of the journal above which retention no longer waits for a sink that stands still.
        trim_force_bytes: u64 = bytes(1 << 20..=1 << 50), "OTEL_TRIM_FORCE_BYTES", default "1GiB";
    }

    /// Triage: what an event's priority and dedup key should be, beside what sender and registry say.
    pub struct TriageConfig in "triage" {
        /// What triage may do; per family it is clamped further.
        mode: TriageMode = choice(&[("off", TriageMode::Off), ("shadow", TriageMode::Shadow), ("enforce", TriageMode::Enforce)]), "QUEUE_TRIAGE_MODE", default "off";
        /// Families that take part: event names, or discovery, content, subscriptions, github. Blank: all of these.
        families: Vec<String> = words(), "QUEUE_TRIAGE_FAMILIES", default "";
        /// Families that enforce already in mode shadow: discovery, github, or their event names. Others are ignored.
        enforce_families: Vec<String> = words(), "QUEUE_TRIAGE_ENFORCE_FAMILIES", default "";
        /// Who is asked, in order: rules, command, openai, anthropic, or none.
        providers: Vec<String> = words(), "QUEUE_TRIAGE_PROVIDER", default "rules,command";
        /// The model they are asked for.
        model: String = text(), "QUEUE_TRIAGE_MODEL", default "anthropic/claude-haiku-4-5";
        /// One deadline for the whole chain. Unset: 45000 in shadow, 2000 in enforce, where an append waits for it.
        timeout: Option<Duration> = optional(ms(50..=600_000)), "QUEUE_TRIAGE_TIMEOUT_MS", default "";
        /// What a dedup key that a model made may do: suppress equal data only, suppress on the key alone, or nothing.
        dedup: TriageDedup = choice(&[("verify", TriageDedup::Verify), ("trust", TriageDedup::Trust), ("off", TriageDedup::Off)]), "QUEUE_TRIAGE_DEDUP", default "verify";
        /// The deterministic rules; relative to the env file. A change is picked up without a restart.
        rules: PathBuf = path(), "QUEUE_TRIAGE_RULES", default "triage.toml";
    }

    /// The model that triage and the observer may ask. Without one, rules decide and nothing waits.
    pub struct ModelConfig in "model" {
        /// Requests in flight in one process; with more than one, a slot is kept for the observer.
        concurrency: usize = count(1..=64), "SYSTEM_BUS_MODEL_CONCURRENCY", default "2";
        /// The program that the provider `command` runs, as a JSON array. `{model}` and `{system}` are filled in; the prompt is on its stdin.
        command: Vec<String> = argv(), "SYSTEM_BUS_MODEL_COMMAND", default MODEL_COMMAND;
        /// The endpoint of the providers `openai` (up to and with `/v1`) and `anthropic` (without it). Unset: the vendor's.
        base_url: Option<String> = optional(http_url()), "SYSTEM_BUS_MODEL_BASE_URL", default "";
        /// The key of that endpoint.
        api_key: Option<SecretString> = optional(secret()), "SYSTEM_BUS_MODEL_API_KEY", default "";
        /// The same from a file; wins over the others.
        api_key_file: Option<PathBuf> = optional(path()), "SYSTEM_BUS_MODEL_API_KEY_FILE", default "";
        /// The same from what a program prints, as a JSON array; wins over SYSTEM_BUS_MODEL_API_KEY.
        api_key_command: Option<Vec<String>> = optional(argv()), "SYSTEM_BUS_MODEL_API_KEY_COMMAND", default "";
    }

    /// Runtimes beside this one that `joelclaw jobs status` looks at. Unset: not looked at.
    pub struct RuntimesConfig in "runtimes" {
        /// The admin address of a Restate server.
        restate_admin_url: Option<String> = optional(http_url()), "RESTATE_ADMIN_URL", default "", environment_first;
        /// The address of a Dkron server.
        dkron_url: Option<String> = optional(http_url()), "DKRON_URL", default "", environment_first;
    }
}

/// Every declared setting, in order.
pub fn declared() -> Vec<Declared> {
    let mut all = declared_parts();
    all.extend(super::webhook_secrets::declared());
    all
}
