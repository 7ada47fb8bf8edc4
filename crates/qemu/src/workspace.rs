//! Folders of one run and the lock of one VM: what a dead run left is told from a live one's by a lock that dies with its process.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use keepmark_model::names::TEMPORARY_PREFIX;

use crate::error::{Error, Result, file};
use crate::qmp::Peer;

const LOCK: &str = "lock";

/// A private folder of one run (mode 0700), removed when dropped. It holds a locked file for as long as the run lives.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    _lock: File,
}

impl Workspace {
    /// Makes `parent/km1tmp-RUN`; the parent too (mode 0711, so that QEMU under another user gets through).
    ///
    /// # Errors
    /// When it cannot be made or is there already.
    pub fn create(parent: &Path, run: &str) -> Result<Self> {
        make_parent(parent)?;
        // Until the folder is locked, only this keeps a sweep from taking it for a dead run's.
        let _making = alone_in(parent)?;
        let path = parent.join(format!("{TEMPORARY_PREFIX}{run}"));
        DirBuilder::new().mode(0o700).create(&path).map_err(file("create folder", &path))?;
        let lock = path.join(LOCK);
        let mut locked = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&lock).map_err(file("create", &lock))?;
        locked.lock().map_err(file("lock", &lock))?;
        locked.write_all(std::process::id().to_string().as_bytes()).map_err(file("write", &lock))?;
        Ok(Self { path, _lock: locked })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder to QEMU's user, where that is another one and this process may.
    ///
    /// # Errors
    /// When the owner cannot be changed.
    pub fn give_to(&self, peer: &Peer) -> Result<()> {
        give(&self.path, peer)
    }

    /// Removes what dead runs left under `parent`, their locks of VMs too; says which folders.
    ///
    /// # Errors
    /// When something is there and cannot be removed.
    pub fn sweep(parent: &Path) -> Result<Vec<String>> {
        let Ok(entries) = fs::read_dir(parent) else { return Ok(Vec::new()) };
        let _sweeping = alone_in(parent)?;
        sweep_locks(parent);
        let ours = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX));
        let mut removed = Vec::new();
        for path in ours.map(|entry| entry.path()).filter(|path| is_dead(path)) {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file("remove", &path)(error)),
                _ => removed.push(format!("folder {}", path.display())),
            }
        }
        Ok(removed)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        drop(fs::remove_dir_all(&self.path));
    }
}

/// Gives a file or folder to QEMU's user, where that is another one and this process is root.
pub(crate) fn give(path: &Path, peer: &Peer) -> Result<()> {
    if rustix::process::geteuid().is_root() && peer.uid != 0 {
        chown(path, Some(peer.uid), Some(peer.gid)).map_err(file("give QEMU's user", path))?;
    }
    Ok(())
}

fn make_parent(parent: &Path) -> Result<()> {
    if parent.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(parent).map_err(file("create folder", parent))?;
    fs::set_permissions(parent, fs::Permissions::from_mode(0o711)).map_err(file("set the mode of", parent))
}

// Folders are made and swept one at a time. The kernel frees the lock of a process that dies.
fn alone_in(parent: &Path) -> Result<File> {
    let folder = File::open(parent).map_err(file("open", parent))?;
    folder.lock().map_err(file("lock", parent))?;
    Ok(folder)
}

// Asked by one who is alone in the parent: a folder that nobody has locked then has lost its maker.
fn is_dead(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).map_or_else(|error| error.kind() == std::io::ErrorKind::NotFound, |lock| lock.try_lock().is_ok())
}

/// Held while a keepmark works on a VM or an image; freed by the kernel when its process dies.
#[derive(Debug)]
pub struct VmLock {
    path: PathBuf,
    _file: File,
}

impl VmLock {
    /// Locks the VM whose socket or image `subject` is, by a file under `run_dir` named by the subject's device and inode.
    ///
    /// # Errors
    /// [`Error::Busy`] when another process has it.
    pub fn take(run_dir: &Path, subject: &Path) -> Result<Self> {
        make_parent(run_dir)?;
        let meta = fs::metadata(subject).map_err(file("look at", subject))?;
        let (dev, ino) = if meta.rdev() == 0 { (meta.dev(), meta.ino()) } else { (0, meta.rdev()) };
        let path = run_dir.join(format!("vm-{dev:x}-{ino:x}.lock"));
        loop {
            let mut held = open_lock(&path)?;
            match held.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Busy { subject: subject.display().to_string(), holder: holder(&mut held) });
                }
                Err(TryLockError::Error(error)) => return Err(file("lock", &path)(error)),
            }
            // The last holder may have removed the file between our open and our lock.
            if is_same(&held, &path) {
                held.set_len(0).and_then(|()| held.write_all(std::process::id().to_string().as_bytes())).map_err(file("write", &path))?;
                return Ok(Self { path, _file: held });
            }
        }
    }
}

impl Drop for VmLock {
    fn drop(&mut self) {
        // Removed while still locked; whoever waits sees that the file is another one.
        drop(fs::remove_file(&self.path));
    }
}

// A VM's socket is another file after each of its restarts, so nobody may ever ask for a dead run's lock again.
fn sweep_locks(run_dir: &Path) {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    let is_lock = |name: &str| name.starts_with("vm-") && name.ends_with(".lock");
    for path in entries.filter(|entry| is_lock(&entry.file_name().to_string_lossy())).map(|entry| entry.path()) {
        // Taken as its holder would take it, and given up as its holder would.
        let free = File::open(&path).ok().filter(|lock| lock.try_lock().is_ok() && is_same(lock, &path));
        drop(free.map(|file| VmLock { path, _file: file }));
    }
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path).map_err(file("open", path))
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn is_same(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().ok().map(identity) == fs::metadata(path).ok().map(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_dead_runs_are_swept_wherever_they_died_and_live_ones_are_not() {
        let parent = tempfile::tempdir().unwrap();
        let live = Workspace::create(parent.path(), "live").unwrap();
        let [made, locked, used] = ["km1tmp-made", "km1tmp-locked", "km1tmp-used"].map(|name| parent.path().join(name));
        [&made, &locked, &used].iter().for_each(|folder| fs::create_dir(folder).unwrap());
        fs::write(locked.join(LOCK), "").unwrap();
        fs::write(used.join(LOCK), "123").unwrap();
        fs::write(used.join("scratch.qcow2"), "x").unwrap();
        fs::create_dir(parent.path().join("foreign")).unwrap();
        assert_eq!(Workspace::sweep(parent.path()).unwrap().len(), 3);
        assert!(live.path().exists() && parent.path().join("foreign").exists());
        assert!(!made.exists() && !locked.exists() && !used.exists());
        let path = live.path().to_owned();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_is_just_being_made_is_not_swept() {
        let parent = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let making = alone_in(parent.path()).unwrap();
            let young = parent.path().join("km1tmp-young");
            fs::create_dir(&young).unwrap();
            let sweep = scope.spawn(|| Workspace::sweep(parent.path()).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(100));
            let lock = File::create(young.join(LOCK)).unwrap();
            lock.lock().unwrap();
            drop(making);
            assert_eq!(sweep.join().unwrap(), [""; 0]);
            assert!(young.exists());
        });
    }

    #[test]
    fn a_vm_is_locked_once_and_says_by_whom_and_a_dead_runs_lock_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let held = VmLock::take(folder.path(), folder.path()).unwrap();
        match VmLock::take(folder.path(), folder.path()) {
            Err(Error::Busy { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        Workspace::sweep(folder.path()).unwrap();
        assert!(held.path.exists());
        let path = held.path.clone();
        drop(held);
        VmLock::take(folder.path(), folder.path()).unwrap();
        fs::write(&path, "123").unwrap();
        Workspace::sweep(folder.path()).unwrap();
        assert!(!path.exists());
    }
}
