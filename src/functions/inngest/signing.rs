//! Signing keys: what SDKs send as bearer, and signatures in both directions.
//!
//! `X-Inngest-Signature: t=<unix seconds>&s=<hex>`, `s` = HMAC-SHA256(key without its prefix, as UTF-8; body ‖ decimal
//! `t`). A bearer is the key itself or its hash: prefix + hex(SHA-256(hex-decoded rest)).

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How far a signature's time may be off, s.
pub const SKEW_S: i64 = 300;

/// The keys in force: none is dev mode.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    current: Option<SecretString>,
    fallback: Option<SecretString>,
}

/// The text is no signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signing key is `signkey-<env>-` and an even number of hex digits, or the hex digits alone")]
pub struct InvalidKey;

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not `t=…&s=…`.
    #[error("the signature is not of the form t=<unix seconds>&s=<hex>")]
    Malformed,
    /// Too old or from the future.
    #[error("the signature's time is {0} s away from this machine's clock; at most {SKEW_S} s are allowed")]
    Skew(i64),
    /// Made with another key, or over another body.
    #[error("the signature does not match: another signing key is in use")]
    Mismatch,
}

impl Keys {
    /// Keys from the configuration.
    pub fn new(current: Option<SecretString>, fallback: Option<SecretString>) -> Result<Self, InvalidKey> {
        for key in [&current, &fallback].into_iter().flatten() {
            let rest = bare(key.expose_secret());
            if rest.is_empty() || hex::decode(rest).is_err() {
                return Err(InvalidKey);
            }
        }
        Ok(Self { current, fallback })
    }

    /// Requests have to prove who they are.
    #[must_use]
    pub const fn is_keyed(&self) -> bool {
        self.current.is_some()
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        [&self.current, &self.fallback].into_iter().flatten().map(ExposeSecret::expose_secret)
    }

    /// The header for a body at a time in unix seconds; `None` in dev mode.
    #[must_use]
    pub fn sign(&self, body: &[u8], at_s: i64) -> Option<String> {
        let key = self.current.as_ref()?;
        Some(format!("t={at_s}&s={}", hex::encode(mac(key.expose_secret(), body, at_s)?)))
    }

    /// Checks a header over a body.
    pub fn verify(&self, header: &str, body: &[u8], now_s: i64) -> Result<(), Refused> {
        let part = |name: &str| header.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let (Some(at), Some(signature)) = (part("t"), part("s")) else { return Err(Refused::Malformed) };
        let at: i64 = at.parse().map_err(|_| Refused::Malformed)?;
        let given = hex::decode(signature).map_err(|_| Refused::Malformed)?;
        let off = now_s.saturating_sub(at).abs();
        if off > SKEW_S {
            return Err(Refused::Skew(off));
        }
        let matches = |key| mac(key, body, at).is_some_and(|expected| bool::from(expected.ct_eq(&given)));
        // Every key is tried: the time tells nothing about which one it was.
        let is_known = self.all().fold(false, |known, key| matches(key) | known);
        if is_known { Ok(()) } else { Err(Refused::Mismatch) }
    }

    /// Whether an `Authorization` header names a key, plain or hashed. Dev mode accepts anything.
    #[must_use]
    pub fn accepts(&self, authorization: Option<&str>) -> bool {
        if !self.is_keyed() {
            return true;
        }
        let token = authorization.and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default().trim();
        let given = Sha256::digest(bare(token).as_bytes());
        let is_same = |text: &str| bool::from(Sha256::digest(text.as_bytes()).as_slice().ct_eq(given.as_slice()));
        self.all()
            .fold(false, |known, key| is_same(bare(key)) | hashed(key).is_some_and(|hash| is_same(bare(&hash))) | known)
    }
}

/// Without `signkey-<env>-`.
fn bare(key: &str) -> &str {
    let rest = key.strip_prefix("signkey-").and_then(|rest| {
        let (env, rest) = rest.split_once('-')?;
        (!env.is_empty() && env.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(rest)
    });
    rest.unwrap_or(key)
}

/// The hash that SDKs send as bearer.
fn hashed(key: &str) -> Option<String> {
    let rest = bare(key);
    let prefix = &key[..key.len() - rest.len()];
    Some(format!("{prefix}{}", hex::encode(Sha256::digest(hex::decode(rest).ok()?))))
}

fn mac(key: &str, body: &[u8], at_s: i64) -> Option<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(bare(key).as_bytes()).ok()?;
    mac.update(body);
    mac.update(at_s.to_string().as_bytes());
    Some(mac.finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "signkey-prod-0123456789abcdef0123456789abcdef";
    const HASHED: &str = "signkey-prod-223e0a160af9da0a03e6dd2c4719c56f5d66a633cbe84e78aaa9f3735865522a";

    fn keys(current: &str, fallback: Option<&str>) -> Keys {
        Keys::new(Some(current.to_owned().into()), fallback.map(|key| key.to_owned().into())).unwrap()
    }

    #[test]
    fn the_vectors_of_the_protocol_hold() {
        assert_eq!(hashed(PLAIN).as_deref(), Some(HASHED));
        let header = keys("0123456789abcdef0123456789abcdef", None).sign(br#"{"a":1}"#, 1_700_000_000).unwrap();
        assert_eq!(header, "t=1700000000&s=a323a0a397d4387ac4e226038b860da3ba4e91659a98d3ab0b810aba2a6e316b");
    }

    #[test]
    fn a_bearer_is_the_key_or_its_hash_whatever_its_prefix() {
        let keys = keys(PLAIN, Some("signkey-prod-00ff"));
        for good in [PLAIN, HASHED, "signkey-test-0123456789abcdef0123456789abcdef", "00ff"] {
            assert!(keys.accepts(Some(&format!("Bearer {good}"))), "{good}");
        }
        for bad in [None, Some("Bearer "), Some("Bearer undefined"), Some(PLAIN)] {
            assert!(!keys.accepts(bad));
        }
        assert!(Keys::default().accepts(Some("Bearer undefined")));
    }

    #[test]
    fn a_signature_counts_for_its_body_and_its_time() {
        let keys = keys("00ff", Some("11aa"));
        let old = Keys::new(Some("11aa".to_owned().into()), None).unwrap();
        let header = old.sign(b"body", 1_000).unwrap();
        assert_eq!(keys.verify(&header, b"body", 1_000 + SKEW_S), Ok(()));
        assert_eq!(keys.verify(&header, b"body", 1_001 + SKEW_S), Err(Refused::Skew(SKEW_S + 1)));
        assert_eq!(keys.verify(&header, b"other", 1_000), Err(Refused::Mismatch));
        assert_eq!(keys.verify("s=1", b"body", 1_000), Err(Refused::Malformed));
    }

    #[test]
    fn odd_keys_are_refused_and_never_shown() {
        for bad in ["", "xyz", "signkey-prod-", "abc"] {
            assert!(Keys::new(Some(bad.to_owned().into()), None).is_err(), "{bad}");
        }
        assert!(!format!("{:?}", keys("00ff", None)).contains("00ff"));
    }
}
