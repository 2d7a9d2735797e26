//! Secrets of webhook providers: one row each, four settings a row, and the variables that only the operator knows the
//! names of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use secrecy::SecretString;

use crate::known_secrets;

use super::Sources;
use super::declare::{Declared, Kind, Loader, Order, optional, path, secret};
use super::env_file::EnvFile;
use super::secret::Rotating;

/// One secret: its variable, the three that go with it, and its name in a secret store.
#[derive(Debug, Clone, Copy)]
pub struct SecretRow {
    /// The secret in use.
    pub variable: &'static str,
    /// The same from a file.
    pub file: &'static str,
    /// The one before the last rotation.
    pub previous: &'static str,
    /// The same from a file.
    pub previous_file: &'static str,
    /// A variable that is read where the first one is unset.
    pub fallback: Option<&'static str>,
    /// The name by which WEBHOOK_SECRETS_COMMAND is asked for it.
    pub store: &'static str,
    /// What it is.
    pub doc: &'static str,
}

macro_rules! rows {
    ($($variable:literal $(or $fallback:literal)?, $store:literal, $doc:literal;)*) => {
        /// Every secret of a built-in provider. A new provider adds its row here.
        pub const WEBHOOK_SECRETS: &[SecretRow] = &[$(SecretRow {
            variable: $variable,
            file: concat!($variable, "_FILE"),
            previous: concat!($variable, "_PREVIOUS"),
            previous_file: concat!($variable, "_PREVIOUS_FILE"),
            fallback: rows!(@fallback $($fallback)?),
            store: $store,
            doc: $doc,
        },)*];
    };
    (@fallback) => { None };
    (@fallback $fallback:literal) => { Some($fallback) };
}

rows! {
    "VERCEL_WEBHOOK_SECRET", "vercel_webhook_secret", "The secret of Vercel's webhook.";
    "FRONT_RULES_WEBHOOK_SECRET" or "FRONT_WEBHOOK_SECRET", "front_rules_webhook_secret", "The secret of webhooks of Front's rules. FRONT_WEBHOOK_SECRET is read where it is unset.";
    "FRONT_APPLICATION_SECRET", "joelclaw-front-app-secret", "The secret of an application of Front.";
    "TODOIST_CLIENT_SECRET", "todoist_client_secret", "The client secret of a Todoist app; not its verification token.";
    "GITHUB_WEBHOOK_SECRET", "github_webhook_secret", "The secret of GitHub's webhook.";
    "MUX_WEBHOOK_SECRET", "mux_webhook_secret", "The secret of Mux's webhook.";
    "JOELCLAW_WEBHOOK_SECRET", "joelclaw_webhook_secret", "The secret of the relay.";
    "TELNYX_PUBLIC_KEY", "telnyx_public_key", "Telnyx's public key: base64 of 32 bytes.";
    "X_CONSUMER_SECRET" or "TWITTER_CONSUMER_SECRET", "x_consumer_secret", "The consumer secret of an X app. TWITTER_CONSUMER_SECRET is read where it is unset.";
    "STANDARD_WEBHOOK_SECRET", "standard_webhook_secret", "Secrets of senders that follow Standard Webhooks, `whsec_…` or `whpk_…`, separated by blanks.";
}

/// Variables whose names hold the name of a provider, for the docs.
pub const PATTERNS: &[(&str, &str)] = &[
    (
        "WEBHOOK_RATE_LIMIT_<PROVIDER>",
        "Most valid deliveries, `N/s` or `N/m`. Unset: no limit. Above it a provider that sends again is answered 429; others are taken.",
    ),
    (
        "WEBHOOK_FILTER_<PROVIDER>",
        "Event names of it that are taken, comma-separated, with `*` for any text: `github/*,!github/package.*`. `!` leaves out. Unset: all.",
    ),
    ("<PROVIDER>_WEBHOOK_MAX_BODY_BYTES", "Its own WEBHOOK_MAX_BODY_BYTES, up to 25MiB."),
    (
        "WEBHOOK_SOURCE_<ID>_SECRET",
        "The secret of a source of WEBHOOK_SOURCES or WEBHOOK_SOURCES_FILE, with `_FILE`, `_PREVIOUS` and `_PREVIOUS_FILE` as above.",
    ),
];

/// Whether `key` is one of [`PATTERNS`] that begins with a prefix of ours.
pub(super) fn is_patterned(key: &str) -> bool {
    ["WEBHOOK_RATE_LIMIT_", "WEBHOOK_FILTER_", "WEBHOOK_SOURCE_"].iter().any(|start| key.starts_with(start))
}

const PART: &str = "webhook secrets";

type Secret = (Declared, Kind<Option<SecretString>>);
type File = (Declared, Kind<Option<PathBuf>>);

impl SecretRow {
    /// The secrets, current and previous.
    fn secrets(&self) -> [Secret; 2] {
        [(self.variable, self.doc), (self.previous, "The one before the last rotation, still accepted.")].map(
            |(key, doc)| {
                let kind = optional(secret());
                (kind.declared(PART, key, "", doc, Order::FileFirst), kind)
            },
        )
    }

    /// Their files.
    fn files(&self) -> [File; 2] {
        [
            (self.file, "The same from a file, one a line; wins over the variable."),
            (self.previous_file, "The same from a file."),
        ]
        .map(|(key, doc)| {
            let kind = optional(path());
            (kind.declared(PART, key, "", doc, Order::FileFirst), kind)
        })
    }
}

/// The declarations of all rows.
pub(super) fn declared() -> Vec<Declared> {
    let of_row = |row: &SecretRow| {
        let ([current, previous], [file, previous_file]) = (row.secrets(), row.files());
        [current.0, file.0, previous.0, previous_file.0]
    };
    WEBHOOK_SECRETS.iter().flat_map(of_row).collect()
}

/// The values in force, by variable.
pub(super) fn load(loader: &mut Loader<'_>, variables: &Variables) -> BTreeMap<&'static str, Rotating> {
    let mut secrets = BTreeMap::new();
    for row in WEBHOOK_SECRETS {
        let ([current, previous], [file, previous_file]) = (row.secrets(), row.files());
        let fallback = || variables.secret(row.fallback?);
        let rotating = Rotating {
            current: loader.get(current.0, &current.1).or_else(fallback),
            current_file: loader.get(file.0, &file.1),
            previous: loader.get(previous.0, &previous.1),
            previous_file: loader.get(previous_file.0, &previous_file.1),
        };
        secrets.insert(row.variable, rotating);
    }
    secrets
}

/// Every variable of flags, env file and environment, for those whose names are not known here. Holds secrets: nothing
/// of it is ever printed.
#[derive(Clone, Default)]
pub struct Variables(Arc<Known>);

#[derive(Default)]
struct Known {
    values: BTreeMap<String, String>,
    home: PathBuf,
    /// Of the env file: relative paths are relative to it.
    directory: PathBuf,
}

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Variables")
    }
}

impl Variables {
    pub(super) fn new(sources: &Sources, file: &EnvFile) -> Self {
        let mut values = sources.environment.clone();
        values.extend(file.values.clone());
        values.extend(sources.flags.clone());
        let directory = file.path.parent().map(Into::into).unwrap_or_default();
        Self(Arc::new(Known { values, home: sources.home.clone(), directory }))
    }

    /// Its value, unless it is unset or blank.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.values.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(|text| match text.strip_prefix("~/") {
            Some(rest) => self.0.home.join(rest),
            None => self.0.directory.join(text),
        })
    }

    fn secret(&self, name: &str) -> Option<SecretString> {
        self.get(name).inspect(|secret| known_secrets::know(secret)).map(SecretString::from)
    }

    /// A secret that may be being rotated, under any name.
    #[must_use]
    pub fn rotating(&self, name: &str) -> Rotating {
        Rotating {
            current: self.secret(name),
            current_file: self.path(&format!("{name}_FILE")),
            previous: self.secret(&format!("{name}_PREVIOUS")),
            previous_file: self.path(&format!("{name}_PREVIOUS_FILE")),
        }
    }

    /// The variables whose names begin and end like this, with what stands between.
    pub fn between<'a>(&'a self, start: &'a str, end: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.values.iter().filter_map(move |(key, value)| {
            let name = key.strip_prefix(start)?.strip_suffix(end)?;
            (!name.is_empty() && !value.trim().is_empty()).then_some((name, value.trim()))
        })
    }
}
