//! Patterns of event names, with `*` for any text: what endpoints want, what filters take.

/// Whether `name` is what `pattern` says, where `*` is any text.
#[must_use]
pub fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    if !pattern.contains('*') {
        return rest.is_empty();
    }
    let mut parts: Vec<&str> = parts.collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, name, expected) in [
            ("discovery/noted", "discovery/noted", true),
            ("discovery/noted", "discovery/noted.x", false),
            ("discovery/*", "discovery/noted", true),
            ("discovery/*", "discover", false),
            ("*", "anything/at.all", true),
            ("a/*.done", "a/b.done", true),
            ("a/*.done", "a/.done", true),
            ("a/*.done", "a/b.done.x", false),
            ("a*b*c", "axbxc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
