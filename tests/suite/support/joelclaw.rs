//! The built binary, in an environment of its own.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{STEP, signal};

/// How long one command may take before the test fails.
const RUN_DEADLINE: Duration = Duration::from_secs(60);

/// An installation of `joelclaw`: home, env file and registry in a temporary directory, nothing inherited but `PATH`.
pub struct Joelclaw {
    home: TempDir,
    env: Vec<(String, String)>,
    started: AtomicU32,
}

impl Joelclaw {
    /// Its env file names this Redis.
    pub fn new(redis_url: &str) -> Self {
        let bus = Self::unconfigured();
        bus.env_file_line("REDIS_URL", redis_url);
        bus
    }

    /// With an empty env file: for `up` with its own Redis, and for what happens without one.
    pub fn unconfigured() -> Self {
        // Short, because a managed Redis puts its socket below it.
        let home = tempfile::Builder::new().prefix("bus-home-").tempdir_in("/tmp").unwrap();
        std::fs::create_dir(home.path().join("out")).unwrap();
        let bus = Self { home, env: Vec::new(), started: AtomicU32::new(0) };
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600); // it may hold secrets, and we warn when it is open
        options.create_new(true).write(true).open(bus.env_file()).unwrap();
        bus.env_file_line("SYSTEM_BUS_DATA_DIR", &bus.home.path().join("data").display().to_string());
        bus
    }

    /// An environment variable of every process started from here on.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Writes `registry.toml` beside the env file.
    pub fn registry(self, toml: &str) -> Self {
        std::fs::write(self.home.path().join("registry.toml"), toml).unwrap();
        self
    }

    /// Appends to the env file; a running service re-reads it. The last line of a key wins.
    pub fn env_file_line(&self, key: &str, value: &str) {
        use std::io::Write as _;
        let mut file = File::options().append(true).open(self.env_file()).unwrap();
        writeln!(file, "{key}={value}").unwrap();
    }

    pub fn env_file(&self) -> PathBuf {
        self.home.path().join("system-bus.env")
    }

    /// `HOME`, and the working directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs a command to its end: `run(&["queue", "depth", "--json"])`.
    pub async fn run(&self, args: &[&str]) -> Ran {
        self.run_with_stdin(args, b"").await
    }

    /// The same with something on standard input.
    pub async fn run_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut running = self.launch(args, stdin);
        running.wait_exit(RUN_DEADLINE).await
    }

    /// Starts a service and returns at once: `spawn(&["drainer"])`.
    pub fn spawn(&self, args: &[&str]) -> Running {
        self.launch(args, b"")
    }

    fn launch(&self, args: &[&str], stdin: &[u8]) -> Running {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let file = |name: &str| self.home.path().join("out").join(format!("{number}.{name}"));
        let (stdin_file, stdout, stderr) = (file("in"), file("out"), file("err"));
        std::fs::write(&stdin_file, stdin).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_joelclaw"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("TMPDIR", "/tmp")
            .env("TZ", "UTC")
            .env("RUST_BACKTRACE", "1")
            // Only one of the tests that run at once could have the port.
            .env("INNGEST_PORT", "0")
            .env("SYSTEM_BUS_ENV_FILE", self.env_file())
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(self.home.path())
            .args(args)
            // Files, not pipes: a full pipe would stop the process that the test watches.
            .stdin(File::open(&stdin_file).unwrap())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap());
        let child = command.spawn().expect("the built joelclaw starts");
        Running { child, stdout, stderr, command: args.join(" ") }
    }
}

/// How a command ended and what it said.
#[derive(Debug, Clone)]
pub struct Ran {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is no JSON ({error})\n{self:#?}"))
    }

    #[track_caller]
    pub fn assert_success(self) -> Self {
        self.assert_code(0)
    }

    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self:#?}");
        self
    }
}

/// A service under test; killed at drop.
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    command: String,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// As a crash does it; waits until it is gone.
    pub async fn kill_9(&mut self) -> Ran {
        let _ = self.child.kill();
        self.wait_exit(Duration::from_secs(10)).await
    }

    /// SIGTERM: the orderly stop. Does not wait.
    pub fn terminate(&self) {
        signal(self.child.id(), Signal::SIGTERM);
    }

    /// SIGINT, as Ctrl-C sends it.
    pub fn interrupt(&self) {
        signal(self.child.id(), Signal::SIGINT);
    }

    /// SIGHUP: reload.
    pub fn hang_up(&self) {
        signal(self.child.id(), Signal::SIGHUP);
    }

    /// SIGSTOP: alive and silent, as a machine that sleeps.
    pub fn stop(&self) {
        signal(self.child.id(), Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn cont(&self) {
        signal(self.child.id(), Signal::SIGCONT);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Waits for its end; panics with its output at the deadline.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Ran {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let command = self.command.clone();
                return Ran { command, status, stdout: self.stdout(), stderr: self.stderr() };
            }
            assert!(started.elapsed() < deadline, "still running after {deadline:?}: {}", self.describe());
            tokio::time::sleep(STEP / 2).await;
        }
    }

    /// The first line of stdout or stderr that holds `part`. Panics at the deadline, and at once when the process has ended without it.
    pub async fn wait_for_line(&mut self, part: &str, deadline: Duration) -> String {
        let started = Instant::now();
        loop {
            // Asked before reading: what it wrote before its end is in the files by then.
            let ended = !self.is_running();
            let (stdout, stderr) = (self.stdout(), self.stderr());
            // Only whole lines: the rest of the last one may be on its way.
            let whole = |line: &&str| line.ends_with('\n') || ended;
            let mut lines = stdout.split_inclusive('\n').chain(stderr.split_inclusive('\n')).filter(whole);
            if let Some(line) = lines.find(|line| line.contains(part)) {
                return line.trim_end().to_owned();
            }
            assert!(!ended, "ended without a line with {part:?}: {}", self.describe());
            assert!(started.elapsed() < deadline, "no line with {part:?} in {deadline:?}: {}", self.describe());
            tokio::time::sleep(STEP).await;
        }
    }

    fn describe(&self) -> String {
        format!("joelclaw {}\nstdout:\n{}\nstderr:\n{}", self.command, self.stdout(), self.stderr())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
