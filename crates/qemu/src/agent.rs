//! The guest agent: finding its socket, freezing and thawing the guest's file systems, never waiting without end.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::qmp::Qmp;

const PORT: &str = "org.qemu.guest_agent.0";
// The delimiter of `guest-sync-delimited`: no byte of UTF-8, so all before it is rubbish of an earlier client.
const DELIMITER: u8 = 0xff;
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Where a VM's agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// The unix socket of its character device.
    pub socket: PathBuf,
    /// Whether a program in the guest has the port open.
    pub is_open: bool,
}

/// Finds the agent's channel in a running QEMU; none where none is configured on a unix socket.
///
/// # Errors
/// When QEMU does not answer.
pub fn find(qmp: &mut Qmp) -> Result<Option<Channel>> {
    for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let Ok(devices) = qmp.execute::<Vec<Value>>("qom-list", json!({ "path": folder })) else { continue };
        for device in devices.iter().filter(|device| device["type"] == "child<virtserialport>") {
            let path = format!("{folder}/{}", device["name"].as_str().unwrap_or_default());
            if property(qmp, &path, "name")?.as_deref() == Some(PORT)
                && let Some(label) = property(qmp, &path, "chardev")?
            {
                let chardevs: Vec<Value> = qmp.execute("query-chardev", Value::Null)?;
                return Ok(channel(&chardevs, &label));
            }
        }
    }
    Ok(None)
}

fn property(qmp: &mut Qmp, path: &str, property: &str) -> Result<Option<String>> {
    match qmp.execute::<Value>("qom-get", json!({ "path": path, "property": property })) {
        Ok(value) => Ok(value.as_str().map(str::to_owned)),
        Err(error) if error.is_unreachable() => Err(error),
        Err(_) => Ok(None),
    }
}

fn channel(chardevs: &[Value], label: &str) -> Option<Channel> {
    let chardev = chardevs.iter().find(|chardev| chardev["label"] == label)?;
    let socket = socket_path(chardev["filename"].as_str()?)?;
    Some(Channel { socket, is_open: chardev["frontend-open"].as_bool().unwrap_or(false) })
}

// `unix:/run/qga.sock,server=on`, `disconnected:unix:/run/qga.sock,server=on`, and with a peer: `unix:/run/qga.sock,server=on <-> ...`.
fn socket_path(filename: &str) -> Option<PathBuf> {
    let rest = filename.strip_prefix("disconnected:").unwrap_or(filename).strip_prefix("unix:")?;
    let path = rest.split(",server").next().unwrap_or(rest);
    (!path.is_empty()).then(|| PathBuf::from(path))
}

/// A connection to an agent that has answered.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    socket: PathBuf,
}

impl Agent {
    /// Connects and synchronises: what an earlier client left unread is dropped.
    ///
    /// # Errors
    /// When nobody answers within the time.
    pub fn connect(socket: &Path, within: Duration) -> Result<Self> {
        let fail = |error: io::Error| Error::Agent { socket: socket.to_owned(), problem: format!("cannot be connected to: {error}") };
        let stream = UnixStream::connect(socket).map_err(fail)?;
        let mut agent = Self { stream, socket: socket.to_owned() };
        agent.synchronise(within)?;
        Ok(agent)
    }

    /// Whether the file systems are frozen already. An agent that does not tell counts as no.
    ///
    /// # Errors
    /// When the agent does not answer in time.
    pub fn is_frozen(&mut self, within: Duration) -> Result<bool> {
        Ok(self.ask("guest-fsfreeze-status", within)?.is_ok_and(|status| status == "frozen"))
    }

    /// Freezes all file systems; gives how many. An agent that refuses has frozen nothing: it is not thawed then, since perhaps somebody else
    /// has frozen it.
    ///
    /// When the time passes without an answer, a thaw is sent after it: the agent works in order, so that a freeze that
    /// comes late is taken back at once.
    ///
    /// # Errors
    /// When the agent refuses or does not answer in time.
    pub fn freeze(&mut self, within: Duration) -> Result<u64> {
        let frozen = self.ask("guest-fsfreeze-freeze", within);
        if frozen.is_err() {
            drop(self.send("guest-fsfreeze-thaw", &Value::Null, within));
        }
        let frozen = frozen?.map_err(|words| self.refused("guest-fsfreeze-freeze", &words))?;
        Ok(frozen.as_u64().unwrap_or_default())
    }

    /// Thaws all file systems.
    ///
    /// # Errors
    /// When the agent refuses or does not answer in time.
    pub fn thaw(&mut self, within: Duration) -> Result<()> {
        self.ask("guest-fsfreeze-thaw", within)?.map(drop).map_err(|words| self.refused("guest-fsfreeze-thaw", &words))
    }

    fn synchronise(&mut self, within: Duration) -> Result<()> {
        let id = u64::from(std::process::id());
        self.write(&[DELIMITER], within)?;
        self.send("guest-sync-delimited", &json!({ "id": id }), within)?;
        let deadline = Instant::now() + within;
        loop {
            self.read_until(DELIMITER, deadline, within)?;
            let line = self.read_until(b'\n', deadline, within)?;
            // An earlier client's reply may come first.
            if serde_json::from_slice::<Value>(&line).is_ok_and(|reply| reply["return"] == id) {
                return Ok(());
            }
        }
    }

    // The inner result is the agent's refusal, in its words.
    fn ask(&mut self, command: &str, within: Duration) -> Result<std::result::Result<Value, String>> {
        self.send(command, &Value::Null, within)?;
        let line = self.read_until(b'\n', Instant::now() + within, within)?;
        let reply: Value = serde_json::from_slice(&line).map_err(|error| self.fail(format!("answered {command} with rubbish: {error}")))?;
        let refusal = reply["error"]["desc"].as_str().map(|words| words.chars().take(200).collect());
        Ok(refusal.map_or_else(|| Ok(reply["return"].clone()), Err))
    }

    fn refused(&self, command: &str, words: &str) -> Error {
        self.fail(format!("refused {command}: {words}"))
    }

    fn send(&mut self, command: &str, arguments: &Value, within: Duration) -> Result<()> {
        let mut message = json!({ "execute": command });
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        self.write(format!("{message}\n").as_bytes(), within)
    }

    fn write(&mut self, bytes: &[u8], within: Duration) -> Result<()> {
        let limit = within.max(Duration::from_millis(1));
        let written = self.stream.set_write_timeout(Some(limit)).and_then(|()| self.stream.write_all(bytes));
        written.map_err(|error| self.fail(format!("cannot be written to: {error}")))
    }

    // Byte by byte: replies are short, and nothing after the end may be taken.
    fn read_until(&mut self, end: u8, deadline: Instant, within: Duration) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut byte = [0_u8];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.fail(format!("did not answer within {} s", within.as_secs_f32())));
            }
            self.stream.set_read_timeout(Some(left)).map_err(|error| self.fail(format!("cannot be read: {error}")))?;
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(self.fail("closed the connection".into())),
                Ok(_) if byte[0] == end => return Ok(line),
                Ok(_) if line.len() >= REPLY_BYTES_MAX => return Err(self.fail("talks without end".into())),
                Ok(_) => line.push(byte[0]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(self.fail(format!("cannot be read: {error}"))),
            }
        }
    }

    fn fail(&self, problem: String) -> Error {
        Error::Agent { socket: self.socket.clone(), problem }
    }
}

/// Connects and thaws.
///
/// # Errors
/// When the agent does not answer in time or refuses.
pub fn thaw_at(socket: &Path, within: Duration) -> Result<()> {
    Agent::connect(socket, within)?.thaw(within)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_socket_is_found_in_what_qemu_calls_the_chardev() {
        for name in [
            "unix:/run/a b.sock,server=on",
            "disconnected:unix:/run/a b.sock,server=on",
            "unix:/run/a b.sock,server=on <-> x",
            "unix:/run/a b.sock",
        ] {
            assert_eq!(socket_path(name), Some(PathBuf::from("/run/a b.sock")), "{name}");
        }
        assert_eq!(socket_path("pty:/dev/pts/1"), None);
        let chardevs = [json!({ "label": "x", "filename": "unix:/a", "frontend-open": true })];
        assert_eq!(channel(&chardevs, "x"), Some(Channel { socket: "/a".into(), is_open: true }));
        assert_eq!(channel(&chardevs, "y"), None);
    }

    // A guest that answers the synchronisation, after what an earlier client left, and then what it is told to.
    fn guest(folder: &Path, answer: Option<&'static str>) -> (PathBuf, std::thread::JoinHandle<Vec<String>>) {
        let socket = folder.join("qga");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let lines = io::BufRead::split(io::BufReader::new(stream.try_clone().unwrap()), b'\n').map_while(std::result::Result::ok);
            for line in lines {
                let text: String = String::from_utf8_lossy(&line).replace('\u{fffd}', "");
                let command: Value = serde_json::from_str(&text).unwrap();
                seen.push(command["execute"].as_str().unwrap().to_owned());
                if command["execute"] == "guest-sync-delimited" {
                    let reply = json!({ "return": command["arguments"]["id"] }).to_string();
                    stream.write_all(b"{\"return\": \"old\"}\n\xff{\"return\": 1}\n\xff").unwrap();
                    stream.write_all(format!("{reply}\n").as_bytes()).unwrap();
                } else if let Some(answer) = answer {
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
            seen
        });
        (socket, thread)
    }

    #[test]
    fn an_agent_that_answers_is_frozen_and_thawed() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, thread) = guest(folder.path(), Some("{\"return\": 2}\n"));
        let mut agent = Agent::connect(&socket, Duration::from_secs(2)).unwrap();
        assert_eq!(agent.freeze(Duration::from_secs(2)).unwrap(), 2);
        agent.thaw(Duration::from_secs(2)).unwrap();
        drop(agent);
        assert_eq!(thread.join().unwrap(), ["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    }

    #[test]
    fn a_freeze_that_hangs_is_given_up_and_followed_by_a_thaw() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, thread) = guest(folder.path(), None);
        let mut agent = Agent::connect(&socket, Duration::from_secs(2)).unwrap();
        let error = agent.freeze(Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not answer"), "{error}");
        drop(agent);
        assert_eq!(thread.join().unwrap(), ["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    }

    #[test]
    fn a_freeze_of_somebody_elses_is_seen_and_not_thawed() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, thread) = guest(folder.path(), Some("{\"return\": \"frozen\"}\n"));
        assert!(Agent::connect(&socket, Duration::from_secs(2)).unwrap().is_frozen(Duration::from_secs(2)).unwrap());
        assert_eq!(thread.join().unwrap(), ["guest-sync-delimited", "guest-fsfreeze-status"]);
        let folder = tempfile::tempdir().unwrap();
        let (socket, thread) = guest(folder.path(), Some("{\"error\": {\"desc\": \"the agent is in frozen state\"}}\n"));
        let mut agent = Agent::connect(&socket, Duration::from_secs(2)).unwrap();
        assert!(!agent.is_frozen(Duration::from_secs(2)).unwrap());
        let error = agent.freeze(Duration::from_secs(2)).unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
        drop(agent);
        assert_eq!(thread.join().unwrap(), ["guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-freeze"]);
    }

    #[test]
    fn refusals_and_rubbish_are_said_in_words() {
        for (answer, words) in [("{\"error\": {\"desc\": \"frozen state\"}}\n", "refused"), ("what?\n", "rubbish")] {
            let folder = tempfile::tempdir().unwrap();
            let (socket, thread) = guest(folder.path(), Some(answer));
            let error = thaw_at(&socket, Duration::from_secs(2)).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            thread.join().unwrap();
        }
    }
}
