//! The log of webhook deliveries: what came, what became of it, and the raw body, to look at and to replay.
//!
//! | key (after the tag) | type | holds |
//! |---|---|---|
//! | `:deliveries` | stream | `d` the record, JSON; `b` headers and body, JSON in gzip, or nothing |
//! | `:deliveries:bytes` | string | the sum of both over all entries |
//! | `:deliveries:replays:<ref>` | string, PX | how often one was replayed |
//!
//! # Invariants
//! 1. Only verified deliveries are kept: what nobody signed causes no write.
//! 2. Signatures and credentials are not stored.
//! 3. The answer to a sender never waits for the log. Its queue is bounded; what does not fit is counted and left out.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::answer::Answered;
use super::providers::DeliveryKey;
use super::signature::{Delivery, Slot, Verified};
use crate::config::Bodies;
use crate::diagnose::chain;
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::public_id;
use crate::streams::redis::{Error, ScriptCall};
use crate::streams::scripts::Script;

/// Deliveries that wait to be written.
const QUEUE: usize = 1024;
/// Deliveries of one call.
const BATCH: usize = 64;
/// The largest body that is unpacked.
const UNPACKED_MAX: u64 = 64 << 20;
/// Entries looked at in one read.
const PAGE: usize = 200;
/// How far an entry's id may be from the time in its ref, ms.
const SLACK_MS: u64 = 600_000;

static DELIVERIES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("deliveries.lua")));

/// Limits of the log.
#[derive(Debug, Clone, Copy)]
pub struct LogSettings {
    /// How long a delivery is kept.
    pub keep: Duration,
    /// What is kept of it.
    pub bodies: Bodies,
    /// Deliveries at most.
    pub count: u64,
    /// Bytes at most.
    pub bytes: u64,
}

/// One delivery of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// A ULID of when it arrived.
    #[serde(rename = "deliveryRef")]
    pub reference: String,
    /// Whose URL it was sent to.
    pub provider: String,
    /// The sender's id of it; `sha256:…` of its body where it has none.
    pub delivery_id: Option<String>,
    /// When it arrived.
    pub received_at: Option<String>,
    /// The status of the answer.
    pub status: u16,
    /// `accepted`, `dropped`, `duplicate`, `rejected`, `failed`, `spooled` or `challenge`.
    pub outcome: String,
    /// Why.
    pub reason: Option<String>,
    /// Its events.
    pub events: Vec<RecordedEvent>,
    /// Bytes of the body.
    pub bytes: usize,
    /// How long the answer took.
    pub ms: u64,
    /// `current` or `previous`.
    pub secret_slot: String,
    /// Who sent it, as far as we can know.
    pub client: String,
}

/// One event of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedEvent {
    /// The event name.
    pub name: String,
    /// Its id.
    pub id: Option<String>,
    /// `queue` or `direct`.
    pub route: String,
    /// Where it is stored.
    pub stream_id: Option<String>,
}

/// Headers and body of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// In their order.
    pub headers: Vec<(String, String)>,
    /// The body as it came, base64.
    body: String,
}

impl Kept {
    /// The body as it came.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        BASE64.decode(&self.body).unwrap_or_default()
    }

    /// The delivery, verified when it arrived.
    #[must_use]
    pub fn delivery(&self) -> Verified<Delivery> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.append(name, value);
            }
        }
        Verified::kept(Delivery { headers, raw: Bytes::from(self.body()) }, Slot::Current)
    }
}

/// Takes deliveries and has them written. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeliveryLog {
    queue: mpsc::Sender<Box<Answered>>,
    dropped: Arc<AtomicU64>,
}

impl DeliveryLog {
    /// A log over `bus`, and the task that writes it: it ends with `stop`, after writing what was taken.
    pub fn start(bus: Bus, settings: LogSettings, stop: CancellationToken) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = Self { queue: sender, dropped: dropped.clone() };
        (log, write(bus, settings, receiver, dropped, stop))
    }

    /// Takes a delivery that was answered, if it was verified. Never waits.
    pub fn take(&self, delivery: &Answered) {
        if delivery.slot.is_none() {
            return;
        }
        if self.queue.try_send(Box::new(delivery.clone())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn write(
    bus: Bus,
    settings: LogSettings,
    mut queue: mpsc::Receiver<Box<Answered>>,
    dropped: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let received = tokio::select! {
            received = queue.recv_many(&mut batch, BATCH) => received,
            () = stop.cancelled() => {
                // What was answered before the stop; what Redis does not take now is left out.
                queue.close();
                while queue.recv_many(&mut batch, BATCH).await > 0 {
                    if bus.note_deliveries(&settings, &batch).await.is_err() {
                        return;
                    }
                    batch.clear();
                }
                return;
            }
        };
        if received == 0 {
            return;
        }
        let mut pause = Duration::from_millis(200);
        // While Redis is away the queue fills up, and then deliveries are left out.
        while let Err(error) = bus.note_deliveries(&settings, &batch).await {
            tracing::debug!(error = %chain(&error), "deliveries were not noted");
            if !error.is_unreachable() {
                dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
                break;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
            }
        }
        batch.clear();
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(action = "webhook.log.incomplete", lost, "deliveries are missing from the log");
        }
    }
}

/// One entry of the log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is.
    pub id: EntryId,
    /// The delivery.
    pub record: Record,
    packed: Vec<u8>,
}

impl Entry {
    /// Headers and body, where they are kept.
    #[must_use]
    pub fn kept(&self) -> Option<Kept> {
        if self.packed.is_empty() {
            return None;
        }
        let mut text = Vec::new();
        GzDecoder::new(self.packed.as_slice()).take(UNPACKED_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// Which deliveries are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this provider.
    pub provider: Option<String>,
    /// With this outcome.
    pub outcome: Option<String>,
    /// That arrived after this, ms.
    pub since_ms: Option<u64>,
}

impl Filter {
    fn matches(&self, record: &Record) -> bool {
        self.provider.as_ref().is_none_or(|provider| *provider == record.provider)
            && self.outcome.as_ref().is_none_or(|outcome| *outcome == record.outcome)
    }
}

/// A part of the log, newest first.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// What was found.
    pub entries: Vec<Entry>,
    /// Where the next page goes on; `None` at the end.
    pub next: Option<EntryId>,
}

impl Bus {
    /// Writes deliveries, and forgets old ones.
    async fn note_deliveries(&self, settings: &LogSettings, batch: &[Box<Answered>]) -> Result<u64, Error> {
        let keep = settings.keep.as_millis();
        let mut call = ScriptCall::new(&DELIVERIES)
            .key(self.keys.deliveries())
            .key(self.keys.deliveries_bytes())
            .number(settings.count)
            .number(keep)
            .number(settings.bytes);
        for delivery in batch {
            call.push_arg(serde_json::to_string(&record(delivery)).unwrap_or_default());
            call.push_arg(packed(delivery, settings.bodies));
        }
        self.redis.run(call).await
    }

    /// Up to `limit` deliveries, newest first, from `before` (exclusive) on. At most `scan` entries are looked at.
    pub async fn deliveries(
        &self,
        filter: &Filter,
        before: Option<EntryId>,
        limit: usize,
        scan: usize,
    ) -> Result<Page, Error> {
        let mut page = Page::default();
        let mut end = before.map_or("+".to_owned(), |id| format!("({id}"));
        let start = filter.since_ms.map_or("-".to_owned(), |ms| ms.to_string());
        let mut looked = 0;
        loop {
            let mut cmd = redis::cmd("XREVRANGE");
            cmd.arg(self.keys.deliveries()).arg(&end).arg(&start).arg("COUNT").arg(PAGE);
            let rows = self.delivery_rows(&cmd).await?;
            let is_last = rows.len() < PAGE;
            for (id, entry) in rows {
                looked += 1;
                end = format!("({id}");
                page.entries.extend(entry.filter(|entry| filter.matches(&entry.record)));
                if page.entries.len() == limit || looked >= scan {
                    page.next = Some(id);
                    return Ok(page);
                }
            }
            if is_last {
                return Ok(page);
            }
        }
    }

    /// One delivery by its ref, or by the id of its entry.
    pub async fn delivery(&self, reference: &str) -> Result<Option<Entry>, Error> {
        let range = |from: &str, to: &str| {
            let mut cmd = redis::cmd("XRANGE");
            cmd.arg(self.keys.deliveries()).arg(from).arg(to).arg("COUNT").arg(PAGE);
            cmd
        };
        if let Ok(id) = reference.parse::<EntryId>() {
            let rows = self.delivery_rows(&range(&id.to_string(), &id.to_string())).await?;
            return Ok(rows.into_iter().find_map(|(_, entry)| entry));
        }
        let reference = reference.to_ascii_uppercase();
        let Some(ulid) = public_id::parse(&reference) else { return Ok(None) };
        let mut from = ulid.timestamp_ms().saturating_sub(SLACK_MS).to_string();
        let to = ulid.timestamp_ms().saturating_add(SLACK_MS).to_string();
        loop {
            let rows = self.delivery_rows(&range(&from, &to)).await?;
            let is_last = rows.len() < PAGE;
            for (id, entry) in rows {
                from = format!("({id}");
                if let Some(entry) = entry.filter(|entry| entry.record.reference == reference) {
                    return Ok(Some(entry));
                }
            }
            if is_last {
                return Ok(None);
            }
        }
    }

    /// Counts a replay: its number, from 1.
    pub async fn count_replay(&self, reference: &str, keep: Duration) -> Result<u64, Error> {
        let key = self.keys.deliveries_replays(reference);
        let number: u64 = self.redis.query(redis::cmd("INCR").arg(&key)).await?;
        let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).max(1);
        let _: u8 = self.redis.query(redis::cmd("PEXPIRE").arg(&key).arg(keep)).await?;
        Ok(number)
    }

    async fn delivery_rows(&self, cmd: &redis::Cmd) -> Result<Vec<(EntryId, Option<Entry>)>, Error> {
        let reply: redis::streams::StreamRangeReply = self.redis.query(cmd).await?;
        let rows = reply.ids.into_iter().filter_map(|row| {
            let id: EntryId = row.id.parse().ok()?;
            let field = |name: &str| -> Vec<u8> {
                row.map.get(name).cloned().and_then(|value| redis::from_redis_value(value).ok()).unwrap_or_default()
            };
            let record = serde_json::from_slice(&field("d")).ok();
            Some((id, record.map(|record| Entry { id, record, packed: field("b") })))
        });
        Ok(rows.collect())
    }
}

fn record(delivery: &Answered) -> Record {
    let received_ms = u64::try_from(delivery.received_ms).unwrap_or_default();
    let events = delivery.events.iter().map(|event| RecordedEvent {
        name: event.name.clone(),
        id: event.id.clone(),
        route: if event.is_queued { "queue" } else { "direct" }.to_owned(),
        stream_id: event.stream_id.clone(),
    });
    Record {
        reference: ulid::Ulid::from_parts(received_ms, rand::random::<u128>()).to_string(),
        provider: delivery.provider.to_owned(),
        delivery_id: delivery.key.as_ref().map(|key| match key {
            DeliveryKey::Id(id) => id.clone(),
            DeliveryKey::Hash(hash) => format!("sha256:{hash}"),
        }),
        received_at: crate::moment::iso(received_ms),
        status: delivery.status,
        outcome: delivery.outcome.as_str().to_owned(),
        reason: delivery.reason.clone(),
        events: events.collect(),
        bytes: delivery.raw.len(),
        ms: u64::try_from(delivery.took.as_millis()).unwrap_or(u64::MAX),
        secret_slot: delivery.slot.map_or("", Slot::label).to_owned(),
        client: delivery.client.to_string(),
    }
}

/// Headers and body in gzip; nothing when nothing is to be kept.
fn packed(delivery: &Answered, bodies: Bodies) -> Vec<u8> {
    if bodies == Bodies::Off {
        return Vec::new();
    }
    let headers = delivery.headers.iter().map(|(name, value)| {
        let is_secret = is_secret(name.as_str(), bodies);
        let shown =
            if is_secret { "[redacted]".into() } else { String::from_utf8_lossy(value.as_bytes()).into_owned() };
        (name.as_str().to_owned(), shown)
    });
    let kept = Kept { headers: headers.collect(), body: BASE64.encode(&delivery.raw) };
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory can't fail.
    let _ = packer.write_all(&serde_json::to_vec(&kept).unwrap_or_default());
    packer.finish().unwrap_or_default()
}

/// Whether a header's value proves who somebody is.
fn is_secret(name: &str, bodies: Bodies) -> bool {
    let always = ["signature", "authorization", "hmac"];
    let also = ["cookie", "token", "secret", "password", "api-key", "apikey", "credential", "session"];
    let holds = |words: &[&str]| words.iter().any(|word| name.contains(word));
    holds(&always) || (bodies == Bodies::Redacted && holds(&also))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::answer::Outcome;
    use super::*;

    fn answered() -> Answered {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-hub-signature-256", "sha256=aa"),
            ("authorization", "Bearer t"),
            ("x-todoist-hmac-sha256", "bb"),
            ("cookie", "c=1"),
            ("x-github-event", "push"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Answered {
            provider: "github",
            client: Ipv4Addr::LOCALHOST.into(),
            received_ms: 1_790_000_000_000,
            key: Some(DeliveryKey::Id("d-1".into())),
            slot: Some(Slot::Current),
            headers,
            raw: Bytes::from_static(b"{\"a\": 1}\xff"),
            outcome: Outcome::Accepted,
            reason: None,
            status: 200,
            events: Vec::new(),
            took: Duration::from_millis(3),
        }
    }

    #[test]
    fn credentials_are_left_out_and_the_body_is_as_it_came() {
        for (bodies, cookie) in [(Bodies::Redacted, "[redacted]"), (Bodies::Full, "c=1")] {
            let packed = packed(&answered(), bodies);
            let entry = Entry { id: EntryId::MIN, record: record(&answered()), packed };
            let kept = entry.kept().unwrap();
            assert_eq!(kept.body(), b"{\"a\": 1}\xff");
            let value = |name: &str| kept.headers.iter().find(|(known, _)| known == name).unwrap().1.clone();
            for name in ["x-hub-signature-256", "authorization", "x-todoist-hmac-sha256"] {
                assert_eq!(value(name), "[redacted]", "{name}");
            }
            assert_eq!((value("cookie").as_str(), value("x-github-event").as_str()), (cookie, "push"));
        }
        assert!(packed(&answered(), Bodies::Off).is_empty());
    }
}
