//! Writing a backup: chunks through the pipeline, trees from the chunks, and at the very end the snapshot.

mod base;
mod disk;
mod known;
mod needs;
pub(crate) mod pipeline;
mod poison;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use keepmark_model::manifest::Manifest;
use keepmark_model::seam::{self, DiskContent, SavedFile};
use keepmark_model::{BackupId, FileName, VmId};

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::backend::FileKind;
use crate::repository::blob::Sealer;
use crate::repository::core::{Core, Scratch};
use crate::repository::damaged_packs;
use crate::repository::disk_table::Trees;
use crate::repository::id::{BlobKind, ChunkId, TreeId};
use crate::repository::layout::Layout;
use crate::repository::lock::Lease;
use crate::repository::sealed_file;
use crate::repository::snapshot::{Snapshot, TAG, VM_TAG};
use crate::repository::tree::{self, Node};
use crate::repository::write::disk::DiskWriter;
use crate::repository::write::known::Known;
use crate::repository::write::needs::Needs;
use crate::repository::write::pipeline::Pipeline;

/// File name of the manifest in a backup.
pub const MANIFEST: &str = "manifest.json";
/// Small files are cut into pieces of this size.
const FILE_PIECE_BYTES: usize = 1 << 20;

/// A backup while it is being written.
pub struct BackupWriter<'a> {
    repository: &'a Repository,
    vm: VmId,
    time: Timestamp,
    pipeline: Pipeline,
    tools: Mutex<(Sealer, Scratch)>,
    /// The disks that are complete.
    disks: Mutex<Vec<Node>>,
    /// The lease ends after everything else.
    lease: Arc<Lease>,
}

impl<'a> BackupWriter<'a> {
    pub(crate) fn new(repository: &'a Repository, lease: Arc<Lease>, vm: &VmId, time: Timestamp) -> Result<Self> {
        let core = Arc::clone(&repository.core);
        let mut unusable = damaged_packs::known(repository)?;
        unusable.extend(&lease.marked);
        let known = Known::new(Arc::clone(&core), Arc::clone(&repository.index), unusable);
        let pipeline = Pipeline::start(core, known, Arc::clone(&lease), repository.workers)?;
        let tools = Mutex::new((Sealer::new()?, Scratch::new()?));
        Ok(Self { repository, vm: vm.clone(), time, pipeline, tools, disks: Mutex::default(), lease })
    }

    fn open_disk(&self, content: &DiskContent) -> Result<DiskWriter<'_>> {
        let layout = Layout::new(content.size.0, content.chunk_size.bytes());
        let layout = layout.ok_or_else(|| Error::Content {
            disk: content.name.to_string(),
            problem: format!("{} bytes are more than a backup can hold", content.size),
        })?;
        let base = content.base.as_ref().map(|id| self.base(id, content)).transpose()?;
        DiskWriter::new(self, content, layout, base)
    }

    fn store_file(&self, file: &SavedFile) -> Result<Node> {
        FileName::new(&file.name).map_err(|error| Error::name(&error))?;
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        let pieces = file
            .content
            .chunks(FILE_PIECE_BYTES)
            .map(|piece| Ok(self.pipeline.store(&mut tools.0, BlobKind::Data, piece)?.0))
            .collect::<Result<Vec<_>>>()?;
        Ok(Node::file(&file.name, file.content.len() as u64, pieces))
    }

    fn add_disk(&self, name: &str, tree: TreeId) {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).push(Node::dir(name, tree));
    }

    fn store_all(self, manifest: &Manifest, files: &[SavedFile]) -> Result<BackupId> {
        let json = serde_json::to_vec(manifest).map_err(|error| Error::internal("write the manifest", error))?;
        let mut nodes = std::mem::take(&mut *self.disks.lock().unwrap_or_else(PoisonError::into_inner));
        for file in std::iter::once(&SavedFile { name: MANIFEST.to_owned(), content: json }).chain(files) {
            nodes.push(self.store_file(file)?);
        }
        let vm_tree = self.store(&nodes)?;
        let root = self.store(&[Node::dir(self.vm.as_str(), vm_tree)])?;
        let snapshot = self.snapshot(root, manifest);
        // Everything the snapshot needs is durable and indexed before the snapshot is.
        let Self { repository, pipeline, vm, lease, .. } = self;
        let shared = Arc::clone(&pipeline.shared);
        pipeline.finish()?;
        let Core { backend, key } = &*repository.core;
        let id = sealed_file::write_if(&**backend, key, FileKind::Snapshot, &snapshot, &|| lease.check())?;
        let id = BackupId::new(id.hex());
        remember(repository, &vm, &id, shared.known.needs(), manifest.checkpoint.is_some());
        Ok(id)
    }

    fn snapshot(&self, tree: TreeId, manifest: &Manifest) -> Snapshot {
        let mut tags = vec![TAG.to_owned(), format!("{VM_TAG}{}", self.vm), format!("kind:{}", manifest.kind.word())];
        tags.extend(manifest.checkpoint.as_ref().map(|name| format!("checkpoint:{name}")));
        tags.extend(manifest.tags.iter().cloned());
        let environment = &self.repository.environment;
        Snapshot {
            time: self.time,
            tree,
            paths: vec![format!("/{}", self.vm)],
            hostname: environment.hostname.clone(),
            username: environment.username.clone(),
            tags,
            program_version: manifest.program.clone(),
        }
    }
}

/// Only a cache: without it the next backup looks at every chunk of its base.
fn remember(repository: &Repository, vm: &VmId, id: &BackupId, mut needs: Needs, alone: bool) {
    if let Ok(indexes) = repository.core.backend.list(FileKind::Index) {
        needs.indexes = indexes.into_iter().collect();
        drop(needs::save(&repository.cache, vm, id, &needs, alone));
    }
}

impl Trees for BackupWriter<'_> {
    fn load(&self, id: &TreeId) -> Result<Vec<Node>> {
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        self.repository.load_tree(id, &mut tools.1)
    }

    fn store(&self, nodes: &[Node]) -> Result<TreeId> {
        let (_, bytes) = tree::encode(nodes)?;
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.pipeline.store(&mut tools.0, BlobKind::Tree, &bytes)?.0)
    }

    fn zeros(&self, bytes: u64) -> Result<ChunkId> {
        let zeros = vec![0; usize::try_from(bytes).map_err(|error| Error::internal("make a chunk of zeros", error))?];
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.pipeline.store(&mut tools.0, BlobKind::Data, &zeros)?.0)
    }
}

impl seam::BackupWriter for BackupWriter<'_> {
    fn disk(&mut self, content: &DiskContent) -> seam::Result<Box<dyn seam::DiskWriter + '_>> {
        Ok(Box::new(self.open_disk(content)?))
    }

    fn publish(self: Box<Self>, manifest: &Manifest, files: &[SavedFile]) -> seam::Result<BackupId> {
        Ok(self.store_all(manifest, files)?)
    }
}
