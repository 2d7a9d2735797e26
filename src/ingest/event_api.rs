//! The event API: `POST /e/<key>` takes one event or an array of them, as Inngest SDKs send it.
//!
//! JSON is told by its first token, whatever the content type: `text/plain` and none are common. A request is admitted
//! whole or not at all, and answered 200 only after the append.
//!
//! | answer | when |
//! |---|---|
//! | 200 `{"ids":[…],"status":200}` | stored, or stored before; ULIDs in request order |
//! | 400, 413 `{"ids":[],"status":…,"error":…}` | an event breaks a rule; the error names it |
//! | 401 | no such key; without configured keys, a sender that is not on this machine |
//! | 503 + `Retry-After` | the store is away or full: send it again |

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::admission::{Accepted, Admission, AskedPriority, Emit, PublicId};
use super::caused_by::CausedBy;
use super::fields::{Fields, json_string, object_text};
use super::peer::Peer;
use super::request_body;
use crate::config::Cidr;
use crate::diagnose::{Diagnose, chain};
use crate::streams::bus::Bus;
use crate::streams::entry_id::EntryId;
use crate::streams::lane::Lane;
use crate::streams::public_id;

/// Names that only the functions engine may emit.
const RESERVED: &str = "inngest/";
/// Accepted `ts`: 1980-01-01 to 2100-01-01, ms.
const TIMES: std::ops::RangeInclusive<i64> = 315_532_800_000..=4_102_444_800_000;

/// Limits and keys of the event API. The caller fills it from the configuration.
#[derive(Debug, Clone)]
pub struct EventApiSettings {
    /// Accepted event keys. None: development, any key is accepted from this machine only.
    pub keys: Vec<SecretString>,
    /// There is a signing key: then event keys are needed too.
    pub is_keyed: bool,
    /// Most events in one request.
    pub max_events: usize,
    /// Largest single event in bytes.
    pub max_event_bytes: usize,
    /// Largest body in bytes.
    pub max_body_bytes: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a durable append may take.
    pub append_timeout: Duration,
    /// Whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<Cidr>,
}

impl Default for EventApiSettings {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            is_keyed: false,
            max_events: 5_000,
            max_event_bytes: 3 * 1024 * 1024,
            max_body_bytes: 16 * 1024 * 1024,
            body_timeout: Duration::from_secs(30),
            append_timeout: Duration::from_secs(10),
            trusted_proxies: Cidr::loopback().to_vec(),
        }
    }
}

/// Finds the ULID of an event that is stored already.
pub trait PublicIds: Send + Sync {
    /// Of the entry at this place; `None` when it is not there any more.
    fn public_id(&self, lane: Lane, entry: EntryId) -> BoxFuture<'_, Option<String>>;
}

impl PublicIds for Bus {
    fn public_id(&self, lane: Lane, entry: EntryId) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move { self.stored_public_id(&lane, entry).await.ok().flatten() })
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct EventApi {
    settings: Arc<EventApiSettings>,
    admission: Admission,
    stored: Arc<dyn PublicIds>,
}

impl std::fmt::Debug for EventApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventApi")
    }
}

/// An answer other than 200.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    error: String,
    retry_after: Option<Duration>,
}

impl Refused {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), retry_after: None }
    }

    fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

impl EventApi {
    /// An event API that appends through `admission` and answers for repeated events from `stored`.
    #[must_use]
    pub fn new(settings: EventApiSettings, admission: Admission, stored: Arc<dyn PublicIds>) -> Self {
        Self { settings: Arc::new(settings), admission, stored }
    }

    /// The routes under `/e`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/e", any(keyless))
            .route("/e/", any(keyless))
            .route("/e/{key}", any(events))
            .with_state(self)
    }

    async fn take(&self, key: &str, request: Request) -> Result<Response, Refused> {
        let (parts, body) = request.into_parts();
        if parts.method != Method::POST {
            return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"));
        }
        let peer = Peer::of(&parts.extensions, &parts.headers, &self.settings.trusted_proxies);
        self.check_key(key, &peer)?;
        if !request_body::is_plain(&parts.headers) {
            return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported content encoding"));
        }
        let settings = &self.settings;
        let body = request_body::read(&parts.headers, body, settings.max_body_bytes, settings.body_timeout).await?;
        let text = std::str::from_utf8(&body).map_err(|error| Refused::invalid(format!("not UTF-8: {error}")))?;
        let sent = self.parse(text, &parts.headers, &parts.extensions)?;
        let emits: Vec<Emit<'_>> = sent.iter().map(Sent::emit).collect();
        let admitted = tokio::time::timeout(settings.append_timeout, self.admission.admit_batch(&emits)).await;
        let accepted = match admitted {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => {
                let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                return Err(Refused { status, error: chain(&error), retry_after: error.retry_after() });
            }
            Err(_) => {
                let error = "the append was not confirmed in time; send it again with the same ids".to_owned();
                let retry_after = Some(Duration::from_secs(5));
                return Err(Refused { status: StatusCode::SERVICE_UNAVAILABLE, error, retry_after });
            }
        };
        let mut ids = Vec::with_capacity(accepted.len());
        for (event, sent) in accepted.iter().zip(&sent) {
            ids.push(self.answered_id(event, sent).await);
        }
        let mut answer = json!({ "ids": ids, "status": 200 });
        if accepted.iter().any(|event| event.priority_ignored) {
            answer["priorityIgnored"] = true.into();
        }
        Ok(reply(StatusCode::OK, &answer))
    }

    /// The ULID of the stored event: the first one's, where this one was a repetition.
    async fn answered_id(&self, event: &Accepted, sent: &Sent<'_>) -> String {
        let known = match (event.duplicate, event.stream_id) {
            (Some(_), Some(entry)) => self.stored.public_id(event.lane.clone(), entry).await,
            (Some(_), None) => public_id::parse(&event.event_id).map(|id| id.to_string()),
            (None, _) => None,
        };
        known.unwrap_or_else(|| sent.ulid.clone())
    }

    fn check_key(&self, key: &str, peer: &Peer) -> Result<(), Refused> {
        let unknown = || Refused::new(StatusCode::UNAUTHORIZED, "Event key not found");
        if key.trim().is_empty() {
            return Err(Refused::new(StatusCode::UNAUTHORIZED, "Event key is required"));
        }
        if self.settings.keys.is_empty() && self.settings.is_keyed {
            let error = "Event keys are required to process events securely";
            return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, error));
        }
        if self.settings.keys.is_empty() {
            return if peer.is_local { Ok(()) } else { Err(unknown()) };
        }
        // Hashes are of one length, and every key is compared: the time tells nothing about any of them.
        let given = Sha256::digest(key.as_bytes());
        let is_known = self.settings.keys.iter().fold(Choice::from(0), |known, key| {
            known | Sha256::digest(key.expose_secret().as_bytes()).as_slice().ct_eq(given.as_slice())
        });
        if bool::from(is_known) { Ok(()) } else { Err(unknown()) }
    }

    fn parse<'a>(&self, text: &'a str, headers: &HeaderMap, extensions: &Extensions) -> Result<Vec<Sent<'a>>, Refused> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        let invalid = |error: serde_json::Error| Refused::invalid(format!("not valid JSON: {error}"));
        let items: Vec<&'a RawValue> = match text.as_bytes().first() {
            None => return Err(Refused::invalid("the request is empty")),
            Some(b'[') => serde_json::from_str(text).map_err(invalid)?,
            Some(b'{') => vec![serde_json::from_str(text).map_err(invalid)?],
            Some(_) => return Err(Refused::invalid("not valid JSON: an event or an array of events is expected")),
        };
        if items.is_empty() {
            return Err(Refused::invalid("the request holds no event"));
        }
        let limit = self.settings.max_events;
        if items.len() > limit {
            return Err(Refused::invalid(format!("Cannot have more than {limit} events in a batch")));
        }
        let context = Context::of(headers, extensions);
        let max = self.settings.max_event_bytes;
        let mut sent = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let place = if items.len() > 1 { format!("event {index}: ") } else { String::new() };
            let size = item.get().len();
            if size > max {
                let error = format!("{place}Event is over the max size: Max {max} bytes / Size {size} bytes");
                return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, error));
            }
            let mut event =
                Sent::parse(item.get(), &context).map_err(|reason| Refused::invalid(format!("{place}{reason}")))?;
            // Existing servers count from 1.
            let n = u32::try_from(index + 1).unwrap_or(u32::MAX);
            if let Some(ulid) = context.seed.as_deref().and_then(|seed| public_id::seeded(seed, n)) {
                event.ulid = ulid.to_string();
                event.is_seeded = true;
            }
            sent.push(event);
        }
        Ok(sent)
    }
}

/// What the request's headers say about all its events.
struct Context {
    /// `x-inngest-env`, as JSON.
    env: Option<String>,
    /// The trace object.
    trace: Option<String>,
    /// `x-inngest-event-id-seed`: the same for each try of one request.
    seed: Option<String>,
}

impl Context {
    fn of(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let header = |name: &str| {
            let text = headers.get(name)?.to_str().ok()?.trim();
            (!text.is_empty() && text.len() <= 512).then(|| json_string(text))
        };
        let seed = headers.get("x-inngest-event-id-seed").and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self { env: header("x-inngest-env"), trace: CausedBy::object_of(extensions), seed }
    }
}

/// One event as it was sent, with its strings decoded and its objects as text.
struct Sent<'a> {
    name: String,
    data: std::borrow::Cow<'a, str>,
    id: Option<String>,
    source: Option<String>,
    dedup_key: Option<String>,
    /// A number or a string without its quotes; anything else is ignored by admission.
    priority: Option<&'a str>,
    ts: Option<i64>,
    meta: Option<String>,
    trace: Option<String>,
    ulid: String,
    is_seeded: bool,
}

impl<'a> Sent<'a> {
    fn parse(text: &'a str, context: &Context) -> Result<Self, String> {
        let fields = Fields::parse(text).map_err(|error| format!("an event must be a JSON object: {error}"))?;
        let string = |key: &str| match fields.get(key) {
            None => Ok(None),
            Some(_) => fields.string(key).map(Some).ok_or_else(|| format!("{key} must be a string")),
        };
        let name = string("name")?.unwrap_or_default();
        if name.trim().is_empty() {
            return Err("event name is empty".into());
        }
        let trimmed = name.trim();
        if trimmed.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED)) {
            return Err(format!("event name is reserved for internal use: {trimmed}"));
        }
        let dedup_key = string("dedupKey")?.map_or_else(|| string("dedup_key"), |key| Ok(Some(key)))?;
        Ok(Self {
            data: data(fields.get("data"))?,
            id: string("id")?,
            source: string("source")?,
            dedup_key,
            priority: fields.get("priority").map(|text| text.trim_matches('"')),
            ts: ts(&fields)?,
            meta: meta(&fields, context)?,
            trace: context.trace.clone(),
            ulid: public_id::fresh(),
            is_seeded: false,
            name,
        })
    }

    fn emit(&self) -> Emit<'_> {
        Emit {
            name: &self.name,
            data: &self.data,
            id: self.id.as_deref(),
            source: self.source.as_deref(),
            dedup_key: self.dedup_key.as_deref(),
            priority: self.priority.map_or(AskedPriority::Unset, AskedPriority::Lenient),
            ts: self.ts,
            meta: self.meta.as_deref(),
            trace: self.trace.as_deref(),
            public: Some(PublicId { ulid: &self.ulid, is_repeated: self.is_seeded }),
            ..Emit::default()
        }
    }
}

/// The payload's exact text; only the key `_inngest`, which is the engine's own, is taken out.
fn data(text: Option<&str>) -> Result<std::borrow::Cow<'_, str>, String> {
    let Some(text) = text else { return Ok("{}".into()) };
    let fields = Fields::parse(text).map_err(|_| "data must be a JSON object")?;
    if fields.iter().any(|(key, _)| key == "_inngest") {
        return Ok(object_text(fields.iter().filter(|(key, _)| *key != "_inngest")).into());
    }
    Ok(text.into())
}

/// SDKs that always send the field mean "now" by 0.
fn ts(fields: &Fields<'_>) -> Result<Option<i64>, String> {
    let Some(text) = fields.get("ts") else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(0) => Ok(None),
        Ok(ts) if TIMES.contains(&ts) => Ok(Some(ts)),
        Ok(ts) => Err(format!("ts {ts} lies outside 1980-01-01 to 2100-01-01, in milliseconds")),
        Err(_) => Err("ts must be an integer number of milliseconds".into()),
    }
}

/// The emitter's keys; `user`, `v` and the environment are kept beside them.
fn meta(fields: &Fields<'_>, context: &Context) -> Result<Option<String>, String> {
    let own = match fields.get("meta") {
        None => Fields::default(),
        Some(text) => Fields::parse(text).map_err(|_| "meta must be a JSON object")?,
    };
    let has = |key: &str| own.iter().any(|(name, _)| name == key);
    let beside = [("user", fields.get("user")), ("v", fields.get("v")), ("env", context.env.as_deref())];
    let beside = beside.into_iter().filter_map(|(key, value)| value.filter(|_| !has(key)).map(|value| (key, value)));
    let mut members = own.iter().chain(beside).peekable();
    Ok(members.peek().is_some().then(|| object_text(members)))
}

async fn keyless(request: Request<Body>) -> Response {
    if request.method() == Method::OPTIONS {
        return preflight();
    }
    Refused::new(StatusCode::UNAUTHORIZED, "Event key is required").into_response()
}

async fn events(State(api): State<EventApi>, Path(key): Path<String>, request: Request<Body>) -> Response {
    if request.method() == Method::OPTIONS {
        return preflight();
    }
    api.take(&key, request).await.unwrap_or_else(IntoResponse::into_response)
}

impl From<request_body::Error> for Refused {
    fn from(error: request_body::Error) -> Self {
        let status = match error {
            request_body::Error::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            request_body::Error::TooSlow => StatusCode::REQUEST_TIMEOUT,
            request_body::Error::Incomplete => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = json!({ "ids": [], "status": self.status.as_u16(), "error": self.error });
        let mut response = reply(self.status, &body);
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
        }
        response
    }
}

/// One line of JSON that any page may read.
fn reply(status: StatusCode, body: &serde_json::Value) -> Response {
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response();
    allow_any_origin(response.headers_mut());
    response
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    allow_any_origin(response.headers_mut());
    response
}

fn allow_any_origin(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
}
