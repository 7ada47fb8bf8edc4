//! A minimal QMP client of the tests' own, for a monitor beside the one that is tested.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{OrFail, fail};

const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// One QMP session.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// What was read of a line that is not complete yet.
    partial: Vec<u8>,
    events: VecDeque<Value>,
    next_id: u64,
}

impl Qmp {
    /// Connects and negotiates; gives nothing if nobody listens yet.
    #[must_use]
    pub fn try_connect(socket: &Path) -> Option<Self> {
        let writer = UnixStream::connect(socket).ok()?;
        let reader = BufReader::new(writer.try_clone().ok()?);
        let mut qmp = Self { reader, writer, partial: Vec::new(), events: VecDeque::new(), next_id: 0 };
        let greeting = qmp.read(Instant::now() + REPLY_TIMEOUT)?;
        if greeting.get("QMP").is_none() {
            fail(format_args!("{} did not greet as QMP: {greeting}", socket.display()));
        }
        qmp.execute("qmp_capabilities", json!({}));
        Some(qmp)
    }

    /// Executes a command and gives what it returned; an error ends the test.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        match self.try_execute(command, arguments) {
            Ok(value) => value,
            Err(error) => fail(format_args!("QMP {command}: {error}")),
        }
    }

    /// Executes a command and gives what it returned or the `error` object.
    ///
    /// # Errors
    /// What QEMU answered under `error`.
    #[track_caller]
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        self.next_id += 1;
        let id = json!(self.next_id);
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        self.writer.write_all(line.as_bytes()).or_fail(format_args!("sending {command} to QEMU"));
        let deadline = Instant::now() + REPLY_TIMEOUT;
        loop {
            let mut message = self.read(deadline).or_fail(format_args!("QEMU did not answer {command}"));
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if message["id"] == id {
                return if message["error"].is_null() { Ok(message["return"].take()) } else { Err(message["error"].take()) };
            }
        }
    }

    /// The next event of this name, which may have come before; none within `timeout`.
    pub fn wait_event(&mut self, name: &str, timeout: Duration) -> Option<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(at);
            }
            let message = self.read(deadline)?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            }
        }
    }

    /// Reads and gives all events that have come so far and were not asked for.
    pub fn take_events(&mut self) -> Vec<Value> {
        while let Some(message) = self.read(Instant::now()) {
            self.events.push_back(message);
        }
        self.events.drain(..).collect()
    }

    /// The next message; none after the deadline or when QEMU has hung up.
    fn read(&mut self, deadline: Instant) -> Option<Value> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.writer.set_read_timeout(Some(left)).or_fail("setting a socket's timeout");
            match self.reader.read_until(b'\n', &mut self.partial) {
                Ok(0) => return None,
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    return Some(serde_json::from_slice(&line).or_fail("QEMU sent no JSON"));
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= deadline {
                        return None;
                    }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => fail(format_args!("reading from QEMU: {error}")),
            }
        }
    }
}

/// Names of the bitmaps in what `query-named-block-nodes` answers, with the node's name, sorted; without those that jobs use
/// internally.
pub(crate) fn bitmaps_of(nodes: &Value) -> Vec<(String, String)> {
    let of_node = |node: &Value| {
        let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
        let name = |bitmap: &Value| Some((node["node-name"].as_str()?.to_owned(), bitmap["name"].as_str()?.to_owned()));
        bitmaps.filter_map(name).collect::<Vec<_>>()
    };
    let mut bitmaps: Vec<_> = nodes.as_array().into_iter().flatten().flat_map(of_node).collect();
    bitmaps.sort();
    bitmaps
}
