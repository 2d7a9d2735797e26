//! What a query may cost. Lists count their members, so that nested ones can't multiply beyond all bounds.

use std::collections::HashMap;

use async_graphql::Name;
use async_graphql::parser::types::{ExecutableDocument, Selection, SelectionSet};

/// Nested fields; the introspection query of usual tools has about 13.
pub(super) const DEPTH: usize = 24;
/// Fields, each times the members of the lists above it.
pub(super) const COMPLEXITY: usize = 50_000;
/// Longest query text.
pub(super) const QUERY_BYTES: usize = 64 << 10;
/// Members of one page at most.
pub(super) const PAGE_MAX: usize = 1_000;
/// Runs or events that a condition is evaluated on.
pub(super) const LOOK: usize = 2_000;
/// Members that a list without pages counts as.
pub(super) const LIST: usize = 50;
/// What a trace costs beside its fields: it reads all that a run did.
pub(super) const TRACE: usize = 200;
/// Fields after every fragment is put where it is used.
const WIDTH: usize = 20_000;
/// Keeps sums of costs far from overflowing.
const CAP: usize = 1 << 40;

/// The cost of `members` of which each costs `each`.
pub(super) fn times(members: usize, each: usize) -> usize {
    members.max(1).saturating_mul(each.saturating_add(1)).min(CAP)
}

/// A page's size within what is allowed.
pub(super) fn page(first: Option<i32>, default: usize) -> usize {
    first.map_or(default, |first| usize::try_from(first).unwrap_or(0)).clamp(1, PAGE_MAX)
}

/// Whether fragments within fragments make more of a query than can be looked at. Asked before the library walks it,
/// which takes as long as the query is wide.
pub(super) fn is_too_wide(document: &ExecutableDocument) -> bool {
    let mut known = HashMap::new();
    document
        .operations
        .iter()
        .any(|(_, operation)| width(document, &operation.node.selection_set.node, &mut known) > WIDTH)
}

fn width<'a>(document: &'a ExecutableDocument, set: &'a SelectionSet, known: &mut HashMap<&'a Name, usize>) -> usize {
    set.items.iter().fold(0_usize, |sum, item| {
        let own = match &item.node {
            Selection::Field(field) => 1 + width(document, &field.node.selection_set.node, known),
            Selection::InlineFragment(inline) => width(document, &inline.node.selection_set.node, known),
            Selection::FragmentSpread(spread) => {
                let name = &spread.node.fragment_name.node;
                match (known.get(name), document.fragments.get(name)) {
                    (Some(width), _) => *width,
                    (None, None) => 1,
                    (None, Some(fragment)) => {
                        // Met again while it is being measured, it contains itself.
                        known.insert(name, WIDTH + 1);
                        let width = width(document, &fragment.node.selection_set.node, known).max(1);
                        known.insert(name, width);
                        width
                    }
                }
            }
        };
        sum.saturating_add(own)
    })
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;

    use super::*;

    #[test]
    fn fragments_that_double_each_other_are_too_wide() {
        let mut query = String::from("{ functions { ...f0 } } fragment f30 on Function { id }");
        for n in 0..30 {
            query.push_str(&format!(" fragment f{n} on Function {{ ...f{0} ...f{0} }}", n + 1));
        }
        assert!(is_too_wide(&parse_query(&query).unwrap()));
        assert!(is_too_wide(&parse_query("{ a { ...f } } fragment f on A { ...f }").unwrap()));
        assert!(!is_too_wide(&parse_query("{ a { ...f ...f } } fragment f on A { b c { d } }").unwrap()));
    }

    #[test]
    fn costs_stay_within_their_cap() {
        assert_eq!(times(50, 3), 200);
        assert_eq!(times(usize::MAX, usize::MAX), CAP);
        assert_eq!((page(None, 40), page(Some(-3), 40), page(Some(5_000), 40)), (40, 1, PAGE_MAX));
    }
}
