//! A repository in a local folder: temporary file, sync, rename, sync of the folder.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::RenameFlags;

use crate::error::{Error, Result};
use crate::folders;
use crate::repository::backend::{Backend, FileKind, Upload};
use crate::repository::id::Id;

/// Begins the names of files that are not published yet; restic does not look into their folder.
const UPLOAD_PREFIX: &str = "km1tmp-";
const UPLOAD_FOLDER: &str = "tmp";
/// Clients of file servers remember what is in a folder for a while; longer than they do unless told otherwise (`acdirmax` of NFS: 60 s).
const NETWORK_LAG: Duration = Duration::from_secs(65);
const SMALL_FOLDERS: [&str; 5] = ["keys", "snapshots", "index", "locks", UPLOAD_FOLDER];

/// A repository in a local folder.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    /// Folders in which a name appeared or went, which is not durable yet.
    unsettled: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Folder {
    /// A repository at this path; nothing is looked at yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), unsettled: Arc::default() }
    }

    /// Makes the folders of a new repository, readable by the owner only.
    ///
    /// # Errors
    /// When something is there already, or a folder cannot be made.
    pub fn create(root: &Path) -> Result<Self> {
        folders::refuse_occupied(root, "config", "there is a repository already")?;
        folders::make(root)?;
        for name in SMALL_FOLDERS {
            folders::make(&root.join(name))?;
        }
        for byte in 0..=u8::MAX {
            folders::make(&root.join("data").join(hex::encode([byte])))?;
        }
        for folder in [root.join("data"), root.to_owned()] {
            folders::sync(&folder)?;
        }
        Ok(Self::new(root))
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
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned());
    }

    fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        let folder = self.root.join(kind.folder());
        match kind {
            FileKind::Config => folder,
            FileKind::Pack => folder.join(id.hex().get(..2).unwrap_or_default()).join(id.hex()),
            FileKind::Key | FileKind::Snapshot | FileKind::Index | FileKind::Lock | FileKind::Pin | FileKind::Mark => folder.join(id.hex()),
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
            FileKind::Key | FileKind::Snapshot | FileKind::Index | FileKind::Lock | FileKind::Pin | FileKind::Mark => {
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

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>> {
        let path = self.path(kind, id);
        fs::read(&path).map_err(|error| Error::io("read", path, error))
    }

    fn read_at(&self, kind: FileKind, id: &Id, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let path = self.path(kind, id);
        File::open(&path).and_then(|file| file.read_exact_at(buffer, offset)).map_err(|error| Error::io("read", path, error))
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
        let waiting: Vec<PathBuf> = {
            let mut unsettled = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
            unsettled.extract_if(.., |path| path.starts_with(&top)).collect()
        };
        waiting.iter().try_for_each(|folder| folders::sync(folder))
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
    if kind == FileKind::Config {
        rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE).map_err(Into::into)
    } else {
        fs::rename(from, to)
    }
}

impl Drop for FolderUpload {
    fn drop(&mut self) {
        if !self.published {
            // Nothing depends on it: what stays is swept by a later backup.
            drop(fs::remove_file(&self.path));
        }
    }
}
