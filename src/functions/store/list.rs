//! Lists of runs by status, function and time, in pages.
//!
//! The indexes are by creation. A list in that order is cut out of them by Redis; any other order, and status together
//! with function, is made of the times and states of the runs that the indexes name.

use redis::Value;

use super::{Run, Runs, Status};
use crate::streams::redis::Error;

/// Runs whose times are read at once.
const CHUNK: usize = 1_000;
/// Rows asked for beyond those wanted: runs of one millisecond that the page before has shown.
const TIES: usize = 64;

/// One of a run's times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Moment {
    /// Its creation.
    #[default]
    Queued,
    /// Its first call; in an order, one not called yet stands at its creation.
    Started,
    /// Its end; in an order, one that has not ended is older than all that have.
    Ended,
}

/// Which runs are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these; empty is any.
    pub status: Vec<Status>,
    /// Any of these slugs; empty is any.
    pub functions: Vec<String>,
    /// Which time `since_ms` and `until_ms` are about.
    pub time: Moment,
    /// At or after, ms.
    pub since_ms: Option<u64>,
    /// Before, ms.
    pub until_ms: Option<u64>,
    /// Which time they are ordered by.
    pub order: Moment,
    /// Oldest first instead of newest.
    pub oldest_first: bool,
    /// Only those after this one: its time in the order, ms, and its id.
    pub after: Option<(u64, String)>,
    /// Leave out the first so many.
    pub offset: usize,
    /// At most so many.
    pub limit: usize,
    /// Where the indexes do not answer alone, at most so many runs are looked at, the newest by creation; 0 is all.
    pub look: usize,
}

/// Runs and how many there are in all.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// In the order asked for.
    pub runs: Vec<Run>,
    /// How many match, the ones not shown included.
    pub total: usize,
    /// More follow.
    pub has_more: bool,
}

/// A run's place in the order: time, ms, and id.
type Place = (u64, String);

impl Filter {
    fn is_by_creation(&self) -> bool {
        let is_one_index = self.functions.is_empty() || self.status.is_empty();
        is_one_index && self.time == Moment::Queued && self.order == Moment::Queued
    }

    fn sort(&self, places: &mut Vec<Place>) {
        places.sort_unstable();
        // A run may be met in two indexes while it changes its state.
        places.dedup();
        if !self.oldest_first {
            places.reverse();
        }
    }

    fn is_after(&self, place: &Place) -> bool {
        match &self.after {
            None => true,
            Some(after) if self.oldest_first => place > after,
            Some(after) => place < after,
        }
    }
}

impl Run {
    /// Its place in an order by this time, ms.
    #[must_use]
    pub fn place_ms(&self, order: Moment) -> u64 {
        place_ms(order, self.queued_ms, self.started_ms, self.ended_ms)
    }
}

fn place_ms(order: Moment, queued: u64, started: Option<u64>, ended: Option<u64>) -> u64 {
    match order {
        Moment::Queued => queued,
        Moment::Started => started.unwrap_or(queued),
        Moment::Ended => ended.unwrap_or(0),
    }
}

impl Runs {
    /// How many runs have this status.
    pub async fn how_many(&self, status: Status) -> Result<u64, Error> {
        self.bus.redis.query(redis::cmd("ZCARD").arg(self.key(&format!("runs:st:{status}")))).await
    }

    /// Runs that match, from the index that says most about them.
    pub async fn list(&self, filter: &Filter) -> Result<Page, Error> {
        let keys: Vec<String> = match (&filter.functions[..], &filter.status[..]) {
            ([], []) => vec![self.key("runs")],
            ([], statuses) => statuses.iter().map(|status| self.key(&format!("runs:st:{status}"))).collect(),
            (functions, _) => functions.iter().map(|slug| self.key(&format!("runs:fn:{slug}"))).collect(),
        };
        let (mut places, total) = match filter.is_by_creation() {
            true => self.cut(&keys, filter).await?,
            false => self.look(&keys, filter).await?,
        };
        places.retain(|place| filter.is_after(place));
        let has_more = places.len() > filter.offset.saturating_add(filter.limit);
        let ids: Vec<String> = places.into_iter().skip(filter.offset).take(filter.limit).map(|(_, id)| id).collect();
        Ok(Page { runs: self.runs(&ids).await?, total, has_more })
    }

    /// The places around the page, by creation, and how many there are in all.
    async fn cut(&self, keys: &[String], filter: &Filter) -> Result<(Vec<Place>, usize), Error> {
        let (since, until) = bounds(filter.since_ms, filter.until_ms);
        let mut counts = redis::pipe();
        for key in keys {
            counts.cmd("ZCOUNT").arg(key).arg(&since).arg(&until);
        }
        let count = |value| redis::from_redis_value::<usize>(value).unwrap_or_default();
        let total = self.bus.redis.pipeline(&counts).await?.into_iter().map(count).sum();
        // The one after the page says whether there is one.
        let wanted = filter.offset.saturating_add(filter.limit).saturating_add(1);
        let mut asked = wanted.saturating_add(TIES);
        loop {
            let rows = self.first(keys, filter, asked).await?;
            let after = |rows: &[Place]| rows.iter().filter(|place| filter.is_after(place)).count();
            if rows.iter().all(|rows| rows.len() < asked || after(rows) >= wanted) {
                let mut places = rows.into_iter().flatten().collect();
                filter.sort(&mut places);
                return Ok((places, total));
            }
            asked = asked.saturating_mul(2);
        }
    }

    /// The first rows of each index in the filter's order, those of the ms that the page before ended in included.
    async fn first(&self, keys: &[String], filter: &Filter, count: usize) -> Result<Vec<Vec<Place>>, Error> {
        let after = filter.after.as_ref().map(|(ms, _)| *ms);
        let (since, until) = match filter.oldest_first {
            true => bounds(filter.since_ms.max(after), filter.until_ms),
            false => {
                let until = [filter.until_ms, after.map(|ms| ms.saturating_add(1))].into_iter().flatten().min();
                bounds(filter.since_ms, until)
            }
        };
        let mut pipeline = redis::pipe();
        for key in keys {
            match filter.oldest_first {
                true => pipeline.cmd("ZRANGEBYSCORE").arg(key).arg(&since).arg(&until),
                false => pipeline.cmd("ZREVRANGEBYSCORE").arg(key).arg(&until).arg(&since),
            };
            pipeline.arg("WITHSCORES").arg("LIMIT").arg(0).arg(count);
        }
        Ok(self.bus.redis.pipeline(&pipeline).await?.into_iter().map(scored).collect())
    }

    /// Every place that matches among the runs looked at.
    async fn look(&self, keys: &[String], filter: &Filter) -> Result<(Vec<Place>, usize), Error> {
        // No run starts or ends before it is created; how long after it does is not known.
        let (since, until) = bounds(filter.since_ms.filter(|_| filter.time == Moment::Queued), filter.until_ms);
        let limit = if filter.look == 0 { -1 } else { i64::try_from(filter.look).unwrap_or(-1) };
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("ZREVRANGEBYSCORE").arg(key).arg(&until).arg(&since).arg("WITHSCORES");
            pipeline.arg("LIMIT").arg(0).arg(limit);
        }
        let mut ids: Vec<Place> = self.bus.redis.pipeline(&pipeline).await?.into_iter().flat_map(scored).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.reverse();
        if filter.look > 0 {
            ids.truncate(filter.look);
        }
        let mut places = Vec::new();
        for chunk in ids.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for (_, id) in chunk {
                pipeline.cmd("HMGET").arg(self.key(&format!("run:{id}"))).arg(&["st", "q", "s", "e"]);
            }
            let values = self.bus.redis.pipeline(&pipeline).await?;
            places.extend(chunk.iter().zip(values).filter_map(|((_, id), value)| matched(filter, id, value)));
        }
        filter.sort(&mut places);
        let total = places.len();
        Ok((places, total))
    }
}

/// A range of scores, as Redis reads it.
fn bounds(since: Option<u64>, until: Option<u64>) -> (String, String) {
    (since.map_or("-inf".into(), |ms| ms.to_string()), until.map_or("+inf".into(), |ms| format!("({ms}")))
}

fn scored(value: Value) -> Vec<Place> {
    let rows: Vec<(String, f64)> = redis::from_redis_value(value).unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    rows.into_iter().map(|(id, ms)| (ms as u64, id)).collect()
}

/// The place of a run by its state and times, if it matches. One whose record has expired does not.
fn matched(filter: &Filter, id: &str, value: Value) -> Option<Place> {
    let (status, queued, started, ended): (String, u64, Option<u64>, Option<u64>) =
        redis::from_redis_value(value).ok()?;
    let status: Status = status.parse().ok()?;
    if !filter.status.is_empty() && !filter.status.contains(&status) {
        return None;
    }
    let time = match filter.time {
        Moment::Queued => Some(queued),
        Moment::Started => started,
        Moment::Ended => ended,
    };
    let is_bounded = filter.since_ms.is_some() || filter.until_ms.is_some();
    if is_bounded {
        let time = time?;
        if filter.since_ms.is_some_and(|since| time < since) || filter.until_ms.is_some_and(|until| time >= until) {
            return None;
        }
    }
    Some((place_ms(filter.order, queued, started, ended), id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: &str, queued: u64, started: Option<u64>, ended: Option<u64>) -> Value {
        let text = |ms: Option<u64>| ms.map_or(Value::Nil, |ms| Value::BulkString(ms.to_string().into_bytes()));
        Value::Array(vec![Value::BulkString(status.into()), text(Some(queued)), text(started), text(ended)])
    }

    #[test]
    fn a_time_is_compared_with_the_one_asked_for() {
        let filter = Filter { time: Moment::Ended, since_ms: Some(50), order: Moment::Started, ..Filter::default() };
        assert_eq!(matched(&filter, "a", row("COMPLETED", 10, Some(20), Some(60))), Some((20, "a".into())));
        assert_eq!(matched(&filter, "a", row("COMPLETED", 10, Some(20), Some(40))), None);
        assert_eq!(matched(&filter, "a", row("RUNNING", 10, Some(20), None)), None);
        assert_eq!(matched(&Filter::default(), "a", Value::Array(vec![Value::Nil; 4])), None);
    }

    #[test]
    fn pages_go_on_after_a_place_in_either_direction() {
        let place = |ms: u64, id: &str| (ms, id.to_owned());
        let newest = Filter { after: Some(place(5, "m")), ..Filter::default() };
        assert!(newest.is_after(&place(5, "l")) && newest.is_after(&place(4, "z")) && !newest.is_after(&place(5, "m")));
        let oldest = Filter { oldest_first: true, ..newest };
        assert!(
            oldest.is_after(&place(5, "n")) && !oldest.is_after(&place(5, "m")) && !oldest.is_after(&place(4, "z"))
        );
    }
}
