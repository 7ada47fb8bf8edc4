//! Writing, zeroing, trimming and flushing, for restores through a server.

use std::time::Duration;

use crate::client::Client;
use crate::connection::{Body, Order};
use crate::error::{Error, Result};
use crate::split::{Span, piece_max};
use crate::wire::Command;

/// Bytes zeroed or trimmed by one request. A server may have to write them one by one while a time-out runs.
const ZERO_MAX: u64 = 1 << 30;
/// How often it is asked whether a flush is still wanted.
const LOOK: Duration = Duration::from_millis(100);

impl Client {
    /// Writes all `items` (offset and content), up to `in_flight` requests outstanding, in no particular order:
    /// they must not overlap. Stops at the first error, of an item, of a request or of the connection; writes
    /// that are on their way then may or may not happen. Durable only after [`Self::flush`].
    ///
    /// Offset and length must be multiples of the server's minimum block size ([`Error::Unaligned`]).
    pub fn write_many<B: AsRef<[u8]>, E: From<Error>>(
        &mut self,
        items: &mut dyn Iterator<Item = Result<(u64, B), E>>,
        in_flight: usize,
    ) -> Result<(), E> {
        self.settle()?;
        let credit = Client::credit(in_flight);
        for item in items {
            let (offset, content) = item?;
            self.write_pieces(offset, content.as_ref(), credit)?;
        }
        while self.outstanding() > 0 {
            self.complete_write()?;
        }
        Ok(())
    }

    /// Writes all of `content` at `offset`.
    pub fn write_all_at(&mut self, offset: u64, content: &[u8]) -> Result<()> {
        self.write_many(&mut std::iter::once(Ok::<_, Error>((offset, content))), 4)
    }

    /// Makes the range read as zeros; the server may punch a hole.
    pub fn write_zeroes(&mut self, offset: u64, length: u64) -> Result<()> {
        let offered = self.info().can_zero;
        self.run_pieces(Command::WriteZeroes, offered, offset, length)
    }

    /// Tells the server that the content is not needed any more. What the range reads as afterwards is the
    /// server's choice.
    pub fn trim(&mut self, offset: u64, length: u64) -> Result<()> {
        let offered = self.info().can_trim;
        self.run_pieces(Command::Trim, offered, offset, length)
    }

    /// Returns when everything written so far is durable, however long that takes: how much a disk has to write then, nobody can tell.
    pub fn flush(&mut self) -> Result<()> {
        self.flush_unless(&|| false)
    }

    /// As [`Self::flush`], unless `interrupted` says that nobody wants to wait any longer ([`Error::Interrupted`]).
    pub fn flush_unless(&mut self, interrupted: &dyn Fn() -> bool) -> Result<()> {
        self.settle()?;
        if !self.info().can_flush {
            return Err(self.not_offered(Command::Flush));
        }
        let order = Order { command: Command::Flush, offset: 0, length: 0, tag: 0 };
        self.first().submit(order, &[], Body::Nothing)?;
        while !self.first_has_answer(LOOK)? {
            if interrupted() {
                return Err(Error::Interrupted { server: self.server() });
            }
        }
        let completion = self.complete_first()?;
        completion.outcome.map(|_| ()).map_err(|failure| self.failed(order, &failure))
    }

    fn write_pieces(&mut self, offset: u64, content: &[u8], credit: usize) -> Result<()> {
        let span = self.check_change(Command::Write, true, offset, content.len() as u64)?;
        let mut rest = content;
        for piece in span.pieces(piece_max(self.info().block_sizes)) {
            while self.outstanding() >= credit {
                self.complete_write()?;
            }
            let (part, after) = rest.split_at(usize::try_from(piece.length).unwrap_or(usize::MAX).min(rest.len()));
            rest = after;
            let order = Order { command: Command::Write, offset: piece.offset, length: piece.length, tag: 0 };
            self.first().submit(order, part, Body::Nothing)?;
        }
        Ok(())
    }

    fn complete_write(&mut self) -> Result<()> {
        let completion = self.complete_first()?;
        completion.outcome.map(|_| ()).map_err(|failure| self.failed(completion.order, &failure))
    }

    fn run_pieces(&mut self, command: Command, offered: bool, offset: u64, length: u64) -> Result<()> {
        self.settle()?;
        let span = self.check_change(command, offered, offset, length)?;
        span.pieces(ZERO_MAX).try_for_each(|piece| self.run(command, piece.offset, piece.length))
    }

    fn check_change(&self, command: Command, offered: bool, offset: u64, length: u64) -> Result<Span> {
        if self.info().read_only || !offered {
            return Err(self.not_offered(command));
        }
        let span = self.check_range(offset, length)?;
        let sizes = self.info().block_sizes;
        if !span.is_aligned(sizes, self.info().size) {
            return Err(Error::Unaligned { server: self.server(), offset, length, minimum: sizes.minimum });
        }
        Ok(span)
    }

    fn not_offered(&self, command: Command) -> Error {
        Error::NotOffered { server: self.server(), command: command.verb() }
    }
}
