//! Posted telemetry on the disk of this machine while Redis is away.
//!
//! A file `<ulid>.batch` is the SHA-256 of a journal batch and the batch, as `journal.lua` takes it. Names sort by age.
//!
//! # Invariants
//! 1. [`Outbox::keep`] answers `Ok` only after file and directory are synced.
//! 2. One process drains a directory at a time (`.lock`), what others have left there included.
//! 3. A crash between the append and the removal of a file appends it twice: its events are known by their ids.
//! 4. What is not whole moves to `quarantine/`, and nothing waits for it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use rand::Rng as _;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::config::Config;
use crate::streams::bus::Bus;
use crate::whole_file;

/// Between two looks at the directory, and how long Redis is not asked once it was away. Up to half as much again.
const EVERY: Duration = Duration::from_secs(2);
/// Of a batch.
const END: &str = "batch";

/// Where a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the journal.
    Journal,
    /// On the disk.
    Disk,
}

/// Why a batch is not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The limit.
    #[error("the outbox of telemetry is full: {held} of {limit} bytes")]
    Full {
        /// Bytes held.
        held: u64,
        /// The limit.
        limit: u64,
    },
    /// Redis is there and does not take it.
    #[error(transparent)]
    Redis(#[from] crate::streams::redis::Error),
    /// The disk.
    #[error("{path}: {source}", path = path.display())]
    Disk {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    max_bytes: u64,
    away_until: Mutex<Option<Instant>>,
}

impl Outbox {
    /// The outbox of this configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let dir = config.telemetry.outbox_dir.clone().unwrap_or_else(|| config.system.data_dir.join("outbox"));
        Self::new(dir, config.telemetry.outbox_max_bytes)
    }

    /// An outbox in `dir`, which is made with its first batch.
    #[must_use]
    pub fn new(dir: PathBuf, max_bytes: u64) -> Self {
        Self(Arc::new(Inner { dir, max_bytes, away_until: Mutex::default() }))
    }

    /// Writes a batch into the journal, or onto the disk while Redis is away.
    pub async fn write(&self, bus: &Bus, batch: Vec<u8>) -> Result<Place, Error> {
        if !self.is_used(Instant::now()) {
            match bus.journal_encoded(batch.clone()).await {
                Ok(_) => return Ok(Place::Journal),
                Err(error) if error.is_unreachable() => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.keep(batch).await.map(|()| Place::Disk)
    }

    /// Whether Redis was away a moment ago: nobody has to wait to find that out again.
    fn is_used(&self, now: Instant) -> bool {
        self.0.away_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }

    /// Keeps a batch that Redis did not take.
    pub async fn keep(&self, batch: Vec<u8>) -> Result<(), Error> {
        *self.0.away_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + EVERY);
        let inner = self.0.clone();
        let kept = tokio::task::spawn_blocking(move || store(&inner.dir, inner.max_bytes, &batch)).await;
        kept.unwrap_or_else(|error| Err(self.failed(io::Error::other(error))))
    }

    /// Bytes that are kept.
    pub async fn bytes(&self) -> u64 {
        let dir = self.0.dir.clone();
        let held = move || Ok(batches(&dir)?.into_iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum());
        blocking(held).await.unwrap_or(0)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Disk { path: self.0.dir.clone(), source }
    }

    /// Hands what is kept to Redis once it takes it, until `stop`.
    pub async fn drain(self, bus: Bus, stop: CancellationToken) {
        loop {
            let pause = EVERY.mul_f64(1.0 + rand::rng().random::<f64>() / 2.0);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            match self.turn(&bus).await {
                Ok(0) => {}
                Ok(batches) => tracing::info!(action = "telemetry.outbox.drained", batches),
                Err(error) => {
                    tracing::warn!(action = "telemetry.outbox.waits", error = %crate::diagnose::chain(&error))
                }
            }
        }
    }

    /// How many batches went. Ends early where Redis is away.
    async fn turn(&self, bus: &Bus) -> Result<usize, Error> {
        let dir = self.0.dir.clone();
        let claimed = blocking(move || claim(&dir)).await.map_err(|source| self.failed(source))?;
        let Some((files, _lock)) = claimed else { return Ok(0) };
        let mut batches = 0;
        for path in files {
            let from = path.clone();
            let Some(batch) = blocking(move || load(&from)).await.map_err(|source| self.failed(source))? else {
                continue;
            };
            match bus.journal_encoded(batch).await {
                Ok(_) => blocking(move || fs::remove_file(path)).await.map_err(|source| self.failed(source))?,
                Err(error) if error.is_unreachable() => break,
                Err(error) => {
                    tracing::warn!(action = "telemetry.outbox.waits", error = %crate::diagnose::chain(&error));
                    break;
                }
            }
            batches += 1;
        }
        Ok(batches)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn batches(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == END) {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn store(dir: &Path, max_bytes: u64, batch: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Disk { path: dir.to_path_buf(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let sizes = batches(dir).map_err(failed)?.into_iter().filter_map(|path| Some(fs::metadata(path).ok()?.len()));
    let held: u64 = sizes.sum();
    if held + batch.len() as u64 > max_bytes {
        return Err(Error::Full { held, limit: max_bytes });
    }
    whole_file::store(dir, &Ulid::generate().to_string(), END, &[&Sha256::digest(batch)[..], batch]).map_err(failed)
}

/// The batches, oldest first, and the right to drain them. `None` where there are none, or another process drains.
fn claim(dir: &Path) -> io::Result<Option<(Vec<PathBuf>, Flock<File>)>> {
    match batches(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(found) if found.is_empty() => return Ok(None),
        Ok(_) => {}
    }
    let lock = whole_file::private().create(true).append(true).open(dir.join(".lock"))?;
    let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
    // The holder before may have drained some meanwhile.
    Ok(Some((batches(dir)?, lock)))
}

/// A batch; `None` where it is not whole and was put aside.
fn load(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let bytes = fs::read(path)?;
    if let Some((sum, batch)) = bytes.split_at_checked(32)
        && Sha256::digest(batch).as_slice() == sum
    {
        return Ok(Some(batch.to_vec()));
    }
    let aside = path.with_file_name("quarantine");
    DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
    fs::rename(path, aside.join(path.file_name().unwrap_or_default()))?;
    tracing::error!(action = "telemetry.outbox.corrupt", file = %path.display());
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_whole_and_in_order_and_what_is_torn_is_put_aside() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("outbox");
        assert!(claim(&dir).unwrap().is_none());
        store(&dir, 1000, b"one").unwrap();
        std::thread::sleep(Duration::from_millis(2));
        store(&dir, 1000, b"two").unwrap();
        assert!(matches!(store(&dir, 1000, &[0; 990]).unwrap_err(), Error::Full { held: 70, limit: 1000 }));
        let (files, lock) = claim(&dir).unwrap().unwrap();
        let read: Vec<_> = files.iter().map(|path| load(path).unwrap().unwrap()).collect();
        assert_eq!(read, [b"one", b"two"]);
        assert!(claim(&dir).unwrap().is_none(), "somebody drains");
        drop(lock);
        fs::write(&files[0], b"torn").unwrap();
        assert!(load(&files[0]).unwrap().is_none());
        assert_eq!(claim(&dir).unwrap().unwrap().0, files[1..]);
        assert_eq!(fs::read_dir(dir.join("quarantine")).unwrap().count(), 1);
    }
}
