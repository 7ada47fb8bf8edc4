//! Comparing a disk as it is with a backup, batch by batch, and handing over what has to be changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use keepmark_model::blocks;
use keepmark_model::revert::RevertDisk;
use keepmark_model::seam::{BackupReader, FrozenDisk, Monitor, Piece, Result};
use keepmark_model::writing::Change;
use keepmark_model::{ChunkIndex, Extent, Extents};

use crate::capture::check_is_chunk;
use crate::error::Error;

/// Content of the disk that is in memory at a time.
const BATCH_BYTES: u64 = 32 << 20;

/// Where changes go, from several threads.
pub(super) type Sink<'s> = dyn Fn(Change) -> Result<()> + Sync + 's;

/// A disk and the backup that it is compared with.
pub(super) struct Comparison<'a> {
    /// Which disk.
    pub(super) disk: &'a RevertDisk,
    /// The backup.
    pub(super) backup: &'a dyn BackupReader,
    /// Who hears of it.
    pub(super) monitor: &'a dyn Monitor,
}

impl Comparison<'_> {
    /// Hands over what differs within `candidates`, which are whole chunks.
    ///
    /// # Errors
    /// When the disk or the backup cannot be read, the user interrupts, or what `sink` returned.
    pub(super) fn run(&self, now: &mut dyn FrozenDisk, candidates: &Extents, sink: &Sink<'_>) -> Result<()> {
        let (name, total) = (self.disk.name.as_str(), candidates.total().0);
        let mut done = 0;
        self.monitor.progress(name, 0, total);
        for batch in self.batches(candidates) {
            if self.monitor.interrupted() {
                return Err(Error::Interrupted.into());
            }
            self.batch(now, &batch, sink)?;
            done += batch.total().0;
            self.monitor.progress(name, done, total);
        }
        self.monitor.finished(name);
        Ok(())
    }

    fn batches(&self, candidates: &Extents) -> impl Iterator<Item = Extents> {
        let (chunk, size) = (self.disk.chunk_size, self.disk.size);
        let per_batch = usize::try_from((BATCH_BYTES / chunk.bytes()).max(1)).unwrap_or(usize::MAX);
        let mut chunks = candidates.chunks(chunk).map(move |index| chunk.extent(index, size));
        std::iter::from_fn(move || {
            let batch: Extents = chunks.by_ref().take(per_batch).collect();
            (!batch.is_empty()).then_some(batch)
        })
    }

    fn batch(&self, now: &mut dyn FrozenDisk, batch: &Extents, sink: &Sink<'_>) -> Result<()> {
        let content = self.read(now, batch)?;
        let compared = AtomicU64::new(0);
        self.backup.read_disk(&self.disk.name, Some(batch), &|piece| {
            for (part, then) in self.parts(piece, batch) {
                compared.fetch_add(part.len(), Ordering::Relaxed);
                blocks::changes(part, self.held(&content, part), then).into_iter().try_for_each(sink)?;
            }
            Ok(())
        })?;
        let recycle = now.recycler();
        content.into_values().for_each(|buffer| recycle(buffer));
        let (compared, wanted) = (compared.into_inner(), batch.total().0);
        if compared == wanted { Ok(()) } else { Err(Error::NotAll { disk: self.disk.name.to_string(), compared, wanted }.into()) }
    }

    /// The chunks of a batch that may hold data now; the others are zero.
    fn read(&self, now: &mut dyn FrozenDisk, batch: &Extents) -> Result<HashMap<ChunkIndex, Vec<u8>>> {
        let (chunk, size) = (self.disk.chunk_size, self.disk.size);
        let data = now.data(batch)?.round_out(chunk, size).intersection(batch);
        let mut content = HashMap::new();
        now.read(&mut data.chunks(chunk).map(|index| chunk.extent(index, size)), &mut |extent, bytes| {
            let index = chunk.index(extent.start);
            check_is_chunk(self.disk.name.as_str(), extent, chunk.extent(index, size), bytes.len())?;
            content.insert(index, bytes);
            Ok(())
        })?;
        Ok(content)
    }

    /// What of a chunk's content belongs to a part of it.
    fn held<'c>(&self, content: &'c HashMap<ChunkIndex, Vec<u8>>, part: Extent) -> Option<&'c [u8]> {
        let index = self.disk.chunk_size.index(part.start);
        let start = usize::try_from(part.start % self.disk.chunk_size.bytes()).ok()?;
        let end = start + usize::try_from(part.len()).ok()?;
        content.get(&index)?.get(start..end)
    }

    /// A piece of the backup, cut at the borders of chunks, as far as it belongs to the batch.
    fn parts<'p>(&self, piece: Piece<'p>, batch: &Extents) -> Vec<(Extent, Option<&'p [u8]>)> {
        let (whole, bytes) = match piece {
            Piece::Data { offset, bytes } => (Extent::at(offset, bytes.len() as u64), Some(bytes)),
            Piece::Zero(extent) => (extent, None),
        };
        let (chunk, size) = (self.disk.chunk_size, self.disk.size);
        let touched = Extents::from_iter([whole]).round_out(chunk, size).intersection(batch);
        let cut = |index| {
            let place = chunk.extent(index, size);
            let part = Extent::new(place.start.max(whole.start), place.end.min(whole.end));
            let slice = |bytes: &'p [u8]| {
                let start = usize::try_from(part.start - whole.start).ok()?;
                bytes.get(start..start + usize::try_from(part.len()).ok()?)
            };
            (part, bytes.and_then(slice))
        };
        touched.chunks(chunk).map(cut).collect()
    }
}
