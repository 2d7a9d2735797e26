//! `command`: a program that gets the prompt on stdin and answers on stdout.
//!
//! No shell. Prompt and output are files without a name, never pipes: a grandchild that keeps a pipe open can't hold
//! us up, and a large prompt can't block us. The program has a process group of its own. At the deadline the group
//! gets SIGTERM and, 2 s later, SIGKILL; nobody waits for that.
//!
//! | end | result |
//! |---|---|
//! | text on stdout, exit 0 | the answer |
//! | text on stdout, another exit | the answer, with `exit <n>` as detail |
//! | no text | [`Error::Exit`], [`Error::Signal`], or [`Error::Empty`] after exit 0 |

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::{Answer, Error, MAX_ANSWER_BYTES, Prompt, Provider, Request};

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// What a program may write: streams of JSON lines repeat the answer many times.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct CommandProvider {
    argv: Vec<String>,
}

/// A program under way. Dropped before its end, its group is ended in the background.
struct Running {
    child: Option<Child>,
    group: Option<Pid>,
}

impl CommandProvider {
    pub const fn new(argv: Vec<String>) -> Self {
        Self { argv }
    }

    pub async fn ask(&self, request: &Request<'_>) -> Result<Answer, Error> {
        let Some((program, args)) = self.argv.split_first() else { return Err(Error::NoProvider) };
        let spawn_error = |error: std::io::Error| Error::Spawn { program: program.clone(), reason: error.to_string() };
        let Files { stdin, mut stdout, stderr } = Files::new(request.prompt).await.map_err(spawn_error)?;
        let fill = |arg: &String| arg.replace("{model}", request.model).replace("{system}", &request.prompt.system);
        let child = Command::new(program)
            .args(args.iter().map(fill))
            // Keys of the HTTP providers are none of a program's business.
            .env_remove("SYSTEM_BUS_MODEL_API_KEY")
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(stdout.try_clone().map_err(spawn_error)?))
            .stderr(Stdio::from(stderr))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn_error)?;
        let status = Running::new(child).end(&stdout).await?;
        let text = tokio::task::spawn_blocking(move || read(&mut stdout)).await.ok().flatten().unwrap_or_default();
        let (text, model) = answer_in(&text);
        if text.len() > MAX_ANSWER_BYTES {
            return Err(Error::TooLong);
        }
        let ended = match (status.code(), status.signal()) {
            (Some(0), _) => None,
            (Some(code), _) => Some(Error::Exit(code)),
            (None, signal) => Some(Error::Signal(signal.unwrap_or_default())),
        };
        if text.is_empty() {
            return Err(ended.unwrap_or(Error::Empty));
        }
        let model = model.unwrap_or_else(|| request.model.to_owned());
        Ok(Answer { text, provider: Provider::Command, model, detail: ended.map(|error| error.detail()) })
    }
}

impl Running {
    fn new(child: Child) -> Self {
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Self { child: Some(child), group }
    }

    async fn end(mut self, stdout: &File) -> Result<std::process::ExitStatus, Error> {
        let Some(child) = self.child.as_mut() else { return Err(Error::Empty) };
        let status = loop {
            tokio::select! {
                ended = child.wait() => break ended.map_err(|_| Error::Empty)?,
                () = tokio::time::sleep(LOOK) => {
                    if stdout.metadata().is_ok_and(|file| file.len() > MAX_OUTPUT_BYTES) {
                        return Err(Error::TooLong);
                    }
                }
            }
        };
        // It has answered; what it left running has nothing more to do here.
        signal(self.group.take(), Signal::SIGKILL);
        self.child = None;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Some(child), Some(group)) = (self.child.take(), self.group.take()) else { return };
        signal(Some(group), Signal::SIGTERM);
        let rest = Rest(group);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut child = child;
                let rest = rest;
                // Its children may not have ended with it: the group gets its SIGKILL in any case.
                let _ = tokio::time::timeout(GRACE, child.wait()).await;
                drop(rest);
                let _ = child.wait().await;
            });
        }
    }
}

/// A group that is killed when this is dropped, also by the end of the runtime.
struct Rest(Pid);

impl Drop for Rest {
    fn drop(&mut self) {
        signal(Some(self.0), Signal::SIGKILL);
    }
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // The group may be gone already.
        let _ = killpg(group, signal);
    }
}

struct Files {
    stdin: File,
    stdout: File,
    stderr: File,
}

impl Files {
    /// Files are small and local, but still files: off the runtime.
    async fn new(prompt: &Prompt) -> std::io::Result<Self> {
        let user = prompt.user.clone();
        let make = move || {
            let mut stdin = tempfile::tempfile()?;
            stdin.write_all(user.as_bytes())?;
            stdin.seek(SeekFrom::Start(0))?;
            Ok(Self { stdin, stdout: tempfile::tempfile()?, stderr: tempfile::tempfile()? })
        };
        tokio::task::spawn_blocking(make).await.map_err(std::io::Error::other)?
    }
}

fn read(file: &mut File) -> Option<String> {
    file.seek(SeekFrom::Start(0)).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The text of the last finished assistant message in a stream of JSON lines, and its model; else the whole output,
/// unless it is such a stream that broke off.
fn answer_in(output: &str) -> (String, Option<String>) {
    let message = |line: &str| -> Option<Value> {
        let mut event: Value = serde_json::from_str(line.trim()).ok()?;
        let is_end = matches!(event["type"].as_str(), Some("turn_end" | "message_end"));
        (is_end && event["message"]["role"] == "assistant").then(|| event["message"].take())
    };
    if let Some(message) = output.lines().rev().find_map(message) {
        return (texts(&message["content"]), message["model"].as_str().map(str::to_owned));
    }
    let output = output.trim();
    let is_broken_stream = output.replace(' ', "").starts_with("{\"type\"");
    (if is_broken_stream { String::new() } else { output.to_owned() }, None)
}

/// The parts of type `text`, joined.
pub(super) fn texts(content: &Value) -> String {
    let parts = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = parts.iter().filter(|part| part["type"] == "text").filter_map(|part| part["text"].as_str());
    texts.collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_assistant_message_is_the_answer() {
        let stream = concat!(
            "{\"type\":\"session\"}\n",
            "{\"type\":\"message_end\",\"message\":{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"no\"}]}}\n",
            "{\"type\":\"message_end\",\"message\":{\"role\":\"assistant\",\"model\":\"m1\",\"content\":[{\"type\":\"thinking\",\"thinking\":\"x\"},{\"type\":\"text\",\"text\":\"{\\\"a\\\":\"},{\"type\":\"text\",\"text\":\"1}\"}]}}\n",
            "{\"type\":\"agent_end\"}\n",
        );
        assert_eq!(answer_in(stream), ("{\"a\":1}".to_owned(), Some("m1".to_owned())));
        assert_eq!(answer_in(" plain \n").0, "plain");
        assert_eq!(answer_in("{\"type\":\"session\"}\n{\"type\":\"mess").0, "");
        assert_eq!(answer_in("").0, "");
    }
}
