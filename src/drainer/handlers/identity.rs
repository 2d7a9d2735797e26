//! How a dispatch is named towards its target, so that the target can recognise a repetition.

use sha2::{Digest as _, Sha256};

/// `queue-dispatch-` and the event id, with every character outside `[A-Za-z0-9_-]` replaced by `-`; `queue-dispatch`
/// for an empty id. The same for every attempt and redrive. Not injective: `a:b` and `a/b` share one key.
#[must_use]
pub fn idempotency_key(event_id: &str) -> String {
    if event_id.is_empty() {
        return "queue-dispatch".into();
    }
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '-' };
    format!("queue-dispatch-{}", event_id.chars().map(keep).collect::<String>())
}

/// The collision-free name: the first 32 hex digits of SHA-256 over `<event id> NUL <kind> <target> NUL <redrives>`.
/// The same for every attempt; another one after a redrive.
#[must_use]
pub fn dispatch_id(event_id: &str, handler: &str, redrives: u32) -> String {
    let digest = Sha256::digest(format!("{event_id}\0{handler}\0{redrives}"));
    hex::encode(&digest[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sanitised_and_dispatch_ids_tell_apart_what_keys_do_not() {
        assert_eq!(idempotency_key("evt:abc/123"), "queue-dispatch-evt-abc-123");
        assert_eq!(idempotency_key(""), "queue-dispatch");
        assert_eq!(idempotency_key("a:b"), idempotency_key("a/b"));
        assert_ne!(dispatch_id("a:b", "http x", 0), dispatch_id("a/b", "http x", 0));
        assert_ne!(dispatch_id("a", "http x", 0), dispatch_id("a", "http x", 1));
        assert_ne!(dispatch_id("a", "http x", 0), dispatch_id("a", "http y", 0));
        assert_eq!(dispatch_id("a", "http x", 0).len(), 32);
    }
}
