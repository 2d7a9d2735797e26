//! Files of the spool, read back as far as they are whole.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize as _;
use ulid::Ulid;

use super::{Held, Spooled, State};
use crate::streams::json::JsonObject;

/// The deliveries of a file, and whether it held nothing else.
pub(super) fn decode(bytes: &[u8]) -> (Vec<Spooled>, bool) {
    let mut decoder = rmp_serde::Deserializer::new(io::Cursor::new(bytes));
    let mut deliveries = Vec::new();
    while decoder.position() < bytes.len() as u64 {
        let Ok(delivery) = Spooled::deserialize(&mut decoder) else { return (deliveries, false) };
        if delivery.events.iter().any(|event| JsonObject::parse(event.data.as_str()).is_err()) {
            return (deliveries, false);
        }
        deliveries.push(delivery);
    }
    (deliveries, true)
}

/// What a former process has left.
pub(super) fn found(dir: &Path) -> io::Result<State> {
    let mut state = State::default();
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| Ulid::from_string(stem.to_str()?).ok());
        match (name, path.extension().and_then(|end| end.to_str())) {
            (Some(_), Some("tmp")) => fs::remove_file(&path)?,
            (Some(name), Some("mpk")) => {
                let bytes = fs::read(&path)?;
                files.push(Held { name, bytes: bytes.len() as u64, deliveries: decode(&bytes).0.len().max(1) });
            }
            _ => {}
        }
    }
    files.sort_by_key(|held| held.name);
    state.last = files.last().map(|held| held.name);
    state.bytes = files.iter().map(|held| held.bytes).sum();
    state.deliveries = files.iter().map(|held| held.deliveries).sum();
    state.files = files.into();
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::super::tests::delivery;
    use super::*;

    #[test]
    fn a_torn_file_gives_what_is_whole() {
        let mut bytes = rmp_serde::to_vec_named(&delivery(1)).unwrap();
        bytes.extend(rmp_serde::to_vec_named(&delivery(2)).unwrap());
        assert_eq!(decode(&bytes), (vec![delivery(1), delivery(2)], true));
        bytes.pop();
        assert_eq!(decode(&bytes), (vec![delivery(1)], false));
        assert_eq!(decode(b"\xc1"), (vec![], false));
        assert_eq!(decode(b""), (vec![], true));
    }
}
