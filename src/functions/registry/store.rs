//! The registry in Redis, and the snapshot that this process works with.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::super::store::{Mark, scripts};
use super::definition::{App, Function, Registration};
use super::snapshot::Snapshot;
use crate::streams::bus::Bus;
use crate::streams::journal;
use crate::streams::records::Fact;
use crate::streams::redis::{Error, ScriptCall};

/// How often the revision is asked for.
const POLL: Duration = Duration::from_secs(1);

/// An app and how it was last seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppRecord {
    /// As it registered.
    #[serde(flatten)]
    pub app: App,
    /// When it last registered, ms.
    pub synced_ms: u64,
    /// Another URL that served an app of this name and was replaced by a registration.
    #[serde(default)]
    pub replaced_url: Option<String>,
    /// What asking it found.
    #[serde(skip)]
    pub health: Option<Health>,
}

/// What was found when an app was last asked. Kept beside the record, because it changes with every look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// When, ms.
    pub asked_ms: u64,
    /// When it last answered, ms.
    pub seen_ms: Option<u64>,
    /// It serves what is registered.
    pub agrees: bool,
    /// Why it does not, or does not answer.
    pub problem: Option<String>,
    /// How often in a row it did not answer.
    pub failures: u32,
}

/// What a registration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// The registry was not as registered before.
    pub modified: bool,
}

/// The registry. Cheap to clone; readers never wait.
#[derive(Debug, Clone)]
pub struct Registry {
    bus: Bus,
    current: Arc<ArcSwap<Snapshot>>,
    version: Arc<AtomicU64>,
}

impl Registry {
    /// An empty snapshot over `bus`; [`Registry::refresh`] fills it.
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

    fn key(&self, name: &str) -> String {
        format!("{}:fn:{name}", self.bus.keys.tag())
    }

    /// Reads the registry again if its revision is another. True when it was.
    pub async fn refresh(&self) -> Result<bool, Error> {
        let revision: Option<u64> = self.bus.redis.query(redis::cmd("GET").arg(self.key("rev"))).await?;
        let revision = revision.unwrap_or(0);
        if revision == self.current.load().revision {
            return Ok(false);
        }
        self.current.store(Arc::new(self.load().await?));
        self.version.fetch_add(1, Ordering::Release);
        Ok(true)
    }

    /// Reads the registry as it is in Redis.
    pub async fn load(&self) -> Result<Snapshot, Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(self.key("rev"));
        for name in ["apps", "functions", "archived", "waited", "health", "paused"] {
            pipeline.cmd("HGETALL").arg(self.key(name));
        }
        let mut values = self.bus.redis.pipeline(&pipeline).await?.into_iter();
        let revision = values.next().map(redis::from_redis_value::<Option<u64>>).transpose();
        let mut hash = || -> Result<HashMap<String, String>, Error> {
            let value = values.next().unwrap_or(redis::Value::Nil);
            redis::from_redis_value(value)
                .map_err(|error| Error::Reply { command: "HGETALL", detail: error.to_string() })
        };
        let (apps, functions, archived, waited, health, paused) =
            (hash()?, hash()?, hash()?, hash()?, hash()?, hash()?);
        let mut read_apps: BTreeMap<String, AppRecord> = decode(apps);
        let health: BTreeMap<String, Health> = decode(health);
        for (name, found) in health {
            if let Some(app) = read_apps.get_mut(&name) {
                app.health = Some(found);
            }
        }
        Ok(Snapshot::new(
            revision.ok().flatten().flatten().unwrap_or(0),
            read_apps,
            decode::<Function>(functions),
            archived.into_keys().collect::<HashSet<_>>(),
            waited.into_keys().collect::<HashSet<_>>(),
            paused.into_iter().filter_map(|(what, text)| Some((what, Mark::read(&text)?))).collect(),
        ))
    }

    /// Keeps the snapshot fresh until `stop`. Redis being away changes nothing: the last one stays in force.
    pub async fn watch(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.refresh().await {
                tracing::debug!(error = %error, "the functions registry could not be read");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Makes the registry what `registration` says. Compared with what is really stored, not with a remembered checksum.
    pub async fn register(&self, registration: &Registration) -> Result<Registered, Error> {
        let stored = self.load().await?;
        let app = &registration.app;
        let before = stored.apps.get(&app.name);
        let is_whole = |slug: &String| stored.is_served(slug);
        let same_functions = before.is_some_and(|before| {
            before.app.checksum == app.checksum
                && before.app.functions == app.functions
                && app.functions.iter().all(is_whole)
        });
        let same_app = before.is_some_and(|before| before.app.url == app.url && before.app.sdk == app.sdk);
        if same_functions && same_app {
            self.refresh().await?;
            return Ok(Registered { modified: false });
        }
        let moved = before.filter(|before| !super::definition::same_url(&before.app.url, &app.url));
        if let Some(before) = moved {
            tracing::warn!(app = app.name, from = before.app.url, to = app.url, "another URL took over this app");
        }
        let removed: Vec<String> = stored
            .functions
            .values()
            .filter(|function| function.app == app.name && !app.functions.contains(&function.slug))
            .filter(|function| stored.is_served(&function.slug))
            .map(|function| function.slug.clone())
            .collect();
        let record = AppRecord {
            app: app.clone(),
            synced_ms: self.bus.now_ms().await?,
            replaced_url: moved.map(|before| before.app.url.clone()),
            health: None,
        };
        let fact = Fact::new("functions", "function.app.registered")
            .with("app", app.name.clone())
            .with("url", app.url.clone())
            .with("sdk", app.sdk.clone())
            .with("functions", app.functions.len())
            .with("removed", removed.len());
        let mut call = ScriptCall::new(&scripts::REGISTER)
            .key(self.bus.keys.journal())
            .arg(self.bus.keys.tag())
            .arg(journal::encode_facts([fact]))
            .arg(app.name.as_str())
            .arg(to_json(&record))
            .number(registration.functions.len());
        for function in &registration.functions {
            call.push_arg(function.slug.as_str());
            call.push_arg(to_json(function));
            call.push_arg(limits_and_schedules(function, record.synced_ms));
        }
        call.push_arg(removed.len().to_string());
        for slug in &removed {
            call.push_arg(slug.as_str());
        }
        let _: u64 = self.bus.redis.run(call).await?;
        self.refresh().await?;
        tracing::info!(app = app.name, functions = app.functions.len(), url = app.url, "app registered");
        Ok(Registered { modified: !same_functions })
    }

    /// Removes an app: its functions are archived. False when there is none of this name.
    pub async fn remove(&self, name: &str) -> Result<bool, Error> {
        let stored = self.load().await?;
        if !stored.apps.contains_key(name) {
            return Ok(false);
        }
        let slugs: Vec<&String> =
            stored.functions.values().filter(|function| function.app == name).map(|function| &function.slug).collect();
        let fact = Fact::new("functions", "function.app.removed").with("app", name).with("functions", slugs.len());
        let mut call = ScriptCall::new(&scripts::REGISTER)
            .key(self.bus.keys.journal())
            .arg(self.bus.keys.tag())
            .arg(journal::encode_facts([fact]))
            .arg(name)
            .arg("")
            .number(0)
            .number(slugs.len());
        for slug in slugs {
            call.push_arg(slug.as_str());
        }
        let _: u64 = self.bus.redis.run(call).await?;
        let _: u64 = self.bus.redis.query(redis::cmd("HDEL").arg(self.key("health")).arg(name)).await?;
        self.refresh().await?;
        Ok(true)
    }

    /// Stores what asking an app found.
    pub async fn set_health(&self, name: &str, health: &Health) -> Result<(), Error> {
        let _: u64 =
            self.bus.redis.query(redis::cmd("HSET").arg(self.key("health")).arg(name).arg(to_json(health))).await?;
        Ok(())
    }

    /// What asking each app found last.
    pub async fn health(&self) -> Result<BTreeMap<String, Health>, Error> {
        let all: HashMap<String, String> = self.bus.redis.query(redis::cmd("HGETALL").arg(self.key("health"))).await?;
        Ok(decode(all))
    }
}

/// As `register.lua` reads them.
fn limits_and_schedules(function: &Function, now_ms: u64) -> Vec<u8> {
    #[derive(Serialize)]
    struct More {
        lim: Vec<(String, u32)>,
        cron: Vec<(String, u64, u64)>,
    }
    let cron = function.series().into_iter().filter_map(|series| {
        let next = series.schedule.next_after(now_ms)?;
        let hash = series.name.split('|').next().unwrap_or_default().to_owned();
        Some((hash, next, series.fires_ms(next)))
    });
    let lim = function.flow.concurrency.iter().map(|limit| (limit.name(), limit.limit));
    // Texts and numbers to memory: that can't fail.
    rmp_serde::to_vec_named(&More { lim: lim.collect(), cron: cron.collect() }).unwrap_or_default()
}

fn to_json(value: &impl Serialize) -> String {
    // Writing strings and numbers to memory can't fail.
    serde_json::to_string(value).unwrap_or_default()
}

/// Records that can't be read are left out: they count as not registered, so the next sync writes them anew.
fn decode<T: serde::de::DeserializeOwned>(rows: HashMap<String, String>) -> BTreeMap<String, T> {
    let read = |(key, text): (String, String)| match serde_json::from_str(&text) {
        Ok(value) => Some((key, value)),
        Err(error) => {
            tracing::warn!(key, %error, "a record of the functions registry can't be read");
            None
        }
    };
    rows.into_iter().filter_map(read).collect()
}
