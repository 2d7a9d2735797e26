//! ULIDs by which the event API knows events.
//!
//! SDK clients are answered ULIDs, whatever the id in the envelope is: one that the sender supplied is an idempotency key
//! and stays what functions see.

use sha2::{Digest, Sha256};
use ulid::Ulid;
use uuid::Uuid;

use super::entry_id::EntryId;
use super::envelope::Envelope;

/// Key in an envelope's `meta` that holds the ULID of an event whose id its sender supplied.
pub const META_ULID: &str = "ulid";

/// A new ULID of now.
#[must_use]
pub fn fresh() -> String {
    let ms = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or_default();
    Ulid::from_parts(ms, rand::random::<u128>()).to_string()
}

/// Reads a ULID; lower case is accepted.
#[must_use]
pub fn parse(text: &str) -> Option<Ulid> {
    (text.len() == 26).then(|| Ulid::from_string(text).ok()).flatten()
}

/// The ULID by which the event API answers for an event: its own id where that is one, the one that was answered when
/// its sender supplied another id, else one that follows from the id and from where the event is.
#[must_use]
pub fn public_id(envelope: &Envelope, entry: EntryId) -> String {
    if let Some(id) = parse(&envelope.id) {
        return id.to_string();
    }
    if let Some(id) = envelope.meta.as_ref().and_then(|meta| {
        let meta = meta.to_value();
        meta.get(META_ULID)?.as_str().and_then(parse)
    }) {
        return id.to_string();
    }
    match Uuid::try_parse(&envelope.id) {
        Ok(uuid) if uuid.get_version_num() == 7 => Ulid(uuid.as_u128()).to_string(),
        _ => derived(entry.ms, &[envelope.name.as_str(), &envelope.id]),
    }
}

/// The `n`-th id (from 1) of a seeded request, `x-inngest-event-id-seed: <ms>,<base64 of 10 bytes>`: the seed's last four
/// bytes, big-endian, rise by `n`. `None` for a malformed seed, which is ignored.
#[must_use]
pub fn seeded(seed: &str, n: u32) -> Option<Ulid> {
    use base64::Engine as _;
    let (ms, entropy) = seed.split_once(',')?;
    let ms: u64 = ms.trim().parse().ok()?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(entropy.trim()).ok()?;
    let mut bytes: [u8; 10] = bytes.try_into().ok()?;
    let mut low = [0; 4];
    low.copy_from_slice(&bytes[6..]);
    bytes[6..].copy_from_slice(&u32::from_be_bytes(low).wrapping_add(n).to_be_bytes());
    let mut random = [0; 16];
    random[6..].copy_from_slice(&bytes);
    (ms < 1 << 48).then(|| Ulid::from_parts(ms, u128::from_be_bytes(random)))
}

/// A ULID of `ms` whose random part is the hash of `parts`.
#[must_use]
pub fn derived(ms: u64, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let mut random = [0; 16];
    random[6..].copy_from_slice(&hash.finalize()[..10]);
    Ulid::from_parts(ms, u128::from_be_bytes(random)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_yields_ids_that_follow_each_other() {
        let seed = "1795469392061,AAECAwQFBgcICQ==";
        let first = seeded(seed, 1).unwrap();
        assert_eq!(first.timestamp_ms(), 1_795_469_392_061);
        assert_eq!(seeded(seed, 2).unwrap().0, first.0 + 1);
        assert_eq!(first.0 & 0xffff_ffff, 0x0607_080a);
        assert!(seeded("x,AAECAwQFBgcICQ==", 1).is_none());
        assert!(seeded("1,AAEC", 1).is_none());
    }
}
