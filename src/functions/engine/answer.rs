//! What an SDK's answer means: protocol section A6.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::inngest::signing::Keys;
use super::call::{Failed, Reply};
use super::ops::{self, Op};

/// Bytes of a foreign body that an error repeats.
const UPSTREAM_BYTES: usize = 8 * 1024;

/// A classified answer.
#[derive(Debug)]
pub enum Answer {
    /// Steps: run, found, failed.
    Ops {
        /// In the order of the answer.
        ops: Vec<Op>,
        /// `x-inngest-req-version`.
        version: Option<u32>,
        /// `x-inngest-no-retry: true`.
        no_retry: bool,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The function ended; its result as JSON text.
    Done(String),
    /// An attempt failed.
    Failure(Failure),
    /// The app was never reached.
    Unreached(String),
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What is stored and shown: `name`, `message`, `stack`, `cause`?, `code`?.
    pub error: Value,
    /// In a few words, for `error.error` of the events that tell of it.
    pub text: String,
    /// Another attempt may help.
    pub is_retriable: bool,
    /// Not before.
    pub retry_after: Option<Duration>,
    /// The app does not know the function: it has to be asked what it serves.
    pub is_drift: bool,
}

impl Failure {
    fn new(code: &str, message: impl Into<String>, is_retriable: bool) -> Self {
        let message = message.into();
        let name = if code.starts_with("Inngest") { code } else { "Error" };
        let error = json!({"name": name, "message": message, "stack": message, "code": code});
        Self { error, text: code.to_owned(), is_retriable, retry_after: None, is_drift: false }
    }

    /// A limit of the run was passed.
    #[must_use]
    pub fn limit(code: &str, message: impl Into<String>) -> Self {
        Self::new(code, message, false)
    }
}

/// Classifies what came back. `now` is for dates in `Retry-After`.
#[must_use]
pub fn classify(reply: Result<Reply, Failed>, keys: &Keys, now: chrono::DateTime<chrono::Utc>) -> Answer {
    let reply = match reply {
        Ok(reply) => reply,
        Err(Failed::Unreached(reason)) => return Answer::Unreached(reason),
        Err(Failed::Broken(reason)) => {
            return Answer::Failure(Failure::new(
                "http_unreachable",
                format!("the app's answer broke off: {reason}"),
                true,
            ));
        }
        Err(Failed::Timeout) => {
            let message = "the app did not answer within the time that a call may take";
            return Answer::Failure(Failure::new("request_duration_too_long", message, true));
        }
        Err(Failed::TooLarge) => {
            let message = "the app's answer is larger than 8 MiB";
            return Answer::Failure(Failure::new("output_too_large", message, false));
        }
    };
    let header = |name: &str| reply.headers.get(name).and_then(|value| value.to_str().ok());
    let is_sdk = header("x-inngest-sdk").is_some();
    if keys.is_keyed()
        && let Some(signature) = header("x-inngest-signature")
        && let Err(error) = keys.verify(signature, &reply.body, now.timestamp())
    {
        return Answer::Failure(Failure::new("sig_verification_failed", error.to_string(), true));
    }
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    if reply.status == 201 && is_sdk {
        return streamed(&reply, &text, now);
    }
    let no_retry = header("x-inngest-no-retry");
    let retry_after = header("retry-after").and_then(|value| delay(value, now));
    let version = header("x-inngest-req-version").and_then(|value| value.parse().ok());
    judge(reply.status, &text, Facts { is_sdk, no_retry, retry_after, version, header: &header })
}

/// What headers say, beside status and body.
struct Facts<'a> {
    is_sdk: bool,
    no_retry: Option<&'a str>,
    retry_after: Option<Duration>,
    version: Option<u32>,
    header: &'a dyn Fn(&str) -> Option<&'a str>,
}

fn judge(status: u16, body: &str, facts: Facts<'_>) -> Answer {
    let Facts { is_sdk, no_retry, retry_after, version, header } = facts;
    let says_final = no_retry.is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
    match (status, is_sdk) {
        (206, true) => match ops::parse(body) {
            Ok(ops) => Answer::Ops { ops, version, no_retry: says_final, retry_after },
            Err(reason) => Answer::Failure(Failure::new(
                "invalid_response",
                format!("the SDK's operations can't be read: {reason}"),
                true,
            )),
        },
        (200..=299, true) => match serde_json::from_str::<serde::de::IgnoredAny>(body) {
            Ok(_) => Answer::Done(body.trim().to_owned()),
            Err(_) if body.trim().is_empty() => Answer::Done("null".into()),
            Err(_) => Answer::Done(Value::from(body).to_string()),
        },
        (200..=299, false) => {
            let message = "The response did not come from an Inngest SDK";
            Answer::Failure(Failure::new("not_sdk", message, true))
        }
        (401, false) if header("x-inngest-sdk-handled").is_some() => {
            let message =
                "the app refused our signature: its signing key is not the one in use here (signing key mismatch)";
            Answer::Failure(Failure { retry_after, ..Failure::new("signing_key_mismatch", message, true) })
        }
        (_, false) => {
            let message = format!("Your server returned HTTP {status} before the SDK responded.");
            let kind = header("content-type").unwrap_or("no content type");
            let mut end = body.len().min(UPSTREAM_BYTES);
            while !body.is_char_boundary(end) {
                end -= 1;
            }
            let error = json!({
                "name": "Server returned a fatal error",
                "message": message,
                "stack": format!("{kind}\n{}", &body[..end]),
            });
            Answer::Failure(Failure {
                error,
                text: format!("invalid status code: {status}"),
                is_retriable: true,
                retry_after,
                is_drift: status == 404,
            })
        }
        (_, true) => {
            let error = error_object(body);
            let is_drift = error.get("code").and_then(Value::as_str) == Some("function_not_found")
                || serde_json::from_str::<Value>(body).is_ok_and(|body| body["type"] == "internal");
            let text = if says_final { "NonRetriableError".into() } else { format!("invalid status code: {status}") };
            Answer::Failure(Failure { error, text, is_retriable: !says_final, retry_after, is_drift })
        }
    }
}

/// A streamed answer: blanks to keep the connection, then the real one as an object.
fn streamed(reply: &Reply, text: &str, now: chrono::DateTime<chrono::Utc>) -> Answer {
    let unreadable = |reason: &str| {
        Answer::Failure(Failure::new("invalid_response", format!("the streamed answer can't be used: {reason}"), true))
    };
    let Ok(inner) = serde_json::from_str::<Value>(text.trim()) else { return unreadable("it is not JSON") };
    if let Some(error) = inner.get("error").and_then(Value::as_str) {
        return unreadable(error);
    }
    let Some(status) = inner.get("status").and_then(Value::as_u64).and_then(|status| u16::try_from(status).ok()) else {
        return unreadable("it names no status");
    };
    let body = match inner.get("body") {
        Some(Value::String(body)) => body.clone(),
        Some(other) => other.to_string(),
        None => "null".to_owned(),
    };
    let overlaid = |name: &str| -> Option<&str> {
        let own = inner.get("headers").and_then(Value::as_object).and_then(|headers| {
            headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).and_then(|(_, value)| value.as_str())
        });
        own.or_else(|| reply.headers.get(name).and_then(|value| value.to_str().ok()))
    };
    judge(
        status,
        &body,
        Facts {
            is_sdk: true,
            no_retry: overlaid("x-inngest-no-retry"),
            retry_after: overlaid("retry-after").and_then(|value| delay(value, now)),
            version: overlaid("x-inngest-req-version").and_then(|value| value.parse().ok()),
            header: &overlaid,
        },
    )
}

/// `name`, `message`, `stack`, `data`, `cause`, `code` of what an SDK calls an error.
#[must_use]
pub fn error_object(body: &str) -> Value {
    let mut value: Value = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body));
    // Double encoding exists.
    if let Value::String(text) = &value
        && text.contains('{')
        && let Ok(inner @ Value::Object(_)) = serde_json::from_str(text)
    {
        value = inner;
    }
    stored_error(&value)
}

/// An error as it is kept: `__serialized` goes at the top, missing members get their defaults.
#[must_use]
pub fn stored_error(value: &Value) -> Value {
    let mut error = serde_json::Map::new();
    let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let message = text("message").or_else(|| text("error")).or_else(|| match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    });
    error.insert("name".into(), text("name").unwrap_or_else(|| "Error".into()).into());
    error.insert("message".into(), message.unwrap_or_else(|| "Function execution error".into()).into());
    if let Some(stack) = text("stack") {
        error.insert("stack".into(), stack.into());
    }
    for key in ["data", "cause", "code"] {
        if let Some(member) = value.get(key).filter(|member| !member.is_null()) {
            error.insert(key.into(), member.clone());
        }
    }
    Value::Object(error)
}

/// `Retry-After`: at most seven characters are seconds, else a date; within 1 s and 24 h.
fn delay(text: &str, now: chrono::DateTime<chrono::Utc>) -> Option<Duration> {
    let text = text.trim();
    let seconds = if text.len() <= 7 {
        text.parse::<f64>().ok()?
    } else {
        let at =
            chrono::DateTime::parse_from_rfc3339(text).or_else(|_| chrono::DateTime::parse_from_rfc2822(text)).ok()?;
        #[allow(clippy::cast_precision_loss)]
        {
            (at.with_timezone(&chrono::Utc) - now).num_milliseconds() as f64 / 1000.0
        }
    };
    Duration::try_from_secs_f64(seconds.clamp(1.0, 86_400.0)).ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let now = chrono::DateTime::from_timestamp(1_700_000_000, 900_000_000).unwrap();
        classify(Ok(Reply { status, headers: map, body: body.as_bytes().to_vec() }), &Keys::default(), now)
    }

    fn failure(answer: Answer) -> Failure {
        match answer {
            Answer::Failure(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    const SDK: (&str, &str) = ("x-inngest-sdk", "js:v4.24.0");

    #[test]
    fn the_header_decides_whether_an_error_is_final() {
        for (status, no_retry, retriable) in [(500, "false", true), (400, "true", false), (500, "true", false)] {
            let answer = reply(
                status,
                &[SDK, ("x-inngest-no-retry", no_retry)],
                r#"{"name":"E","message":"m","__serialized":true}"#,
            );
            let failure = failure(answer);
            assert_eq!((failure.is_retriable, &failure.error), (retriable, &json!({"name":"E","message":"m"})));
        }
        assert!(failure(reply(400, &[SDK], "{}")).is_retriable);
    }

    #[test]
    fn who_is_no_sdk_is_told_apart() {
        assert_eq!(failure(reply(200, &[], "ok")).text, "not_sdk");
        assert_eq!(
            failure(reply(502, &[], "<html>")).error["message"],
            "Your server returned HTTP 502 before the SDK responded."
        );
        assert_eq!(failure(reply(401, &[("x-inngest-sdk-handled", "true")], "{}")).text, "signing_key_mismatch");
    }

    #[test]
    fn results_and_streams() {
        assert!(
            matches!(reply(200, &[SDK], r#"{"n":9007199254740993}"#), Answer::Done(text) if text.contains("9007199254740993"))
        );
        assert!(matches!(reply(200, &[SDK], ""), Answer::Done(text) if text == "null"));
        let streamed = reply(201, &[SDK], "  \n {\"status\":200,\"headers\":{},\"body\":\"{\\\"a\\\":1}\"}");
        assert!(matches!(streamed, Answer::Done(text) if text == r#"{"a":1}"#));
        let error =
            reply(201, &[SDK], r#"{"status":500,"headers":{"X-Inngest-No-Retry":"true"},"body":{"message":"m"}}"#);
        assert!(!failure(error).is_retriable);
    }

    #[test]
    fn delays_are_exact_and_bounded() {
        let now = chrono::DateTime::from_timestamp(1_700_000_000, 900_000_000).unwrap();
        assert_eq!(delay("2", now), Some(Duration::from_secs(2)));
        assert_eq!(delay("0", now), Some(Duration::from_secs(1)));
        assert_eq!(delay("9999999", now), Some(Duration::from_secs(86_400)));
        assert_eq!(delay("2023-11-14T22:13:25.900Z", now), Some(Duration::from_secs(5)));
        assert_eq!(delay("soon-ish", now), None);
    }

    #[test]
    fn errors_are_stored_without_the_mark_of_their_transport() {
        let error = error_object(r#""{\"message\":\"inner\",\"cause\":{\"__serialized\":true}}""#);
        assert_eq!(error, json!({"name":"Error","message":"inner","cause":{"__serialized":true}}));
        assert_eq!(error_object("boom")["message"], "boom");
    }
}
