//! The first event under a dedup key that a model made, so that a match with other data can be told.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:dedup:<family>:m-first:<key>` | string, PX | [`Bus::first_of_model_key`]: `<hash> <event id>` |
//!
//! It suppresses nothing: what does is the dedup mark of key and data together, set by `append.lua`.

use std::time::Duration;

use super::bus::Bus;
use super::family::Family;
use super::redis::Error;

impl Bus {
    /// Notes an event under the key, and says which one came first within the window, where that had other data.
    pub async fn first_of_model_key(
        &self,
        family: &Family,
        key: &str,
        data_hash: &str,
        event_id: &str,
        window: Duration,
    ) -> Result<Option<String>, Error> {
        let name = self.keys.dedup(family, &format!("m-first:{key}"));
        let px = u64::try_from(window.as_millis().max(1)).unwrap_or(u64::MAX);
        let mut set = redis::cmd("SET");
        set.arg(name).arg(format!("{data_hash} {event_id}")).arg("NX").arg("GET").arg("PX").arg(px);
        let first: Option<String> = self.redis.query(&set).await?;
        Ok(first.and_then(|first| {
            let (hash, id) = first.split_once(' ')?;
            (hash != data_hash).then(|| id.to_owned())
        }))
    }
}
