//! Signatures of webhook deliveries: what proves that a provider sent these bytes.
//!
//! The check runs over the raw body as received. Decoding is strict: a valid signature followed by anything else is
//! no signature. Every configured secret is tried, each in constant time, so that a rotation rejects nobody; the slot
//! that matched tells an operator when the previous secret is out of use.
//!
//! **Invariant:** [`Verified`] can only be made here, and only normalisers take it: unverified input has no way on.
//! Each check compares decoded bytes of the right length by the MAC's own constant-time comparison.

use std::borrow::Cow;
use std::fmt;

use axum::http::HeaderMap;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::fields::compact;

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

/// What a signature has proved. Made by [`Scheme::verify`], and by [`Verified::kept`] for what it proved before.
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

impl Verified<Delivery> {
    /// A delivery that was verified when it arrived and has been kept since, to be looked at again.
    #[must_use]
    pub fn kept(delivery: Delivery, slot: Slot) -> Self {
        Self { inner: delivery, slot }
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
#[error("{}", self.label())]
pub enum Refusal {
    /// No signature.
    MissingHeader,
    /// More than one signature header: which one a proxy or we would look at is a guess.
    RepeatedHeader,
    /// Not exactly what the scheme writes.
    BadEncoding,
    /// Signed too long ago.
    StaleTimestamp,
    /// Signed in the future.
    FutureTimestamp,
    /// Well formed, but no secret made it.
    Mismatch,
}

impl Refusal {
    /// As metrics name it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::MissingHeader => "missing_header",
            Self::RepeatedHeader => "repeated_header",
            Self::BadEncoding => "bad_encoding",
            Self::StaleTimestamp => "stale_timestamp",
            Self::FutureTimestamp => "future_timestamp",
            Self::Mismatch => "mismatch",
        }
    }
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

/// The time against which signed times are checked.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Seconds since the epoch.
    pub now_s: i64,
    /// How far a signed time may be from it, both ways, inclusive.
    pub tolerance_s: i64,
}

/// What a MAC is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// 20 bytes.
    Sha1,
    /// 32 bytes.
    Sha256,
}

/// How a MAC is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Either case.
    Hex,
    /// The standard alphabet with padding.
    Base64,
}

/// A text that is a constant of a provider, or of a source from the configuration.
type Text = Cow<'static, str>;

/// What a MAC covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signed {
    /// The raw body.
    Body,
    /// The raw body, or its JSON without blanks: what signs it serialises anew, and what carries it may indent it.
    Compact,
    /// `<before><time><between><body>`, where the time is the text of a header, in seconds, or in milliseconds from
    /// 10^11 on.
    Timed {
        /// The header of the time.
        header: Text,
        /// What comes before it.
        before: Text,
        /// What stands between it and the body.
        between: Text,
    },
}

/// A MAC in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MacScheme {
    /// The header.
    pub header: Text,
    /// What stands before the MAC.
    pub prefix: Text,
    /// What it is made with.
    pub hash: Hash,
    /// How it is written.
    pub encoding: Encoding,
    /// What it covers.
    pub signed: Signed,
}

/// How a provider signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// A MAC in a header.
    Mac(MacScheme),
    /// `t=<seconds>,v1=<hex>[,v1=<hex>…]` of `<t>.<body>`, HMAC-SHA256.
    TimedList {
        /// The header.
        header: Text,
    },
    /// Ed25519 of `<time>|<body>`, base64; the secret is the public key, base64.
    Ed25519 {
        /// The header of the signature.
        header: Text,
        /// The header of the time.
        time: Text,
    },
    /// Standard Webhooks: `v1,<base64>` or `v1a,<base64>` of `<id>.<time>.<body>`.
    Standard,
}

impl Scheme {
    /// A MAC of the raw body in `header`.
    #[must_use]
    pub const fn of_body(header: &'static str, prefix: &'static str, hash: Hash, encoding: Encoding) -> Self {
        let (header, prefix) = (Cow::Borrowed(header), Cow::Borrowed(prefix));
        Self::Mac(MacScheme { header, prefix, hash, encoding, signed: Signed::Body })
    }

    /// The same of `<time><between><body>`, HMAC-SHA256.
    #[must_use]
    pub const fn timed(header: &'static str, encoding: Encoding, time: &'static str, between: &'static str) -> Self {
        let signed =
            Signed::Timed { header: Cow::Borrowed(time), before: Cow::Borrowed(""), between: Cow::Borrowed(between) };
        let (header, prefix) = (Cow::Borrowed(header), Cow::Borrowed(""));
        Self::Mac(MacScheme { header, prefix, hash: Hash::Sha256, encoding, signed })
    }

    /// Proves that a holder of one of `secrets` signed `delivery`, at a time that is near the clock's where the scheme
    /// has one. Pure.
    pub fn verify(&self, delivery: Delivery, secrets: &Secrets, clock: Clock) -> Result<Verified<Delivery>, Refusal> {
        let slot = self.check(&delivery, secrets, clock)?;
        Ok(Verified { inner: delivery, slot })
    }

    /// Whether any of the secrets can be one of this scheme.
    #[must_use]
    pub fn is_usable(&self, secrets: &Secrets) -> bool {
        secrets.slots().any(|(_, secret)| match self {
            Self::Mac(_) | Self::TimedList { .. } => true,
            Self::Ed25519 { .. } => ed25519_key(secret).is_some(),
            Self::Standard => symmetric_key(secret).is_some() || public_key(secret).is_some(),
        })
    }

    /// The headers with which the provider would send `body` now: for samples and tests. `None` where the secret can
    /// only verify, or can't be used.
    #[must_use]
    pub fn sign(&self, body: &[u8], secrets: &Secrets, now_s: i64, id: &str) -> Option<Vec<(String, String)>> {
        let secret = secrets.slots().map(|(_, secret)| secret).next()?;
        let key = secret.expose_secret().as_bytes();
        let time = now_s.to_string();
        match self {
            Self::Mac(mac) => {
                let mut headers = Vec::new();
                let signed = match &mac.signed {
                    Signed::Body => body.to_vec(),
                    Signed::Compact => compact(std::str::from_utf8(body).ok()?)?.into_bytes(),
                    Signed::Timed { header, before, between } => {
                        headers.push((header.to_string(), time.clone()));
                        [before.as_bytes(), time.as_bytes(), between.as_bytes(), body].concat()
                    }
                };
                let made = mac_of(mac.hash, key, &signed)?;
                let made = match mac.encoding {
                    Encoding::Hex => hex::encode(made),
                    Encoding::Base64 => to_base64(&made),
                };
                headers.push((mac.header.to_string(), format!("{}{made}", mac.prefix)));
                Some(headers)
            }
            Self::TimedList { header } => {
                let made = mac_of(Hash::Sha256, key, &[time.as_bytes(), b".", body].concat())?;
                Some(vec![(header.to_string(), format!("t={time},v1={}", hex::encode(made)))])
            }
            Self::Ed25519 { .. } => None,
            Self::Standard => {
                let key = secrets.slots().find_map(|(_, secret)| symmetric_key(secret))?;
                let made = mac_of(Hash::Sha256, &key, &[id.as_bytes(), b".", time.as_bytes(), b".", body].concat())?;
                Some(vec![
                    ("webhook-id".to_owned(), id.to_owned()),
                    ("webhook-timestamp".to_owned(), time),
                    ("webhook-signature".to_owned(), format!("v1,{}", to_base64(&made))),
                ])
            }
        }
    }

    fn check(&self, delivery: &Delivery, secrets: &Secrets, clock: Clock) -> Result<Slot, Refusal> {
        match self {
            Self::Mac(mac) => mac.check(delivery, secrets, clock),
            Self::TimedList { header } => timed_list(delivery, header, secrets, clock),
            Self::Ed25519 { header, time } => {
                let signature = base64(single(delivery, header)?, 64)?;
                let time = text_of(single(delivery, time)?)?;
                clock.check(seconds(time)?)?;
                let signed = [time.as_bytes(), b"|", &delivery.raw].concat();
                secrets.find(|secret| ed25519_key(secret).is_some_and(|key| is_ed25519(&key, &signed, &signature)))
            }
            Self::Standard => standard(delivery, secrets, clock),
        }
    }
}

impl MacScheme {
    fn check(&self, delivery: &Delivery, secrets: &Secrets, clock: Clock) -> Result<Slot, Refusal> {
        let raw: &[u8] = &delivery.raw;
        let header = single(delivery, &self.header)?;
        let text = header.strip_prefix(self.prefix.as_bytes()).ok_or(Refusal::BadEncoding)?;
        let claimed = decode(text, self.encoding, self.hash)?;
        let fits = |parts: &[&[u8]]| {
            secrets.find(|secret| is_mac(self.hash, secret.expose_secret().as_bytes(), parts, &claimed))
        };
        match &self.signed {
            Signed::Body => fits(&[raw]),
            Signed::Compact => {
                let text = std::str::from_utf8(raw).map_err(|_| Refusal::BadEncoding)?;
                let compact = compact(text).ok_or(Refusal::BadEncoding)?;
                fits(&[raw]).or_else(|_| fits(&[compact.as_bytes()]))
            }
            Signed::Timed { header, before, between } => {
                let time = text_of(single(delivery, header)?)?;
                let at = seconds(time)?;
                clock.check(if at >= MS_FROM { at / 1000 } else { at })?;
                fits(&[before.as_bytes(), time.as_bytes(), between.as_bytes(), raw])
            }
        }
    }
}

/// A time of at least this many seconds is one of milliseconds.
const MS_FROM: i64 = 100_000_000_000;

fn timed_list(delivery: &Delivery, header: &str, secrets: &Secrets, clock: Clock) -> Result<Slot, Refusal> {
    let text = text_of(single(delivery, header)?)?;
    let (mut time, mut claimed) = (None, Vec::new());
    for item in text.split(',').map(str::trim) {
        match item.split_once('=') {
            Some(("t", value)) if time.is_none() => time = Some(value),
            Some(("t", _)) => return Err(Refusal::BadEncoding),
            // A malformed one beside a good one takes nothing from the good one.
            Some(("v1", value)) => claimed.extend(decode(value.as_bytes(), Encoding::Hex, Hash::Sha256)),
            _ => {}
        }
    }
    let time = time.filter(|_| !claimed.is_empty()).ok_or(Refusal::BadEncoding)?;
    clock.check(seconds(time)?)?;
    let parts = [time.as_bytes(), b".", &delivery.raw];
    secrets.find(|secret| {
        let secret = secret.expose_secret().as_bytes();
        claimed.iter().fold(false, |found, claimed| is_mac(Hash::Sha256, secret, &parts, claimed) | found)
    })
}

/// The headers of Standard Webhooks: `webhook-…`, or `svix-…` where there are none of these; never some of each.
#[must_use]
pub fn standard_family(headers: &HeaderMap) -> &'static str {
    let is_own =
        ["webhook-id", "webhook-timestamp", "webhook-signature"].iter().any(|name| headers.contains_key(*name));
    if is_own { "webhook" } else { "svix" }
}

fn standard(delivery: &Delivery, secrets: &Secrets, clock: Clock) -> Result<Slot, Refusal> {
    let family = standard_family(&delivery.headers);
    let part = |name: &str| text_of(single(delivery, &format!("{family}-{name}"))?);
    let (id, time, signatures) = (part("id")?, part("timestamp")?, part("signature")?);
    if id.is_empty() {
        return Err(Refusal::BadEncoding);
    }
    clock.check(seconds(time)?)?;
    let signed = [id.as_bytes(), b".", time.as_bytes(), b".", &delivery.raw].concat();
    let of = |version: &str, length: usize| -> Vec<Vec<u8>> {
        // Signatures of versions that are not known, and malformed ones beside a good one, are passed over.
        let listed = signatures.split(' ').filter_map(|item| item.split_once(','));
        let of_version = listed.filter(|(found, _)| *found == version);
        of_version.filter_map(|(_, text)| base64(text.as_bytes(), length).ok()).collect()
    };
    let (macs, keys) = (of("v1", 32), of("v1a", 64));
    if macs.is_empty() && keys.is_empty() {
        return Err(Refusal::BadEncoding);
    }
    secrets.find(|secret| {
        let by_mac = symmetric_key(secret).is_some_and(|key| {
            macs.iter().fold(false, |found, claimed| is_mac(Hash::Sha256, &key, &[&signed], claimed) | found)
        });
        let by_key =
            public_key(secret).is_some_and(|key| keys.iter().any(|signature| is_ed25519(&key, &signed, signature)));
        by_mac || by_key
    })
}

impl Secrets {
    /// The slot of a secret that fits. No early end: the time tells neither which secret matched nor how many there are
    /// before it.
    fn find(&self, fits: impl Fn(&SecretString) -> bool) -> Result<Slot, Refusal> {
        let mut matched = None;
        for (slot, secret) in self.slots() {
            if fits(secret) && matched.is_none() {
                matched = Some(slot);
            }
        }
        matched.ok_or(Refusal::Mismatch)
    }

    /// A MAC of `text` with the secret in use, for handshakes. `None` without one.
    #[must_use]
    pub fn sign_sha256(&self, text: &[u8]) -> Option<Vec<u8>> {
        let (_, secret) = self.slots().next()?;
        mac_of(Hash::Sha256, secret.expose_secret().as_bytes(), text)
    }
}

/// The one header of this name.
fn single<'d>(delivery: &'d Delivery, name: &str) -> Result<&'d [u8], Refusal> {
    let mut headers = delivery.headers.get_all(name).iter();
    let header = headers.next().ok_or(Refusal::MissingHeader)?;
    match headers.next() {
        None => Ok(header.as_bytes()),
        Some(_) => Err(Refusal::RepeatedHeader),
    }
}

fn text_of(bytes: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes).map_err(|_| Refusal::BadEncoding)
}

/// A signed time, whose text is signed as it is: decimal digits, 1 to 16 of them.
fn seconds(time: &str) -> Result<i64, Refusal> {
    if time.is_empty() || time.len() > 16 || !time.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Refusal::BadEncoding);
    }
    time.parse().map_err(|_| Refusal::BadEncoding)
}

impl Clock {
    fn check(self, at_s: i64) -> Result<(), Refusal> {
        match self.now_s.saturating_sub(at_s) {
            age if age > self.tolerance_s => Err(Refusal::StaleTimestamp),
            age if age < -self.tolerance_s => Err(Refusal::FutureTimestamp),
            _ => Ok(()),
        }
    }
}

fn decode(text: &[u8], encoding: Encoding, hash: Hash) -> Result<Vec<u8>, Refusal> {
    let length = if hash == Hash::Sha1 { 20 } else { 32 };
    match encoding {
        Encoding::Base64 => base64(text, length),
        Encoding::Hex => {
            let mut claimed = vec![0u8; length];
            hex::decode_to_slice(text, &mut claimed).map_err(|_| Refusal::BadEncoding)?;
            Ok(claimed)
        }
    }
}

fn base64(text: &[u8], length: usize) -> Result<Vec<u8>, Refusal> {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| Refusal::BadEncoding)?;
    if decoded.len() == length { Ok(decoded) } else { Err(Refusal::BadEncoding) }
}

/// The standard alphabet with padding.
#[must_use]
pub fn to_base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn is_mac(hash: Hash, secret: &[u8], parts: &[&[u8]], claimed: &[u8]) -> bool {
    fn check<M: Mac + KeyInit>(secret: &[u8], parts: &[&[u8]], claimed: &[u8]) -> bool {
        let Ok(mut mac) = <M as KeyInit>::new_from_slice(secret) else { return false };
        parts.iter().for_each(|part| mac.update(part));
        mac.verify_slice(claimed).is_ok()
    }
    match hash {
        Hash::Sha1 => check::<Hmac<Sha1>>(secret, parts, claimed),
        Hash::Sha256 => check::<Hmac<Sha256>>(secret, parts, claimed),
    }
}

fn mac_of(hash: Hash, secret: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    match hash {
        Hash::Sha1 => {
            Some(Hmac::<Sha1>::new_from_slice(secret).ok()?.chain_update(text).finalize().into_bytes().to_vec())
        }
        Hash::Sha256 => {
            Some(Hmac::<Sha256>::new_from_slice(secret).ok()?.chain_update(text).finalize().into_bytes().to_vec())
        }
    }
}

fn is_ed25519(key: &[u8], signed: &[u8], signature: &[u8]) -> bool {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    UnparsedPublicKey::new(&ED25519, key).verify(signed, signature).is_ok()
}

fn ed25519_key(secret: &SecretString) -> Option<Vec<u8>> {
    base64(secret.expose_secret().trim().as_bytes(), 32).ok()
}

/// `whsec_<base64>` or the base64 alone: 24 to 64 bytes.
fn symmetric_key(secret: &SecretString) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let text = secret.expose_secret();
    let text = text.strip_prefix("whsec_").unwrap_or(text);
    let key = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    (24..=64).contains(&key.len()).then_some(key)
}

/// `whpk_<base64>`: an Ed25519 public key.
fn public_key(secret: &SecretString) -> Option<Vec<u8>> {
    base64(secret.expose_secret().strip_prefix("whpk_")?.as_bytes(), 32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLOCK: Clock = Clock { now_s: 1_790_000_000, tolerance_s: 300 };
    const SAMPLE: &str = "47f03935eb9228991045cdf5ee38e7847f4fed115a9ad884e5b43a1f4fa574eb";

    fn check(signatures: &[&str]) -> Result<Slot, Refusal> {
        let mut headers = HeaderMap::new();
        for signature in signatures {
            headers.append("x-hub-signature-256", signature.parse().unwrap());
        }
        let delivery = Delivery { headers, raw: Bytes::from_static(b"{\"ok\":true}") };
        let secrets = Secrets::new(["new".to_owned()], ["gh-test-secret-0001".to_owned()]);
        let scheme = Scheme::of_body("x-hub-signature-256", "sha256=", Hash::Sha256, Encoding::Hex);
        scheme.verify(delivery, &secrets, CLOCK).map(|verified| verified.slot())
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
