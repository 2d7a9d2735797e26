//! Minute hashes: histograms and counts, one hash per kind and minute, made from the journal or recorded directly.
//!
//! | key (after the tag) | type | changed by |
//! |---|---|---|
//! | `:latency:<kind>:<minute>` | hash, PX: `<series>\|<writer>` → `HdrHistogram` V2 blob, `=<series>\|<writer>` → exact count, sum, min, max | `project.lua`, [`Bus::write_minute`] |
//! | `:counts:<minute>` | hash, PX: counter → number | `project.lua` |
//!
//! A field holds all of its minute and is overwritten, never added to: writing it twice changes nothing. What is in
//! the blobs is not known here.

use redis::Value;

use super::bus::Bus;
use super::entry_id::EntryId;
use super::readers::MinuteWrite;
use super::redis::Error;
use super::rows::convert;
use super::scripts;

/// The fields of one minute hash.
pub type Fields = Vec<(String, Vec<u8>)>;

/// Hashes read per round trip.
const CHUNK: usize = 256;

impl Bus {
    /// Writes fields of one minute that no projection owns.
    pub async fn write_minute(&self, write: &MinuteWrite) -> Result<(), Error> {
        let mut set = redis::cmd("HSET");
        set.arg(&write.key);
        for (field, value) in &write.fields {
            set.arg(field).arg(value);
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(set);
        pipeline.cmd("PEXPIREAT").arg(&write.key).arg(write.expires_ms);
        self.redis.pipeline(&pipeline).await.map(|_| ())
    }

    /// Reads minute hashes, in order. One that does not exist is empty.
    pub async fn read_minutes(&self, keys: &[String]) -> Result<Vec<Fields>, Error> {
        let mut all = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for key in chunk {
                pipeline.cmd("HGETALL").arg(key);
            }
            for reply in self.redis.pipeline(&pipeline).await? {
                all.push(convert::<Vec<(String, Vec<u8>)>>(reply, "HGETALL")?);
            }
        }
        Ok(all)
    }

    /// Reads minute hashes together with the cursor of the projection that writes them.
    pub async fn read_open_minute(&self, reader: &str, keys: &[String]) -> Result<(EntryId, Vec<Fields>), Error> {
        let mut call = Self::call(&scripts::MINUTE).key(self.keys.cursors()).arg(reader);
        for key in keys {
            call.push_key(key.clone());
        }
        let reply: Vec<Value> = self.redis.run(call).await?;
        let mut reply = reply.into_iter();
        let cursor: String = convert(reply.next().unwrap_or(Value::Nil), "minute.lua")?;
        let cursor = cursor.parse().map_err(|_| Error::Reply { command: "minute.lua", detail: "no cursor".into() })?;
        let fields = reply.map(|row| convert(row, "minute.lua")).collect::<Result<_, _>>()?;
        Ok((cursor, fields))
    }
}
