//! A histogram with exact count, sum, min and max beside it; and how both are stored.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::Serialize;

/// The largest value, µs: 24 h.
const MAX_US: u64 = 86_400_000_000;
const DIGITS: u8 = 3;

/// Why a stored histogram can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored histogram can't be decoded")]
pub struct Broken;

/// Durations of one series.
#[derive(Debug, Clone)]
pub struct Sample {
    histogram: Histogram<u32>,
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self { histogram: layout(), count: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

/// The one layout. A grown histogram would have another header, and so other bytes for the same values.
fn layout() -> Histogram<u32> {
    #[allow(clippy::expect_used)]
    Histogram::new_with_bounds(1, MAX_US, DIGITS).expect("the bounds are constants that are allowed")
}

/// What is told of a sample, in ms.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Summary {
    pub count: u64,
    pub average: Option<f64>,
    pub min: Option<f64>,
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
    #[serde(rename = "p99_9")]
    pub p999: Option<f64>,
    pub max: Option<f64>,
    /// Too few values for the upper percentiles to mean much: below 20 for p95, below 100 for p99.
    #[serde(rename = "lowConfidence")]
    pub low_confidence: bool,
}

impl Sample {
    /// Adds one duration.
    pub fn record(&mut self, us: u64) {
        let us = us.min(MAX_US);
        self.histogram.saturating_record(us);
        self.count += 1;
        self.sum = self.sum.saturating_add(us);
        self.min = self.min.min(us);
        self.max = self.max.max(us);
    }

    /// Adds all of another sample.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        // One layout: adding can't fail.
        let _ = self.histogram.add(&other.histogram);
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many durations.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Sum, µs.
    #[must_use]
    pub const fn sum_us(&self) -> u64 {
        self.sum
    }

    /// The value at the nearest rank `⌈n·q⌉`, µs; `q` in thousandths. `None` when there is none.
    #[must_use]
    pub fn quantile_us(&self, thousandths: u64) -> Option<u64> {
        // By whole numbers: 0.95 × 100,000 must be rank 95,000 and not the one after it.
        let rank = (self.count * thousandths).div_ceil(1000).max(1);
        let mut seen = 0;
        for step in self.histogram.iter_recorded() {
            seen += step.count_since_last_iteration();
            if seen >= rank {
                let value = self.histogram.median_equivalent(step.value_iterated_to());
                return Some(value.clamp(self.min, self.max));
            }
        }
        None
    }

    /// Every value, µs, and how often it occurred, as far as the buckets tell them apart.
    pub fn each(&self, mut told: impl FnMut(u64, u64)) {
        for step in self.histogram.iter_recorded() {
            told(step.value_iterated_to().min(self.max), step.count_since_last_iteration());
        }
    }

    /// What is told of it.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let ms = |us: u64| {
            #[allow(clippy::cast_precision_loss)]
            let ms = us as f64 / 1000.0;
            ms
        };
        let quantile = |q| self.quantile_us(q).map(ms);
        let of = |value: u64| (self.count > 0).then(|| ms(value));
        #[allow(clippy::cast_precision_loss)]
        let average = (self.count > 0).then(|| (self.sum as f64 / self.count as f64).round() / 1000.0);
        Summary {
            count: self.count,
            average,
            min: of(self.min),
            p50: quantile(500),
            p90: quantile(900),
            p95: quantile(950),
            p99: quantile(990),
            p999: quantile(999),
            max: of(self.max),
            low_confidence: self.count < 100,
        }
    }

    /// The histogram's V2 blob, deflated. The same values give the same bytes.
    #[must_use]
    pub fn blob(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing to memory can't fail for a layout of this size.
        let _ = V2DeflateSerializer::new().serialize(&self.histogram, &mut bytes);
        bytes
    }

    /// Count, sum, min and max.
    #[must_use]
    pub fn exact(&self) -> String {
        format!("{},{},{},{}", self.count, self.sum, self.min, self.max)
    }

    /// Reads [`Sample::blob`] and [`Sample::exact`].
    pub fn decode(blob: &[u8], exact: Option<&str>) -> Result<Self, Broken> {
        let mut reader = std::io::Cursor::new(blob);
        let read: Histogram<u32> = Deserializer::new().deserialize(&mut reader).map_err(|_| Broken)?;
        let is_ours = read.low() == 1 && read.high() == MAX_US && read.sigfig() == DIGITS;
        let (len, min, max, mean) = (read.len(), read.min(), read.max(), read.mean());
        let histogram = if is_ours {
            read
        } else {
            let mut histogram = layout();
            histogram.add(&read).map_err(|_| Broken)?;
            histogram
        };
        let mut sample = Self { histogram, count: 0, sum: 0, min: u64::MAX, max: 0 };
        let numbers: Vec<u64> =
            exact.map(|text| text.split(',').filter_map(|n| n.parse().ok()).collect()).unwrap_or_default();
        if let [count, sum, min, max] = *numbers {
            (sample.count, sample.sum, sample.min, sample.max) = (count, sum, min, max);
        } else if len > 0 {
            // Somebody else's blob, without the exact numbers: the buckets' own.
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let sum = (mean * len as f64) as u64;
            (sample.count, sample.sum, sample.min, sample.max) = (len, sum, min, max);
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact(values: &mut [u64], thousandths: u64) -> u64 {
        values.sort_unstable();
        let rank = (values.len() as u64 * thousandths).div_ceil(1000).max(1);
        values[usize::try_from(rank).unwrap() - 1]
    }

    #[test]
    fn nothing_has_no_percentiles_and_small_samples_take_the_nearest_rank() {
        let empty = Sample::default();
        assert_eq!((empty.quantile_us(500), empty.summary().p50, empty.summary().min), (None, None, None));
        let mut sample = Sample::default();
        for ms in [100, 200, 300, 400] {
            sample.record(ms * 1000);
        }
        let summary = sample.summary();
        assert_eq!((summary.min, summary.max, summary.average), (Some(100.0), Some(400.0), Some(250.0)));
        assert!((summary.p50.unwrap() - 200.0).abs() < 0.1 && (summary.p95.unwrap() - 400.0).abs() < 0.2);
        sample.record(u64::MAX);
        assert_eq!(sample.summary().max, Some(86_400_000.0), "more than a day counts as a day");
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_values_after_storing_and_merging(
            mut values in proptest::collection::vec(0u64..90_000_000_000, 1..400), cut in 0usize..400
        ) {
            let (mut one, mut two) = (Sample::default(), Sample::default());
            for (n, value) in values.iter().enumerate() {
                if n < cut { one.record(*value) } else { two.record(*value) }
            }
            let mut merged = Sample::decode(&one.blob(), Some(&one.exact())).unwrap();
            merged.merge(&Sample::decode(&two.blob(), Some(&two.exact())).unwrap());
            let mut all = Sample::default();
            values.iter().for_each(|value| all.record(*value));
            prop_assert_eq!(merged.blob(), all.blob());
            prop_assert_eq!(merged.exact(), all.exact());
            for q in [500, 900, 950, 990, 999] {
                let (told, true_value) = (merged.quantile_us(q).unwrap(), exact(&mut values, q).min(MAX_US));
                prop_assert!(told.abs_diff(true_value) * 1000 <= true_value.max(1), "{told} for {true_value}");
            }
        }
    }
}
