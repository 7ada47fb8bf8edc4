//! Plain qcow2 images: a folder per VM, a folder per backup, an image per disk, each on the one that it builds on.
//!
//! In reading order: [`place`] (what is where), [`header`] (what an image says of itself), [`shelf`] (the backups of a VM, derived from
//! what lies there), [`lock`], [`medium`] (images through QEMU's tools), [`write`] and [`read`] (a backup), [`delete`] and [`merge`], [`verify`].
//! A backup exists when its folder has its name and a manifest in it. What it builds on is read from its images' headers, never
//! remembered.

mod checksums;
mod delete;
mod durable;
mod header;
mod lock;
mod medium;
mod merge;
mod place;
mod read;
mod shelf;
mod verify;
mod write;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use keepmark_model::images::{CLUSTER_BYTES, ImageTools};
use keepmark_model::manifest::{StoredBackup, in_order};
use keepmark_model::pushing::PushPlace;
use keepmark_model::seam::{self, Monitor, PruneRequest, Pruned, Silent, Store, Verification};
use keepmark_model::{BackupId, ChunkSize, StoreId, VmId};

use crate::error::{Error, Result};
use crate::folders;
use crate::images::lock::VmLock;
use crate::images::merge::Merger;
use crate::images::place::Marker;
use crate::images::shelf::Shelf;

/// What an image store works with.
#[derive(Clone)]
pub struct ImageOptions {
    /// QEMU's tools.
    pub tools: Arc<dyn ImageTools>,
    /// Whether new backups have compressed clusters.
    pub compress: bool,
}

/// An open image store.
pub struct ImageStore {
    root: PathBuf,
    marker: Marker,
    options: ImageOptions,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageStore({} at {})", self.marker.id, self.root.display())
    }
}

impl ImageStore {
    /// Whether the folder is an image store.
    #[must_use]
    pub fn is_at(root: &Path) -> bool {
        place::is_image_store(root)
    }

    /// Makes a new store in a folder that is empty or not there.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] when something is there.
    pub fn init(root: &Path, options: ImageOptions) -> Result<Self> {
        let marker = Marker::new();
        marker.create(root)?;
        Ok(Self { root: root.to_owned(), marker, options })
    }

    /// Opens the store in a folder.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::NotAStore`].
    pub fn open(root: &Path, options: ImageOptions) -> Result<Self> {
        let marker = Marker::read(root)?;
        Ok(Self { root: root.to_owned(), marker, options })
    }

    /// Whether it lies elsewhere than where it was used before: then it is a copy whose original may be used, too.
    #[must_use]
    pub fn is_copied(&self) -> bool {
        self.marker.is_copied(&self.root)
    }

    /// Makes a copy a store of its own, by an id of its own.
    ///
    /// # Errors
    /// [`Error::NoCopy`], or when it cannot be written.
    pub fn adopt(self) -> Result<StoreId> {
        if !self.is_copied() {
            return Err(Error::NoCopy { location: self.root.display().to_string() });
        }
        let marker = Marker::new();
        marker.replace(&self.root).map(|()| marker.id)
    }

    fn shelves(&self) -> Result<Vec<Shelf>> {
        Ok(place::vm_folders(&self.root)?.into_iter().map(Shelf::new).collect())
    }

    fn list(&self, vm: Option<&VmId>) -> Result<(Vec<StoredBackup>, Vec<String>)> {
        let (mut backups, mut problems) = (Vec::new(), Vec::new());
        let is_meant = |shelf: &Shelf| vm.is_none_or(|vm| shelf.folder().file_name().is_some_and(|name| name == vm.as_str()));
        for shelf in self.shelves()?.iter().filter(|shelf| is_meant(shelf)) {
            let (mut listed, mut damaged) = shelf.list()?;
            backups.append(&mut listed);
            problems.append(&mut damaged);
        }
        backups.retain(|backup| vm.is_none_or(|vm| backup.manifest.vm_id() == *vm));
        Ok((in_order(backups), problems.iter().map(ToString::to_string).collect()))
    }

    /// The VM's folder that has a backup.
    fn shelf_of(&self, id: &BackupId) -> Result<Shelf> {
        let missing = || Error::NoSuchBackup { id: id.to_string() };
        let folder = place::vm_folders(&self.root)?
            .into_iter()
            .map(Shelf::new)
            .find(|shelf| place::is_backup_id(id.as_str()) && shelf.folder_of(id).is_dir());
        let shelf = folder.ok_or_else(missing)?;
        if shelf.is_listed(id) { Ok(shelf) } else { Err(missing()) }
    }

    /// Finishes deletions in all folders; one that fails does not keep the others from it.
    fn finish(&self, monitor: &dyn Monitor) -> Result<Pruned> {
        let (mut all, mut first) = (Pruned::default(), Ok(()));
        for shelf in self.shelves()? {
            match delete::finish(&*self.options.tools, &shelf, monitor) {
                Ok(pruned) => {
                    all.removed_files += pruned.removed_files;
                    all.removed_bytes += pruned.removed_bytes;
                    all.waiting.extend(pruned.waiting);
                }
                Err(error) if first.is_ok() => first = Err(error),
                Err(_) => {}
            }
        }
        first.map(|()| all)
    }

    /// What deletions have left to be done.
    fn to_finish(&self) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for shelf in self.shelves()? {
            for id in shelf.ids()?.into_iter().filter(|id| shelf.is_deleted(id)) {
                pruned.removed_bytes += place::bytes(&shelf.folder_of(&id))?;
                pruned.removed_files += place::entries(&shelf.folder_of(&id))?.len() as u64;
            }
        }
        Ok(pruned)
    }

    /// What the listed backups take.
    fn used(&self) -> Result<u64> {
        let mut bytes = 0_u64;
        for shelf in self.shelves()? {
            for id in shelf.ids()?.into_iter().filter(|id| shelf.is_listed(id)) {
                bytes = bytes.saturating_add(place::bytes(&shelf.folder_of(&id))?);
            }
        }
        Ok(bytes)
    }

    fn pin_backup(&self, id: &BackupId, pinned: bool) -> Result<()> {
        let folder = self.shelf_of(id)?.folder_of(id);
        if pinned { durable::write(&folder.join(place::PINNED), b"") } else { durable::remove(&folder.join(place::PINNED)) }
    }
}

impl Store for ImageStore {
    fn id(&self) -> StoreId {
        self.marker.id.clone()
    }

    fn chunk_size(&self) -> ChunkSize {
        ChunkSize::try_from(u32::try_from(CLUSTER_BYTES).unwrap_or_default()).unwrap_or(ChunkSize::DEFAULT)
    }

    fn push_place(&self, vm: &VmId) -> Option<PushPlace> {
        // A hypervisor opens images by their names; the store may have been named from somewhere else than where it works.
        let root = std::path::absolute(&self.root).ok()?;
        Some(PushPlace { folder: place::vm_folder(&root, vm).ok()?, is_remote: folders::is_remote(&root), compress: self.options.compress })
    }

    fn backups(&self, vm: Option<&VmId>) -> seam::Result<(Vec<StoredBackup>, Vec<String>)> {
        Ok(self.list(vm)?)
    }

    fn begin(&self, vm: &VmId, _time: Timestamp) -> seam::Result<Box<dyn seam::BackupWriter + '_>> {
        let folder = place::make_vm_folder(&self.root, vm)?;
        if self.marker.lacks_place(&self.root) {
            // Programs that wrote here before did not. Without it a copy is not told from the original, and that is all.
            drop(self.marker.replace(&self.root));
        }
        // What cannot be finished now is told by whoever deletes, prunes or verifies; a backup does not depend on it.
        drop(delete::finish(&*self.options.tools, &Shelf::new(&folder), &Silent));
        Ok(Box::new(write::BackupWriter::begin(&self.options, &folder, VmLock::shared(&folder)?)?))
    }

    fn open(&self, id: &BackupId) -> seam::Result<Box<dyn seam::BackupReader + '_>> {
        Ok(Box::new(read::BackupReader::open(&self.options.tools, self.shelf_of(id)?, id)?))
    }

    fn delete(&self, ids: &[BackupId], monitor: &dyn Monitor) -> seam::Result<()> {
        let ids: BTreeSet<&BackupId> = ids.iter().collect();
        let found = ids.into_iter().map(|id| Ok((self.shelf_of(id)?, id.clone()))).collect::<Result<Vec<_>>>()?;
        delete::unlist(&found)?;
        let pruned = self.finish(monitor)?;
        pruned.waiting.iter().for_each(|whom| monitor.note(&format!("the space is freed later: {whom}")));
        Ok(())
    }

    fn pin(&self, id: &BackupId, pinned: bool) -> seam::Result<()> {
        Ok(self.pin_backup(id, pinned)?)
    }

    fn prune(&self, request: &PruneRequest, monitor: &dyn Monitor) -> seam::Result<Pruned> {
        let mut pruned = if request.dry_run { self.to_finish()? } else { self.finish(monitor)? };
        pruned.used_bytes = self.used()?;
        if pruned.removed_files == 0 && pruned.waiting.is_empty() {
            monitor.note("nothing was left to be done: an image store frees space as soon as a backup is deleted");
        }
        Ok(pruned)
    }

    fn consolidate(&self, id: &BackupId, monitor: &dyn Monitor) -> seam::Result<()> {
        let shelf = self.shelf_of(id)?;
        let Some(_alone) = VmLock::alone(shelf.folder())? else {
            return Err(Error::InUse { folder: shelf.folder().to_owned() }.into());
        };
        let merger = Merger { tools: &*self.options.tools, shelf: &shelf, monitor };
        Ok(shelf.disks(id)?.iter().try_for_each(|disk| merger.merge(id, disk, None))?)
    }

    fn verify(&self, ids: &[BackupId], read_data: bool, progress: &dyn Fn(u64, u64)) -> seam::Result<Verification> {
        Ok(verify::verify(&*self.options.tools, &self.shelves()?, ids, read_data, progress)?)
    }
}
