//! Files that are there whole, or not at all, and for nobody else to read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Options of a file that only its owner reads.
#[must_use]
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Writes `<name>.<end>` in `dir` by way of `<name>.tmp`; on `Ok` file and directory are synced.
pub fn store(dir: &Path, name: &str, end: &str, parts: &[impl AsRef<[u8]>]) -> io::Result<()> {
    let (temporary, path) = (dir.join(format!("{name}.tmp")), dir.join(format!("{name}.{end}")));
    let written = private().write(true).create_new(true).open(&temporary).and_then(|mut file| {
        parts.iter().try_for_each(|part| file.write_all(part.as_ref()))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    });
    if written.is_err() {
        // Nobody was answered for it, and nobody will be. What was renamed already may stay: it is known by its ids.
        let _ = fs::remove_file(&temporary);
    }
    written
}
