//! Values as people read them: ages, sizes, tables, values cut to one line.

use std::time::Duration;

use clap::builder::styling::Style;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// Longer strings are cut in lists; `--full` of a command lifts it.
const LONGEST_VALUE: usize = 100;
/// Terminals narrower than this wrap by themselves.
const NARROWEST: u16 = 40;

/// A duration in its largest unit: `250ms`, `12s`, `3m`, `5h`, `2d`.
pub fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0 => format!("{}ms", age.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment in the past: `now`, `3m ago`.
pub fn ago(since: Duration) -> String {
    if since.as_secs() == 0 { "now".into() } else { format!("{} ago", age(since)) }
}

/// A size: `512 B`, `1.5 KiB`, `8 MiB`.
pub fn bytes(size: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let mut scaled = size as f64;
    let mut unit = "";
    for next in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    let digits = format!("{scaled:.1}");
    format!("{} {unit}", digits.trim_end_matches(".0"))
}

/// One string, cut to 100 characters and told its length.
pub fn cut(text: &str) -> String {
    let length = text.chars().count();
    if length <= LONGEST_VALUE {
        return text.to_owned();
    }
    let start: String = text.chars().take(LONGEST_VALUE).collect();
    format!("{start}... ({length} chars)")
}

/// Every string inside, cut.
pub fn cut_values(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(cut(text)),
        Value::Array(items) => items.iter().map(cut_values).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), cut_values(value))).collect(),
        other => other.clone(),
    }
}

/// Text in a style, or as it is.
pub fn paint(style: Style, text: &str, is_colored: bool) -> String {
    if is_colored { format!("{}{text}{}", style.render(), style.render_reset()) } else { text.to_owned() }
}

/// What a person sees instead of the JSON: blocks in order.
#[derive(Debug, Clone, Default)]
pub struct Human(Vec<Block>);

#[derive(Debug, Clone)]
enum Block {
    Text(String),
    Title(String),
    Pairs(Vec<(String, String)>),
    Table { headers: Vec<String>, rows: Vec<Vec<String>> },
}

impl Human {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A line, or several.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.0.push(Block::Text(text.into()));
        self
    }

    /// The heading of what follows.
    pub fn title(mut self, text: impl Into<String>) -> Self {
        self.0.push(Block::Title(text.into()));
        self
    }

    /// Names and values, aligned.
    pub fn pairs<K: Into<String>, V: Into<String>>(mut self, pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        self.0.push(Block::Pairs(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect()));
        self
    }

    /// A table; one without rows says `none`.
    pub fn table(mut self, headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        let headers = headers.iter().map(|header| (*header).to_owned()).collect();
        self.0.push(Block::Table { headers, rows: rows.into_iter().collect() });
        self
    }

    /// The text, each block on lines of its own.
    pub fn render(&self, is_colored: bool) -> String {
        let bold = Style::new().bold();
        let mut out = String::new();
        for block in &self.0 {
            match block {
                Block::Text(text) => out.push_str(text.trim_end()),
                Block::Title(title) => {
                    if !out.is_empty() {
                        out.push('\n');
                    }
                    out.push_str(&paint(bold, title, is_colored));
                }
                Block::Pairs(pairs) => {
                    let width = pairs.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
                    let lines: Vec<String> = pairs
                        .iter()
                        .map(|(key, value)| format!("{key:<width$}  {value}").trim_end().to_owned())
                        .collect();
                    out.push_str(&lines.join("\n"));
                }
                Block::Table { rows, .. } if rows.is_empty() => out.push_str("none"),
                Block::Table { headers, rows } => out.push_str(&table(headers, rows, is_colored)),
            }
            out.push('\n');
        }
        out
    }
}

fn table(headers: &[String], rows: &[Vec<String>], is_colored: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headers);
    table.add_rows(rows);
    // Some pseudo-terminals claim to have no width; a cell of one letter a line helps nobody.
    if table.width().is_some_and(|width| width < NARROWEST) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let mut lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    if let Some(header) = lines.first_mut() {
        *header = paint(Style::new().bold(), header, is_colored);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes() {
        let ages = [
            (250, "250ms"),
            (12_000, "12s"),
            (59_999, "59s"),
            (180_000, "3m"),
            (18_000_000, "5h"),
            (172_800_000, "2d"),
        ];
        for (ms, expected) in ages {
            assert_eq!(age(Duration::from_millis(ms)), expected);
        }
        assert_eq!(ago(Duration::from_millis(900)), "now");
        assert_eq!(ago(Duration::from_secs(180)), "3m ago");
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 << 20, "8 MiB"), (u64::MAX, "16 EiB")];
        for (size, expected) in sizes {
            assert_eq!(bytes(size), expected);
        }
    }

    #[test]
    fn long_values_are_cut_by_characters_and_say_their_length() {
        assert_eq!(cut(&"é".repeat(100)), "é".repeat(100));
        assert_eq!(cut(&"é".repeat(101)), format!("{}... (101 chars)", "é".repeat(100)));
        let value = serde_json::json!({"a": ["x".repeat(200)], "n": 1});
        assert!(cut_values(&value)["a"][0].as_str().unwrap().ends_with("... (200 chars)"));
        assert_eq!(cut_values(&value)["n"], 1);
    }

    #[test]
    fn blocks_are_readable_without_colour() {
        let human = Human::new()
            .text("two families")
            .title("Families")
            .table(&["FAMILY", "WAITING"], [vec!["a/b".into(), "1".into()], vec!["long/name".into(), "22".into()]])
            .pairs([("dead", "0"), ("unrouted", "1")])
            .table(&["X"], []);
        let expected = "two families\n\nFamilies\nFAMILY     WAITING\na/b        1\nlong/name  22\ndead      0\nunrouted  1\nnone\n";
        assert_eq!(human.render(false), expected);
        assert!(human.render(true).contains("\u{1b}[1m"));
    }
}
