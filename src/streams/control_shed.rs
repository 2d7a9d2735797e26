//! Shedding: an operator moves what waits of a family to the dead letters, from where it can be redriven. Nothing is lost.

use std::collections::BTreeMap;

use super::bus::Bus;
use super::complete::DeadRecord;
use super::dead::{BATCH_MAX, Operator};
use super::journal;
use super::lane::Lane;
use super::records::Fact;
use super::redis::Error;
use super::residue::Candidate;
use super::scripts;

/// What became of the entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shed {
    /// Dead letters now.
    pub shed: usize,
    /// A live session works on them.
    pub leased: usize,
    /// Done or gone meanwhile.
    pub missing: usize,
}

impl Bus {
    /// Moves `candidates` to the dead letters, lane by lane.
    pub async fn shed(&self, candidates: &[Candidate], operator: &Operator) -> Result<Shed, Error> {
        let mut by_lane: BTreeMap<&Lane, Vec<&Candidate>> = BTreeMap::new();
        for candidate in candidates {
            by_lane.entry(&candidate.lane).or_default().push(candidate);
        }
        let mut done = Shed::default();
        for (lane, candidates) in by_lane {
            for chunk in candidates.chunks(BATCH_MAX) {
                for result in self.shed_chunk(lane, chunk, operator).await? {
                    match result.as_str() {
                        "acked" => done.shed += 1,
                        "leased" => done.leased += 1,
                        _ => done.missing += 1,
                    }
                }
            }
        }
        Ok(done)
    }

    async fn shed_chunk(&self, lane: &Lane, chunk: &[&Candidate], operator: &Operator) -> Result<Vec<String>, Error> {
        let keys = &self.keys;
        let now = self.now_ms().await?;
        let facts = chunk.iter().map(|candidate| {
            let mut fact = Fact::new("queue", "queue.dead")
                .entry(lane, candidate.id)
                .warn()
                .with("eventName", lane.family.as_str())
                .with("reason", "shed")
                .with("lastError", operator.reason.as_str())
                .with("actor", operator.actor.as_str());
            fact.event_id.clone_from(&candidate.event_id);
            fact
        });
        let mut call = Self::call(&scripts::SHED)
            .key(keys.lane(lane))
            .key(keys.due_of(&lane.family))
            .key(keys.failures_of(&lane.family))
            .key(keys.dead())
            .key(keys.sessions())
            .key(keys.journal())
            .key(keys.due())
            .arg(format!("p{}|", lane.priority.number()))
            .arg(lane.family.as_str())
            .arg(journal::encode_facts(facts));
        for candidate in chunk {
            let record = DeadRecord {
                reason: "shed".into(),
                error: operator.reason.clone(),
                lane: lane.to_string(),
                entry_id: candidate.id.to_string(),
                first_at: candidate.id.ms,
                last_at: now,
                ..DeadRecord::default()
            };
            call.push_arg(candidate.id.to_string());
            call.push_arg(rmp_serde::to_vec_named(&record).unwrap_or_default());
        }
        self.redis.run(call).await
    }
}
