//! The registry: what an event name means. Priority, dedup window, handler, limits and retries, as data.
//!
//! Built-in entries, with `registry.toml` merged over them. An exact name beats the longest prefix. Triage and senders
//! may shape priority and dedup key; a handler comes from here and from nowhere else.

mod builtin;
pub mod dedup_key;
mod digest;
pub mod entry;
mod file;
pub mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::diagnose::{Diagnose, Exit};
use crate::streams::family::Family;
use entry::{Entry, Pattern};

pub use builtin::{ALIASES, VERSION as BUILTIN_VERSION};

/// The effective routing table. Immutable: a change is a new one.
#[derive(Debug, Clone)]
pub struct Registry {
    exact: HashMap<Family, Entry>,
    /// Longest prefix first.
    prefixes: Vec<Entry>,
    /// Built-in entries that the file replaced, for `explain`.
    overridden: Vec<Entry>,
    hash: String,
}

/// What is wrong with a registry file: everything at once, each with its line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("{path} can't be read: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file says something that isn't possible.
    #[error("{}", problems.join("\n"))]
    Invalid {
        /// `registry.toml:12: backoff.jitter: …`.
        problems: Vec<String>,
    },
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "REGISTRY_UNREADABLE",
            Self::Invalid { .. } => "REGISTRY_INVALID",
        }
    }

    fn exit(&self) -> Exit {
        Exit::Config
    }

    fn fix(&self) -> String {
        "Mend the file, then: joelclaw queue registry check".into()
    }
}

/// How a name is routed, and why.
#[derive(Debug)]
pub struct Explanation<'a> {
    /// The entry in force.
    pub entry: Option<&'a Entry>,
    /// Entries that would match if the one in force did not exist, in the order they would.
    pub shadowed: Vec<&'a Entry>,
}

impl Registry {
    /// The built-in entries alone.
    #[must_use]
    pub fn builtin() -> Self {
        Self::merge(Vec::new())
    }

    /// The built-in entries with `path` merged over them. A file that doesn't exist is an empty one.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Ok(Self::load_existing(path)?.unwrap_or_else(Self::builtin))
    }

    /// As [`Registry::load`]; `None` when there is no file.
    fn load_existing(path: &Path) -> Result<Option<Self>, Error> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::Unreadable { path: path.to_owned(), reason: error.to_string() }),
        }
    }

    /// As [`Registry::load`], from the file's text.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let name = path.file_name().map_or_else(|| "registry.toml".into(), |name| name.to_string_lossy().into_owned());
        file::parse(text, &name, &builtin::entries()).map(Self::merge).map_err(|problems| Error::Invalid { problems })
    }

    fn merge(from_file: Vec<Entry>) -> Self {
        let mut registry =
            Self { exact: HashMap::new(), prefixes: Vec::new(), overridden: Vec::new(), hash: String::new() };
        for entry in builtin::entries().into_iter().chain(from_file) {
            match &entry.pattern {
                Pattern::Exact(name) => {
                    registry.overridden.extend(registry.exact.insert(name.clone(), entry));
                }
                Pattern::Prefix(_) => registry.prefixes.push(entry),
            }
        }
        registry.prefixes.sort_by_key(|entry| std::cmp::Reverse(entry.pattern.text().len()));
        registry.hash = digest::of(&registry.entries());
        registry
    }

    /// The entry for a name.
    #[must_use]
    pub fn lookup(&self, family: &Family) -> Option<&Entry> {
        self.exact.get(family).or_else(|| self.prefixes.iter().find(|entry| entry.pattern.matches(family)))
    }

    /// Every entry: exact names in alphabetical order, then prefixes, longest first.
    #[must_use]
    pub fn entries(&self) -> Vec<&Entry> {
        let mut exact: Vec<&Entry> = self.exact.values().collect();
        exact.sort_by(|a, b| a.pattern.text().cmp(b.pattern.text()));
        exact.extend(&self.prefixes);
        exact
    }

    /// Identifies the effective table: SHA-256, 64 hex digits. Where entries stand in the file doesn't matter.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// How a name is routed, and why.
    #[must_use]
    pub fn explain(&self, family: &Family) -> Explanation<'_> {
        let mut matching: Vec<&Entry> = self.exact.get(family).into_iter().collect();
        matching.extend(self.overridden.iter().filter(|entry| entry.pattern.matches(family)));
        matching.extend(self.prefixes.iter().filter(|entry| entry.pattern.matches(family)));
        let entry = (!matching.is_empty()).then(|| matching.remove(0));
        Explanation { entry, shadowed: matching }
    }
}

#[cfg(test)]
mod tests {
    use super::entry::{HandlerSpec, Origin};
    use super::*;
    use crate::streams::priority::Priority;

    fn parse(text: &str) -> Result<Registry, Error> {
        Registry::parse(text, Path::new("registry.toml"))
    }

    fn lookup(registry: &Registry, name: &str) -> Entry {
        registry.lookup(&name.parse().unwrap()).unwrap().clone()
    }

    #[test]
    fn six_built_in_entries_route_to_event_names_and_one_to_the_observer() {
        let registry = Registry::builtin();
        assert_eq!(registry.entries().len(), 7);
        assert_eq!(lookup(&registry, builtin::PROBE).handler.kind(), "local");
        let table = [
            ("discovery/noted", Priority::P2, Some(60), "discovery/noted"),
            ("discovery/captured", Priority::P2, Some(60), "discovery/captured"),
            ("content/updated", Priority::P1, None, "content/updated"),
            ("subscription/check-feeds.requested", Priority::P2, Some(300), "subscription/check-feeds.requested"),
            ("github/workflow_run.completed", Priority::P1, None, "github/workflow_run.completed"),
            ("workload/requested", Priority::P1, None, "system/agent.requested"),
        ];
        for (name, priority, window, target) in table {
            let entry = lookup(&registry, name);
            assert_eq!(entry.priority, priority, "{name}");
            assert_eq!(entry.dedup_window.map(|window| window.as_secs()), window, "{name}");
            assert!(matches!(&entry.handler, HandlerSpec::Inngest { target: to } if to.as_str() == target), "{name}");
        }
    }

    #[test]
    fn exact_beats_the_longest_prefix() {
        let registry = parse(
            r#"
            [[event]]
            pattern = "github/*"
            handler = { type = "local", target = "short" }
            [[event]]
            pattern = "github/pull*"
            handler = { type = "local", target = "long" }
            [[event]]
            name = "github/pull_request.opened"
            handler = { type = "local", target = "exact" }
            "#,
        )
        .unwrap();
        let handler = |name| match lookup(&registry, name).handler {
            HandlerSpec::Local { name } => name,
            other => format!("{other:?}"),
        };
        assert_eq!(handler("github/push"), "short");
        assert_eq!(handler("github/pull_request.closed"), "long");
        assert_eq!(handler("github/pull_request.opened"), "exact");
        let explained = registry.explain(&"github/pull_request.opened".parse().unwrap());
        assert_eq!(explained.shadowed.len(), 2);
        assert!(registry.lookup(&"gitlab/push".parse().unwrap()).is_none());
    }

    #[test]
    fn a_file_entry_keeps_what_it_does_not_say_of_a_built_in() {
        let registry = parse("[[event]]\nname = \"discovery/noted\"\npriority = \"P0\"\n").unwrap();
        let entry = lookup(&registry, "discovery/noted");
        assert_eq!(entry.priority, Priority::P0);
        assert_eq!(entry.dedup_window.map(|window| window.as_secs()), Some(60));
        assert_eq!(entry.origin, Origin::File { line: 1 });
        assert!(matches!(entry.handler, HandlerSpec::Inngest { .. }));
        assert_ne!(registry.hash(), Registry::builtin().hash());
    }

    #[test]
    fn every_problem_is_named_with_its_line() {
        let error = parse(
            r#"[[event]]
name = "a/b"
prioritty = "P1"
handler = { type = "http" }

[[event]]
pattern = "nope"
priority = "P7"
concurrency = 0
backoff = { jitter = "half", multiplier = 0.5 }
handler = { type = "carrier-pigeon" }

[[event]]
name = "c/d"
dedup_window = "soon"
dedup_key = "data."
"#,
        )
        .unwrap_err();
        let Error::Invalid { problems } = error else { panic!() };
        let all = problems.join("\n");
        for expected in [
            "registry.toml:3: prioritty: unknown key; did you mean `priority`?",
            "registry.toml:4: handler.target: is missing",
            "registry.toml:7: pattern:",
            "registry.toml:8: priority:",
            "registry.toml:9: concurrency:",
            "registry.toml:10: backoff.jitter:",
            "registry.toml:10: backoff.multiplier:",
            "registry.toml:11: handler.type:",
            "registry.toml:15: dedup_window:",
            "registry.toml:16: dedup_key:",
            "registry.toml:13: handler: is missing",
        ] {
            assert!(all.contains(expected), "{expected} is not in\n{all}");
        }
    }

    #[test]
    fn the_example_of_the_specification_is_read() {
        let registry = parse(
            r#"
[[event]]
name = "invoice/paid"
priority = "P1"
dedup_window = "10m"
handler = { type = "http", target = "http://127.0.0.1:9000/hook", secret_env = "INVOICE_SECRET" }
concurrency = 4
attempts = 8
backoff = { initial = "1s", multiplier = 2.0, max = "5m", jitter = "full" }

[[event]]
pattern = "github/*"
handler = { type = "command", program = "/usr/local/bin/on-github", args = ["--quiet"], timeout = "2m" }
"#,
        )
        .unwrap();
        let invoice = lookup(&registry, "invoice/paid");
        assert_eq!((invoice.concurrency, invoice.attempts), (Some(4), Some(8)));
        assert_eq!(invoice.backoff.max.map(|max| max.as_secs()), Some(300));
        let github = lookup(&registry, "github/push");
        assert_eq!(github.timeout.map(|timeout| timeout.as_secs()), Some(120));
    }

    #[test]
    fn two_entries_of_one_name_are_refused() {
        let error = parse(
            "[[event]]\nname=\"a/b\"\nhandler={type=\"local\",target=\"x\"}\n[[event]]\nname=\"a/b\"\nhandler={type=\"local\",target=\"x\"}\n",
        );
        assert!(error.unwrap_err().to_string().contains("registry.toml:5: name: `a/b` is in line 2 already"));
    }
}
