//! Completion: how dispatches end. One script per batch, and the only way an entry leaves the pending list.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bus::Bus;
use super::entry_id::EntryId;
use super::journal;
use super::lane::Lane;
use super::lease::Failures;
use super::records::Record;
use super::redis::Error;
use super::scripts;

/// One dispatch and how it ended.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Where the entry is.
    pub lane: Lane,
    /// The entry.
    pub id: EntryId,
    /// How it ended.
    pub ending: Ending,
}

/// What becomes of the entry.
#[derive(Debug, Clone)]
pub enum Ending {
    /// Acknowledged. `forget_failures` where earlier attempts had failed.
    Done {
        /// A failure record exists.
        forget_failures: bool,
    },
    /// Stays pending; nobody may claim it before the delay has passed.
    Retry {
        /// From now, by Redis's clock.
        delay: Duration,
        /// What went wrong so far.
        failures: Failures,
    },
    /// Moved to the dead letters.
    Dead(DeadRecord),
    /// Given back before a handler saw it: due at once, no attempt charged.
    HandBack {
        /// The delivery count it had before this grant.
        deliveries: u32,
    },
}

/// Field `r` of a dead letter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadRecord {
    /// `attempts_exhausted`, `rejected`, `undecodable`, `unsupported_version`, `crashed_process`, `expired`, `shed`, ….
    pub reason: String,
    /// The last error.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Where it was.
    pub lane: String,
    /// The entry it was.
    pub entry_id: String,
    /// When it was appended, ms.
    pub first_at: u64,
    /// When it died, ms.
    pub last_at: u64,
    /// `<kind> <target>` of its handler.
    pub handler: String,
    /// How often it had been redriven.
    pub redrives: u32,
    /// HTTP status or exit code of the last attempt.
    #[serde(default)]
    pub status: Option<i32>,
}

/// Why a batch was not completed.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// The session was taken over: drop the results and open a new session.
    #[error("the session was taken over by another drainer")]
    Fenced,
    /// Redis did not do it; the same batch may be tried again.
    #[error(transparent)]
    Redis(#[from] Error),
}

impl Bus {
    /// Ends a batch (≤ 512) and journals `records` in the same script. Returns the `<lane>|<entry id>` that were
    /// refused because an operator had taken them away by force.
    pub async fn complete(
        &self,
        session: &str,
        batch: &[Completion],
        records: &[Record],
    ) -> Result<Vec<String>, CompleteError> {
        let keys = &self.keys;
        let mut numbers: HashMap<&Lane, usize> = HashMap::new();
        let mut lanes: Vec<(&Lane, Vec<EntryId>)> = Vec::new();
        let mut others: Vec<(usize, &Completion)> = Vec::new();
        for completion in batch {
            let number = *numbers.entry(&completion.lane).or_insert_with(|| {
                lanes.push((&completion.lane, Vec::new()));
                lanes.len() - 1
            });
            match completion.ending {
                Ending::Done { forget_failures } => {
                    lanes[number].1.push(completion.id);
                    if forget_failures {
                        others.push((number, completion));
                    }
                }
                _ => others.push((number, completion)),
            }
        }
        let blob = if records.is_empty() { Vec::new() } else { journal::encode(records) };
        let mut call = Self::call(&scripts::COMPLETE)
            .key(keys.sessions())
            .key(keys.journal())
            .key(keys.dead())
            .key(keys.due())
            .key(keys.revoked())
            .arg(session)
            .arg(blob)
            .number(lanes.len());
        for (lane, done) in &lanes {
            call.push_key(keys.lane(lane));
            call.push_key(keys.due_of(&lane.family));
            call.push_key(keys.failures_of(&lane.family));
            call = call
                .arg(lane.to_string())
                .arg(lane.family.as_str())
                .arg(format!("p{}|", lane.priority.number()))
                .number(done.len());
            for id in done {
                call.push_arg(id.to_string());
            }
        }
        for (number, completion) in others {
            let lane = (number + 1).to_string();
            let id = completion.id.to_string();
            let pack = |value: Result<Vec<u8>, rmp_serde::encode::Error>| value.unwrap_or_default();
            call = match &completion.ending {
                Ending::Done { .. } => call.arg("c").arg(lane).arg(id),
                Ending::Retry { delay, failures } => call
                    .arg("r")
                    .arg(lane)
                    .arg(id)
                    .number(delay.as_millis())
                    .arg(pack(rmp_serde::to_vec_named(failures))),
                Ending::Dead(record) => call.arg("d").arg(lane).arg(id).arg(pack(rmp_serde::to_vec_named(record))),
                Ending::HandBack { deliveries } => call.arg("h").arg(lane).arg(id).number(deliveries),
            };
        }
        match self.redis.run(call).await {
            Ok(refused) => Ok(refused),
            Err(error) if error.reply_code() == Some("FENCED") => Err(CompleteError::Fenced),
            Err(error) => Err(error.into()),
        }
    }
}
