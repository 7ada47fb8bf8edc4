//! Reading a backup: its trees are walked in order, its chunks are read, opened and checked by several threads.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use keepmark_model::manifest::Manifest;
use keepmark_model::seam::{self, Piece};
use keepmark_model::{BackupId, ChunkIndex, DiskName, Extent, Extents};

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::catalog::{LoadedBackup, LoadedDisk};
use crate::repository::core::Scratch;
use crate::repository::disk_table::{StoredDisk, Trees, ZeroNames};
use crate::repository::id::{BlobKind, ChunkId, Id, TreeId, chunk_id};
use crate::repository::layout::{DIR_CHUNKS, GROUP_CHUNKS, Layout};
use crate::repository::lock::Lease;
use crate::repository::tree::Node;

/// A published backup, open for reading.
pub struct BackupReader<'a> {
    repository: &'a Repository,
    backup: LoadedBackup,
    /// None where the repository cannot be written: then nobody can prune it from here either.
    _lease: Option<Arc<Lease>>,
}

/// A part of a disk as its trees tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// One chunk.
    Chunk(u64, ChunkId),
    /// These chunks are zero.
    Zero(Range<u64>),
}

impl Repository {
    /// Opens a backup for reading.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`], or whatever is damaged.
    pub fn open_backup(&self, id: &BackupId) -> Result<BackupReader<'_>> {
        let lease = self.reading_lease()?;
        Ok(BackupReader { repository: self, backup: self.load_backup(id)?, _lease: lease })
    }
}

impl BackupReader<'_> {
    /// The content of a small file beside the disks.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn read_file(&self, name: &str) -> Result<Vec<u8>> {
        let node = self.backup.nodes.iter().find(|node| node.name == name && node.subtree.is_none());
        let node =
            node.ok_or_else(|| Error::NoSuchPart { backup: self.backup.id.short().to_owned(), what: "file", name: name.to_owned() })?;
        self.repository.read_file(node, &mut Scratch::new()?)
    }

    /// Walks the chunks of a disk in order, without reading them. Zeros come as ranges.
    ///
    /// # Errors
    /// When a tree is missing or damaged, or what `visit` returned.
    pub fn walk(&self, disk: &str, within: Option<&Extents>, visit: &mut dyn FnMut(Part) -> Result<()>) -> Result<Layout> {
        let disk = self.backup.disk(disk)?;
        let trees = Loader { repository: self.repository, scratch: Mutex::new(Scratch::new()?) };
        walk_disk(&trees, &disk, within, visit)?;
        Ok(disk.layout)
    }

    /// The chunks within a range that are not zero.
    fn data_within(&self, disk: &str, within: &Extents) -> Result<Extents> {
        let layout = self.backup.disk(disk)?.layout;
        let mut data = Extents::new();
        self.walk(disk, Some(within), &mut |part| {
            if let Part::Chunk(chunk, _) = part {
                data.push(Extent::at(chunk.saturating_mul(layout.chunk), layout.bytes(&(chunk..chunk.saturating_add(1)))));
            }
            Ok(())
        })?;
        Ok(data)
    }

    /// Whether a chunk has exactly these bytes.
    fn holds(&self, disk: &str, chunk: ChunkIndex, bytes: &[u8]) -> Result<bool> {
        let layout = self.backup.disk(disk)?.layout;
        let place = Extents::from_iter([Extent::at(chunk.0.saturating_mul(layout.chunk), bytes.len() as u64)]);
        let mut same = false;
        self.walk(disk, Some(&place), &mut |part| {
            same = match part {
                Part::Chunk(_, id) => chunk_id(bytes) == id,
                Part::Zero(_) => bytes.iter().all(|byte| *byte == 0),
            };
            Ok(())
        })?;
        Ok(same)
    }

    fn read_parts(&self, disk: &str, within: Option<&Extents>, sink: &(dyn Fn(Piece<'_>) -> seam::Result<()> + Sync)) -> Result<()> {
        let layout = self.backup.disk(disk)?.layout;
        let (jobs, jobs_in) = bounded::<(u64, ChunkId)>(self.repository.workers * 4);
        let failure = Failure::default();
        std::thread::scope(|scope| {
            for _ in 0..self.repository.workers {
                scope.spawn(|| {
                    failure.note(self.read_chunks(layout, &jobs_in, &failure, sink));
                    // A thread that could not begin must not let the feeder wait.
                    jobs_in.iter().for_each(drop);
                });
            }
            failure.note(self.feed(disk, layout, within, jobs, &failure, sink));
        });
        failure.into_result()
    }

    /// Tells zeros as they come and hands chunks to the workers.
    fn feed(
        &self,
        disk: &str,
        layout: Layout,
        within: Option<&Extents>,
        jobs: Sender<(u64, ChunkId)>,
        failure: &Failure,
        sink: &(dyn Fn(Piece<'_>) -> seam::Result<()> + Sync),
    ) -> Result<()> {
        let mut zeros = 0..0;
        let tell = |zeros: &Range<u64>| -> Result<()> {
            let extent = Extent::at(zeros.start.saturating_mul(layout.chunk), layout.bytes(zeros));
            if extent.is_empty() { Ok(()) } else { Ok(sink(Piece::Zero(extent))?) }
        };
        self.walk(disk, within, &mut |part| {
            if failure.is_set() {
                return Err(Error::Poisoned);
            }
            match part {
                Part::Zero(range) if range.start == zeros.end => zeros.end = range.end,
                Part::Zero(range) => tell(&std::mem::replace(&mut zeros, range))?,
                Part::Chunk(chunk, id) => jobs.send((chunk, id)).map_err(|_| Error::Poisoned)?,
            }
            Ok(())
        })?;
        tell(&zeros)
    }

    fn read_chunks(
        &self,
        layout: Layout,
        jobs: &Receiver<(u64, ChunkId)>,
        failure: &Failure,
        sink: &(dyn Fn(Piece<'_>) -> seam::Result<()> + Sync),
    ) -> Result<()> {
        let mut scratch = Scratch::new()?;
        for (chunk, id) in jobs {
            // What is left is taken and dropped, so that the feeder never waits.
            if failure.is_set() {
                continue;
            }
            failure.note(self.read_chunk(layout, chunk, &id, &mut scratch, sink));
        }
        Ok(())
    }

    fn read_chunk(
        &self,
        layout: Layout,
        chunk: u64,
        id: &ChunkId,
        scratch: &mut Scratch,
        sink: &(dyn Fn(Piece<'_>) -> seam::Result<()> + Sync),
    ) -> Result<()> {
        self.repository.load_blob(id, BlobKind::Data, scratch)?;
        if scratch.plain.len() as u64 != layout.bytes(&(chunk..chunk.saturating_add(1))) {
            return Err(Error::damaged("chunk", id, "it has another length than its place on the disk"));
        }
        Ok(sink(Piece::Data { offset: chunk.saturating_mul(layout.chunk), bytes: &scratch.plain })?)
    }
}

/// The first failure of several threads.
#[derive(Default)]
struct Failure {
    is_set: AtomicBool,
    first: Mutex<Option<Error>>,
}

impl Failure {
    fn note(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_none() {
                *first = Some(error);
            }
            self.is_set.store(true, Ordering::SeqCst);
        }
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::SeqCst)
    }

    fn into_result(self) -> Result<()> {
        self.first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Loads trees for a walk; stores nothing.
pub(crate) struct Loader<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) scratch: Mutex<Scratch>,
}

impl Trees for Loader<'_> {
    fn load(&self, id: &TreeId) -> Result<Vec<Node>> {
        self.repository.load_tree(id, &mut self.scratch.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn store(&self, _nodes: &[Node]) -> Result<TreeId> {
        Err(Error::Poisoned)
    }

    fn zeros(&self, _bytes: u64) -> Result<ChunkId> {
        Err(Error::Poisoned)
    }
}

/// Visits the chunks of a disk in order, loading trees where they are not those of zeros.
pub(crate) fn walk_disk(
    trees: &dyn Trees,
    disk: &LoadedDisk,
    within: Option<&Extents>,
    visit: &mut dyn FnMut(Part) -> Result<()>,
) -> Result<()> {
    let layout = disk.layout;
    let stored = StoredDisk::open(trees, &disk.tree, layout)?;
    let mut walk = Walk { trees, stored, zero: ZeroNames::new(layout.chunk)?, visit };
    let whole = Extents::whole(keepmark_model::Size(layout.size));
    let mut next = 0;
    for extent in within.unwrap_or(&whole).iter() {
        let end = extent.end.min(layout.size).div_ceil(layout.chunk);
        walk.range((extent.start / layout.chunk).max(next)..end)?;
        next = next.max(end);
    }
    Ok(())
}

struct Walk<'w> {
    trees: &'w dyn Trees,
    stored: StoredDisk,
    zero: ZeroNames,
    visit: &'w mut dyn FnMut(Part) -> Result<()>,
}

impl Walk<'_> {
    fn range(&mut self, range: Range<u64>) -> Result<()> {
        let mut next = range.start;
        while next < range.end {
            next = self.step(next, range.end)?;
        }
        Ok(())
    }

    /// Visits as much as one look at a tree tells; returns where to go on.
    fn step(&mut self, next: u64, end: u64) -> Result<u64> {
        let layout = self.stored.layout;
        let (group, dir) = (next / GROUP_CHUNKS, next / DIR_CHUNKS);
        if self.stored.group(group) == Some(self.zero.group) {
            return self.zeros(next..end.min(layout.group_range(group).end));
        }
        let stop = end.min(layout.dir_range(dir).end);
        if self.stored.dir(self.trees, dir)? == Some(self.zero.dir) {
            return self.zeros(next..stop);
        }
        let start = usize::try_from(next - dir * DIR_CHUNKS).unwrap_or(usize::MAX);
        let short_zero = Id::of(&vec![0; usize::try_from(layout.size % layout.chunk).unwrap_or(0)]);
        let chunks = self.stored.chunks(self.trees, dir)?.get(start..).unwrap_or_default();
        for (chunk, id) in (next..stop).zip(chunks) {
            let is_zero = *id == self.zero.chunk || (*id == short_zero && chunk + 1 == layout.chunks());
            (self.visit)(if is_zero { Part::Zero(chunk..chunk + 1) } else { Part::Chunk(chunk, *id) })?;
        }
        Ok(stop)
    }

    fn zeros(&mut self, range: Range<u64>) -> Result<u64> {
        let end = range.end;
        (self.visit)(Part::Zero(range))?;
        Ok(end)
    }
}

impl seam::BackupReader for BackupReader<'_> {
    fn manifest(&self) -> &Manifest {
        &self.backup.manifest
    }

    fn files(&self) -> Vec<String> {
        self.backup.nodes.iter().filter(|node| node.subtree.is_none()).map(|node| node.name.clone()).collect()
    }

    fn file(&self, name: &str) -> seam::Result<Vec<u8>> {
        Ok(self.read_file(name)?)
    }

    fn data(&self, disk: &DiskName, within: &Extents) -> seam::Result<Extents> {
        Ok(self.data_within(disk.as_str(), within)?)
    }

    fn is_same(&self, disk: &DiskName, chunk: ChunkIndex, bytes: &[u8]) -> seam::Result<bool> {
        Ok(self.holds(disk.as_str(), chunk, bytes)?)
    }

    fn read_disk(
        &self,
        disk: &DiskName,
        within: Option<&Extents>,
        sink: &(dyn Fn(Piece<'_>) -> seam::Result<()> + Sync),
    ) -> seam::Result<()> {
        Ok(self.read_parts(disk.as_str(), within, sink)?)
    }
}
