//! Writing a backup: its images in a folder that has no backup's name yet, then everything durable, then the name.

mod crew;
mod disk;
mod push;
mod write_back;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use keepmark_model::manifest::Manifest;
use keepmark_model::pushing::PushTarget;
use keepmark_model::seam::{self, DiskContent, DiskStored, SavedFile};
use keepmark_model::{BackupId, DiskName, Size};

use crate::error::{Error, Result};
use crate::folders;
use crate::images::checksums::{Checksums, hash};
use crate::images::lock::VmLock;
use crate::images::shelf::Shelf;
use crate::images::write::disk::DiskWriter;
use crate::images::write::write_back::WriteBack;
use crate::images::{ImageOptions, durable, place};

pub use disk::image_size;

/// A backup while it is being written.
pub struct BackupWriter<'a> {
    options: &'a ImageOptions,
    shelf: Shelf,
    /// Of what the hypervisor is writing.
    pushes: BTreeMap<DiskName, WriteBack>,
    /// What it has written.
    pushed: BTreeSet<DiskName>,
    place: Unpublished,
    /// Ends after everything else: as long as it is held, nobody exchanges or removes what this backup builds on.
    _lock: VmLock,
}

impl<'a> BackupWriter<'a> {
    /// Begins one in a VM's folder.
    pub fn begin(options: &'a ImageOptions, folder: &Path, lock: VmLock) -> Result<Self> {
        Ok(Self {
            options,
            shelf: Shelf::new(folder),
            place: Unpublished::make(folder)?,
            pushes: BTreeMap::new(),
            pushed: BTreeSet::new(),
            _lock: lock,
        })
    }

    fn publish_all(mut self, manifest: &Manifest, files: &[SavedFile]) -> Result<BackupId> {
        let folder = self.place.path.clone();
        let mut hashes = BTreeMap::new();
        for disk in &manifest.disks {
            let image = place::image_path(&folder, &disk.name)?;
            hashes.insert(place::image_name(&disk.name), self.complete(&image, self.pushed.contains(&disk.name))?);
        }
        durable::write_new(&folder.join(place::CHECKSUMS), &Checksums::of(hashes).encode()?)?;
        for file in files {
            durable::write_new(&place::saved_path(&folder, &file.name)?, &file.content)?;
        }
        let json = serde_json::to_vec_pretty(manifest).map_err(|error| Error::internal("write the manifest", error))?;
        durable::write_new(&folder.join(place::MANIFEST), &json)?;
        folders::sync(&folder)?;
        self.place.publish(&self.shelf)
    }

    /// Checks an image that is closed, and hashes it and makes it durable meanwhile; gives its hash.
    fn complete(&self, image: &Path, is_pushed: bool) -> Result<String> {
        let (check, hash, synced) = thread::scope(|threads| {
            let hash = threads.spawn(|| hash(image, &mut |_| Ok(())));
            let sync = threads.spawn(|| durable::sync(image));
            (self.options.tools.check(image), joined(hash), joined(sync))
        });
        let (check, hash) = (check?, hash?);
        synced?;
        let length = fs::metadata(image).map_err(|error| Error::io("look at", image, error))?.len();
        // Who writes each cluster once leaves none behind the last that the tables know.
        let is_cut = is_pushed && length > check.end;
        if check.corruptions > 0 || check.leaks > 0 || is_cut {
            return Err(Error::damaged("image", image.display(), "it is not whole, just written"));
        }
        Ok(hash)
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

impl seam::BackupWriter for BackupWriter<'_> {
    fn disk(&mut self, content: &DiskContent) -> seam::Result<Box<dyn seam::DiskWriter + '_>> {
        // What was pushed in vain is written anew.
        if let Some(write_back) = self.pushes.remove(&content.name) {
            write_back.finish()?;
        }
        Ok(Box::new(DiskWriter::begin(self.options, &self.shelf, &self.place.path, content)?))
    }

    fn push_target(&mut self, disk: &DiskName, size: Size, base: Option<&BackupId>) -> seam::Result<PushTarget> {
        let (target, write_back) = push::target(self.options, &self.shelf, &self.place.path, disk, size, base)?;
        self.pushes.insert(disk.clone(), write_back);
        Ok(target)
    }

    fn pushed(&mut self, target: &PushTarget) -> seam::Result<DiskStored> {
        let wrong = || Error::Content { disk: target.disk.to_string(), problem: "it is taken over and was not pushed".into() };
        let write_back = self.pushes.remove(&target.disk).ok_or_else(wrong)?;
        self.pushed.insert(target.disk.clone());
        Ok(push::take_over(target, write_back)?)
    }

    fn publish(self: Box<Self>, manifest: &Manifest, files: &[SavedFile]) -> seam::Result<BackupId> {
        Ok(self.publish_all(manifest, files)?)
    }
}

/// A folder that is removed unless it is published.
#[derive(Debug)]
struct Unpublished {
    path: PathBuf,
    is_published: bool,
}

impl Unpublished {
    fn make(folder: &Path) -> Result<Self> {
        let path = folder.join(place::temporary_name());
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| Error::io("create folder", &path, error))?;
        Ok(Self { path, is_published: false })
    }

    /// From the rename on the backup exists. If that cannot be made durable, it is taken back.
    fn publish(&mut self, shelf: &Shelf) -> Result<BackupId> {
        let id = BackupId::new(place::new_id());
        let target = shelf.folder_of(&id);
        let published = durable::rename(&self.path, &target);
        if published.is_err() && target.exists() {
            fs::rename(&target, &self.path).map_err(|error| Error::io("take back", &target, error))?;
        }
        published?;
        self.is_published = true;
        Ok(id)
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if !self.is_published {
            // Swept by the next writer if it cannot be removed now.
            drop(durable::remove_all(&self.path));
        }
    }
}
