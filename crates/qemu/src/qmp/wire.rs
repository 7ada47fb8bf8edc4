//! QMP's messages and their framing as pure functions on bytes; knows no socket.

use serde::Deserialize;
use serde_json::{Value, json};

/// Longest line that is taken from a monitor: far above any real reply (a description of all of QEMU's commands would be the longest, about 0.3 MiB).
pub const LINE_BYTES_MAX: usize = 64 << 20;

/// One message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line of every connection.
    Greeting(Version),
    /// A command's result.
    Return {
        /// Which command.
        id: Option<u64>,
        /// What it returned.
        value: Value,
    },
    /// A command's refusal.
    Error {
        /// Which command; QEMU leaves it out where it could not parse the command.
        id: Option<u64>,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// Something that happened.
    Event(Event),
    /// A JSON object that is none of these; newer QEMUs may know more.
    Unknown,
}

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `BLOCK_EXPORT_DELETED`, ...
    pub name: String,
    /// Its particulars.
    pub data: Value,
}

/// QEMU's version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// 10 of 10.0.2.
    pub major: u32,
    /// 0 of 10.0.2.
    pub minor: u32,
    /// 2 of 10.0.2.
    pub micro: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<RawError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    id: Value,
}

#[derive(Deserialize)]
struct RawError {
    class: String,
    desc: String,
}

// A `return` of null is a return too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Reads one line.
///
/// # Errors
/// In words, when it is no JSON object of QMP's shape.
pub fn parse(line: &[u8]) -> Result<Message, String> {
    let raw: Raw = serde_json::from_slice(line).map_err(|error| format!("{error} in {}", excerpt(line)))?;
    let id = raw.id.as_u64();
    Ok(if let Some(greeting) = raw.greeting {
        Message::Greeting(serde_json::from_value(greeting["version"]["qemu"].clone()).unwrap_or_default())
    } else if let Some(name) = raw.event {
        Message::Event(Event { name, data: raw.data })
    } else if let Some(error) = raw.error {
        Message::Error { id, class: error.class, description: error.desc }
    } else if let Some(value) = raw.result {
        Message::Return { id, value }
    } else {
        Message::Unknown
    })
}

/// A command as a line.
#[must_use]
pub fn command(name: &str, arguments: &Value, id: u64) -> Vec<u8> {
    let mut message = json!({ "execute": name, "id": id });
    if !arguments.is_null() {
        message["arguments"] = arguments.clone();
    }
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The first bytes of what came, fit for a message.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).chars().filter(|c| !c.is_control()).collect();
    format!("{text:?}")
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    scanned: usize,
}

impl Lines {
    /// Takes bytes in as they come.
    ///
    /// # Errors
    /// In words, when a line becomes longer than [`LINE_BYTES_MAX`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.buffer.len().saturating_add(bytes.len()) > LINE_BYTES_MAX {
            return Err(format!("a line is longer than {LINE_BYTES_MAX} bytes"));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole line, without its end; empty ones are left out.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let Some(found) = self.buffer[self.scanned..].iter().position(|&b| b == b'\n') else {
                self.scanned = self.buffer.len();
                return None;
            };
            let rest = self.buffer.split_off(self.scanned + found + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            self.scanned = 0;
            while line.last().is_some_and(u8::is_ascii_whitespace) {
                line.pop();
            }
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "x"}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Ok(Message::Greeting(Version { major: 10, minor: 0, micro: 2 })));
        assert_eq!(parse(br#"{"return": {}, "id": 7}"#), Ok(Message::Return { id: Some(7), value: json!({}) }));
        assert_eq!(parse(br#"{"return": null}"#), Ok(Message::Return { id: None, value: Value::Null }));
        assert_eq!(parse(br#"{"future": 1}"#), Ok(Message::Unknown));
        let error = br#"{"id": 1, "error": {"class": "GenericError", "desc": "no", "new": 1}}"#;
        assert_eq!(parse(error), Ok(Message::Error { id: Some(1), class: "GenericError".into(), description: "no".into() }));
        let event = br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#;
        assert_eq!(parse(event), Ok(Message::Event(Event { name: "STOP".into(), data: Value::Null })));
        assert!(parse(b"SSH-2.0-OpenSSH").unwrap_err().contains("SSH-2.0"));
        assert!(parse(b"[1]").is_err());
    }

    #[test]
    fn a_command_without_arguments_has_none() {
        assert_eq!(command("stop", &Value::Null, 3), b"{\"execute\":\"stop\",\"id\":3}\n");
        assert!(String::from_utf8(command("x", &json!({"a": 1}), 3)).unwrap().contains("\"arguments\":{\"a\":1}"));
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let mut lines = Lines::default();
        let chunk = vec![b'x'; 32 << 20];
        assert!(lines.push(&chunk).is_ok() && lines.push(&chunk).is_ok());
        assert!(lines.push(b"x").is_err());
    }

    proptest! {
        #[test]
        fn lines_come_out_as_they_went_in_however_they_are_cut(lines in proptest::collection::vec("[a-z]{1,20}", 0..8), cut in 1..9_usize) {
            let stream: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let mut framed = Lines::default();
            let mut seen = Vec::new();
            for piece in stream.as_bytes().chunks(cut) {
                framed.push(piece).unwrap();
                while let Some(line) = framed.next_line() {
                    seen.push(String::from_utf8(line).unwrap());
                }
            }
            prop_assert_eq!(seen, lines);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes));
            prop_assert!(excerpt(&bytes).len() < 600);
        }
    }
}
