//! The way of bytes into packs: workers hash, compress and seal; one packer appends; one publisher syncs and indexes.
//!
//! Every queue is bounded, so memory is too. Order of durability: packs, their names, the index file that names them.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use keepmark_model::seam::Recycler;

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::blob::{SealedBlob, Sealer};
use crate::repository::core::Core;
use crate::repository::id::{BlobKind, ChunkId, Id};
use crate::repository::index_file::IndexFile;
use crate::repository::lock::Lease;
use crate::repository::pack::{FullPack, OpenPack, PublishedPack};
use crate::repository::sealed_file;
use crate::repository::write::known::Known;
use crate::repository::write::poison::Poison;

/// An index file is written after so many packs, so that an interrupted backup has to store at most so much again.
pub const INDEX_PACKS: usize = 16;

/// A chunk on its way to a worker.
pub struct Job {
    /// Its number on its disk.
    pub chunk: u64,
    /// Its bytes.
    pub data: Vec<u8>,
    /// Takes the buffer back.
    pub recycler: Recycler,
    /// Who waits for the outcome.
    pub reply: Sender<Reply>,
}

/// What became of a chunk; on failure the poison tells more.
pub struct Reply {
    /// Its number on its disk.
    pub chunk: u64,
    /// Its id and what storing it cost.
    pub outcome: Option<(ChunkId, Stored)>,
}

/// What storing a blob cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// So many bytes in a pack.
    New(u64),
    /// Nothing.
    Known,
}

/// What all threads share.
pub struct Shared {
    /// The repository.
    pub core: Arc<Core>,
    /// What need not be stored.
    pub known: Known,
    /// Set once anything failed.
    pub poison: Poison,
    /// While it holds, what was stored is not taken for garbage.
    pub lease: Arc<Lease>,
}

impl Shared {
    /// Notes a thread's failure, before its queues close and others see only that.
    fn note(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.poison.fail(error);
        }
    }

    /// Stores a chunk; that of zeros is hashed and looked up once per thread, because disks are full of them.
    fn store_chunk(
        &self,
        sealer: &mut Sealer,
        packer: &Sender<SealedBlob>,
        plain: &[u8],
        zeros: &mut Option<(usize, Id)>,
    ) -> Result<(Id, Stored)> {
        if !is_zero(plain) {
            return self.store(sealer, packer, BlobKind::Data, plain);
        }
        match *zeros {
            Some((length, id)) if length == plain.len() => Ok((id, Stored::Known)),
            Some(_) | None => {
                let outcome = self.store(sealer, packer, BlobKind::Data, plain)?;
                *zeros = Some((plain.len(), outcome.0));
                Ok(outcome)
            }
        }
    }

    /// Stores a blob unless it is there.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn store(&self, sealer: &mut Sealer, packer: &Sender<SealedBlob>, kind: BlobKind, plain: &[u8]) -> Result<(Id, Stored)> {
        let id = Id::of(plain);
        if !self.known.claim(kind, id)? {
            return Ok((id, Stored::Known));
        }
        let blob = sealer.seal(&self.core.key, id, kind, plain)?;
        let bytes = blob.bytes.len() as u64;
        packer.send(blob).map_err(|_| Error::Poisoned)?;
        Ok((id, Stored::New(bytes)))
    }
}

/// The threads of one backup.
pub struct Pipeline {
    /// What they share.
    pub shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    packer: Option<Sender<SealedBlob>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts so many workers, a packer and a publisher.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(core: Arc<Core>, known: Known, lease: Arc<Lease>, workers: usize) -> Result<Self> {
        let shared = Arc::new(Shared { known, core, poison: Poison::default(), lease });
        let (jobs, jobs_in) = bounded(workers.saturating_mul(2));
        let (packer, packer_in) = bounded(workers.saturating_mul(2));
        let (publisher, publisher_in) = bounded(1);
        let mut pipeline = Self { shared, jobs: Some(jobs), packer: Some(packer.clone()), threads: Vec::new() };
        for _ in 0..workers.max(1) {
            let (jobs, packer) = (jobs_in.clone(), packer.clone());
            pipeline.spawn("hash", move |shared| shared.note(work(shared, &jobs, &packer)))?;
        }
        pipeline.spawn("pack", move |shared| shared.note(pack(shared, &packer_in, &publisher)))?;
        pipeline.spawn("publish", move |shared| shared.note(publish(shared, &publisher_in)))?;
        Ok(pipeline)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce(&Shared) + Send + 'static) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(&shared))
            .map_err(|error| Error::internal("start a thread", error))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Hands a chunk to the workers; blocks while they are busy.
    ///
    /// # Errors
    /// When anything failed before.
    pub fn submit(&self, job: Job) -> Result<()> {
        self.shared.poison.check()?;
        self.jobs.as_ref().ok_or(Error::Poisoned)?.send(job).map_err(|_| Error::Poisoned)
    }

    /// Stores a blob on the caller's thread.
    ///
    /// # Errors
    /// When it cannot be stored, or anything failed before.
    pub fn store(&self, sealer: &mut Sealer, kind: BlobKind, plain: &[u8]) -> Result<(Id, Stored)> {
        self.shared.poison.check()?;
        let packer = self.packer.as_ref().ok_or(Error::Poisoned)?;
        match self.shared.store(sealer, packer, kind, plain) {
            // The packer is gone: its own failure says more.
            Err(Error::Poisoned) => Err(self.shared.poison.check().err().unwrap_or(Error::Poisoned)),
            other => other,
        }
    }

    /// Waits until everything is durable and indexed.
    ///
    /// # Errors
    /// When anything failed, now or before.
    pub fn finish(mut self) -> Result<()> {
        self.join()?;
        self.shared.poison.check()
    }

    fn join(&mut self) -> Result<()> {
        drop(self.jobs.take());
        drop(self.packer.take());
        let threads = std::mem::take(&mut self.threads);
        let joined: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
        if joined.iter().all(std::result::Result::is_ok) { Ok(()) } else { Err(Error::internal("store", "a thread of the store panicked")) }
    }
}

impl Drop for Pipeline {
    /// A backup that is given up: nothing more is published, but what is durable is indexed, so that the next run finds it.
    fn drop(&mut self) {
        drop(self.join());
    }
}

fn work(shared: &Shared, jobs: &Receiver<Job>, packer: &Sender<SealedBlob>) -> Result<()> {
    let mut sealer = Sealer::new()?;
    let mut zeros: Option<(usize, Id)> = None;
    for Job { chunk, data, recycler, reply } in jobs {
        let outcome =
            if shared.poison.is_set() { Err(Error::Poisoned) } else { shared.store_chunk(&mut sealer, packer, &data, &mut zeros) };
        recycler(data);
        let outcome = match outcome {
            Ok(outcome) => Some(outcome),
            Err(Error::Poisoned) => None,
            Err(error) => {
                shared.poison.fail(error);
                None
            }
        };
        // Whoever waited may have given up.
        drop(reply.send(Reply { chunk, outcome }));
    }
    Ok(())
}

/// Whether there is nothing but zeros; stops at the first 64 bytes that are something else.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Fills one pack of data and one of trees. After a failure it goes on taking blobs, so that nobody waits for it.
fn pack(shared: &Shared, blobs: &Receiver<SealedBlob>, publisher: &Sender<FullPack>) -> Result<()> {
    let (mut data, mut trees) = (None, None);
    for blob in blobs {
        let slot = match blob.kind {
            BlobKind::Data => &mut data,
            BlobKind::Tree => &mut trees,
        };
        if let Err(error) = add(shared, &blob, slot, publisher) {
            shared.poison.fail(error);
        }
    }
    [data, trees].into_iter().flatten().try_for_each(|pack| close(shared, pack, publisher))
}

fn add(shared: &Shared, blob: &SealedBlob, slot: &mut Option<OpenPack>, publisher: &Sender<FullPack>) -> Result<()> {
    if shared.poison.is_set() {
        return Ok(());
    }
    OpenPack::fill(slot, &*shared.core.backend, blob)?.map_or(Ok(()), |full| close(shared, full, publisher))
}

fn close(shared: &Shared, pack: OpenPack, publisher: &Sender<FullPack>) -> Result<()> {
    if shared.poison.is_set() {
        return Ok(());
    }
    publisher.send(pack.close(&shared.core.key)?).map_err(|_| Error::Poisoned)
}

/// Publishes packs, and an index file for every batch of them. A failed write or sync ends it for good.
fn publish(shared: &Shared, packs: &Receiver<FullPack>) -> Result<()> {
    let mut batch = Vec::new();
    for pack in packs {
        if shared.poison.is_set() {
            return Ok(());
        }
        batch.push(pack.publish()?);
        if batch.len() >= INDEX_PACKS {
            index(shared, &std::mem::take(&mut batch))?;
        }
    }
    if batch.is_empty() || shared.poison.is_set() { Ok(()) } else { index(shared, &batch) }
}

fn index(shared: &Shared, packs: &[PublishedPack]) -> Result<()> {
    shared.core.backend.settle(FileKind::Pack)?;
    // Whoever was taken for dead must not name packs that were removed as a dead one's.
    let alive = || shared.lease.check();
    let file = sealed_file::write_if(&*shared.core.backend, &shared.core.key, FileKind::Index, &IndexFile::of(packs), &alive)?;
    shared.known.indexed(file, packs)
}
