//! `command`: runs a program with the event on its stdin, as one JSON document.
//!
//! No shell. `EVENT_ID`, `EVENT_NAME`, `ATTEMPT` and `TRACEPARENT` are in its environment. Its output goes to files, and we wait for
//! its exit, never for the end of a pipe: a grandchild that keeps a pipe open can't hold us up. It has a process group
//! of its own, which is ended as a whole.
//!
//! | end | outcome |
//! |---|---|
//! | exit 0 | done |
//! | exit 75 (`EX_TEMPFAIL`) and any other code | retry, with the last 2 KB of stderr, or of stdout where stderr is empty |
//! | a code listed in `permanent_exit` | fail `permanent_exit` |
//! | a signal, or its timeout | retry |
//! | it can't be started | retry: the configuration can be mended without losing the event |

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::{Dispatch, Handler, Outcome};

/// Bytes of output kept in an error.
const KEPT_BYTES: u64 = 2048;
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// What a registry entry says.
#[derive(Debug, Clone, Default)]
pub struct CommandSpec {
    /// Path, or a name looked up in `PATH`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Exit codes that mean: never try again.
    pub permanent_exit: Vec<i32>,
}

/// See the module.
#[derive(Debug)]
pub struct CommandHandler {
    spec: CommandSpec,
}

/// Ends the whole group when the dispatch is dropped, so that nothing outlives it.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0 {
            // The group may be gone already.
            let _ = killpg(pid, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

impl CommandHandler {
    /// A handler that runs `spec`.
    #[must_use]
    pub const fn new(spec: CommandSpec) -> Self {
        Self { spec }
    }

    async fn run_once(&self, dispatch: &Dispatch) -> Outcome {
        let retry = |error: String, status| Outcome::Retry { error, not_before: None, status };
        let (mut child, mut output) = match self.spawn(dispatch).await {
            Ok(started) => started,
            Err(error) => return retry(format!("`{}` can't be started: {error}", self.spec.program), None),
        };
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let mut group = Group(pid);
        let ended = tokio::select! {
            ended = child.wait() => ended,
            () = tokio::time::sleep(dispatch.timeout) => {
                end(&group, &mut child).await;
                return retry(format!("still running after {} ms{}", dispatch.timeout.as_millis(), output.tail()), None);
            }
            () = dispatch.cancel.cancelled() => {
                end(&group, &mut child).await;
                return retry("cancelled while it was running".into(), None);
            }
        };
        // What the program left behind on purpose (a daemon) is its own business.
        group.0 = None;
        let status = match ended {
            Ok(status) => status,
            Err(error) => return retry(format!("its end was not seen: {error}"), None),
        };
        match (status.code(), status.signal()) {
            (Some(0), _) => Outcome::Done,
            (Some(code), _) => {
                let error = format!("exit {code}{}", output.tail());
                if self.spec.permanent_exit.contains(&code) {
                    Outcome::Fail { reason: "permanent_exit", error, status: Some(code) }
                } else {
                    retry(error, Some(code))
                }
            }
            (None, signal) => {
                let name = signal.and_then(|signal| Signal::try_from(signal).ok()).map_or("a signal", Signal::as_str);
                retry(format!("killed by {name}{}", output.tail()), None)
            }
        }
    }

    async fn spawn(&self, dispatch: &Dispatch) -> std::io::Result<(Child, Output)> {
        let envelope = dispatch.envelope.clone();
        // Files are small and local, but still files: off the runtime.
        let files = tokio::task::spawn_blocking(move || {
            let mut stdin = tempfile::tempfile()?;
            serde_json::to_writer(&mut stdin, &*envelope)?;
            stdin.flush()?;
            stdin.seek(SeekFrom::Start(0))?;
            let output = Output { stdout: tempfile::tempfile()?, stderr: tempfile::tempfile()? };
            let written = (output.stdout.try_clone()?, output.stderr.try_clone()?);
            Ok::<_, std::io::Error>((stdin, output, written))
        });
        let (stdin, output, (stdout, stderr)) = files.await.map_err(std::io::Error::other)??;
        let child = Command::new(&self.spec.program)
            .args(&self.spec.args)
            .env("EVENT_ID", &dispatch.envelope.id)
            .env("EVENT_NAME", dispatch.envelope.name.as_str())
            .env("ATTEMPT", dispatch.attempt.to_string())
            .env("TRACEPARENT", dispatch.trace().to_string())
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok((child, output))
    }
}

/// SIGTERM to the group, then SIGKILL.
async fn end(group: &Group, child: &mut Child) {
    group.signal(Signal::SIGTERM);
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        group.signal(Signal::SIGKILL);
        let _ = tokio::time::timeout(GRACE, child.wait()).await;
    }
}

/// What a program wrote: files without a name, gone when the last one who holds them ends.
struct Output {
    stdout: std::fs::File,
    stderr: std::fs::File,
}

impl Output {
    /// `: <the last 2 KB of stderr>`; of stdout when that is empty; or nothing.
    fn tail(&mut self) -> String {
        match (last(&mut self.stderr), last(&mut self.stdout)) {
            (Ok(text), _) if !text.is_empty() => format!(": {text}"),
            (_, Ok(text)) if !text.is_empty() => format!(": on stdout: {text}"),
            _ => String::new(),
        }
    }
}

fn last(file: &mut std::fs::File) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(KEPT_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(KEPT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

impl Handler for CommandHandler {
    fn kind(&self) -> &'static str {
        "command"
    }

    fn target(&self) -> &str {
        &self.spec.program
    }

    fn run(&self, dispatch: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            if dispatch.cancel.is_cancelled() {
                return Outcome::Cancelled;
            }
            self.run_once(&dispatch).await
        })
    }
}
