//! Folders of stores, of both kinds: made, refused where something is already, and made durable.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::error::{Error, Result};

/// File systems for which another machine or a program answers: NFS, SMB, CIFS, SMB2, 9P, FUSE, Ceph.
const REMOTE_FILE_SYSTEMS: [rustix::fs::FsWord; 7] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x6573_5546, 0x00c3_6400];

/// Refuses a place for a new store where anything is; `already` is said where the file `marker` of such a store is there.
pub fn refuse_occupied(root: &Path, marker: &str, already: &'static str) -> Result<()> {
    let refuse = |why| Err(Error::NotEmpty { path: root.to_owned(), why });
    if root.join(marker).exists() {
        return refuse(already);
    }
    match fs::read_dir(root).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => refuse("the folder is not empty"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => refuse("it is no folder"),
        Err(error) => Err(Error::io("look into", root, error)),
    }
}

/// Makes a folder and those above it, for the owner only.
pub fn make(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| Error::io("create folder", path, error))
}

/// Makes the names in a folder durable.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| Error::io("sync folder", path, error))
}

/// Whether another machine or a program answers for a folder's file system.
pub fn is_remote(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|facts| REMOTE_FILE_SYSTEMS.contains(&facts.f_type))
}

/// Whether a failure says that nothing can be written there, which need not keep anybody from reading.
pub fn is_unwritable(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
