//! What the loop asks of Redis beside reading and completing: each is a task that answers with an [`Event`].
//!
//! All of it is idempotent and takes no input that could be stale: a missed turn costs latency, never correctness.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::session::Event;
use super::{Retention, Settings, Shared};
use crate::streams::breaker::{Change, Circuits, Thresholds};
use crate::streams::bus::Bus;
use crate::streams::control::Pauses;
use crate::streams::family::Family;
use crate::streams::lane::Lane;
use crate::streams::lease::{Leased, ReadLane};
use crate::streams::records::Fact;
use crate::streams::redis::Error;
use crate::streams::retention::Retain;
use crate::streams::sessions::Renewal;
use crate::streams::steering::Steerings;

/// Retries of one family claimed at once.
const CLAIM: usize = 64;
/// Entries taken over at once.
const REAP: usize = 64;

/// What a tick found.
#[derive(Debug)]
pub enum Tick {
    /// All is well.
    Live {
        /// Redis's clock.
        now_ms: u64,
        /// Every known lane.
        lanes: Vec<Lane>,
        /// Locks of ordered families that are ours.
        ordered: Vec<String>,
        /// Sessions to take over.
        expired: Vec<String>,
        /// Another live drainer has free slots.
        others_free: bool,
    },
    /// Our session was taken over.
    Lost,
    /// Another data set answers than the one we serve.
    ForeignInstance {
        /// Its id.
        found: String,
    },
}

/// What decides whether a family may run now.
#[derive(Debug)]
pub struct Control {
    /// The pauses in force.
    pub pauses: Pauses,
    /// The circuit breakers that are not closed.
    pub circuits: Circuits,
    /// Other priorities and paces.
    pub steerings: Steerings,
    /// Families with retries, and when the earliest is due, ms.
    pub due: Vec<(Family, u64)>,
    /// When the next scheduled event is due, ms.
    pub next_later: Option<u64>,
}

/// Renews the session, learns the lanes, and looks for sessions that have ended.
pub fn tick(
    bus: &Bus,
    shared: &Shared,
    settings: &Settings,
    session: &str,
    details: String,
    ordered: Vec<String>,
    events: mpsc::Sender<Event>,
) {
    let (bus, session, shared, lease) = (bus.clone(), session.to_owned(), shared.clone(), settings.lease);
    tokio::spawn(async move {
        let began = Instant::now();
        let result = tick_once(&bus, &shared, &session, lease, &details, &ordered).await;
        shared.vitals.turned(began.elapsed());
        let _ = events.send(Event::Tick(Box::new(result))).await;
    });
}

async fn tick_once(
    bus: &Bus,
    shared: &Shared,
    session: &str,
    lease: Duration,
    details: &str,
    ordered: &[String],
) -> Result<Tick, Error> {
    match bus.known_instance_id().await? {
        Some(found) if found != shared.instance_id => return Ok(Tick::ForeignInstance { found }),
        _ => {}
    }
    let (mut expired, ordered) = match bus.renew_session(session, false, lease, details, ordered).await? {
        Renewal::Live { expired, ordered } => (expired, ordered),
        Renewal::Lost => return Ok(Tick::Lost),
    };
    let lanes = bus.lanes().await?;
    let ordered = without_older_work(bus, session, ordered, &lanes).await?;
    let now_ms = bus.now_ms().await?;
    let sessions = bus.sessions().await?;
    for other in &sessions {
        let is_gone = other.id != session && other.details.as_ref().is_some_and(super::home::is_gone);
        if is_gone && !expired.contains(&other.id) {
            // Its lease ends now: nobody is there to renew it.
            bus.close_session(&other.id, true).await?;
            expired.push(other.id.clone());
        }
    }
    if shared.orphan_check_is_due() {
        // A consumer that holds entries but has no session at all: its zset member was lost or removed by hand.
        let holders = bus.holders(&lanes).await?;
        for (_, holder, _) in holders {
            if !sessions.iter().any(|session| session.id == holder) && !expired.contains(&holder) {
                expired.push(holder);
            }
        }
    }
    let free = |details: &serde_json::Value| details.get("free").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let others_free = sessions
        .iter()
        .any(|other| other.id != session && other.expires_ms > now_ms && other.details.as_ref().map_or(0, free) > 0);
    expired.retain(|id| id != session);
    Ok(Tick::Live { now_ms, lanes, ordered, expired, others_free })
}

/// Of the ordered families whose lock is ours, those of which no other session still holds an entry: what a dead
/// drainer had in flight comes before everything after it.
async fn without_older_work(
    bus: &Bus,
    session: &str,
    locks: Vec<String>,
    lanes: &[Lane],
) -> Result<Vec<String>, Error> {
    if locks.is_empty() {
        return Ok(locks);
    }
    let is_locked = |lane: &&Lane| locks.contains(&bus.keys.ordered(&lane.family));
    let ours: Vec<Lane> = lanes.iter().filter(is_locked).cloned().collect();
    let holders = bus.holders(&ours).await?;
    let is_held = |lock: &String| {
        holders.iter().any(|(lane, holder, _)| holder != session && bus.keys.ordered(&lane.family) == *lock)
    };
    Ok(locks.into_iter().filter(|lock| !is_held(lock)).collect())
}

/// Reads pauses and due times; ends expired pauses and moves scheduled events whose time has come.
pub fn control(bus: &Bus, events: mpsc::Sender<Event>) {
    let bus = bus.clone();
    tokio::spawn(async move {
        let result = async {
            bus.expire_pauses().await?;
            let pauses = bus.pauses().await?;
            let circuits = bus.breakers().await?;
            let steerings = steerings(&bus).await?;
            let next_later = match bus.promote_later(512).await {
                // A full Redis keeps scheduled events where they are; that is no reason to stop draining.
                Err(error) if error.reply_code() == Some("OOM") => None,
                other => other?.1,
            };
            Ok(Control { pauses, circuits, steerings, due: bus.due_families().await?, next_later })
        }
        .await;
        let _ = events.send(Event::Control(Box::new(result))).await;
    });
}

/// What is steered, after what is over was ended.
async fn steerings(bus: &Bus) -> Result<Steerings, Error> {
    let steerings = bus.steerings().await?;
    if steerings.is_empty() {
        return Ok(steerings);
    }
    bus.expire_steering().await?;
    let mut has_ended = false;
    for trickle in steerings.sorted().into_iter().filter(|steering| steering.is_trickle()) {
        has_ended |= bus.end_trickle_if_through(trickle).await?;
    }
    if has_ended { bus.steerings().await } else { Ok(steerings) }
}

/// Asks for permits to start `count` events of a family that has a pace.
pub fn permits(bus: &Bus, family: Family, count: usize, events: mpsc::Sender<Event>) {
    let bus = bus.clone();
    tokio::spawn(async move {
        let permits = match bus.permits(&family, count).await {
            Ok(permits) => permits,
            Err(error) => {
                tracing::warn!(family = %family, error = %error, "no permits were granted; trying again");
                None
            }
        };
        let _ = events.send(Event::Permits { family, permits }).await;
    });
}

/// Changes a circuit breaker.
pub fn change_breaker(bus: &Bus, family: Family, change: Change, thresholds: Thresholds, events: mpsc::Sender<Event>) {
    let bus = bus.clone();
    tokio::spawn(async move {
        let mut pause = Duration::from_millis(50);
        let circuit = loop {
            match bus.change_breaker(&family, &change, &thresholds, "queue-drainer", None).await {
                Ok(circuit) => break circuit,
                Err(error) => {
                    // What isn't told in a minute is told by the next failure, or by the end of the probe's lease.
                    tracing::warn!(family = %family, error = %error, "the breaker is not changed yet; trying again");
                    if pause > Duration::from_secs(30) {
                        break None;
                    }
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        };
        let _ = events.send(Event::Breaker { family, circuit }).await;
    });
}

/// Claims retries of `family` whose time has come.
pub fn claim(bus: &Bus, session: &str, family: Family, events: mpsc::Sender<Event>) {
    let (bus, session) = (bus.clone(), session.to_owned());
    tokio::spawn(async move {
        let (entries, next) = match bus.claim_due(&session, &family, CLAIM).await {
            Ok(entries) => (entries, bus.next_due(&family).await),
            Err(error) => (Vec::new(), Err(error)),
        };
        if let Err(error) = &next {
            tracing::warn!(family = %family, error = %error, "claiming retries failed; trying again");
        }
        let _ = events.send(Event::Claimed { family, entries, next: next.ok() }).await;
    });
}

/// Takes over what ended sessions hold, lane by lane, then forgets them.
pub fn reap(bus: &Bus, own: &str, ended: Vec<String>, lanes: Vec<Lane>, events: mpsc::Sender<Event>) {
    let (bus, own) = (bus.clone(), own.to_owned());
    tokio::spawn(async move {
        if let Err(error) = reap_all(&bus, &own, &ended, &lanes, &events).await {
            // Nothing is lost: the next tick finds the same sessions.
            tracing::warn!(error = %error, "taking over ended sessions failed; trying again");
        }
        let _ = events.send(Event::Reaped).await;
    });
}

async fn reap_all(
    bus: &Bus,
    own: &str,
    ended: &[String],
    lanes: &[Lane],
    events: &mpsc::Sender<Event>,
) -> Result<(), Error> {
    let holders = bus.holders(lanes).await?;
    'sessions: for session in ended {
        for (lane, _, _) in holders.iter().filter(|(_, holder, _)| holder == session) {
            loop {
                let Some(reaped) = bus.reap(session, own, lane, REAP).await? else { continue 'sessions };
                if !reaped.entries.is_empty() {
                    tracing::info!(session, lane = %lane, entries = reaped.entries.len(), "took over an ended session's entries");
                    let entries: Vec<Leased> = reaped.entries;
                    if events.send(Event::Granted(entries)).await.is_err() {
                        return Ok(());
                    }
                }
                if !reaped.more {
                    break;
                }
            }
        }
        bus.forget_session(session).await?;
    }
    Ok(())
}

/// Removes what is done and past its retention, in bounded steps: one pass every fifth tick, 64 lanes a pass.
pub fn trim(bus: &Bus, retention: &Retention, lanes: Vec<Lane>, pass: u64) {
    const LANES: usize = 64;
    /// Journal batches kept at most.
    const JOURNAL: u64 = 2_000_000;
    let Some(age) = retention.done else { return };
    let retain = Retain { age, entries: retention.count, bytes: retention.bytes, ..Retain::default() };
    let (bus, journal, force_bytes) = (bus.clone(), retention.journal, retention.journal_force_bytes);
    tokio::spawn(async move {
        let passes = lanes.len().div_ceil(LANES).max(1);
        let turn = usize::try_from(pass).unwrap_or(0) % passes;
        for lane in lanes.iter().skip(turn * LANES).take(LANES) {
            if let Err(error) = bus.trim_lane(lane, &retain, 4).await {
                tracing::warn!(lane = %lane, error = %error, "trimming failed; trying again");
                return;
            }
        }
        trim_journal(&bus, journal, JOURNAL, force_bytes).await;
    });
}

/// Trims the journal. A reader that stands still holds it back until it takes `force_bytes`; then the journal goes on
/// without it, and says so.
async fn trim_journal(bus: &Bus, age: Duration, batches: u64, force_bytes: u64) {
    /// A call removes at most so many batches by their number.
    const STEP: u64 = 1000;
    for _ in 0..20 {
        let Ok(trimmed) = bus.trim_journal(age, batches, false).await else { return };
        if let Some(reader) = &trimmed.held_by
            && bus.journal_bytes().await.is_ok_and(|bytes| bytes > force_bytes)
        {
            tracing::error!(reader, "the journal is too large to wait for this reader; it loses records");
            if bus.trim_journal(age, batches, true).await.is_ok_and(|forced| forced.removed > 0) {
                let fact = Fact::new("journal", "telemetry.sink.failed")
                    .failed(format!("the journal passed {force_bytes} bytes and went on without {reader}"))
                    .with("sink", reader.as_str())
                    .with("trimmed", true);
                let _ = bus.journal([fact]).await;
            }
            return;
        }
        if trimmed.removed < STEP {
            return;
        }
    }
}

/// Creates the group of lanes that lost it, and journals that.
pub fn recreate_groups(bus: &Bus, lanes: Vec<ReadLane>) {
    let bus = bus.clone();
    tokio::spawn(async move {
        for ReadLane { lane, .. } in lanes {
            if let Ok(true) = bus.create_group(&lane).await {
                tracing::error!(lane = %lane, "the lane had lost its consumer group; created again, run `joelclaw queue fsck`");
                let fact = Fact::new("queue", "queue.lane.recreated").warn().with("lane", lane.to_string());
                let _ = bus.journal([fact]).await;
            }
        }
    });
}

/// Takes lanes off the ready set and tells the loop to read them.
pub fn mark_ready(bus: &Bus, events: mpsc::Sender<Event>) {
    let bus = bus.clone();
    tokio::spawn(async move {
        if let Ok(lanes) = bus.take_ready(128).await {
            for lane in lanes {
                if events.send(Event::Hint(format!("ready {lane}"))).await.is_err() {
                    return;
                }
            }
        }
    });
}
