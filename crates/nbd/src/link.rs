//! One stream with its errors named: who the server is, and what was going on.

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::error::{Error, Result};
use crate::socket::Socket;
use crate::wire::Violation;

/// Enough for the heads of replies. What is longer goes from the socket straight to where it belongs,
/// so this is also the price per payload: at most so many bytes are copied once more.
const HEAD_BUFFER: usize = 512;
/// Bytes that are made room for before they have arrived, of a payload whose length only the server knows.
const STEP: usize = 64 << 10;

/// A connected stream.
#[derive(Debug)]
pub(crate) struct Link {
    reader: BufReader<Socket>,
    server: Arc<str>,
    timeout: Option<Duration>,
}

impl Link {
    pub(crate) fn connect(address: &Address, timeout: Option<Duration>) -> Result<Link> {
        let timeout = timeout.filter(|t| !t.is_zero());
        let server = address.to_string();
        match Socket::connect(address, timeout) {
            Ok(socket) => Ok(Link::new(socket, &server, timeout)),
            Err(source) => Err(Error::Connect { server, source }),
        }
    }

    pub(crate) fn new(socket: Socket, server: &str, timeout: Option<Duration>) -> Link {
        Link { reader: BufReader::with_capacity(HEAD_BUFFER, socket), server: server.into(), timeout }
    }

    pub(crate) fn socket(&self) -> &Socket {
        self.reader.get_ref()
    }

    pub(crate) fn server(&self) -> String {
        self.server.to_string()
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(crate) fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.timeout = timeout.filter(|t| !t.is_zero());
        self.socket().set_timeout(self.timeout).map_err(|e| self.io("the set-up of time limits", e))
    }

    /// Bytes have arrived that no poll of the socket would tell of.
    pub(crate) fn has_buffered(&self) -> bool {
        !self.reader.buffer().is_empty()
    }

    pub(crate) fn read_exact(&mut self, buffer: &mut [u8], doing: &'static str) -> Result<()> {
        self.reader.read_exact(buffer).map_err(|e| self.io(doing, e))
    }

    /// Reads `length` bytes into `buffer`, which grows only as they arrive. The caller has checked `length`
    /// against a limit of its own.
    pub(crate) fn read_claimed(&mut self, length: u64, buffer: &mut Vec<u8>, doing: &'static str) -> Result<()> {
        buffer.clear();
        let mut missing = usize::try_from(length)
            .map_err(|_| self.protocol(Violation::TooLong { what: "payload", length, limit: u64::from(u32::MAX) }))?;
        while missing > 0 {
            let (start, step) = (buffer.len(), missing.min(STEP));
            buffer.resize(start + step, 0);
            self.read_exact(&mut buffer[start..], doing)?;
            missing -= step;
        }
        Ok(())
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8], doing: &'static str) -> Result<()> {
        self.reader.get_mut().write_all(bytes).map_err(|e| self.io(doing, e))
    }

    /// Both, in one go as far as the socket takes it.
    pub(crate) fn write_both(&mut self, head: &[u8], payload: &[u8], doing: &'static str) -> Result<()> {
        let parts = [IoSlice::new(head), IoSlice::new(payload)];
        let socket = self.reader.get_mut();
        let written = loop {
            match socket.write_vectored(&parts) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|e| self.io(doing, e))?,
            }
        };
        self.write_all(head.get(written..).unwrap_or_default(), doing)?;
        self.write_all(&payload[written.saturating_sub(head.len()).min(payload.len())..], doing)
    }

    pub(crate) fn protocol(&self, source: Violation) -> Error {
        Error::Protocol { server: self.server(), source }
    }

    pub(crate) fn invalid(&self, source: Violation) -> Error {
        Error::Invalid { server: self.server(), source }
    }

    pub(crate) fn timed_out(&self, doing: &'static str) -> Error {
        let seconds = self.timeout.unwrap_or_default().as_secs_f64();
        Error::Timeout { server: self.server(), doing, seconds }
    }

    pub(crate) fn io(&self, doing: &'static str, source: io::Error) -> Error {
        use io::ErrorKind as K;
        let gone = [K::UnexpectedEof, K::BrokenPipe, K::ConnectionReset, K::ConnectionAborted, K::WriteZero];
        if [K::WouldBlock, K::TimedOut].contains(&source.kind()) {
            self.timed_out(doing)
        } else if gone.contains(&source.kind()) {
            Error::Disconnected { server: self.server(), doing }
        } else {
            Error::Io { server: self.server(), doing, source }
        }
    }
}
