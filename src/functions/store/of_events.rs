//! The runs of an event. The id of a run follows from function and event, so only what repeats a run is indexed.
//!
//! `:fn:again:<event>` (set): reruns and replays of an event, as long as runs are kept.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Run, Runs};
use crate::functions::ids;
use crate::streams::redis::Error;

impl Runs {
    /// The runs that these events started, by the events' public ids, the oldest first; with what repeats them, if wanted.
    pub async fn of_events(
        &self,
        functions: &[Uuid],
        events: &[String],
        with_repetitions: bool,
    ) -> Result<HashMap<String, Vec<Run>>, Error> {
        let mut ids: Vec<String> = events
            .iter()
            .flat_map(|event| functions.iter().map(|function| ids::run_id(*function, event, "")))
            .collect();
        if with_repetitions {
            let mut pipeline = redis::pipe();
            for event in events {
                pipeline.cmd("SMEMBERS").arg(self.key(&format!("again:{event}")));
            }
            if !events.is_empty() {
                for value in self.bus.redis.pipeline(&pipeline).await? {
                    ids.extend(redis::from_redis_value::<Vec<String>>(value).unwrap_or_default());
                }
            }
        }
        let mut by_event: HashMap<String, Vec<Run>> = HashMap::new();
        for run in self.many(&ids).await? {
            for event in run.event_ids.iter().filter(|event| events.contains(event)) {
                let list = by_event.entry(event.clone()).or_default();
                if !list.iter().any(|known| known.id == run.id) {
                    list.push(run.clone());
                }
            }
        }
        for list in by_event.values_mut() {
            list.sort_by_key(|run| run.queued_ms);
        }
        Ok(by_event)
    }
}
