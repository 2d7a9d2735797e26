//! Signatures of webhook deliveries: what proves that a provider sent these bytes.
//!
//! The check runs over the raw body as received. Decoding is strict: a valid signature followed by anything else is
//! no signature. Every configured secret is tried, each in constant time, so that a rotation rejects nobody; the slot
//! that matched tells an operator when the previous secret is out of use.
//!
//! **Invariant:** [`Verified`] can only be made here, and only normalisers take it: unverified input has no way on.

use std::fmt;

use axum::http::HeaderMap;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// A request to a webhook as it arrived: nothing about it is known to be true.
#[derive(Clone)]
pub struct Delivery {
    /// The request's headers.
    pub headers: HeaderMap,
    /// The body, byte for byte.
    pub raw: Bytes,
}

impl Delivery {
    /// A header as text; `None` when it is absent or not visible ASCII.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Lower-case hex SHA-256 of the body.
    #[must_use]
    pub fn body_hash(&self) -> String {
        hex::encode(Sha256::digest(&self.raw))
    }
}

impl fmt::Debug for Delivery {
    /// Bodies and headers never reach logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Delivery({} bytes)", self.raw.len())
    }
}

/// What a signature has proved. Made by [`Scheme::verify`] alone.
#[derive(Debug, Clone)]
pub struct Verified<T> {
    inner: T,
    slot: Slot,
}

impl<T> Verified<T> {
    /// Which secret matched.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.slot
    }
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

/// Which generation of a secret matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The one in use.
    Current,
    /// The one before: the sender has not rotated yet.
    Previous,
}

impl Slot {
    /// As telemetry names it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
        }
    }
}

/// Why a delivery is not believed. For telemetry only: the sender gets one text for all causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// No signature.
    #[error("missing_header")]
    MissingHeader,
    /// More than one signature header: which one a proxy or we would look at is a guess.
    #[error("repeated_header")]
    RepeatedHeader,
    /// Not exactly the prefix and 64 hex digits.
    #[error("bad_encoding")]
    BadEncoding,
    /// Well formed, but no secret made it.
    #[error("mismatch")]
    Mismatch,
}

/// The secrets of one provider. Blank ones count as unset; otherwise nothing is trimmed.
#[derive(Clone, Default)]
pub struct Secrets {
    current: Vec<SecretString>,
    previous: Vec<SecretString>,
}

impl Secrets {
    /// The secrets in use, and those accepted until every sender has rotated.
    pub fn new(current: impl IntoIterator<Item = String>, previous: impl IntoIterator<Item = String>) -> Self {
        fn keep(secrets: impl IntoIterator<Item = String>) -> Vec<SecretString> {
            secrets.into_iter().filter(|secret| !secret.trim().is_empty()).map(SecretString::from).collect()
        }
        Self { current: keep(current), previous: keep(previous) }
    }

    /// True when a delivery can be verified at all.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        !self.current.is_empty() || !self.previous.is_empty()
    }

    fn slots(&self) -> impl Iterator<Item = (Slot, &SecretString)> {
        let current = self.current.iter().map(|secret| (Slot::Current, secret));
        current.chain(self.previous.iter().map(|secret| (Slot::Previous, secret)))
    }
}

impl fmt::Debug for Secrets {
    /// The first six hex digits of each secret's SHA-256, enough to compare two machines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prints = self.slots().map(|(slot, secret)| {
            let hash = hex::encode(Sha256::digest(secret.expose_secret().as_bytes()));
            format!("{}:{}", slot.label(), &hash[..6])
        });
        f.debug_list().entries(prints).finish()
    }
}

/// How a provider signs.
#[derive(Debug, Clone, Copy)]
pub struct Scheme {
    header: &'static str,
    prefix: &'static str,
}

impl Scheme {
    /// HMAC-SHA256 of the raw body: `prefix` and 64 hex digits in `header`.
    #[must_use]
    pub const fn hmac_sha256_hex(header: &'static str, prefix: &'static str) -> Self {
        Self { header, prefix }
    }

    /// Proves that a holder of one of `secrets` signed `delivery`. Pure.
    pub fn verify(&self, delivery: Delivery, secrets: &Secrets) -> Result<Verified<Delivery>, Refusal> {
        let slot = self.check(&delivery, secrets)?;
        Ok(Verified { inner: delivery, slot })
    }

    fn check(&self, delivery: &Delivery, secrets: &Secrets) -> Result<Slot, Refusal> {
        let mut headers = delivery.headers.get_all(self.header).iter();
        let header = headers.next().ok_or(Refusal::MissingHeader)?;
        if headers.next().is_some() {
            return Err(Refusal::RepeatedHeader);
        }
        let digits = header.as_bytes().strip_prefix(self.prefix.as_bytes()).ok_or(Refusal::BadEncoding)?;
        let mut claimed = [0u8; 32];
        hex::decode_to_slice(digits, &mut claimed).map_err(|_| Refusal::BadEncoding)?;
        let mut matched = None;
        // No early end: the time tells neither which secret matched nor how many there are before it.
        for (slot, secret) in secrets.slots() {
            let is_match = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
                .is_ok_and(|mac| mac.chain_update(&delivery.raw).verify_slice(&claimed).is_ok());
            if is_match && matched.is_none() {
                matched = Some(slot);
            }
        }
        matched.ok_or(Refusal::Mismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCHEME: Scheme = Scheme::hmac_sha256_hex("x-hub-signature-256", "sha256=");
    const SAMPLE: &str = "47f03935eb9228991045cdf5ee38e7847f4fed115a9ad884e5b43a1f4fa574eb";

    fn check(signatures: &[&str]) -> Result<Slot, Refusal> {
        let mut headers = HeaderMap::new();
        for signature in signatures {
            headers.append("x-hub-signature-256", signature.parse().unwrap());
        }
        let delivery = Delivery { headers, raw: Bytes::from_static(b"{\"ok\":true}") };
        let secrets = Secrets::new(["new".to_owned()], ["gh-test-secret-0001".to_owned()]);
        SCHEME.verify(delivery, &secrets).map(|verified| verified.slot())
    }

    #[test]
    fn either_case_and_either_slot_is_accepted() {
        assert_eq!(check(&[&format!("sha256={SAMPLE}")]), Ok(Slot::Previous));
        assert_eq!(check(&[&format!("sha256={}", SAMPLE.to_uppercase())]), Ok(Slot::Previous));
    }

    #[test]
    fn anything_but_exactly_one_well_formed_signature_is_refused_by_cause() {
        let signature = format!("sha256={SAMPLE}");
        assert_eq!(check(&[]), Err(Refusal::MissingHeader));
        assert_eq!(check(&[&signature, &signature]), Err(Refusal::RepeatedHeader));
        for bad in [SAMPLE, "sha256=", "sha256=zz", &format!("{signature}00"), &signature[..signature.len() - 1]] {
            assert_eq!(check(&[bad]), Err(Refusal::BadEncoding), "{bad}");
        }
        assert_eq!(check(&[&format!("sha256={}", "0".repeat(64))]), Err(Refusal::Mismatch));
    }

    #[test]
    fn blank_secrets_are_unset_and_secrets_are_not_printed() {
        assert!(!Secrets::new([" ".to_owned()], [String::new()]).is_configured());
        let printed = format!("{:?}", Secrets::new(["hunter2".to_owned()], []));
        assert_eq!(printed, r#"["current:f52fbd"]"#);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic_or_pass(text in "[ -~]{0,80}") {
            prop_assert!(check(&[&text]).is_err());
        }
    }
}
