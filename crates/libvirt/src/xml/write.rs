//! Writing XML: texts as attribute values and as contents, with what would end them replaced.

/// ` name='value'`, escaped. Control characters, which XML cannot carry, become question marks.
pub(crate) fn attribute(name: &str, value: &str) -> String {
    format!(" {name}='{}'", escaped(value, true))
}

/// The text of an element, escaped. Control characters as above.
pub(crate) fn text(value: &str) -> String {
    escaped(value, false)
}

fn escaped(value: &str, is_attribute: bool) -> String {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '\'' if is_attribute => text.push_str("&apos;"),
            '\t' | '\n' if !is_attribute => text.push(character),
            '\t' | '\n' | '\r' => text.push_str(&format!("&#{};", u32::from(character))),
            other if other.is_control() => text.push('?'),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for value in ["vda", "/a b/<x>&'\"y'.img", "tab\there", "ümlaut"] {
            let text = format!("<a{}/>", attribute("b", value));
            let read = roxmltree::Document::parse(&text).unwrap().root_element().attribute("b").unwrap().to_owned();
            assert_eq!(read, value);
            let inside = format!("<a>{}</a>", super::text(value));
            assert_eq!(roxmltree::Document::parse(&inside).unwrap().root_element().text(), Some(value));
        }
    }
}
