//! Block status: what a meta context says about a range, asked again until the range is covered.

use crate::client::Client;
use crate::connection::{Body, Order, StatusBody};
use crate::error::{Error, Result};
use crate::wire::{Command, Violation};

/// Bytes asked for at once with 32-bit requests: the most that is aligned to any block size.
const ASK_MAX_COMPACT: u64 = 0xffff_0000;
/// Bytes asked for at once with 64-bit requests. A server looks at all of it before it answers, and a time-out
/// is waiting; at this size a disk of 16 TiB takes 16 questions.
const ASK_MAX_EXTENDED: u64 = 1 << 40;

/// What a meta context says about a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// In bytes from the start of the export.
    pub offset: u64,
    /// In bytes, never zero.
    pub length: u64,
    /// Their meaning depends on the context: for `base:allocation` bit 0 is a hole and bit 1 reads as zeros,
    /// for `qemu:dirty-bitmap:` bit 0 is dirty.
    pub flags: u64,
}

impl Client {
    /// Everything that `context` says about `length` bytes at `offset`: complete, in order, neighbours with equal
    /// flags joined. The answer takes 24 bytes per extent.
    pub fn block_status(&mut self, context: &str, offset: u64, length: u64) -> Result<Vec<Status>> {
        let mut all = Vec::new();
        self.block_status_each(context, offset, length, &mut |status| {
            all.push(status);
            Ok(())
        })?;
        Ok(all)
    }

    /// As [`Self::block_status`], handing each extent to `each` as soon as its end is known.
    pub fn block_status_each(&mut self, context: &str, offset: u64, length: u64, each: &mut dyn FnMut(Status) -> Result<()>) -> Result<()> {
        let id = self.context_id(context)?;
        let rounded = self.check_range(offset, length)?.rounded(self.info().block_sizes, self.info().size);
        if length == 0 {
            return Ok(());
        }
        self.settle()?;
        let mut joiner = Joiner { start: offset, end: offset + length, last: None, each };
        let (mut position, end) = (rounded.offset, rounded.offset + rounded.length);
        while position < end {
            for extent in self.ask_status(id, position, end - position)? {
                position = extent.offset + extent.length;
                joiner.add(extent)?;
            }
        }
        joiner.finish()
    }

    fn context_id(&mut self, context: &str) -> Result<u32> {
        let server = self.server();
        let known = self.first().contexts.iter().find(|known| known.name == context);
        known.map(|known| known.id).ok_or_else(|| Error::ContextMissing { server, context: context.to_owned() })
    }

    /// The extents at the start of a range; at least one, as many as the server cares to tell.
    fn ask_status(&mut self, id: u32, offset: u64, length: u64) -> Result<Vec<Status>> {
        let ask_max = if self.info().extended_headers { ASK_MAX_EXTENDED } else { ASK_MAX_COMPACT };
        let order = Order { command: Command::BlockStatus, offset, length: length.min(ask_max), tag: 0 };
        let payload = if self.info().can_select_contexts { selection(order.length, id) } else { Vec::new() };
        let due = if payload.is_empty() { self.first().contexts.iter().map(|c| c.id).collect() } else { vec![id] };
        let body = StatusBody { wanted: id, due, extents: Vec::new() };
        self.first().submit(order, &payload, Body::Status(body))?;
        match self.complete_first()?.outcome {
            Ok(Body::Status(body)) => Ok(body.extents),
            Ok(Body::Nothing | Body::Read { .. }) => Err(Error::Protocol { server: self.server(), source: Violation::StatusMissing }),
            Err(failure) => Err(self.failed(order, &failure)),
        }
    }
}

/// The payload that asks for one context only: the others may be expensive to tell.
fn selection(length: u64, id: u32) -> Vec<u8> {
    [&length.to_be_bytes()[..], &id.to_be_bytes()].concat()
}

/// Cuts extents to a range and joins neighbours with equal flags.
struct Joiner<'a> {
    start: u64,
    end: u64,
    last: Option<Status>,
    each: &'a mut dyn FnMut(Status) -> Result<()>,
}

impl Joiner<'_> {
    fn add(&mut self, extent: Status) -> Result<()> {
        let start = extent.offset.max(self.start);
        let end = (extent.offset + extent.length).min(self.end);
        if start >= end {
            return Ok(());
        }
        match &mut self.last {
            Some(last) if last.flags == extent.flags => last.length += end - start,
            Some(_) | None => {
                let next = Status { offset: start, length: end - start, flags: extent.flags };
                if let Some(known) = self.last.replace(next) {
                    (self.each)(known)?;
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.last.map_or(Ok(()), self.each)
    }
}
