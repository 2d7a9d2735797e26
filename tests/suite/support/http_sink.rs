//! The other side of an HTTP handler: records what it is sent and answers as told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use tokio::task::JoinHandle;

use super::STEP;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub at: Instant,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

/// What to answer to one request.
#[derive(Debug, Clone)]
pub struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    delay: Duration,
    is_hanging: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap();
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), delay: Duration::ZERO, is_hanging: false }
    }

    pub fn ok() -> Self {
        Self::status(200)
    }

    /// Takes the request and never answers.
    pub fn hang() -> Self {
        Self { is_hanging: true, ..Self::ok() }
    }

    pub fn delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }
}

#[derive(Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    next: Mutex<VecDeque<Reply>>,
    otherwise: Mutex<Option<Reply>>,
}

/// A server on a free loopback port; gone at drop. Answers 200 unless told otherwise.
pub struct HttpSink {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl HttpSink {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared, server }
    }

    /// `http://127.0.0.1:<port>`; every path is served.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The replies to the next requests, in order of arrival; queued behind those not used yet.
    pub fn reply_next(&self, replies: impl IntoIterator<Item = Reply>) {
        self.shared.next.lock().unwrap().extend(replies);
    }

    /// The reply to every request beyond those of [`Self::reply_next`].
    pub fn reply_always(&self, reply: Reply) {
        *self.shared.otherwise.lock().unwrap() = Some(reply);
    }

    /// Everything received so far, in order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Waits for at least `count` requests; panics with what has come at the deadline.
    pub async fn wait_for(&self, count: usize, deadline: Duration) -> Vec<Received> {
        let started = Instant::now();
        loop {
            let received = self.received();
            if received.len() >= count {
                return received;
            }
            let seen = received.len();
            assert!(started.elapsed() < deadline, "{seen} of {count} requests in {deadline:?}: {received:#?}");
            tokio::time::sleep(STEP).await;
        }
    }
}

impl Drop for HttpSink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string);
    let reply = {
        // Both under one lock, so that the n-th request received gets the n-th reply.
        let mut received = shared.received.lock().unwrap();
        received.push(Received { method, path, headers, body, at: Instant::now() });
        let next = shared.next.lock().unwrap().pop_front();
        next.or_else(|| shared.otherwise.lock().unwrap().clone()).unwrap_or_else(Reply::ok)
    };
    if reply.is_hanging {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(reply.delay).await;
    (reply.status, reply.headers, reply.body).into_response()
}
