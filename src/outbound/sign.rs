//! `webhook-signature` of [Standard Webhooks](https://www.standardwebhooks.com): HMAC-SHA256 over
//! `<id>.<timestamp>.<body>`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// `v1,<base64>`; `None` when `secret` is not `whsec_` and base64.
#[must_use]
pub fn v1(secret: &str, id: &str, timestamp_s: i64, body: &[u8]) -> Option<String> {
    let key = BASE64.decode(secret.strip_prefix("whsec_")?).ok()?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(format!("{id}.{timestamp_s}.").as_bytes());
    mac.update(body);
    Some(format!("v1,{}", BASE64.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_example_is_met() {
        let secret = "whsec_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
        let signature = v1(secret, "msg_1", 1_790_000_000, br#"{"ok":true}"#);
        assert_eq!(signature.as_deref(), Some("v1,CW2FsSdr0VZPygxskwx4hVJAq1IW0IxQaOBkuQBmr2M="));
        assert_eq!(v1("plain", "msg_1", 0, b""), None);
    }
}
