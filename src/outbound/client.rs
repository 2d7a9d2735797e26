//! One request to an endpoint: signed, within its time, to an address that was checked, without redirects.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::endpoint::{self, Endpoint};
use crate::diagnose::chain;
use crate::drainer::handlers::answer::{read_at_most, retry_after};
use crate::net::guard::{Guard, Refused};

/// Bytes of an answer that are read.
const ANSWER_BYTES: usize = 4096;
/// Characters of an answer that an error shows.
const SHOWN_CHARS: usize = 500;
/// An endpoint that asks for more patience is not believed.
const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);

/// Sends deliveries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sender {
    guard: Guard,
    https: Client,
    http: Client,
    timeout: Duration,
}

/// How requests end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// 2xx.
    Taken,
    /// 3xx.
    Redirected,
    /// 410.
    Gone,
    /// 429, 503.
    Throttled,
    /// Another 4xx.
    Rejected,
    /// Another answer.
    Failed,
    /// No answer in time.
    TimedOut,
    /// No connection, or a broken one.
    Unreached,
    /// Not sent: the address is refused.
    Refused,
}

impl Ended {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Taken,
        Self::Redirected,
        Self::Gone,
        Self::Throttled,
        Self::Rejected,
        Self::Failed,
        Self::TimedOut,
        Self::Unreached,
        Self::Refused,
    ];

    /// What an answer with this status is.
    #[must_use]
    pub const fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Taken,
            300..=399 => Self::Redirected,
            410 => Self::Gone,
            429 | 503 => Self::Throttled,
            400..=499 => Self::Rejected,
            _ => Self::Failed,
        }
    }

    /// As metrics call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Redirected => "redirected",
            Self::Gone => "gone",
            Self::Throttled => "throttled",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Unreached => "unreached",
            Self::Refused => "refused",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The status, where there was an answer.
    pub status: Option<u16>,
    /// Why it counts as failed; `None` is a success.
    pub error: Option<String>,
    /// The same as one of a few kinds.
    pub ended: Ended,
    /// What a 429 or 503 asked for.
    pub retry_after: Option<Duration>,
    /// The beginning of the answer.
    pub answer: String,
    /// How long it took.
    pub took: Duration,
}

impl Sender {
    /// A sender; the error says why there is no HTTP client.
    pub fn new(guard: Guard, timeout: Duration) -> Result<Self, String> {
        let client = |is_https| {
            guard
                .client(is_https)
                .connect_timeout(Duration::from_secs(5).min(timeout))
                .pool_idle_timeout(Duration::from_secs(30))
                .build()
                .map_err(|error| format!("no HTTP client: {}", chain(&error)))
        };
        Ok(Self { https: client(true)?, http: client(false)?, guard, timeout })
    }

    /// The rules for addresses.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Sends `body` as the delivery `id`.
    pub async fn send(&self, endpoint: &Endpoint, id: &str, body: &str) -> Attempt {
        let began = Instant::now();
        let failed = |ended: Ended, error: String| Attempt {
            status: None,
            error: Some(error),
            ended,
            retry_after: None,
            answer: String::new(),
            took: began.elapsed(),
        };
        let url = match endpoint::parse_url(&endpoint.url) {
            Ok(url) => url,
            Err(error) => return failed(Ended::Refused, error.to_string()),
        };
        // An address is connected to without asking the resolver.
        if let Err(refused) = self.guard.check_literal(&url) {
            return failed(Ended::Refused, format!("the address is refused: {refused}"));
        }
        let client = if url.scheme() == "https" { &self.https } else { &self.http };
        let request = client.post(url).headers(headers(endpoint, id, body, Utc::now())).timeout(self.timeout);
        let response = match request.body(body.to_owned()).send().await {
            Ok(response) => response,
            Err(error) => {
                let (ended, error) = unanswered(error);
                return failed(ended, error);
            }
        };
        let status = response.status();
        let code = status.as_u16();
        let retry_after = match code {
            429 | 503 => retry_after(response.headers(), Utc::now(), LONGEST_PATIENCE),
            _ => None,
        };
        let answer = read_at_most(response, ANSWER_BYTES).await;
        let error = (!status.is_success()).then(|| {
            let shown: String = answer.trim().chars().take(SHOWN_CHARS).collect();
            let what = if status.is_redirection() { " (redirects are not followed)" } else { "" };
            if shown.is_empty() { format!("HTTP {code}{what}") } else { format!("HTTP {code}{what}: {shown}") }
        });
        Attempt { status: Some(code), error, ended: Ended::of(code), retry_after, answer, took: began.elapsed() }
    }
}

fn headers(endpoint: &Endpoint, id: &str, body: &str, now: DateTime<Utc>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    let id = header_text(id);
    let timestamp = now.timestamp();
    let signatures = endpoint::signatures(endpoint, &id, timestamp, body.as_bytes());
    for (name, text) in
        [("webhook-id", id), ("webhook-timestamp", timestamp.to_string()), ("webhook-signature", signatures)]
    {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

/// An id as a header can hold it: everything but visible ASCII, and `%`, as `%XX`.
fn header_text(id: &str) -> String {
    let mut text = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Without the URL, whose query may hold a token.
fn unanswered(error: reqwest::Error) -> (Ended, String) {
    if let Some(refused) = Refused::of(&error) {
        return (Ended::Refused, format!("the address is refused: {refused}"));
    }
    let (ended, what) = match error.is_timeout() {
        true => (Ended::TimedOut, "no answer in time"),
        false => (Ended::Unreached, "no connection"),
    };
    (ended, format!("{what}: {}", chain(&error.without_url())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::RETRY_AFTER;

    #[test]
    fn ids_fit_a_header_and_stay_distinct() {
        assert_eq!(header_text("018f-ab"), "018f-ab");
        assert_eq!(header_text("a b\nü%"), "a%20b%0A%C3%BC%25");
    }

    #[test]
    fn patience_has_an_end() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("86400"));
        assert_eq!(retry_after(&headers, Utc::now(), LONGEST_PATIENCE), Some(LONGEST_PATIENCE));
        headers.insert(RETRY_AFTER, HeaderValue::from_static("soon"));
        assert_eq!(retry_after(&headers, Utc::now(), LONGEST_PATIENCE), None);
    }
}
