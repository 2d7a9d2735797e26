//! Reads `registry.toml`. Every problem is reported at once, each with line and key.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::dedup_key::DedupKey;
use super::entry::{Backoff, BreakerSpec, Entry, HandlerSpec, Origin, Pattern};
use crate::config::nearest;
use crate::config::units::parse_duration;
use crate::streams::family::Family;
use crate::streams::priority::Priority;

const ENTRY_KEYS: [&str; 18] = [
    "name",
    "pattern",
    "priority",
    "dedup_window",
    "dedup_key",
    "description",
    "handler",
    "concurrency",
    "attempts",
    "backoff",
    "timeout",
    "rate",
    "weight",
    "ordered",
    "aimd",
    "max_age",
    "retry_client_errors",
    "breaker",
];
const BREAKER_KEYS: [&str; 7] = ["window", "min", "ratio", "consecutive", "open", "max", "close_after"];
const BACKOFF_KEYS: [&str; 4] = ["initial", "multiplier", "max", "jitter"];

/// The entries of a file, or everything that is wrong with it.
pub(super) fn parse(text: &str, file: &str, builtins: &[Entry]) -> Result<Vec<Entry>, Vec<String>> {
    let mut reader = Reader { text, file, problems: Vec::new() };
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            reader.problem(at, "", error.message());
            return Err(reader.problems);
        }
    };
    let mut entries = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (key, value) in table.get_ref() {
        if key.get_ref() != "event" {
            reader.unknown(key, "", &["event"]);
            continue;
        }
        let Some(list) = value.get_ref().as_array() else {
            reader.problem(key.span().start, "event", "write each event as its own [[event]] table");
            continue;
        };
        for item in list {
            let start = item.span().start;
            let Some(fields) = item.get_ref().as_table() else {
                reader.problem(start, "event", "must be a table");
                continue;
            };
            let Some(entry) = reader.entry(fields, start, builtins) else { continue };
            let at = fields.iter().find(|(key, _)| matches!(key.get_ref().as_ref(), "name" | "pattern"));
            let at = at.map_or(start, |(key, _)| key.span().start);
            match seen.get(&entry.pattern.to_string()) {
                Some(first) => {
                    let problem = format!("`{}` is in line {first} already", entry.pattern);
                    reader.problem(at, "name", problem);
                }
                None => {
                    seen.insert(entry.pattern.to_string(), reader.line(at));
                    entries.push(entry);
                }
            }
        }
    }
    if reader.problems.is_empty() { Ok(entries) } else { Err(reader.problems) }
}

type Fields<'a> = DeTable<'a>;

struct Reader<'t> {
    text: &'t str,
    file: &'t str,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
    }

    fn problem(&mut self, offset: usize, key: &str, what: impl AsRef<str>) {
        let colon = if key.is_empty() { "" } else { ": " };
        self.problems.push(format!("{}:{}: {key}{colon}{}", self.file, self.line(offset), what.as_ref()));
    }

    fn unknown(&mut self, key: &Spanned<Cow<'_, str>>, path: &str, known: &[&'static str]) {
        let hint = nearest(key.get_ref(), known.iter().copied()).map(|name| format!("; did you mean `{name}`?"));
        let full = format!("{path}{}", key.get_ref());
        self.problem(key.span().start, &full, format!("unknown key{}", hint.unwrap_or_default()));
    }

    fn check_keys(&mut self, fields: &Fields<'_>, path: &str, known: &[&'static str]) {
        for (key, _) in fields {
            if !known.contains(&key.get_ref().as_ref()) {
                self.unknown(key, path, known);
            }
        }
    }

    fn entry(&mut self, fields: &Fields<'_>, start: usize, builtins: &[Entry]) -> Option<Entry> {
        self.check_keys(fields, "", &ENTRY_KEYS);
        let before = self.problems.len();
        let pattern = self.pattern(fields, start);
        let builtin = pattern.as_ref().and_then(|pattern| builtins.iter().find(|entry| entry.pattern == *pattern));
        let priority = self.read(fields, "", "priority", |value| {
            let text = value.as_str().map(str::to_owned).or_else(|| value.as_integer().map(|n| n.as_str().to_owned()));
            text.and_then(|text| text.parse::<Priority>().ok()).ok_or_else(|| "write P0, P1, P2 or P3".into())
        });
        let dedup_window = self.read(fields, "", "dedup_window", duration);
        let dedup_key = self.read(fields, "", "dedup_key", |value| {
            let text = value.as_str().ok_or("must be a CEL expression in quotes")?;
            DedupKey::compile(text).map_err(|error| format!("does not parse: {error}"))
        });
        let description = self.read(fields, "", "description", text);
        let handler = match fields.get("handler") {
            Some(value) => self.handler(value),
            None => {
                if builtin.is_none() && pattern.is_some() {
                    self.problem(start, "handler", "is missing; only a built-in name may go without");
                }
                None
            }
        };
        let handler_timeout = fields
            .get("handler")
            .and_then(|value| value.get_ref().as_table())
            .and_then(|handler| self.read(handler, "handler.", "timeout", duration));
        let concurrency = self.read(fields, "", "concurrency", count);
        let attempts = self.read(fields, "", "attempts", count);
        let backoff = self.backoff(fields);
        let timeout = self.read(fields, "", "timeout", duration).or(handler_timeout);
        let rate_per_s = self.read(fields, "", "rate", rate);
        let weight = self.read(fields, "", "weight", count);
        let ordered = self.read(fields, "", "ordered", boolean);
        let aimd = self.read(fields, "", "aimd", boolean);
        let max_age = self.read(fields, "", "max_age", duration);
        let retry_client_errors = self.read(fields, "", "retry_client_errors", boolean);
        let breaker = self.breaker(fields);
        if self.problems.len() > before {
            return None;
        }
        let base = builtin.cloned();
        Some(Entry {
            pattern: pattern?,
            priority: priority.or(base.as_ref().map(|b| b.priority)).unwrap_or_default(),
            dedup_window: dedup_window.or(base.as_ref().and_then(|b| b.dedup_window)),
            dedup_key: dedup_key.or(base.as_ref().and_then(|b| b.dedup_key.clone())),
            description: description.or(base.as_ref().map(|b| b.description.clone())).unwrap_or_default(),
            handler: handler.or(base.map(|b| b.handler))?,
            concurrency,
            attempts,
            backoff,
            timeout,
            rate_per_s,
            weight: weight.unwrap_or(1),
            ordered: ordered.unwrap_or(false),
            aimd: aimd.unwrap_or(false),
            max_age,
            retry_client_errors: retry_client_errors.unwrap_or(false),
            breaker,
            origin: Origin::File { line: self.line(start) },
        })
    }

    fn pattern(&mut self, fields: &Fields<'_>, start: usize) -> Option<Pattern> {
        let name = self.read(fields, "", "name", |value| {
            let text = value.as_str().ok_or("must be an event name in quotes")?;
            text.parse::<Family>().map(Pattern::Exact).map_err(|error| error.to_string())
        });
        let pattern = self.read(fields, "", "pattern", |value| {
            let text = value.as_str().ok_or("must be a prefix with a `*` at its end, in quotes")?;
            let prefix = text.strip_suffix('*').ok_or("must end with `*`; for one name write `name`")?;
            if prefix.contains('*') {
                return Err("may have one `*`, at its end".into());
            }
            Ok(Pattern::Prefix(prefix.to_owned()))
        });
        match (name, pattern) {
            (Some(_), Some(_)) => {
                self.problem(start, "name", "give either `name` or `pattern`, not both");
                None
            }
            (None, None) => {
                if !fields.contains_key("name") && !fields.contains_key("pattern") {
                    self.problem(start, "name", "is missing");
                }
                None
            }
            (name, pattern) => name.or(pattern),
        }
    }

    fn handler(&mut self, value: &Spanned<DeValue<'_>>) -> Option<HandlerSpec> {
        let start = value.span().start;
        let Some(fields) = value.get_ref().as_table() else {
            self.problem(start, "handler", "must be a table such as { type = \"http\", target = \"http://…\" }");
            return None;
        };
        let kind = self.require(fields, start, "type", text)?;
        let keys: &[&'static str] = match kind.as_str() {
            "inngest" => &["type", "target", "timeout"],
            "http" => &["type", "target", "secret_env", "headers", "timeout"],
            "command" => &["type", "program", "args", "permanent_exit", "timeout"],
            "local" => &["type", "target", "timeout"],
            _ => {
                let at = fields.get("type").map_or(start, |value| value.span().start);
                self.problem(at, "handler.type", format!("`{kind}` is not inngest, http, command or local"));
                return None;
            }
        };
        self.check_keys(fields, "handler.", keys);
        match kind.as_str() {
            "inngest" => {
                let target = self.require(fields, start, "target", |value| {
                    let text = value.as_str().ok_or("must be an event name in quotes")?;
                    text.parse::<Family>().map_err(|error| error.to_string())
                })?;
                Some(HandlerSpec::Inngest { target })
            }
            "http" => {
                let target = self.require(fields, start, "target", |value| {
                    let text = value.as_str().ok_or("must be a URL in quotes")?;
                    let url = reqwest::Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
                    if matches!(url.scheme(), "http" | "https") && url.has_host() {
                        Ok(text.to_owned())
                    } else {
                        Err("must begin with http:// or https://".into())
                    }
                });
                let secret_env = self.read(fields, "handler.", "secret_env", text);
                let headers = self.read(fields, "handler.", "headers", |value| {
                    let table = value.as_table().ok_or("must be a table of header names and values")?;
                    table
                        .iter()
                        .map(|(name, value)| header(name.get_ref(), value.get_ref()))
                        .collect::<Result<Vec<_>, String>>()
                });
                Some(HandlerSpec::Http { target: target?, secret_env, headers: headers.unwrap_or_default() })
            }
            "command" => {
                let program = self.require(fields, start, "program", text);
                let args =
                    self.read(fields, "handler.", "args", |value| list(value, |item| item.as_str().map(str::to_owned)));
                let permanent_exit = self.read(fields, "handler.", "permanent_exit", |value| {
                    list(value, |item| item.as_integer().and_then(|number| number.as_str().parse().ok()))
                });
                Some(HandlerSpec::Command {
                    program: program?,
                    args: args.unwrap_or_default(),
                    permanent_exit: permanent_exit.unwrap_or_default(),
                })
            }
            _ => Some(HandlerSpec::Local { name: self.require(fields, start, "target", text)? }),
        }
    }

    fn backoff(&mut self, fields: &Fields<'_>) -> Backoff {
        let Some(value) = fields.get("backoff") else { return Backoff::default() };
        let Some(table) = value.get_ref().as_table() else {
            self.problem(value.span().start, "backoff", "must be a table such as { initial = \"1s\", max = \"5m\" }");
            return Backoff::default();
        };
        self.check_keys(table, "backoff.", &BACKOFF_KEYS);
        Backoff {
            initial: self.read(table, "backoff.", "initial", duration),
            multiplier: self.read(table, "backoff.", "multiplier", |value| {
                number(value).filter(|number| *number >= 1.0).ok_or_else(|| "must be a number of at least 1".into())
            }),
            max: self.read(table, "backoff.", "max", duration),
            full_jitter: self.read(table, "backoff.", "jitter", |value| match value.as_str() {
                Some("full") => Ok(true),
                Some("none") => Ok(false),
                _ => Err("write \"full\" or \"none\"".into()),
            }),
        }
    }

    fn breaker(&mut self, fields: &Fields<'_>) -> BreakerSpec {
        let Some(value) = fields.get("breaker") else { return BreakerSpec::default() };
        if let Some(is_on) = value.get_ref().as_bool() {
            return BreakerSpec { is_off: !is_on, ..BreakerSpec::default() };
        }
        let Some(table) = value.get_ref().as_table() else {
            self.problem(
                value.span().start,
                "breaker",
                "must be false, or a table such as { open = \"30s\", min = 10 }",
            );
            return BreakerSpec::default();
        };
        self.check_keys(table, "breaker.", &BREAKER_KEYS);
        BreakerSpec {
            is_off: false,
            window: self.read(table, "breaker.", "window", duration),
            min: self.read(table, "breaker.", "min", count),
            ratio: self.read(table, "breaker.", "ratio", |value| {
                let ratio = number(value).filter(|ratio| *ratio > 0.0 && *ratio <= 1.0);
                ratio.ok_or_else(|| "must be above 0 and at most 1".into())
            }),
            consecutive: self.read(table, "breaker.", "consecutive", count),
            open: self.read(table, "breaker.", "open", duration),
            max: self.read(table, "breaker.", "max", duration),
            close_after: self.read(table, "breaker.", "close_after", count),
        }
    }

    fn read<T>(
        &mut self,
        fields: &Fields<'_>,
        path: &str,
        key: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let value = fields.get(key)?;
        match parse(value.get_ref()) {
            Ok(value) => Some(value),
            Err(what) => {
                self.problem(value.span().start, &format!("{path}{key}"), what);
                None
            }
        }
    }

    fn require<T>(
        &mut self,
        fields: &Fields<'_>,
        start: usize,
        key: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if fields.contains_key(key) {
            return self.read(fields, "handler.", key, parse);
        }
        self.problem(start, &format!("handler.{key}"), "is missing");
        None
    }
}

/// A header that can be sent; the value, which may be a secret, is in no error.
fn header(name: &str, value: &DeValue<'_>) -> Result<(String, String), String> {
    let value = value.as_str().ok_or_else(|| format!("the value of header `{name}` must be text in quotes"))?;
    HeaderName::try_from(name).map_err(|_| format!("`{name}` is no header name"))?;
    HeaderValue::try_from(value).map_err(|_| format!("the value of header `{name}` can't be sent"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn text(value: &DeValue<'_>) -> Result<String, String> {
    match value.as_str().map(str::trim) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("must be text in quotes".into()),
    }
}

fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    value
        .as_str()
        .and_then(parse_duration)
        .ok_or_else(|| "must be a duration such as \"45s\", \"10m\" or \"2h\"".into())
}

fn count(value: &DeValue<'_>) -> Result<u32, String> {
    let number = value.as_integer().and_then(|number| number.as_str().parse::<u32>().ok());
    number.filter(|number| *number > 0).ok_or_else(|| "must be a whole number of at least 1".into())
}

fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "must be true or false".into())
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    let text = value.as_float().map(|float| float.as_str().to_owned());
    text.or_else(|| value.as_integer().map(|number| number.as_str().to_owned()))?.parse().ok()
}

/// `5/s`, `30/m`, `100/h` or a plain number per second.
fn rate(value: &DeValue<'_>) -> Result<f64, String> {
    let parsed = match value.as_str() {
        Some(text) => text.split_once('/').and_then(|(count, unit)| {
            let per = match unit.trim() {
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            Some(count.trim().parse::<f64>().ok()? / per)
        }),
        None => number(value),
    };
    parsed
        .filter(|rate| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "must be a rate such as \"5/s\", \"30/m\" or \"100/h\"".into())
}

fn list<T>(value: &DeValue<'_>, item: impl Fn(&DeValue<'_>) -> Option<T>) -> Result<Vec<T>, String> {
    let items = value.as_array().ok_or("must be a list")?;
    items.iter().map(|value| item(value.get_ref()).ok_or_else(|| "has an item of another type".into())).collect()
}
