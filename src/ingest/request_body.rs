//! Reading a request body: counted in bytes while it streams, never longer than it may take.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

/// Why there is no body to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Over the limit, announced or seen.
    #[error("request body too large")]
    TooLarge,
    /// Not complete within the time.
    #[error("request timeout")]
    TooSlow,
    /// The connection ended in the middle.
    #[error("request body incomplete")]
    Incomplete,
}

/// Reads at most `limit` bytes within `timeout`. A longer announced length is refused without reading.
pub async fn read(headers: &HeaderMap, body: Body, limit: usize, timeout: Duration) -> Result<Bytes, Error> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Error::TooLarge);
    }
    // The announcement is a hint only: it buys no memory beyond the first pieces.
    let expected = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(0).min(64 * 1024);
    let collect = async {
        let mut stream = body.into_data_stream();
        let mut bytes = BytesMut::with_capacity(expected);
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|_| Error::Incomplete)?;
            if bytes.len() + piece.len() > limit {
                return Err(Error::TooLarge);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(timeout, collect).await.unwrap_or(Err(Error::TooSlow))
}

/// True when the body is sent as it is: no `content-encoding` but `identity`.
#[must_use]
pub fn is_plain(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"))
}
