//! A Redis behind a gate: commands pass until the n-th that is asked for, which stops just before it takes effect or just
//! after it did. So a process can be killed, or be late, at a named boundary.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// On which side of a command's effect it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Before,
    After,
}

/// Sent behind a command: once it is answered, the command has taken effect.
const MARK: &[u8] = b"gate-has-passed";

type Counts = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

struct Shared {
    upstream: PathBuf,
    counts: Counts,
    stop_at: Option<(usize, Side)>,
    seen: AtomicUsize,
    reached: watch::Sender<bool>,
    released: watch::Sender<bool>,
    flushed: watch::Sender<bool>,
}

/// A socket in front of a Redis; gone at drop.
pub struct RedisGate {
    dir: TempDir,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl RedisGate {
    /// In front of the Redis at `upstream`. Counts the commands of which `counts` says so, and stops at the n-th, from 0.
    pub async fn start(
        upstream: &Path,
        stop_at: Option<(usize, Side)>,
        counts: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("bus-gate-").tempdir_in("/tmp").unwrap();
        let listener = UnixListener::bind(dir.path().join("gate.sock")).unwrap();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            counts: Box::new(counts),
            stop_at,
            seen: AtomicUsize::new(0),
            reached: watch::Sender::new(false),
            released: watch::Sender::new(false),
            flushed: watch::Sender::new(false),
        });
        let serving = Arc::clone(&shared);
        let server = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, Arc::clone(&serving)));
            }
        });
        Self { dir, shared, server }
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.dir.path().join("gate.sock").display())
    }

    /// Commands counted so far.
    pub fn seen(&self) -> usize {
        self.shared.seen.load(Ordering::SeqCst)
    }

    /// Waits until the command stops at the gate.
    pub async fn reached(&self, deadline: Duration) {
        wait(&self.shared.reached, deadline).await;
    }

    /// Lets the command go on, and waits until it took effect.
    pub async fn release(&self, deadline: Duration) {
        self.shared.released.send_replace(true);
        wait(&self.shared.flushed, deadline).await;
    }
}

impl Drop for RedisGate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn wait(flag: &watch::Sender<bool>, deadline: Duration) {
    let mut flag = flag.subscribe();
    tokio::time::timeout(deadline, flag.wait_for(|is_set| *is_set)).await.expect("the gate is reached").unwrap();
}

async fn pass(client: UnixStream, shared: Arc<Shared>) {
    let Ok(server) = UnixStream::connect(&shared.upstream).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (is_marked, is_released) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let marks = (Arc::clone(&is_marked), Arc::clone(&is_released));
    let answers = tokio::spawn(answers(from_server, to_client, marks, Arc::clone(&shared)));
    commands(from_client, to_server, (&is_marked, &is_released), &shared).await;
    let _ = answers.await;
}

async fn commands(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (is_marked, is_released): (&AtomicBool, &AtomicBool),
    shared: &Shared,
) {
    let mut buffer = Vec::new();
    loop {
        while let Some(length) = command_length(&buffer) {
            let command: Vec<u8> = buffer.drain(..length).collect();
            if (shared.counts)(&command) {
                let number = shared.seen.fetch_add(1, Ordering::SeqCst);
                match shared.stop_at {
                    Some((at, Side::Before)) if at == number => {
                        shared.reached.send_replace(true);
                        let _ = shared.released.subscribe().wait_for(|is_set| *is_set).await;
                        // The client may have given up on it meanwhile: it takes effect all the same.
                        is_released.store(true, Ordering::SeqCst);
                    }
                    Some((at, Side::After)) if at == number => {
                        is_marked.store(true, Ordering::SeqCst);
                        let _ = to.write_all(&with_mark(&command)).await;
                        std::future::pending::<()>().await;
                    }
                    _ => {}
                }
            }
            if to.write_all(&command).await.is_err() {
                return;
            }
        }
        if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (is_marked, is_released): (Arc<AtomicBool>, Arc<AtomicBool>),
    shared: Arc<Shared>,
) {
    let mut seen = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if is_marked.load(Ordering::SeqCst) {
            seen.extend_from_slice(&buffer[..length]);
            if seen.windows(MARK.len()).any(|window| window == MARK) {
                shared.reached.send_replace(true);
            }
            continue;
        }
        if is_released.load(Ordering::SeqCst) {
            shared.flushed.send_replace(true);
        }
        // Whoever has given up on the command has left, but Redis may still be answering.
        let _ = to.write_all(&buffer[..length]).await;
    }
}

fn with_mark(command: &[u8]) -> Vec<u8> {
    let mut command = command.to_vec();
    command.extend_from_slice(format!("*2\r\n$4\r\nECHO\r\n${}\r\n", MARK.len()).as_bytes());
    command.extend_from_slice(MARK);
    command.extend_from_slice(b"\r\n");
    command
}

/// The length of the first command of `bytes`, once it is whole: an array of strings, as every client sends it.
fn command_length(bytes: &[u8]) -> Option<usize> {
    let line = |from: usize| -> Option<(usize, usize)> {
        let end = from + bytes.get(from..)?.windows(2).position(|window| window == b"\r\n")?;
        let number = std::str::from_utf8(&bytes[from + 1..end]).ok()?.parse().ok()?;
        Some((number, end + 2))
    };
    let (parts, mut at) = line(0)?;
    for _ in 0..parts {
        let (length, from) = line(at)?;
        at = from + length + 2;
    }
    (bytes.len() >= at).then_some(at)
}
