//! What an endpoint is, and which events it wants.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::shape::{self, Condition, Transform};
use super::{FAMILY, sign};
use crate::diagnose::{Diagnose, Exit};
use crate::functions::expr::{Expr, Roots, Scope};
use crate::functions::store::WORK;
use crate::net::guard::{self, Guard};
use crate::streams::family::Family;
use crate::streams::name_pattern;

/// Patterns of one endpoint at most.
const MAX_PATTERNS: usize = 64;
/// Headers of one endpoint at most.
const MAX_HEADERS: usize = 32;
/// Names that a pattern must spell out: what the system tells about itself is nobody's by a `*`.
const RESERVED: [&str; 3] = ["inngest/", "webhook/endpoint.", FAMILY];

/// A secret of an endpoint, `whsec_` and base64. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// 32 random bytes.
    #[must_use]
    pub fn fresh() -> Self {
        Self(format!("whsec_{}", BASE64.encode(rand::random::<[u8; 32]>())))
    }

    /// One that somebody else made: `whsec_` and the base64 of 24 to 64 bytes.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bytes = text.strip_prefix("whsec_").and_then(|encoded| BASE64.decode(encoded).ok());
        match bytes {
            Some(bytes) if (24..=64).contains(&bytes.len()) => Ok(Self(text.to_owned())),
            _ => Err(Error::Secret),
        }
    }

    /// The text, for the one who is to be shown it and for signing.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// `ep_<ulid>`.
    pub id: String,
    /// Where deliveries are posted to.
    pub url: String,
    /// Event names, with `*` for any text.
    pub events: Vec<String>,
    /// A CEL condition over `event`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Conditions on the content; all must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// In which form events are sent.
    #[serde(default, skip_serializing_if = "Transform::is_none")]
    pub transform: Transform,
    /// What its operators call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Signs its deliveries.
    pub secret: Secret,
    /// The secret before the last rotation: signs too, until `secret_previous_until_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_previous: Option<Secret>,
    /// Until when the previous secret signs, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_previous_until_ms: Option<u64>,
    /// Headers beside ours.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Requests per second, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_per_second: Option<f64>,
    /// One delivery at a time, in the order of the events; a failing one holds up those behind it.
    #[serde(default)]
    pub fifo: bool,
    /// When it was made, ms.
    pub created_at_ms: u64,
}

/// Why an endpoint is disabled, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disabled {
    /// `operator`, `gone` (it answered 410) or `failing`.
    pub reason: String,
    /// When, ms.
    pub at_ms: u64,
    /// What its operator said, or its last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// An endpoint can't be as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL can't be posted to.
    #[error("the URL {0}")]
    Url(String),
    /// Its address is not to be connected to.
    #[error("the URL is refused: {0}")]
    Guard(#[from] guard::Refused),
    /// No pattern, or one that can't match.
    #[error("`{pattern}` is no pattern of event names: {why}")]
    Pattern {
        /// As given.
        pattern: String,
        /// What is wrong.
        why: &'static str,
    },
    /// No patterns, or too many.
    #[error("an endpoint has 1 to {MAX_PATTERNS} patterns of event names")]
    Patterns,
    /// The condition is not CEL.
    #[error("the filter is no condition: {0}")]
    Filter(String),
    /// A condition on the content that can't be meant.
    #[error("the condition {0}")]
    Condition(String),
    /// A form that can't be meant.
    #[error("the transformation: {0}")]
    Transform(String),
    /// A header that can't be sent, or is ours.
    #[error("the header `{name}` {why}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Not a secret of Standard Webhooks.
    #[error("a secret is whsec_ and the base64 of 24 to 64 bytes")]
    Secret,
    /// A limit that is no rate.
    #[error("the rate must be between 0.001 and 1000 a second")]
    Rate,
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Url(_) => "ENDPOINT_INVALID_URL",
            Self::Guard(_) => "ENDPOINT_ADDRESS_REFUSED",
            Self::Pattern { .. } | Self::Patterns => "ENDPOINT_INVALID_PATTERN",
            Self::Filter(_) => "ENDPOINT_INVALID_FILTER",
            Self::Condition(_) => "ENDPOINT_INVALID_CONDITION",
            Self::Transform(_) => "ENDPOINT_INVALID_TRANSFORM",
            Self::Header { .. } => "ENDPOINT_INVALID_HEADER",
            Self::Secret => "ENDPOINT_INVALID_SECRET",
            Self::Rate => "ENDPOINT_INVALID_RATE",
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Guard(_) => Exit::Refused,
            _ => Exit::Usage,
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Url(_) => "Give an https:// URL with a host and without user and password.".into(),
            Self::Guard(_) => {
                "Use a public https address, or open an exception with WEBHOOK_ALLOWED_SUBNETS, e.g. 10.1.0.0/16."
                    .into()
            }
            Self::Pattern { .. } | Self::Patterns => {
                "Give event names with --events, e.g. --events 'github/*,content/updated'.".into()
            }
            Self::Filter(_) => "Write a CEL condition over `event`, e.g. --filter 'event.data.amount > 100'.".into(),
            Self::Condition(_) => {
                "Write a JSON pointer, eq|in|prefix|exists|gt and a value, e.g. --where '/data/amount gt 100'.".into()
            }
            Self::Transform(_) => {
                "Name parts by JSON pointers below /data/, e.g. --pick /data/id --rename /data/id=/data/order; a \
                 template is a JSON object with {{/data/id}} in its texts."
                    .into()
            }
            Self::Header { .. } => "Give headers as --header 'Name: value'.".into(),
            Self::Secret => "Leave --secret out: a secret is made and shown once.".into(),
            Self::Rate => "Give deliveries per second, e.g. --rate 5.".into(),
        }
    }
}

impl Endpoint {
    /// Checks everything that can be checked without asking anybody.
    pub fn check(&self, guard: &Guard) -> Result<(), Error> {
        let url = parse_url(&self.url)?;
        guard.check_literal(&url)?;
        if self.events.is_empty() || self.events.len() > MAX_PATTERNS {
            return Err(Error::Patterns);
        }
        for pattern in &self.events {
            check_pattern(pattern).map_err(|why| Error::Pattern { pattern: pattern.clone(), why })?;
        }
        if let Some(filter) = &self.filter {
            Expr::compile(filter, Roots::Event).map_err(|error| Error::Filter(error.to_string()))?;
        }
        if self.conditions.len() > shape::MAX_PARTS {
            return Err(Error::Condition(format!("number {} is one too many", shape::MAX_PARTS + 1)));
        }
        for condition in &self.conditions {
            condition.check().map_err(Error::Condition)?;
        }
        self.transform.check().map_err(Error::Transform)?;
        if self.headers.len() > MAX_HEADERS {
            return Err(Error::Header { name: format!("number {MAX_HEADERS}"), why: "is one too many" });
        }
        for (name, value) in &self.headers {
            check_header(name, value).map_err(|why| Error::Header { name: name.clone(), why })?;
        }
        if self.rate_limit_per_second.is_some_and(|rate| !(0.001..=1000.0).contains(&rate)) {
            return Err(Error::Rate);
        }
        Ok(())
    }

    /// The family of its deliveries.
    pub fn family(&self) -> Option<Family> {
        family_of(&self.id)
    }

    /// Whether one of its patterns fits.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        !name.starts_with(FAMILY) && !name.starts_with(WORK) && self.events.iter().any(|pattern| matches(pattern, name))
    }

    /// Whether the content of an event decides what it is sent.
    #[must_use]
    pub fn looks_inside(&self) -> bool {
        self.filter.is_some() || !self.conditions.is_empty() || !self.transform.is_none()
    }

    /// Whether its conditions hold for `event`; the error says why that can't be told.
    pub fn admits(&self, event: &Value) -> Result<bool, String> {
        if !self.conditions.iter().all(|condition| condition.holds(event)) {
            return Ok(false);
        }
        let Some(filter) = &self.filter else { return Ok(true) };
        let expr = Expr::compile(filter, Roots::Event).map_err(|error| error.to_string())?;
        let scope = Scope { event: Some(event), async_event: None, now_ms: chrono::Utc::now().timestamp_millis() };
        expr.matches(&scope).map_err(|error| error.to_string())
    }

    /// The secrets that sign at `now_ms`, the current one first.
    pub fn signing(&self, now_ms: u64) -> impl Iterator<Item = &Secret> {
        let is_kept = self.secret_previous_until_ms.is_some_and(|until| now_ms < until);
        std::iter::once(&self.secret).chain(self.secret_previous.as_ref().filter(move |_| is_kept))
    }

    /// The URL without what may be a secret: its query, and user and password.
    #[must_use]
    pub fn shown_url(&self) -> String {
        reqwest::Url::parse(&self.url)
            .map_or_else(|_| "(no URL)".into(), |url| crate::registry::entry::url_without_secrets(&url))
    }
}

/// The family of the deliveries of the endpoint with this id.
#[must_use]
pub fn family_of(id: &str) -> Option<Family> {
    format!("{FAMILY}{id}").parse().ok()
}

/// A URL that can be posted to. The error doesn't repeat the text, which may hold credentials.
pub fn parse_url(text: &str) -> Result<reqwest::Url, Error> {
    let url = reqwest::Url::parse(text).map_err(|error| Error::Url(format!("can't be read: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(Error::Url("must begin with https://".into()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::Url("must not hold user and password: send a header instead".into()));
    }
    Ok(url)
}

fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    if pattern.is_empty() || pattern.len() > 256 {
        return Err("it has 1 to 256 characters");
    }
    if !pattern.chars().all(|c| c.is_ascii_alphanumeric() || "._:/-*".contains(c)) {
        return Err("use letters, digits, . _ : / - and *");
    }
    if pattern.starts_with(FAMILY) || pattern.starts_with(WORK) {
        return Err("these events are the system's own");
    }
    Ok(())
}

fn check_header(name: &str, value: &str) -> Result<(), &'static str> {
    let Ok(header) = HeaderName::try_from(name) else { return Err("is no name of a header") };
    let is_ours = matches!(
        header.as_str(),
        "content-type" | "content-length" | "host" | "connection" | "transfer-encoding" | "user-agent" | "te"
    ) || header.as_str().starts_with("webhook-");
    if is_ours {
        return Err("is set by us");
    }
    if HeaderValue::try_from(value).is_err() {
        return Err("has a value that can't be sent");
    }
    Ok(())
}

/// Whether `pattern`, with `*` for any text, fits the whole name.
fn matches(pattern: &str, name: &str) -> bool {
    let literal = pattern.split('*').next().unwrap_or_default();
    if RESERVED.iter().any(|reserved| name.starts_with(reserved) && !literal.starts_with(reserved)) {
        return false;
    }
    name_pattern::fits(pattern, name)
}

/// `webhook-signature` of one delivery at this time: a signature per secret, separated by blanks.
#[must_use]
pub fn signatures(endpoint: &Endpoint, id: &str, timestamp_s: i64, body: &[u8]) -> String {
    let now_ms = u64::try_from(timestamp_s).unwrap_or_default().saturating_mul(1000);
    let all: Vec<String> =
        endpoint.signing(now_ms).filter_map(|secret| sign::v1(secret.reveal(), id, timestamp_s, body)).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn endpoint() -> Endpoint {
        Endpoint {
            id: "ep_1".into(),
            url: "https://example.com/hook".into(),
            events: vec!["a/*".into()],
            filter: None,
            conditions: Vec::new(),
            transform: Transform::default(),
            description: None,
            secret: Secret::fresh(),
            secret_previous: None,
            secret_previous_until_ms: None,
            headers: BTreeMap::new(),
            rate_limit_per_second: None,
            fifo: false,
            created_at_ms: 0,
        }
    }

    #[test]
    fn patterns_fit_whole_names() {
        let table = [
            ("a/b", "a/b", true),
            ("a/b", "a/bc", false),
            ("a/b", "xa/b", false),
            ("*", "anything/at.all", true),
            ("a/*", "a/b", true),
            ("a/*", "a/", true),
            ("a/*", "b/a/c", false),
            ("*.completed", "github/workflow_run.completed", true),
            ("*.completed", "github/workflow_run.completed.x", false),
            ("github/*.completed", "github/check.completed", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_the_system_says_of_itself_must_be_asked_for_by_name() {
        assert!(!matches("*", "inngest/function.finished"));
        assert!(!matches("*", "webhook/endpoint.disabled"));
        assert!(matches("inngest/function.*", "inngest/function.finished"));
        assert!(matches("webhook/endpoint.disabled", "webhook/endpoint.disabled"));
        let mut endpoint = endpoint();
        endpoint.events = vec!["*".into(), "inngest/*".into()];
        assert!(!endpoint.wants("outbound/ep_1") && !endpoint.wants("inngest/fn:a-b"));
    }

    #[test]
    fn an_endpoint_is_checked_before_it_is_kept() {
        let guard = Guard::default();
        let check = |change: &dyn Fn(&mut Endpoint)| {
            let mut endpoint = endpoint();
            change(&mut endpoint);
            endpoint.check(&guard).err().map(|error| error.code())
        };
        assert_eq!(check(&|_| {}), None);
        assert_eq!(check(&|e| e.url = "ftp://x".into()), Some("ENDPOINT_INVALID_URL"));
        assert_eq!(check(&|e| e.url = "https://u:p@x/".into()), Some("ENDPOINT_INVALID_URL"));
        assert_eq!(check(&|e| e.url = "http://example.com/".into()), Some("ENDPOINT_ADDRESS_REFUSED"));
        assert_eq!(check(&|e| e.url = "https://10.0.0.1/".into()), Some("ENDPOINT_ADDRESS_REFUSED"));
        assert_eq!(check(&|e| e.events.clear()), Some("ENDPOINT_INVALID_PATTERN"));
        assert_eq!(check(&|e| e.events = vec!["a b".into()]), Some("ENDPOINT_INVALID_PATTERN"));
        assert_eq!(check(&|e| e.events = vec!["outbound/*".into()]), Some("ENDPOINT_INVALID_PATTERN"));
        assert_eq!(check(&|e| e.filter = Some("event.data.(".into())), Some("ENDPOINT_INVALID_FILTER"));
        assert_eq!(check(&|e| e.filter = Some("other.x == 1".into())), Some("ENDPOINT_INVALID_FILTER"));
        let condition = Condition { path: "data".into(), op: shape::Op::Eq, value: Value::Null };
        assert_eq!(check(&|e| e.conditions = vec![condition.clone()]), Some("ENDPOINT_INVALID_CONDITION"));
        assert_eq!(check(&|e| e.transform.pick = vec!["/id".into()]), Some("ENDPOINT_INVALID_TRANSFORM"));
        let header = |name: &str| {
            let name = name.to_owned();
            check(&move |e: &mut Endpoint| drop(e.headers.insert(name.clone(), "x".into())))
        };
        assert_eq!(header("webhook-id"), Some("ENDPOINT_INVALID_HEADER"));
        assert_eq!(header("Host"), Some("ENDPOINT_INVALID_HEADER"));
        assert_eq!(header("authorization"), None);
        assert_eq!(check(&|e| e.rate_limit_per_second = Some(f64::NAN)), Some("ENDPOINT_INVALID_RATE"));
    }

    #[test]
    fn a_secret_is_shown_to_nobody_by_accident() {
        let endpoint = endpoint();
        assert!(!format!("{endpoint:?}").contains(endpoint.secret.reveal()));
        assert!(Secret::parse(endpoint.secret.reveal()).is_ok());
        assert!(Secret::parse("whsec_AAAA").is_err() && Secret::parse("plain").is_err());
    }

    #[test]
    fn both_secrets_sign_until_the_old_one_is_over() {
        let mut endpoint = endpoint();
        endpoint.secret_previous = Some(Secret::fresh());
        endpoint.secret_previous_until_ms = Some(10_000);
        assert_eq!(signatures(&endpoint, "id", 9, b"{}").split(' ').count(), 2);
        assert_eq!(signatures(&endpoint, "id", 10, b"{}").split(' ').count(), 1);
    }
}
