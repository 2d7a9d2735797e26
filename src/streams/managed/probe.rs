//! Who is on the socket: one PING by hand.
//!
//! Not through the client library, because the answer wanted is not a value but which way it fails: nobody listens,
//! somebody accepts and is silent, a server is loading.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// What a PING met. `pid` is the process that listens, where the system tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// A server that serves, be it busy with a long script.
    Ready { pid: Option<u32> },
    /// A server that reads its data from disk.
    Loading { pid: Option<u32> },
    /// Somebody accepts connections, but is no Redis or hangs.
    Silent { pid: Option<u32> },
    /// No socket, or one that nobody listens on.
    Nobody,
}

/// Sends one PING and names what came back. An error is one of access, never of absence.
pub(super) async fn probe(socket: &Path, deadline: Duration) -> io::Result<Probe> {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(Probe::Nobody),
        Err(error) => return Err(error),
    };
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
    let answer = timeout(deadline, ping(stream)).await;
    Ok(match answer {
        Ok(Ok(line)) if line.starts_with("+PONG") || line.starts_with("-BUSY") => Probe::Ready { pid },
        Ok(Ok(line)) if line.starts_with("-LOADING") => Probe::Loading { pid },
        _ => Probe::Silent { pid },
    })
}

/// Somebody listens. Asks nothing of a server that may be busy.
pub(super) async fn accepts(socket: &Path) -> bool {
    !matches!(UnixStream::connect(socket).await, Err(error) if is_nobody(&error))
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

async fn ping(mut stream: UnixStream) -> io::Result<String> {
    stream.write_all(b"PING\r\n").await?;
    let mut line = String::new();
    // A stranger may send anything, and may never send a line end.
    BufReader::new(stream.take(512)).read_line(&mut line).await?;
    Ok(line)
}

/// Asks the server to write out its append-only file and end; returns when it hangs up.
pub(super) async fn shutdown(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"SHUTDOWN\r\n").await?;
    let mut answer = Vec::new();
    stream.take(512).read_to_end(&mut answer).await?;
    if answer.is_empty() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())) }
}

/// The same without waiting for the end, for where nothing can be awaited.
pub(super) fn shutdown_blocking(socket: &Path, deadline: Duration) -> io::Result<()> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(deadline))?;
    stream.write_all(b"SHUTDOWN\r\n")
}
