//! What is where in an image store: the folders, the files in them, and what is left over by the dead.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use keepmark_model::names::{TEMPORARY_PREFIX, child};
use keepmark_model::{DiskName, FileName, StoreId, VmId};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::folders::{self, Undo};
use crate::identity::FileIdentity;
use crate::images::durable;

/// Says that a folder is an image store.
pub const MARKER: &str = "keepmark-images.json";
/// What is known of a backup; while it is there, the backup is listed.
pub const MANIFEST: &str = "manifest.json";
/// The manifest of a backup that was deleted, as long as others still need its images.
pub const DELETED: &str = "deleted.json";
/// The hashes of a backup's images.
pub const CHECKSUMS: &str = "checksums.json";
/// An empty file that says that a backup stays.
pub const PINNED: &str = "pinned";
/// Locked by whoever works on a VM's backups.
pub const LOCK: &str = ".lock";
/// What a disk's file is called after the disk's name.
pub const IMAGE_SUFFIX: &str = ".qcow2";

const VERSION: u32 = 1;
const ID_BYTES: usize = 16;
const MARKER_BYTES_MAX: u64 = 64 << 10;

/// The content of [`MARKER`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    version: u32,
    /// The store's lasting id.
    pub id: StoreId,
    /// Which file this is: a copy is another one. None in markers of programs that did not look.
    #[serde(default)]
    file: Option<FileIdentity>,
}

impl Marker {
    /// Of a new store.
    pub fn new() -> Self {
        Self { version: VERSION, id: StoreId::new(hex::encode(rand::random::<[u8; 32]>())), file: None }
    }

    /// Makes a folder a store.
    pub fn create(&self, root: &Path) -> Result<()> {
        folders::refuse_occupied(root, MARKER, "there is an image store already")?;
        let mut undo = Undo::default();
        undo.make(root)?;
        durable::create(&root.join(MARKER), &|file| self.of(file))?;
        undo.forget();
        Ok(())
    }

    /// As it is written into a file.
    fn of(&self, file: &Path) -> Result<Vec<u8>> {
        let marker = Self { file: FileIdentity::of(file), ..self.clone() };
        serde_json::to_vec(&marker).map_err(|error| Error::internal("write the store's marker", error))
    }

    /// Whether nobody has written down which file it is, and that can be told.
    pub fn lacks_place(&self, root: &Path) -> bool {
        self.file.is_none() && FileIdentity::of(&root.join(MARKER)).is_some()
    }

    /// Whether it is a copy of the file that was written.
    pub fn is_copied(&self, root: &Path) -> bool {
        self.file.zip(FileIdentity::of(&root.join(MARKER))).is_some_and(|(then, here)| !here.can_be(&then))
    }

    /// Writes it anew.
    pub fn replace(&self, root: &Path) -> Result<()> {
        durable::replace(&root.join(MARKER), &|file| self.of(file))
    }

    /// Says whose store a folder is.
    pub fn read(root: &Path) -> Result<Self> {
        let (path, place) = (root.join(MARKER), root.to_owned());
        let bytes = match durable::read(&path, MARKER_BYTES_MAX) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound && root.exists() => {
                return Err(Error::NotAStore { path: place });
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Err(Error::NoStore { path: place }),
            other => other?,
        };
        let marker: Self = serde_json::from_slice(&bytes).map_err(|error| Error::damaged("file", path.display(), error))?;
        if marker.version > VERSION {
            return Err(Error::damaged("file", path.display(), format!("it has version {}; a newer keepmark is needed", marker.version)));
        }
        Ok(marker)
    }
}

/// Whether a folder is an image store.
#[must_use]
pub fn is_image_store(root: &Path) -> bool {
    root.join(MARKER).is_file()
}

/// The folder of a VM's backups, made when it is not there. Who may pass through the store's may pass through it: QEMU's user, who writes
/// images where he is let in.
pub fn make_vm_folder(root: &Path, vm: &VmId) -> Result<PathBuf> {
    let folder = vm_folder(root, vm)?;
    if !folder.is_dir() {
        folders::make(&folder)?;
        let passable = fs::metadata(root).map_err(|error| Error::io("look at", root, error))?.mode() & 0o011;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700 | passable))
            .map_err(|error| Error::io("set the mode of", &folder, error))?;
        folders::sync(root)?;
    }
    Ok(folder)
}

/// Where a VM's backups are.
pub fn vm_folder(root: &Path, vm: &VmId) -> Result<PathBuf> {
    child(root, vm.as_str()).map_err(|error| Error::name(&error))
}

/// Where a disk's image is in its backup's folder.
pub fn image_path(folder: &Path, disk: &DiskName) -> Result<PathBuf> {
    child(folder, &image_name(disk)).map_err(|error| Error::name(&error))
}

/// Where a file is that was saved beside the disks.
pub fn saved_path(folder: &Path, name: &str) -> Result<PathBuf> {
    let free = child(folder, name).ok().filter(|_| name == MANIFEST || is_free_name(name));
    free.ok_or_else(|| Error::Refused { problem: format!("no file {name:?} can be saved beside the disks") })
}

/// The folders of all VMs, in the order of their names.
pub fn vm_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = entries(root)?.into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect();
    folders.sort();
    Ok(folders)
}

/// What is in a folder.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io("look into", folder, error);
    fs::read_dir(folder).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

/// How many bytes the files in a folder have.
pub fn bytes(folder: &Path) -> Result<u64> {
    Ok(entries(folder)?.iter().map(|file| fs::metadata(file).map_or(0, |facts| facts.len())).fold(0, u64::saturating_add))
}

/// A new backup's id: hexadecimal digits, as people type the first of them.
pub fn new_id() -> String {
    hex::encode(rand::random::<[u8; ID_BYTES]>())
}

/// Whether a text has the form of a backup's id.
pub fn is_backup_id(text: &str) -> bool {
    text.len() == 2 * ID_BYTES && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// What a disk's image is called in its backup's folder.
pub fn image_name(disk: &DiskName) -> String {
    format!("{disk}{IMAGE_SUFFIX}")
}

/// Whether a file of this name may be saved beside the disks: one of ours, and images, are not overwritten.
pub fn is_free_name(name: &str) -> bool {
    let taken = [MANIFEST, DELETED, CHECKSUMS, PINNED, LOCK].contains(&name) || name.ends_with(IMAGE_SUFFIX);
    !taken && !name.starts_with('.') && FileName::new(name).is_ok()
}

/// A name for something that is not published yet.
pub fn temporary_name() -> String {
    format!(".{TEMPORARY_PREFIX}{:016x}", rand::random::<u64>())
}

/// Whether a name is that of something that is not published yet: exactly such a name, since a disk may be called nearly so.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let digits = name.and_then(|name| name.strip_prefix('.')?.strip_prefix(TEMPORARY_PREFIX));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes what the dead have left in a VM's folder. Only for one who is alone there.
pub fn sweep(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if is_temporary(&path) {
            durable::remove_all(&path)?;
        } else if path.is_dir() {
            entries(&path)?.iter().filter(|file| is_temporary(file)).try_for_each(|file| durable::remove_all(file))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert!(is_backup_id(&new_id()) && !is_backup_id("..") && !is_backup_id("3F9A1C0D3F9A1C0D3F9A1C0D3F9A1C0D"));
        assert!(is_temporary(Path::new("/a").join(temporary_name()).as_path()) && !is_temporary(Path::new("/a/km1tmp-1")));
        assert!(is_free_name("domain.xml") && is_free_name("swtpm.tpm2-00.permall"));
        for image in [".km1tmp-x.qcow2", ".km1tmp-0123456789abcdef.qcow2", ".km1tmp-", ".km1tmp-x"] {
            assert!(!is_temporary(Path::new(image)), "{image}");
        }
        for name in ["manifest.json", "deleted.json", "checksums.json", "pinned", ".lock", "vda.qcow2", "", "a/b", ".."] {
            assert!(!is_free_name(name), "{name}");
        }
    }
}
