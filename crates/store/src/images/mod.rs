//! Plain qcow2 images: a folder per VM, a folder per backup, an image per disk, each on the one that it builds on.
//!
//! In reading order: [`place`] (what is where), [`header`] (what an image says of itself), [`shelf`] (the backups of a VM, derived from
//! what lies there), [`lock`], [`medium`] (images through QEMU's tools), [`write`] and [`read`] (a backup), [`verify`].
//! A backup exists when its folder has its name and a manifest in it. What it builds on is read from its images' headers, never
//! remembered.

mod checksums;
mod durable;
mod header;
mod lock;
mod medium;
mod place;
mod read;
mod shelf;
mod verify;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use keepmark_model::images::{CLUSTER_BYTES, ImageTools};
use keepmark_model::manifest::StoredBackup;
use keepmark_model::seam::{self, Monitor, PruneRequest, Pruned, Store, Verification};
use keepmark_model::{BackupId, ChunkSize, StoreId, VmId};

use crate::error::{Error, Result};
use crate::images::lock::VmLock;
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
    id: StoreId,
    options: ImageOptions,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageStore({} at {})", self.id, self.root.display())
    }
}

impl ImageStore {
    /// Makes a new store in a folder that is empty or not there.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] when something is there.
    pub fn init(root: &Path, options: ImageOptions) -> Result<Self> {
        let marker = Marker::new();
        marker.create(root)?;
        Ok(Self { root: root.to_owned(), id: StoreId::new(marker.id), options })
    }

    /// Opens the store in a folder.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::NotAStore`].
    pub fn open(root: &Path, options: ImageOptions) -> Result<Self> {
        let marker = Marker::read(root)?;
        Ok(Self { root: root.to_owned(), id: StoreId::new(marker.id), options })
    }

    fn shelves(&self) -> Result<Vec<Shelf>> {
        Ok(place::vm_folders(&self.root)?.into_iter().map(Shelf::new).collect())
    }

    fn list(&self, vm: Option<&VmId>) -> Result<(Vec<StoredBackup>, Vec<String>)> {
        let (mut backups, mut problems) = (Vec::new(), Vec::new());
        for shelf in self.shelves()? {
            let (mut listed, mut damaged) = shelf.list()?;
            backups.append(&mut listed);
            problems.append(&mut damaged);
        }
        backups.retain(|backup| vm.is_none_or(|vm| backup.manifest.vm_id() == *vm));
        backups.sort_by(|a, b| (a.manifest.time, &a.id).cmp(&(b.manifest.time, &b.id)));
        Ok((backups, problems.iter().map(ToString::to_string).collect()))
    }

    /// The VM's folder that has a backup.
    fn shelf_of(&self, id: &BackupId) -> Result<Shelf> {
        let missing = || Error::NoSuchBackup { id: id.to_string() };
        let folder = place::vm_folders(&self.root)?.into_iter().find(|folder| place::is_backup_id(id.as_str()) && folder.join(id.as_str()).is_dir());
        let shelf = Shelf::new(folder.ok_or_else(missing)?);
        if shelf.is_listed(id) { Ok(shelf) } else { Err(missing()) }
    }

    fn pin_backup(&self, id: &BackupId, pinned: bool) -> Result<()> {
        let folder = self.shelf_of(id)?.folder().join(id.as_str());
        if pinned { durable::write(&folder.join(place::PINNED), b"") } else { durable::remove(&folder.join(place::PINNED)) }
    }
}

impl Store for ImageStore {
    fn id(&self) -> StoreId {
        self.id.clone()
    }

    fn chunk_size(&self) -> ChunkSize {
        ChunkSize::try_from(u32::try_from(CLUSTER_BYTES).unwrap_or_default()).unwrap_or(ChunkSize::DEFAULT)
    }

    fn backups(&self, vm: Option<&VmId>) -> seam::Result<(Vec<StoredBackup>, Vec<String>)> {
        Ok(self.list(vm)?)
    }

    fn begin(&self, vm: &VmId, _time: Timestamp) -> seam::Result<Box<dyn seam::BackupWriter + '_>> {
        let folder = place::make_vm_folder(&self.root, vm)?;
        // Alone, one tidies up what the dead have left; beside others that is theirs, or the next one's.
        if let Some(alone) = VmLock::alone(&folder)? {
            place::sweep(&folder)?;
            drop(alone);
        }
        Ok(Box::new(write::BackupWriter::begin(&self.options, &folder, VmLock::shared(&folder)?)?))
    }

    fn open(&self, id: &BackupId) -> seam::Result<Box<dyn seam::BackupReader + '_>> {
        Ok(Box::new(read::BackupReader::open(&self.options.tools, self.shelf_of(id)?, id)?))
    }

    fn delete(&self, _ids: &[BackupId], _monitor: &dyn Monitor) -> seam::Result<()> {
        Ok(())
    }

    fn pin(&self, id: &BackupId, pinned: bool) -> seam::Result<()> {
        Ok(self.pin_backup(id, pinned)?)
    }

    fn prune(&self, _request: &PruneRequest, _monitor: &dyn Monitor) -> seam::Result<Pruned> {
        Ok(Pruned::default())
    }

    fn verify(&self, ids: &[BackupId], read_data: bool, progress: &dyn Fn(u64, u64)) -> seam::Result<Verification> {
        Ok(verify::verify(&*self.options.tools, &self.shelves()?, ids, read_data, progress)?)
    }
}
