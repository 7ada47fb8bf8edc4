//! Writing XML: texts as attribute values, with what would end them replaced.

/// ` name='value'`, escaped. Control characters, which XML cannot carry, become question marks.
pub(crate) fn attribute(name: &str, value: &str) -> String {
    let mut text = format!(" {name}='");
    for character in value.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '\'' => text.push_str("&apos;"),
            '\t' | '\n' | '\r' => text.push_str(&format!("&#{};", u32::from(character))),
            other if other.is_control() => text.push('?'),
            other => text.push(other),
        }
    }
    text.push('\'');
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
        }
    }
}
