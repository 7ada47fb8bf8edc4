//! The backups of one VM as they lie in its folder: which are listed, which only serve others, and what builds on what.
//!
//! All of it is derived from manifests and the images' headers, each time anew; file names alone prove nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use keepmark_model::manifest::{Manifest, StoredBackup};
use keepmark_model::{BackupId, DiskName};

use crate::error::{Error, Result};
use crate::images::header::Header;
use crate::images::{durable, place};
use crate::manifest;

const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// QEMU opens an image by opening all below it, one within the other.
const LAYERS_MAX: usize = 2000;

/// The folder of a VM's backups.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
}

/// An image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The backup whose image it is.
    pub backup: BackupId,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of its disk.
    pub size: u64,
    /// The backup whose image is the next one below.
    pub below: Option<BackupId>,
}

impl Shelf {
    /// Of a VM's folder; nothing is looked at yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Everything that has the name of a backup, in the order of the names.
    pub fn ids(&self) -> Result<Vec<BackupId>> {
        let entries = place::entries(&self.folder)?;
        let named = entries.iter().filter(|path| path.is_dir() && !path.is_symlink()).filter_map(|path| path.file_name()?.to_str());
        let mut ids: Vec<BackupId> = named.filter(|name| place::is_backup_id(name)).map(BackupId::new).collect();
        ids.sort();
        Ok(ids)
    }

    /// The folder of a backup.
    pub fn folder_of(&self, id: &BackupId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    /// Whether a backup is there for its own sake.
    pub fn is_listed(&self, id: &BackupId) -> bool {
        self.folder_of(id).join(place::MANIFEST).is_file()
    }

    /// Whether it was deleted and is there for others only.
    pub fn is_deleted(&self, id: &BackupId) -> bool {
        !self.is_listed(id) && self.folder_of(id).join(place::DELETED).is_file()
    }

    /// The manifest of a listed backup.
    pub fn manifest(&self, id: &BackupId) -> Result<Manifest> {
        let path = self.folder_of(id).join(place::MANIFEST);
        if fs::symlink_metadata(&path).is_ok_and(|facts| !facts.is_file()) {
            return Err(Error::damaged("backup", id, "its manifest is no file"));
        }
        let bytes = match durable::read(&path, MANIFEST_BYTES_MAX) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(Error::damaged("backup", id, "it has no manifest"));
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::FileTooLarge => {
                return Err(Error::damaged("backup", id, "its manifest is too large"));
            }
            other => other?,
        };
        manifest::decode(&bytes).map_err(|problem| Error::damaged("backup", id, format!("its manifest {problem}")))
    }

    /// The disks of a backup: those that its manifest names, and no other image is there. Where nobody can read what it had, every
    /// image that is there is one.
    ///
    /// # Errors
    /// [`Error::Damaged`] when an image is there of which nobody can say whose it is: whoever merges or removes must stop.
    pub fn disks(&self, id: &BackupId) -> Result<BTreeSet<DiskName>> {
        let there = self.images(id)?;
        let named: BTreeSet<DiskName> = match self.manifest(id) {
            Ok(manifest) => manifest.disks.into_iter().map(|disk| disk.name).collect(),
            Err(Error::Damaged { .. }) => return Ok(there),
            Err(error) => return Err(error),
        };
        match there.difference(&named).next() {
            Some(stray) => Err(unexplained(&place::image_path(&self.folder_of(id), stray)?)),
            None => Ok(named),
        }
    }

    /// The disks whose images are in a backup's folder.
    fn images(&self, id: &BackupId) -> Result<BTreeSet<DiskName>> {
        let disk = |path: &PathBuf| {
            let name = path.file_name()?.as_encoded_bytes().strip_suffix(place::IMAGE_SUFFIX.as_bytes())?;
            let name = std::str::from_utf8(name).ok().and_then(|name| DiskName::new(name).ok());
            Some(name.ok_or_else(|| unexplained(path)))
        };
        place::entries(&self.folder_of(id))?.iter().filter_map(disk).collect()
    }

    /// One image, and what it says lies below it.
    pub fn layer(&self, id: &BackupId, disk: &DiskName) -> Result<Layer> {
        let path = place::image_path(&self.folder_of(id), disk)?;
        let damaged = |problem: String| Error::damaged("image", path.display(), problem);
        match fs::symlink_metadata(&path) {
            Ok(facts) if facts.is_file() => {}
            Ok(_) => return Err(damaged("it is no file".into())),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged("it is not there".into())),
            Err(error) => return Err(Error::io("look at", path, error)),
        }
        let header = Header::read(&path)?;
        let below = header.backing.as_deref().map(|name| {
            of_sibling(name, disk)
                .ok_or_else(|| damaged(format!("it says that it lies on {name:?}, which is no image of that disk in a backup beside it")))
        });
        Ok(Layer { backup: id.clone(), path: path.clone(), size: header.size, below: below.transpose()? })
    }

    /// An image and all below it.
    pub fn chain(&self, id: &BackupId, disk: &DiskName) -> Result<Vec<Layer>> {
        let mut chain = vec![self.layer(id, disk)?];
        let mut seen = BTreeSet::from([id.clone()]);
        while let Some(below) = chain.last().and_then(|layer| layer.below.clone()) {
            if !seen.insert(below.clone()) || chain.len() >= LAYERS_MAX {
                let path = place::image_path(&self.folder_of(id), disk)?;
                return Err(Error::damaged("image", path.display(), "the images below it lead to no end"));
            }
            chain.push(self.layer(&below, disk)?);
        }
        Ok(chain)
    }

    /// The listed backups, and what cannot be listed.
    pub fn list(&self) -> Result<(Vec<StoredBackup>, Vec<Error>)> {
        let (mut listed, mut damaged) = (Vec::new(), Vec::new());
        for id in self.ids()?.into_iter().filter(|id| !self.is_deleted(id)) {
            match self.manifest(&id) {
                Ok(manifest) => listed.push(self.stored(id, manifest)),
                // It may have been deleted just now.
                Err(_) if !self.folder_of(&id).exists() || self.is_deleted(&id) => {}
                Err(error) => damaged.push(error),
            }
        }
        Ok((listed, damaged))
    }

    fn stored(&self, id: BackupId, manifest: Manifest) -> StoredBackup {
        let below = manifest.disks.iter().filter_map(|disk| self.next_listed(&id, &disk.name));
        let builds_on: BTreeSet<BackupId> = below.collect();
        let pinned = self.folder_of(&id).join(place::PINNED).exists();
        StoredBackup { pinned, builds_on: builds_on.into_iter().collect(), ..StoredBackup::new(id, manifest) }
    }

    // Of what is damaged it is not told what it builds on: that shows when it is opened or verified.
    fn next_listed(&self, id: &BackupId, disk: &DiskName) -> Option<BackupId> {
        let mut below = self.layer(id, disk).ok()?.below?;
        for _ in 0..LAYERS_MAX {
            if self.is_listed(&below) {
                return Some(below);
            }
            below = self.layer(&below, disk).ok()?.below?;
        }
        None
    }
}

/// What an image's header says of the image of the same disk in another backup.
pub fn sibling(id: &BackupId, disk: &DiskName) -> String {
    format!("../{id}/{}", place::image_name(disk))
}

fn unexplained(image: &Path) -> Error {
    Error::damaged("image", image.display(), "it is there, and the manifest of its backup does not name it: nothing is merged or removed")
}

fn of_sibling(name: &str, disk: &DiskName) -> Option<BackupId> {
    let (folder, file) = name.strip_prefix("../")?.split_once('/')?;
    (place::is_backup_id(folder) && file == place::image_name(disk)).then(|| BackupId::new(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_disk_of_a_backup_beside_it_lies_below_an_image() {
        let (disk, id) = (DiskName::new("vda").unwrap(), BackupId::new(place::new_id()));
        assert_eq!(of_sibling(&sibling(&id, &disk), &disk), Some(id.clone()));
        for name in ["/etc/shadow", "json:{}", "nbd://host/x", "vda.qcow2", "../../x/vda.qcow2", "../../../etc/shadow", ""] {
            assert_eq!(of_sibling(name, &disk), None, "{name}");
        }
        assert_eq!(of_sibling(&format!("../{id}/vdb.qcow2"), &disk), None);
        assert_eq!(of_sibling(&format!("../{id}/../vda.qcow2"), &disk), None);
    }
}
