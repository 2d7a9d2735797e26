//! What an HTTP answer means for the event.
//!
//! | status | outcome |
//! |---|---|
//! | 2xx | done |
//! | 408, 425, 429, 5xx | retry; 429 and 503 not before their `Retry-After` |
//! | 3xx | fail `redirected`: redirects are not followed, so the registry entry must name the final URL |
//! | other 4xx | fail `rejected`, or retry where the entry says `retry_client_errors` |

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};

use super::Outcome;

/// Characters of an answer kept in an error.
const KEPT_CHARS: usize = 500;
/// Bytes of an answer read at most.
const READ_BYTES: usize = 64 * 1024;
/// A sender that asks for more patience than this is not believed.
const LONGEST_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Judges an answer. Pure.
#[must_use]
pub fn outcome(
    status: StatusCode,
    headers: &HeaderMap,
    body: &str,
    retry_client_errors: bool,
    now: DateTime<Utc>,
) -> Outcome {
    if status.is_success() {
        return Outcome::Done;
    }
    let kept: String = body.trim().chars().take(KEPT_CHARS).collect();
    let error =
        if kept.is_empty() { format!("HTTP {}", status.as_u16()) } else { format!("HTTP {}: {kept}", status.as_u16()) };
    let code = Some(i32::from(status.as_u16()));
    let retry = |not_before| Outcome::Retry { error: error.clone(), not_before, status: code };
    match status.as_u16() {
        429 | 503 => retry(retry_after(headers, now, LONGEST_PATIENCE)),
        408 | 425 | 500.. => retry(None),
        300..=399 => {
            let to =
                headers.get(LOCATION).and_then(|value| value.to_str().ok()).map_or("nowhere".into(), without_secrets);
            let error = format!("HTTP {}: redirects are not followed (to {to})", status.as_u16());
            Outcome::Fail { reason: "redirected", error, status: code }
        }
        _ if retry_client_errors => retry(None),
        _ => Outcome::Fail { reason: "rejected", error, status: code },
    }
}

/// A `Location`, relative or not, without the parts that may hold a token or a password.
fn without_secrets(location: &str) -> String {
    let path = location.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match path.split_once("//") {
        // An authority follows `//` only at the beginning or after the scheme.
        Some((scheme, rest)) if !scheme.contains('/') => (Some(scheme), rest),
        _ => (None, path),
    };
    let shown = match scheme {
        Some(scheme) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}//{host}{path}")
        }
        None => rest.to_owned(),
    };
    shown.chars().take(KEPT_CHARS).collect()
}

/// `Retry-After`: seconds, or a date; no more than `longest`.
pub(crate) fn retry_after(headers: &HeaderMap, now: DateTime<Utc>, longest: Duration) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => (DateTime::parse_from_rfc2822(text).ok()?.to_utc() - now).to_std().unwrap_or_default(),
    };
    Some(wait.min(longest))
}

/// Reads what an error may show of an answer, and no more: a target can't fill our memory.
pub(super) async fn read(response: reqwest::Response) -> String {
    read_at_most(response, READ_BYTES).await
}

/// The first bytes of an answer, or what came before it broke off.
pub(crate) async fn read_at_most(mut response: reqwest::Response, bytes: usize) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() >= bytes {
            body.truncate(bytes);
            break;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// A request that got no answer: worth another try. The URL, which may hold credentials, is left out.
pub(super) fn unanswered(error: reqwest::Error, target: &str) -> Outcome {
    let what = if error.is_timeout() { "no answer in time" } else { "no connection" };
    let error = format!("{what} from {target}: {}", crate::diagnose::chain(&error.without_url()));
    Outcome::Retry { error, not_before: None, status: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, headers: &[(&'static str, &str)], lenient: bool) -> Outcome {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let now = DateTime::parse_from_rfc2822("Mon, 23 Nov 2026 12:00:00 GMT").unwrap().to_utc();
        outcome(StatusCode::from_u16(status).unwrap(), &map, "why", lenient, now)
    }

    #[test]
    fn statuses_are_classified() {
        let name = |outcome: &Outcome| match outcome {
            Outcome::Done => "done",
            Outcome::Retry { .. } => "retry",
            Outcome::Fail { reason, .. } => reason,
            Outcome::Cancelled => "cancelled",
        };
        let table = [
            (200, false, "done"),
            (204, false, "done"),
            (302, false, "redirected"),
            (400, false, "rejected"),
            (400, true, "retry"),
            (404, false, "rejected"),
            (408, false, "retry"),
            (425, false, "retry"),
            (429, false, "retry"),
            (500, false, "retry"),
            (503, false, "retry"),
        ];
        for (status, lenient, expected) in table {
            assert_eq!(name(&judge(status, &[], lenient)), expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_honoured_as_seconds_and_as_a_date() {
        let wait = |headers: &[(&'static str, &str)], status| match judge(status, headers, false) {
            Outcome::Retry { not_before, .. } => not_before.map(|wait| wait.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(&[("retry-after", "7")], 429), Some(7));
        assert_eq!(wait(&[("retry-after", "Mon, 23 Nov 2026 12:00:30 GMT")], 503), Some(30));
        assert_eq!(wait(&[("retry-after", "Mon, 23 Nov 2026 11:00:00 GMT")], 503), Some(0));
        assert_eq!(wait(&[("retry-after", "soon")], 503), None);
        assert_eq!(wait(&[("retry-after", "7")], 500), None);
    }

    #[test]
    fn a_redirect_is_shown_without_secrets() {
        for (location, shown) in [
            ("/elsewhere?token=t", "/elsewhere"),
            ("elsewhere#t", "elsewhere"),
            ("https://host/a//b@c", "https://host/a//b@c"),
            ("https://user:p@ss@host:8/a?t", "https://host:8/a"),
            ("https://user:pass@host?t", "https://host"),
            ("//user:pass@host/a", "//host/a"),
            ("/a//user@b", "/a//user@b"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(location), shown, "{location}");
        }
        assert_eq!(without_secrets(&"x".repeat(9_000)).len(), KEPT_CHARS);
    }

    #[test]
    fn an_error_keeps_the_status_and_500_characters() {
        let long = "é".repeat(600);
        let outcome = outcome(StatusCode::BAD_REQUEST, &HeaderMap::new(), &long, false, Utc::now());
        let Outcome::Fail { error, status, .. } = outcome else { panic!() };
        assert_eq!(status, Some(400));
        assert_eq!(error.chars().filter(|c| *c == 'é').count(), 500);
    }
}
