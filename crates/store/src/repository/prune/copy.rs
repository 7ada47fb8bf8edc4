//! Copying what is used out of wasteful packs into new ones: as it lies there, but checked, and durable before the old ones are marked.

use std::collections::{BTreeSet, HashMap};

use keepmark_model::seam::Monitor;

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::backend::FileKind;
use crate::repository::blob::BlobEntry;
use crate::repository::core::Scratch;
use crate::repository::id::{BlobKind, PackId};
use crate::repository::index_file::IndexFile;
use crate::repository::lock::Lease;
use crate::repository::pack::{OpenPack, PublishedPack};
use crate::repository::write::pipeline::INDEX_PACKS;

/// What it is called on the screen.
const COPY: &str = "repack";

/// What was copied.
#[derive(Debug, Default)]
pub struct Copied {
    /// Packs of which everything that is used is elsewhere now, durable and in the index.
    pub packs: BTreeSet<PackId>,
    /// Bytes.
    pub bytes: u64,
}

struct Copier<'a> {
    repository: &'a Repository,
    lease: &'a Lease,
    scratch: Scratch,
    chunks: Option<OpenPack>,
    trees: Option<OpenPack>,
    published: Vec<PublishedPack>,
}

/// Copies these blobs of packs. A pack that cannot be read is a finding and stays; a store that is full is one, too, and all of them stay.
///
/// # Errors
/// When new packs cannot be written for another reason.
pub fn copy(repository: &Repository, lease: &Lease, contents: &HashMap<PackId, Vec<BlobEntry>>, monitor: &dyn Monitor) -> Result<Copied> {
    let mut copier = Copier { repository, lease, scratch: Scratch::new()?, chunks: None, trees: None, published: Vec::new() };
    let outcome = copier.copy_all(contents, monitor).and_then(|copied| copier.finish().map(|()| copied));
    monitor.finished(COPY);
    match outcome {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull => {
            monitor.note("there is no space to copy packs together: only those that nothing uses go");
            Ok(Copied::default())
        }
        other => other,
    }
}

impl Copier<'_> {
    fn copy_all(&mut self, contents: &HashMap<PackId, Vec<BlobEntry>>, monitor: &dyn Monitor) -> Result<Copied> {
        let total = contents.values().flatten().map(|entry| u64::from(entry.length)).sum();
        let (mut copied, mut done) = (Copied::default(), 0);
        for (pack, entries) in contents {
            let bytes: u64 = entries.iter().map(|entry| u64::from(entry.length)).sum();
            match self.copy_pack(pack, entries, monitor) {
                Ok(()) => {
                    copied.packs.insert(*pack);
                    copied.bytes += bytes;
                }
                Err(error @ Error::Damaged { .. }) => monitor.finding(&error.to_string()),
                Err(error) => return Err(error),
            }
            done += bytes;
            monitor.progress(COPY, done, total);
        }
        Ok(copied)
    }

    fn copy_pack(&mut self, pack: &PackId, entries: &[BlobEntry], monitor: &dyn Monitor) -> Result<()> {
        for entry in entries {
            if monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            let core = &self.repository.core;
            let blob = core.read_movable(pack, entry, &mut self.scratch)?;
            let slot = if blob.kind == BlobKind::Data { &mut self.chunks } else { &mut self.trees };
            if let Some(full) = OpenPack::fill(slot, &*core.backend, &blob)? {
                self.close(full)?;
            }
        }
        Ok(())
    }

    fn close(&mut self, pack: OpenPack) -> Result<()> {
        self.published.push(pack.close(&self.repository.core.key)?.publish()?);
        if self.published.len() >= INDEX_PACKS { self.index() } else { Ok(()) }
    }

    fn index(&mut self) -> Result<()> {
        if self.published.is_empty() {
            return Ok(());
        }
        self.repository.core.backend.settle(FileKind::Pack)?;
        let file = IndexFile::of(&std::mem::take(&mut self.published));
        self.repository.write_index_file(&file, &|| self.lease.check()).map(drop)
    }

    fn finish(&mut self) -> Result<()> {
        for pack in [self.chunks.take(), self.trees.take()].into_iter().flatten() {
            self.close(pack)?;
        }
        self.index()
    }
}
