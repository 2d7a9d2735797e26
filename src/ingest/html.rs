//! HTML as the text that a person would read. One pass, so that hostile input costs what its length costs.

/// `br` and the end of `p` are line ends, `script` and `style` are nothing, other tags are blanks; entities are decoded
/// once.
#[must_use]
pub fn to_text(html: &str) -> String {
    let mut out = String::with_capacity(html.len());
    let mut rest = html;
    // Once there is no `>` (or no end of a script) ahead, there is none further on either.
    let mut has_tags = true;
    while let Some(at) = rest.find(['<', '&']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with('&') {
            match entity(rest) {
                Some((decoded, length)) => {
                    out.push(decoded);
                    rest = &rest[length..];
                }
                None => {
                    out.push('&');
                    rest = &rest[1..];
                }
            }
            continue;
        }
        let end = if has_tags { rest.find('>') } else { None };
        let Some(end) = end else {
            has_tags = false;
            out.push('<');
            rest = &rest[1..];
            continue;
        };
        let tag = &rest[1..end];
        rest = &rest[end + 1..];
        let name = tag.split(|c: char| c.is_ascii_whitespace() || c == '/').find(|part| !part.is_empty());
        let name = name.unwrap_or_default().to_ascii_lowercase();
        let is_end = tag.starts_with('/');
        match name.as_str() {
            "br" => out.push('\n'),
            "p" if is_end => out.push('\n'),
            "script" | "style" if !is_end => {
                out.push(' ');
                rest = after_element(rest, &name);
            }
            _ => out.push(' '),
        }
    }
    out.push_str(rest);
    out
}

/// What follows the end tag of `name`; nothing when there is none.
fn after_element<'a>(html: &'a str, name: &str) -> &'a str {
    let mut rest = html;
    while let Some(at) = rest.find("</") {
        rest = &rest[at + 2..];
        let is_it = rest.as_bytes().get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()));
        if is_it {
            return rest.find('>').map_or("", |end| &rest[end + 1..]);
        }
    }
    ""
}

/// The character of the entity at the start of `text`, and its length.
fn entity(text: &str) -> Option<(char, usize)> {
    let end = text.bytes().take(12).position(|b| b == b';')?;
    let decoded = match &text[1..end] {
        "nbsp" => ' ',
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        number => {
            let number = number.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
    };
    Some((decoded, end + 1))
}

/// Every run of blanks as one space, none at the ends.
#[must_use]
pub fn collapsed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_the_text_and_nothing_else() {
        for (html, text) in [
            ("<p>Hi <b>there</b>&amp; all</p><script>x()</script>", "Hi there & all"),
            ("a<br>b<BR/>c</p >d", "a b c d"),
            ("<STYLE type=x>p{}</Style>x<script>1<2</script >y", "x y"),
            (
                "&lt;b&gt; &#39;q&#x27; &quot;&nbsp;&amp;lt; &unknown; &#xFFFFFFFF; &",
                "<b> 'q' \" &lt; &unknown; &#xFFFFFFFF; &",
            ),
            ("1 < 2", "1 < 2"),
            ("<script>never ends", ""),
            ("<!-- note -->ü<x", "ü<x"),
        ] {
            assert_eq!(collapsed(&to_text(html)), text, "{html}");
        }
    }

    #[test]
    fn hostile_input_costs_what_its_length_costs() {
        for unit in ["<", "&", "</", "<script>", "<script></s", "&#", "<p"] {
            assert!(to_text(&unit.repeat(200_000 / unit.len())).len() <= 200_000);
        }
    }
}
