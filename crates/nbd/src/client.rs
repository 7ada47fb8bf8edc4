//! The client: one export over one or several connections.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::address::{Address, Options};
use crate::connection::{Body, Completion, Connection, Order};
use crate::error::{Error, Result};
use crate::incoming::DOING;
use crate::info::ExportInfo;
use crate::split::Span;
use crate::wire::{Command, ErrorChunk};

/// More connections than this gain nothing anywhere.
const CONNECTIONS_MAX: usize = 16;
/// Requests outstanding at most, whatever the caller asks for: their answers must fit the sockets.
const IN_FLIGHT_MAX: usize = 256;
/// A server that is at its limit of connections accepts one more and then says nothing: no reason to wait long.
const EXTRA_CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// An NBD client: one export, one or several connections. Calls block; nothing runs between them.
///
/// An [`Error::Request`] leaves the client usable, and so does a caller's own error out of a sink or an iterator:
/// the answers that are then still due are waited for by the next call. Every other error of a call that talked
/// to the server ends the client.
#[derive(Debug)]
pub struct Client {
    info: ExportInfo,
    connections: Vec<Connection>,
}

impl Client {
    /// Connects and negotiates. Opens more than one connection only if the server says that all see the same
    /// data; if it refuses the further ones, works with what it has.
    pub fn connect(address: &Address, options: &Options) -> Result<Client> {
        let (first, info) = Connection::open(address, options)?;
        let mut client = Client { info, connections: vec![first] };
        if client.info.multi_conn {
            client.add_connections(address, options)?;
        }
        Ok(client)
    }

    fn add_connections(&mut self, address: &Address, options: &Options) -> Result<()> {
        let short = options.timeout.map_or(EXTRA_CONNECTION_TIMEOUT, |t| t.min(EXTRA_CONNECTION_TIMEOUT));
        let hasty = Options { timeout: Some(short), ..options.clone() };
        while self.connections.len() < options.connections_max.min(CONNECTIONS_MAX) {
            let (mut connection, info) = match Connection::open(address, &hasty) {
                Ok(opened) => opened,
                Err(Error::Connect { .. } | Error::Disconnected { .. } | Error::Timeout { .. }) => break,
                Err(e) => return Err(e),
            };
            self.check_same(&info)?;
            connection.link.set_timeout(options.timeout)?;
            self.connections.push(connection);
        }
        Ok(())
    }

    fn check_same(&self, info: &ExportInfo) -> Result<()> {
        let what = if info.size != self.info.size { "size" } else { "properties" };
        if *info == self.info { Ok(()) } else { Err(Error::Differs { server: self.server(), what }) }
    }

    /// What the server says about the export.
    pub fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Ends all connections in an orderly way. Dropping a client ends them too, but some servers log that.
    pub fn disconnect(mut self) -> Result<()> {
        self.connections.iter_mut().try_for_each(Connection::disconnect)
    }

    pub(crate) fn server(&self) -> String {
        self.connections[0].link.server()
    }

    /// The connection for everything that is not striped.
    pub(crate) fn first(&mut self) -> &mut Connection {
        &mut self.connections[0]
    }

    /// Makes sure that nothing of an earlier call is on its way any more.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.connections.iter_mut().try_for_each(Connection::settle)
    }

    /// An error unless the range lies within the export.
    pub(crate) fn check_range(&self, offset: u64, length: u64) -> Result<Span> {
        let size = self.info.size;
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(Span::new(offset, length)),
            _ => Err(Error::OutOfRange { server: self.server(), offset, length, size }),
        }
    }

    /// The caller's wish within our limits.
    pub(crate) fn credit(in_flight: usize) -> usize {
        in_flight.clamp(1, IN_FLIGHT_MAX)
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.connections.iter().map(Connection::outstanding).sum()
    }

    /// Submits on the connection with the least to do.
    pub(crate) fn submit_anywhere(&mut self, order: Order, body: Body) -> Result<()> {
        match self.connections.iter_mut().min_by_key(|c| c.outstanding()) {
            Some(connection) => connection.submit(order, &[], body),
            None => Ok(()),
        }
    }

    /// Receives from whichever connection has something, until a request is complete.
    pub(crate) fn complete_any(&mut self) -> Result<Completion> {
        loop {
            let ready = self.wait()?;
            if let Some(completion) = self.connections[ready].receive()? {
                return Ok(completion);
            }
        }
    }

    /// The index of a connection that has something to receive.
    fn wait(&mut self) -> Result<usize> {
        if self.connections.len() == 1 {
            return Ok(0);
        }
        self.connections.iter_mut().try_for_each(Connection::send)?;
        let due = |c: &Connection| c.outstanding() > 0;
        if let Some(index) = self.connections.iter().position(|c| due(c) && c.link.has_buffered()) {
            return Ok(index);
        }
        let candidates: Vec<usize> = (0..self.connections.len()).filter(|i| due(&self.connections[*i])).collect();
        poll_some(&self.connections, &candidates)
    }

    /// The error for a request that the server refused.
    pub(crate) fn failed(&self, order: Order, failure: &ErrorChunk) -> Error {
        Error::Request {
            server: self.server(),
            command: order.command.verb(),
            offset: order.offset,
            length: order.length,
            errno: failure.errno,
            reason: failure.reason(),
        }
    }

    /// One request without content, on the first connection, to its end.
    pub(crate) fn run(&mut self, command: Command, offset: u64, length: u64) -> Result<()> {
        let order = Order { command, offset, length, tag: 0 };
        self.first().submit(order, &[], Body::Nothing)?;
        let completion = self.complete_first()?;
        completion.outcome.map(|_| ()).map_err(|failure| self.failed(order, &failure))
    }

    /// Whether the first connection has an answer, or its end, within this time.
    pub(crate) fn first_has_answer(&mut self, within: Duration) -> Result<bool> {
        let first = self.first();
        first.send()?;
        if first.link.has_buffered() {
            return Ok(true);
        }
        let limit = Timespec::try_from(within).ok();
        match poll(&mut [PollFd::new(first.link.socket(), PollFlags::IN)], limit.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(first.link.io(DOING, error.into())),
        }
    }

    /// Receives from the first connection until a request is complete.
    pub(crate) fn complete_first(&mut self) -> Result<Completion> {
        loop {
            if let Some(completion) = self.first().receive()? {
                return Ok(completion);
            }
        }
    }
}

/// Waits until one of the candidates has something to read or has hung up.
fn poll_some(connections: &[Connection], candidates: &[usize]) -> Result<usize> {
    let link = &connections[candidates.first().copied().unwrap_or(0)].link;
    let limit = link.timeout().and_then(|t| Timespec::try_from(t).ok());
    let mut fds: Vec<PollFd<'_>> = candidates.iter().map(|i| PollFd::new(connections[*i].link.socket(), PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return Err(link.timed_out(DOING)),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(link.io(DOING, e.into())),
        }
    }
    let ready = fds.iter().position(|fd| !fd.revents().is_empty()).unwrap_or(0);
    Ok(candidates[ready])
}
