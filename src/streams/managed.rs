//! The system's own `redis-server`: a child process on a private unix socket, for `joelclaw up` without a Redis.
//!
//! | file in the directory (0700) | what it is |
//! |---|---|
//! | `redis.conf` | written at each start from [`ManagedOptions`]; editing it has no effect |
//! | `redis.sock` | the socket; no TCP port is opened. Where the path is too long for a socket, a symbolic link to a short one |
//! | `redis.pid` | written and removed by the server |
//! | `redis.log` | the server's output; the former one is `redis.log.1` once it passes 8 MiB |
//! | `appendonlydir/` | the data |
//! | `start.lock` | held while somebody starts or adopts a server: two starts at once end as one server |
//! | `owner.lock` | held by the process that will stop the server, for as long as that process lives |
//!
//! # Invariants
//! 1. One server per directory. A live one is adopted; a second is never started on the same data.
//! 2. Only the owner stops the server. Who adopts one whose owner has died (`kill -9` of `joelclaw up`) becomes its owner.
//! 3. A server that we can't reach is never signalled and its files are never removed: we refuse, and name the process
//!    and the file.
//!
//! # When it fails
//! A server that dies is reported by [`ManagedRedis::wait_exit`]; [`ManagedRedis::restart`] brings it back on its data.
//! A killed owner leaves the server running with everything in it; the next start adopts it.

mod binary;
mod error;
mod probe;
mod process;

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

pub use binary::{Product, Version};
pub use error::Error;
use error::IoContext as _;
use probe::Probe;
use process::{is_alive, read_pid};

/// A socket's path has 104 bytes on macOS and 108 on Linux, with the closing zero; Redis needs a few for itself.
const SOCKET_PATH_MAX: usize = 100;
const POLL: Duration = Duration::from_millis(5);
const LOG_MAX_BYTES: u64 = 8 << 20;
const LOG_TAIL_LINES: usize = 8;

/// When an append is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendFsync {
    /// Once a second: a power loss may take the last second, a crash of Redis nothing.
    #[default]
    Everysec,
    /// Before each answer: nothing is lost, and each append waits for the disk.
    Always,
}

impl AppendFsync {
    fn as_str(self) -> &'static str {
        match self {
            Self::Everysec => "everysec",
            Self::Always => "always",
        }
    }
}

/// How to run the server.
#[derive(Debug, Clone)]
pub struct ManagedOptions {
    /// Where its data, socket, log and configuration live. Made if missing, with mode 0700.
    pub dir: PathBuf,
    /// The server's program (`SYSTEM_BUS_REDIS_SERVER`). `None` searches.
    pub binary: Option<PathBuf>,
    /// Where to search when `binary` is `None`: first `redis-server`, then `valkey-server`, in each directory.
    pub search: Vec<PathBuf>,
    /// When an append is on disk.
    pub appendfsync: AppendFsync,
    /// Bytes of memory at which writes are refused. `None` sets no limit.
    pub maxmemory: Option<u64>,
    /// How long loading the data may take.
    pub start_deadline: Duration,
    /// How long something that accepts on the socket may take to answer PING before we say it is no Redis.
    pub ping_deadline: Duration,
    /// How long SHUTDOWN may take before SIGTERM, and SIGTERM before SIGKILL.
    pub stop_deadline: Duration,
}

impl ManagedOptions {
    /// The defaults, with data in `dir`; searches `PATH`, then where package managers put servers.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            binary: None,
            search: binary::default_search(),
            appendfsync: AppendFsync::default(),
            maxmemory: None,
            start_deadline: Duration::from_secs(30),
            ping_deadline: Duration::from_secs(6), // a script that runs too long answers BUSY only after 5 s
            stop_deadline: Duration::from_secs(10),
        }
    }
}

/// How a server ended, as [`ManagedRedis::wait_exit`] reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerExit {
    /// The process.
    pub pid: u32,
    /// `exit status: 0`, `signal: 9 (SIGKILL)`; `None` for a server that is not our child.
    pub status: Option<String>,
}

/// A running server that is ours to use, and, for its owner, to stop.
///
/// Dropping an owner without [`ManagedRedis::stop`] kills a server that it started and asks one that it adopted to
/// shut down; the data is safe either way, because what was answered has been written to the append-only file.
#[derive(Debug)]
pub struct ManagedRedis {
    options: ManagedOptions,
    socket: PathBuf,
    pid: u32,
    /// `None` when the server was already there.
    child: Option<Child>,
    /// Locked by the owner; closing the file releases it.
    owner: Option<File>,
}

impl ManagedRedis {
    /// Adopts the server of this directory or starts one, and waits until it answers.
    pub async fn start(options: ManagedOptions) -> Result<Self, Error> {
        make_private_dir(&options.dir)?;
        let socket = socket_path(&options.dir)?;
        let _start = lock_start(&options.dir, options.start_deadline).await?;
        let pid_file = pid_file(&options.dir);
        match probe::probe(&socket, options.ping_deadline).await.at("connect to", &socket)? {
            Probe::Ready { pid } | Probe::Loading { pid } => Self::adopt(options, socket, pid).await,
            Probe::Silent { pid } => Err(Error::Silent { pid: pid.or_else(|| read_pid(&pid_file)), socket }),
            Probe::Nobody => {
                if let Some((pid, name)) = process::server_named_in(&pid_file, options.binary.as_deref()) {
                    return Err(Error::ForeignPid { pid, name, pid_file });
                }
                remove_if_there(&socket)?;
                remove_if_there(&pid_file)?;
                Self::spawn(options, socket).await
            }
        }
    }

    async fn adopt(options: ManagedOptions, socket: PathBuf, pid: Option<u32>) -> Result<Self, Error> {
        let log = log_file(&options.dir);
        wait_ready(&socket, &options, None, &log, u64::MAX).await?;
        let pid = pid.or_else(|| read_pid(&pid_file(&options.dir))).unwrap_or_default();
        let owner = try_lock(&options.dir.join("owner.lock"))?;
        Ok(Self { options, socket, pid, child: None, owner })
    }

    async fn spawn(options: ManagedOptions, socket: PathBuf) -> Result<Self, Error> {
        let server = binary::find(options.binary.as_deref(), &options.search).await?;
        // Nobody serves this directory, so its owner, if one is left, is on its way out.
        let owner = lock_within(&options.dir.join("owner.lock"), options.start_deadline).await?;
        let conf = options.dir.join("redis.conf");
        fs::write(&conf, configuration(&options, &socket)).at("write", &conf)?;
        let log = log_file(&options.dir);
        let (output, log_start) = open_log(&log)?;
        let errors = output.try_clone().at("open", &log)?;
        let mut child = Command::new(&server.path)
            .arg(&conf)
            .current_dir(&options.dir)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0) // Ctrl-C in the terminal reaches us alone: we stop handlers first, the server last
            .kill_on_drop(true)
            .spawn()
            .at("start", &server.path)?;
        let pid = child.id().unwrap_or_default();
        if let Err(error) = wait_ready(&socket, &options, Some(&mut child), &log, log_start).await {
            // Reaped here, so that the next try does not meet a dying server's pid file.
            drop(child.kill().await);
            remove_if_there(&pid_file(&options.dir))?;
            return Err(error);
        }
        link_socket(&options.dir, &socket)?;
        Ok(Self { options, socket, pid, child: Some(child), owner: Some(owner) })
    }

    /// Where clients connect: `unix:///…`.
    pub fn url(&self) -> String {
        url_of_socket(&self.socket)
    }

    /// The socket's path, short enough to connect to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where the server's output goes.
    pub fn log(&self) -> PathBuf {
        log_file(&self.options.dir)
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The server was already running.
    pub fn is_adopted(&self) -> bool {
        self.child.is_none()
    }

    /// We are the one who stops the server.
    pub fn is_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// Waits until the server is gone; for ever while it lives. Cancel-safe, and answers again when asked again.
    pub async fn wait_exit(&mut self) -> ServerExit {
        let status = match &mut self.child {
            Some(child) => match child.wait().await {
                Ok(status) => Some(status.to_string()),
                Err(error) => Some(format!("unknown ({error})")),
            },
            None => {
                while is_alive(self.pid) && probe::accepts(&self.socket).await {
                    sleep(Duration::from_millis(100)).await;
                }
                None
            }
        };
        ServerExit { pid: self.pid, status }
    }

    /// Starts a server again (or adopts the one that another process has started meanwhile) after [`Self::wait_exit`].
    ///
    /// After an error there is still no server: call again, after a backoff.
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.owner = None;
        *self = Self::start(self.options.clone()).await?;
        Ok(())
    }

    /// Stops the server if we own it: SHUTDOWN, then SIGTERM, then SIGKILL. Otherwise leaves it alone.
    pub async fn stop(mut self) -> Result<(), Error> {
        let Some(owner) = self.owner.take() else { return Ok(()) };
        let deadline = self.options.stop_deadline;
        // No answer is the answer: a server that shuts down closes the connection.
        let asked = timeout(deadline, probe::shutdown(&self.socket)).await.is_ok_and(|sent| sent.is_ok());
        let gone = (asked && self.gone_within(deadline).await)
            || self.signal_and_wait(Signal::SIGTERM, deadline).await
            || self.signal_and_wait(Signal::SIGKILL, deadline).await;
        if !gone {
            return Err(Error::StillRunning { pid: self.pid });
        }
        let link = self.options.dir.join("redis.sock");
        remove_if_there(&link)?;
        drop(owner);
        Ok(())
    }

    async fn gone_within(&mut self, deadline: Duration) -> bool {
        let gone = async {
            match &mut self.child {
                Some(child) => drop(child.wait().await),
                None => {
                    while is_alive(self.pid) {
                        sleep(POLL).await;
                    }
                }
            }
        };
        timeout(deadline, gone).await.is_ok()
    }

    async fn signal_and_wait(&mut self, signal: Signal, deadline: Duration) -> bool {
        let pid = match &self.child {
            Some(child) => child.id(), // None once it was reaped, when the number may be somebody else's
            // It is not our child, so its number may have passed on: only the server's own pid file confirms it.
            None => read_pid(&pid_file(&self.options.dir)).filter(|&pid| pid == self.pid),
        };
        if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        self.gone_within(deadline).await
    }
}

impl Drop for ManagedRedis {
    fn drop(&mut self) {
        // A child is killed by its own drop. An adopted server is asked: its pid may have passed to somebody else.
        if self.owner.is_some() && self.child.is_none() {
            let _ = probe::shutdown_blocking(&self.socket, Duration::from_secs(1));
        }
    }
}

/// Where a server with its data in `dir` listens, whether it runs or not.
pub fn url(dir: &Path) -> Result<String, Error> {
    Ok(url_of_socket(&socket_path(dir)?))
}

fn url_of_socket(socket: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut url = String::from("unix://");
    for &byte in socket.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => url.push(char::from(byte)),
            _ => drop(write!(url, "%{byte:02X}")),
        }
    }
    url
}

/// `<dir>/redis.sock`, or a short path under the temporary directory where that is too long for a socket.
fn socket_path(dir: &Path) -> Result<PathBuf, Error> {
    let dir = std::path::absolute(dir).at("resolve", dir)?;
    let plain = dir.join("redis.sock");
    if plain.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(plain);
    }
    let name = short_name(&dir);
    let owner = format!("system-bus-{}", Uid::current());
    let temporary = [std::env::temp_dir(), PathBuf::from("/tmp")];
    temporary
        .iter()
        .map(|base| base.join(&owner).join(&name))
        .find(|path| path.as_os_str().len() <= SOCKET_PATH_MAX)
        .ok_or(Error::SocketPath { path: plain })
}

/// The same for the same directory, in every process.
fn short_name(dir: &Path) -> String {
    use sha2::{Digest as _, Sha256};
    use std::os::unix::ffi::OsStrExt as _;
    let digest = Sha256::digest(dir.as_os_str().as_bytes());
    format!("{}.sock", hex::encode(&digest[..8]))
}

/// For people: clients connect to the short path, because no call accepts the long one even through a link.
fn link_socket(dir: &Path, socket: &Path) -> Result<(), Error> {
    let link = dir.join("redis.sock");
    if std::path::absolute(&link).at("resolve", &link)? == socket {
        return Ok(());
    }
    remove_if_there(&link)?;
    std::os::unix::fs::symlink(socket, &link).at("link", &link)
}

fn make_private_dir(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).at("create", dir)?;
    let socket = socket_path(dir)?;
    for private in [Some(dir), socket.parent()].into_iter().flatten() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(private).at("create", private)?;
        // In a shared temporary directory somebody else could have made ours first, and would own our socket.
        let metadata = fs::symlink_metadata(private).at("look at", private)?;
        let is_ours = metadata.uid() == Uid::effective().as_raw();
        if private != dir && !(metadata.is_dir() && is_ours) {
            return Err(Error::NotOurs { path: private.to_owned(), uid: metadata.uid() });
        }
        fs::set_permissions(private, fs::Permissions::from_mode(0o700)).at("make private", private)?;
    }
    Ok(())
}

/// What the server is told. Every line is here because a default would lose data, evict it, or open a port.
fn configuration(options: &ManagedOptions, socket: &Path) -> String {
    let maxmemory = options.maxmemory.unwrap_or(0);
    let dir = std::path::absolute(&options.dir).unwrap_or_else(|_| options.dir.clone());
    format!(
        "# Written by `joelclaw up` at each start: a change made here is lost.\n\
         port 0\n\
         unixsocket {socket}\n\
         unixsocketperm 700\n\
         dir {dir}\n\
         pidfile {pid_file}\n\
         daemonize no\n\
         logfile \"\"\n\
         save \"\"\n\
         appendonly yes\n\
         appendfsync {appendfsync}\n\
         aof-use-rdb-preamble yes\n\
         maxmemory {maxmemory}\n\
         maxmemory-policy noeviction\n\
         lazyfree-lazy-expire yes\n",
        socket = quoted(socket),
        dir = quoted(&dir),
        pid_file = quoted(&pid_file(&dir)),
        appendfsync = options.appendfsync.as_str(),
    )
}

/// A path as a quoted string of `redis.conf`: bytes that would end or split it are escaped.
fn quoted(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut text = String::from("\"");
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'"' | b'\\' => drop(write!(text, "\\{}", char::from(byte))),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => drop(write!(text, "\\x{byte:02x}")),
        }
    }
    text.push('"');
    text
}

async fn wait_ready(
    socket: &Path,
    options: &ManagedOptions,
    mut child: Option<&mut Child>,
    log: &Path,
    log_start: u64,
) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        if let Some(child) = &mut child
            && let Some(status) = child.try_wait().at("wait for", log)?
        {
            let tail = log_tail(log, log_start);
            return Err(Error::Exited { status: status.to_string(), log: log.to_owned(), tail });
        }
        let answer = probe::probe(socket, options.ping_deadline).await;
        if let Ok(Probe::Ready { .. }) = answer {
            return Ok(());
        }
        // An adopted server that went away while it loaded will not come back by itself.
        let is_lost = child.is_none() && !matches!(answer, Ok(Probe::Loading { .. }));
        if is_lost || started.elapsed() >= options.start_deadline {
            let tail = log_tail(log, log_start);
            return Err(Error::NotReady { waited: started.elapsed(), log: log.to_owned(), tail });
        }
        sleep(POLL).await;
    }
}

async fn lock_start(dir: &Path, deadline: Duration) -> Result<File, Error> {
    lock_within(&dir.join("start.lock"), deadline).await
}

/// Polls instead of blocking in `flock`: a blocked thread could not be given up.
async fn lock_within(path: &Path, deadline: Duration) -> Result<File, Error> {
    let started = Instant::now();
    loop {
        if let Some(file) = try_lock(path)? {
            return Ok(file);
        }
        if started.elapsed() >= deadline {
            return Err(Error::Locked { path: path.to_owned(), waited: started.elapsed() });
        }
        sleep(POLL).await;
    }
}

/// The lock file stays when it is released: removing it would let two processes lock two files of one name.
fn try_lock(path: &Path) -> Result<Option<File>, Error> {
    let file = File::options().create(true).write(true).truncate(false).open(path).at("open", path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).at("lock", path),
    }
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("redis.log")
}

/// Opens the log for appending; also tells where this server's output will begin.
fn open_log(path: &Path) -> Result<(File, u64), Error> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_MAX_BYTES) {
        fs::rename(path, path.with_extension("log.1")).at("rotate", path)?;
    }
    let file = File::options().create(true).append(true).open(path).at("open", path)?;
    let start = file.metadata().at("look at", path)?.len();
    Ok((file, start))
}

fn log_tail(path: &Path, start: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.min(length).max(length.saturating_sub(16 << 10))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("redis.pid")
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_escapes_what_a_path_may_hold() {
        let socket = Path::new("/Users/joel/Library/Application Support/b%c/redis.sock");
        assert_eq!(url_of_socket(socket), "unix:///Users/joel/Library/Application%20Support/b%25c/redis.sock");
    }

    #[test]
    fn a_path_in_the_configuration_cannot_end_its_line() {
        assert_eq!(quoted(Path::new("/a \"b\"\\\nport 1")), r#""/a \"b\"\\\x0aport 1""#);
    }

    #[test]
    fn a_long_directory_has_a_short_socket_that_is_the_same_every_time() {
        let dir = PathBuf::from(format!("/{}", "d".repeat(150)));
        let socket = socket_path(&dir).unwrap();
        assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX, "{socket:?}");
        assert_eq!(socket, socket_path(&dir).unwrap());
        assert_ne!(socket, socket_path(&dir.join("other")).unwrap());
        assert_eq!(socket_path(Path::new("/short")).unwrap(), Path::new("/short/redis.sock"));
    }
}
