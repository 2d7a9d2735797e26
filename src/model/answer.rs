//! The one JSON value in an answer: the whole text, or the inside of the one fence that is the whole text.
//!
//! Prose around JSON is refused on purpose. Hunting for braces finds JSON that was quoted from a payload.

use serde_json::Value;

/// The text is not one JSON value, or one that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not a JSON value")]
pub struct InvalidJson;

/// The value of an answer. `null`, `false`, `0` and `""` are refused.
pub fn json_of(text: &str) -> Result<Value, InvalidJson> {
    let text = text.trim();
    let fenced = inside_fence(text).and_then(|inside| serde_json::from_str(inside.trim()).ok());
    let value = match fenced {
        Some(value) => value,
        None => serde_json::from_str(text).map_err(|_| InvalidJson)?,
    };
    let says_nothing = match &value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    if says_nothing { Err(InvalidJson) } else { Ok(value) }
}

fn inside_fence(text: &str) -> Option<&str> {
    let inside = text.strip_prefix("```")?.strip_suffix("```")?;
    let label = inside.get(..4).filter(|label| label.eq_ignore_ascii_case("json"));
    Some(&inside[label.map_or(0, str::len)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_or_one_fence() {
        let ok =
            ["{\"a\":1}", "```json\n{\"a\":1}\n```", "```JSON\n{\"a\":1}```", "```\n{}\n```", " [] ", "\"P1\"", "true"];
        for text in ok {
            assert!(json_of(text).is_ok(), "{text}");
        }
        let refused = [
            "",
            "null",
            "0",
            "0.0",
            "false",
            "\"\"",
            "Sure: {}",
            "{} thanks",
            "```json\n{}\n```\n```json\n{}\n```",
            "```",
            "``````",
            "{",
        ];
        for text in refused {
            assert_eq!(json_of(text), Err(InvalidJson), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(```)?(json|JSON)?\\PC{0,40}(```)?") {
            let _ = json_of(&text);
        }
    }
}
