//! Connections: accepted, spoken to in HTTP/1.1, and ended in order.
//!
//! Whoever opens a connection and sends no whole request head within [`HEAD_TIMEOUT`] loses it, and so does one that is
//! idle for so long: neither holds an open file for ever. How long a body may take is said by its route.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

/// From the first byte, or the end of the request before, to the end of the head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After an accept that failed for want of something, such as open files.
const PAUSE: Duration = Duration::from_millis(500);

/// Serves until `cancel`; then takes no new connection and gives requests in flight `drain` to end.
pub async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken, drain: Duration) {
    serve_within(listener, router, cancel, drain, HEAD_TIMEOUT).await;
}

async fn serve_within(
    listener: TcpListener,
    router: Router,
    cancel: CancellationToken,
    drain: Duration,
    head_timeout: Duration,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = accept(&listener) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let router = router.clone();
        let service = service_fn(move |request| answer(router.clone(), peer, request));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        // A connection ends as its client likes; there is nobody to tell.
        connections.spawn(async move { drop(connection.await) });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(action = "server.drain_expired", drain_ms = drain.as_millis(), "requests were still running");
    }
}

/// The next connection. Those that are gone before they were taken are nobody's trouble; a lack of open files passes.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small and must not wait for more.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) => {}
            Err(error) => {
                tracing::warn!(action = "server.accept_failed", %error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(
    mut router: Router,
    peer: SocketAddr,
    request: hyper::Request<Incoming>,
) -> Result<axum::response::Response, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    router.call(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const HEAD: &str = "GET / HTTP/1.1\r\nhost: here\r\n\r\n";

    /// The address, the stop switch and the running server.
    async fn serving(
        router: Router,
        drain: Duration,
        head_timeout: Duration,
    ) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, cancel) = (listener.local_addr().unwrap(), CancellationToken::new());
        let served = tokio::spawn(serve_within(listener, router, cancel.clone(), drain, head_timeout));
        (address, cancel, served)
    }

    async fn read_all(mut stream: TcpStream) -> String {
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        text
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_the_connection_and_others_are_served() {
        // It takes longer than a head may: only the head is timed.
        let slow = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move {
            tokio::time::sleep(Duration::from_millis(600)).await;
            peer.ip().to_string()
        };
        let router = Router::new().route("/", get(slow));
        let (address, _cancel, _served) = serving(router, Duration::from_secs(9), Duration::from_millis(300)).await;
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(&HEAD.as_bytes()[..20]).await.unwrap();
        let mute = TcpStream::connect(address).await.unwrap();
        let mut whole = TcpStream::connect(address).await.unwrap();
        whole.write_all(HEAD.as_bytes()).await.unwrap();
        let (half, mute, whole) = tokio::join!(read_all(half), read_all(mute), read_all(whole));
        assert!(half.is_empty() || half.starts_with("HTTP/1.1 408"), "{half}");
        assert!(mute.is_empty() || mute.starts_with("HTTP/1.1 408"), "{mute}");
        assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("127.0.0.1"), "{whole}");
    }

    #[tokio::test]
    async fn a_request_in_flight_ends_before_the_server_does_unless_it_outlives_the_drain() {
        for (drain, is_answered) in [(Duration::from_secs(30), true), (Duration::from_millis(10), false)] {
            let (entered, release) = (CancellationToken::new(), CancellationToken::new());
            let (enters, waits) = (entered.clone(), release.clone());
            let slow = move || async move {
                enters.cancel();
                waits.cancelled().await;
                "done"
            };
            let (address, cancel, served) = serving(Router::new().route("/", get(slow)), drain, HEAD_TIMEOUT).await;
            let idle = TcpStream::connect(address).await.unwrap();
            let mut whole = TcpStream::connect(address).await.unwrap();
            whole.write_all(HEAD.as_bytes()).await.unwrap();
            entered.cancelled().await;
            cancel.cancel();
            assert_eq!(read_all(idle).await, "", "idle connections are closed at once");
            if is_answered {
                release.cancel();
            }
            assert_eq!(read_all(whole).await.ends_with("done"), is_answered);
            served.await.unwrap();
            assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
        }
    }
}
