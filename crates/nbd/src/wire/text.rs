//! What servers say in words, made fit for a terminal.

/// Characters of a server's message that are shown at most.
const MESSAGE_CHARS_MAX: usize = 300;

/// A server's message on one line, without control characters, cut to a length that can be read.
pub fn sanitise(bytes: &[u8]) -> String {
    let end = bytes.len().min(MESSAGE_CHARS_MAX * 4);
    let text = String::from_utf8_lossy(&bytes[..end]);
    let plain: String = text.chars().take(MESSAGE_CHARS_MAX).map(|c| if is_plain(c) { c } else { ' ' }).collect();
    plain.trim().to_owned()
}

/// Neither a control character nor one of those that turn the direction of text around.
fn is_plain(c: char) -> bool {
    let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    !c.is_control() && !turns
}

/// An error number of the protocol in words.
pub fn errno_in_words(errno: u32) -> String {
    let words = match errno {
        1 => "operation not permitted",
        5 => "input/output error",
        12 => "server is out of memory",
        22 => "invalid request",
        28 => "no space left",
        75 => "request too large",
        95 => "operation not supported",
        108 => "server is shutting down",
        other => return format!("error {other}"),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_gone_and_length_is_capped() {
        assert_eq!(sanitise(b"disk \x1b[31mgone\r\n"), "disk  [31mgone");
        assert_eq!(sanitise(&[0xff, b'a']), "\u{fffd}a");
        assert_eq!(sanitise("a\u{202e}b\u{9b}c".as_bytes()), "a b c");
        assert_eq!(sanitise(&vec![b'x'; 100_000]).len(), MESSAGE_CHARS_MAX);
        assert_eq!(sanitise(b""), "");
    }

    #[test]
    fn error_numbers_have_words() {
        assert_eq!(errno_in_words(28), "no space left");
        assert_eq!(errno_in_words(77), "error 77");
    }
}
