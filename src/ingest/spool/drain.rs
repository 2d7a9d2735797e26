//! Bringing the spool back: many files by one append, the oldest first, each removed once its events are stored.
//!
//! A burst of an outage is many small files, because each waits for its own sync. Appended one by one they would go at
//! the pace at which they came, and the spool would not run empty under load: so up to [`FILES_MAX`] go together.
//! A crash between append and removal leaves files that are appended again and known by their ids.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::files::decode;
use super::{Depth, Held, Spool, Spooled, SpooledEvent};
use crate::diagnose::chain;
use crate::ingest::admission::{self, Admission, Emit};
use crate::streams::append::{self, Once};

/// Most files of one turn.
const FILES_MAX: usize = 64;
/// Most bytes of one turn; a file that is larger goes alone.
const BYTES_MAX: u64 = 4 << 20;
/// How long to wait before Redis is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// A file as it was read.
struct Loaded {
    path: PathBuf,
    deliveries: Vec<Spooled>,
    /// All of it can be read and appended.
    is_good: bool,
}

impl Spool {
    /// Appends what is held, the oldest first, whenever Redis takes it. Runs until `stop`.
    pub async fn drain(self, admission: Admission, stop: CancellationToken) {
        let (mut drained, mut is_away) = (0, false);
        loop {
            let turn = self.next_turn();
            if turn.is_empty() {
                if drained > 0 {
                    tracing::info!(action = "webhook.spool.drained", deliveries = drained);
                    drained = 0;
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.0.put.notified() => continue,
                }
            }
            match self.drain_turn(&admission, &turn).await {
                Ok(()) => {
                    drained += turn.iter().map(|held| held.deliveries).sum::<usize>();
                    is_away = false;
                    self.state().is_back = true;
                    self.forget(&turn);
                    if stop.is_cancelled() {
                        return;
                    }
                }
                Err(error) => {
                    self.state().is_back = false;
                    if !std::mem::replace(&mut is_away, true) {
                        let Depth { deliveries, bytes, .. } = self.depth();
                        tracing::warn!(action = "webhook.spool.waiting", deliveries, bytes, error);
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
            }
        }
    }

    /// The oldest files, as many as go together.
    fn next_turn(&self) -> Vec<Held> {
        let state = self.state();
        let mut bytes = 0;
        let fits = |held: &&Held| {
            let is_first = bytes == 0;
            bytes += held.bytes.max(1);
            is_first || bytes <= BYTES_MAX
        };
        state.files.iter().take(FILES_MAX).take_while(fits).copied().collect()
    }

    fn forget(&self, turn: &[Held]) {
        let mut state = self.state();
        for held in turn {
            if state.files.front().is_some_and(|file| file.name == held.name) {
                state.files.pop_front();
                state.bytes -= held.bytes;
                state.deliveries -= held.deliveries;
            }
        }
        self.settle(&state);
    }

    /// Appends the files and removes them. An error means: later.
    async fn drain_turn(&self, admission: &Admission, turn: &[Held]) -> Result<(), String> {
        let paths: Vec<PathBuf> = turn.iter().map(|held| self.path(held.name)).collect();
        let load_all = move || paths.into_iter().map(load).collect::<Result<Vec<Loaded>, String>>();
        let mut files = on_disk(load_all).await??;
        // Of which file, of which delivery, and the event.
        let events: Vec<(usize, &Spooled, &SpooledEvent)> = files
            .iter()
            .enumerate()
            .flat_map(|(file, loaded)| loaded.deliveries.iter().map(move |delivery| (file, delivery)))
            .flat_map(|(file, delivery)| delivery.events.iter().map(move |event| (file, delivery, event)))
            .collect();
        let mut bad = Vec::new();
        for chunk in events.chunks(append::BATCH_MAX) {
            let emits: Vec<Emit<'_>> = chunk.iter().map(|(_, delivery, event)| event.emit(delivery)).collect();
            match admission.admit_batch(&emits).await {
                Ok(_) => {}
                Err(error) if is_outage(&error) => return Err(chain(&error)),
                // One of them can't be appended at all. It must not hold the others up.
                Err(_) => {
                    for (emit, (file, ..)) in std::iter::zip(&emits, chunk) {
                        match admission.admit(emit.clone()).await {
                            Ok(_) => {}
                            Err(error) if is_outage(&error) => return Err(chain(&error)),
                            Err(error) => {
                                let error = chain(&error);
                                tracing::error!(action = "webhook.spool.refused", event = emit.name, error);
                                bad.push(*file);
                            }
                        }
                    }
                }
            }
        }
        for file in bad {
            files[file].is_good = false;
        }
        let dir = self.0.dir.clone();
        on_disk(move || files.iter().for_each(|file| remove(&dir, file))).await
    }
}

/// Runs work of the disk where it holds nobody up.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

fn load(path: PathBuf) -> Result<Loaded, String> {
    match std::fs::read(&path) {
        Ok(bytes) => {
            let (deliveries, is_good) = decode(&bytes);
            Ok(Loaded { path, deliveries, is_good })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::error!(action = "webhook.spool.corrupt", path = %path.display(), "a file of the spool is gone");
            Ok(Loaded { path, deliveries: Vec::new(), is_good: true })
        }
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Removes a file that is appended, or keeps what of it could not be read or appended in `bad/`.
fn remove(dir: &Path, file: &Loaded) {
    let path = &file.path;
    let removed = if file.is_good { std::fs::remove_file(path) } else { set_aside(dir, path) };
    match removed {
        // It is appended: drained again at the next start, it would be known.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(path = %path.display(), %error, "a drained file of the spool can't be removed");
        }
        _ => {}
    }
}

fn set_aside(dir: &Path, path: &Path) -> io::Result<()> {
    let bad = dir.join("bad");
    tracing::error!(action = "webhook.spool.corrupt", path = %path.display(), "kept in {}", bad.display());
    std::fs::create_dir_all(&bad)?;
    std::fs::rename(path, bad.join(path.file_name().unwrap_or_default()))
}

/// Whether the same append may succeed later.
#[must_use]
pub fn is_outage(error: &admission::Error) -> bool {
    match error {
        admission::Error::Append(error) => {
            !matches!(error, append::Error::TooLarge { .. } | append::Error::TooManyFamilies { .. })
        }
        _ => false,
    }
}

impl SpooledEvent {
    fn emit<'a>(&'a self, delivery: &'a Spooled) -> Emit<'a> {
        Emit {
            name: &self.name,
            data: self.data.as_str(),
            id: Some(&self.id),
            source: Some(&delivery.source),
            ts: Some(delivery.received_ms),
            meta: Some(&self.meta),
            trace: delivery.trace.as_deref(),
            once: Some(Once { key: self.once.clone(), window: Duration::from_millis(self.window_ms) }),
            ..Emit::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::future::BoxFuture;

    use super::super::tests::delivery;
    use super::*;
    use crate::ingest::admission::{Append, Route, Routes};
    use crate::streams::append::{Appended, Durability, NewEvent};
    use crate::streams::family::Family;
    use crate::streams::json::JsonObject;
    use crate::streams::lane::Lane;

    /// Notes the ids of each call; fails the first ones.
    #[derive(Default)]
    struct Calls {
        ids: Mutex<Vec<Vec<String>>>,
        failures: Mutex<usize>,
    }

    impl Append for Calls {
        fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>, append::Error>> {
            Box::pin(async move {
                let mut failures = self.failures.lock().unwrap();
                if *failures > 0 {
                    *failures -= 1;
                    return Err(append::Error::Full { used: 1, limit: 1 });
                }
                let of = |event: NewEvent| Appended {
                    event_id: event.id.unwrap_or_default(),
                    lane: Lane::new(event.name, event.priority),
                    entry_id: None,
                    duplicate: None,
                    durability: Durability::Memory,
                };
                let appended: Vec<Appended> = events.into_iter().map(of).collect();
                self.ids.lock().unwrap().push(appended.iter().map(|event| event.event_id.clone()).collect());
                Ok(appended)
            })
        }
    }

    struct Anything;

    impl Routes for Anything {
        fn route(&self, _: &Family, _: &str, _: &JsonObject) -> Route {
            Route { is_routed: true, ..Route::default() }
        }
    }

    fn files(dir: &Path) -> usize {
        let ends = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().path().extension().is_some_and(|e| e == "mpk");
        std::fs::read_dir(dir).unwrap().filter_map(|entry| ends(entry).then_some(())).count()
    }

    #[tokio::test]
    async fn many_files_go_by_few_appends_in_their_order_and_none_is_removed_before_its_append() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().to_path_buf(), 1 << 20).unwrap();
        // One after the other, so that each has a file of its own.
        for n in 0..100 {
            spool.put(&delivery(n)).await.unwrap();
        }
        assert_eq!(files(dir.path()), 100);
        let calls = Arc::new(Calls { failures: Mutex::new(1), ..Calls::default() });
        let admission = Admission::new(calls.clone(), Arc::new(Anything));
        let turn = spool.next_turn();
        assert_eq!(turn.len(), FILES_MAX);
        assert!(spool.drain_turn(&admission, &turn).await.is_err());
        assert_eq!((files(dir.path()), spool.depth().deliveries), (100, 100), "nothing was stored yet");
        let stop = CancellationToken::new();
        let draining = tokio::spawn(spool.clone().drain(admission, stop.clone()));
        spool.until_empty().await;
        stop.cancel();
        draining.await.unwrap();
        assert_eq!(files(dir.path()), 0);
        let ids = calls.ids.lock().unwrap();
        assert_eq!(ids.iter().map(Vec::len).collect::<Vec<_>>(), [64, 36]);
        let expected: Vec<String> = (0..100).map(|n| format!("id-{n}")).collect();
        assert_eq!(ids.concat(), expected);
    }

    #[tokio::test]
    async fn a_turn_is_bounded_in_bytes_and_never_empty() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().to_path_buf(), 1 << 30).unwrap();
        let sizes = [BYTES_MAX + 1, BYTES_MAX / 2, BYTES_MAX / 2, 1];
        let held = |bytes| Held { name: ulid::Ulid::generate(), bytes, deliveries: 1 };
        spool.state().files = sizes.map(held).into();
        assert_eq!(spool.next_turn().len(), 1);
        spool.state().files.pop_front();
        assert_eq!(spool.next_turn().len(), 2);
    }
}
