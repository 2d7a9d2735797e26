//! The registry in force, and the task that replaces it when its file changes.
//!
//! A file that can't be used, or that was there and is gone (an editor between two steps, a disk not mounted), changes
//! nothing: the last good table stays, and [`RegistryHandle::fault`] says what is wrong until the file is right again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::entry::Origin;
use super::{Error, Registry};

/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(1);

/// What tells one state of the file from another; `None` when there is none.
type Stamp = Option<(SystemTime, u64)>;

/// The registry in force. Cheap to clone; readers never wait.
#[derive(Debug, Clone)]
pub struct RegistryHandle {
    path: PathBuf,
    current: Arc<ArcSwap<Registry>>,
    version: Arc<AtomicU64>,
    fault: Arc<watch::Sender<Option<Error>>>,
    /// The file before it was first read: a change between then and `watch` is seen.
    first: Stamp,
}

impl RegistryHandle {
    /// Loads the registry of `path`.
    pub fn load(path: PathBuf) -> Result<Self, Error> {
        let first = stamp(&path);
        let registry = Registry::load(&path)?;
        Ok(Self {
            path,
            current: Arc::new(ArcSwap::from_pointee(registry)),
            version: Arc::new(AtomicU64::new(1)),
            fault: Arc::new(watch::Sender::new(None)),
            first,
        })
    }

    /// The registry in force.
    #[must_use]
    pub fn current(&self) -> Arc<Registry> {
        self.current.load_full()
    }

    /// Rises with every change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What is wrong with the file as it is now; `None` while it is the one in force.
    #[must_use]
    pub fn fault(&self) -> watch::Receiver<Option<Error>> {
        self.fault.subscribe()
    }

    /// Reads the file again. An invalid one changes nothing. True when the table is another.
    pub fn reload(&self) -> Result<bool, Error> {
        let read = self.read();
        self.fault.send_replace(read.as_ref().err().cloned());
        let registry = read?;
        let is_other = registry.hash() != self.current.load().hash();
        // Also when the table is the same: its entries may stand in other lines.
        self.current.store(Arc::new(registry));
        if is_other {
            self.version.fetch_add(1, Ordering::Release);
        }
        Ok(is_other)
    }

    fn read(&self) -> Result<Registry, Error> {
        if let Some(registry) = Registry::load_existing(&self.path)? {
            return Ok(registry);
        }
        if self.current.load().entries().iter().all(|entry| entry.origin == Origin::BuiltIn) {
            return Ok(Registry::builtin());
        }
        let reason = "it is gone; for the built-in entries alone leave it there, empty".into();
        Err(Error::Unreadable { path: self.path.clone(), reason })
    }

    /// Reloads whenever the file changes, until `cancel`. A file error is told once and keeps the last good registry.
    pub async fn watch(self, cancel: CancellationToken) {
        let mut seen = self.first;
        loop {
            let now = stamp(&self.path);
            if now != seen {
                seen = now;
                self.follow();
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    fn follow(&self) {
        let was_wrong = self.fault.borrow().is_some();
        match self.reload() {
            Ok(true) => tracing::info!(hash = self.current().hash(), "the registry has changed"),
            Ok(false) if was_wrong => tracing::info!("the registry file is right again"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(error = %error, "the registry file is wrong; the last good one stays in force");
            }
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
