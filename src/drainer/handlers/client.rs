//! The HTTP client that all handlers share: no redirects, no proxy from the environment, pooled connections.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Client, Url};

/// The process's client.
pub(super) fn shared() -> Result<Client, String> {
    static CLIENT: OnceLock<Result<Client, String>> = OnceLock::new();
    let build = || {
        Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .user_agent(concat!("system-bus/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("no HTTP client: {error}"))
    };
    CLIENT.get_or_init(build).clone()
}

/// A URL that can be posted to; the error doesn't repeat the text, which may hold credentials.
pub(super) fn usable(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    if is_http { Ok(url) } else { Err("must begin with http:// or https://".into()) }
}

/// The text with everything but unreserved characters (RFC 3986) as `%XX`: fits a path segment and a header.
pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
