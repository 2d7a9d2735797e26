//! `triage.toml`: deterministic rules, asked before any model. The first that matches decides.
//!
//! ```toml
//! [[rule]]
//! id = "urgent-notes"
//! families = ["discovery/noted"]          # or ["*"]
//! when = "data.title.contains('urgent')"  # CEL over name, source, ts, data, priority, dedupKey, meta
//! priority = "P0"
//! dedup_key = "'note:' + data.url"        # CEL that gives a text
//! route_check = "confirm"
//! reason = "marked urgent"
//! ```
//!
//! A file that is wrong as a whole keeps the last good one in force. A rule whose CEL is wrong is left out, alone: at
//! loading, or for the event at hand. Both are counted and told.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Matter;
use super::decision::{RouteCheck, Suggestion, bounded};
use crate::functions::expr::{Expr, Roots};
use crate::streams::priority::Priority;

/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(1);
const MAX_KEY_CHARS: usize = 240;
const MAX_REASON_CHARS: usize = 280;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Written>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: String,
    families: Vec<String>,
    when: String,
    priority: Option<String>,
    dedup_key: Option<String>,
    route_check: Option<String>,
    reason: String,
}

#[derive(Debug)]
struct Rule {
    id: String,
    families: Vec<String>,
    when: Expr,
    priority: Option<Priority>,
    dedup_key: Option<Expr>,
    route_check: RouteCheck,
    reason: String,
    errors: AtomicU64,
}

/// The rules of one version of the file.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    problems: Vec<String>,
}

/// A rule's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruled {
    /// Its id; `None` when no rule matched and rules are the last in the chain.
    pub rule: Option<String>,
    /// What it says.
    pub suggestion: Suggestion,
}

impl Rules {
    /// Reads the file's text. An error is one about the file as a whole.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut rules = Self::default();
        for written in file.rule {
            let id = written.id.clone();
            if rules.rules.iter().any(|rule| rule.id == id) {
                return Err(format!("two rules have the id `{id}`"));
            }
            match Rule::compile(written) {
                Ok(rule) => rules.rules.push(rule),
                Err(problem) => rules.problems.push(format!("rule `{id}` is left out: {problem}")),
            }
        }
        Ok(rules)
    }

    /// The first rule that matches; an error skips its rule.
    #[must_use]
    pub fn decide(&self, matter: &Matter) -> Option<Ruled> {
        let family = matter.family();
        let mut candidates = self.rules.iter().filter(|rule| rule.is_for(&family)).peekable();
        candidates.peek()?;
        let envelope = matter.envelope();
        candidates.find_map(|rule| match rule.apply(&envelope, matter) {
            Ok(suggestion) => suggestion.map(|suggestion| Ruled { rule: Some(rule.id.clone()), suggestion }),
            Err(_) => {
                rule.errors.fetch_add(1, Ordering::Relaxed);
                None
            }
        })
    }

    /// What is wrong with single rules, and how often one failed on an event.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let failed = self.rules.iter().filter_map(|rule| {
            let errors = rule.errors.load(Ordering::Relaxed);
            (errors > 0)
                .then(|| format!("rule `{}` was skipped for {errors} events: its CEL has no value there", rule.id))
        });
        self.problems.iter().cloned().chain(failed).collect()
    }
}

impl Rule {
    fn compile(written: Written) -> Result<Self, String> {
        let cel = |text: &str| Expr::compile(text, Roots::Envelope).map_err(|error| error.to_string());
        let priority = written
            .priority
            .map(|text| text.parse::<Priority>().map_err(|_| format!("priority `{text}` is not P0 to P3")));
        let route_check = match written.route_check.as_deref() {
            None | Some("confirm") => RouteCheck::Confirm,
            Some("mismatch") => RouteCheck::Mismatch,
            Some(other) => return Err(format!("route_check `{other}` is neither confirm nor mismatch")),
        };
        Ok(Self {
            families: written.families.iter().map(|name| name.trim().to_lowercase()).collect(),
            when: cel(&written.when)?,
            priority: priority.transpose()?,
            dedup_key: written.dedup_key.as_deref().map(cel).transpose()?,
            reason: bounded(&written.reason, MAX_REASON_CHARS).ok_or("reason must be 1 to 280 characters")?,
            errors: AtomicU64::new(0),
            id: written.id,
            route_check,
        })
    }

    fn is_for(&self, family: &str) -> bool {
        self.families.iter().any(|name| name == "*" || name == family)
    }

    fn apply(&self, envelope: &Value, matter: &Matter) -> Result<Option<Suggestion>, String> {
        if !self.when.holds_for(envelope).map_err(|error| error.0)? {
            return Ok(None);
        }
        let key = self.dedup_key.as_ref().map(|key| match key.value_for(envelope).map_err(|error| error.0)? {
            Value::String(text) => bounded(&text, MAX_KEY_CHARS).ok_or("the key is empty or too long".to_owned()),
            _ => Err("the key is not a text".to_owned()),
        });
        Ok(Some(Suggestion {
            priority: self.priority.unwrap_or(matter.priority),
            dedup_key: key.transpose()?,
            route_check: self.route_check,
            reasoning: Some(self.reason.clone()),
        }))
    }
}

impl Matter {
    /// What a rule looks at.
    fn envelope(&self) -> Value {
        json!({
            "name": self.name, "source": self.source, "ts": self.ts, "data": self.data.to_value(),
            "priority": self.priority.label(), "dedupKey": self.dedup_key,
            "meta": self.meta.as_ref().map(crate::streams::json::JsonObject::to_value),
        })
    }
}

type Stamp = Option<(SystemTime, u64)>;

/// The rules in force. Cheap to clone; readers never wait.
#[derive(Debug, Clone)]
pub struct RulesHandle {
    path: PathBuf,
    current: Arc<ArcSwap<Rules>>,
    fault: Arc<ArcSwap<Option<String>>>,
    first: Stamp,
}

impl RulesHandle {
    /// Loads the rules of `path`; none where there is no file, or a wrong one.
    #[must_use]
    pub fn load(path: PathBuf) -> Self {
        let first = stamp(&path);
        let handle = Self { path, current: Arc::default(), fault: Arc::default(), first };
        handle.reload();
        handle
    }

    /// The rules in force.
    #[must_use]
    pub fn current(&self) -> Arc<Rules> {
        self.current.load_full()
    }

    /// What is wrong: with the file as it is now, and with single rules.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let fault = self.fault.load();
        let file = fault.iter().map(|fault| format!("{}: {fault}", self.path.display()));
        file.chain(self.current.load().problems()).collect()
    }

    /// Reads the file again; a wrong one changes nothing.
    fn reload(&self) {
        let read = match std::fs::read_to_string(&self.path) {
            Ok(text) => Rules::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Rules::default()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(rules) => {
                for problem in rules.problems() {
                    tracing::warn!(problem, "a triage rule can't be used");
                }
                self.current.store(Arc::new(rules));
                self.fault.store(Arc::new(None));
            }
            Err(fault) => {
                tracing::error!(fault, path = %self.path.display(), "the triage rules are wrong; the last good ones stay");
                self.fault.store(Arc::new(Some(fault)));
            }
        }
    }

    /// Reloads whenever the file changes, until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        let mut seen = self.first;
        loop {
            let now = stamp(&self.path);
            if now != seen {
                seen = now;
                self.reload();
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::json::JsonObject;

    const RULES: &str = r#"
        [[rule]]
        id = "broken"
        families = ["*"]
        when = "nowhere.x == 1"
        reason = "never"

        [[rule]]
        id = "no-value"
        families = ["*"]
        when = "data.n"
        reason = "never"

        [[rule]]
        id = "urgent"
        families = ["Discovery/Noted"]
        when = "data.title.contains('urgent') && priority == 'P2'"
        priority = "P0"
        dedup_key = "'note:' + data.title"
        route_check = "mismatch"
        reason = "marked urgent"
    "#;

    fn matter(data: &str) -> Matter {
        Matter { data: JsonObject::parse(data).unwrap(), ..Matter::example() }
    }

    #[test]
    fn the_first_match_decides_and_what_is_wrong_is_skipped_and_told() {
        let rules = Rules::parse(RULES).unwrap();
        let ruled = rules.decide(&matter(r#"{"title":"urgent: x","n":1}"#)).unwrap();
        assert_eq!(ruled.rule.as_deref(), Some("urgent"));
        assert_eq!((ruled.suggestion.priority, ruled.suggestion.route_check), (Priority::P0, RouteCheck::Mismatch));
        assert_eq!(ruled.suggestion.dedup_key.as_deref(), Some("note:urgent: x"));
        assert_eq!(rules.decide(&matter(r#"{"title":"later"}"#)), None);
        assert_eq!(rules.decide(&matter("{}")), None);
        let problems = rules.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("`broken`") && problems[1].contains("`no-value`"), "{problems:?}");
    }

    #[test]
    fn a_wrong_file_keeps_the_last_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("triage.toml");
        std::fs::write(&path, RULES).unwrap();
        let handle = RulesHandle::load(path.clone());
        std::fs::write(&path, "[[rule]]\nid = \"x\"\nwat = 1\n").unwrap();
        handle.reload();
        assert!(handle.current().decide(&matter(r#"{"title":"urgent"}"#)).is_some());
        assert!(handle.problems()[0].contains("wat"), "{:?}", handle.problems());
        std::fs::remove_file(&path).unwrap();
        handle.reload();
        assert!(handle.current().decide(&matter(r#"{"title":"urgent"}"#)).is_none());
        assert!(handle.problems().is_empty());
    }
}
