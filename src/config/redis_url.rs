//! Which Redis. One resolver for every part: a pause written to another Redis than the drainer's holds nothing.
//!
//! First found wins: `--redis-url` · `REDIS_URL` in the env file · `REDIS_URL` in the environment · the socket of the
//! managed instance · `REDIS_HOST`/`REDIS_PORT` (with a warning) · `redis://localhost:6379`. The file comes before the
//! environment because a shell may carry some other program's `REDIS_URL`; the two disagreeing is a warning.
//!
//! Accepted: `redis://`, `rediss://`, `unix://`, `redis+unix://` (and the `valkey` spellings), user and password, the
//! database as path or `?db=`. What is shown is scheme, host, port or path, and database: never user or password.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::known_secrets;

use super::declare::{Order, Origin, candidates};
use super::env_file::EnvFile;
use super::{Error, Sources, Warning};

/// The last resort.
pub const DEFAULT_URL: &str = "redis://localhost:6379";
const DEFAULT_PORT: u16 = 6379;

/// What chose the Redis in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RedisOrigin {
    /// `--redis-url`.
    Flag,
    /// `REDIS_URL` in the env file.
    File,
    /// `REDIS_URL` in the environment.
    Environment,
    /// The socket of the instance that `joelclaw up` manages.
    Managed,
    /// `REDIS_HOST` and `REDIS_PORT`.
    HostPort,
    /// Nothing said otherwise.
    Default,
}

impl RedisOrigin {
    /// The word in every command's JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Managed => "managed",
            Self::HostPort => "host-port",
            Self::Default => "default",
        }
    }
}

/// Where the managed instance keeps its things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedPaths {
    /// Its working directory: append-only file, configuration.
    pub dir: PathBuf,
    /// The private socket.
    pub socket: PathBuf,
    /// The process id while it runs.
    pub pid_file: PathBuf,
}

impl ManagedPaths {
    /// Below the data directory.
    pub fn below(data_dir: &Path) -> Self {
        let dir = data_dir.join("redis");
        Self { socket: dir.join("redis.sock"), pid_file: dir.join("redis.pid"), dir }
    }

    /// The URL of the socket.
    pub fn url(&self) -> String {
        // A path with a blank (macOS's `Application Support`) has to be escaped.
        escape_path(&format!("unix://{}", self.socket.display()))
    }
}

/// The Redis in use.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// With credentials, in the form the client library reads.
    pub url: SecretString,
    /// Without credentials, for people.
    pub display: String,
    /// What chose it.
    pub origin: RedisOrigin,
}

impl RedisConfig {
    /// The URL of an explicit Redis, as the managed instance or a test has it.
    pub fn at(url: &str, origin: RedisOrigin) -> Result<Self, Error> {
        let parsed = RedisUrl::parse(url).map_err(|detail| Error::RedisUrl { origin, detail })?;
        Ok(Self { url: parsed.url, display: parsed.endpoint, origin })
    }

    /// Finds the Redis; the rule is in the module's header.
    pub(super) fn resolve(
        sources: &Sources,
        file: &EnvFile,
        managed: &ManagedPaths,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, Error> {
        let set = candidates(sources, file, "REDIS_URL", Order::FileFirst);
        let mut set = set.into_iter().flatten().filter(|(_, text)| !text.is_empty());
        if let Some((origin, text)) = set.next() {
            let origin = match origin {
                Origin::Flag => RedisOrigin::Flag,
                Origin::File => RedisOrigin::File,
                Origin::Environment | Origin::Default => RedisOrigin::Environment,
            };
            let chosen = Self::at(text, origin)?;
            if let (RedisOrigin::File, Some((_, other))) = (origin, set.next()) {
                warn_if_different(&chosen, other, file, warnings);
            }
            return Ok(chosen);
        }
        // A stale socket file can't be told from a live one without connecting; whoever connects says so.
        if managed.socket.exists() {
            return Self::at(&managed.url(), RedisOrigin::Managed);
        }
        if let Some(url) = host_and_port(sources, file, warnings) {
            return Self::at(&url, RedisOrigin::HostPort);
        }
        Self::at(DEFAULT_URL, RedisOrigin::Default)
    }

    /// Something names a Redis: `joelclaw up` then starts none of its own.
    pub fn is_configured(&self) -> bool {
        !matches!(self.origin, RedisOrigin::Default | RedisOrigin::Managed)
    }
}

fn warn_if_different(chosen: &RedisConfig, other: &str, file: &EnvFile, warnings: &mut Vec<Warning>) {
    let other = match RedisUrl::parse(other) {
        Ok(other) if other.identity() == identity_of(&chosen.display) => return,
        Ok(other) => other.endpoint,
        Err(_) => "something that is no Redis URL".to_owned(),
    };
    warnings.push(Warning {
        code: "CONFIG_REDIS_MISMATCH",
        message: format!(
            "REDIS_URL is {} in {} and {other} in the environment; using {} from the file",
            chosen.display,
            file.path.display(),
            chosen.display
        ),
    });
}

fn host_and_port(sources: &Sources, file: &EnvFile, warnings: &mut Vec<Warning>) -> Option<String> {
    let read = |key| {
        let set = candidates(sources, file, key, Order::FileFirst);
        set.into_iter().flatten().map(|(_, text)| text).find(|text| !text.is_empty())
    };
    let (host, port) = (read("REDIS_HOST"), read("REDIS_PORT"));
    if host.is_none() && port.is_none() {
        return None;
    }
    let port = port.map_or(DEFAULT_PORT, |text| match text.parse::<u16>() {
        Ok(port) if port > 0 => port,
        _ => {
            warnings.push(Warning {
                code: "CONFIG_INVALID_VALUE",
                message: format!("REDIS_PORT is no port number; using {DEFAULT_PORT}"),
            });
            DEFAULT_PORT
        }
    });
    let host = host.unwrap_or("localhost");
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    warnings.push(Warning {
        code: "CONFIG_REDIS_HOST",
        message: format!(
            "Redis is chosen by REDIS_HOST/REDIS_PORT; put REDIS_URL=redis://{host}:{port} in {} instead",
            file.path.display()
        ),
    });
    Some(format!("redis://{host}:{port}"))
}

/// A parsed address.
struct RedisUrl {
    url: SecretString,
    endpoint: String,
}

impl RedisUrl {
    /// The error never repeats the text: it may hold a password.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let text = escape_path(text.trim());
        let mut url = redis::parse_redis_url(&text)
            .ok_or("it must start with redis://, rediss://, unix:// or redis+unix:// and be a valid URL")?;
        let scheme = url.scheme().to_owned();
        let query: Vec<(String, String)> = url.query_pairs().map(|(k, v)| (k.into_owned(), v.into_owned())).collect();
        let in_query = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());

        let endpoint = if scheme.ends_with("unix") || scheme == "unix" {
            if url.host_str().is_some_and(|host| !host.is_empty()) || url.path().len() < 2 {
                return Err("a socket's path must be absolute: unix:///path/to/redis.sock");
            }
            let db = database(in_query("db").unwrap_or("0"))?;
            let path = url.to_file_path().map_err(|()| "the socket's path is not usable")?;
            let suffix = if db == 0 { String::new() } else { format!("?db={db}") };
            format!("unix://{}{suffix}", path.display())
        } else {
            let host = url.host_str().filter(|host| !host.is_empty()).ok_or("the host is missing")?;
            // The client library reads the database of a TCP address from the path alone.
            let db = match (url.path().trim_matches('/'), in_query("db")) {
                ("", None) => 0,
                ("", Some(db)) | (db, None) => database(db)?,
                (path, Some(query)) if database(path)? == database(query)? => database(path)?,
                _ => return Err("it names two different databases"),
            };
            let secure = if matches!(scheme.as_str(), "rediss" | "valkeys") { "rediss" } else { "redis" };
            let endpoint = format!("{secure}://{host}:{}/{db}", url.port().unwrap_or(DEFAULT_PORT));
            url.set_path(&db.to_string());
            endpoint
        };
        url.password().inspect(|password| known_secrets::know(password));
        redis::IntoConnectionInfo::into_connection_info(url.as_str())
            .map_err(|_| "its host, database, user or fragment is not usable")?;
        Ok(Self { url: SecretString::from(url.as_str()), endpoint })
    }

    fn identity(&self) -> String {
        identity_of(&self.endpoint)
    }
}

/// The same server and database written in another way is no disagreement.
fn identity_of(endpoint: &str) -> String {
    let plain = endpoint.replacen("rediss://", "redis://", 1).to_lowercase();
    for alias in ["redis://127.0.0.1:", "redis://[::1]:"] {
        if let Some(rest) = plain.strip_prefix(alias) {
            return format!("redis://localhost:{rest}");
        }
    }
    plain
}

fn database(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "its database is no number")
}

/// Blanks in a socket's path.
fn escape_path(text: &str) -> String {
    text.replace(' ', "%20")
}

impl RedisConfig {
    /// The URL with credentials, for the client and nothing else.
    pub fn expose(&self) -> &str {
        self.url.expose_secret()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_shown_without_credentials() {
        let cases = [
            ("redis://localhost", "redis://localhost:6379/0"),
            ("redis://u:hunter2@h:7000/3", "redis://h:7000/3"),
            ("redis://:hunter2@h?db=3", "redis://h:6379/3"),
            ("redis://h/3?db=3", "redis://h:6379/3"),
            ("rediss://hunter2@h:7000#insecure", "rediss://h:7000/0"),
            ("redis://[::1]:7000", "redis://[::1]:7000/0"),
            ("valkey://h", "redis://h:6379/0"),
            ("unix:///tmp/redis.sock", "unix:///tmp/redis.sock"),
            ("unix:///tmp/a dir/redis.sock?db=2&pass=hunter2&user=u", "unix:///tmp/a dir/redis.sock?db=2"),
            ("redis+unix:///tmp/redis.sock", "unix:///tmp/redis.sock"),
        ];
        for (url, display) in cases {
            let config = RedisConfig::at(url, RedisOrigin::Flag).expect(url);
            assert_eq!(config.display, display, "{url}");
            assert!(!format!("{config:?}").contains("hunter2"));
        }
    }

    #[test]
    fn the_client_gets_user_password_and_database() {
        use redis::IntoConnectionInfo;
        let tcp = RedisConfig::at("redis://u:p%40ss@h?db=3", RedisOrigin::Flag).unwrap();
        let info = tcp.expose().into_connection_info().unwrap();
        assert_eq!(info.redis_settings().db(), 3);
        assert_eq!(info.redis_settings().username(), Some("u"));
        assert_eq!(info.redis_settings().password(), Some("p@ss"));
        let unix = RedisConfig::at("unix:///tmp/a dir/s?db=4&pass=x", RedisOrigin::Flag).unwrap();
        let info = unix.expose().into_connection_info().unwrap();
        assert_eq!(info.redis_settings().db(), 4);
        assert_eq!(info.redis_settings().password(), Some("x"));
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for url in [
            "",
            "localhost:6379",
            "http://hunter2",
            "redis://",
            "redis://h/x?p=hunter2",
            "unix://tmp/hunter2",
            "redis://:hunter2@h:99999",
            "redis://h/1?db=2",
            "redis://h/-1",
            "rediss://h#hunter2",
        ] {
            let error = RedisConfig::at(url, RedisOrigin::Environment).expect_err(url);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn another_spelling_of_the_same_server_is_the_same() {
        let same = |a: &str, b: &str| RedisUrl::parse(a).unwrap().identity() == RedisUrl::parse(b).unwrap().identity();
        assert!(same("redis://localhost", "redis://:p@127.0.0.1:6379/0"));
        assert!(!same("redis://localhost/1", "redis://localhost/2"));
        assert!(!same("redis://localhost:1", "redis://localhost:2"));
        assert!(!same("unix:///a", "unix:///b"));
    }
}
