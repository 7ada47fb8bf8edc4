//! Reading: many requests in flight, each into a buffer of its own.

use std::collections::HashMap;

use crate::client::Client;
use crate::connection::{Body, Completion, Order};
use crate::coverage::Coverage;
use crate::error::{Error, Result};
use crate::pool::BufferPool;
use crate::split::{Pieces, Span, piece_max};
use crate::wire::{Command, Violation};

/// Bytes per request of the convenience calls.
const CONVENIENT: u32 = 1 << 20;

/// A range to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    /// In bytes from the start of the export.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

impl Client {
    /// Reads all `requests`, up to `in_flight` of them outstanding over all connections, and hands each to `sink`
    /// in the order of completion, in a buffer out of `pool` of exactly its length. Whoever has the buffer last
    /// may `put` it back.
    ///
    /// Ranges need neither alignment nor a maximum: what the server insists on is seen to here, at the price of a
    /// copy for those that do not fit. 8 to 16 requests of 256 KiB to 1 MiB in flight are best. Stops at the first
    /// error: of a request ([`Error::Request`]), of the connection, or of the sink.
    pub fn read_many<E: From<Error>>(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        in_flight: usize,
        pool: &BufferPool,
        sink: &mut dyn FnMut(Request, Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.settle()?;
        let mut queue = Queue { requests, splitting: None, partial: HashMap::new(), next_tag: 0, pool };
        let credit = Client::credit(in_flight);
        loop {
            while self.outstanding() < credit {
                match queue.next(self)? {
                    Next::Piece(order) => submit_read(self, order, pool)?,
                    Next::Empty(request) => sink(request, Vec::new())?,
                    Next::Nothing => break,
                }
            }
            if self.outstanding() == 0 {
                return Ok(());
            }
            let completion = self.complete_any()?;
            if let Some((request, buffer)) = queue.completed(self, completion)? {
                sink(request, buffer)?;
            }
        }
    }

    /// Reads `buffer` full from `offset` on. Convenient, not fast: everything is copied once.
    pub fn read_exact_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let span = self.check_range(offset, buffer.len() as u64)?;
        let mut requests =
            span.pieces(u64::from(CONVENIENT)).map(|p| Request { offset: p.offset, length: u32::try_from(p.length).unwrap_or(CONVENIENT) });
        let pool = BufferPool::new(4);
        self.read_many(&mut requests, 4, &pool, &mut |request, bytes| {
            let start = usize::try_from(request.offset - offset).unwrap_or(usize::MAX);
            let target = buffer.get_mut(start..).and_then(|rest| rest.get_mut(..bytes.len()));
            target.unwrap_or_default().copy_from_slice(&bytes);
            pool.put(bytes);
            Ok(())
        })
    }
}

fn submit_read(client: &mut Client, order: Order, pool: &BufferPool) -> Result<()> {
    let buffer = pool.take(usize::try_from(order.length).unwrap_or(usize::MAX));
    client.submit_anywhere(order, Body::Read { buffer, coverage: Coverage::default() })
}

/// What to do next.
enum Next {
    Piece(Order),
    /// Nothing needs to be read for this one.
    Empty(Request),
    Nothing,
}

/// A request that the server cannot answer as it stands, and is put together from pieces.
struct Partial {
    request: Request,
    buffer: Vec<u8>,
    missing: u64,
}

/// The requests still to be sent, and those of which pieces are on their way.
struct Queue<'a> {
    requests: &'a mut dyn Iterator<Item = Request>,
    splitting: Option<(u64, Pieces)>,
    partial: HashMap<u64, Partial>,
    next_tag: u64,
    pool: &'a BufferPool,
}

impl Queue<'_> {
    fn next(&mut self, client: &Client) -> Result<Next> {
        if let Some((tag, pieces)) = &mut self.splitting {
            if let Some(piece) = pieces.next() {
                return Ok(Next::Piece(order(*tag, piece)));
            }
            self.splitting = None;
        }
        let Some(request) = self.requests.next() else { return Ok(Next::Nothing) };
        if request.length == 0 {
            return client.check_range(request.offset, 0).map(|_| Next::Empty(request));
        }
        self.start(client, request).map(Next::Piece)
    }

    /// The first piece of a request, which for nearly all of them is the only one.
    fn start(&mut self, client: &Client, request: Request) -> Result<Order> {
        let span = client.check_range(request.offset, u64::from(request.length))?;
        let (sizes, size) = (client.info().block_sizes, client.info().size);
        let (rounded, piece_max) = (span.rounded(sizes, size), piece_max(sizes));
        let tag = self.next_tag;
        self.next_tag += 1;
        if rounded == span && span.length <= piece_max {
            return Ok(order(tag, span));
        }
        let buffer = self.pool.take(usize::try_from(span.length).unwrap_or(usize::MAX));
        self.partial.insert(tag, Partial { request, buffer, missing: rounded.length });
        let mut pieces = rounded.pieces(piece_max);
        let first = pieces.next().unwrap_or(rounded);
        self.splitting = Some((tag, pieces));
        Ok(order(tag, first))
    }

    /// The request that this completion completes, if it does.
    fn completed(&mut self, client: &Client, completion: Completion) -> Result<Option<(Request, Vec<u8>)>> {
        let Completion { order, outcome } = completion;
        let body = outcome.map_err(|failure| client.failed(order, &failure))?;
        let Body::Read { buffer, .. } = body else { return Err(wrong_body(client)) };
        let Some(partial) = self.partial.get_mut(&order.tag) else {
            let length = u32::try_from(order.length).unwrap_or(u32::MAX);
            return Ok(Some((Request { offset: order.offset, length }, buffer)));
        };
        partial.fill(order.offset, &buffer);
        self.pool.put(buffer);
        let done = partial.missing == 0;
        let done = if done { self.partial.remove(&order.tag) } else { None };
        Ok(done.map(|partial| (partial.request, partial.buffer)))
    }
}

fn order(tag: u64, span: Span) -> Order {
    Order { command: Command::Read, offset: span.offset, length: span.length, tag }
}

/// Cannot happen: a read is answered with a read.
fn wrong_body(client: &Client) -> Error {
    Error::Protocol { server: client.server(), source: Violation::Chunk { command: Command::Read.verb(), kind: 0 } }
}

impl Partial {
    /// Copies what a piece at `offset` has of the request.
    fn fill(&mut self, offset: u64, piece: &[u8]) {
        let own = self.request.offset;
        let skip = usize::try_from(own.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = piece.get(skip..).unwrap_or_default();
        let start = usize::try_from(offset.saturating_sub(own)).unwrap_or(usize::MAX);
        let target = self.buffer.get_mut(start..).unwrap_or_default();
        let length = wanted.len().min(target.len());
        target[..length].copy_from_slice(&wanted[..length]);
        self.missing -= piece.len() as u64;
    }
}
