//! The registry in force, and the task that replaces it when its file changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{Error, Registry};

/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(1);

/// The registry in force. Cheap to clone; readers never wait.
#[derive(Debug, Clone)]
pub struct RegistryHandle {
    path: PathBuf,
    current: Arc<ArcSwap<Registry>>,
    version: Arc<AtomicU64>,
}

impl RegistryHandle {
    /// Loads the registry of `path`.
    pub fn load(path: PathBuf) -> Result<Self, Error> {
        let registry = Registry::load(&path)?;
        Ok(Self { path, current: Arc::new(ArcSwap::from_pointee(registry)), version: Arc::new(AtomicU64::new(1)) })
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

    /// Reads the file again. An invalid one changes nothing. True when the table is another.
    pub fn reload(&self) -> Result<bool, Error> {
        let registry = Registry::load(&self.path)?;
        if registry.hash() == self.current.load().hash() {
            return Ok(false);
        }
        self.current.store(Arc::new(registry));
        self.version.fetch_add(1, Ordering::Release);
        Ok(true)
    }

    /// Reloads whenever the file changes, until `cancel`. A file error is told once and keeps the last good registry.
    pub async fn watch(self, cancel: CancellationToken) {
        let mut seen = self.stamp();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
            let now = self.stamp();
            if now == seen {
                continue;
            }
            seen = now;
            match self.reload() {
                Ok(true) => tracing::info!(hash = self.current().hash(), "the registry has changed"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(error = %error, "the registry file is wrong; the last good one stays in force")
                }
            }
        }
    }

    fn stamp(&self) -> Option<(SystemTime, u64)> {
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }
}
