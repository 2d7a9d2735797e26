//! One HTTP call of an SDK app: the request of protocol section A5, and its raw answer.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::HeaderMap;
use reqwest::{Client, Url};

use super::super::ids;
use super::super::inngest::signing::Keys;
use super::super::registry::Function;
use super::super::store::{Begun, Run};

/// State above this is fetched by the SDK instead of being sent, bytes.
const STATE_IN_CALL: usize = (4 << 20) - 1024;
/// A body above this carries no events either, bytes.
const BODY_MAX: usize = 4 << 20;
/// Largest answer, bytes.
pub const ANSWER_MAX: usize = 8 << 20;
/// The thread of discovery.
pub const DISCOVERY: &str = "d";

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why nothing usable came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The app was never reached: nothing ran.
    Unreached(String),
    /// The connection broke while the app may have been working.
    Broken(String),
    /// It took longer than it may.
    Timeout,
    /// The answer is larger than [`ANSWER_MAX`].
    TooLarge,
}

/// A client that keeps connections, follows no redirect on its own, and finds hosts by aliases first.
pub fn client(aliases: &[(String, String)]) -> Result<Client, String> {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        .pool_idle_timeout(Duration::from_secs(4))
        .pool_max_idle_per_host(256)
        .tcp_nodelay(true)
        .dns_resolver(Arc::new(Hosts(aliases.to_vec())))
        .user_agent(concat!("system-bus/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| format!("no HTTP client: {error}"))
}

/// Resolves aliases, then as the system does; a name that only exists inside containers falls back to loopback.
struct Hosts(Vec<(String, String)>);

impl Resolve for Hosts {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let alias = self.0.iter().find(|(alias, _)| *alias == host).map(|(_, target)| target.clone());
        Box::pin(async move {
            let wanted = alias.unwrap_or_else(|| host.clone());
            let found = tokio::net::lookup_host((wanted.as_str(), 0)).await;
            match found {
                Ok(found) => Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs),
                Err(_) if host == "host.docker.internal" => {
                    let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
                    Ok(Box::new(std::iter::once(loopback)) as Addrs)
                }
                Err(error) => Err(error.into()),
            }
        })
    }
}

/// The URL of a call: the registered one with `stepId` set, everything else byte for byte.
pub fn step_url(function: &Function, step: &str) -> Result<Url, String> {
    let mut url = Url::parse(&function.url).map_err(|error| format!("`{}` is no URL: {error}", function.url))?;
    let mut query = String::new();
    let mut is_set = false;
    for part in url.query().unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
        let separator = if query.is_empty() { "" } else { "&" };
        if part == "stepId" || part.starts_with("stepId=") {
            is_set = true;
            let _ = write!(query, "{separator}stepId={step}");
        } else {
            let _ = write!(query, "{separator}{part}");
        }
    }
    if !is_set {
        let separator = if query.is_empty() { "" } else { "&" };
        let _ = write!(query, "{separator}stepId={step}");
    }
    url.set_query(Some(&query));
    Ok(url)
}

/// What tells one call from another.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// `<run>.<thread>`, base64: comes back with checkpoints.
    pub item: String,
    /// Fresh per attempt.
    pub request: String,
}

impl Ticket {
    /// The ticket of a thread.
    #[must_use]
    pub fn new(run: &str, thread: &str) -> Self {
        use base64::Engine as _;
        let item = base64::engine::general_purpose::STANDARD.encode(format!("{run}.{thread}"));
        Self { item, request: ids::fresh() }
    }

    /// Run and thread of an item that came back.
    #[must_use]
    pub fn read(item: &str) -> Option<(String, String)> {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(item).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        text.split_once('.').map(|(run, thread)| (run.to_owned(), thread.to_owned()))
    }
}

/// The body of a call. State that is too large for it is left for the SDK to fetch.
#[must_use]
pub fn body(begun: &Begun, function: &Function, ticket: &Ticket) -> String {
    let run = &begun.run;
    let state: usize = begun.steps.values().map(|value| value.len() + 45).sum();
    let use_api = state > STATE_IN_CALL;
    let body = compose(begun, function, ticket, use_api, true);
    if body.len() > BODY_MAX {
        return compose(begun, function, ticket, true, run.events.len() < BODY_MAX / 4);
    }
    body
}

fn compose(begun: &Begun, function: &Function, ticket: &Ticket, use_api: bool, with_events: bool) -> String {
    let run = &begun.run;
    let events = run.event_list();
    let first = events.first().map_or("{}", |event| event.get());
    let mut text = String::with_capacity(1024 + run.events.len() * 2);
    let _ = write!(
        text,
        r#"{{"ctx":{{"attempt":{},"disable_immediate_execution":{},"env":"","fn_id":"{}","generation_id":{},"job_id":"{}:{}","max_attempts":{},"qi_id":"{}","request_id":"{}","run_id":"{}","stack":{{"current":{},"stack":["#,
        begun.attempt,
        run.force_plan,
        function.id,
        begun.generation,
        ticket.item,
        begun.generation,
        function.retries + 1,
        ticket.item,
        ticket.request,
        run.id,
        begun.stack.len(),
    );
    for (index, step) in begun.stack.iter().enumerate() {
        let _ = write!(text, "{}\"{step}\"", if index == 0 { "" } else { "," });
    }
    let _ = write!(text, r#"]}},"step_id":"step","use_api":{use_api}}},"defers":{{}},"event":{first},"events":"#);
    text.push_str(if with_events { &run.events } else { "[]" });
    text.push_str(",\"steps\":");
    if use_api {
        text.push_str("{}");
    } else {
        text.push_str(&steps_object(&begun.stack, &begun.steps));
    }
    let _ = write!(text, r#","use_api":{use_api},"version":{}}}"#, run.version);
    text
}

/// `{"<hash>": <value>, …}` in the order of completion.
#[must_use]
pub fn steps_object(stack: &[String], steps: &std::collections::HashMap<String, String>) -> String {
    let mut text = String::from("{");
    for step in stack {
        let Some(value) = steps.get(step) else { continue };
        let _ = write!(text, "{}\"{step}\":{value}", if text.len() == 1 { "" } else { "," });
    }
    text.push('}');
    text
}

/// Everything that one call needs.
#[derive(Debug)]
pub struct Call<'a> {
    /// The shared client.
    pub client: &'a Client,
    /// Signing keys.
    pub keys: &'a Keys,
    /// How long it may take.
    pub timeout: Duration,
    /// The function.
    pub function: &'a Function,
    /// The run.
    pub run: &'a Run,
    /// `step`, or the hash of the step to run.
    pub step: &'a str,
    /// See [`Begun::generation`].
    pub generation: u64,
    /// What tells this call from another.
    pub ticket: &'a Ticket,
}

impl Call<'_> {
    /// Sends `body` and reads the whole answer. Redirects of the same method are followed three times.
    pub async fn send(&self, body: String) -> Result<Reply, Failed> {
        let mut url = step_url(self.function, self.step).map_err(Failed::Unreached)?;
        let body = match self.keys.is_keyed() {
            // SDKs behind a body parser write the body anew before they verify it: only the canonical form survives.
            true => serde_json::from_str::<serde_json::Value>(&body)
                .ok()
                .and_then(|value| serde_json_canonicalizer::to_string(&value).ok())
                .unwrap_or(body),
            false => body,
        };
        let sending = async {
            let body = bytes::Bytes::from(body);
            for _ in 0..4 {
                let reply = self.once(url.clone(), body.clone()).await?;
                let Some(next) = redirect(&reply, &url) else { return Ok(reply) };
                url = next;
            }
            Err(Failed::Broken("redirected more than three times".into()))
        };
        tokio::time::timeout(self.timeout, sending).await.unwrap_or(Err(Failed::Timeout))
    }

    async fn once(&self, url: Url, body: bytes::Bytes) -> Result<Reply, Failed> {
        let mut request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .header("x-run-id", &self.run.id)
            .header("x-request-id", &self.ticket.request)
            .header("x-inngest-generation-id", self.generation.to_string())
            .header("x-inngest-job-id", format!("{}:{}", self.ticket.item, self.generation))
            .header("x-inngest-req-version", self.run.version.to_string())
            .header("x-inngest-step-id", self.step)
            .header("traceparent", self.run.span.to_string());
        if let Some(signature) = self.keys.sign(&body, chrono::Utc::now().timestamp()) {
            request = request.header("x-inngest-signature", signature);
        }
        let mut response = request.body(body).send().await.map_err(|error| failed(&error))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut read = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error))? {
            if read.len() + chunk.len() > ANSWER_MAX {
                return Err(Failed::TooLarge);
            }
            read.extend_from_slice(&chunk);
        }
        Ok(Reply { status, headers, body: read })
    }
}

fn redirect(reply: &Reply, from: &Url) -> Option<Url> {
    if !matches!(reply.status, 307 | 308) {
        return None;
    }
    let target = reply.headers.get("location")?.to_str().ok()?;
    let next = from.join(target).ok()?;
    matches!(next.scheme(), "http" | "https").then_some(next)
}

fn failed(error: &reqwest::Error) -> Failed {
    // The URL may hold credentials and is known to whoever reads this.
    let mut text = String::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    if text.is_empty() {
        text = "the request failed".into();
    }
    if error.is_connect() { Failed::Unreached(text) } else { Failed::Broken(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(url: &str) -> Function {
        Function {
            slug: "app-a".into(),
            id: uuid::Uuid::nil(),
            app: "app".into(),
            name: "a".into(),
            triggers: Vec::new(),
            url: url.into(),
            retries: 3,
            cancel: Vec::new(),
            start_timeout_ms: None,
            finish_timeout_ms: None,
            flow: crate::functions::registry::flow::Flow::default(),
            warnings: Vec::new(),
            config: serde_json::Value::Null,
        }
    }

    #[test]
    fn a_registered_query_is_kept_to_the_letter() {
        let url = |text: &str| step_url(&function(text), "step").unwrap().to_string();
        assert_eq!(
            url("http://a/x?fnId=app-check%2Fhealth&stepId=step"),
            "http://a/x?fnId=app-check%2Fhealth&stepId=step"
        );
        assert_eq!(url("http://a/x?stepId=step&k=v"), "http://a/x?stepId=step&k=v");
        assert_eq!(url("http://a/x"), "http://a/x?stepId=step");
    }

    #[test]
    fn a_ticket_comes_back_as_it_went() {
        let ticket = Ticket::new("01RUN", "d");
        assert_eq!(Ticket::read(&ticket.item), Some(("01RUN".into(), "d".into())));
        assert_eq!(Ticket::read("?"), None);
    }
}
