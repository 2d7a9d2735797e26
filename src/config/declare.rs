//! How a setting is declared, and how a declaration becomes a value.
//!
//! [`settings!`](macro@crate::config::declare::settings) takes the fields of a struct with variable, kind, default
//! and doc; from that one declaration come the struct, its loading, `joelclaw config` and the table in the docs.
//! A value that its [`Kind`] refuses is replaced by the default with one warning that names the variable: a typo in
//! one number must not keep the drainer down.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use crate::known_secrets;

use super::env_file::EnvFile;
use super::secret::mask;
use super::units::{Cidr, MemoryBudget, parse_bytes, parse_duration, parse_percent};
use super::{Sources, Warning};

/// What chose a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A flag of this command.
    Flag,
    /// The env file.
    File,
    /// The environment of this process.
    Environment,
    /// Nothing said otherwise.
    Default,
}

impl Origin {
    /// The word in `joelclaw config`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Default => "default",
        }
    }
}

/// Which of file and environment wins. Flags always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The rule: what the service and every command share is in the file, whatever a shell happens to carry.
    FileFirst,
    /// The Inngest variables, whose SDKs read the environment.
    EnvironmentFirst,
}

/// One setting, as the docs and `joelclaw config` show it.
#[derive(Debug, Clone)]
pub struct Declared {
    /// The variable.
    pub key: &'static str,
    /// The part of the program it belongs to.
    pub part: &'static str,
    /// The default as text; empty is unset.
    pub default: &'static str,
    /// What values are accepted.
    pub expects: String,
    /// What it means.
    pub doc: String,
    /// Never shown.
    pub is_secret: bool,
    /// Which source wins.
    pub order: Order,
}

/// A setting's value in force.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The declaration.
    pub declared: Declared,
    /// The value as text, a secret masked; `None` is unset.
    pub shown: Option<String>,
    /// What chose it.
    pub origin: Origin,
}

/// Where a value was written: relative paths and `~` depend on it.
pub struct Place<'a> {
    home: &'a Path,
    /// Directory of the env file for the file's values and the defaults; the working directory otherwise.
    directory: Option<&'a Path>,
}

type Parse<T> = Box<dyn Fn(&str, &Place<'_>) -> Option<T>>;

/// What a setting accepts.
pub struct Kind<T> {
    expects: String,
    is_secret: bool,
    /// Blank is a value (an empty list, unset), not the absence of one.
    takes_blank: bool,
    parse: Parse<T>,
}

impl<T> Kind<T> {
    fn new(expects: impl Into<String>, parse: impl Fn(&str) -> Option<T> + 'static) -> Self {
        let parse: Parse<T> = Box::new(move |text, _| parse(text));
        Self { expects: expects.into(), is_secret: false, takes_blank: false, parse }
    }

    /// The declaration for the docs.
    pub fn declared(
        &self,
        part: &'static str,
        key: &'static str,
        default: &'static str,
        doc: &str,
        order: Order,
    ) -> Declared {
        let doc = doc.split_whitespace().collect::<Vec<_>>().join(" ");
        Declared { key, part, default, expects: self.expects.clone(), doc, is_secret: self.is_secret, order }
    }
}

/// A positive integer within the range.
pub fn count<T: TryFrom<u64> + 'static>(within: RangeInclusive<u64>) -> Kind<T> {
    let expects = format!("integer {} to {}", within.start(), within.end());
    Kind::new(expects, move |text| {
        let number: u64 = text.parse().ok()?;
        within.contains(&number).then(|| T::try_from(number).ok()).flatten()
    })
}

/// Milliseconds as a bare number, as variables that end in `_MS` have it.
pub fn ms(within: RangeInclusive<u64>) -> Kind<Duration> {
    let Kind { expects, parse, .. } = count::<u64>(within);
    Kind {
        parse: Box::new(move |text, place| parse(text, place).map(Duration::from_millis)),
        ..Kind::new(expects.replace("integer", "milliseconds"), |_| None)
    }
}

/// Seconds as a bare number, as variables that end in `_SECONDS` have it.
pub fn seconds(within: RangeInclusive<u64>) -> Kind<Duration> {
    let Kind { expects, parse, .. } = count::<u64>(within);
    Kind {
        parse: Box::new(move |text, place| parse(text, place).map(Duration::from_secs)),
        ..Kind::new(expects.replace("integer", "seconds"), |_| None)
    }
}

/// A duration with its unit, `24h`, or `off`.
pub fn span_or_off() -> Kind<Option<Duration>> {
    Kind::new("duration such as 24h or 7d, or off", |text| match text {
        "off" => Some(None),
        _ => parse_duration(text).map(Some),
    })
}

/// A duration with its unit, `7d`.
pub fn span() -> Kind<Duration> {
    Kind::new("duration such as 24h or 7d", parse_duration)
}

/// Durations in order, `5s,5m,2h`.
pub fn spans() -> Kind<Vec<Duration>> {
    Kind::new("comma list of durations, such as 5s,5m,2h", |text| {
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(parse_duration).collect()
    })
}

/// A size within the range.
pub fn bytes<T: TryFrom<u64> + 'static>(within: RangeInclusive<u64>) -> Kind<T> {
    let expects = format!("size {} to {}", in_units(*within.start()), in_units(*within.end()));
    Kind::new(expects, move |text| {
        let size = parse_bytes(text)?;
        within.contains(&size).then(|| T::try_from(size).ok()).flatten()
    })
}

/// A bound in the largest unit that divides it.
fn in_units(size: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| size > 0 && size.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", size / unit),
        None => format!("{size} bytes"),
    }
}

/// A share of Redis's memory, a size, or `off`.
pub fn memory_budget() -> Kind<MemoryBudget> {
    Kind::new("80%, a size such as 512MiB, or off", |text| match text {
        "off" => Some(MemoryBudget::Off),
        _ => parse_percent(text)
            .map(MemoryBudget::Percent)
            .or_else(|| parse_bytes(text).filter(|&size| size > 0).map(MemoryBudget::Bytes)),
    })
}

/// A share as a fraction of 1, `5%`, or `off` (0).
pub fn share() -> Kind<f64> {
    Kind::new("1% to 100%, or off", |text| match text {
        "off" => Some(0.0),
        _ => parse_percent(text).map(|share| f64::from(share) / 100.0),
    })
}

/// A number from 0 to 1.
pub fn fraction() -> Kind<f64> {
    Kind::new("0 to 1", |text| text.parse().ok().filter(|share| (0.0..=1.0).contains(share)))
}

/// Yes or no, in any of the usual words and any case.
pub fn flag() -> Kind<bool> {
    Kind::new("1/true/yes/on or 0/false/no/off", |text| match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    })
}

/// One of a few words.
pub fn choice<T: Copy + 'static>(words: &'static [(&'static str, T)]) -> Kind<T> {
    let expects = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    Kind::new(expects, move |text| {
        words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|&(_, value)| value)
    })
}

/// Any text.
pub fn text() -> Kind<String> {
    Kind::new("text", |text| Some(text.to_owned()))
}

/// Any text, or none.
pub fn optional_text() -> Kind<String> {
    Kind { takes_blank: true, ..text() }
}

/// The start of every key of ours in Redis.
pub fn key_prefix() -> Kind<String> {
    Kind::new("1 to 64 of A-Z a-z 0-9 : _ . -", |text| {
        let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || ":_.-".contains(c));
        (is_plain && text.len() <= 64 && !text.ends_with(':')).then(|| text.to_owned())
    })
}

/// An `http` or `https` address; trailing slashes are removed. User and password are refused: a URL is shown in many
/// places, and each of these services has a setting for its key.
pub fn http_url() -> Kind<String> {
    Kind::new("http(s) URL without user and password", |text| {
        let url: reqwest::Url = text.parse().ok()?;
        let is_plain = url.username().is_empty() && url.password().is_none();
        (matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain)
            .then(|| text.trim_end_matches('/').to_owned())
    })
}

/// An IP address to listen on.
pub fn ip() -> Kind<IpAddr> {
    Kind::new("IP address", |text| text.parse().ok())
}

/// Comma-separated words, trimmed and lower-cased.
pub fn words() -> Kind<Vec<String>> {
    let split = |text: &str| {
        let words = text.split(',').map(|word| word.trim().to_lowercase());
        Some(words.filter(|word| !word.is_empty()).collect())
    };
    Kind { takes_blank: true, ..Kind::new("comma list", split) }
}

/// Comma-separated texts, trimmed.
pub fn list() -> Kind<Vec<String>> {
    let split = |text: &str| {
        let items = text.split(',').map(|item| item.trim().to_owned());
        Some(items.filter(|item| !item.is_empty()).collect())
    };
    Kind { takes_blank: true, ..Kind::new("comma list", split) }
}

/// A program and its arguments, as a JSON array: no shell ever splits it.
pub fn argv() -> Kind<Vec<String>> {
    Kind::new("JSON array of a program and its arguments", |text| {
        let argv: Vec<String> = serde_json::from_str(text).ok()?;
        argv.first().is_some_and(|program| !program.trim().is_empty()).then_some(argv)
    })
}

/// Comma-separated address ranges; one bad range refuses the list, because half of it would be a surprise.
pub fn cidrs() -> Kind<Vec<Cidr>> {
    let split = |text: &str| text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Cidr::parse).collect();
    Kind { takes_blank: true, ..Kind::new("comma list of addresses or CIDR ranges", split) }
}

/// A path. `~/` is the home directory; a relative one in the env file is relative to that file.
pub fn path() -> Kind<PathBuf> {
    let parse: Parse<PathBuf> = Box::new(|text, place| {
        Some(match text.strip_prefix("~/") {
            Some(rest) => place.home.join(rest),
            None => place.directory.map_or_else(|| PathBuf::from(text), |directory| directory.join(text)),
        })
    });
    Kind { expects: "path".into(), is_secret: false, takes_blank: false, parse }
}

/// A value that no output ever shows.
pub fn secret() -> Kind<SecretString> {
    let parse = |text: &str| {
        known_secrets::know(text);
        Some(SecretString::from(text))
    };
    Kind { is_secret: true, ..Kind::new("secret", parse) }
}

/// Unset when blank.
pub fn optional<T: 'static>(inner: Kind<T>) -> Kind<Option<T>> {
    let Kind { expects, is_secret, parse, .. } = inner;
    let parse: Parse<Option<T>> =
        Box::new(move |text, place| if text.is_empty() { Some(None) } else { parse(text, place).map(Some) });
    Kind { expects, is_secret, takes_blank: true, parse }
}

/// Turns declarations into values, and remembers what chose each.
pub struct Loader<'a> {
    sources: &'a Sources,
    file: &'a EnvFile,
    /// Every value in force so far, in the order of declaration.
    pub effective: Vec<Effective>,
    /// What was wrong on the way.
    pub warnings: Vec<Warning>,
}

impl<'a> Loader<'a> {
    /// A loader over these sources.
    pub fn new(sources: &'a Sources, file: &'a EnvFile) -> Self {
        Self { sources, file, effective: Vec::new(), warnings: Vec::new() }
    }

    /// The value of one setting.
    pub fn get<T>(&mut self, declared: Declared, kind: &Kind<T>) -> T {
        let key = declared.key;
        let found = candidates(self.sources, self.file, key, declared.order)
            .into_iter()
            .flatten()
            .find(|(_, text)| kind.takes_blank || !text.is_empty());
        if let Some((origin, text)) = found {
            if let Some(value) = (kind.parse)(text, &self.place(origin)) {
                self.keep(declared, text, origin);
                return value;
            }
            // An `@` may end a URL's password.
            let is_shown = !declared.is_secret && !text.contains('@');
            let given = if is_shown { format!("`{}`", shorten(text)) } else { "its value".to_owned() };
            let default = if declared.default.is_empty() { "leaving it unset" } else { declared.default };
            self.warnings.push(Warning {
                code: "CONFIG_INVALID_VALUE",
                message: format!(
                    "{key} ({}): {given} is not accepted (expected {}); using {default}",
                    self.describe(origin),
                    declared.expects
                ),
            });
        }
        let default = declared.default;
        self.keep(declared, default, Origin::Default);
        match (kind.parse)(default, &self.place(Origin::Default)) {
            Some(value) => value,
            // The unit test `every_default_is_accepted_by_its_kind` keeps this true.
            None => unreachable!("the default of {key} is not accepted by its own kind"),
        }
    }

    fn keep(&mut self, declared: Declared, text: &str, origin: Origin) {
        let shown = match text {
            "" => None,
            text if declared.is_secret => Some(mask(text)),
            text => Some(text.to_owned()),
        };
        self.effective.push(Effective { declared, shown, origin });
    }

    fn place(&self, origin: Origin) -> Place<'a> {
        let directory = match origin {
            Origin::File | Origin::Default => self.file.path.parent(),
            Origin::Flag | Origin::Environment => None,
        };
        Place { home: &self.sources.home, directory }
    }

    fn describe(&self, origin: Origin) -> String {
        match origin {
            Origin::File => self.file.path.display().to_string(),
            other => other.as_str().to_owned(),
        }
    }
}

/// What the sources say about a key, the winner first. Surrounding blanks are never meant.
pub(super) fn candidates<'a>(
    sources: &'a Sources,
    file: &'a EnvFile,
    key: &str,
    order: Order,
) -> [Option<(Origin, &'a str)>; 3] {
    let from = |origin, values: &'a BTreeMap<String, String>| values.get(key).map(|text| (origin, text.trim()));
    let flag = from(Origin::Flag, &sources.flags);
    let file = from(Origin::File, &file.values);
    let environment = from(Origin::Environment, &sources.environment);
    match order {
        Order::FileFirst => [flag, file, environment],
        Order::EnvironmentFirst => [flag, environment, file],
    }
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Declares structs of settings; see the module's header and `settings.rs`.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+
        pub struct $Name:ident in $part:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $kind:expr, $key:literal, default $default:expr $(, $order:ident)?;
            )*
        }
    )*) => {
        $(
            $(#[doc = $about])+
            #[derive(Debug, Clone)]
            pub struct $Name {
                $(
                    $(#[doc = $doc])+
                    pub $field: $type,
                )*
            }

            impl $Name {
                /// The values in force.
                pub(super) fn load(loader: &mut $crate::config::declare::Loader<'_>) -> Self {
                    Self {
                        $($field: {
                            let kind = $kind;
                            let doc = concat!($($doc, " "),+);
                            let order = $crate::config::declare::settings!(@order $($order)?);
                            loader.get(kind.declared($part, $key, $default, doc, order), &kind)
                        },)*
                    }
                }
            }
        )*

        /// Every setting declared here, in order.
        fn declared_parts() -> Vec<$crate::config::declare::Declared> {
            vec![$($({
                let doc = concat!($($doc, " "),+);
                let order = $crate::config::declare::settings!(@order $($order)?);
                let kind: $crate::config::declare::Kind<$type> = $kind;
                kind.declared($part, $key, $default, doc, order)
            },)*)*]
        }
    };
    (@order) => { $crate::config::declare::Order::FileFirst };
    (@order environment_first) => { $crate::config::declare::Order::EnvironmentFirst };
}
pub(crate) use settings;
