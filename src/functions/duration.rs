//! Durations as SDKs write them: `30s`, `2h45m`, `1w2d`.

/// A time string in ms: decimals with units `ns us µs ms s m h d w`, one after the other. `None` for anything else, an
/// empty text included.
#[must_use]
pub fn time_string(text: &str) -> Option<u64> {
    const UNITS: [(&str, f64); 9] = [
        ("ns", 1e-6),
        ("us", 1e-3),
        ("µs", 1e-3),
        ("ms", 1.0),
        ("s", 1e3),
        ("m", 60e3),
        ("h", 3_600e3),
        ("d", 86_400e3),
        ("w", 604_800e3),
    ];
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, ms) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters])?;
        total += number * ms;
        rest = &rest[letters..];
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (total.is_finite() && total < 9e15).then_some(total.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::time_string;

    #[test]
    fn time_strings() {
        for (text, ms) in [
            ("30s", 30_000),
            ("2h45m", 9_900_000),
            ("1w2d", 777_600_000),
            ("1.5s", 1_500),
            ("500ms", 500),
            ("250us", 0),
            ("0s", 0),
            (" 1m ", 60_000),
        ] {
            assert_eq!(time_string(text), Some(ms), "{text}");
        }
        for text in ["", "s", "5", "5x", "1h 2m", "-1s", "2025-01-01T00:00:00Z", "1.2.3s"] {
            assert_eq!(time_string(text), None, "{text}");
        }
    }
}
