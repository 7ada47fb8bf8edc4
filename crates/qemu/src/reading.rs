//! Reading on a thread of its own, so that QEMU never waits for whoever takes what was read.
//!
//! A reply that nobody takes off its socket holds up the next time that QEMU drains its requests (a job's end, `stop`, a reset),
//! and the guest with it. Without this thread a store that stalls would reach the guest in that way.

use std::sync::mpsc::{self, Receiver, Sender};

use keepmark_model::Failure;
use keepmark_nbd::{BufferPool, Client, Request};

use crate::error::Error;
use crate::space::Validity;

const IN_FLIGHT: usize = 16;
// With those that are read and not taken yet; each is a buffer in memory.
const AHEAD: usize = IN_FLIGHT + 8;

type Reply = (Request, Vec<u8>);

/// Why reading ended early.
pub(crate) enum Stop {
    /// The server or its connection failed.
    Source(keepmark_nbd::Error),
    /// The moment was given up.
    Over(Error),
    /// Nobody takes what is read any more.
    Unheard,
}

impl From<keepmark_nbd::Error> for Stop {
    fn from(error: keepmark_nbd::Error) -> Self {
        Self::Source(error)
    }
}

/// Reads all `requests` and gives each to `sink`, on the calling thread, in order of completion.
///
/// # Errors
/// What the sink says, what `failed` makes of a failed request, or that the moment was given up.
pub(crate) fn read_ahead(
    client: &mut Client,
    pool: &BufferPool,
    validity: Option<&Validity>,
    requests: &mut dyn Iterator<Item = Request>,
    sink: &mut dyn FnMut(Request, Vec<u8>) -> Result<(), Failure>,
    failed: &dyn Fn(keepmark_nbd::Error) -> Error,
) -> Result<(), Failure> {
    let (order, orders) = mpsc::channel();
    let (reply, replies) = mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || receive(client, pool, validity, &orders, &reply));
        let taken = feed(requests, order, replies, sink);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (taken, read) {
            (Err(failure), _) => Err(failure),
            (Ok(()), Err(Stop::Source(source))) => Err(failed(source).into()),
            (Ok(()), Err(Stop::Over(error))) => Err(error.into()),
            (Ok(()), Ok(()) | Err(Stop::Unheard)) => Ok(()),
        }
    })
}

/// Keeps the reader busy. When it has ended early it says itself why.
fn feed(
    requests: &mut dyn Iterator<Item = Request>,
    order: Sender<Request>,
    replies: Receiver<Reply>,
    sink: &mut dyn FnMut(Request, Vec<u8>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut requests = requests.fuse();
    let mut due = 0;
    loop {
        while due < AHEAD
            && let Some(request) = requests.next()
        {
            if order.send(request).is_err() {
                return Ok(());
            }
            due += 1;
        }
        if due == 0 {
            return Ok(());
        }
        let Ok((request, bytes)) = replies.recv() else { return Ok(()) };
        due -= 1;
        sink(request, bytes)?;
    }
}

fn receive(
    client: &mut Client,
    pool: &BufferPool,
    validity: Option<&Validity>,
    orders: &Receiver<Request>,
    replies: &Sender<Reply>,
) -> Result<(), Stop> {
    while let Ok(first) = orders.recv() {
        let mut waiting = Waiting { first: Some(first), orders };
        client.read_many(&mut waiting, IN_FLIGHT, pool, &mut |request, bytes| {
            validity.map_or(Ok(()), Validity::check).map_err(Stop::Over)?;
            replies.send((request, bytes)).map_err(|_| Stop::Unheard)
        })?;
    }
    Ok(())
}

/// What has been ordered so far. It ends when nothing waits, and goes on when something does again: replies come first.
struct Waiting<'a> {
    first: Option<Request>,
    orders: &'a Receiver<Request>,
}

impl Iterator for Waiting<'_> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        self.first.take().or_else(|| self.orders.try_recv().ok())
    }
}
