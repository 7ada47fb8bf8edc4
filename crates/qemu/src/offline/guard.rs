//! The guard of a powered-off image: while it is half reverted it has another name, under which nobody starts it.
//!
//! The name is all that is remembered, and renaming back is the last effect of a revert. So an image has its own name when it is
//! old or new as a whole, and whoever starts it in between is told that it is missing.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::{Error, Result, file};

const SUFFIX: &str = ".keepmark-reverting-";
// As many symbolic links as the kernel follows.
const LINKS_MAX: usize = 40;

/// Where an image is, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its own name, symbolic links followed.
    home: PathBuf,
    /// The name that it has.
    current: PathBuf,
}

impl Place {
    /// Finds an image by the path that its owner gives, under its own name or the one of its guard.
    ///
    /// # Errors
    /// When its folder cannot be read, or there are several half reverted ones.
    pub(crate) fn find(path: &Path) -> Result<Self> {
        let home = follow(path).map_err(file("find", path))?;
        if home.exists() {
            return Ok(Self { current: home.clone(), home });
        }
        let mut guarded = guarded(&home);
        match (guarded.pop(), guarded.is_empty()) {
            (Some(current), true) => Ok(Self { home, current }),
            (None, _) => Ok(Self { current: home.clone(), home }),
            (Some(_), false) => {
                let problem = format!("it is missing, and there are several files {}{SUFFIX}*", home.display());
                Err(Error::Image { image: path.to_owned(), problem })
            }
        }
    }

    /// The name that it has.
    pub(crate) fn current(&self) -> &Path {
        &self.current
    }

    /// The backup to which it is half reverted, if it is.
    pub(crate) fn backup(&self) -> Option<String> {
        let name = self.current.file_name().filter(|_| self.current != self.home)?.to_string_lossy().into_owned();
        name.rsplit_once(SUFFIX).map(|(_, backup)| backup.to_owned())
    }

    /// Takes its name away while it is reverted to this backup; where it has none to take (a block device), says why.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub(crate) fn guard(&mut self, backup: &str) -> Result<Option<String>> {
        let meta = fs::metadata(&self.current).map_err(file("look at", &self.current))?;
        if !meta.is_file() {
            return Ok(Some("it is no file that could be renamed meanwhile".into()));
        }
        self.rename(suffixed(&self.home, backup)).map(|()| None)
    }

    /// Gives its own name back.
    ///
    /// # Errors
    /// When that cannot be done, or something else has the name by now.
    pub(crate) fn unguard(&mut self) -> Result<()> {
        self.rename(self.home.clone())
    }

    fn rename(&mut self, to: PathBuf) -> Result<()> {
        if self.current == to {
            return Ok(());
        }
        let failed = |source| Error::Guard { image: self.current.clone(), source };
        rename(&self.current, &to).map_err(failed)?;
        self.current = to;
        let folder = self.current.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("sync", folder))
    }
}

fn suffixed(home: &Path, backup: &str) -> PathBuf {
    let mut name = home.file_name().unwrap_or_default().to_os_string();
    name.push(SUFFIX);
    name.push(backup);
    home.with_file_name(name)
}

// Not every file system can refuse to replace (NFS cannot); nobody else makes files of these names.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) if to.symlink_metadata().is_err() => {
            fs::rename(from, to)
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => Err(io::ErrorKind::AlreadyExists.into()),
        other => Ok(other?),
    }
}

fn guarded(home: &Path) -> Vec<PathBuf> {
    let prefix: OsString = suffixed(home, "").file_name().unwrap_or_default().to_owned();
    let is_guarded = |name: &OsStr| name.as_bytes().starts_with(prefix.as_bytes());
    let entries = home.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    entries.filter(|entry| is_guarded(&entry.file_name())).map(|entry| entry.path()).collect()
}

// As `canonicalize`, for a file that need not be there.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or(Path::new("/")).join(link),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_loses_its_name_and_gets_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let (home, link) = (folder.path().join("a.qcow2"), folder.path().join("link"));
        fs::write(&home, "x").unwrap();
        std::os::unix::fs::symlink("a.qcow2", &link).unwrap();
        let mut place = Place::find(&link).unwrap();
        assert_eq!((place.current(), place.backup()), (home.as_path(), None));
        assert_eq!(place.guard("3f9a1c0d").unwrap(), None);
        assert!(!link.exists() && folder.path().join("a.qcow2.keepmark-reverting-3f9a1c0d").exists());
        // The next one finds it by either name, and may take it elsewhere.
        let mut place = Place::find(&link).unwrap();
        assert_eq!((Place::find(&home).unwrap(), place.backup().as_deref()), (place.clone(), Some("3f9a1c0d")));
        place.guard("00000000").unwrap();
        assert_eq!(Place::find(&link).unwrap().backup().as_deref(), Some("00000000"));
        place.unguard().unwrap();
        assert!(link.exists() && fs::read_dir(folder.path()).unwrap().count() == 2);
    }

    #[test]
    fn nothing_is_replaced_and_nothing_is_guessed() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("a.qcow2");
        assert_eq!(Place::find(&home).unwrap().current(), home);
        for backup in ["1", "2"] {
            fs::write(suffixed(&home, backup), backup).unwrap();
        }
        assert!(Place::find(&home).unwrap_err().to_string().contains("several"));
        fs::remove_file(suffixed(&home, "2")).unwrap();
        let mut place = Place::find(&home).unwrap();
        fs::write(&home, "new").unwrap();
        assert!(place.unguard().is_err() && fs::read(&home).unwrap() == b"new");
    }

    #[test]
    fn a_device_has_no_name_to_take_away() {
        let mut place = Place::find(Path::new("/dev/null")).unwrap();
        assert!(place.guard("3f9a1c0d").unwrap().is_some());
        assert_eq!(place.current(), Path::new("/dev/null"));
    }
}
