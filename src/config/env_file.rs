//! The env file: `KEY=value` lines that a shell, systemd and we read alike.
//!
//! | line | meaning |
//! |---|---|
//! | `KEY=value`, `export KEY=value` | a setting; the last of repeated keys wins |
//! | `KEY="value"`, `KEY='value'` | one pair of quotes is removed; what is between them is taken as it is |
//! | `KEY=value # note` | unquoted, a comment starts at a `#` after white space (`…#insecure` stays) |
//! | blank, `# comment` | nothing |
//!
//! Nothing is expanded: a password may contain `$`. A line that is none of these is reported by its number only,
//! because its text may be a secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What an env file holds.
#[derive(Default, Clone)]
pub struct EnvFile {
    /// Where it is, whether or not it exists.
    pub path: PathBuf,
    /// The settings, secrets included: never print this.
    pub values: BTreeMap<String, String>,
    /// Numbers of the lines that are no setting.
    pub bad_lines: Vec<usize>,
    /// Permission bits, when the file exists.
    pub mode: Option<u32>,
}

impl std::fmt::Debug for EnvFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvFile")
            .field("path", &self.path)
            .field("keys", &self.values.keys().collect::<Vec<_>>())
            .field("bad_lines", &self.bad_lines)
            .finish()
    }
}

impl EnvFile {
    /// Reads the file. The caller decides whether a missing one matters.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let mut file = Self::parse(&text);
        file.path = path.to_path_buf();
        file.mode = mode_of(path);
        Ok(file)
    }

    /// Parses the text of an env file.
    pub fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            match parse_line(line) {
                Line::Nothing => {}
                Line::Setting(key, value) => {
                    file.values.insert(key, value);
                }
                Line::Bad => file.bad_lines.push(index + 1),
            }
        }
        file
    }

    /// Others than the owner may read or write it.
    pub fn is_exposed(&self) -> bool {
        self.mode.is_some_and(|mode| mode != 0o600 && mode != 0o400)
    }
}

#[cfg(unix)]
fn mode_of(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).ok().map(|meta| meta.permissions().mode() & 0o777)
}

#[cfg(not(unix))]
fn mode_of(_path: &Path) -> Option<u32> {
    None
}

enum Line {
    Nothing,
    Setting(String, String),
    Bad,
}

fn parse_line(line: &str) -> Line {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Line::Nothing;
    }
    let setting = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with(char::is_whitespace) => rest.trim_start(),
        _ => line,
    };
    let Some((key, value)) = setting.split_once('=') else { return Line::Bad };
    let key = key.trim_end();
    let is_name = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Line::Bad;
    }
    match unquote(value.trim()) {
        Some(value) => Line::Setting(key.to_owned(), value),
        None => Line::Bad,
    }
}

/// The value without its quotes or its comment; `None` when a quote is not closed.
fn unquote(value: &str) -> Option<String> {
    let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        let end = value
            .char_indices()
            .find(|&(at, c)| c == '#' && (at == 0 || value[..at].ends_with(char::is_whitespace)))
            .map_or(value.len(), |(at, _)| at);
        return Some(value[..end].trim_end().to_owned());
    };
    let (inside, after) = value[1..].split_once(quote)?;
    let after = after.trim_start();
    (after.is_empty() || after.starts_with('#')).then(|| inside.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_grammar() {
        let cases: &[(&str, Option<(&str, &str)>)] = &[
            ("A=1", Some(("A", "1"))),
            ("export A=1", Some(("A", "1"))),
            ("export\tA = 1 ", Some(("A", "1"))),
            ("  A=1\r", Some(("A", "1"))),
            ("exported=1", Some(("exported", "1"))),
            ("A=\"a b\"", Some(("A", "a b"))),
            ("A='a b' # note", Some(("A", "a b"))),
            ("A='it\"s'", Some(("A", "it\"s"))),
            ("A=\"a # b\"", Some(("A", "a # b"))),
            ("A=b # note", Some(("A", "b"))),
            ("A=rediss://h:1#insecure", Some(("A", "rediss://h:1#insecure"))),
            ("A=$HOME/x", Some(("A", "$HOME/x"))),
            ("A=b=c", Some(("A", "b=c"))),
            ("A=", Some(("A", ""))),
            ("A=# note", Some(("A", ""))),
            ("", None),
            ("   # note", None),
        ];
        for (line, expected) in cases {
            let file = EnvFile::parse(line);
            assert!(file.bad_lines.is_empty(), "{line:?}");
            let found = file.values.iter().next().map(|(k, v)| (k.as_str(), v.as_str()));
            assert_eq!(found, *expected, "{line:?}");
        }
    }

    #[test]
    fn the_last_of_repeated_keys_wins() {
        assert_eq!(EnvFile::parse("A=1\nB=x\nexport A='2'\n").values["A"], "2");
    }

    #[test]
    fn a_bad_line_is_known_by_its_number_and_hides_nothing_else() {
        let file = EnvFile::parse("\u{feff}A=1\nno setting\n2A=x\nB=\"open\nC=\"x\"y\nD=4");
        assert_eq!(file.bad_lines, [2, 3, 4, 5]);
        assert_eq!(file.values.keys().collect::<Vec<_>>(), ["A", "D"]);
    }

    #[test]
    fn debug_shows_keys_and_no_value() {
        assert!(!format!("{:?}", EnvFile::parse("TOKEN=hunter2")).contains("hunter2"));
    }
}
