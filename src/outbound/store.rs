//! Endpoints in Redis, and the snapshot that a process works with. The keys are listed in [`super`].

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::client::Attempt;
use super::endpoint::{Disabled, Endpoint};
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::journal;
use crate::streams::lane::Lane;
use crate::streams::records::Fact;
use crate::streams::redis::{Error, ScriptCall};
use crate::streams::scripts::Script;

/// How often the revision is asked for.
const POLL: Duration = Duration::from_secs(1);
/// Characters of an error that the health keeps.
const ERROR_CHARS: usize = 500;

static PUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/put.lua")));
static OUTCOME: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/outcome.lua")));
static AHEAD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/ahead.lua")));

/// All endpoints at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    revision: u64,
    /// By id.
    pub endpoints: BTreeMap<String, Arc<Endpoint>>,
    /// Those that are disabled.
    pub disabled: HashMap<String, Disabled>,
}

impl Snapshot {
    /// Whether an event of this name makes deliveries.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.wants(name))
    }

    /// Whether an endpoint that asked for order wants events of this name.
    #[must_use]
    pub fn wants_in_order(&self, name: &str) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.fifo && endpoint.wants(name))
    }
}

/// How an endpoint does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Since when there were only failures, ms.
    pub failing_since_ms: Option<u64>,
    /// Failures in a row.
    pub failures: u64,
    /// When a delivery was last taken, ms; written once a minute.
    pub last_success_ms: Option<u64>,
    /// When one last failed, ms.
    pub last_failure_ms: Option<u64>,
    /// The last status that was noted.
    pub last_status: Option<u16>,
    /// The last error.
    pub last_error: Option<String>,
}

/// What is to become of an endpoint's being disabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switch {
    /// Nothing.
    Leave,
    /// It is enabled.
    Enable,
    /// It is disabled.
    Disable(Disabled),
}

/// The endpoints. Cheap to clone; readers never wait.
#[derive(Debug, Clone)]
pub struct Endpoints {
    bus: Bus,
    current: Arc<ArcSwap<Snapshot>>,
    version: Arc<AtomicU64>,
}

impl Endpoints {
    /// An empty snapshot over `bus`; [`Endpoints::refresh`] fills it.
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        Self { bus, current: Arc::default(), version: Arc::new(AtomicU64::new(1)) }
    }

    /// The snapshot in force.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Rises with every change of the snapshot.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Reads the endpoints again if their revision is another.
    pub async fn refresh(&self) -> Result<(), Error> {
        let revision: Option<u64> = self.bus.redis.query(redis::cmd("GET").arg(self.bus.keys.outbound("rev"))).await?;
        if revision.unwrap_or(0) != self.current.load().revision {
            self.current.store(Arc::new(self.load().await?));
            self.version.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Reads the endpoints as they are in Redis.
    pub async fn load(&self) -> Result<Snapshot, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(self.bus.keys.outbound("rev"));
        for name in ["endpoints", "disabled"] {
            pipeline.cmd("HGETALL").arg(self.bus.keys.outbound(name));
        }
        let mut values = self.bus.redis.pipeline(&pipeline).await?.into_iter();
        let revision = values.next().and_then(|value| redis::from_redis_value::<Option<u64>>(value).ok()).flatten();
        let mut hash = || -> Result<HashMap<String, String>, Error> {
            redis::from_redis_value(values.next().unwrap_or(redis::Value::Nil))
                .map_err(|error| Error::Reply { command: "HGETALL", detail: error.to_string() })
        };
        let (endpoints, disabled) = (hash()?, hash()?);
        let read = |(id, text): (String, String)| match serde_json::from_str::<Endpoint>(&text) {
            Ok(endpoint) => Some((id, Arc::new(endpoint))),
            Err(error) => {
                // The error's text may quote the record, and the record holds a secret.
                tracing::warn!(id, line = error.line(), column = error.column(), "an endpoint can't be read");
                None
            }
        };
        let why = |(id, text): (String, String)| Some((id, serde_json::from_str(&text).ok()?));
        Ok(Snapshot {
            revision: revision.unwrap_or(0),
            endpoints: endpoints.into_iter().filter_map(read).collect(),
            disabled: disabled.into_iter().filter_map(why).collect(),
        })
    }

    /// Keeps the snapshot fresh until `stop`. Redis being away changes nothing: the last one stays in force.
    pub async fn watch(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.refresh().await {
                tracing::debug!(error = %error, "the endpoints could not be read");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Changes one endpoint from `before` to `after`; `None` is: there is none. False when it was changed meanwhile.
    pub async fn put(
        &self,
        id: &str,
        before: Option<&Endpoint>,
        after: Option<&Endpoint>,
        switch: &Switch,
        fact: Fact,
    ) -> Result<bool, Error> {
        let text = |endpoint: Option<&Endpoint>| endpoint.map(to_json).unwrap_or_default();
        let switch = match switch {
            Switch::Leave => String::new(),
            Switch::Enable => "enable".to_owned(),
            Switch::Disable(disabled) => to_json(disabled),
        };
        // What is stored may be spelled otherwise by another version: compared is what was read.
        let stored: Option<String> =
            self.bus.redis.query(redis::cmd("HGET").arg(self.bus.keys.outbound("endpoints")).arg(id)).await?;
        let is_same = match (&stored, before) {
            (Some(text), Some(before)) => serde_json::from_str::<Endpoint>(text).is_ok_and(|stored| stored == *before),
            (stored, before) => stored.is_none() && before.is_none(),
        };
        if !is_same {
            return Ok(false);
        }
        let call = self
            .call(&PUT, id)
            .arg(id)
            .arg(stored.unwrap_or_default())
            .arg(text(after))
            .arg(switch)
            .arg(journal::encode_facts([fact]));
        let changed: u8 = self.bus.redis.run(call).await?;
        Ok(changed == 1)
    }

    /// Notes how a delivery ended. The reason, when this disabled the endpoint.
    pub async fn note(
        &self,
        endpoint: &Endpoint,
        attempt: &Attempt,
        disable_after: Option<Duration>,
    ) -> Result<Option<String>, Error> {
        let how = match (&attempt.error, attempt.status) {
            (None, _) => "ok",
            (Some(_), Some(410)) => "gone",
            (Some(_), _) => "failed",
        };
        let error: String = attempt.error.as_deref().unwrap_or_default().chars().take(ERROR_CHARS).collect();
        let record =
            |reason: &str| to_json(&Disabled { reason: reason.to_owned(), at_ms: 0, detail: Some(error.clone()) });
        let blob = |reason: &str| {
            let fact = Fact::new("outbound", "webhook.endpoint.disabled")
                .warn()
                .with("endpoint", endpoint.id.as_str())
                .with("url", endpoint.shown_url())
                .with("reason", reason)
                .with("lastError", error.as_str());
            journal::encode_facts([fact])
        };
        let call = self
            .call(&OUTCOME, &endpoint.id)
            .arg(endpoint.id.as_str())
            .arg(how)
            .arg(attempt.status.map(|status| status.to_string()).unwrap_or_default())
            .arg(error.as_str())
            .arg(disable_after.map(|after| after.as_millis().to_string()).unwrap_or_default())
            .arg(record("gone"))
            .arg(record("failing"))
            .arg(blob("gone"))
            .arg(blob("failing"));
        let reason: String = self.bus.redis.run(call).await?;
        Ok(Some(reason).filter(|reason| !reason.is_empty()))
    }

    /// Up to which entry the events of `lane` were fanned out before they were dispatched.
    pub async fn ahead(&self, lane: &Lane) -> Result<Option<EntryId>, Error> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.bus.keys.outbound("ahead")).arg(lane.to_string());
        let id: Option<String> = self.bus.redis.query(&cmd).await?;
        Ok(id.and_then(|id| id.parse().ok()))
    }

    /// Notes that they were, for each of `lanes`.
    pub async fn set_ahead<'a>(&self, lanes: impl Iterator<Item = (&'a Lane, EntryId)>) -> Result<(), Error> {
        let mut call = ScriptCall::new(&AHEAD).key(self.bus.keys.outbound("ahead"));
        for (lane, id) in lanes {
            call = call.arg(lane.to_string()).arg(id.to_string());
        }
        self.bus.redis.run(call).await
    }

    /// How an endpoint does.
    pub async fn health(&self, id: &str) -> Result<Health, Error> {
        let key = self.bus.keys.outbound_health(id);
        let fields: HashMap<String, String> = self.bus.redis.query(redis::cmd("HGETALL").arg(key)).await?;
        let number = |name: &str| fields.get(name).and_then(|text| text.parse::<u64>().ok());
        Ok(Health {
            failing_since_ms: number("failingSince"),
            failures: number("failures").unwrap_or(0),
            last_success_ms: number("lastSuccess"),
            last_failure_ms: number("lastFailure"),
            last_status: number("lastStatus").and_then(|status| u16::try_from(status).ok()),
            last_error: fields.get("lastError").cloned(),
        })
    }

    fn call<'a>(&self, script: &'a Script, id: &str) -> ScriptCall<'a> {
        let keys = &self.bus.keys;
        ScriptCall::new(script)
            .key(keys.outbound("endpoints"))
            .key(keys.outbound("disabled"))
            .key(keys.outbound_health(id))
            .key(keys.outbound("rev"))
            .key(keys.journal())
    }
}

fn to_json(value: &impl Serialize) -> String {
    // Writing strings and numbers to memory can't fail.
    serde_json::to_string(value).unwrap_or_default()
}
