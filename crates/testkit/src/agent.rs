//! A minimal guest agent client of the tests' own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{OrFail, fail};

/// A connection to an agent that has answered.
#[derive(Debug)]
pub struct Agent {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Agent {
    /// Connects and synchronises; asks again until `timeout`.
    #[must_use]
    #[track_caller]
    pub fn connect(socket: &Path, timeout: Duration) -> Self {
        let writer = UnixStream::connect(socket).or_fail("connecting to the guest agent's socket");
        writer.set_read_timeout(Some(Duration::from_secs(1))).or_fail("setting a socket's timeout");
        let reader = BufReader::new(writer.try_clone().or_fail("duplicating a socket"));
        let mut agent = Self { reader, writer };
        let deadline = Instant::now() + timeout;
        let mut id = 1000;
        while Instant::now() < deadline {
            id += 1;
            if agent.sync(id) {
                return agent;
            }
        }
        fail("the guest agent does not answer")
    }

    /// Whether the agent answered with our id; older answers are skipped.
    fn sync(&mut self, id: u32) -> bool {
        self.send(&json!({"execute": "guest-sync", "arguments": {"id": id}}));
        while let Some(reply) = self.read() {
            if reply["return"] == id {
                return true;
            }
        }
        false
    }

    /// Executes a command and gives what it returned; an error or silence of 30 s ends the test.
    #[track_caller]
    pub fn execute(&mut self, command: &str) -> Value {
        self.send(&json!({"execute": command}));
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(mut reply) = self.read() {
                if !reply["error"].is_null() {
                    fail(format_args!("agent {command}: {}", reply["error"]));
                }
                return reply["return"].take();
            }
        }
        fail(format_args!("the guest agent does not answer {command}"))
    }

    fn send(&mut self, message: &Value) {
        self.writer.write_all(format!("{message}\n").as_bytes()).or_fail("writing to the guest agent");
    }

    fn read(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).ok()?;
        serde_json::from_slice(&line).ok()
    }
}
