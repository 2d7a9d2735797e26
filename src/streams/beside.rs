//! Reading lanes beside their group: whoever reads here takes nothing from the drainer.

use std::time::Duration;

use super::bus::Bus;
use super::entry_id::EntryId;
use super::envelope::Envelope;
use super::lane::Lane;
use super::lease::{LaneReader, ReadLane};
use super::redis::Error;

/// Pending entries asked for at once.
const PAGE: usize = 500;

/// One entry of a lane.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// The event; `None` where it can't be decoded, which is for the drainer to say.
    pub event: Option<Envelope>,
}

impl Entry {
    fn new(id: EntryId, envelope: &[u8]) -> Self {
        Self { id, event: Envelope::decode(envelope).ok() }
    }
}

impl Bus {
    /// How many lanes there are: whether to look at them again.
    pub async fn lane_count(&self) -> Result<u64, Error> {
        self.redis.query(redis::cmd("HLEN").arg(self.keys.lanes())).await
    }

    /// What the group has read of `lane` and not finished, after `after`; and how far the group has read.
    pub async fn unfinished(&self, lane: &Lane, after: EntryId) -> Result<(Vec<Entry>, EntryId), Error> {
        let key = self.keys.lane(lane);
        let cursor = self.lane_states(std::slice::from_ref(lane)).await?.pop().map(|state| state.cursor);
        let (mut found, mut from) = (Vec::new(), after.next());
        loop {
            let page = self.pending_rows(lane, &from.to_string(), PAGE).await?;
            let ids: Vec<EntryId> = page.iter().map(|pending| pending.id).collect();
            for row in self.rows_each(&key, &ids).await?.into_iter().flatten() {
                found.push(Entry::new(row.id, row.envelope()));
            }
            match ids.last() {
                Some(last) if ids.len() == PAGE => from = last.next(),
                _ => return Ok((found, cursor.unwrap_or_default())),
            }
        }
    }
}

impl LaneReader {
    /// Up to `count` entries of each lane after the id beside it. With `block`, waits that long for the first.
    pub async fn read_beside(
        &mut self,
        lanes: &[(ReadLane, EntryId)],
        count: usize,
        block: Option<Duration>,
    ) -> Result<Vec<(Lane, Entry)>, Error> {
        let mut cmd = redis::cmd("XREAD");
        cmd.arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(1).max(1));
        }
        cmd.arg("STREAMS");
        for (lane, _) in lanes {
            cmd.arg(&lane.key);
        }
        for (_, after) in lanes {
            cmd.arg(after.to_string());
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(cmd);
        let reply = self.blocking(&pipeline, block).await?.pop().unwrap_or_default();
        let reply = reply.extract_error().map_err(Error::Refused)?;
        let named: Vec<ReadLane> = lanes.iter().map(|(lane, _)| lane.clone()).collect();
        let read = super::lease::parse_read(reply, &named)?;
        Ok(read.into_iter().map(|entry| (entry.lane, Entry::new(entry.id, &entry.envelope))).collect())
    }
}
