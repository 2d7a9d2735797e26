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

/// The fields of one minute hash.
pub type Fields = Vec<(String, Vec<u8>)>;

/// Hashes read per round trip.
const CHUNK: usize = 256;
/// Readings of one minute at most, while it is being written.
const ATTEMPTS: usize = 50;

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

    /// Reads minute hashes together with the cursor and the state of the projection that writes them, all of one moment.
    ///
    /// Not a script: whoever may only read may read this.
    pub async fn read_open_minute(
        &self,
        reader: &'static str,
        keys: &[String],
    ) -> Result<(EntryId, String, Vec<Fields>), Error> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGET").arg(self.keys.cursors()).arg(reader);
        pipeline.cmd("GET").arg(self.keys.reader_state(reader));
        for key in keys {
            pipeline.cmd("HGETALL").arg(key);
        }
        pipeline.cmd("HGET").arg(self.keys.cursors()).arg(reader);
        for _ in 0..ATTEMPTS {
            let mut reply = self.redis.pipeline(&pipeline).await?.into_iter();
            let mut next = || reply.next().unwrap_or(Value::Nil);
            let before: Option<String> = convert(next(), "HGET")?;
            let state: Option<String> = convert(next(), "GET")?;
            let fields = keys.iter().map(|_| convert(next(), "HGETALL")).collect::<Result<_, _>>()?;
            let after: Option<String> = convert(next(), "HGET")?;
            // The cursor moves with every write, so what lies between two equal cursors is of one moment.
            if before == after {
                let cursor = before.as_deref().and_then(|row| row.split(',').next()?.parse().ok()).unwrap_or_default();
                return Ok((cursor, state.unwrap_or_default(), fields));
            }
        }
        Err(Error::Reply { command: "HGETALL", detail: "the projection moved on at every reading".into() })
    }
}
