//! An app under test: a process of its own that serves functions with an SDK.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Counts, LONG, Sdk};
use crate::support::{STEP, eventually};

/// One thing that a function noted.
#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    #[serde(rename = "fn")]
    pub function: String,
    #[serde(rename = "runId")]
    pub run: String,
    pub step: Option<String>,
    pub attempt: u32,
    /// `enter`, `step`, `end`, or a word of the function's own.
    pub what: String,
    /// Milliseconds since 1970.
    pub at: u64,
    #[serde(default)]
    pub value: Value,
}

/// How an app is started.
#[derive(Debug, Clone)]
pub struct Settings {
    pub sdk: Sdk,
    /// Its name; functions are `<name>-<function>`.
    pub name: String,
    env: Vec<(String, String)>,
}

impl Settings {
    pub fn new(sdk: Sdk) -> Self {
        Self { sdk, name: "conf".into(), env: Vec::new() }
    }

    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The last value of a key wins.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }
}

/// Killed at drop, and it ends by itself when this process does: its standard input is closed then.
pub struct App {
    pub settings: Settings,
    pub port: u16,
    child: Child,
    stdin: Option<ChildStdin>,
    dir: TempDir,
    client: reqwest::Client,
}

impl App {
    /// Starts it on a free port and waits until it listens.
    pub async fn start(settings: Settings) -> Self {
        let dir = tempfile::Builder::new().prefix("bus-app-").tempdir_in("/tmp").unwrap();
        let (child, stdin) = spawn(&settings, 0, &dir);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut app = Self { settings, port: 0, child, stdin: Some(stdin), dir, client };
        app.port = app.wait_listening().await;
        app
    }

    /// As a crash does it; its port refuses connections from here on.
    pub fn kill_9(&mut self) {
        self.stdin = None;
        let _ = killpg(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Starts it again on its port. What it noted before is in [`Self::counted_steps`] alone.
    pub async fn start_again(&mut self, change: impl FnOnce(Settings) -> Settings) {
        self.kill_9();
        self.settings = change(self.settings.clone());
        let (child, stdin) = spawn(&self.settings, self.port, &self.dir);
        (self.child, self.stdin) = (child, Some(stdin));
        assert_eq!(self.wait_listening().await, self.port);
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api/inngest", self.port)
    }

    /// PUT, as users and deployments do it: the app sends its functions to the server.
    pub async fn register(&self) -> (u16, Value) {
        let answer = self.client.put(self.url()).timeout(LONG).send().await.unwrap();
        let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Registers and says whether the server found a change.
    pub async fn sync(&self) -> bool {
        let (status, answer) = self.register().await;
        assert_eq!(status, 200, "{answer}\n{}", self.output());
        answer["modified"].as_bool().unwrap_or_else(|| panic!("no `modified` in {answer}"))
    }

    /// Registers, and returns what the app says of the refusal.
    pub async fn refused(&self) -> String {
        let (status, answer) = self.register().await;
        // Python hands the server's refusal on with a 200.
        assert!(status >= 400 || answer["error"].is_string(), "not refused: {status} {answer}");
        answer.to_string()
    }

    /// What the SDK says about itself.
    pub async fn introspection(&self) -> Value {
        self.get("/api/inngest").await
    }

    /// Everything noted since its last start, in order.
    pub async fn calls(&self) -> Vec<Call> {
        serde_json::from_value(self.get("/calls").await).unwrap()
    }

    pub async fn calls_of(&self, run: &str) -> Vec<Call> {
        self.calls().await.into_iter().filter(|call| call.run == run).collect()
    }

    /// What the functions noted under this word.
    pub async fn noted(&self, function: &str, what: &str) -> Vec<Call> {
        let calls = self.calls().await.into_iter();
        calls.filter(|call| call.function == function && call.what == what).collect()
    }

    /// How often the body of each step of the run was executed since the app's last start.
    pub async fn steps_of(&self, run: &str) -> Counts {
        count(self.calls_of(run).await.into_iter().filter(|call| call.what == "step"))
    }

    /// The same over all its starts.
    pub fn counted_steps(&self, run: &str) -> Counts {
        let Ok(file) = File::open(self.calls_file()) else { return Counts::new() };
        let lines = BufReader::new(file).lines().map(Result::unwrap);
        count(lines.map(|line| serde_json::from_str::<Call>(&line).unwrap()).filter(|call| call.run == run))
    }

    /// Waits until the function has noted something that `is` true of, and returns it.
    pub async fn wait_for(&self, what: &str, is: impl Fn(&Call) -> bool) -> Call {
        eventually(LONG, || async {
            let calls = self.calls().await;
            calls.iter().find(|call| is(call)).cloned().ok_or_else(|| format!("no {what} in {}", brief(&calls)))
        })
        .await
    }

    /// Every request to the SDK with its answer, in order of arrival.
    pub async fn wire(&self) -> Vec<Value> {
        serde_json::from_value(self.get("/wire").await).unwrap()
    }

    /// The calls of a run's functions.
    pub async fn wire_of(&self, run: &str) -> Vec<Value> {
        self.wire().await.into_iter().filter(|entry| entry["ctx"]["run_id"] == run).collect()
    }

    /// Waits until the app has answered a call of the run with an operation of this kind, and returns that call.
    pub async fn wait_for_op(&self, run: &str, op: &str) -> Value {
        eventually(LONG, || async {
            let wire = self.wire_of(run).await;
            let has_op = |entry: &&Value| {
                entry["answer"].as_array().is_some_and(|ops| ops.iter().any(|found| found["op"] == op))
            };
            wire.iter().find(has_op).cloned().ok_or_else(|| format!("{op} not among {} answers", wire.len()))
        })
        .await
    }

    /// Opens a gate that steps wait at.
    pub async fn open(&self, gate: &str) {
        let command = json!({ "open": [gate] }).to_string();
        let url = format!("http://127.0.0.1:{}/control", self.port);
        self.client.post(url).body(command).send().await.unwrap().error_for_status().unwrap();
    }

    /// What it wrote, for messages.
    pub fn output(&self) -> String {
        let read = |name| std::fs::read(self.dir.path().join(name)).unwrap_or_default();
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| String::from_utf8_lossy(&read(name)).into_owned());
        format!("the app's stdout:\n{stdout}\nstderr:\n{stderr}")
    }

    async fn get(&self, path: &str) -> Value {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let answer = self.client.get(url).timeout(LONG).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    fn calls_file(&self) -> PathBuf {
        self.dir.path().join("calls")
    }

    async fn wait_listening(&mut self) -> u16 {
        let started = Instant::now();
        loop {
            let ended = self.child.try_wait().unwrap();
            let stdout = std::fs::read_to_string(self.dir.path().join("stdout")).unwrap_or_default();
            let line = stdout.split_inclusive('\n').find(|line| line.ends_with('\n'));
            if let Some(port) = line.and_then(|line| line.trim_end().strip_prefix("listening ")) {
                return port.parse().unwrap();
            }
            assert!(ended.is_none(), "the app ended: {ended:?}\n{}", self.output());
            assert!(started.elapsed() < LONG, "the app does not listen\n{}", self.output());
            tokio::time::sleep(STEP).await;
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// What is in a list of calls, short enough for a message.
fn brief(calls: &[Call]) -> String {
    let line = |call: &Call| format!("{}/{}:{}", call.function, call.step.as_deref().unwrap_or("-"), call.what);
    calls.iter().map(line).collect::<Vec<_>>().join(" ")
}

fn count(calls: impl Iterator<Item = Call>) -> Counts {
    let mut counts = Counts::new();
    for call in calls {
        *counts.entry(call.step.unwrap_or_default()).or_default() += 1;
    }
    counts
}

fn spawn(settings: &Settings, port: u16, dir: &TempDir) -> (Child, ChildStdin) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let (part, program, argument) = match settings.sdk {
        Sdk::Js4 | Sdk::Js3 => (root.join("js"), PathBuf::from("node"), "app.mjs"),
        Sdk::Py => (root.join("py"), root.join("py/.venv/bin/python"), "app.py"),
    };
    let installed = if settings.sdk.is_js() { part.join("node_modules") } else { part.join(".venv") };
    let stamp = installed.join(".installed");
    assert!(stamp.is_file(), "{} is not installed: run make deps", installed.display());
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir.path())
        .env("TZ", "UTC")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SDK", if settings.sdk == Sdk::Js3 { "3" } else { "4" })
        .env("PORT", port.to_string())
        .env("APP_ID", &settings.name)
        .env("CALLS_FILE", dir.path().join("calls"))
        .envs(settings.env.iter().map(|(key, value)| (key, value)))
        .current_dir(part)
        .arg(argument)
        .stdin(Stdio::piped())
        .stdout(File::create(dir.path().join("stdout")).unwrap())
        .stderr(File::options().create(true).append(true).open(dir.path().join("stderr")).unwrap())
        .process_group(0);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; run make deps"));
    let stdin = child.stdin.take().unwrap();
    (child, stdin)
}
