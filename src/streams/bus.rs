//! The handle every other part holds: one connection and the key names.

use super::keys::{Keys, SCHEMA};
use super::redis::{Error, Redis, ScriptCall};
use super::scripts::{self, Script};

/// Redis and the key names under one prefix. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    /// The shared connection.
    pub redis: Redis,
    /// Key names.
    pub keys: Keys,
}

/// What a Redis says about itself, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// `redis_version`, or Valkey's own.
    pub version: String,
    /// `maxmemory-policy`; anything but `noeviction` may drop whole lanes.
    pub eviction_policy: String,
    /// `used_memory`, bytes.
    pub used_memory: u64,
    /// `maxmemory`, bytes; 0 is no limit.
    pub max_memory: u64,
    /// An append-only file is written.
    pub aof_enabled: bool,
    /// `appendfsync`, where the server lets us ask.
    pub appendfsync: Option<String>,
    /// Connected replicas.
    pub replicas: u64,
}

impl Bus {
    /// Keys under `prefix` on `redis`.
    #[must_use]
    pub fn new(redis: Redis, prefix: &str) -> Self {
        Self { redis, keys: Keys::new(prefix) }
    }

    /// The same bus over a socket of its own.
    #[must_use]
    pub fn separate(&self) -> Self {
        Self { redis: self.redis.separate(), keys: self.keys.clone() }
    }

    pub(super) const fn call(script: &Script) -> ScriptCall<'_> {
        ScriptCall::new(script)
    }

    /// Redis's clock, ms since the epoch.
    pub async fn now_ms(&self) -> Result<u64, Error> {
        let (seconds, micros): (u64, u64) = self.redis.query(&redis::cmd("TIME")).await?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// Which data set this is: written once, at the first use of a Redis.
    pub async fn instance_id(&self) -> Result<String, Error> {
        if let Some(id) = self.known_instance_id().await? {
            return Ok(id);
        }
        let proposed = uuid::Uuid::now_v7().to_string();
        let call = Self::call(&scripts::INSTANCE).key(self.keys.meta()).arg(proposed).number(SCHEMA);
        self.redis.run(call).await
    }

    /// As [`Bus::instance_id`], without writing: `None` on a Redis that was never used. An error where a newer program
    /// keeps its keys in a form that we don't know.
    pub async fn known_instance_id(&self) -> Result<Option<String>, Error> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(self.keys.meta()).arg("instanceId").arg("schema");
        let (id, schema): (Option<String>, Option<u64>) = self.redis.query(&cmd).await?;
        match schema {
            Some(found) if found > SCHEMA => Err(Error::Schema { redis: self.redis.display().to_owned(), found }),
            _ => Ok(id),
        }
    }

    /// Version, memory and durability settings.
    pub async fn server_facts(&self) -> Result<ServerFacts, Error> {
        let info: String = self.redis.query(&redis::cmd("INFO")).await?;
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let number = |name: &str| field(name).parse().unwrap_or(0);
        let valkey = field("valkey_version");
        // Some servers don't let a user ask for CONFIG: then what INFO says has to do.
        let appendfsync: Option<Vec<String>> =
            self.redis.query(redis::cmd("CONFIG").arg("GET").arg("appendfsync")).await.ok();
        Ok(ServerFacts {
            version: if valkey.is_empty() { field("redis_version") } else { valkey },
            eviction_policy: field("maxmemory_policy"),
            used_memory: number("used_memory"),
            max_memory: number("maxmemory"),
            aof_enabled: number("aof_enabled") == 1,
            appendfsync: appendfsync.and_then(|pair| pair.into_iter().nth(1)),
            replicas: number("connected_slaves"),
        })
    }
}
