//! HTTP and Inngest targets: what is sent to the letter, what each answer means, and what no error shows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use system_bus::drainer::handlers::http::{HttpHandler, HttpOptions};
use system_bus::drainer::handlers::inngest::{InngestHandler, InngestServer};
use system_bus::drainer::handlers::{Dispatch, Handler, Outcome};
use system_bus::streams::entry_id::EntryId;
use system_bus::streams::envelope::Envelope;
use system_bus::streams::json::JsonObject;
use system_bus::streams::priority::Priority;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const DATA: &str = r#"{"n":9007199254740993,"b":1,"a":1.0}"#;

struct Request {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("(absent)", |value| value.to_str().unwrap())
    }
}

/// Answers by path and keeps what it was sent.
struct Target {
    url: String,
    requests: mpsc::UnboundedReceiver<Request>,
}

impl Target {
    async fn start() -> Self {
        let (keep, requests) = mpsc::unbounded_channel();
        let router = Router::new().fallback(answer).with_state(keep);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, requests }
    }

    fn handler(&self, path: &str, options: HttpOptions) -> HttpHandler {
        HttpHandler::new(&format!("{}{path}", self.url), options).unwrap()
    }

    async fn outcome(&self, path: &str) -> Outcome {
        self.handler(path, HttpOptions::default()).run(dispatch("evt-1")).await
    }

    fn received(&mut self) -> Request {
        self.requests.try_recv().unwrap()
    }
}

async fn answer(
    State(keep): State<mpsc::UnboundedSender<Request>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let _ = keep.send(Request { uri, headers, body });
    match path.as_str() {
        "/busy" => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")], "slow down").into_response(),
        "/moved" => (StatusCode::FOUND, [("location", "/elsewhere?token=t")], "").into_response(),
        "/moved/far" => {
            (StatusCode::FOUND, [("location", "https://user:secret-word@host/x?token=secret-word")], "").into_response()
        }
        "/hang" => std::future::pending().await,
        "/huge" => (StatusCode::INTERNAL_SERVER_ERROR, "é".repeat(32 << 20)).into_response(),
        path if path.starts_with("/e/refused") => {
            format!(r#"{{"error":"no such key","path":"{path}"}}"#).into_response()
        }
        // As a proxy does that wants https; some spell the percent-encoding their own way.
        path if path.starts_with("/e/moved") => {
            let path = path.replace("%2F", "%2f");
            (StatusCode::MOVED_PERMANENTLY, [("location", format!("https://host{path}"))], "").into_response()
        }
        path if path.starts_with("/e/rejected") => (StatusCode::UNAUTHORIZED, format!("bad: {path}")).into_response(),
        path if path.starts_with("/e/") => r#"{"ids":["1"],"status":200}"#.into_response(),
        path => {
            let status = path[1..].parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
            (status.unwrap_or(StatusCode::OK), "because").into_response()
        }
    }
}

fn dispatch(id: &str) -> Dispatch {
    let trace = r#"{"correlationId":"c","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=b"}"#;
    let envelope = Envelope {
        v: 1,
        id: id.into(),
        name: "content/updated".parse().unwrap(),
        source: "cli".into(),
        ts: 1_790_000_000_000,
        data: JsonObject::parse(DATA).unwrap(),
        priority: Priority::P1,
        dedup_key: None,
        trace: Some(JsonObject::parse(trace).unwrap()),
        triage: None,
        meta: None,
    };
    Dispatch {
        envelope: Arc::new(envelope),
        entry_id: EntryId { ms: 1, seq: 2 },
        attempt: 3,
        fence: 42,
        redrives: 0,
        timeout: Duration::from_secs(20),
        cancel: CancellationToken::new(),
    }
}

fn retry(error: &str, status: i32) -> Outcome {
    Outcome::Retry { error: error.into(), not_before: None, status: Some(status) }
}

#[tokio::test]
async fn the_body_is_the_data_to_the_letter_and_the_headers_say_the_rest() {
    let mut target = Target::start().await;
    let headers = [("x-own", "1"), ("x-fence", "0")].map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let handler = target.handler("/200?token=t", HttpOptions { headers, ..HttpOptions::default() });
    assert_eq!((handler.kind(), handler.target()), ("http", format!("{}/200", target.url).as_str()));
    assert_eq!(handler.run(dispatch("evt:abc/123")).await, Outcome::Done);

    let request = target.received();
    assert_eq!(request.body, DATA);
    assert_eq!(request.uri, "/200?token=t");
    for (name, value) in [
        ("content-type", "application/json"),
        ("x-event-id", "evt:abc/123"),
        ("x-event-name", "content/updated"),
        ("x-attempt", "3"),
        ("x-fence", "42"),
        ("x-own", "1"),
        ("idempotency-key", "queue-dispatch-evt-abc-123"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=b"),
        ("webhook-id", "(absent)"),
        ("webhook-signature", "(absent)"),
    ] {
        assert_eq!(request.header(name), value, "{name}");
    }
}

#[tokio::test]
async fn ids_with_the_same_key_differ_in_their_dispatch_id() {
    let mut target = Target::start().await;
    let handler = target.handler("/200", HttpOptions::default());
    let mut seen = Vec::new();
    let redriven = Dispatch { redrives: 1, ..dispatch("a:b") };
    let again = Dispatch { attempt: 4, ..dispatch("a:b") };
    for dispatch in [dispatch("a:b"), again, dispatch("a/b"), redriven] {
        assert_eq!(handler.run(dispatch).await, Outcome::Done);
        let request = target.received();
        assert_eq!(request.header("idempotency-key"), "queue-dispatch-a-b");
        assert_eq!(request.header("x-dispatch-id").len(), 32);
        seen.push(request.header("x-dispatch-id").to_owned());
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0] != seen[2] && seen[0] != seen[3] && seen[2] != seen[3], "{seen:?}");
}

#[tokio::test]
async fn an_id_that_no_header_can_hold_is_still_sent() {
    let mut target = Target::start().await;
    assert_eq!(target.handler("/200", HttpOptions::default()).run(dispatch("é\r\nx: y")).await, Outcome::Done);
    let request = target.received();
    assert_eq!(request.header("x-event-id"), "%C3%A9%0D%0Ax%3A%20y");
    assert_eq!(request.header("x"), "(absent)");
}

#[tokio::test]
async fn a_secret_signs_the_request() {
    let mut target = Target::start().await;
    for (secret, key) in [("whsec_c2VjcmV0", &b"secret"[..]), ("plain", b"plain")] {
        let options = HttpOptions { secret: Some(secret.into()), ..HttpOptions::default() };
        assert_eq!(target.handler("/200", options).run(dispatch("evt-1")).await, Outcome::Done);
        let request = target.received();
        let (id, timestamp) = (request.header("webhook-id"), request.header("webhook-timestamp"));
        assert_eq!(id, request.header("x-dispatch-id"));
        assert!((chrono::Utc::now().timestamp() - timestamp.parse::<i64>().unwrap()).abs() < 60);
        let mac = Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(format!("{id}.{timestamp}.{DATA}"));
        let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        assert_eq!(request.header("webhook-signature"), expected);
    }
}

#[tokio::test]
async fn each_answer_has_its_outcome() {
    let mut target = Target::start().await;
    assert_eq!(target.outcome("/204").await, Outcome::Done);
    let rejected = Outcome::Fail { reason: "rejected", error: "HTTP 400: because".into(), status: Some(400) };
    assert_eq!(target.outcome("/400").await, rejected);
    let lenient = HttpOptions { retry_client_errors: true, ..HttpOptions::default() };
    let ended = target.handler("/400", lenient).run(dispatch("evt-1")).await;
    assert_eq!(ended, retry("HTTP 400: because", 400));
    let busy = Outcome::Retry {
        error: "HTTP 429: slow down".into(),
        not_before: Some(Duration::from_secs(7)),
        status: Some(429),
    };
    assert_eq!(target.outcome("/busy").await, busy);
    assert_eq!(target.outcome("/503").await, retry("HTTP 503: because", 503));
    assert_eq!(target.outcome("/500").await, retry("HTTP 500: because", 500));

    while target.requests.try_recv().is_ok() {}
    let error = "HTTP 302: redirects are not followed (to /elsewhere)".to_owned();
    assert_eq!(target.outcome("/moved").await, Outcome::Fail { reason: "redirected", error, status: Some(302) });
    assert_eq!(target.received().uri, "/moved");
    assert!(target.requests.try_recv().is_err(), "a redirect was followed");
}

#[tokio::test]
async fn where_a_redirect_leads_is_told_without_secrets() {
    let target = Target::start().await;
    let Outcome::Fail { reason: "redirected", error, .. } = target.outcome("/moved/far").await else { panic!() };
    assert_eq!(error, "HTTP 302: redirects are not followed (to https://host/x)");
    for key in ["moved-secret-word", "moved/secret-word"] {
        let Outcome::Fail { reason: "redirected", error, .. } = inngest(&target.url, key).run(dispatch("evt-1")).await
        else {
            panic!()
        };
        assert_eq!(error, "HTTP 301: redirects are not followed (to https://host/e/***)");
    }
}

#[tokio::test]
async fn of_a_huge_answer_only_the_beginning_is_read() {
    let target = Target::start().await;
    assert_eq!(target.outcome("/huge").await, retry(&format!("HTTP 500: {}", "é".repeat(500)), 500));
}

#[tokio::test]
async fn no_answer_is_a_failed_try_that_names_only_the_host() {
    let target = Target::start().await;
    let host = target.url.strip_prefix("http://").unwrap();
    let url = format!("http://user:secret-word@{host}/hang?token=secret-word");
    let handler = HttpHandler::new(&url, HttpOptions::default()).unwrap();
    let begin = Instant::now();
    let ended = handler.run(Dispatch { timeout: Duration::from_millis(200), ..dispatch("evt-1") }).await;
    let Outcome::Retry { error, not_before: None, status: None } = ended else { panic!("{ended:?}") };
    assert!(error.starts_with(&format!("no answer in time from http://{host}/hang")), "{error}");
    assert!(!error.contains("secret-word"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(!format!("{handler:?} {}", handler.target()).contains("secret-word"));
}

#[tokio::test]
async fn a_refused_connection_is_a_failed_try() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let url = format!("http://user:secret-word@{host}/x?token=secret-word");
    let ended = HttpHandler::new(&url, HttpOptions::default()).unwrap().run(dispatch("evt-1")).await;
    let Outcome::Retry { error, not_before: None, status: None } = ended else { panic!("{ended:?}") };
    assert!(error.starts_with(&format!("no connection from http://{host}/x")), "{error}");
    assert!(!error.contains("secret-word"), "{error}");
}

#[tokio::test]
async fn cancelled_before_sending_is_handed_back_and_later_is_a_failed_try() {
    let mut target = Target::start().await;
    let handler = target.handler("/hang", HttpOptions::default());
    let early = dispatch("evt-1");
    early.cancel.cancel();
    assert_eq!(handler.run(early).await, Outcome::Cancelled);
    assert!(target.requests.try_recv().is_err());

    let late = dispatch("evt-1");
    let cancel = late.cancel.clone();
    let cancelled = async {
        target.requests.recv().await.unwrap();
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(handler.run(late), cancelled);
    let Outcome::Retry { error, .. } = ended else { panic!("{ended:?}") };
    assert!(error.starts_with("cancelled while "), "{error}");
}

fn inngest(url: &str, key: &str) -> InngestHandler {
    let server = InngestServer { base_url: url.into(), key: key.into() };
    InngestHandler::new(&server, "app/content.updated".parse().unwrap()).unwrap()
}

#[tokio::test]
async fn inngest_is_sent_the_event_under_the_targets_name() {
    let mut target = Target::start().await;
    let handler = inngest(&format!("{}/", target.url), "a/key");
    assert_eq!((handler.kind(), handler.target()), ("inngest", "app/content.updated"));
    assert_eq!(handler.run(dispatch("evt:abc/123")).await, Outcome::Done);
    let request = target.received();
    assert_eq!(request.uri, "/e/a%2Fkey");
    assert_eq!(request.header("content-type"), "application/json");
    let expected = format!(r#"{{"id":"evt:abc/123","name":"app/content.updated","ts":1790000000000,"data":{DATA}}}"#);
    assert_eq!(request.body, expected);
}

#[tokio::test]
async fn what_inngest_refuses_is_not_done_and_the_key_is_not_shown() {
    let target = Target::start().await;
    let refused = inngest(&target.url, "refused-word").run(dispatch("evt-1")).await;
    assert_eq!(refused, Outcome::Retry { error: "HTTP 200: no such key".into(), not_before: None, status: None });
    let rejected = inngest(&target.url, "rejected-word").run(dispatch("evt-1")).await;
    let error = "HTTP 401: bad: /e/***".to_owned();
    assert_eq!(rejected, Outcome::Fail { reason: "rejected", error, status: Some(401) });

    let handler = inngest("http://127.0.0.1:1", "secret-word");
    let Outcome::Retry { error, .. } = handler.run(dispatch("evt-1")).await else { panic!() };
    assert!(error.starts_with("no connection from http://127.0.0.1:1"), "{error}");
    assert!(!format!("{error} {handler:?}").contains("secret-word"));

    let handler = inngest("http://user:secret-word@127.0.0.1:1/", "key");
    let Outcome::Retry { error, .. } = handler.run(dispatch("evt-1")).await else { panic!() };
    assert!(error.starts_with("no connection from http://127.0.0.1:1"), "{error}");
    assert!(!format!("{error} {handler:?}").contains("secret-word"));
}

#[test]
fn what_is_no_http_url_is_refused_without_showing_it() {
    for url in ["ftp://user:secret-word@host/", "mailto:secret-word", "secret-word", "http://"] {
        let error = HttpHandler::new(url, HttpOptions::default()).unwrap_err();
        assert!(error.starts_with("`target` ") && !error.contains("secret-word"), "{error}");
        let server = InngestServer { base_url: url.into(), key: "key".into() };
        let error = InngestHandler::new(&server, "a/b".parse().unwrap()).unwrap_err();
        assert!(error.starts_with("INNGEST_URL ") && !error.contains("secret-word"), "{error}");
    }
}
