//! What a command says: one JSON envelope in pipes, a short text at a terminal.
//!
//! A command returns a [`Report`] or a [`Failure`]; this module alone writes to stdout. In JSON the exit code and the
//! envelope come from the same value, so they can't disagree. Warnings, logs and progress go to stderr. A reader that
//! went away (`| head -1`) is no failure.
//!
//! `{"ok","command","result","next_actions"}`; a failure has `"result":null`, `"error":{"message","code"}` and `"fix"`.
//! `ok:false` without `error` means: the command ran and found something bad, and `result` is complete.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::render::{Human, paint};
use crate::config::{Warning, without_userinfo};
use crate::diagnose::{Diagnose, Exit, chain};

/// More than this is noise.
const MAX_NEXT_ACTIONS: usize = 8;

/// What a command found.
#[derive(Debug, Clone)]
pub struct Report {
    result: Value,
    human: Human,
    /// Text that is the result itself (a completion script): printed as it is unless JSON was asked for.
    raw: Option<String>,
    /// The list inside `result` that `--ndjson` prints line by line.
    list: Option<&'static str>,
    next: Vec<NextAction>,
    exit: Exit,
}

impl Report {
    /// A result with the text that a person sees instead.
    pub fn new(result: impl Serialize, human: Human) -> Self {
        let result = serde_json::to_value(result).unwrap_or(Value::Null);
        Self { result, human, raw: None, list: None, next: Vec::new(), exit: Exit::Ok }
    }

    /// Text for a file or another program, such as a completion script.
    pub fn raw(result: impl Serialize, text: String) -> Self {
        Self { raw: Some(text), ..Self::new(result, Human::new()) }
    }

    /// The field of `result` that holds the list.
    pub fn list(mut self, field: &'static str) -> Self {
        self.list = Some(field);
        self
    }

    /// What to do next; the most useful first.
    pub fn next(mut self, action: NextAction) -> Self {
        self.next.push(action);
        self
    }

    /// The thing asked about is bad: `ok` is false, and the exit code says so.
    pub fn unhealthy(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

/// Why a command could not do what it was asked. Any [`Diagnose`] becomes one by `?`.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: String,
    fix: String,
    exit: Exit,
    next: Vec<NextAction>,
}

impl<E: Diagnose + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            message: chain(&error),
            code: error.code().to_owned(),
            fix: error.fix(),
            exit: error.exit(),
            next: Vec::new(),
        }
    }
}

impl Failure {
    /// A failure that is no module's error: wrong usage, a fault of ours.
    pub fn new(code: &str, exit: Exit, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { message: message.into(), code: clean_code(code), fix: fix.into(), exit, next: Vec::new() }
    }

    /// What to do next.
    pub fn next(mut self, action: NextAction) -> Self {
        self.next.push(action);
        self
    }

    /// What happened.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The stable code.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The same with another way out.
    pub fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

/// Foreign codes: trimmed, upper-cased, anything but `A-Z0-9_` an underscore.
fn clean_code(code: &str) -> String {
    let code: String = code
        .trim()
        .chars()
        .map(|c| c.to_ascii_uppercase())
        .map(|c| if c.is_ascii_uppercase() || c.is_ascii_digit() { c } else { '_' })
        .collect();
    if code.is_empty() { "UNKNOWN_ERROR".into() } else { code }
}

/// A command to run next. `<name>` stands for a parameter; `[…]` is left out unless its parameters have values.
#[derive(Debug, Clone, Serialize)]
pub struct NextAction {
    command: String,
    description: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    params: Map<String, Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    external: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    destructive: bool,
}

/// What is known of a parameter.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Param {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(rename = "enum", skip_serializing_if = "Vec::is_empty")]
    allowed: Vec<Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
}

impl Param {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Known from the context.
    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// What the command takes without it.
    pub fn default_value(mut self, value: impl Into<Value>) -> Self {
        self.default = Some(value.into());
        self
    }

    /// What it means.
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = Some(text.into());
        self
    }

    /// The only values accepted.
    pub fn one_of<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.allowed = values.into_iter().map(Into::into).collect();
        self
    }

    /// The command needs it.
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

impl NextAction {
    /// A command of ours, without the `joelclaw `.
    pub fn new(command: impl AsRef<str>, description: impl Into<String>) -> Self {
        let command = command.as_ref().trim();
        let command = command.strip_prefix("joelclaw ").unwrap_or(command);
        Self {
            command: format!("joelclaw {command}"),
            description: description.into(),
            params: Map::new(),
            external: false,
            destructive: false,
        }
    }

    /// A command of another program.
    pub fn external(command: impl Into<String>, description: impl Into<String>) -> Self {
        Self { command: command.into(), external: true, ..Self::new("", description) }
    }

    /// With what is known of `<name>`.
    pub fn param(mut self, name: &str, param: Param) -> Self {
        self.params.insert(name.to_owned(), serde_json::to_value(param).unwrap_or_default());
        self
    }

    /// It changes or removes something: never shown first.
    pub fn destructive(mut self) -> Self {
        self.destructive = true;
        self
    }

    /// The command with the known values in place, ready to paste.
    pub fn fill(&self) -> String {
        let mut out = String::new();
        let mut rest = self.command.as_str();
        while let Some(open) = rest.find('[') {
            let Some(close) = rest[open..].find(']').map(|at| open + at) else { break };
            out.push_str(&self.fill_part(rest[..open].trim_end()).0);
            let (optional, is_known) = self.fill_part(&rest[open + 1..close]);
            if is_known {
                let _ = write!(out, " {optional}");
            }
            rest = &rest[close + 1..];
        }
        out.push_str(&self.fill_part(rest.trim_end()).0);
        out.trim().to_owned()
    }

    fn fill_part(&self, text: &str) -> (String, bool) {
        let mut filled = text.to_owned();
        let mut is_known = false;
        for (name, param) in &self.params {
            let slot = format!("<{name}>");
            if let (true, Some(value)) = (filled.contains(&slot), param.get("value")) {
                is_known |= param.get("default") != Some(value);
                filled = filled.replace(&slot, &shell_word(value));
            }
        }
        (filled, is_known)
    }
}

fn shell_word(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./:@=,+-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Destructive ones never first, at most eight.
fn arrange(next: &[NextAction]) -> Vec<&NextAction> {
    let (destructive, safe): (Vec<_>, Vec<_>) = next.iter().partition(|action| action.destructive);
    // With nothing safe to lead, the destructive ones stay out: what is shown first gets pasted first.
    if safe.is_empty() {
        return Vec::new();
    }
    safe.into_iter().chain(destructive).take(MAX_NEXT_ACTIONS).collect()
}

/// The shape of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One envelope on one line.
    Json,
    /// A list's items, one a line.
    Ndjson,
    /// For people.
    Human,
}

/// How this run talks.
#[derive(Debug, Clone)]
pub struct Output {
    /// The shape.
    pub mode: Mode,
    /// JSON by flag or variable, not only because stdout is no terminal.
    pub is_json_asked: bool,
    /// No hints, no progress.
    pub is_quiet: bool,
    /// Colour on stdout.
    pub is_colored: bool,
    /// Details on stderr.
    pub is_verbose: bool,
}

/// What decides how a run talks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    /// `--json`.
    pub json: bool,
    /// `--ndjson`.
    pub ndjson: bool,
    /// `--quiet`.
    pub quiet: bool,
    /// `--verbose`.
    pub verbose: bool,
    /// `--no-color`.
    pub no_color: bool,
}

impl Output {
    /// By flags, `JOELCLAW_OUTPUT` (`json` or `text`), `NO_COLOR`, and whether stdout is a terminal.
    pub fn of_process(asked: Asked) -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let format = set("JOELCLAW_OUTPUT");
        let is_terminal = io::stdout().is_terminal();
        let is_json_asked = asked.json || format.as_deref() == Some("json");
        let mode = if asked.ndjson {
            Mode::Ndjson
        } else if is_json_asked || (!is_terminal && format.as_deref() != Some("text")) {
            Mode::Json
        } else {
            Mode::Human
        };
        let is_dumb = set("NO_COLOR").is_some() || std::env::var("TERM").is_ok_and(|term| term == "dumb");
        Self {
            mode,
            is_json_asked,
            is_quiet: asked.quiet,
            is_colored: is_terminal && !is_dumb && !asked.no_color,
            is_verbose: asked.verbose,
        }
    }

    /// Warnings where someone can act on them: at a terminal, or when details were asked for.
    pub fn warn(&self, warnings: &[Warning]) {
        if self.is_quiet || !(self.is_verbose || (self.mode == Mode::Human && io::stderr().is_terminal())) {
            return;
        }
        let mut stderr = io::stderr().lock();
        for warning in warnings {
            let _ = writeln!(stderr, "warning: {}", warning.message);
        }
    }

    /// Prints the outcome and gives its exit code.
    pub fn finish(&self, command: &str, outcome: Result<Report, Failure>) -> ExitCode {
        let text = self.render(command, &outcome);
        let written = print(&text.stdout);
        if written.is_err() {
            return write_failed(written);
        }
        let _ = io::stderr().lock().write_all(text.stderr.as_bytes());
        ExitCode::from(text.exit as u8)
    }

    /// One line of a stream (`queue tail`, `--watch`), flushed. Stop at `false`: nobody reads any more.
    pub fn line(&self, value: &Value) -> bool {
        print(&format!("{value}\n")).is_ok()
    }

    /// The same for people: text as it is.
    pub fn text(&self, text: &str) -> bool {
        print(&format!("{text}\n")).is_ok()
    }

    /// Whether somebody still reads, asked without writing: for a stream that has nothing to say for a while.
    pub fn is_read(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let stdout = io::stdout();
        let mut asked = [PollFd::new(std::os::fd::AsFd::as_fd(&stdout), PollFlags::empty())];
        let is_asked = poll(&mut asked, PollTimeout::ZERO).is_ok();
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        !(is_asked && asked[0].revents().is_some_and(|events| events.intersects(gone)))
    }

    /// A page that replaces the one before it, for `--watch` at a terminal.
    pub(super) fn page(&self, text: &str) -> bool {
        print(&format!("\u{1b}[H\u{1b}[2J{text}")).is_ok()
    }

    /// The text and exit code of an outcome.
    pub(super) fn render(&self, command: &str, outcome: &Result<Report, Failure>) -> Rendered {
        let exit = match outcome {
            Ok(report) => report.exit,
            Err(failure) => failure.exit,
        };
        let (stdout, stderr) = match (self.mode, outcome) {
            (Mode::Human, Ok(report)) => (self.human(report), String::new()),
            (Mode::Human, Err(failure)) => (String::new(), self.complaint(failure)),
            (_, Ok(Report { raw: Some(text), .. })) if !self.is_json_asked => (text.clone(), String::new()),
            (Mode::Ndjson, Ok(report)) => (lines(report), String::new()),
            _ => (format!("{}\n", envelope(command, outcome)), String::new()),
        };
        Rendered { stdout, stderr, exit }
    }

    fn human(&self, report: &Report) -> String {
        if let Some(text) = &report.raw {
            return text.clone();
        }
        let mut out = report.human.render(self.is_colored);
        if !self.is_quiet {
            self.hints(&report.next, &mut out);
        }
        out
    }

    fn complaint(&self, failure: &Failure) -> String {
        let is_colored = self.is_colored && io::stderr().is_terminal();
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        let mut out = format!("{} {} ({})\n", paint(red, "error:", is_colored), failure.message, failure.code);
        let _ = writeln!(out, "{} {}", paint(Style::new().bold(), "fix:", is_colored), fix_of(failure));
        if !self.is_quiet {
            self.hints(&failure.next, &mut out);
        }
        out
    }

    fn hints(&self, next: &[NextAction], out: &mut String) {
        let next = arrange(next);
        if next.is_empty() {
            return;
        }
        out.push('\n');
        for action in next.into_iter().take(2) {
            let description = paint(Style::new().dimmed(), &format!("# {}", action.description), self.is_colored);
            let _ = writeln!(out, "  {}  {description}", action.fill());
        }
    }
}

/// What will be written, and the exit code.
pub(super) struct Rendered {
    pub stdout: String,
    pub stderr: String,
    pub exit: Exit,
}

fn fix_of(failure: &Failure) -> &str {
    if failure.fix.trim().is_empty() { "Inspect the error and retry." } else { &failure.fix }
}

/// The contract's envelope. `command` is the command path without arguments.
pub(super) fn envelope(command: &str, outcome: &Result<Report, Failure>) -> Value {
    match outcome {
        Ok(report) => json!({
            "ok": report.exit == Exit::Ok,
            "command": command,
            "result": report.result,
            "next_actions": arrange(&report.next),
        }),
        Err(failure) => json!({
            "ok": false,
            "command": command,
            "result": null,
            "error": { "message": failure.message, "code": failure.code },
            "fix": fix_of(failure),
            "next_actions": arrange(&failure.next),
        }),
    }
}

pub(super) fn result_of(report: &Report) -> &Value {
    &report.result
}

fn lines(report: &Report) -> String {
    let items = report.list.and_then(|field| report.result.get(field)).and_then(Value::as_array);
    match items {
        Some(items) => items.iter().map(|item| format!("{item}\n")).collect(),
        None => format!("{}\n", report.result),
    }
}

/// Help and version: text on stdout.
pub(super) fn print_help(text: &str) -> ExitCode {
    write_failed(print(text))
}

/// Usage at a terminal: text on stderr.
pub(super) fn print_usage(text: &str) -> ExitCode {
    let _ = io::stderr().lock().write_all(text.as_bytes());
    ExitCode::from(Exit::Usage as u8)
}

/// Arguments are repeated in messages of the parser; a URL's password is not.
pub(super) fn redact(text: &str) -> String {
    text.split_inclusive(char::is_whitespace).map(without_userinfo).collect()
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A reader that went away is no failure; a full disk is.
fn write_failed(written: io::Result<()>) -> ExitCode {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr().lock(), "error: stdout can't be written: {error}");
            ExitCode::from(Exit::Internal as u8)
        }
        _ => ExitCode::SUCCESS,
    }
}
