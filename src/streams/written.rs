//! Whether what Redis has answered would survive a kill of Redis: written to its append-only file, synced or not.
//!
//! With `appendfsync everysec` Redis writes its file before it sends an answer, except while a sync is under way: then it
//! answers first and writes up to two seconds later. A kill in such a moment takes answered appends with it. Whoever
//! must not lose them asks [`Written::wait`] after the answer.
//!
//! One `INFO` answers for everybody who waits: those who come while one is under way share the next.
//!
//! # Invariants
//! 1. `Ok` says: at an `INFO` that was asked after the caller's answer had come, nothing older than it was unwritten. That
//!    is so when the buffer is empty, or when no sync is pending: then Redis writes before it sends this very answer.
//! 2. A Redis that was started again, or a failed `INFO`, says nothing about answers from before: these get an error.
//! 3. Without an append-only file there is nothing to wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::bus::Bus;
use super::redis::Error;

/// Between two looks while Redis holds back its writes.
const LOOK: Duration = Duration::from_millis(2);
/// How long it may hold them back. Redis itself blocks after two seconds.
const LIMIT: Duration = Duration::from_secs(3);

/// Why an answered append may not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Unwritten {
    /// Redis went away, or was started again, between the answer and the question.
    #[error("Redis went away before it said that the append is written")]
    Away(#[source] Option<Error>),
    /// It still holds back its writes.
    #[error("Redis has not written its append-only file for {LIMIT:?}")]
    Held,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Written(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bus: Bus,
    /// Tickets given so far: each is of an answer that has come.
    given: AtomicU64,
    /// Held by whoever asks.
    turn: Mutex<Turn>,
}

/// What was found out for tickets.
#[derive(Debug, Default)]
struct Turn {
    /// Those up to here are written.
    written: u64,
    /// Of those up to here nobody knows.
    unknown: u64,
    /// The process that answered last.
    run: Option<String>,
}

/// What `INFO` says.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    run: String,
    /// Nothing that was answered before is unwritten.
    is_written: bool,
}

impl Written {
    /// Asks the Redis of `bus` through a connection of its own.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        let inner = Inner { bus: bus.separate(), given: AtomicU64::new(0), turn: Mutex::default() };
        Self(Arc::new(inner))
    }

    /// Ends once all that Redis has answered before this call is written.
    pub async fn wait(&self) -> Result<(), Unwritten> {
        let ticket = self.0.given.fetch_add(1, Ordering::SeqCst) + 1;
        let mut turn = self.0.turn.lock().await;
        if ticket <= turn.unknown {
            return Err(Unwritten::Away(None));
        }
        if ticket <= turn.written {
            return Ok(());
        }
        let began = tokio::time::Instant::now();
        loop {
            let covers = self.0.given.load(Ordering::SeqCst);
            let seen = match self.ask().await {
                Ok(seen) => seen,
                Err(error) => {
                    turn.unknown = self.0.given.load(Ordering::SeqCst);
                    return Err(Unwritten::Away(Some(error)));
                }
            };
            if turn.run.as_ref().is_some_and(|run| *run != seen.run) {
                turn.run = Some(seen.run);
                turn.unknown = self.0.given.load(Ordering::SeqCst);
                return Err(Unwritten::Away(None));
            }
            turn.run = Some(seen.run);
            if seen.is_written {
                turn.written = covers;
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                return Err(Unwritten::Held);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn ask(&self) -> Result<Seen, Error> {
        let mut info = redis::cmd("INFO");
        info.arg("server").arg("persistence");
        let text: String = self.0.bus.redis.query(&info).await?;
        Ok(read(&text))
    }
}

fn read(info: &str) -> Seen {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    // Absent without an append-only file.
    let is_none = |name: &str| field(name).is_none_or(|text| text == "0");
    Seen {
        run: field("run_id").unwrap_or_default().to_owned(),
        is_written: is_none("aof_enabled") || is_none("aof_buffer_length") || is_none("aof_pending_bio_fsync"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_back_is_a_buffer_beside_a_sync_under_way() {
        let info = |aof: u8, buffer: u32, syncs: u8| {
            format!(
                "# Server\r\nrun_id:abc\r\n\r\n# Persistence\r\naof_enabled:{aof}\r\naof_buffer_length:{buffer}\r\n\
                 aof_pending_bio_fsync:{syncs}\r\n"
            )
        };
        let written = |aof, buffer, syncs| read(&info(aof, buffer, syncs)).is_written;
        assert_eq!(read(&info(1, 0, 0)).run, "abc");
        assert!(written(1, 0, 0) && written(1, 0, 1) && written(1, 700, 0) && written(0, 700, 1));
        assert!(!written(1, 700, 1));
        assert!(read("# Server\r\nrun_id:abc\r\n").is_written);
    }
}
