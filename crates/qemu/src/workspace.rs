//! Folders of one run and the lock of one VM: what a dead run left is told from a live one's by a lock that dies with its process.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_model::names::TEMPORARY_PREFIX;

use crate::error::{Error, Result, file};
use crate::folder::{HeldFolder, give};
use crate::qmp::Peer;

const LOCK: &str = "lock";
const SOCKETS: &str = "q";
// Others' QEMU gets through it and sees nothing of it.
const PASSABLE: u32 = 0o711;
const PRIVATE: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;
// Who makes or sweeps folders is done within milliseconds.
const ALONE_WITHIN: Duration = Duration::from_secs(10);

/// A private folder of one run (mode 0700), removed when dropped. It holds a locked file for as long as the run lives.
#[derive(Debug)]
pub struct Workspace {
    parent: HeldFolder,
    name: String,
    folder: HeldFolder,
    _lock: File,
}

impl Workspace {
    /// Makes `parent/km1tmp-RUN`; the parent too (mode 0711, so that QEMU under another user gets through).
    ///
    /// # Errors
    /// When it cannot be made or is there already; [`Error::ForeignFolder`] when the parent is not this user's alone.
    pub fn create(parent: &Path, run: &str) -> Result<Self> {
        let parent = HeldFolder::own(parent, PASSABLE)?;
        // Until the folder is locked, only this keeps a sweep from taking it for a dead run's.
        let _making = parent.lock(ALONE_WITHIN)?;
        let name = format!("{TEMPORARY_PREFIX}{run}");
        let folder = parent.make_folder(&name, PRIVATE)?;
        let mut lock = folder.make_file(LOCK, PRIVATE_FILE)?;
        let path = folder.path().join(LOCK);
        lock.lock().map_err(file("lock", &path))?;
        lock.write_all(std::process::id().to_string().as_bytes()).map_err(file("write", &path))?;
        Ok(Self { parent, name, folder, _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder's handle. It stays this user's own; with QEMU under another user, that one gets through it.
    ///
    /// # Errors
    /// When its mode cannot be set.
    pub fn passable(&self) -> Result<&HeldFolder> {
        self.folder.set_mode(PASSABLE)?;
        Ok(&self.folder)
    }

    /// A folder in it for sockets that QEMU makes: the only one that is given to QEMU's user.
    ///
    /// # Errors
    /// When it cannot be made or given.
    pub fn sockets(&self, peer: &Peer) -> Result<PathBuf> {
        let sockets = self.passable()?.make_folder(SOCKETS, PRIVATE)?;
        give(&sockets, peer, sockets.path())?;
        Ok(sockets.path().to_owned())
    }

    /// Removes what dead runs left under `parent`, their locks of VMs too; says which folders.
    ///
    /// # Errors
    /// When something is there and cannot be removed, or the parent is not this user's alone.
    pub fn sweep(parent: &Path) -> Result<Vec<String>> {
        let Some(parent) = HeldFolder::existing(parent)? else { return Ok(Vec::new()) };
        let _sweeping = parent.lock(ALONE_WITHIN)?;
        let names = parent.names()?;
        names.iter().filter(|name| name.starts_with("vm-") && name.ends_with(".lock")).for_each(|name| sweep_lock(&parent, name));
        let mut removed = Vec::new();
        for name in names.iter().filter(|name| name.starts_with(TEMPORARY_PREFIX) && is_dead(&parent, name)) {
            parent.remove(name)?;
            removed.push(format!("folder {}", parent.path().join(name).display()));
        }
        Ok(removed)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        drop(self.parent.remove(&self.name));
    }
}

// Asked by one who is alone in the parent: a folder that nobody has locked then has lost its maker.
fn is_dead(parent: &HeldFolder, name: &str) -> bool {
    match parent.folder(name).and_then(|folder| folder.read(LOCK)) {
        Ok(lock) => lock.try_lock().is_ok(),
        Err(Error::File { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
        Err(_) => false,
    }
}

/// Held while a keepmark works on a VM or an image; freed by the kernel when its process dies.
#[derive(Debug)]
pub struct VmLock {
    folder: HeldFolder,
    name: String,
    _file: File,
}

impl VmLock {
    /// Locks the VM whose socket or image `subject` is, by a file under `run_dir` named by the subject's device and inode.
    ///
    /// # Errors
    /// [`Error::Busy`] when another process has it.
    pub fn take(run_dir: &Path, subject: &Path) -> Result<Self> {
        let meta = fs::metadata(subject).map_err(file("look at", subject))?;
        let (dev, ino) = if meta.rdev() == 0 { (meta.dev(), meta.ino()) } else { (0, meta.rdev()) };
        let name = format!("vm-{dev:x}-{ino:x}.lock");
        let folder = HeldFolder::own(run_dir, PASSABLE)?;
        let path = folder.path().join(&name);
        loop {
            let mut held = folder.file(&name, PRIVATE_FILE)?;
            match held.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Busy { subject: subject.display().to_string(), holder: holder(&mut held) });
                }
                Err(TryLockError::Error(error)) => return Err(file("lock", &path)(error)),
            }
            // The last holder may have removed the file between our open and our lock.
            if folder.has(&name, &held) {
                held.set_len(0).and_then(|()| held.write_all(std::process::id().to_string().as_bytes())).map_err(file("write", &path))?;
                return Ok(Self { folder, name, _file: held });
            }
        }
    }
}

impl Drop for VmLock {
    fn drop(&mut self) {
        // Removed while still locked; whoever waits sees that the file is another one.
        drop(self.folder.remove(&self.name));
    }
}

// A VM's socket is another file after each of its restarts, so nobody may ever ask for a dead run's lock again.
fn sweep_lock(parent: &HeldFolder, name: &str) {
    // Taken as its holder would take it, and given up as its holder would.
    let free = parent.read(name).ok().filter(|lock| lock.try_lock().is_ok() && parent.has(name, lock));
    if free.is_some() {
        // One that stays harms nobody.
        drop(parent.remove(name));
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
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
            let making = HeldFolder::own(parent.path(), PASSABLE).unwrap().lock(ALONE_WITHIN).unwrap();
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
        let path = held.folder.path().join(&held.name);
        assert!(path.exists());
        drop(held);
        VmLock::take(folder.path(), folder.path()).unwrap();
        fs::write(&path, "123").unwrap();
        Workspace::sweep(folder.path()).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_somebody_keeps_locked_is_said_to_be_and_by_whom() {
        let top = tempfile::tempdir().unwrap();
        let parent = HeldFolder::own(&top.path().join("ours"), PASSABLE).unwrap();
        let locker = format!("exec 9<{}; flock 9; echo; exec sleep 60", parent.path().display());
        let mut shell = std::process::Command::new("sh");
        let mut child = shell.args(["-c", &locker]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let error = parent.lock(Duration::from_millis(50)).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(&error, Error::FolderLocked { holders, .. } if holders.iter().any(|holder| holder.pid == child.id())), "{error}");
        parent.lock(ALONE_WITHIN).unwrap();
    }

    #[test]
    fn a_run_folder_that_is_somebody_elses_is_not_swept_and_nothing_in_it_is_followed() {
        let top = tempfile::tempdir().unwrap();
        let (real, link) = (top.path().join("real"), top.path().join("link"));
        fs::create_dir_all(real.join("km1tmp-dead")).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        for refused in [Workspace::sweep(&link).map(drop), Workspace::create(&link, "r").map(drop), VmLock::take(&link, &real).map(drop)] {
            assert!(matches!(refused, Err(Error::ForeignFolder { .. })), "{refused:?}");
        }
        assert!(real.join("km1tmp-dead").exists());
        let victim = top.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let meta = fs::metadata(top.path()).unwrap();
        std::os::unix::fs::symlink(&victim, real.join(format!("vm-{:x}-{:x}.lock", meta.dev(), meta.ino()))).unwrap();
        VmLock::take(&real, top.path()).unwrap_err();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
    }

    #[test]
    fn only_the_folder_for_sockets_is_given_to_qemus_user() {
        let top = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(&top.path().join("run"), "r").unwrap();
        let sockets = workspace.sockets(&Peer { pid: 0, uid: 65_534, gid: 65_534 }).unwrap();
        let meta = |path: &Path| fs::metadata(path).map(|meta| (meta.uid(), meta.mode() & 0o777)).unwrap();
        let me = rustix::process::geteuid();
        let theirs = if me.is_root() { 65_534 } else { me.as_raw() };
        assert_eq!((meta(workspace.path()), meta(&sockets)), ((me.as_raw(), 0o711), (theirs, 0o700)));
    }
}
