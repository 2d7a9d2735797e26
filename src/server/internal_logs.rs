//! `/internal/agent-logs/<id>`: what an agent has printed.
//!
//! `?stream=stdout|stderr&since=<byte>&follow=1`. While it runs here, read from its capture file
//! (`<data>/run/<requestId>/<n>/stdout.txt`, the highest `n`); afterwards from its snapshot, which keeps the end.
//!
//! Without `follow` the answer is text, and `x-log-next` says where to go on. With it the answer is an event stream:
//! `log` events, a comment every 15 s so that nobody on the way takes it for dead, and at last `end` with the status.

use std::convert::Infallible;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::internal::{Internal, refuse};
use super::internal_agent::{bad_id, io as unusable};
use super::internal_inbox::{is_id, is_terminal, status_of};

/// Bytes of one answer or event.
const CHUNK: u64 = 64 << 10;
/// How often a file that is followed is looked at.
const LOOK: Duration = Duration::from_millis(500);
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    stream: Option<String>,
    since: Option<String>,
    follow: Option<String>,
}

/// What is there from one byte on.
struct Part {
    text: String,
    /// The byte after it.
    next: u64,
}

pub(super) async fn logs(
    State(internal): State<Internal>,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
) -> Response {
    if let Some(elsewhere) = internal.elsewhere() {
        return elsewhere;
    }
    if !is_id(&id) {
        return bad_id();
    }
    let stream = match asked.stream.as_deref() {
        None | Some("stdout") => "stdout",
        Some("stderr") => "stderr",
        Some(_) => return refuse(StatusCode::BAD_REQUEST, "stream is stdout or stderr"),
    };
    let Ok(since) = asked.since.as_deref().unwrap_or("0").parse::<u64>() else {
        return refuse(StatusCode::BAD_REQUEST, "since is no number of bytes");
    };
    let (snapshot, part) = match read(&internal, &id, stream, since).await {
        Ok(read) => read,
        Err(error) => return unusable(&error),
    };
    if snapshot.is_none() && part.is_none() {
        return refuse(StatusCode::NOT_FOUND, "Unknown request");
    }
    if matches!(asked.follow.as_deref(), Some("1" | "true")) {
        let events = follow(internal, id, stream, since);
        return Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response();
    }
    let part = part.unwrap_or(Part { text: String::new(), next: since });
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-log-next", HeaderValue::from(part.next));
    if let Ok(status) = HeaderValue::from_str(snapshot.as_ref().map_or("pending", status_of)) {
        headers.insert("x-agent-status", status);
    }
    (headers, part.text).into_response()
}

/// The snapshot, read first: what a file holds after its run has ended is all there is.
async fn read(internal: &Internal, id: &str, stream: &str, since: u64) -> io::Result<(Option<Value>, Option<Part>)> {
    let snapshot = internal.0.inbox.snapshot(id).await?;
    if let Some(file) = capture(&internal.0.inbox.runs, id, stream).await? {
        match from_file(&file, since).await {
            Ok(part) => return Ok((snapshot, Some(part))),
            // The run ended just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let kept = snapshot.as_ref().and_then(|snapshot| snapshot["logs"][stream].as_str());
    let part = kept.map(|kept| {
        // A tail: with the true size known, bytes count from the beginning of all of it.
        let size = snapshot.as_ref().and_then(|snapshot| snapshot["logBytes"][stream].as_u64()).unwrap_or(0);
        let length = kept.len() as u64;
        let begin = size.saturating_sub(length);
        let mut from = usize::try_from(since.saturating_sub(begin)).unwrap_or(usize::MAX).min(kept.len());
        while !kept.is_char_boundary(from) {
            from += 1;
        }
        Part { text: kept[from..].to_owned(), next: since.max(begin + length) }
    });
    Ok((snapshot, part))
}

/// The newest capture file of a request.
async fn capture(runs: &FilePath, id: &str, stream: &str) -> io::Result<Option<PathBuf>> {
    let dir = runs.join(id);
    let mut entries = match tokio::fs::read_dir(&dir).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut newest: Option<u64> = None;
    while let Some(entry) = entries.next_entry().await? {
        newest = newest.max(entry.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(newest.map(|n| dir.join(n.to_string()).join(format!("{stream}.txt"))))
}

async fn from_file(file: &FilePath, since: u64) -> io::Result<Part> {
    let mut file = tokio::fs::File::open(file).await?;
    file.seek(io::SeekFrom::Start(since)).await?;
    let mut bytes = Vec::new();
    file.take(CHUNK).read_to_end(&mut bytes).await?;
    // A character that is not whole yet is for the next time; bytes that are no text never become whole.
    let whole = match std::str::from_utf8(&bytes) {
        Err(error) if error.error_len().is_none() && bytes.len() - error.valid_up_to() < 4 => error.valid_up_to(),
        _ => bytes.len(),
    };
    bytes.truncate(whole);
    Ok(Part { text: String::from_utf8_lossy(&bytes).into_owned(), next: since + whole as u64 })
}

/// Where a stream of events is.
struct Following {
    internal: Internal,
    id: String,
    stream: &'static str,
    at: u64,
    has_ended: bool,
}

fn follow(
    internal: Internal,
    id: String,
    stream: &'static str,
    since: u64,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let following = Following { internal, id, stream, at: since, has_ended: false };
    stream::unfold(following, |mut following| async move {
        if following.has_ended {
            return None;
        }
        let event = following.next().await;
        Some((Ok(event), following))
    })
}

impl Following {
    async fn next(&mut self) -> Event {
        loop {
            let read = read(&self.internal, &self.id, self.stream, self.at).await;
            let (snapshot, part) = match read {
                Ok(read) => read,
                Err(error) => return self.end("unknown", Some(error.to_string())),
            };
            if let Some(part) = part.filter(|part| part.next > self.at) {
                self.at = part.next;
                let data = json!({ "stream": self.stream, "next": part.next, "text": part.text });
                return Event::default().event("log").id(part.next.to_string()).data(data.to_string());
            }
            let status = snapshot.as_ref().map_or("pending", status_of);
            if is_terminal(status) {
                return self.end(status, None);
            }
            tokio::select! {
                () = self.internal.0.stop.cancelled() => return self.end("unknown", Some("the server stops".into())),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn end(&mut self, status: &str, error: Option<String>) -> Event {
        self.has_ended = true;
        let data = json!({ "status": status, "next": self.at, "error": error });
        Event::default().event("end").data(data.to_string())
    }
}
