//! Secrets: shown as a fingerprint, and rotated without a gap.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use sha2::{Digest, Sha256};

use crate::known_secrets;

use super::Error;

/// How every output shows a secret: enough to compare two machines, nothing to use.
pub fn mask(secret: &str) -> String {
    let digest = hex::encode(Sha256::digest(secret.as_bytes()));
    format!("set (sha256 {}…)", &digest[..6])
}

/// Which of a rotating pair a secret is; telemetry shows when the old one is out of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// `<VAR>` or `<VAR>_FILE`.
    Current,
    /// `<VAR>_PREVIOUS` or `<VAR>_PREVIOUS_FILE`.
    Previous,
}

/// A secret that may be being rotated. A file, one secret per line, wins over its variable.
#[derive(Debug, Clone, Default)]
pub struct Rotating {
    /// `<VAR>`.
    pub current: Option<SecretString>,
    /// `<VAR>_FILE`.
    pub current_file: Option<PathBuf>,
    /// `<VAR>_PREVIOUS`.
    pub previous: Option<SecretString>,
    /// `<VAR>_PREVIOUS_FILE`.
    pub previous_file: Option<PathBuf>,
}

impl Rotating {
    /// Every secret to try, the current ones first. Reads the files, so a changed file counts from the next call on.
    pub fn read(&self) -> Result<Vec<(Slot, SecretString)>, Error> {
        let current = slot(&self.current, self.current_file.as_deref())?;
        let previous = slot(&self.previous, self.previous_file.as_deref())?;
        let with = |slot| move |secret| (slot, secret);
        Ok(current.into_iter().map(with(Slot::Current)).chain(previous.into_iter().map(with(Slot::Previous))).collect())
    }

    /// Something is configured.
    pub fn is_set(&self) -> bool {
        self.current.is_some() || self.current_file.is_some()
    }
}

fn slot(variable: &Option<SecretString>, file: Option<&Path>) -> Result<Vec<SecretString>, Error> {
    let Some(path) = file else { return Ok(variable.iter().cloned().collect()) };
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::SecretFile { path: path.to_path_buf(), source })?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let lines = lines.inspect(|line| known_secrets::know(line));
    Ok(lines.map(SecretString::from).collect())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_mask_is_a_fingerprint() {
        assert_eq!(mask("test"), "set (sha256 9f86d0…)");
    }

    #[test]
    fn a_file_wins_over_its_variable_and_may_hold_several() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets");
        std::fs::write(&path, "new\n\n \nnewer\r\n").unwrap();
        let secrets = Rotating {
            current: Some("ignored".into()),
            current_file: Some(path.clone()),
            previous: Some("old".into()),
            previous_file: None,
        };
        let read: Vec<_> =
            secrets.read().unwrap().into_iter().map(|(s, t)| (s, t.expose_secret().to_owned())).collect();
        let expected = [(Slot::Current, "new"), (Slot::Current, "newer"), (Slot::Previous, "old")];
        assert_eq!(read, expected.map(|(s, t)| (s, t.to_owned())));
        std::fs::remove_file(path).unwrap();
        assert!(secrets.read().is_err(), "a missing secret file is never an empty list of secrets");
    }
}
