//! What both service managers do for us, and calling their programs.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Error;
use super::unit::{Service, Site};

/// How long a service manager may take: it waits for services to stop.
const LIMIT: Duration = Duration::from_secs(120);

/// What a service manager knows of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// In its words.
    pub state: String,
    /// It runs, or waits for what it watches.
    #[serde(skip)]
    pub is_up: bool,
    /// Of the running process.
    pub pid: Option<u32>,
    /// Since when.
    pub since: Option<String>,
    /// How often it was started again.
    pub restarts: Option<u32>,
    /// How it last ended.
    pub last_exit: Option<String>,
}

/// launchd or systemd.
pub trait Manager {
    /// Takes up a service whose files are written.
    fn install(&self, name: &str, unit: &Path, start: bool) -> Result<(), Error>;
    /// Stops a service for good; its files are removed after this.
    fn uninstall(&self, name: &str, unit: &Path) -> Result<(), Error>;
    /// After files were removed.
    fn forget(&self) -> Result<(), Error>;
    /// Stops and starts it.
    fn restart(&self, name: &str) -> Result<(), Error>;
    /// Whether it runs.
    fn state(&self, name: &str) -> Result<State, Error>;
    /// The end of what it wrote. With `follow`, goes on until interrupted.
    fn logs(&self, name: &str, service: Service, lines: usize, follow: bool) -> Result<String, Error>;
}

/// Runs a program and returns what it printed.
pub fn call(program: &str, args: &[&str]) -> Result<String, Error> {
    let command = || format!("{program} {}", args.join(" "));
    let failed = |reason: String| Error::Tool { command: command(), reason };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    // Both are read beside the wait: a full pipe would never end.
    let reader = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = reader(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = reader(child.stderr.take().map(|stream| Box::new(stream) as _));
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| failed(error.to_string()))? {
            Some(status) => break status,
            None if began.elapsed() > LIMIT => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("no answer within {} s", LIMIT.as_secs())));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match status.success() {
        true => Ok(stdout),
        false => {
            let said = [stderr.trim(), stdout.trim()].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
            Err(failed(if said.is_empty() { status.to_string() } else { said.chars().take(2_000).collect() }))
        }
    }
}

/// Runs a program that prints until it is interrupted.
pub fn stream(program: &str, args: &[&str]) -> Result<(), Error> {
    let ran = Command::new(program).args(args).stdin(Stdio::null()).status();
    ran.map(drop).map_err(|error| Error::Tool { command: program.to_owned(), reason: error.to_string() })
}

/// An env file that is named must be readable, so there is one from the start, and nobody else reads it.
pub fn ensure_env_file(site: &Site) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = &site.env_file;
    let failed = |source| Error::File { path: path.clone(), source };
    if path.exists() {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map_err(failed)?;
    let text = "# Settings of system-bus, one KEY=value a line; `joelclaw config --docs` lists them.\n";
    std::io::Write::write_all(&mut &file, text.as_bytes()).map_err(failed)
}
