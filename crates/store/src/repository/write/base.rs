//! Opening a base: an incremental is built only on tables of which everything is there.

use keepmark_model::BackupId;
use keepmark_model::seam::DiskContent;

use crate::error::{Error, Result};
use crate::repository::catalog::LoadedDisk;
use crate::repository::disk_table::{StoredDisk, Trees, store_zeros};
use crate::repository::id::{BlobKind, ChunkId, TreeId};
use crate::repository::read::{Part, walk_disk};
use crate::repository::tree::Node;
use crate::repository::write::{BackupWriter, needs};

impl BackupWriter<'_> {
    /// The base's tables of a disk, if all that they name is there. What is in a pack is not read: that is for a verification.
    pub(super) fn base(&self, id: &BackupId, content: &DiskContent) -> Result<StoredDisk> {
        let backup = self.repository.load_backup(id)?;
        let chunk_size = content.chunk_size.bytes();
        let disk = backup.disk(content.name.as_str())?;
        if disk.layout.chunk != chunk_size {
            return Err(Error::Content {
                disk: content.name.to_string(),
                problem: format!("the base has chunks of {} bytes, not {chunk_size}", disk.layout.chunk),
            });
        }
        let remembered = needs::load(&self.repository.cache, &self.vm, id);
        let is_whole = remembered.map(|needs| self.pipeline.shared.known.require_all(&needs)).transpose()?;
        if is_whole != Some(true) {
            self.walk_base(&disk)?;
        }
        StoredDisk::open(self, &disk.tree, disk.layout)
    }

    /// Looks for every tree and chunk of the disk. Only zeros may be missing: they are stored again, for those who restore
    /// with other programs.
    fn walk_base(&self, disk: &LoadedDisk) -> Result<()> {
        let mut longest = 0;
        walk_disk(&Required(self), disk, None, &mut |part| match part {
            Part::Chunk(_, id) => self.pipeline.shared.known.require(BlobKind::Data, &id),
            Part::Zero(range) => {
                longest = longest.max(range.end - range.start);
                Ok(())
            }
        })?;
        store_zeros(self, disk.layout, longest)
    }
}

/// Trees of a base: those that are loaded are needed.
struct Required<'a>(&'a BackupWriter<'a>);

impl Trees for Required<'_> {
    fn load(&self, id: &TreeId) -> Result<Vec<Node>> {
        self.0.pipeline.shared.known.require(BlobKind::Tree, id)?;
        self.0.load(id)
    }

    fn store(&self, nodes: &[Node]) -> Result<TreeId> {
        self.0.store(nodes)
    }

    fn zeros(&self, bytes: u64) -> Result<ChunkId> {
        self.0.zeros(bytes)
    }
}
