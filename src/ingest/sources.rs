//! Senders that need no code: read from a file, one table each.
//!
//! ```toml
//! [[source]]
//! id = "billing"                            # served at /webhooks/billing; its events are billing/<type>
//!
//! [[source]]
//! id = "shop"
//! scheme = "hmac"
//! signature_header = "x-shop-signature"
//! ```
//!
//! The whole table of keys is in `docs/webhooks.md`. A wrong file is refused as a whole.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use axum::http::HeaderName;
use serde::Deserialize;

use super::providers::source::{Place, Source};
use super::providers::{intern, is_id};
use super::signature::{Encoding, Hash, MacScheme, Scheme, Signed};
use crate::diagnose::{Diagnose, Exit};
use crate::streams::family::Family;

/// Why sources can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is there and can't be read.
    #[error("{} can't be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is no such file.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line.
        problem: String,
    },
    /// One source is wrong.
    #[error("webhook source `{id}`: {problem}")]
    Source {
        /// Which.
        id: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Diagnose for Error {
    fn code(&self) -> &'static str {
        "WEBHOOK_SOURCES_INVALID"
    }

    fn exit(&self) -> Exit {
        Exit::Config
    }

    fn fix(&self) -> String {
        match self {
            Self::Unreadable { path, .. } => format!("Make {} readable for this user.", path.display()),
            Self::Malformed { .. } | Self::Source { .. } => {
                "Correct WEBHOOK_SOURCES or its file; docs/webhooks.md describes every key.".into()
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    source: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    #[serde(default)]
    scheme: Kind,
    /// Variable of the secret.
    secret_env: Option<String>,
    /// What names of its events begin with.
    event_prefix: Option<String>,
    signature_header: Option<String>,
    #[serde(default)]
    signature_prefix: String,
    #[serde(default)]
    algorithm: Algorithm,
    #[serde(default)]
    encoding: Written,
    timestamp_header: Option<String>,
    /// `{timestamp}` and `{body}` with texts around.
    signed: Option<String>,
    id_header: Option<String>,
    id_field: Option<String>,
    type_header: Option<String>,
    type_field: Option<String>,
    data_field: Option<String>,
    /// Whether it sends again what was not taken.
    #[serde(default = "yes")]
    redelivers: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// Standard Webhooks.
    #[default]
    Standard,
    /// A MAC in a header.
    Hmac,
    /// `t=…,v1=…` in a header.
    List,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Algorithm {
    Sha1,
    #[default]
    Sha256,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Written {
    #[default]
    Hex,
    Base64,
}

/// The sources of the file and of `listed`, which are plain Standard Webhooks. A file that is not there holds none.
/// `taken` are ids that are somebody's already.
pub fn load(path: &Path, listed: &[String], taken: &[&str]) -> Result<Vec<Source>, Error> {
    let file = match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => File { source: Vec::new() },
        Err(source) => return Err(Error::Unreadable { path: path.to_path_buf(), source }),
    };
    let listed = listed.iter().map(|id| Entry::standard(id));
    let mut sources: Vec<Source> = Vec::new();
    for entry in listed.chain(file.source) {
        let id = entry.id.clone();
        let wrong = |problem: String| Error::Source { id: id.clone(), problem };
        if taken.contains(&id.as_str()) {
            return Err(wrong("a built-in provider has this id".to_owned()));
        }
        if sources.iter().any(|known| known.id == id) {
            return Err(wrong("there are two of this id".to_owned()));
        }
        sources.push(entry.source().map_err(wrong)?);
    }
    Ok(sources)
}

fn parse(text: &str, path: &Path) -> Result<File, Error> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        Error::Malformed { path: path.to_path_buf(), problem: format!("{line}{}", error.message()) }
    })
}

impl Entry {
    fn standard(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            scheme: Kind::Standard,
            secret_env: None,
            event_prefix: None,
            signature_header: None,
            signature_prefix: String::new(),
            algorithm: Algorithm::Sha256,
            encoding: Written::Hex,
            timestamp_header: None,
            signed: None,
            id_header: None,
            id_field: None,
            type_header: None,
            type_field: None,
            data_field: None,
            redelivers: true,
        }
    }

    fn source(self) -> Result<Source, String> {
        if !is_id(&self.id) {
            return Err("an id is 1 to 32 of a-z 0-9 -, and begins with a letter or digit".to_owned());
        }
        let scheme = self.scheme()?;
        let prefix = self.event_prefix.clone().unwrap_or_else(|| self.id.clone());
        format!("{prefix}/x").parse::<Family>().map_err(|error| format!("event_prefix: {error}"))?;
        let variable = format!("WEBHOOK_SOURCE_{}_SECRET", self.id.to_ascii_uppercase().replace('-', "_"));
        Ok(Source {
            id: intern(&self.id),
            prefix,
            variable: self.secret_env.clone().unwrap_or(variable),
            scheme,
            redelivers: self.redelivers,
            delivery: place("id", self.id_header, self.id_field)?,
            kind: place("type", self.type_header, self.type_field)?,
            data: self.data_field,
        })
    }

    fn scheme(&self) -> Result<Scheme, String> {
        let header = self.signature_header.as_deref().map(|name| header("signature_header", name)).transpose()?;
        match (self.scheme, header) {
            (Kind::Standard, None) => {
                let others = [&self.timestamp_header, &self.signed, &self.id_header, &self.id_field, &self.data_field];
                match others.iter().all(|key| key.is_none()) && self.signature_prefix.is_empty() {
                    true => Ok(Scheme::Standard),
                    false => Err("Standard Webhooks says itself where signature, time, id and data are".to_owned()),
                }
            }
            (Kind::Standard, Some(_)) => Err("signature_header needs scheme = \"hmac\" or \"list\"".to_owned()),
            (Kind::Hmac | Kind::List, None) => Err("signature_header is missing".to_owned()),
            (Kind::List, Some(header)) => Ok(Scheme::TimedList { header: header.into() }),
            (Kind::Hmac, Some(header)) => Ok(Scheme::Mac(MacScheme {
                header: header.into(),
                prefix: self.signature_prefix.clone().into(),
                hash: match self.algorithm {
                    Algorithm::Sha1 => Hash::Sha1,
                    Algorithm::Sha256 => Hash::Sha256,
                },
                encoding: match self.encoding {
                    Written::Hex => Encoding::Hex,
                    Written::Base64 => Encoding::Base64,
                },
                signed: self.signed()?,
            })),
        }
    }

    fn signed(&self) -> Result<Signed, String> {
        let time = self.timestamp_header.as_deref().map(|name| header("timestamp_header", name)).transpose()?;
        let template = match (&self.signed, &time) {
            (Some(template), _) => template.as_str(),
            (None, Some(_)) => "{timestamp}.{body}",
            (None, None) => "{body}",
        };
        let around = template.strip_suffix("{body}").ok_or("signed must end in {body}")?;
        match (around.split_once("{timestamp}"), time) {
            (None, None) if around.is_empty() => Ok(Signed::Body),
            (None, None) => Err("signed has a text before {body} but no {timestamp}".to_owned()),
            (Some(_), None) => Err("signed has a {timestamp} but timestamp_header is missing".to_owned()),
            (None, Some(_)) => {
                Err("timestamp_header is set, but signed has no {timestamp}: anybody could change it".to_owned())
            }
            (Some((before, between)), Some(header)) => Ok(Signed::Timed {
                header: header.into(),
                before: Cow::Owned(before.to_owned()),
                between: Cow::Owned(between.to_owned()),
            }),
        }
    }
}

fn header(key: &str, name: &str) -> Result<String, String> {
    let name = HeaderName::try_from(name).map_err(|_| format!("{key}: `{name}` is no name of a header"))?;
    Ok(name.as_str().to_owned())
}

fn place(what: &str, named: Option<String>, field: Option<String>) -> Result<Option<Place>, String> {
    match (named, field) {
        (Some(_), Some(_)) => Err(format!("{what}_header and {what}_field exclude each other")),
        (Some(name), None) => Ok(Some(Place::Header(header(&format!("{what}_header"), &name)?))),
        (None, field) => Ok(field.map(Place::Field)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Source>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhooks.toml");
        std::fs::write(&path, text).unwrap();
        load(&path, &[], &["github"]).map_err(|error| error.to_string().replace(&format!("{}: ", path.display()), ""))
    }

    #[test]
    fn a_source_is_standard_webhooks_unless_it_says_otherwise() {
        let sources = read("[[source]]\nid = \"my-crm\"\n").unwrap();
        assert_eq!((sources[0].id, sources[0].prefix.as_str()), ("my-crm", "my-crm"));
        assert_eq!(sources[0].variable, "WEBHOOK_SOURCE_MY_CRM_SECRET");
        assert!(sources[0].scheme == Scheme::Standard && sources[0].redelivers);
        let slack = read(
            "[[source]]\nid=\"slack\"\nscheme=\"hmac\"\nsignature_header=\"X-Slack-Signature\"\nsignature_prefix=\"v0=\"\n\
             timestamp_header=\"x-slack-request-timestamp\"\nsigned=\"v0:{timestamp}:{body}\"\nredelivers=false\n",
        );
        let Scheme::Mac(mac) = slack.unwrap().remove(0).scheme else { panic!("no MAC") };
        assert_eq!((mac.header.as_ref(), mac.prefix.as_ref()), ("x-slack-signature", "v0="));
        let signed =
            Signed::Timed { header: "x-slack-request-timestamp".into(), before: "v0:".into(), between: ":".into() };
        assert_eq!(mac.signed, signed);
    }

    #[test]
    fn a_wrong_file_is_refused_with_the_reason() {
        let hmac = "[[source]]\nid=\"a\"\nscheme=\"hmac\"\n";
        for (text, problem) in [
            ("[[source]]\nid = \"github\"\n".to_owned(), "webhook source `github`: a built-in provider has this id"),
            ("[[source]]\nid = \"A\"\n".to_owned(), "webhook source `A`: an id is 1 to 32"),
            ("[[source]]\nid=\"a\"\n[[source]]\nid=\"a\"\n".to_owned(), "webhook source `a`: there are two of this id"),
            ("[[source]]\nid=\"a\"\nsecret=\"x\"\n".to_owned(), "line 3: unknown field `secret`"),
            (hmac.to_owned(), "webhook source `a`: signature_header is missing"),
            (format!("{hmac}signature_header=\"a b\"\n"), "webhook source `a`: signature_header: `a b` is no name"),
            (
                format!("{hmac}signature_header=\"s\"\ntimestamp_header=\"t\"\nsigned=\"{{body}}\"\n"),
                "webhook source `a`: timestamp_header is set, but",
            ),
            (
                format!("{hmac}signature_header=\"s\"\nsigned=\"{{timestamp}}{{body}}\"\n"),
                "webhook source `a`: signed has a {timestamp}",
            ),
            (
                format!("{hmac}signature_header=\"s\"\nid_header=\"x\"\nid_field=\"y\"\n"),
                "webhook source `a`: id_header and id_field",
            ),
            ("[[source]]\nid=\"a\"\nevent_prefix=\"b c\"\n".to_owned(), "webhook source `a`: event_prefix:"),
            ("[[source]]\nid=\"a\"\nid_header=\"x\"\n".to_owned(), "webhook source `a`: Standard Webhooks says itself"),
        ] {
            let told = read(&text).unwrap_err();
            assert!(told.starts_with(problem), "{told}");
        }
        assert!(load(Path::new("/nowhere/webhooks.toml"), &[], &[]).unwrap().is_empty());
    }
}
