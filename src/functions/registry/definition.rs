//! What an app registers: the body of `POST /fn/register` and of an in-band sync, read and checked.
//!
//! Keys are matched without regard to case, because the Python SDK spells them its own way and existing servers decode
//! them so. Unknown members are kept in [`Function::config`] and never a reason to refuse. A document with one wrong
//! function registers nothing; the error names that function, the field and the cause.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::super::duration::time_string;
use super::super::expr::{Expr, Roots};
use super::super::ids;
use super::super::schedule::Schedule;
use super::flow::Flow;

/// Retries where a function names none.
pub const DEFAULT_RETRIES: u32 = 4;
/// Retries at most; more are clipped.
pub const MAX_RETRIES: u32 = 20;
const MAX_TRIGGERS: usize = 10;
const MAX_CANCELS: usize = 5;
const MAX_NAME_CHARS: usize = 255;

/// An app as it registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct App {
    /// `appName`, or the id of an in-band document.
    pub name: String,
    /// Follows from the name.
    pub id: Uuid,
    /// Where it is served.
    pub url: String,
    /// `js:v4.24.0`.
    #[serde(default)]
    pub sdk: String,
    /// `express`, `flask`, ….
    #[serde(default)]
    pub framework: String,
    /// SHA-256 of what it registered, without what differs between two syncs of the same functions.
    pub checksum: String,
    /// Slugs of its functions, in its order.
    pub functions: Vec<String>,
}

/// One function as it registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// `<app>-<id>`: what `fnId`, `function_id` and people call it.
    pub slug: String,
    /// Follows from app and slug.
    pub id: Uuid,
    /// Its app's name.
    pub app: String,
    /// For people.
    pub name: String,
    /// What starts it; none is legal, such a function is only invoked.
    pub triggers: Vec<Trigger>,
    /// Where a call goes, with its own query; `stepId` is set per call.
    pub url: String,
    /// Attempts after the first, per step and per stretch of code between steps.
    pub retries: u32,
    /// Events that cancel its runs.
    #[serde(default)]
    pub cancel: Vec<Cancel>,
    /// A run that has not started after so many ms is cancelled.
    #[serde(default)]
    pub start_timeout_ms: Option<u64>,
    /// A run that has not ended so many ms after its start is cancelled.
    #[serde(default)]
    pub finish_timeout_ms: Option<u64>,
    /// Flow control.
    pub flow: Flow,
    /// What is odd about it, without being a reason to refuse it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// As it was registered.
    pub config: Value,
}

/// What starts a function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// Event name, or a pattern that ends in `/*` or `.*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Condition on the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// Schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// A tick fires up to so many ms late, each by its own share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<u64>,
}

/// An event that cancels a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Its name.
    pub event: String,
    /// Condition on the run's event and the arriving one.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// How long after the run's creation it counts, ms.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// Why a document registers nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The document as a whole.
    #[error("{0}")]
    Document(String),
    /// One function.
    #[error("function `{function}`: {field}: {reason}")]
    Function {
        /// Its id, or its place in the list.
        function: String,
        /// The member that is wrong.
        field: String,
        /// The rule it breaks.
        reason: String,
    },
}

/// An app with its functions.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The app.
    pub app: App,
    /// Its functions, in its order.
    pub functions: Vec<Function>,
}

impl Registration {
    /// Reads a document; `known_url` is where it was fetched from, for in-band documents without one.
    pub fn parse(document: &Value, known_url: Option<&str>) -> Result<Self, Invalid> {
        let body = document
            .as_object()
            .map(Members)
            .ok_or_else(|| Invalid::Document("the body must be a JSON object".into()))?;
        let name = ["appName", "app_id", "appId"].iter().find_map(|key| body.text(key)).unwrap_or_default();
        if name.is_empty() {
            return Err(Invalid::Document("App ID required".into()));
        }
        let url = body.text("url").or_else(|| known_url.map(str::to_owned)).unwrap_or_default();
        if !is_http(&url) {
            return Err(Invalid::Document(format!("url: `{url}` is no http:// or https:// URL")));
        }
        let app_id = ids::app_id(&name);
        let listed: &[Value] = match body.get("functions") {
            None | Some(Value::Null) => &[],
            Some(Value::Array(list)) => list,
            Some(_) => return Err(Invalid::Document("functions: must be an array".into())),
        };
        let mut functions: Vec<Function> = Vec::with_capacity(listed.len());
        for (index, item) in listed.iter().enumerate() {
            let function = Reader::new(item, index, &name)?.read(app_id, &url)?;
            if functions.iter().any(|other| other.slug == function.slug) {
                return Err(Invalid::Function {
                    function: function.slug,
                    field: "id".into(),
                    reason: "is used by two functions of this app".into(),
                });
            }
            functions.push(function);
        }
        let sdk = body.text("sdk").unwrap_or_else(|| {
            let part = |key| body.text(key).unwrap_or_default();
            format!("{}:{}", part("sdk_language"), part("sdk_version"))
        });
        let app = App {
            id: app_id,
            url: normalised_url(&url),
            sdk,
            framework: body.text("framework").unwrap_or_default(),
            checksum: checksum(&functions),
            functions: functions.iter().map(|function| function.slug.clone()).collect(),
            name,
        };
        Ok(Self { app, functions })
    }
}

/// What the functions are, whatever order the members of the document have.
fn checksum(functions: &[Function]) -> String {
    let mut hash = Sha256::new();
    for function in functions {
        let canonical = serde_json_canonicalizer::to_vec(&function.config).unwrap_or_default();
        hash.update(function.slug.as_bytes());
        hash.update(canonical);
        hash.update([0]);
    }
    hex::encode(hash.finalize())
}

/// The members of an object, found without regard to case.
#[derive(Clone, Copy)]
pub(super) struct Members<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Members<'a> {
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).or_else(|| self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, v)| v))
    }

    pub(super) fn text(self, key: &str) -> Option<String> {
        self.get(key).and_then(Value::as_str).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Absent, null and empty lists are the same.
    pub(super) fn list(self, key: &str) -> Option<&'a [Value]> {
        self.get(key).and_then(Value::as_array).map(Vec::as_slice).filter(|list| !list.is_empty())
    }

    pub(super) fn object(self, key: &str) -> Option<Members<'a>> {
        self.get(key).and_then(Value::as_object).map(Members)
    }
}

/// Reads one function and says what is wrong with it.
pub(super) struct Reader<'a> {
    pub(super) body: Members<'a>,
    config: &'a Value,
    label: String,
    app: &'a str,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(config: &'a Value, index: usize, app: &'a str) -> Result<Self, Invalid> {
        let place = format!("#{index}");
        let Some(body) = config.as_object().map(Members) else {
            return Err(Invalid::Function { function: place, field: "".into(), reason: "must be an object".into() });
        };
        let label = body.text("id").or_else(|| body.text("name")).unwrap_or(place);
        Ok(Self { body, config, label, app, warnings: Vec::new() })
    }

    pub(super) fn wrong(&self, field: &str, reason: impl Into<String>) -> Invalid {
        Invalid::Function { function: self.label.clone(), field: field.to_owned(), reason: reason.into() }
    }

    fn read(mut self, app_id: Uuid, app_url: &str) -> Result<Function, Invalid> {
        let slug = self.body.text("id").ok_or_else(|| self.wrong("id", "is missing"))?;
        if slug.chars().count() > MAX_NAME_CHARS {
            return Err(self.wrong("id", format!("is longer than {MAX_NAME_CHARS} characters")));
        }
        let name = match self.body.get("name") {
            Some(Value::String(name)) if name.trim().is_empty() => return Err(self.wrong("name", "is empty")),
            _ => self.body.text("name").unwrap_or_else(|| slug.clone()),
        };
        let (url, retries) = self.step(app_url, &slug)?;
        let triggers = self.triggers()?;
        let cancel = self.cancels()?;
        let (start_timeout_ms, finish_timeout_ms) = match self.body.object("timeouts") {
            Some(timeouts) => {
                (self.span(timeouts, "start", "timeouts.start")?, self.span(timeouts, "finish", "timeouts.finish")?)
            }
            None => (None, None),
        };
        let flow = self.flow()?;
        Ok(Function {
            id: ids::function_id(app_id, &slug),
            app: self.app.to_owned(),
            slug,
            name,
            triggers,
            url,
            retries,
            cancel,
            start_timeout_ms,
            finish_timeout_ms,
            flow,
            warnings: self.warnings,
            config: self.config.clone(),
        })
    }

    /// URL and retries of the one step that every function registers.
    fn step(&self, app_url: &str, slug: &str) -> Result<(String, u32), Invalid> {
        let own = self.body.get("retries").and_then(Value::as_u64);
        let step = self.body.object("steps").and_then(|steps| {
            steps.object("step").or_else(|| steps.0.values().find_map(Value::as_object).map(Members))
        });
        let retries = step
            .and_then(|step| match step.get("retries") {
                Some(Value::Object(retries)) => Members(retries).get("attempts").and_then(Value::as_u64),
                other => other.and_then(Value::as_u64),
            })
            .or(own)
            .map_or(DEFAULT_RETRIES, |retries| u32::try_from(retries).unwrap_or(MAX_RETRIES).min(MAX_RETRIES));
        let runtime = step.and_then(|step| step.object("runtime"));
        let Some(url) = runtime.and_then(|runtime| runtime.text("url")) else {
            let separator = if app_url.contains('?') { '&' } else { '?' };
            let id = form_urlencoded::byte_serialize(slug.as_bytes()).collect::<String>();
            return Ok((format!("{app_url}{separator}fnId={id}&stepId=step"), retries));
        };
        if ["http://", "https://", "ws://", "wss://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Ok((url, retries));
        }
        Err(self.wrong("steps.step.runtime.url", format!("`{url}` must begin with http, https, ws or wss")))
    }

    fn triggers(&mut self) -> Result<Vec<Trigger>, Invalid> {
        let listed = self.body.list("triggers").unwrap_or_default();
        if listed.len() > MAX_TRIGGERS {
            return Err(self.wrong("triggers", format!("are {}; the limit is {MAX_TRIGGERS}", listed.len())));
        }
        let mut triggers = Vec::with_capacity(listed.len());
        for (index, item) in listed.iter().enumerate() {
            let field = format!("triggers[{index}]");
            let Some(item) = item.as_object().map(Members) else {
                return Err(self.wrong(&field, "must be an object"));
            };
            let mut trigger = Trigger {
                event: item.text("event"),
                expression: item.text("expression"),
                cron: item.text("cron"),
                jitter_ms: None,
            };
            match (&trigger.event, &trigger.cron) {
                (Some(_), Some(_)) => return Err(self.wrong(&field, "has both event and cron")),
                (None, None) => return Err(self.wrong(&field, "has neither event nor cron")),
                (Some(event), None) => self.event_pattern(event, &format!("{field}.event"))?,
                (None, Some(cron)) => self.cron(cron, &format!("{field}.cron"))?,
            }
            if let Some(jitter) = item.get("jitter").filter(|jitter| !jitter.is_null()) {
                let ms = jitter.as_str().and_then(time_string);
                if !ms.is_some_and(|ms| (1_000..=300_000).contains(&ms)) {
                    return Err(self.wrong(&format!("{field}.jitter"), format!("{jitter} must be 1s to 5m")));
                }
                trigger.jitter_ms = ms;
            }
            if let Some(expression) = &trigger.expression {
                self.condition(expression, &format!("{field}.expression"), Roots::Event)?;
            }
            let is_same = |other: &Trigger| {
                (&other.event, &other.expression, &other.cron) == (&trigger.event, &trigger.expression, &trigger.cron)
            };
            if triggers.iter().any(is_same) {
                return Err(self.wrong(&field, "repeats an earlier trigger"));
            }
            triggers.push(trigger);
        }
        Ok(triggers)
    }

    fn event_pattern(&self, event: &str, field: &str) -> Result<(), Invalid> {
        if event.chars().count() > MAX_NAME_CHARS {
            return Err(self.wrong(field, format!("is longer than {MAX_NAME_CHARS} characters")));
        }
        match event.find('*') {
            None => Ok(()),
            Some(at) if at + 1 == event.len() && (event.ends_with("/*") || event.ends_with(".*")) => Ok(()),
            Some(_) => Err(self.wrong(field, format!("`{event}`: a * may stand only at the end, after / or ."))),
        }
    }

    fn cron(&self, cron: &str, field: &str) -> Result<(), Invalid> {
        if cron.chars().count() > MAX_NAME_CHARS {
            return Err(self.wrong(field, format!("is longer than {MAX_NAME_CHARS} characters")));
        }
        cron.parse::<Schedule>().map(drop).map_err(|error| self.wrong(field, error.to_string()))
    }

    fn cancels(&self) -> Result<Vec<Cancel>, Invalid> {
        let listed = self.body.list("cancel").unwrap_or_default();
        if listed.len() > MAX_CANCELS {
            return Err(self.wrong("cancel", format!("are {}; the limit is {MAX_CANCELS}", listed.len())));
        }
        let read = |(index, item): (usize, &Value)| {
            let field = format!("cancel[{index}]");
            let item = item.as_object().map(Members).ok_or_else(|| self.wrong(&field, "must be an object"))?;
            let event = item.text("event").ok_or_else(|| self.wrong(&field, "has no event"))?;
            let condition = item.text("if");
            if let Some(condition) = &condition {
                self.condition(condition, &format!("{field}.if"), Roots::EventAndAsync)?;
            }
            let timeout_ms = self.span(item, "timeout", &format!("{field}.timeout"))?;
            Ok(Cancel { event, condition, timeout_ms })
        };
        listed.iter().enumerate().map(read).collect()
    }

    pub(super) fn condition(&self, text: &str, field: &str, roots: Roots) -> Result<(), Invalid> {
        Expr::compile(text, roots).map(drop).map_err(|error| self.wrong(field, format!("`{text}`: {error}")))
    }

    /// A time string in ms; absent, null and empty are none.
    pub(super) fn span(&self, of: Members<'_>, key: &str, field: &str) -> Result<Option<u64>, Invalid> {
        match of.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::String(text)) => time_string(text)
                .map(Some)
                .ok_or_else(|| self.wrong(field, format!("`{text}` is no duration such as 30s, 5m or 1d"))),
            Some(other) => Err(self.wrong(field, format!("{other} is no duration such as 30s, 5m or 1d"))),
        }
    }
}

fn is_http(url: &str) -> bool {
    ["http://", "https://", "ws://", "wss://"]
        .iter()
        .any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')))
}

/// Without default ports and without the query parameters of one sync.
#[must_use]
pub fn normalised_url(url: &str) -> String {
    let Ok(mut parsed) = reqwest::Url::parse(url) else { return url.to_owned() };
    let kept: Vec<(String, String)> = parsed
        .query_pairs()
        .filter(|(key, _)| key != "deployId" && key != "probe")
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    if kept.is_empty() {
        parsed.set_query(None);
    } else {
        parsed.query_pairs_mut().clear().extend_pairs(kept);
    }
    parsed.to_string()
}

/// Two URLs of one app: the names of this machine are one.
#[must_use]
pub fn same_url(one: &str, other: &str) -> bool {
    let loose = |url: &str| {
        let url = normalised_url(url);
        ["127.0.0.1", "0.0.0.0", "[::1]"]
            .iter()
            .fold(url, |url, host| url.replacen(&format!("://{host}"), "://localhost", 1))
    };
    loose(one) == loose(other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(function: Value) -> Value {
        json!({"url": "http://127.0.0.1:3111/api/inngest", "appName": "app", "sdk": "js:v4.24.0", "functions": [function]})
    }

    fn function(more: Value) -> Value {
        let mut function = json!({"id": "app-a", "name": "A", "triggers": [{"event": "a/b"}],
            "steps": {"step": {"id": "step", "runtime": {"type": "http", "url": "http://127.0.0.1:3111/api/inngest?fnId=app-a&stepId=step"}, "retries": {"attempts": 3}}}});
        for (key, value) in more.as_object().unwrap() {
            function[key] = value.clone();
        }
        function
    }

    #[test]
    fn both_spellings_are_read() {
        let js = Registration::parse(&document(function(json!({}))), None).unwrap();
        let python = json!({"appname": "app", "deploy_type": "ping", "url": "http://127.0.0.1:3111/api/inngest", "functions": [function(json!({"cancel": [], "concurrency": []}))]});
        let python = Registration::parse(&python, None).unwrap();
        assert_eq!((js.app.id, js.functions[0].id), (python.app.id, python.functions[0].id));
        assert_eq!(js.functions[0].retries, 3);
    }

    #[test]
    fn a_wrong_function_is_named_with_field_and_cause() {
        let cases = [
            (json!({"id": ""}), "id"),
            (json!({"triggers": [{"event": "a/b", "cron": "* * * * *"}]}), "triggers[0]"),
            (json!({"triggers": [{"event": "a/*b"}]}), "triggers[0].event"),
            (json!({"triggers": [{"event": "a/b", "expression": "event.data."}]}), "triggers[0].expression"),
            (json!({"triggers": [{"cron": "@daily"}]}), "triggers[0].cron"),
            (json!({"triggers": [{"event": "a"}, {"event": "a"}]}), "triggers[1]"),
            (json!({"concurrency": [{"limit": 1, "scope": "account"}]}), "concurrency[0]"),
            (json!({"debounce": {"period": "10d"}}), "debounce.period"),
            (json!({"rateLimit": {"limit": 0, "period": "1m"}}), "rateLimit.limit"),
            (json!({"timeouts": {"start": "soon"}}), "timeouts.start"),
            (json!({"batchEvents": {"maxSize": 3, "timeout": "2s"}, "singleton": {"mode": "skip"}}), "batchEvents"),
        ];
        for (more, expected) in cases {
            match Registration::parse(&document(function(more.clone())), None) {
                Err(Invalid::Function { field, function, .. }) => {
                    assert_eq!(field, expected);
                    assert!(["app-a", "A"].contains(&function.as_str()), "{function}");
                }
                other => panic!("{more}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_unquoted_constant_registers_with_a_warning() {
        let app =
            Registration::parse(&document(function(json!({"concurrency": {"limit": 1, "key": "granola-mcp"}}))), None);
        assert_eq!(app.unwrap().functions[0].warnings.len(), 1);
    }

    #[test]
    fn urls_lose_what_belongs_to_one_sync() {
        assert_eq!(normalised_url("http://a:80/x?deployId=1&fnId=q"), "http://a/x?fnId=q");
        assert!(same_url("http://localhost:3111/a", "http://127.0.0.1:3111/a"));
        assert!(!same_url("http://localhost:3111/a", "http://localhost:3112/a"));
    }
}
