//! What snapshots use: every tree that they reach, looked at once, and every blob that it names, a bit each.
//!
//! All snapshots count, also those of other programs. What cannot be read ends it: whoever does not know what is used removes nothing.

use std::collections::HashSet;
use std::sync::Arc;

use keepmark_model::seam::Monitor;

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::backend::FileKind;
use crate::repository::core::Scratch;
use crate::repository::id::{BlobKind, ChunkId, Id, TreeId};
use crate::repository::index::run::Run;
use crate::repository::index::set::RecordSet;
use crate::repository::snapshot::Snapshot;
use crate::repository::{noun, sealed_file};

/// What the snapshots of one moment use.
pub struct Usage {
    /// The whole index as it was.
    pub run: Arc<Run>,
    /// All places of all blobs that are used.
    pub used: RecordSet,
    /// The snapshots.
    pub snapshots: HashSet<Id>,
    /// Bytes of blobs that are used, each counted once.
    bytes: u64,
}

/// Takes note of what a snapshot uses.
pub trait Visitor {
    /// A tree; says whether to look into it.
    ///
    /// # Errors
    /// When it is nowhere.
    fn tree(&mut self, id: &TreeId) -> Result<bool>;

    /// A chunk.
    ///
    /// # Errors
    /// When it is nowhere.
    fn chunk(&mut self, id: &ChunkId) -> Result<()>;
}

impl Usage {
    /// Looks at all snapshots. They are listed before the index is read, so that it has all that they need.
    ///
    /// # Errors
    /// When anything cannot be read, or something that is used is in no index.
    pub fn find(repository: &Repository, monitor: &dyn Monitor) -> Result<Self> {
        let snapshots: HashSet<Id> = repository.core.backend.list(FileKind::Snapshot)?.into_iter().map(|(id, _)| id).collect();
        repository.index.refresh()?;
        if let Some((id, problem)) = repository.index.damaged().into_iter().next() {
            return Err(Error::damaged("index", id, problem));
        }
        let run = repository.index.whole()?;
        let mut usage = Self { used: RecordSet::new(&[run.records]), run, snapshots: HashSet::new(), bytes: 0 };
        for id in &snapshots {
            walk(repository, id, &mut Watched { usage: &mut usage, monitor })?;
        }
        monitor.finished(LOOK);
        Ok(Self { snapshots, ..usage })
    }

    /// Whether a blob was used.
    ///
    /// # Errors
    /// When the local index is damaged.
    pub fn has(&self, id: &Id, kind: BlobKind) -> Result<bool> {
        let mut is_used = false;
        self.places(id, kind, &mut |record, _| is_used |= self.used.contains((0, record)))?;
        Ok(is_used)
    }

    fn places(&self, id: &Id, kind: BlobKind, place: &mut dyn FnMut(u64, u32)) -> Result<()> {
        let found = self.run.find(id, kind, &mut |found| place(found.ordinal, found.record.entry.length));
        found.map_err(|problem| Error::damaged(super::super::index::INDEX_CACHE, self.run.place(), problem))
    }

    /// Notes that a blob is used; says whether that is new.
    fn add(&mut self, id: &Id, kind: BlobKind) -> Result<bool> {
        let mut places = Vec::new();
        self.places(id, kind, &mut |record, length| places.push((record, length)))?;
        let (record, length) = *places.first().ok_or_else(|| Error::Missing { kind: noun(kind), id: id.hex() })?;
        let is_new = !self.used.contains((0, record));
        if is_new {
            self.bytes += u64::from(length);
            places.into_iter().for_each(|(record, _)| self.used.insert((0, record)));
        }
        Ok(is_new)
    }
}

/// What the first look is called on the screen.
const LOOK: &str = "used";

/// Fills a usage, and tells how far it has come.
struct Watched<'a> {
    usage: &'a mut Usage,
    monitor: &'a dyn Monitor,
}

impl Visitor for Watched<'_> {
    fn tree(&mut self, id: &TreeId) -> Result<bool> {
        if self.monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        self.monitor.progress(LOOK, self.usage.bytes, self.usage.bytes);
        self.usage.add(id, BlobKind::Tree)
    }

    fn chunk(&mut self, id: &ChunkId) -> Result<()> {
        self.usage.add(id, BlobKind::Data).map(drop)
    }
}

/// Shows a visitor what a snapshot uses. One that was deleted meanwhile uses nothing.
///
/// # Errors
/// When anything cannot be read, and what the visitor returned.
pub fn walk(repository: &Repository, id: &Id, visitor: &mut dyn Visitor) -> Result<()> {
    let core = &repository.core;
    let snapshot: Snapshot = match sealed_file::read(&*core.backend, &core.key, FileKind::Snapshot, id) {
        Ok(snapshot) => snapshot,
        Err(_) if core.backend.size(FileKind::Snapshot, id)?.is_none() => return Ok(()),
        Err(error) => return Err(error),
    };
    let (mut waiting, mut scratch) = (vec![snapshot.tree], Scratch::new()?);
    while let Some(tree) = waiting.pop() {
        if !visitor.tree(&tree)? {
            continue;
        }
        for node in repository.load_tree(&tree, &mut scratch)? {
            node.content.iter().try_for_each(|chunk| visitor.chunk(chunk))?;
            waiting.extend(node.subtree);
        }
    }
    Ok(())
}
