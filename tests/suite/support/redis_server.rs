//! A Redis server for one test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{STEP, free_port, signal};

/// The server to test with: `SYSTEM_BUS_REDIS_SERVER`, or the first `redis-server` or `valkey-server` in `PATH`.
pub fn redis_server_binary() -> PathBuf {
    if let Some(named) = std::env::var_os("SYSTEM_BUS_REDIS_SERVER").filter(|named| !named.is_empty()) {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|dir| [dir.join("redis-server"), dir.join("valkey-server")])
        .find(|program| program.is_file())
        .expect("redis-server is not in PATH; `make deps` installs it")
}

/// A `redis-server` of its own on a unix socket in a temporary directory; killed at drop.
pub struct TestRedis {
    dir: TempDir,
    settings: Vec<String>,
    port: u16,
    child: Child,
}

impl TestRedis {
    /// With `appendonly yes` and `noeviction`, as the system's own has it; no TCP port.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Pairs of settings on top: `start_with(&["appendfsync", "always"])`.
    pub async fn start_with(settings: &[&str]) -> Self {
        Self::launch(settings, 0).await
    }

    /// On a free TCP port of the loopback interface too; [`Self::url`] then names that port.
    pub async fn tcp() -> Self {
        // Between asking for a free port and Redis taking it, another test may: a server that ends at once is tried again.
        Self::launch(&[], free_port()).await
    }

    async fn launch(settings: &[&str], port: u16) -> Self {
        assert!(settings.len().is_multiple_of(2), "settings are pairs: {settings:?}");
        // Not below TMPDIR's own default on macOS: that path is too long for a socket.
        let dir = tempfile::Builder::new().prefix("bus-redis-").tempdir_in("/tmp").unwrap();
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let mut redis = Self { child: spawn(dir.path(), port, &settings), dir, settings, port };
        for _ in 0..5 {
            if redis.wait_ready().await {
                return redis;
            }
            assert_ne!(port, 0, "redis-server ended while it started:\n{}", redis.log());
            redis.port = free_port();
            redis.child = spawn(redis.dir.path(), redis.port, &redis.settings);
        }
        panic!("redis-server ended five times while it started:\n{}", redis.log());
    }

    /// Ready, or `false` when the process has ended.
    async fn wait_ready(&mut self) -> bool {
        let started = Instant::now();
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if let Ok(client) = redis::Client::open(self.url())
                && let Ok(mut connection) = client.get_multiplexed_async_connection().await
                && redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
            {
                return true;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "redis-server does not answer:\n{}", self.log());
            tokio::time::sleep(STEP / 2).await;
        }
    }

    /// `unix:///…/redis.sock`, or `redis://127.0.0.1:<port>` for [`Self::tcp`].
    pub fn url(&self) -> String {
        match self.port {
            0 => format!("unix://{}", self.socket().display()),
            port => format!("redis://127.0.0.1:{port}"),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// 0 without [`Self::tcp`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data, log and socket.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection; an answer may take 10 s.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(10)))
            .set_response_timeout(Some(Duration::from_secs(10)));
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection_with_config(&config).await.expect("connects to the test's Redis")
    }

    /// One command, its answer as `redis-cli` would show it: `cli(&["XLEN", "key"])` is `"3"`.
    pub async fn cli(&self, command: &[&str]) -> String {
        let mut request = redis::cmd(command[0]);
        request.arg(&command[1..]);
        let answer: redis::Value = request.query_async(&mut self.connection().await).await.unwrap();
        shown(&answer)
    }

    /// As a crash does it. The data directory stays.
    pub fn kill_9(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Ends it if it runs, and starts it again on the same data, socket and port.
    pub async fn restart(&mut self) {
        self.kill_9();
        self.child = spawn(self.dir.path(), self.port, &self.settings);
        assert!(self.wait_ready().await, "redis-server ended while it restarted:\n{}", self.log());
    }

    /// SIGSTOP: connections stay open and nothing answers, as on a stalled host.
    pub fn pause(&self) {
        signal(self.child.id(), Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        signal(self.child.id(), Signal::SIGCONT);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("redis.log")).unwrap_or_default()
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        // SIGKILL ends a paused process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, port: u16, settings: &[String]) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("redis.log")).unwrap();
    let port = port.to_string();
    let socket = dir.join("redis.sock");
    let mut server = Command::new(redis_server_binary());
    server.current_dir(dir).arg("--dir").arg(dir).arg("--unixsocket").arg(socket).args(["--port", &port]);
    server.args(["--bind", "127.0.0.1", "--unixsocketperm", "700", "--save", "", "--daemonize", "no"]);
    server.args(["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]);
    for pair in settings.chunks(2) {
        server.arg(format!("--{}", pair[0])).arg(&pair[1]);
    }
    server.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    server.spawn().unwrap_or_else(|error| panic!("redis-server can't be started ({error}); `make deps` installs it"))
}

fn shown(value: &redis::Value) -> String {
    match value {
        redis::Value::Nil => String::new(),
        redis::Value::Int(number) => number.to_string(),
        redis::Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        redis::Value::SimpleString(text) => text.clone(),
        redis::Value::Okay => "OK".into(),
        redis::Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join("\n"),
        other => format!("{other:?}"),
    }
}
