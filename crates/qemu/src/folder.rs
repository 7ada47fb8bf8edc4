//! Files and folders where others may write: the only code that makes, gives away or removes them.
//!
//! All of it goes through handles. A folder is opened without following a link and must be this user's own; what is in it is named relative to that handle, made
//! only where nothing is, and given away by its own handle. So nobody who may write beside us can exchange what we are about to touch.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fchmod, fchown, fstat, mkdirat, openat, statat, unlinkat};
use rustix::process::{Gid, Uid, geteuid};

use crate::error::{Error, Result, file};
use crate::holders;
use crate::qmp::Peer;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
// Neither follows a link nor waits for the other end of a pipe.
const PLAIN: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const OTHERS_MAY_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// A folder of ours, held open.
#[derive(Debug)]
pub struct HeldFolder {
    fd: OwnedFd,
    path: PathBuf,
}

impl HeldFolder {
    /// Opens a folder that belongs to this user alone, after making it (and those above it) where it is missing.
    ///
    /// # Errors
    /// [`Error::ForeignFolder`] when it is a link, is another user's, or others may write into it or exchange it.
    pub fn own(path: &Path, mode: u32) -> Result<Self> {
        let path = std::path::absolute(path).map_err(file("find", path))?;
        let held = match Self::open(&path) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Self::make_at(&path, mode)?,
            other => other?,
        };
        held.check()?;
        Ok(held)
    }

    /// Opens a folder that is there, whosever it is.
    ///
    /// # Errors
    /// When it is missing or a link.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = openat(rustix::fs::CWD, path, FOLDER, Mode::empty()).map_err(|error| match error {
            rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => foreign(path, "it is a link, or no folder"),
            other => file("open folder", path)(other.into()),
        })?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// As [`HeldFolder::own`] where it is there; nothing where it is not.
    ///
    /// # Errors
    /// As [`HeldFolder::own`].
    pub fn existing(path: &Path) -> Result<Option<Self>> {
        let path = std::path::absolute(path).map_err(file("find", path))?;
        match Self::open(&path) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.and_then(|held| held.check().map(|()| Some(held))),
        }
    }

    // Whoever makes one meanwhile is found out by the check of what is there then.
    fn make_at(path: &Path, mode: u32) -> Result<Self> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).map_err(file("create folder", parent))?;
        match mkdirat(rustix::fs::CWD, path, Mode::from_raw_mode(0o700)) {
            Err(rustix::io::Errno::EXIST) => Self::open(path),
            Err(error) => Err(file("create folder", path)(error.into())),
            Ok(()) => {
                let made = Self::open(path)?;
                made.check()?;
                made.set_mode(mode)?;
                Ok(made)
            }
        }
    }

    fn check(&self) -> Result<()> {
        let stat = self.stat()?;
        // Where it is sticky, as a file system in memory is at first, others cannot exchange what is ours.
        let is_open = stat.st_mode & OTHERS_MAY_WRITE != 0 && stat.st_mode & STICKY == 0;
        let me = geteuid();
        if stat.st_uid != me.as_raw() {
            return Err(foreign(&self.path, &format!("it belongs to user {}, and keepmark runs as user {}", stat.st_uid, me.as_raw())));
        }
        if is_open {
            return Err(foreign(&self.path, "others may write into it"));
        }
        // Only root has more to lose than the one who could exchange a folder above.
        if !me.is_root() {
            return Ok(());
        }
        let above = self.path.ancestors().skip(1).find(|above| std::fs::metadata(above).is_ok_and(|meta| is_exchangeable(&meta)));
        above.map_or(Ok(()), |above| Err(foreign(&self.path, &format!("others may exchange what is in {}", above.display()))))
    }

    fn stat(&self) -> Result<Stat> {
        fstat(&self.fd).map_err(|error| file("look at", &self.path)(error.into()))
    }

    /// Where it was when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder in it.
    ///
    /// # Errors
    /// When something of that name is there.
    pub fn make_folder(&self, name: &str, mode: u32) -> Result<Self> {
        let path = self.path.join(name);
        let failed = |error: rustix::io::Errno| file("create folder", &path)(error.into());
        mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
        let made = Self { fd: openat(&self.fd, name, FOLDER, Mode::empty()).map_err(failed)?, path: path.clone() };
        made.set_mode(mode)?;
        Ok(made)
    }

    /// Makes a file in it, open for reading and writing.
    ///
    /// # Errors
    /// When something of that name is there, a link too.
    pub fn make_file(&self, name: &str, mode: u32) -> Result<File> {
        let flags = PLAIN | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let made = openat(&self.fd, name, flags, Mode::from_raw_mode(mode));
        made.map(File::from).map_err(|error| file("create", self.path.join(name))(error.into()))
    }

    /// Opens a plain file in it for reading and writing, after making it where it is missing.
    ///
    /// # Errors
    /// When it is a link or anything else.
    pub fn file(&self, name: &str, mode: u32) -> Result<File> {
        self.plain(name, OFlags::RDWR | OFlags::CREATE, mode)
    }

    /// Opens a plain file in it for reading.
    ///
    /// # Errors
    /// When it is missing, a link or anything else.
    pub fn read(&self, name: &str) -> Result<File> {
        self.plain(name, OFlags::RDONLY, 0)
    }

    fn plain(&self, name: &str, flags: OFlags, mode: u32) -> Result<File> {
        let path = self.path.join(name);
        let fd = openat(&self.fd, name, flags | PLAIN, Mode::from_raw_mode(mode)).map_err(|error| file("open", &path)(error.into()))?;
        let stat = fstat(&fd).map_err(|error| file("look at", &path)(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(foreign(&path, "it is no plain file"));
        }
        if flags.contains(OFlags::CREATE) && stat.st_uid != geteuid().as_raw() {
            return Err(foreign(&path, &format!("it belongs to user {}", stat.st_uid)));
        }
        Ok(fd.into())
    }

    /// The names of what is in it. One that is not UTF-8 is none of ours.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = Dir::read_from(&self.fd).map_err(|error| file("read folder", &self.path)(error.into()))?;
        let name = |entry: rustix::fs::DirEntry| entry.file_name().to_str().ok().map(str::to_owned);
        Ok(entries.flatten().filter_map(name).filter(|name| name != "." && name != "..").collect())
    }

    /// Opens a folder of this user's in it.
    ///
    /// # Errors
    /// When it is missing, a link, no folder or another user's.
    pub fn folder(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        let fd = openat(&self.fd, name, FOLDER, Mode::empty()).map_err(|error| file("open folder", &path)(error.into()))?;
        let opened = Self { fd, path };
        let owner = opened.stat()?.st_uid;
        if owner == geteuid().as_raw() { Ok(opened) } else { Err(foreign(&opened.path, &format!("it belongs to user {owner}"))) }
    }

    /// Removes a file, or a folder with all that is in it; nothing is followed. What is gone already is removed too.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        remove(self.fd.as_fd(), name.as_bytes()).map_err(file("remove", self.path.join(name)))
    }

    /// Locks it against others who do the same, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Error::FolderLocked`] when it is not free within the time.
    pub fn lock(&self, within: Duration) -> Result<File> {
        let alone: File = openat(&self.fd, ".", FOLDER, Mode::empty()).map_err(|error| file("open", &self.path)(error.into()))?.into();
        let asked = Instant::now();
        loop {
            match alone.try_lock() {
                Ok(()) => return Ok(alone),
                Err(TryLockError::WouldBlock) if asked.elapsed() < within => std::thread::sleep(LOCK_LOOK),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::FolderLocked { path: self.path.clone(), holders: holders::of(&self.path), waited: within });
                }
                Err(TryLockError::Error(error)) => return Err(file("lock", &self.path)(error)),
            }
        }
    }

    /// Whether a name in it stands for this open file.
    #[must_use]
    pub fn has(&self, name: &str, open: impl AsFd) -> bool {
        let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
        fstat(open)
            .ok()
            .map(identity)
            .is_some_and(|open| statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(identity) == Some(open))
    }

    /// Sets its mode.
    ///
    /// # Errors
    /// When this is not allowed.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        fchmod(&self.fd, Mode::from_raw_mode(mode)).map_err(|error| file("set the mode of", &self.path)(error.into()))
    }
}

impl AsFd for HeldFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// Everything below a folder that is not sticky can be exchanged by its owner and by whoever may write into it.
fn is_exchangeable(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    meta.uid() != 0 || (meta.mode() & OTHERS_MAY_WRITE != 0 && meta.mode() & STICKY == 0)
}

fn foreign(path: &Path, why: &str) -> Error {
    Error::ForeignFolder { path: path.to_owned(), why: why.to_owned() }
}

fn remove(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {}
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => return other.map_err(Into::into),
    }
    let inner = openat(folder, name, FOLDER, Mode::empty())?;
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            remove(inner.as_fd(), name)?;
        }
    }
    match unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        other => other.map_err(Into::into),
    }
}

/// Gives an open file or folder to QEMU's user, where that is another one and this process is root. `path` is what it is called in errors.
///
/// # Errors
/// When the owner cannot be changed.
pub fn give(open: impl AsFd, peer: &Peer, path: &Path) -> Result<()> {
    if !geteuid().is_root() || peer.uid == 0 {
        return Ok(());
    }
    fchown(open, Some(Uid::from_raw(peer.uid)), Some(Gid::from_raw(peer.gid))).map_err(|error| file("give QEMU's user", path)(error.into()))
}

/// Takes a file back for this user alone, to be read by nobody else; nothing is followed.
///
/// # Errors
/// When this is not allowed, or it is no plain file.
pub fn take_back(path: &Path) -> Result<()> {
    let open = plain(path)?;
    if geteuid().is_root() {
        fchown(&open, Some(Uid::ROOT), Some(rustix::process::getegid())).map_err(|error| file("take back", path)(error.into()))?;
    }
    fchmod(&open, Mode::from_raw_mode(0o600)).map_err(|error| file("protect", path)(error.into()))
}

/// Opens a plain file by its path, without following a link in the end, to give it or to set its mode.
///
/// # Errors
/// When it is missing, a link or anything else.
pub fn plain(path: &Path) -> Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().and_then(std::ffi::OsStr::to_str).ok_or_else(|| foreign(path, "it has no name"))?;
    HeldFolder::open(parent).or_else(|_| followed(parent))?.read(name)
}

// The folder's own name may be a link of the operator's; what is in it may not.
fn followed(path: &Path) -> Result<HeldFolder> {
    let real = path.canonicalize().map_err(file("find", path))?;
    HeldFolder::open(&real)
}

/// A name for an open file of this process, for a helper program of the same user: it leads to this very file, whatever its other names lead to by now.
#[must_use]
pub fn name_of(open: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), open.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_folder_is_ones_own_or_refused() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        let made = HeldFolder::own(&path("a/b"), 0o711).unwrap();
        assert_eq!(mode(made.path()), 0o711);
        HeldFolder::own(&path("a/b"), 0o700).unwrap();
        assert_eq!(mode(made.path()), 0o711);
        let refused = |name: &str| match HeldFolder::own(&path(name), 0o711) {
            Err(Error::ForeignFolder { why, .. }) => why,
            other => panic!("{name}: {other:?}"),
        };
        symlink(path("a/b"), path("link")).unwrap();
        assert!(refused("link").contains("a link"));
        std::fs::create_dir(path("open")).unwrap();
        std::fs::set_permissions(path("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refused("open").contains("others may write"));
        if geteuid().is_root() {
            std::fs::create_dir(path("theirs")).unwrap();
            std::os::unix::fs::chown(path("theirs"), Some(65_534), None).unwrap();
            assert!(refused("theirs").contains("belongs to user 65534"));
            std::fs::create_dir(path("theirs/ours")).unwrap();
            assert!(refused("theirs/ours").contains("exchange"));
            assert!(refused("open/ours").contains("exchange"));
        }
    }

    #[test]
    fn nothing_is_followed_made_twice_or_given_by_name() {
        let top = tempfile::tempdir().unwrap();
        let held = HeldFolder::own(&top.path().join("ours"), 0o711).unwrap();
        let victim = top.path().join("victim");
        std::fs::write(&victim, "secret").unwrap();
        symlink(&victim, held.path().join("planted")).unwrap();
        assert!(held.make_file("planted", 0o600).is_err());
        assert!(held.file("planted", 0o600).is_err() && held.read("planted").is_err() && plain(&held.path().join("planted")).is_err());
        rustix::fs::mkfifoat(&held, "fifo", Mode::from_raw_mode(0o600)).unwrap();
        assert!(matches!(held.read("fifo"), Err(Error::ForeignFolder { .. })));
        let file = held.make_file("new", 0o600).unwrap();
        assert!(held.make_file("new", 0o600).is_err() && held.has("new", &file) && !held.has("fifo", &file));
        assert_eq!(name_of(&file).canonicalize().unwrap(), held.path().join("new").canonicalize().unwrap());
        std::fs::rename(held.path().join("new"), held.path().join("moved")).unwrap();
        symlink(&victim, held.path().join("new")).unwrap();
        give(&file, &Peer { pid: 0, uid: 65_534, gid: 65_534 }, &victim).unwrap();
        assert_eq!(std::fs::metadata(&victim).unwrap().uid(), geteuid().as_raw());
        if geteuid().is_root() {
            assert_eq!(std::fs::metadata(held.path().join("moved")).unwrap().uid(), 65_534);
        }
    }

    #[test]
    fn what_is_removed_takes_nothing_along_that_a_link_in_it_leads_to() {
        let top = tempfile::tempdir().unwrap();
        let (held, other) = (HeldFolder::own(&top.path().join("ours"), 0o711).unwrap(), top.path().join("other"));
        std::fs::create_dir_all(other.join("deep")).unwrap();
        std::fs::create_dir_all(held.path().join("gone/deep")).unwrap();
        symlink(&other, held.path().join("gone/deep/link")).unwrap();
        symlink(&other, held.path().join("link")).unwrap();
        ["gone", "link", "never"].iter().for_each(|name| held.remove(name).unwrap());
        assert!(other.join("deep").exists());
        assert_eq!(held.names().unwrap(), [""; 0]);
    }
}
