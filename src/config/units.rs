//! Durations, sizes and address ranges as people write them.

use std::net::IpAddr;
use std::time::Duration;

const SECOND: u64 = 1000;
const DAY: u64 = 24 * 3600 * SECOND;
/// Longer than anyone means, and far from overflow when added to a clock.
const LONGEST_MS: u64 = 36_500 * DAY;

/// A duration of the command line: `^\d+(ms|s|m|h|d)?$`, at least 1; bare digits are seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 1,
        "" | "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3600 * SECOND,
        "d" => DAY,
        _ => return None,
    };
    let ms = number.parse::<u64>().ok()?.checked_mul(scale)?;
    (1..=LONGEST_MS).contains(&ms).then(|| Duration::from_millis(ms))
}

/// [`parse_duration`] for clap's `value_parser`.
pub fn duration_arg(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("`{text}` is no duration: write 45, 45s, 10m, 2h or 1d"))
}

/// A size: `8388608`, `8MiB`, `512k`. Every unit is a power of 1024, with or without its `i`; blanks before it are fine.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let power = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1024_u64.pow(power))
}

/// `80%` as 80; 0 and more than 100 are refused.
pub fn parse_percent(text: &str) -> Option<u8> {
    let number: u8 = text.strip_suffix('%')?.trim_end().parse().ok()?;
    (1..=100).contains(&number).then_some(number)
}

/// How much of Redis the queue may fill before appends are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBudget {
    /// A share of Redis's `maxmemory`; no limit while that is 0.
    Percent(u8),
    /// Bytes of `used_memory`.
    Bytes(u64),
    /// No limit of ours.
    Off,
}

impl MemoryBudget {
    /// The limit in bytes for a Redis with this `maxmemory` (0 is unlimited); `None` is no limit.
    pub fn limit(self, maxmemory: u64) -> Option<u64> {
        match self {
            Self::Percent(_) if maxmemory == 0 => None,
            Self::Percent(share) => Some(maxmemory / 100 * u64::from(share) + maxmemory % 100 * u64::from(share) / 100),
            Self::Bytes(limit) => Some(limit),
            Self::Off => None,
        }
    }
}

/// A range of addresses, `10.0.0.0/8`; a single address is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The loopback ranges of both families.
    pub const fn loopback() -> [Self; 2] {
        [
            Self { address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), prefix: 8 },
            Self { address: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), prefix: 128 },
        ]
    }

    /// `10.0.0.0/8`, `::1`, `2001:db8::/32`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(longest);
        (prefix <= longest).then_some(Self { address, prefix })
    }

    /// Is the address in the range? An IPv4 address written as IPv6 (`::ffff:10.0.0.1`) counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(range), IpAddr::V4(address)) => {
                same_prefix(u32::from(range).into(), u32::from(address).into(), 32, self.prefix)
            }
            (IpAddr::V6(range), IpAddr::V6(address)) => same_prefix(range.into(), address.into(), 128, self.prefix),
            _ => false,
        }
    }
}

fn same_prefix(a: u128, b: u128, width: u8, prefix: u8) -> bool {
    // A shift by the whole width is undefined for the type, and a prefix of 0 holds everything.
    prefix == 0 || (a ^ b) >> (width - prefix) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("45", Some(45_000)),
            ("45s", Some(45_000)),
            ("10m", Some(600_000)),
            ("2h", Some(7_200_000)),
            ("1d", Some(86_400_000)),
            ("250ms", Some(250)),
            ("0", None),
            ("0s", None),
            ("bogus", None),
            ("1.5h", None),
            ("-1", None),
            ("1 h", None),
            ("", None),
            ("h", None),
            ("99999999999999999999", None),
            ("18446744073709551615d", None),
            ("36501d", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn sizes() {
        let cases = [
            ("8388608", Some(8 << 20)),
            ("8MiB", Some(8 << 20)),
            ("8 mb", Some(8 << 20)),
            ("512k", Some(512 << 10)),
            ("1g", Some(1 << 30)),
            ("2TiB", Some(2 << 40)),
            ("7b", Some(7)),
            ("0", Some(0)),
            ("80%", None),
            ("1.5m", None),
            ("-1", None),
            ("m", None),
            ("16777217t", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_bytes(text), expected, "{text}");
        }
        for (text, expected) in
            [("80%", Some(80)), ("80 %", Some(80)), ("0%", None), ("101%", None), ("80", None), ("%", None)]
        {
            assert_eq!(parse_percent(text), expected, "{text}");
        }
    }

    #[test]
    fn a_memory_budget_is_off_while_redis_has_no_limit() {
        assert_eq!(MemoryBudget::Percent(80).limit(0), None);
        assert_eq!(MemoryBudget::Percent(80).limit(1000), Some(800));
        assert_eq!(MemoryBudget::Percent(100).limit(u64::MAX), Some(u64::MAX));
        assert_eq!(MemoryBudget::Bytes(5).limit(0), Some(5));
        assert_eq!(MemoryBudget::Off.limit(1000), None);
    }

    #[test]
    fn address_ranges() {
        let cases = [
            ("127.0.0.0/8", "127.3.2.1", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("127.0.0.0/8", "::ffff:127.0.0.1", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "::1", false),
            ("::1", "::1", true),
            ("2001:db8::/32", "2001:db8:5::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ];
        for (range, address, expected) in cases {
            let range = Cidr::parse(range).expect(range);
            assert_eq!(range.contains(address.parse().unwrap()), expected, "{range:?} {address}");
        }
        for bad in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0/8"] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }
}
