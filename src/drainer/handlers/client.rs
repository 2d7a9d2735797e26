//! The HTTP client that all handlers share: no redirects, no proxy from the environment, pooled connections.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::Client;

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

/// A URL as people may see it: without user, password and query.
pub(super) fn shown(url: &reqwest::Url) -> String {
    let mut shown = url.clone();
    // Both fail only for URLs that can't have user or password in the first place.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    shown.to_string()
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
