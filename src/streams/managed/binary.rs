//! Which server program to run: found, asked for its version, refused when it is too old.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::error::Error;

const NAMES: [&str; 2] = ["redis-server", "valkey-server"];
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
}

impl Product {
    /// The oldest version that has every command we use.
    pub fn minimum(self) -> Version {
        match self {
            Self::Redis => Version { major: 7, minor: 0 },
            Self::Valkey => Version { major: 8, minor: 0 },
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
        })
    }
}

/// As much of a version as decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 7 in 7.0.15.
    pub major: u32,
    /// 0 in 7.0.15.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A server program that will do.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) path: PathBuf,
}

/// `PATH`, then the directories of package managers: launchd and cron start us with a `PATH` that has none of them.
pub(super) fn default_search() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    for dir in ["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

/// The program that was named, or the first in the search path that is new enough.
pub(super) async fn find(named: Option<&Path>, search: &[PathBuf]) -> Result<Server, Error> {
    if let Some(path) = named {
        if !is_program(path) {
            let detail = "there is no program of that name".into();
            return Err(Error::Unusable { binary: path.to_owned(), detail });
        }
        return check(path).await;
    }
    let mut refused = None;
    for path in search.iter().flat_map(|dir| NAMES.map(|name| dir.join(name))).filter(|path| is_program(path)) {
        match check(&path).await {
            Ok(server) => return Ok(server),
            // An old one in front must not hide a new one behind it, but is worth naming when it is all there is.
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| Error::Missing { searched: search.to_vec() }))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

async fn check(path: &Path) -> Result<Server, Error> {
    let unusable = |detail: String| Error::Unusable { binary: path.to_owned(), detail };
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(VERSION_DEADLINE, command.output())
        .await
        .map_err(|_| unusable(format!("`--version` did not answer within {VERSION_DEADLINE:?}")))?
        .map_err(|error| unusable(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((product, version)) = parse(&text) else {
        let said: String = text.lines().next().unwrap_or_default().chars().take(120).collect();
        return Err(unusable(format!("`--version` printed {said:?} ({})", output.status)));
    };
    if version < product.minimum() {
        return Err(Error::TooOld { binary: path.to_owned(), product, version });
    }
    Ok(Server { path: path.to_owned() })
}

/// `Redis server v=7.0.15 sha=…`, `Valkey server v=8.1.0 sha=…`.
fn parse(text: &str) -> Option<(Product, Version)> {
    let mut words = text.split_whitespace();
    let product = match words.next()? {
        "Redis" => Product::Redis,
        "Valkey" => Product::Valkey,
        _ => return None,
    };
    let mut numbers = words.find_map(|word| word.strip_prefix("v="))?.split('.');
    let version = Version { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? };
    Some((product, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_servers_print() {
        let redis = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0\n";
        assert_eq!(parse(redis), Some((Product::Redis, Version { major: 7, minor: 0 })));
        let valkey = "Valkey server v=8.1.0 sha=00000000:1 malloc=libc bits=64 build=0\n";
        assert_eq!(parse(valkey), Some((Product::Valkey, Version { major: 8, minor: 1 })));
        for other in ["", "redis-server", "Redis server v=x.y", "Redis server 7.0.15", "KeyDB server v=6.3.4"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_oldest_supported_versions_are_seven_and_eight() {
        assert!(Version { major: 6, minor: 2 } < Product::Redis.minimum());
        assert!(Version { major: 7, minor: 2 } >= Product::Redis.minimum());
        assert!(Version { major: 7, minor: 2 } < Product::Valkey.minimum());
    }
}
