//! Series of one metric: bounded in number, and replaced as a whole where they tell how things stand.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// Label names and values.
pub type Labels = Vec<(&'static str, String)>;
/// A float.
type Level = Gauge<f64, AtomicU64>;

/// The value of whatever is beyond a cap.
pub const OTHER: &str = "_other";
/// Labels whose values come from outside; the values of all others are closed sets.
const OPEN: [&str; 6] = ["family", "function", "provider", "route", "component", "reason"];

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sets of labels that one metric has. Beyond the cap, open labels are `_other`; that is counted.
struct Known {
    metric: &'static str,
    cap: usize,
    sets: Mutex<HashSet<Labels>>,
    overflow: Family<Labels, Counter>,
}

impl Known {
    fn new(metric: &'static str, cap: usize, overflow: &Family<Labels, Counter>) -> Self {
        Self { metric, cap, sets: Mutex::default(), overflow: overflow.clone() }
    }

    fn admit(&self, mut labels: Labels) -> Labels {
        let mut sets = locked(&self.sets);
        if sets.contains(&labels) {
            return labels;
        }
        if sets.len() < self.cap {
            sets.insert(labels.clone());
            return labels;
        }
        let mut is_changed = false;
        for (_, value) in labels.iter_mut().filter(|(name, _)| OPEN.contains(name)) {
            is_changed |= value != OTHER;
            *value = OTHER.into();
        }
        if is_changed {
            self.overflow.get_or_create(&vec![("metric", self.metric.into())]).inc();
        }
        labels
    }
}

/// Counters of one name.
pub struct Counters {
    known: Known,
    pub(super) family: Family<Labels, Counter>,
    seen: Mutex<HashMap<Labels, u64>>,
}

impl Counters {
    pub(super) fn new(metric: &'static str, cap: usize, overflow: &Family<Labels, Counter>) -> Self {
        Self { known: Known::new(metric, cap, overflow), family: Family::default(), seen: Mutex::default() }
    }

    /// Counts. By 0, the series begins.
    pub fn add(&self, labels: Labels, by: u64) {
        self.family.get_or_create(&self.known.admit(labels)).inc_by(by);
    }

    /// Follows a counter that somebody else keeps, and that begins again at 0 when they do.
    pub fn follow(&self, labels: Labels, total: u64) {
        let before = locked(&self.seen).insert(labels.clone(), total).unwrap_or(0);
        self.add(labels, if total >= before { total - before } else { total });
    }
}

/// Gauges of one name.
#[derive(Default)]
pub struct Levels {
    pub(super) family: Family<Labels, Level>,
    shown: Mutex<HashSet<Labels>>,
}

impl Levels {
    /// Sets one.
    pub fn set(&self, labels: Labels, value: f64) {
        self.family.get_or_create(&labels).set(value);
        locked(&self.shown).insert(labels);
    }

    /// Whether there is one.
    pub(super) fn contains(&self, labels: &Labels) -> bool {
        locked(&self.shown).contains(labels)
    }

    /// Takes one away.
    pub fn remove(&self, labels: &Labels) {
        locked(&self.shown).remove(labels);
        self.family.remove(labels);
    }

    /// All of them: what is not among `rows` is taken away, not left at its last value. A scrape in between sees no gap.
    pub fn replace(&self, rows: impl IntoIterator<Item = (Labels, f64)>) {
        let mut shown = locked(&self.shown);
        let mut now = HashSet::new();
        for (labels, value) in rows {
            self.family.get_or_create(&labels).set(value);
            now.insert(labels);
        }
        for gone in shown.difference(&now) {
            self.family.remove(gone);
        }
        *shown = now;
    }

    /// All of them together; `None` when there are none.
    pub(super) fn sum(&self) -> Option<f64> {
        let shown = locked(&self.shown);
        let values = shown.iter().filter_map(|labels| self.family.get(labels).map(|level| level.get()));
        (!shown.is_empty()).then(|| values.sum())
    }

    /// Takes all away.
    pub fn clear(&self) {
        self.replace([]);
    }
}

/// Makes histograms of one set of bounds.
#[derive(Clone)]
pub struct Bounds(pub(super) &'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Histograms of one name.
pub struct Histograms {
    known: Known,
    pub(super) family: Family<Labels, Histogram, Bounds>,
}

impl Histograms {
    pub(super) fn new(
        metric: &'static str,
        cap: usize,
        bounds: &'static [f64],
        overflow: &Family<Labels, Counter>,
    ) -> Self {
        Self { known: Known::new(metric, cap, overflow), family: Family::new_with_constructor(Bounds(bounds)) }
    }

    /// Adds a value `count` times. 0 times, the series begins.
    pub fn observe(&self, labels: Labels, seconds: f64, count: u64) {
        let histogram = self.family.get_or_create(&self.known.admit(labels));
        (0..count).for_each(|_| histogram.observe(seconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_its_cap_a_metric_tells_open_labels_as_other() {
        let overflow = Family::default();
        let counters = Counters::new("x", 2, &overflow);
        for n in 0..5 {
            counters.add(vec![("family", format!("a/{n}")), ("outcome", "completed".into())], 1);
        }
        let of = |family: &str| {
            let labels = vec![("family", family.to_owned()), ("outcome", "completed".to_owned())];
            counters.family.get(&labels).map(|counter| counter.get())
        };
        assert_eq!((of("a/0"), of("a/1"), of("a/2"), of(OTHER)), (Some(1), Some(1), None, Some(3)));
        assert_eq!(overflow.get_or_create(&vec![("metric", "x".into())]).get(), 3);
    }

    #[test]
    fn a_followed_counter_goes_on_when_its_keeper_begins_again() {
        let counters = Counters::new("x", 2, &Family::default());
        for total in [5, 7, 2] {
            counters.follow(Labels::new(), total);
        }
        assert_eq!(counters.family.get_or_create(&Labels::new()).get(), 9);
    }

    #[test]
    fn replaced_levels_are_those_of_the_last_reading() {
        let levels = Levels::default();
        let of = |name: &str| vec![("family", name.to_owned())];
        levels.replace([(of("a"), 1.0), (of("b"), 2.0)]);
        levels.replace([(of("b"), 3.0)]);
        assert!(levels.family.get(&of("a")).is_none());
        assert!(levels.family.get(&of("b")).is_some_and(|level| (level.get() - 3.0).abs() < f64::EPSILON));
    }
}
