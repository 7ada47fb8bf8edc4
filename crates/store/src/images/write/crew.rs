//! The threads that write chunks into an image, each by a connection of its own, and leave out what is there already.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use keepmark_model::seam::Recycler;
use keepmark_model::{Extent, Extents};

use crate::error::{Error, Result};
use crate::images::medium::{Medium, Reader};

const THREADS: usize = 4;
const WAITING: usize = 8;

/// What the new image lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Below {
    /// Nothing: what is not written is zero.
    Nothing,
    /// An image that lacks what is written.
    Base,
    /// An image that may have the same already; these parts of it are not zero.
    Compared(Extents),
}

/// A chunk to be written.
pub struct Chunk {
    /// Where.
    pub offset: u64,
    /// What.
    pub data: Vec<u8>,
    /// Who gets the buffer afterwards.
    pub recycler: Recycler,
}

/// The threads.
pub struct Crew {
    chunks: Option<Sender<Chunk>>,
    threads: Vec<JoinHandle<()>>,
    state: Arc<State>,
}

struct State {
    below: Below,
    failure: Mutex<Option<Error>>,
    written: AtomicU64,
}

impl Crew {
    /// Starts them on an image.
    pub fn start(medium: &Medium, below: Below) -> Result<Self> {
        let (sender, receiver) = bounded(WAITING);
        let state = Arc::new(State { below, failure: Mutex::default(), written: AtomicU64::new(0) });
        let mut crew = Self { chunks: Some(sender), threads: Vec::new(), state };
        for _ in 0..THREADS {
            let (writer, receiver, state) = (medium.client()?, receiver.clone(), Arc::clone(&crew.state));
            crew.threads.push(std::thread::spawn(move || work(writer, &receiver, &state)));
        }
        Ok(crew)
    }

    /// Hands a chunk over; waits while all are busy.
    pub fn submit(&self, chunk: Chunk) -> Result<()> {
        self.state.check()?;
        self.chunks.as_ref().map_or(Err(Error::Poisoned), |chunks| chunks.send(chunk).map_err(|_| Error::Poisoned))
    }

    /// Waits for all chunks; gives how many were written.
    pub fn finish(mut self) -> Result<u64> {
        self.stop();
        self.state.check()?;
        Ok(self.state.written.load(Ordering::Relaxed))
    }

    fn stop(&mut self) {
        self.chunks = None;
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

impl State {
    /// The first failure, once; after it everything is refused.
    fn check(&self) -> Result<()> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match failure.take() {
            None => Ok(()),
            Some(error) => {
                *failure = Some(Error::Poisoned);
                Err(error)
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn note(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

fn work(mut writer: Reader, chunks: &Receiver<Chunk>, state: &State) {
    let mut old = Vec::new();
    for Chunk { offset, data, recycler } in chunks {
        // What is left is taken and dropped, so that nobody waits.
        if state.has_failed() {
            continue;
        }
        match store(&mut writer, offset, &data, &mut old, &state.below) {
            Ok(written) => state.written.fetch_add(u64::from(written), Ordering::Relaxed),
            Err(error) => {
                state.note(error);
                continue;
            }
        };
        recycler(data);
    }
}

/// Writes a chunk unless it is there already; says whether it was written.
fn store(writer: &mut Reader, offset: u64, data: &[u8], old: &mut Vec<u8>, below: &Below) -> Result<bool> {
    let extent = Extent::at(offset, data.len() as u64);
    let is_zero = data.iter().all(|byte| *byte == 0);
    match below {
        Below::Nothing if is_zero => return Ok(false),
        Below::Nothing | Below::Base => {}
        Below::Compared(old_data) => {
            let was_zero = old_data.intersection(&Extents::from_iter([extent])).is_empty();
            if was_zero && is_zero {
                return Ok(false);
            }
            old.resize(data.len(), 0);
            if !was_zero && {
                writer.fill(offset, old)?;
                old == data
            } {
                return Ok(false);
            }
        }
    }
    if is_zero {
        writer.zero(extent)?
    } else {
        writer.write(offset, data)?
    }
    Ok(true)
}
