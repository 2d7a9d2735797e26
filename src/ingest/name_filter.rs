//! Which event names of a provider are taken: `WEBHOOK_FILTER_<PROVIDER>=github/*,!github/package.*`.

use crate::streams::name_pattern;

/// Patterns of names. Names that a `!` pattern means are left out; of the others those that a plain pattern means are
/// taken, or all where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameFilter {
    taken: Vec<String>,
    left_out: Vec<String>,
}

impl NameFilter {
    /// Reads patterns separated by commas, with `*` for any text; `None` when one of them is nothing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut filter = Self::default();
        for pattern in text.split(',').map(str::trim) {
            let (list, pattern) = match pattern.strip_prefix('!') {
                Some(pattern) => (&mut filter.left_out, pattern.trim()),
                None => (&mut filter.taken, pattern),
            };
            if pattern.is_empty() {
                return None;
            }
            list.push(pattern.to_owned());
        }
        Some(filter)
    }

    /// Whether events of this name are taken.
    #[must_use]
    pub fn takes(&self, name: &str) -> bool {
        let is_in = |list: &[String]| list.iter().any(|pattern| name_pattern::fits(pattern, name));
        !is_in(&self.left_out) && (self.taken.is_empty() || is_in(&self.taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_wins_and_no_plain_pattern_takes_all() {
        let takes = |filter: &str, name: &str| NameFilter::parse(filter).unwrap().takes(name);
        assert!(takes("github/*", "github/package.published") && !takes("github/*", "vercel/deploy.ready"));
        assert!(takes("!github/package.*", "github/workflow_run.completed"));
        assert!(!takes("!github/package.*", "github/package.published"));
        assert!(!takes("github/*, !github/package.*", "github/package.published"));
        assert!(NameFilter::parse("a,,b").is_none() && NameFilter::parse("!").is_none());
    }
}
