//! Where the key of an HTTP provider comes from: a file, a command, or the setting itself, in this order.
//!
//! Read when it is needed, so a rotated key counts from the next request on.

use std::path::PathBuf;
use std::process::Stdio;

use secrecy::{ExposeSecret as _, SecretString};

use super::Error;

/// See the module. `Debug` shows no key.
#[derive(Debug, Clone, Default)]
pub struct KeySource {
    key: Option<SecretString>,
    file: Option<PathBuf>,
    command: Option<Vec<String>>,
}

impl KeySource {
    /// A file wins over a command, a command over the text.
    #[must_use]
    pub const fn new(key: Option<SecretString>, file: Option<PathBuf>, command: Option<Vec<String>>) -> Self {
        Self { key, file, command }
    }

    /// The key; `None` where none is configured: a server on this machine may need none.
    pub(super) async fn read(&self) -> Result<Option<SecretString>, Error> {
        let text = if let Some(path) = &self.file {
            let text = tokio::fs::read_to_string(path).await.map_err(|_| Error::Key("its file can't be read"))?;
            SecretString::from(text)
        } else if let Some(argv) = &self.command {
            run(argv).await?
        } else {
            return Ok(self.key.clone());
        };
        match text.expose_secret().lines().map(str::trim).find(|line| !line.is_empty()) {
            Some(line) => Ok(Some(SecretString::from(line))),
            None => Err(Error::Key("it is empty")),
        }
    }
}

/// The request's own deadline drops, and so ends, a command that hangs.
async fn run(argv: &[String]) -> Result<SecretString, Error> {
    let failed = |_| Error::Key("its command can't be run");
    let (program, args) = argv.split_first().ok_or(Error::Key("its command is empty"))?;
    let child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let output = child.wait_with_output().await.map_err(failed)?;
    if !output.status.success() {
        return Err(Error::Key("its command failed"));
    }
    String::from_utf8(output.stdout).map(SecretString::from).map_err(|_| Error::Key("it is not text"))
}
