//! The connection to Redis: one shared multiplexed connection that comes back by itself, and dedicated ones for
//! blocking reads.
//!
//! Every command has a deadline. A broken or silent connection is dropped, and the next command opens a new one, so
//! that no failed attempt is ever remembered. [`Error::Unreachable`] and [`Error::Timeout`] say whether the command
//! may have reached Redis: only then is the outcome unknown.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, Value};
use tokio::sync::Mutex;

use super::scripts::Script;
use crate::diagnose::{Diagnose, Exit};

/// How long a command may take unless its caller says otherwise.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(2);
/// How long opening a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// Why Redis gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL can't be used.
    #[error("the Redis URL {redis} can't be used: {source}")]
    Url {
        /// URL without password.
        redis: String,
        /// The client's error.
        #[source]
        source: redis::RedisError,
    },
    /// No connection, or it broke.
    #[error("Redis at {redis} can't be reached: {source}")]
    Unreachable {
        /// URL without password.
        redis: String,
        /// The command had been sent: it may have taken effect.
        sent: bool,
        /// The client's error.
        #[source]
        source: redis::RedisError,
    },
    /// No answer within the deadline.
    #[error("Redis at {redis} did not answer within {timeout_ms} ms")]
    Timeout {
        /// URL without password.
        redis: String,
        /// The command had been sent: it may have taken effect.
        sent: bool,
        /// The deadline.
        timeout_ms: u64,
    },
    /// Redis answered with an error.
    #[error("Redis refused a command: {0}")]
    Refused(#[source] redis::RedisError),
    /// A reply of an unexpected shape.
    #[error("Redis answered something unexpected to {command}: {detail}")]
    Reply {
        /// The command or script.
        command: &'static str,
        /// What was unexpected.
        detail: String,
    },
    /// A newer program keeps its keys there, in a form that this one does not know.
    #[error("the data at {redis} has key schema {found}; this joelclaw knows {known}", known = super::keys::SCHEMA)]
    Schema {
        /// URL without password.
        redis: String,
        /// Its schema.
        found: u64,
    },
}

impl Error {
    /// Whether Redis as a whole is away, as opposed to refusing this command. One that is still loading its data is.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
            || matches!(self.reply_code(), Some("LOADING" | "MASTERDOWN"))
    }

    /// Whether the command may have taken effect although no answer came.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Unreachable { sent: true, .. } | Self::Timeout { sent: true, .. })
    }

    /// The first word of an error reply (`OOM`, `NOSCRIPT`, `FENCED`, …).
    #[must_use]
    pub fn reply_code(&self) -> Option<&str> {
        match self {
            Self::Refused(source) => source.code(),
            _ => None,
        }
    }

    /// The text of an error reply after its code.
    #[must_use]
    pub fn reply_detail(&self) -> Option<&str> {
        match self {
            Self::Refused(source) => source.detail(),
            _ => None,
        }
    }
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Url { .. } => "REDIS_URL_INVALID",
            Self::Unreachable { .. } | Self::Timeout { .. } => "REDIS_UNREACHABLE",
            Self::Refused(_) if self.reply_code() == Some("OOM") => "QUEUE_FULL",
            Self::Refused(_) => "REDIS_REFUSED",
            Self::Reply { .. } => "INTERNAL_ERROR",
            Self::Schema { .. } => "SCHEMA_TOO_NEW",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Url { .. } => Exit::Usage,
            Self::Unreachable { .. } | Self::Timeout { .. } => Exit::Unreachable,
            Self::Refused(_) if self.reply_code() == Some("OOM") => Exit::Refused,
            Self::Refused(_) | Self::Reply { .. } => Exit::Internal,
            Self::Schema { .. } => Exit::Config,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Url { .. } | Self::Unreachable { .. } | Self::Timeout { .. } => "joelclaw config".into(),
            Self::Refused(_) | Self::Reply { .. } => "joelclaw queue fsck".into(),
            Self::Schema { .. } => "Install the newer joelclaw, or set REDIS_URL to another Redis.".into(),
        }
    }
}

/// The shared connection. Cheap to clone; all clones share one socket.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    display: String,
    shared: Mutex<Option<MultiplexedConnection>>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({})", self.inner.display)
    }
}

impl Redis {
    /// Prepares a connection; nothing is opened before the first command. `display` is the URL without password.
    pub fn open(url: &str, display: &str) -> Result<Self, Error> {
        let client = Client::open(url).map_err(|source| Error::Url { redis: display.to_owned(), source })?;
        let inner = Inner { client, display: display.to_owned(), shared: Mutex::new(None) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The same server through a socket of its own.
    #[must_use]
    pub fn separate(&self) -> Self {
        let inner =
            Inner { client: self.inner.client.clone(), display: self.inner.display.clone(), shared: Mutex::new(None) };
        Self { inner: Arc::new(inner) }
    }

    /// URL without password.
    #[must_use]
    pub fn display(&self) -> &str {
        &self.inner.display
    }

    /// A connection of the caller's own, without a response deadline: for blocking commands.
    pub async fn dedicated(&self) -> Result<MultiplexedConnection, Error> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_DEADLINE)).set_response_timeout(None);
        let opened = tokio::time::timeout(
            CONNECT_DEADLINE,
            self.inner.client.get_multiplexed_async_connection_with_config(&config),
        );
        match opened.await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(source)) => Err(Error::Unreachable { redis: self.display().to_owned(), sent: false, source }),
            Err(_) => Err(self.timed_out(false, CONNECT_DEADLINE)),
        }
    }

    /// A connection that listens to channels.
    pub async fn subscriber(&self) -> Result<redis::aio::PubSub, Error> {
        match tokio::time::timeout(CONNECT_DEADLINE, self.inner.client.get_async_pubsub()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(source)) => Err(Error::Unreachable { redis: self.display().to_owned(), sent: false, source }),
            Err(_) => Err(self.timed_out(false, CONNECT_DEADLINE)),
        }
    }

    /// Runs one command.
    pub async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Error> {
        self.query_within(cmd, COMMAND_DEADLINE).await
    }

    /// Runs one command with a deadline of the caller's.
    pub async fn query_within<T: FromRedisValue>(&self, cmd: &Cmd, deadline: Duration) -> Result<T, Error> {
        let mut connection = self.connection().await?;
        let answer = tokio::time::timeout(deadline, connection.send_packed_command(cmd)).await;
        let value = self.settle(answer, deadline).await?;
        parse(value)
    }

    /// Runs several commands in one round trip. The first error reply becomes the error.
    pub async fn pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        let values = self.pipeline_values(pipeline).await?;
        values.into_iter().map(|value| value.extract_error().map_err(Error::Refused)).collect()
    }

    /// As [`Redis::pipeline`], with error replies left in their places.
    pub async fn pipeline_values(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        let mut connection = self.connection().await?;
        let count = pipeline.len();
        let answer = tokio::time::timeout(COMMAND_DEADLINE, connection.send_packed_commands(pipeline, 0, count)).await;
        self.settle(answer, COMMAND_DEADLINE).await
    }

    /// Runs a script by its hash, loading it first where Redis doesn't know it.
    pub async fn run<T: FromRedisValue>(&self, call: ScriptCall<'_>) -> Result<T, Error> {
        let cmd = call.command();
        match self.query::<Value>(&cmd).await {
            Err(error) if error.reply_code() == Some("NOSCRIPT") => {
                let mut load = redis::cmd("SCRIPT");
                load.arg("LOAD").arg(call.script.source);
                self.query::<Value>(&load).await?;
                parse(self.query(&cmd).await?)
            }
            other => parse(other?),
        }
    }

    async fn connection(&self) -> Result<MultiplexedConnection, Error> {
        let mut shared = self.inner.shared.lock().await;
        if let Some(connection) = shared.as_ref() {
            return Ok(connection.clone());
        }
        let connection = self.dedicated().await?;
        *shared = Some(connection.clone());
        Ok(connection)
    }

    /// Turns the two layers of failure into one error, and forgets a connection that can't be trusted any more.
    async fn settle<T>(
        &self,
        answer: Result<redis::RedisResult<T>, tokio::time::error::Elapsed>,
        deadline: Duration,
    ) -> Result<T, Error> {
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) if is_connection_error(&source) => {
                self.forget().await;
                Err(Error::Unreachable { redis: self.display().to_owned(), sent: true, source })
            }
            Ok(Err(source)) => Err(Error::Refused(source)),
            Err(_) => {
                self.forget().await;
                Err(self.timed_out(true, deadline))
            }
        }
    }

    async fn forget(&self) {
        *self.inner.shared.lock().await = None;
    }

    fn timed_out(&self, sent: bool, deadline: Duration) -> Error {
        let timeout_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        Error::Timeout { redis: self.display().to_owned(), sent, timeout_ms }
    }
}

/// Whether the connection, not the command, failed. A server that is loading its data counts as away.
pub(super) fn is_connection_error(error: &redis::RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_timeout()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("LOADING" | "MASTERDOWN"))
}

fn parse<T: FromRedisValue>(value: Value) -> Result<T, Error> {
    let value = value.extract_error().map_err(Error::Refused)?;
    T::from_redis_value(value).map_err(|error| Error::Reply { command: "a command", detail: error.to_string() })
}

/// One key or argument: shared bytes are not copied.
pub struct Part(Bytes);

macro_rules! part_from {
    ($($type:ty => $convert:expr;)*) => {$(
        impl From<$type> for Part {
            fn from(value: $type) -> Self {
                #[allow(clippy::redundant_closure_call)]
                Self(($convert)(value))
            }
        }
    )*};
}

part_from! {
    Bytes => |bytes| bytes;
    Vec<u8> => Bytes::from;
    String => Bytes::from;
    &str => |text: &str| Bytes::copy_from_slice(text.as_bytes());
    &[u8] => Bytes::copy_from_slice;
}

/// One call of a script: its keys, then its arguments.
pub struct ScriptCall<'a> {
    script: &'a Script,
    keys: Vec<Bytes>,
    args: Vec<Bytes>,
}

impl<'a> ScriptCall<'a> {
    /// A call without keys and arguments yet.
    #[must_use]
    pub const fn new(script: &'a Script) -> Self {
        Self { script, keys: Vec::new(), args: Vec::new() }
    }

    /// Adds a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Part>) -> Self {
        self.keys.push(key.into().0);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<Part>) -> Self {
        self.args.push(arg.into().0);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(self, number: impl fmt::Display) -> Self {
        self.arg(number.to_string())
    }

    /// Adds a key in place.
    pub fn push_key(&mut self, key: impl Into<Part>) {
        self.keys.push(key.into().0);
    }

    /// Adds an argument in place.
    pub fn push_arg(&mut self, arg: impl Into<Part>) {
        self.args.push(arg.into().0);
    }

    fn command(&self) -> Cmd {
        let bytes: usize = self.keys.iter().chain(&self.args).map(|part| part.len() + 16).sum();
        let mut cmd = Cmd::with_capacity(self.keys.len() + self.args.len() + 3, bytes + 64);
        cmd.arg("EVALSHA").arg(self.script.hash()).arg(self.keys.len());
        for part in self.keys.iter().chain(&self.args) {
            cmd.arg(part.as_ref());
        }
        cmd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_that_loads_its_data_is_away_and_one_that_refuses_is_not() {
        let refused = |line: &str| {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
            parse::<String>(value).unwrap_err()
        };
        assert!(refused("LOADING Redis is loading the dataset in memory").is_unreachable());
        assert!(refused("MASTERDOWN Link with MASTER is down").is_unreachable());
        let other = refused("OOM command not allowed");
        assert!(!other.is_unreachable() && !refused("LOADING x").outcome_unknown());
    }
}
