//! Reading minute hashes back into samples.

use std::collections::{BTreeMap, HashMap};

use super::Sample;
use crate::streams::bus::Bus;
use crate::streams::minutes::Fields;
use crate::streams::redis::Error;

/// Samples of one kind by series.
pub type BySeries = BTreeMap<String, Sample>;

/// Adds the fields of one hash. A blob that can't be read is left out and counted.
pub fn merge_fields(fields: &Fields, into: &mut BySeries) -> u64 {
    let exact: HashMap<&str, &[u8]> =
        fields.iter().filter_map(|(name, value)| Some((name.strip_prefix('=')?, value.as_slice()))).collect();
    let mut broken = 0;
    for (name, blob) in fields.iter().filter(|(name, _)| !name.starts_with('=')) {
        let numbers = exact.get(name.as_str()).and_then(|text| std::str::from_utf8(text).ok());
        let series = name.rsplit_once('|').map_or(name.as_str(), |(series, _)| series);
        match Sample::decode(blob, numbers) {
            Ok(sample) => into.entry(series.to_owned()).or_default().merge(&sample),
            Err(_) => broken += 1,
        }
    }
    broken
}

/// All samples of `kind` in the whole minutes `from..=to`, all writers together.
pub async fn minutes(bus: &Bus, kind: &str, from: u64, to: u64) -> Result<BySeries, Error> {
    let keys: Vec<String> = (from..=to).map(|minute| bus.keys.latency(kind, minute)).collect();
    let mut all = BySeries::new();
    for fields in bus.read_minutes(&keys).await? {
        merge_fields(&fields, &mut all);
    }
    Ok(all)
}
