//! `<data dir>/service.json`: which data set the service of this machine uses, and the settings that it goes by.
//!
//! Commands that change something compare it with the Redis they reach. A shell's stray `REDIS_URL` once sent a pause
//! to another Redis than the drainer's: it "worked" and held nothing.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::functions::registry::Registry as Functions;
use crate::streams::bus::Bus;
use crate::streams::records::Fact;
use crate::streams::redis::Error;

/// What a running service tells about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceNote {
    /// The data set it uses.
    pub instance_id: String,
    /// Its Redis, without password.
    pub redis_url: String,
    /// The process.
    pub pid: u32,
    /// The settings in force by variable; no secrets.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// Settings as the note has them: what is set, without secrets and without the address of Redis.
#[must_use]
pub fn settings_of(config: &Config) -> BTreeMap<String, String> {
    let told = config.effective.iter().filter(|setting| !setting.declared.is_secret);
    told.filter_map(|setting| Some((setting.declared.key.to_owned(), setting.shown.clone()?))).collect()
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("service.json")
}

/// The note of a service that is still running.
#[must_use]
pub fn running_service(data_dir: &Path) -> Option<ServiceNote> {
    let note: ServiceNote = serde_json::from_slice(&std::fs::read(path(data_dir)).ok()?).ok()?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(note.pid).ok()?);
    // Signal 0 asks whether the process exists; "not permitted" means that it does.
    match nix::sys::signal::kill(pid, None) {
        Ok(()) | Err(nix::errno::Errno::EPERM) => Some(note),
        Err(_) => None,
    }
}

/// Writes the note once Redis answers, and removes it at the end. Fails where a newer program keeps its keys.
pub(super) async fn keep(
    bus: &Bus,
    data_dir: &Path,
    mut settings: watch::Receiver<BTreeMap<String, String>>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let instance_id = loop {
        match bus.instance_id().await {
            Ok(instance_id) => break instance_id,
            // Whatever we wrote there, the newer program would not find.
            Err(error @ Error::Schema { .. }) => return Err(error),
            Err(_) => tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            },
        }
    };
    let pid = std::process::id();
    let mut note =
        ServiceNote { instance_id, redis_url: bus.redis.display().to_owned(), pid, settings: BTreeMap::new() };
    loop {
        note.settings = settings.borrow_and_update().clone();
        if let Err(error) = write(data_dir, &note) {
            tracing::warn!(error = %error, "service.json can't be written: commands can't check that they use the same Redis");
            return Ok(());
        }
        tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = settings.changed() => {}
        }
    }
    if running_service(data_dir).as_ref() == Some(&note) {
        let _ = std::fs::remove_file(path(data_dir));
    }
    Ok(())
}

fn write(data_dir: &Path, note: &ServiceNote) -> std::io::Result<()> {
    std::fs::create_dir_all(data_dir)?;
    let text = serde_json::to_string(note)?;
    let temporary = data_dir.join(format!(".service.json.{}", note.pid));
    // Settings are nobody else's business.
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?.write_all(text.as_bytes())?;
    std::fs::rename(temporary, path(data_dir))
}

/// `worker.started`, for the journal.
pub(super) struct WorkerStarted {
    /// Where HTTP is served.
    pub port: u16,
    /// Whether it plays the part of the host.
    pub is_host: bool,
    /// What apps serve.
    pub functions: Functions,
}

impl WorkerStarted {
    /// Journals it once Redis answers.
    pub async fn tell(self, bus: &Bus, stop: CancellationToken) {
        let started_at = crate::moment::now();
        loop {
            let known = self.functions.current();
            let served = known.functions.keys().filter(|slug| known.is_served(slug)).count();
            let fact = Fact::new("serve", "worker.started")
                .with("port", self.port)
                .with("workerRole", if self.is_host { "host" } else { "cluster" })
                .with("registeredFunctions", served)
                .with("startedAt", started_at.as_str())
                .with("deploymentModel", "single-source");
            if bus.journal([fact]).await.is_ok() {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}
