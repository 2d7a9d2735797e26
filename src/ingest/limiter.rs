//! Limits of the gateway: an address that keeps failing verification is refused before its body is read, and a provider
//! may send so many valid deliveries in a time.
//!
//! Failures are counted per provider and address in a fixed window, so that one provider's failures block no other and a valid
//! signature never counts. Bounded: past the limit of entries the one unused for longest is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most addresses remembered.
const MAX_ENTRIES: usize = 10_000;

/// Provider and grouped address.
type Key = (&'static str, IpAddr);

/// See the module. Reads no clock: callers pass the time.
#[derive(Debug)]
pub struct AuthFailures {
    limit: u32,
    window: Duration,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    /// Use order, oldest first.
    order: BTreeMap<u64, Key>,
    uses: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    began: Instant,
    failures: u32,
    used: u64,
}

impl AuthFailures {
    /// Refuses from the failure after `limit` until `window` has passed since the first one.
    #[must_use]
    pub fn new(limit: u32, window: Duration) -> Self {
        Self { limit, window, table: Mutex::default() }
    }

    /// How long `address` must wait before `provider` listens to it again; `None` when it may speak.
    pub fn wait(&self, provider: &'static str, address: IpAddr, now: Instant) -> Option<Duration> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = table.entries.get(&(provider, group(address)))?;
        let left = self.window.checked_sub(now.saturating_duration_since(entry.began))?;
        (entry.failures >= self.limit && !left.is_zero()).then_some(left)
    }

    /// Counts one failed verification.
    pub fn record(&self, provider: &'static str, address: IpAddr, now: Instant) {
        let key = (provider, group(address));
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.uses += 1;
        let used = table.uses;
        let mut entry = Entry { began: now, failures: 1, used };
        if let Some(known) = table.entries.get(&key).copied() {
            table.order.remove(&known.used);
            if now.saturating_duration_since(known.began) < self.window {
                entry = Entry { failures: known.failures.saturating_add(1), used, ..known };
            }
        }
        table.entries.insert(key, entry);
        table.order.insert(used, key);
        if table.entries.len() > MAX_ENTRIES
            && let Some((_, oldest)) = table.order.pop_first()
        {
            table.entries.remove(&oldest);
        }
    }
}

/// So many in such a time; as many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Duration,
}

impl Rate {
    /// Reads `N/s` or `N/m`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (count, unit) = text.trim().split_once('/')?;
        let per = match unit.trim() {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return None,
        };
        let count = count.trim().parse().ok().filter(|count| *count > 0)?;
        Some(Self { count, per })
    }
}

/// Limits by provider: a bucket each, which starts full. Reads no clock: callers pass the time.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<&'static str, (Instant, f64)>>);

impl Rates {
    /// Takes one of `key`'s; how long to wait for it where there is none.
    pub fn take(&self, key: &'static str, rate: Rate, now: Instant) -> Option<Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = f64::from(rate.count);
        let per_s = full / rate.per.as_secs_f64();
        let (since, left) = buckets.entry(key).or_insert((now, full));
        *left = (*left + now.saturating_duration_since(*since).as_secs_f64() * per_s).min(full);
        *since = now;
        if *left >= 1.0 {
            *left -= 1.0;
            return None;
        }
        Some(Duration::from_secs_f64((1.0 - *left) / per_s))
    }
}

/// An IPv6 customer holds a whole /64, so that is one address here.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => (v6 & std::net::Ipv6Addr::from_bits(u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    #[test]
    fn the_failure_after_the_limit_is_refused_until_the_window_ends() {
        let (limiter, start) = (AuthFailures::new(20, WINDOW), Instant::now());
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        for _ in 0..20 {
            assert_eq!(limiter.wait("github", address, start), None);
            limiter.record("github", address, start);
        }
        assert_eq!(limiter.wait("github", address, start), Some(WINDOW));
        assert_eq!(limiter.wait("vercel", address, start), None, "limits are per provider");
        assert_eq!(limiter.wait("github", "203.0.113.8".parse().unwrap(), start), None);
        assert_eq!(limiter.wait("github", address, start + WINDOW), None);
        limiter.record("github", address, start + WINDOW);
        assert_eq!(limiter.wait("github", address, start + WINDOW), None, "a new window starts at one");
    }

    #[test]
    fn a_rate_allows_its_count_at_once_and_then_one_by_one() {
        let rate = Rate::parse(" 2/m ").unwrap();
        assert_eq!(rate, Rate { count: 2, per: WINDOW });
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!([0, 0].map(|_| rates.take("x", rate, start)), [None, None]);
        assert_eq!(rates.take("x", rate, start), Some(WINDOW / 2));
        assert_eq!(rates.take("y", rate, start), None, "each has its own");
        assert_eq!(rates.take("x", rate, start + WINDOW / 2), None);
        assert!(rates.take("x", rate, start + WINDOW / 2).is_some());
        for text in ["", "0/s", "2", "2/h", "-1/s", "x/s"] {
            assert_eq!(Rate::parse(text), None, "{text}");
        }
    }

    #[test]
    fn ipv6_is_grouped_and_mapped_ipv4_is_ipv4() {
        let group_of = |text: &str| group(text.parse().unwrap()).to_string();
        assert_eq!(group_of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(group_of("::ffff:192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn memory_is_bounded_and_the_longest_unused_goes_first() {
        let (limiter, now) = (AuthFailures::new(1, WINDOW), Instant::now());
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        for n in 0..=10_000 {
            limiter.record("github", address(n), now);
        }
        assert_eq!(limiter.table.lock().unwrap().entries.len(), MAX_ENTRIES);
        assert_eq!(limiter.table.lock().unwrap().order.len(), MAX_ENTRIES);
        assert_eq!(limiter.wait("github", address(0), now), None);
        assert!(limiter.wait("github", address(10_000), now).is_some());
    }
}
