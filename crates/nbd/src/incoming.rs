//! Replies as they come in: each is checked against the request it claims to answer before a byte of it is kept.

use crate::connection::{Body, Completion, Connection, Order, Pending, StatusBody};
use crate::coverage::Coverage;
use crate::error::Result;
use crate::link::Link;
use crate::status::Status;
use crate::wire::{self, ChunkHeader, Command, ErrorChunk, Fields, Hole, Mode, REPLY_PREFIX_LENGTH, Reply, Simple, Violation, chunk_kind};

/// What goes on whenever a reply is due.
pub(crate) const DOING: &str = "a request";
/// Error chunks in one reply that are accepted; the first is the one reported.
const ERRORS_MAX: usize = 64;

impl Connection {
    /// Receives one simple reply or one chunk.
    pub(crate) fn receive_one(&mut self) -> Result<Option<Completion>> {
        match self.receive_head()? {
            Reply::Simple(simple) => self.receive_simple(simple).map(Some),
            Reply::Chunk(chunk) => self.receive_chunk(chunk),
        }
    }

    fn receive_head(&mut self) -> Result<Reply> {
        let mut head = [0; 32];
        let prefix = head.first_chunk_mut::<REPLY_PREFIX_LENGTH>();
        let rest = match prefix {
            Some(prefix) => {
                self.link.read_exact(prefix, DOING)?;
                wire::rest_length(prefix, self.mode).map_err(|v| self.link.protocol(v))?
            }
            None => 0,
        };
        let length = REPLY_PREFIX_LENGTH + rest;
        self.link.read_exact(&mut head[REPLY_PREFIX_LENGTH..length], DOING)?;
        Reply::decode(&head[..length]).map_err(|v| self.link.protocol(v))
    }

    /// The slot of the request with this cookie.
    fn slot_of(&self, cookie: u64) -> Result<usize> {
        let slot = usize::try_from(cookie & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        let known = self.pending.get(slot).and_then(Option::as_ref).is_some_and(|pending| pending.cookie == cookie);
        if known { Ok(slot) } else { Err(self.link.protocol(Violation::Cookie { cookie })) }
    }

    fn receive_simple(&mut self, simple: Simple) -> Result<Completion> {
        let slot = self.slot_of(simple.cookie)?;
        let (Some(pending), link) = (self.pending[slot].as_mut(), &mut self.link) else {
            return Err(self.link.protocol(Violation::Cookie { cookie: simple.cookie }));
        };
        if simple.errno != 0 {
            // Also where chunks were negotiated: nothing can be mistaken about it.
            pending.failure = Some(ErrorChunk { errno: simple.errno, message: String::new() });
            return self.complete(slot, simple.cookie);
        }
        match &mut pending.body {
            Body::Nothing => {}
            Body::Read { buffer, coverage } if self.mode == Mode::Simple => {
                link.read_exact(buffer, DOING)?;
                coverage.add(0, buffer.len() as u64).map_err(|v| link.protocol(v))?;
            }
            Body::Read { .. } | Body::Status(_) => {
                return Err(link.protocol(Violation::SimpleReply { command: pending.order.command.verb() }));
            }
        }
        self.complete(slot, simple.cookie)
    }

    fn receive_chunk(&mut self, chunk: ChunkHeader) -> Result<Option<Completion>> {
        let slot = self.slot_of(chunk.cookie)?;
        let Some(pending) = self.pending[slot].as_mut() else {
            return Err(self.link.protocol(Violation::Cookie { cookie: chunk.cookie }));
        };
        let extended = self.mode == Mode::Extended;
        let mut intake = Intake { link: &mut self.link, scratch: &mut self.scratch, extended, chunk };
        intake.take(pending)?;
        if chunk.done { self.complete(slot, chunk.cookie).map(Some) } else { Ok(None) }
    }

    fn complete(&mut self, slot: usize, cookie: u64) -> Result<Completion> {
        let pending = self.forget(slot).ok_or_else(|| self.link.protocol(Violation::Cookie { cookie }))?;
        finish(pending).map_err(|v| self.link.protocol(v))
    }
}

/// Checks that a reply that ended is whole.
fn finish(pending: Pending) -> Result<Completion, Violation> {
    let Pending { order, failure, body, .. } = pending;
    if let Some(failure) = failure {
        return Ok(Completion { order, outcome: Err(failure) });
    }
    match &body {
        Body::Read { coverage, .. } if !coverage.is_complete(order.length) => {
            Err(Violation::Incomplete { offset: order.offset, length: order.length })
        }
        Body::Status(status) if status.due.contains(&status.wanted) => Err(Violation::StatusMissing),
        Body::Nothing | Body::Read { .. } | Body::Status(_) => Ok(Completion { order, outcome: Ok(body) }),
    }
}

/// One chunk whose head has been read and whose payload is next in the stream.
struct Intake<'a> {
    link: &'a mut Link,
    scratch: &'a mut Vec<u8>,
    extended: bool,
    chunk: ChunkHeader,
}

impl Intake<'_> {
    fn take(&mut self, pending: &mut Pending) -> Result<()> {
        let kind = self.chunk.kind;
        let status_kind = if self.extended { chunk_kind::BLOCK_STATUS_EXT } else { chunk_kind::BLOCK_STATUS };
        let order = pending.order;
        match &mut pending.body {
            _ if kind & chunk_kind::ERROR_BIT != 0 => self.take_error(pending),
            _ if kind == chunk_kind::NONE => self.take_none(),
            Body::Read { buffer, coverage } if kind == chunk_kind::OFFSET_DATA => self.take_data(order, buffer, coverage),
            Body::Read { buffer, coverage } if kind == chunk_kind::OFFSET_HOLE => self.take_hole(order, buffer, coverage),
            Body::Status(status) if kind == status_kind => self.take_status(order, status),
            Body::Nothing | Body::Read { .. } | Body::Status(_) => Err(self.unexpected(order.command)),
        }
    }

    fn unexpected(&self, command: Command) -> crate::Error {
        self.link.protocol(Violation::Chunk { command: command.verb(), kind: self.chunk.kind })
    }

    /// Reads the whole payload into the scratch buffer.
    fn payload(&mut self, what: &'static str, limit: u64) -> Result<()> {
        let length = self.chunk.length;
        if length > limit {
            return Err(self.link.protocol(Violation::TooLong { what, length, limit }));
        }
        self.link.read_claimed(length, self.scratch, DOING)
    }

    fn take_none(&mut self) -> Result<()> {
        self.payload("empty chunk", 0)?;
        if self.chunk.done { Ok(()) } else { Err(self.link.protocol(Violation::Endless)) }
    }

    fn take_error(&mut self, pending: &mut Pending) -> Result<()> {
        self.payload("error chunk", ErrorChunk::LENGTH_MAX)?;
        let error = ErrorChunk::decode(self.chunk.kind, self.scratch).map_err(|v| self.link.protocol(v))?;
        pending.failure.get_or_insert(error);
        pending.errors += 1;
        if pending.errors > ERRORS_MAX {
            return Err(self.link.protocol(Violation::TooMany { what: "error chunks", limit: ERRORS_MAX }));
        }
        Ok(())
    }

    fn take_data(&mut self, order: Order, buffer: &mut [u8], coverage: &mut Coverage) -> Result<()> {
        let short = Violation::Short { what: "data chunk", length: 0 };
        let length = self.chunk.length.checked_sub(8).ok_or_else(|| self.link.protocol(short))?;
        if length > order.length {
            return Err(self.link.protocol(Violation::TooLong { what: "data chunk", length, limit: order.length }));
        }
        let mut head = [0; 8];
        self.link.read_exact(&mut head, DOING)?;
        let offset = Fields::new("data chunk", &head).u64().map_err(|v| self.link.protocol(v))?;
        let target = place(order, offset, length, buffer, coverage).map_err(|v| self.link.protocol(v))?;
        self.link.read_exact(target, DOING)
    }

    fn take_hole(&mut self, order: Order, buffer: &mut [u8], coverage: &mut Coverage) -> Result<()> {
        self.payload("hole chunk", Hole::LENGTH as u64)?;
        let filled = Hole::decode(self.scratch).and_then(|hole| place(order, hole.offset, u64::from(hole.length), buffer, coverage));
        filled.map_err(|v| self.link.protocol(v))?.fill(0);
        Ok(())
    }

    fn take_status(&mut self, order: Order, status: &mut StatusBody) -> Result<()> {
        self.payload("block status chunk", wire::status_limit(self.extended))?;
        collect(order, status, self.extended, self.scratch).map_err(|v| self.link.protocol(v))
    }
}

/// The part of a read's buffer that `offset` and `length` name, noted as arrived.
fn place<'b>(order: Order, offset: u64, length: u64, buffer: &'b mut [u8], coverage: &mut Coverage) -> Result<&'b mut [u8], Violation> {
    let outside = Violation::Outside { offset, length, request_offset: order.offset, request_length: order.length };
    let start = offset.checked_sub(order.offset);
    let range = start.and_then(|start| Some((start, start.checked_add(length)?)));
    let (start, end) = range.filter(|(start, end)| start < end && *end <= order.length).ok_or(outside.clone())?;
    let (from, to) = (usize::try_from(start), usize::try_from(end));
    let (Ok(from), Ok(to)) = (from, to) else { return Err(outside) };
    coverage.add(start, end)?;
    buffer.get_mut(from..to).ok_or(outside)
}

/// Takes one context's extents. The last may reach beyond the request and is cut; nothing may follow it.
fn collect(order: Order, status: &mut StatusBody, extended: bool, payload: &[u8]) -> Result<(), Violation> {
    let StatusBody { wanted, due, extents } = status;
    let id = Fields::new("block status chunk", payload).u32()?;
    let place = due.iter().position(|due| *due == id).ok_or(Violation::StatusContext { id })?;
    due.swap_remove(place);
    let (mut position, end) = (order.offset, order.offset.saturating_add(order.length));
    wire::decode_status::<Violation>(extended, payload, &mut |extent| {
        if extent.length == 0 {
            return Err(Violation::StatusZeroLength);
        }
        if position == end {
            return Err(Violation::StatusBeyond { offset: order.offset, length: order.length });
        }
        let length = extent.length.min(end - position);
        if id == *wanted {
            extents.push(Status { offset: position, length, flags: extent.flags });
        }
        position += length;
        Ok(())
    })?;
    Ok(())
}
