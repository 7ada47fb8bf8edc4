//! A QMP client on a unix socket: commands with a time-out, events kept until they are asked for.

pub mod wire;

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use wire::{Event, Lines, Message, Version};

// Events come in hundreds at most while nobody asks for them; older ones give way.
const EVENTS_MAX: usize = 4096;
// What came in time counts even if this process was stopped meanwhile, and reads it late: in so many pieces at most.
const LATE_READS_MAX: u32 = 64;
const LATE_WAIT: Duration = Duration::from_millis(1);

/// A connection to a QEMU's monitor, or to qemu-storage-daemon's.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    peer: String,
    lines: Lines,
    events: VecDeque<Event>,
    next_id: u64,
    late_reads: u32,
    timeout: Duration,
    version: Version,
    // Commands of two threads must not be mixed.
    writing: Arc<Mutex<()>>,
}

/// Sends commands over a connection beside its owner, from another thread; what they return is nobody's concern.
#[derive(Debug)]
pub struct Aside {
    stream: UnixStream,
    writing: Arc<Mutex<()>>,
}

// The owner's numbers begin at one; it skips replies that bear another number than the one it waits for.
const ASIDE_ID: u64 = u64::MAX;

impl Aside {
    /// Sends a command.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&self, command: &str, arguments: &Value) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.stream).write_all(&wire::command(command, arguments, ASIDE_ID))
    }
}

/// Who is at the other end of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Qmp {
    /// Connects and negotiates. `timeout` holds for the greeting and for every command.
    ///
    /// # Errors
    /// When nobody listens, nobody answers in time, or the answer is not QMP.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self> {
        let peer = socket.display().to_string();
        let stream = UnixStream::connect(socket).map_err(|source| Error::Connect { peer: peer.clone(), source })?;
        Self::over(stream, peer, timeout)
    }

    /// Negotiates over a connection that is there already; `peer` is what it is called in errors.
    ///
    /// # Errors
    /// When nobody answers in time, or the answer is not QMP.
    pub fn over(stream: UnixStream, peer: String, timeout: Duration) -> Result<Self> {
        stream.set_write_timeout(Some(timeout)).map_err(|source| Error::Connect { peer: peer.clone(), source })?;
        let (lines, events, version) = (Lines::default(), VecDeque::new(), Version::default());
        let mut qmp = Self { stream, peer, lines, events, next_id: 0, late_reads: 0, timeout, version, writing: Arc::default() };
        qmp.version = qmp.greeting()?;
        qmp.run("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// QEMU's version, from its greeting.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// A way to send commands from another thread.
    ///
    /// # Errors
    /// When the connection cannot be shared.
    pub fn aside(&self) -> Result<Aside> {
        let stream = self.stream.try_clone().map_err(|source| self.broken("(sharing)", self.timeout, source))?;
        Ok(Aside { stream, writing: Arc::clone(&self.writing) })
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer(&self) -> Result<Peer> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.stream).map_err(|error| Error::Gone {
            peer: self.peer.clone(),
            command: "SO_PEERCRED".into(),
            source: error.into(),
        })?;
        let pid = u32::try_from(credentials.pid.as_raw_nonzero().get()).unwrap_or_default();
        // The socket remembers who began to listen: a QEMU that dropped its privileges since then has another user now.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let now = |field| effective(&status, field);
        Ok(Peer { pid, uid: now("Uid:").unwrap_or(credentials.uid.as_raw()), gid: now("Gid:").unwrap_or(credentials.gid.as_raw()) })
    }

    /// Runs a command and reads its result.
    ///
    /// # Errors
    /// When QEMU refuses, does not answer in time, or answers in another shape.
    pub fn execute<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T> {
        let value = self.call(command, &arguments)?;
        serde_json::from_value(value).map_err(|source| Error::Reply { command: command.into(), source })
    }

    /// Runs a command with an open file passed along, or without.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn hand(&mut self, command: &str, arguments: &Value, open: Option<BorrowedFd<'_>>) -> Result<Value> {
        self.call_with(command, arguments, open)
    }

    /// Waits for replies no longer than this from now on.
    pub(crate) fn hurry(&mut self, timeout: Duration) {
        self.timeout = self.timeout.min(timeout);
    }

    /// Runs a command whose result does not matter.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<()> {
        self.call(command, &arguments).map(drop)
    }

    /// Waits for an event, one of those kept or a new one.
    ///
    /// # Errors
    /// When it does not come in time or the connection breaks.
    pub fn wait_event(&mut self, what: &str, within: Duration, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(event) = self.events.iter().position(&wanted).and_then(|at| self.events.remove(at)) {
                return Ok(event);
            }
            if let Message::Event(event) = self.message(what, deadline, within)? {
                self.keep(event);
            }
        }
    }

    /// How many of the kept events are of this kind.
    #[must_use]
    pub fn heard(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name == name).count()
    }

    fn greeting(&mut self) -> Result<Version> {
        let deadline = Instant::now() + self.timeout;
        match self.message("(greeting)", deadline, self.timeout)? {
            Message::Greeting(version) => Ok(version),
            other @ (Message::Return { .. } | Message::Error { .. } | Message::Event(_) | Message::Unknown) => {
                Err(self.rubbish(format!("expected a greeting, got {other:?}").chars().take(120).collect()))
            }
        }
    }

    fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.call_with(command, arguments, None)
    }

    fn call_with(&mut self, command: &str, arguments: &Value, open: Option<BorrowedFd<'_>>) -> Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        let line = wire::command(command, arguments, id);
        self.write(&line, open).map_err(|source| self.broken(command, self.timeout, source))?;
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.message(command, deadline, self.timeout)? {
                // Replies to commands that were given up on may come late; their ids tell.
                Message::Return { id: Some(of), value } if of == id => return Ok(value),
                Message::Error { id: of, class, description } if of.is_none_or(|of| of == id) => {
                    return Err(Error::Refused { command: command.into(), class, description });
                }
                Message::Event(event) => self.keep(event),
                Message::Greeting(_) | Message::Return { .. } | Message::Error { .. } | Message::Unknown => {}
            }
        }
    }

    fn write(&self, line: &[u8], open: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = open else { return (&self.stream).write_all(line) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [open];
        if !control.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
        (&self.stream).write_all(line.get(sent..).unwrap_or_default())
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn message(&mut self, command: &str, deadline: Instant, waited: Duration) -> Result<Message> {
        let mut chunk = [0_u8; 64 << 10];
        loop {
            if let Some(line) = self.lines.next_line() {
                return wire::parse(&line).map_err(|problem| self.rubbish(problem));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.late_reads = if left.is_zero() { self.late_reads + 1 } else { 0 };
            if self.late_reads > LATE_READS_MAX {
                return Err(self.broken(command, waited, io::ErrorKind::TimedOut.into()));
            }
            self.stream.set_read_timeout(Some(left.max(LATE_WAIT))).map_err(|source| self.broken(command, waited, source))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.broken(command, waited, io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.lines.push(&chunk[..count]).map_err(|problem| self.rubbish(problem))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(command, waited, error)),
            }
        }
    }

    fn broken(&self, command: &str, waited: Duration, source: io::Error) -> Error {
        let (peer, command) = (self.peer.clone(), command.to_owned());
        if matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) {
            Error::Mute { peer, command, waited }
        } else {
            Error::Gone { peer, command, source }
        }
    }

    fn rubbish(&self, problem: String) -> Error {
        Error::Rubbish { peer: self.peer.clone(), problem }
    }
}

// `Uid:\treal\teffective\tsaved\tfile system` of /proc/PID/status.
fn effective(status: &str, field: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_is_the_second_number() {
        let status = "Name:\tx\nUid:\t0\t107\t107\t107\nGid:\t0\t108\t108\t108\n";
        assert_eq!((effective(status, "Uid:"), effective(status, "Gid:"), effective("", "Uid:")), (Some(107), Some(108), None));
    }
}
