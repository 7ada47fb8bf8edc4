//! Folders of stores, of both kinds: made, refused where something is already, and made durable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

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

/// Gives a file a name that nothing has yet. Where the file system cannot rename so (NFS, sshfs, 9P, older ZFS), a second name does it
/// and the first one goes; where there are no second names either, it looks first.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_instead(from, to),
        other => Ok(other?),
    }
}

fn link_instead(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to).map_err(|error| (error.raw_os_error().map(Errno::from_raw_os_error), error)) {
        Ok(()) => fs::remove_file(from),
        Err((Some(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP), _)) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        Err((Some(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP), _)) => Err(ErrorKind::AlreadyExists.into()),
        Err((_, error)) => Err(error),
    }
}

/// Makes a folder for the owner only, and those above it; gives those that were not there, the uppermost first.
pub fn make_new(path: &Path) -> Result<Vec<PathBuf>> {
    let missing = path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
    let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
    missing.reverse();
    make(path).map(|()| missing)
}

/// Makes the names in a folder durable.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| Error::io("sync folder", path, error))
}

/// Opens a regular file of a store for reading, and nothing else: a pipe would wait for ever, a link could lead out of the store.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let quietly = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(quietly).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Reads a regular file of `bytes_max` bytes at most.
pub fn read_regular(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max { Err(ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}

/// Whether another machine or a program answers for a folder's file system.
pub fn is_remote(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|facts| REMOTE_FILE_SYSTEMS.contains(&facts.f_type))
}

/// Whether a failure says that nothing can be written there, which need not keep anybody from reading.
pub fn is_unwritable(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Folders of a new store that go again unless it is complete. What is not empty stays: it is somebody else's.
#[derive(Debug, Default)]
pub struct Undo(Vec<PathBuf>);

impl Undo {
    /// Makes a folder that goes again.
    pub fn make(&mut self, path: &Path) -> Result<()> {
        self.0.extend(make_new(path)?);
        Ok(())
    }

    /// The store is complete.
    pub fn forget(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.0.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_replaces_nothing_however_it_is_given() {
        for give in [rename_new, link_instead] {
            let folder = tempfile::tempdir().unwrap();
            let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
            fs::write(&from, "one").unwrap();
            give(&from, &to).unwrap();
            assert_eq!((fs::read(&to).unwrap(), from.exists()), (b"one".to_vec(), false));
            fs::write(&from, "two").unwrap();
            assert_eq!(give(&from, &to).unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!((fs::read(&to).unwrap(), from.exists()), (b"one".to_vec(), true));
        }
    }

    #[test]
    fn only_regular_files_are_read_and_none_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "four").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("endless")).unwrap();
        rustix::fs::mknodat(CWD, path("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert_eq!((read_regular(&path("file"), 4).unwrap(), read_regular(&path("file"), 3).is_err()), (b"four".to_vec(), true));
        for other in ["link", "endless", "pipe", "."] {
            assert!(read_regular(&path(other), 4).is_err(), "{other}");
        }
    }

    #[test]
    fn what_was_made_goes_again_but_for_what_others_put_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("there")).unwrap();
        let mut undo = Undo::default();
        for name in ["there", "a/b", "a/c", "d"] {
            undo.make(&at(name)).unwrap();
        }
        fs::write(at("a/c/file"), "").unwrap();
        drop(undo);
        assert_eq!(["there", "a/b", "a/c", "d"].map(|name| at(name).exists()), [true, false, true, false]);
    }
}
