//! What a restore writes to, and the temporary name under which a new file grows.
//!
//! A growing file is this restore's alone: its name is new, it is locked while its restore lives, and it gets its final name only if the
//! temporary one still leads to it. Files of restores that died are known by their free lock.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use keepmark_model::Extent;
use keepmark_model::seam::Result;
use keepmark_qemu::folder::HeldFolder;
use rustix::fs::{AtFlags, RenameFlags, linkat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::used;
use crate::error::Error;

/// A disk while it is being written, from several threads. Dropped without `finish`, it leaves nothing under its name.
pub trait Target: Sync {
    /// Writes bytes at an offset.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Makes a range read as zeros.
    fn zero(&self, extent: Extent) -> Result<()>;
    /// Makes everything durable and gives the file its name. `interrupted` is asked while that takes its time.
    fn finish(self: Box<Self>, interrupted: &dyn Fn() -> bool) -> Result<()>;
}

const MARK: &str = ".partial";
// Of one process at one place.
const NUMBERS: std::ops::Range<u32> = 0..1000;
// A disk's content is nobody's business but its owner's.
const PRIVATE: u32 = 0o600;
// Those of NFS and SMB: there a lock of the file is one of its bytes, which QEMU's tools lock themselves.
const NETWORK_FILE_SYSTEMS: [i64; 3] = [0x6969, 0xff53_4d42, 0xfe53_4d42];

/// A file beside its final place that is removed unless it is published.
pub struct Partial {
    folder: HeldFolder,
    file: File,
    temporary: String,
    place: PathBuf,
    name: String,
    replace: bool,
    published: bool,
}

impl Partial {
    /// Makes a new file in the place's folder; what dead restores to this place left there is removed. `replace` is whether a file that
    /// is at the place in the end may be replaced.
    pub fn at(place: &Path, replace: bool) -> Result<Self> {
        let name = place.file_name().and_then(std::ffi::OsStr::to_str);
        let name = name.ok_or_else(|| Error::Target { path: place.to_owned(), why: "its name is not UTF-8".into() })?.to_owned();
        let parent = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let real = parent.canonicalize().map_err(|source| io_error("find", parent, source))?;
        let folder = HeldFolder::open(&real)?;
        sweep(&folder, &name);
        let (temporary, file) = make(&folder, &name)?;
        Ok(Self { folder, file, temporary, place: place.to_owned(), name, replace, published: false })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What it is called in messages.
    pub fn path(&self) -> &Path {
        &self.place
    }

    /// Gives the file its name, durably; it must be synced already.
    pub fn publish(mut self) -> Result<()> {
        let io = |doing, source: Errno| io_error(doing, &self.place, source.into());
        if !self.folder.has(&self.temporary, &self.file) {
            let why = "its unfinished file was taken away while it was written; another restore may be at work there".into();
            return Err(Error::Target { path: self.place.clone(), why }.into());
        }
        if self.replace {
            let _unused = used::check(&self.place)?;
            renameat(&self.folder, &self.temporary, &self.folder, &self.name).map_err(|error| io("rename to", error))?;
        } else {
            name_anew(&self.folder, &self.temporary, &self.name).map_err(|error| match error {
                Errno::EXIST => Error::TargetExists { path: self.place.clone() },
                error => io("rename to", error),
            })?;
        }
        self.published = true;
        rustix::fs::fsync(&self.folder).map_err(|error| io("sync the folder of", error).into())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published && self.folder.has(&self.temporary, &self.file) {
            // What stays is removed by the next restore to this place.
            drop(self.folder.remove(&self.temporary));
        }
    }
}

// Where the file system cannot rename without replacing, a second name cannot replace either.
fn name_anew(folder: &HeldFolder, old: &str, new: &str) -> std::result::Result<(), Errno> {
    match renameat_with(folder, old, folder, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            linkat(folder, old, folder, new, AtFlags::empty())?;
            unlinkat(folder, old, AtFlags::empty())
        }
        other => other,
    }
}

fn make(folder: &HeldFolder, name: &str) -> Result<(String, File)> {
    for number in NUMBERS {
        let temporary = format!("{name}{MARK}-{}-{number}", std::process::id());
        match folder.make_file(&temporary, PRIVATE) {
            Err(keepmark_qemu::Error::File { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
            Ok(file) => {
                if shares_locks(&file) {
                    return Ok((temporary, file));
                }
                file.lock().map_err(|source| io_error("lock a new file in", folder.path(), source))?;
                // Somebody who swept may have taken it for a dead one's before it was locked.
                if folder.has(&temporary, &file) {
                    return Ok((temporary, file));
                }
            }
        }
    }
    Err(Error::Target { path: folder.path().to_owned(), why: "there are too many unfinished files in it".into() }.into())
}

// There nothing tells a living restore's file from a dead one's, so none is swept.
fn shares_locks(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|system| NETWORK_FILE_SYSTEMS.contains(&system.f_type))
}

fn sweep(folder: &HeldFolder, name: &str) {
    let mark = format!("{name}{MARK}");
    let is_one = |candidate: &&String| candidate.strip_prefix(&mark).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    let me = rustix::process::geteuid().as_raw();
    for candidate in folder.names().unwrap_or_default().iter().filter(is_one) {
        let Ok(file) = folder.read(candidate) else { continue };
        let is_mine = rustix::fs::fstat(file.as_fd()).is_ok_and(|stat| stat.st_uid == me);
        if is_mine && !shares_locks(&file) && file.try_lock().is_ok() && folder.has(candidate, &file) {
            // What cannot be removed is in nobody's way.
            drop(folder.remove(candidate));
        }
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn partial(place: &Path, replace: bool) -> Partial {
        Partial::at(place, replace).unwrap()
    }

    #[test]
    fn two_restores_to_one_place_have_a_file_each_and_only_the_first_is_published_without_force() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("vda.raw");
        let (first, second) = (partial(&place, false), partial(&place, false));
        second.file().write_all_at(b"half", 0).unwrap();
        first.file().write_all_at(b"whole", 0).unwrap();
        first.publish().unwrap();
        assert_eq!(std::fs::read(&place).unwrap(), b"whole");
        assert!(second.publish().unwrap_err().get::<Error>().is_some_and(|error| matches!(error, Error::TargetExists { .. })));
        assert_eq!((std::fs::read(&place).unwrap(), std::fs::read_dir(folder.path()).unwrap().count()), (b"whole".to_vec(), 1));
        assert_eq!(std::fs::metadata(&place).unwrap().mode() & 0o777, PRIVATE);
    }

    #[test]
    fn a_file_whose_name_leads_elsewhere_by_now_is_not_published_and_leaves_the_other_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("vda.raw");
        let growing = partial(&place, true);
        let temporary = folder.path().join(&growing.temporary);
        std::fs::remove_file(&temporary).unwrap();
        std::fs::write(&temporary, "another's").unwrap();
        let error = growing.publish().unwrap_err();
        assert!(error.to_string().contains("taken away"), "{error}");
        assert!(!place.exists() && temporary.exists());
    }

    #[test]
    fn only_files_of_dead_restores_to_this_very_place_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        [file("vda.raw.partial"), file("vda.raw.partial-1-0"), file("vda.raw.partially"), file("vdb.raw.partial-1-0")]
            .iter()
            .for_each(|path| std::fs::write(path, "x").unwrap());
        std::os::unix::fs::symlink(file("vdb.raw.partial-1-0"), file("vda.raw.partial-2-0")).unwrap();
        let living = partial(&file("vda.raw"), false);
        let other = partial(&file("vda.raw"), false);
        assert!([&living, &other].iter().all(|one| file(&one.temporary).exists()));
        drop((living, other));
        let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["vda.raw.partial-2-0", "vda.raw.partially", "vdb.raw.partial-1-0"]);
    }
}
