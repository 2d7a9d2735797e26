//! Why the system's own Redis can't be had.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::binary::{Product, Version};
use crate::diagnose::{Diagnose, Exit};

/// How to get a server, on the two systems that we support.
const INSTALL: &str = "macOS: `brew install redis`; Debian: `sudo apt-get install redis-server`; \
     or set REDIS_URL to a Redis that runs already";

/// Why the system's own Redis can't be started, adopted or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server on this machine.
    #[error("no redis-server or valkey-server was found in {}", listed(.searched))]
    Missing {
        /// Where we looked.
        searched: Vec<PathBuf>,
    },
    /// A program that is no Redis server, or can't be run.
    #[error("{} is not a usable Redis server: {detail}", .binary.display())]
    Unusable {
        /// The program.
        binary: PathBuf,
        /// What it did when asked for its version.
        detail: String,
    },
    /// A server without the commands that we need.
    #[error("{} is {product} {version}; {product} {} or newer is needed", .binary.display(), .product.minimum())]
    TooOld {
        /// The program.
        binary: PathBuf,
        /// Whose server.
        product: Product,
        /// Its version.
        version: Version,
    },
    /// The pid file names a live server that does not serve our socket.
    #[error("{} names process {pid} ({name}), which is alive but does not serve this directory's socket", .pid_file.display())]
    ForeignPid {
        /// The process. It was left alone.
        pid: u32,
        /// What the system calls it.
        name: String,
        /// The file. It was left alone.
        pid_file: PathBuf,
    },
    /// Something accepts connections on our socket and answers no PING.
    #[error("{} accepts connections on {} but does not answer PING", process(*.pid), .socket.display())]
    Silent {
        /// Who listens, where that can be told. It was left alone.
        pid: Option<u32>,
        /// The socket. It was left alone.
        socket: PathBuf,
    },
    /// The server ended while it started.
    #[error("redis-server ended while it started ({status}); the last lines of {}:\n{tail}", .log.display())]
    Exited {
        /// How it ended.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The server did not answer in time. One that we had started was killed; its data is as it was.
    #[error("redis-server was not ready after {waited:.1?}; the last lines of {}:\n{tail}", .log.display())]
    NotReady {
        /// How long we waited.
        waited: Duration,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Another process holds a lock for longer than a start may take.
    #[error("another process has held {} for {waited:.1?}", .path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The server survived SIGKILL.
    #[error("redis-server, process {pid}, is still there after SHUTDOWN, SIGTERM and SIGKILL")]
    StillRunning {
        /// The process.
        pid: u32,
    },
    /// No path is short enough for a socket.
    #[error("{} is too long for a unix socket, and so is every temporary directory", .path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// The directory of the short socket belongs to somebody else.
    #[error("{} belongs to user {uid}; a socket in it would not be private", .path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// A file operation failed.
    #[error("can't {what} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Names the file and the attempt that an I/O error belongs to.
pub(super) trait IoContext<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what, path: path.to_owned(), source })
    }
}

fn listed(dirs: &[PathBuf]) -> String {
    if dirs.is_empty() {
        return "an empty search path".into();
    }
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "an unknown process".into(), |pid| format!("process {pid}"))
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "REDIS_SERVER_MISSING",
            Self::Unusable { .. } => "REDIS_SERVER_UNUSABLE",
            Self::TooOld { .. } => "REDIS_SERVER_TOO_OLD",
            Self::ForeignPid { .. } | Self::Silent { .. } => "REDIS_DATA_IN_USE",
            Self::Exited { .. } | Self::NotReady { .. } => "REDIS_SERVER_NOT_STARTED",
            Self::Locked { .. } => "REDIS_START_LOCKED",
            Self::StillRunning { .. } => "REDIS_SERVER_NOT_STOPPED",
            Self::SocketPath { .. } | Self::NotOurs { .. } | Self::Io { .. } => "REDIS_DIRECTORY_UNUSABLE",
        }
    }

    fn exit(&self) -> Exit {
        Exit::Unavailable
    }

    fn fix(&self) -> String {
        match self {
            Self::Missing { .. } | Self::TooOld { .. } => INSTALL.into(),
            Self::Unusable { .. } => format!("set SYSTEM_BUS_REDIS_SERVER to a Redis server, or unset it. {INSTALL}"),
            Self::ForeignPid { pid, pid_file, .. } => format!(
                "ps -p {pid}; if it is a Redis on this data, stop it; if it is something else, rm '{}'",
                pid_file.display()
            ),
            Self::Silent { pid: Some(pid), .. } => format!("ps -p {pid}; stop it, or wait until it answers"),
            Self::Silent { pid: None, socket } => format!("lsof '{}'; stop who listens there", socket.display()),
            Self::Exited { log, .. } | Self::NotReady { log, .. } => format!("tail -50 '{}'", log.display()),
            Self::Locked { path, .. } => format!("lsof '{}'; wait for that `joelclaw up` or stop it", path.display()),
            Self::StillRunning { pid } => {
                format!("ps -o pid,stat,wchan -p {pid}: it hangs in the kernel, often on its disk")
            }
            Self::SocketPath { .. } => "set SYSTEM_BUS_DATA_DIR to a shorter path, or TMPDIR to /tmp".into(),
            Self::NotOurs { .. } => {
                "set SYSTEM_BUS_DATA_DIR to a shorter path, or TMPDIR to a directory of yours".into()
            }
            Self::Io { path, .. } => format!("ls -ld '{}'; it has to be yours, on a disk with room", path.display()),
        }
    }
}
