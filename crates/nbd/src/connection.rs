//! One connection in the transmission phase: what was asked, and is still unanswered.
//!
//! Sending and receiving happen on the caller's thread. That cannot deadlock: reads and writes are never
//! outstanding at once (see [`Connection::settle`]), so while a payload is being sent the answers due are a few bytes
//! each and fit the socket, and while data is being received only requests of 32 bytes are sent.

use crate::address::{Address, Options};
use crate::coverage::Coverage;
use crate::error::{Error, Result};
use crate::handshake::{self, Context, Granted};
use crate::incoming::DOING;
use crate::info::ExportInfo;
use crate::link::Link;
use crate::status::Status;
use crate::wire::{Command, ErrorChunk, Mode, RequestHeader, command_flag};

/// What is collected for a request while its reply comes in.
#[derive(Debug)]
pub(crate) enum Body {
    /// The reply has no content.
    Nothing,
    /// The bytes of a read.
    Read { buffer: Vec<u8>, coverage: Coverage },
    /// The extents of one context.
    Status(StatusBody),
}

/// The extents of one context, so far.
#[derive(Debug)]
pub(crate) struct StatusBody {
    /// The context that was asked for.
    pub(crate) wanted: u32,
    /// The contexts that are still to be answered; each is, once.
    pub(crate) due: Vec<u32>,
    pub(crate) extents: Vec<Status>,
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) cookie: u64,
    pub(crate) order: Order,
    pub(crate) failure: Option<ErrorChunk>,
    pub(crate) errors: usize,
    pub(crate) body: Body,
}

/// A request as the caller knows it; `tag` is the caller's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) command: Command,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) tag: u64,
}

/// A request that was answered.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) order: Order,
    pub(crate) outcome: Result<Body, ErrorChunk>,
}

/// One connection in the transmission phase.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) link: Link,
    pub(crate) mode: Mode,
    pub(crate) contexts: Vec<Context>,
    /// Indexed by the lower half of the cookie. The upper half is new for every request, so that a late or
    /// repeated reply is not taken for that of the slot's next user.
    pub(crate) pending: Vec<Option<Pending>>,
    pub(crate) scratch: Vec<u8>,
    outstanding: usize,
    generation: u32,
    outgoing: Vec<u8>,
    broken: bool,
}

impl Connection {
    /// Connects and negotiates.
    pub(crate) fn open(address: &Address, options: &Options) -> Result<(Connection, ExportInfo)> {
        let mut link = Link::connect(address, options.timeout)?;
        let Granted { info, mode, contexts } = handshake::negotiate(&mut link, options)?;
        Ok((Connection::new(link, mode, contexts), info))
    }

    pub(crate) fn new(link: Link, mode: Mode, contexts: Vec<Context>) -> Connection {
        Connection {
            link,
            mode,
            contexts,
            pending: Vec::new(),
            scratch: Vec::new(),
            outstanding: 0,
            generation: 0,
            outgoing: Vec::new(),
            broken: false,
        }
    }

    /// Requests that were not answered yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Takes note of a request; without payload it is sent with the next [`Self::receive`] or [`Self::send`].
    pub(crate) fn submit(&mut self, order: Order, payload: &[u8], body: Body) -> Result<()> {
        self.usable()?;
        let cookie = self.remember(order, body);
        // Block status with a payload says its length there; the header has the payload's.
        let in_header = if order.command == Command::BlockStatus && !payload.is_empty() { payload.len() as u64 } else { order.length };
        let flags = if self.mode == Mode::Extended && !payload.is_empty() { command_flag::PAYLOAD_LEN } else { 0 };
        let header = RequestHeader { command: order.command, flags, cookie, offset: order.offset, length: in_header };
        let sent = self.send_header(header, payload);
        self.note_failure(sent)
    }

    fn send_header(&mut self, header: RequestHeader, payload: &[u8]) -> Result<()> {
        header.encode(self.mode, &mut self.outgoing).map_err(|v| self.link.invalid(v))?;
        if payload.is_empty() {
            return Ok(());
        }
        self.link.write_both(&self.outgoing, payload, DOING)?;
        self.outgoing.clear();
        Ok(())
    }

    fn remember(&mut self, order: Order, body: Body) -> u64 {
        let free = self.pending.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.pending.len());
        if free.is_none() {
            self.pending.push(None);
        }
        self.generation = self.generation.wrapping_add(1);
        let cookie = u64::from(self.generation) << 32 | slot as u64;
        self.pending[slot] = Some(Pending { cookie, order, failure: None, errors: 0, body });
        self.outstanding += 1;
        cookie
    }

    /// Forgets an answered request.
    pub(crate) fn forget(&mut self, slot: usize) -> Option<Pending> {
        let done = self.pending.get_mut(slot).and_then(Option::take);
        self.outstanding -= usize::from(done.is_some());
        done
    }

    /// Sends what was submitted.
    pub(crate) fn send(&mut self) -> Result<()> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        let sent = self.link.write_all(&self.outgoing, DOING);
        self.outgoing.clear();
        self.note_failure(sent)
    }

    /// Receives one reply, or one chunk of one; a completion when it was a request's last. An error here means
    /// that the connection is lost; what a server could not do is in the completion.
    pub(crate) fn receive(&mut self) -> Result<Option<Completion>> {
        self.usable()?;
        self.send()?;
        let received = self.receive_one();
        self.note_failure(received)
    }

    /// Waits for the answers to requests that nobody wants any more, after an error or a caller that gave up.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.usable()?;
        while self.outstanding > 0 {
            self.receive()?;
        }
        Ok(())
    }

    /// Says goodbye.
    pub(crate) fn disconnect(&mut self) -> Result<()> {
        if self.broken {
            return Ok(());
        }
        let header = RequestHeader { command: Command::Disconnect, flags: 0, cookie: 0, offset: 0, length: 0 };
        self.send_header(header, &[])?;
        self.send()?;
        self.link.socket().finish().map_err(|e| self.link.io("the goodbye", e))
    }

    fn usable(&self) -> Result<()> {
        if self.broken { Err(Error::Unusable { server: self.link.server() }) } else { Ok(()) }
    }

    pub(crate) fn note_failure<T>(&mut self, result: Result<T>) -> Result<T> {
        self.broken |= result.is_err();
        result
    }
}
