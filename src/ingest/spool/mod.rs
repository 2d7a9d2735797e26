//! The spool: deliveries on the disk of this machine while Redis is away, for senders that never send again.
//!
//! A file `<ulid>.mpk` holds one or more deliveries, each a MessagePack value: whoever waits while a file is written
//! shares the next one, so that a burst costs a few `fsync`s instead of one each. Names sort by age.
//!
//! | step | a crash right there leaves |
//! |---|---|
//! | `<ulid>.tmp` written and synced | a file that nobody was answered for: removed at the next start |
//! | renamed to `<ulid>.mpk`, directory synced, then the answer | the delivery, drained at the next start |
//! | drained ([`drain`]): every event appended | the file: drained again, and known by its ids and its delivery |
//! | file removed | nothing |
//!
//! # Invariants
//! 1. `put` answers `Ok` only after file and directory are synced.
//! 2. Each event has an id before it is written, so that draining twice appends once.
//! 3. While anything is held, later deliveries go behind it, or wait until it is appended: the order of arrival is kept.
//! 4. Never more than `max_bytes`, what is being written included.
//! 5. One process a directory: a lock says so.

mod drain;
mod files;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};
use ulid::Ulid;

use self::files::found;
use crate::streams::json::JsonObject;
use crate::whole_file::{private, store};

pub use drain::is_outage;

/// Most bytes of one file, so that reading one back is no burden.
const FILE_MAX_BYTES: usize = 1 << 20;
/// So many deliveries are appended in a moment.
const SOON: usize = 512;

/// Why a delivery is not on the disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing fits any more.
    #[error("the spool is full: {held} of {limit} bytes")]
    Full {
        /// Bytes held.
        held: u64,
        /// The limit.
        limit: u64,
    },
    /// Another process has it.
    #[error("another process uses {}", .0.display())]
    InUse(PathBuf),
    /// The disk.
    #[error("{}: {source}", path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A delivery can't be written as MessagePack: a fault of ours.
    #[error("a delivery can't be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    /// Whoever wrote the file has ended in the middle.
    #[error("the write was abandoned")]
    Abandoned,
}

/// One event of a spooled delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledEvent {
    /// The event name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The payload.
    pub data: JsonObject,
    /// The emitter's keys.
    pub meta: String,
    /// See [`crate::streams::append::Once::key`].
    pub once: String,
    /// See [`crate::streams::append::Once::window`], ms.
    pub window_ms: u64,
}

/// A spooled delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spooled {
    /// Who sent it, as the source of its events.
    pub source: String,
    /// When it arrived, ms.
    pub received_ms: i64,
    /// Its events.
    pub events: Vec<SpooledEvent>,
    /// The trace object of its events.
    #[serde(default)]
    pub trace: Option<String>,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    /// Held by whoever writes a file.
    writing: tokio::sync::Mutex<()>,
    /// Whether anything is held.
    held: watch::Sender<bool>,
    /// Something was put.
    put: Notify,
    _lock: Flock<File>,
}

#[derive(Debug, Default)]
struct State {
    /// On disk, the oldest first.
    files: VecDeque<Held>,
    /// Waiting for the next file.
    waiting: VecDeque<Waiting>,
    /// Of files, of what waits and of what is being written.
    bytes: u64,
    /// The same, deliveries.
    deliveries: usize,
    last: Option<Ulid>,
    /// The last append of the drain was taken.
    is_back: bool,
}

/// What a delivery that arrives now has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing is held.
    Direct,
    /// Little is held, and it is being appended: it will be gone in a moment.
    Soon,
    /// Go behind what is held.
    Behind,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    name: Ulid,
    bytes: u64,
    deliveries: usize,
}

#[derive(Debug)]
struct Waiting {
    received_ms: i64,
    encoded: Vec<u8>,
    answer: oneshot::Sender<Result<(), Error>>,
}

/// How much is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Deliveries.
    pub deliveries: usize,
    /// Bytes.
    pub bytes: u64,
    /// When the oldest file was written, ms.
    pub oldest_ms: Option<u64>,
}

impl Depth {
    /// How long the oldest file has waited.
    #[must_use]
    pub fn oldest_age(&self) -> Duration {
        let now = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0);
        self.oldest_ms.map_or(Duration::ZERO, |oldest| Duration::from_millis(now.saturating_sub(oldest)))
    }
}

impl Spool {
    /// Opens the directory, makes it where it is missing, and finds what a former process has left.
    pub fn open(dir: PathBuf, max_bytes: u64) -> Result<Self, Error> {
        let failed = |source| Error::Disk { path: dir.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        let lock = private().create(true).append(true).open(dir.join(".lock")).map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| Error::InUse(dir.clone()))?;
        let state = found(&dir).map_err(failed)?;
        let inner = Inner {
            dir,
            max_bytes,
            held: watch::Sender::new(state.deliveries > 0),
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::default(),
            put: Notify::new(),
            _lock: lock,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Whether the directory holds deliveries.
    #[must_use]
    pub fn is_used(dir: &Path) -> bool {
        let is_file = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "mpk"))
        };
        fs::read_dir(dir).is_ok_and(|mut entries| entries.any(is_file))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a delivery that arrives now has to do, so that the order is kept. Under a steady load the spool would never
    /// run empty if all of it went behind.
    #[must_use]
    pub fn turn(&self) -> Turn {
        let state = self.state();
        match state.deliveries {
            0 => Turn::Direct,
            held if state.is_back && held <= SOON => Turn::Soon,
            _ => Turn::Behind,
        }
    }

    /// Ends when nothing is held.
    pub async fn until_empty(&self) {
        let _ = self.0.held.subscribe().wait_for(|held| !*held).await;
    }

    /// True while anything is held.
    #[must_use]
    pub fn holds_any(&self) -> bool {
        self.state().deliveries > 0
    }

    /// How much is held.
    #[must_use]
    pub fn depth(&self) -> Depth {
        let state = self.state();
        let oldest_ms = state.files.front().map(|file| file.name.timestamp_ms());
        Depth { deliveries: state.deliveries, bytes: state.bytes, oldest_ms }
    }

    /// Puts a delivery on the disk.
    pub async fn put(&self, delivery: &Spooled) -> Result<(), Error> {
        let encoded = rmp_serde::to_vec_named(delivery)?;
        let size = encoded.len() as u64;
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state();
            if state.bytes + size > self.0.max_bytes {
                return Err(Error::Full { held: state.bytes, limit: self.0.max_bytes });
            }
            // The first one: an outage begins.
            state.is_back &= state.deliveries > 0;
            state.bytes += size;
            state.deliveries += 1;
            state.waiting.push_back(Waiting { received_ms: delivery.received_ms, encoded, answer });
        }
        self.0.held.send_if_modified(|held| !std::mem::replace(held, true));
        let spool = self.clone();
        // A task of its own: a caller that gives up must not take the others' answers with it.
        tokio::spawn(async move {
            let _writing = spool.0.writing.lock().await;
            let group = spool.next_group();
            if !group.is_empty() {
                spool.write(group).await;
            }
        });
        answered.await.unwrap_or(Err(Error::Abandoned))
    }

    /// Ends when something is held.
    pub async fn until_held(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.held.subscribe().wait_for(|held| *held).await;
    }

    /// Says that nothing is held any more, once that is so.
    fn settle(&self, state: &State) {
        if state.deliveries == 0 {
            self.0.held.send_if_modified(|held| std::mem::replace(held, false));
        }
    }

    fn next_group(&self) -> Vec<Waiting> {
        let mut state = self.state();
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(next) = state.waiting.front() {
            if !group.is_empty() && bytes + next.encoded.len() > FILE_MAX_BYTES {
                break;
            }
            bytes += next.encoded.len();
            group.extend(state.waiting.pop_front());
        }
        // Those who waited for Redis come after others that arrived later.
        group.sort_by_key(|waiting| waiting.received_ms);
        group
    }

    async fn write(&self, group: Vec<Waiting>) {
        let (bodies, answers): (Vec<Vec<u8>>, Vec<_>) = group.into_iter().map(|w| (w.encoded, w.answer)).unzip();
        let (deliveries, bytes) = (bodies.len(), bodies.iter().map(|body| body.len() as u64).sum());
        let name = self.next_name();
        let dir = self.0.dir.clone();
        let written = tokio::task::spawn_blocking(move || store(&dir, &name.to_string(), "mpk", &bodies)).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        let mut state = self.state();
        match &written {
            Ok(()) => state.files.push_back(Held { name, bytes, deliveries }),
            Err(_) => {
                state.bytes -= bytes;
                state.deliveries -= deliveries;
                self.settle(&state);
            }
        }
        drop(state);
        for answer in answers {
            let told = match &written {
                Ok(()) => Ok(()),
                Err(error) => Err(Error::Disk {
                    path: self.0.dir.clone(),
                    source: io::Error::new(error.kind(), error.to_string()),
                }),
            };
            let _ = answer.send(told);
        }
        self.0.put.notify_one();
    }

    /// Later than every name before it, whatever the clock does.
    fn next_name(&self) -> Ulid {
        let mut state = self.state();
        let name = match (Ulid::generate(), state.last) {
            (now, Some(last)) if now <= last => last.increment().unwrap_or(now),
            (now, _) => now,
        };
        state.last = Some(name);
        name
    }

    fn path(&self, name: Ulid) -> PathBuf {
        self.0.dir.join(format!("{name}.mpk"))
    }
}

#[cfg(test)]
mod tests {
    use super::files::decode;
    use super::*;

    pub(super) fn delivery(n: i64) -> Spooled {
        let event = SpooledEvent {
            name: "a/b".into(),
            id: format!("id-{n}"),
            data: JsonObject::parse(&format!("{{\"n\":{n}}}")).unwrap(),
            meta: "{}".into(),
            once: format!("x:{n}"),
            window_ms: 1000,
        };
        Spooled { source: "webhook/x".into(), received_ms: n, events: vec![event], trace: None }
    }

    fn held(spool: &Spool) -> Vec<i64> {
        let files: Vec<Held> = spool.state().files.iter().copied().collect();
        let of = |held: &Held| decode(&fs::read(spool.path(held.name)).unwrap()).0;
        files.iter().flat_map(of).map(|delivery| delivery.received_ms).collect()
    }

    #[tokio::test]
    async fn what_was_put_is_found_by_the_next_process_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().to_path_buf(), 1 << 20).unwrap();
        assert!(matches!(Spool::open(dir.path().to_path_buf(), 1 << 20), Err(Error::InUse(_))));
        assert!(!spool.holds_any());
        let all: Vec<Spooled> = (0..50).map(delivery).collect();
        for one in &all[..10] {
            spool.put(one).await.unwrap();
        }
        let puts = futures_util::future::join_all(all[10..].iter().map(|one| spool.put(one))).await;
        assert!(puts.iter().all(Result::is_ok));
        spool.until_held().await;
        let files = spool.state().files.len();
        assert!((11..=50).contains(&files), "a burst shares files: {files}");
        let depth = spool.depth();
        assert_eq!(depth.deliveries, 50);
        // Writers that found nothing left to write may still be about to see so.
        while Arc::strong_count(&spool.0) > 1 {
            tokio::task::yield_now().await;
        }
        drop(spool);
        fs::write(dir.path().join(format!("{}.tmp", Ulid::generate())), "half").unwrap();
        let spool = Spool::open(dir.path().to_path_buf(), 1 << 20).unwrap();
        assert_eq!(spool.depth(), depth);
        assert_eq!(held(&spool), (0..50).collect::<Vec<_>>());
        let left = fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "tmp"));
        assert_eq!(left.count(), 0);
    }

    #[tokio::test]
    async fn a_full_spool_and_a_disk_that_fails_are_errors_and_hold_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().to_path_buf(), 300).unwrap();
        spool.put(&delivery(1)).await.unwrap();
        let before = spool.depth();
        let more = [2, 3, 4].map(delivery);
        let full = futures_util::future::join_all(more.iter().map(|one| spool.put(one)));
        assert!(full.await.iter().any(|put| matches!(put, Err(Error::Full { .. }))));
        assert!(spool.depth().bytes <= 300 && before.deliveries == 1);
        let gone = tempfile::tempdir().unwrap();
        let spool = Spool::open(gone.path().to_path_buf(), 300).unwrap();
        fs::remove_dir_all(gone.path()).unwrap();
        assert!(matches!(spool.put(&delivery(1)).await, Err(Error::Disk { .. })));
        assert!(!spool.holds_any() && spool.depth().bytes == 0);
    }
}
