//! The secrets that this process has read, as hashes: so that no text that leaves it tells one, wherever it came from.
//!
//! Whoever reads a secret says so with [`know`]; [`hide`] takes every one out of a text. A rolling hash over windows of
//! each known length finds candidates, SHA-256 confirms them (Rabin-Karp). Secrets that are taken away stay known.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};

/// Shorter ones are words that may mean anything.
pub const SHORTEST: usize = 8;
/// What stands in the place of one.
const HIDDEN: &str = "[redacted]";
const BASE: u64 = 0x0100_0000_01b3;

/// Of one length.
#[derive(Debug, Clone, Default)]
struct OfLength {
    rolling: HashSet<u64>,
    exact: HashSet<[u8; 32]>,
}

static KNOWN: LazyLock<ArcSwap<BTreeMap<usize, OfLength>>> = LazyLock::new(ArcSwap::default);

/// Remembers a secret: the text as a whole, and the parts of a list `one,name=two`.
pub fn know(text: &str) {
    let value = |part: &'_ str| part.split_once('=').map_or_else(|| part.to_owned(), |(_, value)| value.to_owned());
    let parts = text.split(',').map(value);
    let mut new: Vec<String> =
        std::iter::once(text.to_owned()).chain(parts).map(|part| part.trim().to_owned()).collect();
    new.retain(|part| part.len() >= SHORTEST);
    let is_known =
        |part: &String| KNOWN.load().get(&part.len()).is_some_and(|of| of.exact.contains(&exact(part.as_bytes())));
    if new.iter().all(is_known) {
        return;
    }
    KNOWN.rcu(|known| {
        let mut known: BTreeMap<usize, OfLength> = (**known).clone();
        for part in &new {
            let of = known.entry(part.len()).or_default();
            of.rolling.insert(rolling(part.as_bytes()));
            of.exact.insert(exact(part.as_bytes()));
        }
        Arc::new(known)
    });
}

/// The text without known secrets; `None` when it holds none.
#[must_use]
pub fn hide(text: &str) -> Option<String> {
    let known = KNOWN.load();
    let bytes = text.as_bytes();
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (length, of) in known.range(..=bytes.len()) {
        windows(bytes, *length, |at, hash| {
            if of.rolling.contains(&hash) && of.exact.contains(&exact(&bytes[at..at + length])) {
                found.push((at, at + length));
            }
        });
    }
    if found.is_empty() {
        return None;
    }
    found.sort_unstable();
    let (mut out, mut done) = (String::with_capacity(text.len()), 0);
    for (from, to) in found {
        if from >= done {
            // A secret is valid UTF-8, so a match begins and ends between characters.
            out.push_str(text.get(done..from).unwrap_or_default());
            out.push_str(HIDDEN);
        }
        done = done.max(to);
    }
    out.push_str(text.get(done..).unwrap_or_default());
    Some(out)
}

fn exact(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn rolling(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |hash: u64, byte| hash.wrapping_mul(BASE).wrapping_add(u64::from(*byte)))
}

/// Each window of `length` bytes: where it begins, and its hash.
fn windows(bytes: &[u8], length: usize, mut visit: impl FnMut(usize, u64)) {
    let highest = (1..length).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = rolling(&bytes[..length]);
    visit(0, hash);
    for at in 1..=bytes.len() - length {
        let left = u64::from(bytes[at - 1]).wrapping_mul(highest);
        hash = hash.wrapping_sub(left).wrapping_mul(BASE).wrapping_add(u64::from(bytes[at + length - 1]));
        visit(at, hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_secret_is_hidden_wherever_it_stands_and_nothing_else_is() {
        know("correct horse");
        know("x-key=battery staple,0123456789");
        know("ünïcödé-geheim");
        know("short");
        assert_eq!(hide("short words, and no secret: correct hors"), None);
        assert_eq!(hide("correct horse").as_deref(), Some("[redacted]"));
        let text = "é correct horse, battery staple and 0123456789; ünïcödé-geheim é";
        assert_eq!(hide(text).as_deref(), Some("é [redacted], [redacted] and [redacted]; [redacted] é"));
        // One within another, and one beside another.
        know("horse, carriage");
        assert_eq!(hide("correct horse, carriage").as_deref(), Some("[redacted]"));
        assert_eq!(hide("correct horsecorrect horse").as_deref(), Some("[redacted][redacted]"));
    }
}
