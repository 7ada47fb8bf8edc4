//! A repository in a local folder: temporary file, sync, rename, sync of the folder.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::folders::{self, Undo};
use crate::identity::FileIdentity;
use crate::repository::backend::{Backend, FileKind, Upload};
use crate::repository::id::Id;
use jiff::Timestamp;

/// Begins the names of files that are not published yet; restic does not look into their folder.
const UPLOAD_PREFIX: &str = "km1tmp-";
const UPLOAD_FOLDER: &str = "tmp";
/// Clients of file servers remember what is in a folder for a while; longer than they do unless told otherwise (`acdirmax` of NFS: 60 s).
const NETWORK_LAG: Duration = Duration::from_secs(65);
/// Far beyond any file that restic, rustic or keepmark write.
const FILE_BYTES_MAX: u64 = 1 << 30;
const SMALL_FOLDERS: [&str; 5] = ["keys", "snapshots", "index", "locks", UPLOAD_FOLDER];

/// A repository in a local folder.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    changes: Arc<Changes>,
}

/// Folders in which a name appeared or went.
#[derive(Debug, Default)]
struct Changes {
    /// Those of which that is not durable yet. They leave it only when a sync has succeeded, and whoever looks waits for who syncs:
    /// what one backup has put there, another may count on.
    unsettled: Mutex<BTreeSet<PathBuf>>,
    /// Held while they are synced.
    settling: Mutex<()>,
    /// Those whose sync has failed. Whether another sync would tell is not known, so none is believed any more.
    failed: Mutex<BTreeSet<PathBuf>>,
}

impl Changes {
    fn note(&self, folder: &Path) {
        held(&self.unsettled).insert(folder.to_owned());
    }

    /// Syncs what has changed below a folder; what has failed once is tried again only if `anew`.
    fn settle(&self, top: &Path, anew: bool) -> Result<()> {
        let _alone = held(&self.settling);
        if !anew && held(&self.failed).iter().any(|folder| folder.starts_with(top)) {
            return Err(Error::Poisoned);
        }
        let waiting: Vec<PathBuf> = held(&self.unsettled).iter().filter(|folder| folder.starts_with(top)).cloned().collect();
        waiting.iter().try_for_each(|folder| self.sync(folder))
    }

    /// A name that appears while it is synced is noted again, and stays noted.
    fn sync(&self, folder: &Path) -> Result<()> {
        held(&self.unsettled).remove(folder);
        folders::sync(folder).inspect_err(|_| {
            self.note(folder);
            held(&self.failed).insert(folder.to_owned());
        })
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Folder {
    /// A repository at this path; nothing is looked at yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), changes: Arc::default() }
    }

    /// Makes the folders of a new repository, readable by the owner only. They go again unless the repository gets complete.
    ///
    /// # Errors
    /// When something is there already, or a folder cannot be made.
    pub fn create(root: &Path) -> Result<(Self, Undo)> {
        folders::refuse_occupied(root, "config", "there is a repository already")?;
        let mut undo = Undo::default();
        undo.make(root)?;
        for name in SMALL_FOLDERS {
            undo.make(&root.join(name))?;
        }
        for byte in 0..=u8::MAX {
            undo.make(&root.join("data").join(hex::encode([byte])))?;
        }
        for folder in [root.join("data"), root.to_owned()] {
            folders::sync(&folder)?;
        }
        Ok((Self::new(root), undo))
    }

    /// Says whether a repository is here.
    ///
    /// # Errors
    /// [`Error::NoStore`] and [`Error::NotAStore`].
    pub fn check(&self) -> Result<()> {
        let path = self.root.clone();
        match fs::metadata(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::NoStore { path }),
            Err(error) => Err(Error::io("look at", path, error)),
            Ok(_) if self.root.join("config").is_file() => Ok(()),
            Ok(_) => Err(Error::NotAStore { path }),
        }
    }

    fn changed(&self, folder: &Path) {
        self.changes.note(folder);
    }

    fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        let folder = self.root.join(kind.folder());
        match kind {
            FileKind::Config => folder,
            FileKind::Pack => folder.join(id.hex().get(..2).unwrap_or_default()).join(id.hex()),
            FileKind::Key
            | FileKind::Snapshot
            | FileKind::Index
            | FileKind::Lock
            | FileKind::Pin
            | FileKind::Mark
            | FileKind::Damage
            | FileKind::Place => folder.join(id.hex()),
        }
    }
}

impl Backend for Folder {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>> {
        let folder = self.root.join(kind.folder());
        let mut found = Vec::new();
        match kind {
            FileKind::Config => {}
            FileKind::Pack => {
                for byte in 0..=u8::MAX {
                    list_folder(&folder.join(hex::encode([byte])), &mut found)?;
                }
            }
            FileKind::Key
            | FileKind::Snapshot
            | FileKind::Index
            | FileKind::Lock
            | FileKind::Pin
            | FileKind::Mark
            | FileKind::Damage
            | FileKind::Place => {
                list_folder(&folder, &mut found)?;
            }
        }
        Ok(found)
    }

    fn size(&self, kind: FileKind, id: &Id) -> Result<Option<u64>> {
        let path = self.path(kind, id);
        match fs::metadata(&path) {
            Ok(facts) => Ok(Some(facts.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look at", path, error)),
        }
    }

    fn written(&self, kind: FileKind, id: &Id) -> Result<Option<Timestamp>> {
        let path = self.path(kind, id);
        match fs::metadata(&path).and_then(|facts| facts.modified()) {
            Ok(time) => Ok(Timestamp::try_from(time).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look at", path, error)),
        }
    }

    /// Other programs write nothing into this folder, and a hard link cannot be made of it.
    fn identity(&self) -> Option<FileIdentity> {
        FileIdentity::of(&self.root.join(FileKind::Place.folder()))
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>> {
        let path = self.path(kind, id);
        folders::read_regular(&path, FILE_BYTES_MAX).map_err(|error| Error::io("read", path, error))
    }

    fn read_at(&self, kind: FileKind, id: &Id, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let path = self.path(kind, id);
        folders::open_regular(&path).and_then(|file| file.read_exact_at(buffer, offset)).map_err(|error| Error::io("read", path, error))
    }

    fn upload(&self) -> Result<Box<dyn Upload>> {
        let folder = self.root.join(UPLOAD_FOLDER);
        let path = folder.join(format!("{UPLOAD_PREFIX}{:032x}", rand::random::<u128>()));
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = match open() {
            // A repository that restic made has no such folder yet.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                folders::make(&folder).and_then(|()| open().map_err(|error| Error::io("create", &path, error)))
            }
            other => other.map_err(|error| Error::io("create", &path, error)),
        }?;
        Ok(Box::new(FolderUpload { folder: self.clone(), path, file, published: false }))
    }

    fn settle(&self, kind: FileKind) -> Result<()> {
        let top = if kind == FileKind::Config { self.root.clone() } else { self.root.join(kind.folder()) };
        // Nothing is lost with a lock that a power cut takes away.
        self.changes.settle(&top, kind == FileKind::Lock)
    }

    fn settle_all(&self, kind: FileKind) -> Result<()> {
        let folder = self.root.join(kind.folder());
        if folder.is_dir() {
            self.changed(&folder);
        }
        self.settle(kind)
    }

    fn lag(&self) -> Duration {
        if folders::is_remote(&self.root) { NETWORK_LAG } else { Duration::ZERO }
    }

    fn remove(&self, kind: FileKind, id: &Id) -> Result<()> {
        let path = self.path(kind, id);
        if remove(&path)? {
            self.changed(path.parent().unwrap_or(&self.root));
        }
        Ok(())
    }

    fn sweep(&self, before: Option<Timestamp>) -> Result<()> {
        let folder = self.root.join(UPLOAD_FOLDER);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| Error::io("look into", &folder, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| Error::io("look into", &folder, error))?;
            if entry.file_name().to_string_lossy().starts_with(UPLOAD_PREFIX) && is_older(&entry.path(), before)? {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes a file; says whether it was there.
fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true).map_err(|error| Error::io("remove", path, error)),
    }
}

/// Whether a file was written before a time, if one is given.
fn is_older(path: &Path, before: Option<Timestamp>) -> Result<bool> {
    let Some(before) = before else { return Ok(true) };
    match fs::metadata(path).and_then(|facts| facts.modified()) {
        Ok(time) => Ok(Timestamp::try_from(time).is_ok_and(|time| time < before)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}

fn list_folder(folder: &Path, found: &mut Vec<(Id, u64)>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| Error::io("look into", folder, error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("look into", folder, error))?;
        let Some(id) = entry.file_name().to_str().and_then(Id::parse) else { continue };
        match entry.metadata() {
            Ok(facts) => found.push((id, facts.len())),
            // Removed between the listing and now: as if it had not been listed.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("look at", entry.path(), error)),
        }
    }
    Ok(())
}

/// A temporary file that becomes one of the repository.
#[derive(Debug)]
struct FolderUpload {
    folder: Folder,
    path: PathBuf,
    file: File,
    published: bool,
}

impl Upload for FolderUpload {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io("write", &self.path, error))
    }

    fn publish(mut self: Box<Self>, kind: FileKind, id: &Id) -> Result<()> {
        self.file.sync_data().map_err(|error| Error::io("sync", &self.path, error))?;
        let target = self.folder.path(kind, id);
        let parent = target.parent().unwrap_or(&self.folder.root).to_owned();
        if !parent.exists() {
            folders::make(&parent)?;
            let above = parent.ancestors().skip(1).take_while(|above| above.starts_with(&self.folder.root));
            above.into_iter().try_for_each(folders::sync)?;
        }
        rename(&self.path, &target, kind).map_err(|error| Error::io("publish", &target, error))?;
        self.published = true;
        self.folder.changed(&parent);
        Ok(())
    }
}

fn rename(from: &Path, to: &Path, kind: FileKind) -> std::io::Result<()> {
    if kind == FileKind::Config { folders::rename_new(from, to) } else { fs::rename(from, to) }
}

impl Drop for FolderUpload {
    fn drop(&mut self) {
        if !self.published {
            // Nothing depends on it: what stays is swept by a later backup.
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// A repository's folder in which a pack has just got its name, and the folder of that pack.
    fn with_pack() -> (tempfile::TempDir, Folder, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let (folder, undo) = Folder::create(&place.path().join("repository")).unwrap();
        undo.forget();
        let mut upload = folder.upload().unwrap();
        upload.append(b"pack").unwrap();
        upload.publish(FileKind::Pack, &Id([7; 32])).unwrap();
        let names = place.path().join("repository/data/07");
        (place, folder, names)
    }

    #[test]
    fn what_could_not_be_synced_once_is_never_called_durable() {
        let (place, folder, names) = with_pack();
        let away = place.path().join("away");
        fs::rename(&names, &away).unwrap();
        folder.settle(FileKind::Pack).unwrap_err();
        fs::rename(&away, &names).unwrap();
        for _ in 0..2 {
            assert!(matches!(folder.settle(FileKind::Pack), Err(Error::Poisoned)), "another backup counts on it");
        }
        folder.settle(FileKind::Index).unwrap();
    }

    #[test]
    fn a_lock_whose_folder_could_not_be_synced_is_written_again() {
        let (place, folder, _) = with_pack();
        folder.write(FileKind::Lock, &Id([1; 32]), b"lock").unwrap();
        let (locks, away) = (place.path().join("repository/locks"), place.path().join("away"));
        folder.changes.note(&locks);
        fs::rename(&locks, &away).unwrap();
        folder.settle(FileKind::Lock).unwrap_err();
        fs::rename(&away, &locks).unwrap();
        folder.write(FileKind::Lock, &Id([2; 32]), b"lock").unwrap();
    }

    /// A pipe in the place of the folder keeps the sync waiting, as a slow disk does.
    #[test]
    fn who_comes_while_another_syncs_waits_for_what_comes_of_it() {
        let (_place, folder, names) = with_pack();
        fs::remove_dir_all(&names).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &names, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let (told, outcomes) = channel();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (told, folder) = (told.clone(), folder.clone());
                scope.spawn(move || told.send(folder.settle(FileKind::Pack).is_ok()).unwrap());
            }
            assert!(outcomes.recv_timeout(Duration::from_millis(300)).is_err(), "one of them did not wait");
            drop(OpenOptions::new().write(true).open(&names).unwrap());
            assert_eq!([outcomes.recv().unwrap(), outcomes.recv().unwrap()], [false, false]);
        });
    }
}
