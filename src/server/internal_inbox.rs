//! The inbox of agents: the state of each request, one file a request.
//!
//! `<inbox>/<requestId>.json`; consumers move what they have read to `<inbox>/ack`. Whoever works on a request may write
//! its file too, so a change is seen by the word of this process or, where another one made it, by a look every two
//! seconds.
//!
//! # Invariants
//! 1. A file is written under another name, synced and renamed: a reader never sees half of it, nor does a crash.
//! 2. Of two requests with one id at the same time one makes the file, and the other finds it.
//! 3. What is terminal is never overwritten: a change holds the inbox's lock from its reading to its writing.
//! 4. An id is a name and nothing else: it never leads out of the inbox.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit, broadcast};

use crate::moment;

/// How long a wait goes on without a look, for changes that another process made.
const LOOK: Duration = Duration::from_secs(2);
/// Who may wait at once.
const WAITERS: usize = 1_000;
/// A cancelled request of which nobody has said anything for so long has nobody who works on it.
const OWNER_SILENT: chrono::TimeDelta = chrono::TimeDelta::seconds(30);
/// Files looked at for one list.
const SCAN: usize = 5_000;

/// `^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`.
#[must_use]
pub fn is_id(id: &str) -> bool {
    id.len() <= 128
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether nothing can follow this status.
#[must_use]
pub fn is_terminal(status: &str) -> bool {
    matches!(status, "completed" | "failed" | "cancelled")
}

/// What a snapshot says of its request.
#[must_use]
pub fn status_of(snapshot: &Value) -> &str {
    snapshot["status"].as_str().unwrap_or("unknown")
}

/// See the module.
#[derive(Debug)]
pub struct Inbox {
    dir: PathBuf,
    /// Where agents that run here leave what they print: `<runs>/<requestId>/<n>/stdout.txt`.
    pub runs: PathBuf,
    changed: broadcast::Sender<String>,
    writing: Mutex<()>,
    waiters: Semaphore,
}

/// Somebody who waits for one request; counted while it lives.
#[derive(Debug)]
pub struct Waiter<'a> {
    id: String,
    changes: broadcast::Receiver<String>,
    _permit: SemaphorePermit<'a>,
}

impl Waiter<'_> {
    /// Returns when the request may have changed.
    pub async fn changed(&mut self) {
        let heard = async {
            loop {
                match self.changes.recv().await {
                    Ok(id) if id != self.id => {}
                    // Having missed some, ours may be among them.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let _ = tokio::time::timeout(LOOK, heard).await;
    }
}

impl Inbox {
    /// The inbox below a data directory.
    #[must_use]
    pub fn below(data: &Path) -> Self {
        Self {
            dir: data.join("workspace/inbox"),
            runs: data.join("run"),
            changed: broadcast::channel(256).0,
            writing: Mutex::default(),
            waiters: Semaphore::new(WAITERS),
        }
    }

    /// Where the state of `id` is.
    #[must_use]
    pub fn file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Held from reading a snapshot to writing what follows from it.
    pub async fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().await
    }

    /// Waits for changes of `id` from now on; `None` when too many wait already.
    pub fn waiter(&self, id: &str) -> Option<Waiter<'_>> {
        let permit = self.waiters.try_acquire().ok()?;
        Some(Waiter { id: id.to_owned(), changes: self.changed.subscribe(), _permit: permit })
    }

    /// What is known of a request. One that was cancelled, and of which nobody has said anything since, is cancelled.
    pub async fn snapshot(&self, id: &str) -> io::Result<Option<Value>> {
        let Some(found) = self.read(id).await? else { return Ok(None) };
        if !is_abandoned(&found) {
            return Ok(Some(found));
        }
        let _writing = self.lock().await;
        match self.read(id).await? {
            Some(found) if is_abandoned(&found) => {
                let reason = found["cancelReason"].as_str().map(str::to_owned);
                let ended = cancelled(found, reason.as_deref());
                self.replace(id, &ended).await?;
                Ok(Some(ended))
            }
            other => Ok(other),
        }
    }

    /// The same as it is written, for whoever holds the lock.
    pub async fn read(&self, id: &str) -> io::Result<Option<Value>> {
        for path in [self.file(id), self.dir.join("ack").join(format!("{id}.json"))] {
            match tokio::fs::read(&path).await {
                Ok(bytes) => match serde_json::from_slice(&bytes) {
                    Ok(snapshot @ Value::Object(_)) => return Ok(Some(snapshot)),
                    // Out of the way, and kept for whoever wants to know. The event's id keeps its work from being
                    // asked for twice.
                    _ => {
                        let aside =
                            path.with_extension(format!("json.corrupt-{}", chrono::Utc::now().timestamp_millis()));
                        tracing::error!(action = "agent.inbox.corrupt", file = %aside.display(), "a snapshot can't be read");
                        tokio::fs::rename(&path, &aside).await?;
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Makes the file. False when there is one already.
    pub async fn create(&self, id: &str, snapshot: &Value) -> io::Result<bool> {
        // Unlike a rename, a link never replaces anything.
        let linked = self.write(id, snapshot, |draft, file| {
            let linked = std::fs::hard_link(draft, file);
            let _ = std::fs::remove_file(draft);
            linked
        });
        match linked.await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the file anew.
    pub async fn replace(&self, id: &str, snapshot: &Value) -> io::Result<()> {
        self.write(id, snapshot, |draft, file| std::fs::rename(draft, file)).await
    }

    async fn write(&self, id: &str, snapshot: &Value, publish: fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(snapshot)?;
        text.push(b'\n');
        let (dir, file) = (self.dir.clone(), self.file(id));
        let draft = dir.join(format!(".{id}.{}.tmp", uuid::Uuid::now_v7()));
        let write = move || {
            use std::io::Write as _;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let mut opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            opened.write_all(&text)?;
            opened.sync_all()?;
            publish(&draft, &file)?;
            std::fs::File::open(&dir)?.sync_all()
        };
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        // Nobody listens: nobody waits.
        let _ = self.changed.send(id.to_owned());
        Ok(())
    }

    /// Takes away a file that nobody works on any more. False when somebody else was quicker.
    pub async fn set_aside(&self, id: &str) -> io::Result<bool> {
        let aside = self.dir.join(format!(".{id}.{}.stale", uuid::Uuid::now_v7()));
        match tokio::fs::rename(self.file(id), &aside).await {
            Ok(()) => tokio::fs::remove_file(&aside).await.map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The ids of requests, those that changed last first.
    pub async fn ids(&self) -> io::Result<Vec<String>> {
        let dirs = [self.dir.clone(), self.dir.join("ack")];
        let look = move || {
            let mut found: Vec<(SystemTime, String)> = Vec::new();
            for dir in dirs {
                let entries = match std::fs::read_dir(&dir) {
                    Ok(entries) => entries,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                for entry in entries {
                    let entry = entry?;
                    let name = entry.file_name();
                    let id = name.to_str().and_then(|name| name.strip_suffix(".json")).filter(|id| is_id(id));
                    let changed = entry.metadata().and_then(|metadata| metadata.modified());
                    if let (Some(id), Ok(changed)) = (id, changed) {
                        found.push((changed, id.to_owned()));
                    }
                }
            }
            found.sort_unstable_by(|a, b| b.cmp(a));
            found.dedup_by(|a, b| a.1 == b.1);
            found.truncate(SCAN);
            Ok(found.into_iter().map(|(_, id)| id).collect())
        };
        tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
    }
}

/// A snapshot as it is once its request was cancelled.
#[must_use]
pub fn cancelled(mut snapshot: Value, reason: Option<&str>) -> Value {
    let now = moment::now();
    let took = snapshot["startedAt"].as_str().and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
    snapshot["status"] = "cancelled".into();
    snapshot["error"] =
        reason.map_or_else(|| "Execution cancelled".into(), |why| format!("Execution cancelled: {why}").into());
    snapshot["updatedAt"] = now.as_str().into();
    snapshot["completedAt"] = now.into();
    snapshot["durationMs"] = took.map(|at| (chrono::Utc::now() - at.to_utc()).num_milliseconds().max(0)).into();
    snapshot
}

/// Its cancellation was asked for, and whoever works on it has been silent since and for long.
fn is_abandoned(snapshot: &Value) -> bool {
    let at = |name: &str| snapshot[name].as_str().and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
    let Some(asked) = at("cancelRequestedAt").filter(|_| !is_terminal(status_of(snapshot))) else { return false };
    let heard = at("updatedAt").map_or(asked, |updated| updated.max(asked));
    chrono::Utc::now() - heard.to_utc() >= OWNER_SILENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_id_never_leads_out_of_the_inbox() {
        for id in ["a", "wf-checkout-1.2_x", "A9", &"a".repeat(128)] {
            assert!(is_id(id), "{id}");
        }
        for id in ["", ".", "..", "../a", ".a", "a/b", "a\\b", "-a", "a b", "ä", "a\0", "a\n", &"a".repeat(129)] {
            assert!(!is_id(id), "{id}");
        }
    }

    /// The clock stands still: a waiter that had not been told would be seen to wait.
    #[tokio::test(start_paused = true)]
    async fn one_makes_the_file_and_waiters_hear_of_each_change() {
        let home = tempfile::tempdir().unwrap();
        let (inbox, begin) = (Inbox::below(home.path()), tokio::time::Instant::now());
        assert_eq!(inbox.snapshot("r").await.unwrap(), None);
        let mut waiter = inbox.waiter("r").unwrap();
        assert!(inbox.create("r", &json!({ "status": "running" })).await.unwrap());
        assert!(!inbox.create("r", &json!({ "status": "failed" })).await.unwrap());
        waiter.changed().await;
        inbox.replace("other", &json!({ "status": "running" })).await.unwrap();
        inbox.replace("r", &json!({ "status": "completed" })).await.unwrap();
        waiter.changed().await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(status_of(&inbox.snapshot("r").await.unwrap().unwrap()), "completed");
        let mut ids = inbox.ids().await.unwrap();
        ids.sort();
        assert_eq!(ids, ["other", "r"]);
        let left: Vec<_> = std::fs::read_dir(home.path().join("workspace/inbox")).unwrap().collect();
        assert_eq!(left.len(), 2, "no drafts");
    }

    #[tokio::test]
    async fn a_cancelled_request_that_nobody_works_on_ends_and_one_that_somebody_works_on_goes_on() {
        let home = tempfile::tempdir().unwrap();
        let inbox = Inbox::below(home.path());
        let (old, now) = ("2026-01-01T00:00:00.000Z", moment::now());
        let snapshot = |updated: &str| {
            json!({ "status": "running", "startedAt": old, "updatedAt": updated, "cancelRequestedAt": old,
                "cancelReason": "enough", "tool": "pi" })
        };
        inbox.replace("alone", &snapshot(old)).await.unwrap();
        inbox.replace("busy", &snapshot(&now)).await.unwrap();
        let ended = inbox.snapshot("alone").await.unwrap().unwrap();
        assert_eq!((status_of(&ended), &ended["error"]), ("cancelled", &json!("Execution cancelled: enough")));
        assert_eq!((&ended["tool"], &ended["startedAt"]), (&json!("pi"), &json!(old)));
        assert_eq!(status_of(&inbox.snapshot("busy").await.unwrap().unwrap()), "running");
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let inbox = Inbox::below(Path::new("/nowhere"));
        let all: Vec<_> = (0..WAITERS).map(|_| inbox.waiter("r").unwrap()).collect();
        assert!(inbox.waiter("r").is_none());
        drop(all);
        assert!(inbox.waiter("r").is_some());
    }
}
