//! The local index: which pack has which blob, answered from sorted files in a disposable cache folder.
//!
//! An entry counts only while the index file that it came from is in the repository. Every block that is read is checked
//! against its checksum; whatever is in doubt is thrown away and read from the repository again. Where the folder cannot be
//! written, the same is kept in memory: the price is to read the whole index each time, and 48 bytes of memory for each blob.

mod build;
pub mod record;
pub mod run;
pub mod set;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::blob::BlobEntry;
use crate::repository::core::Core;
use crate::repository::id::{BlobKind, Id, PackId};
use crate::repository::index::build::{Batch, RUN_SUFFIX, Shelf, TEMPORARY_SUFFIX, merge};
use crate::repository::index::run::Run;
use crate::repository::pack::PublishedPack;
use crate::repository::{index_file, sealed_file};

/// What damage to the local index is called.
pub const INDEX_CACHE: &str = "index cache";
/// More runs than this are merged: each costs a read in every lookup.
const RUNS_MAX: usize = 8;
/// Records in memory while index files are read: about 8 MiB.
const BATCH_RECORDS: usize = 128 << 10;

/// The local index of one repository.
pub struct Index {
    core: Arc<Core>,
    folder: PathBuf,
    shelf: RwLock<Shelf>,
    /// Why the folder is not used, in words.
    folder_problem: Mutex<Option<String>>,
    runs: RwLock<Arc<Vec<Arc<Run>>>>,
    /// Held while runs are added, merged or thrown away.
    update: Mutex<()>,
    damaged: Mutex<HashMap<Id, String>>,
}

/// One place of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The pack.
    pub pack: PackId,
    /// Where in it.
    pub entry: BlobEntry,
    /// Number of the record, for sets of records: run and place in it.
    pub record: (usize, u64),
}

/// The runs at one moment: numbers of records stay what they are.
#[derive(Clone)]
pub struct View {
    runs: Arc<Vec<Arc<Run>>>,
}

impl View {
    /// Number of records in each run.
    #[must_use]
    pub fn sizes(&self) -> Vec<u64> {
        self.runs.iter().map(|run| run.records).collect()
    }

    /// All places of a blob.
    fn find(&self, id: &Id, kind: BlobKind) -> std::result::Result<Vec<Place>, String> {
        let mut places = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            run.find(id, kind, &mut |found| {
                places.push(Place { pack: found.pack, entry: found.record.entry, record: (number, found.ordinal) })
            })?;
        }
        Ok(places)
    }
}

impl Index {
    /// Opens the index in its cache folder, or in memory, and brings it up to date.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn open(core: Arc<Core>, folder: &Path) -> Result<Self> {
        let index = Self {
            core,
            folder: folder.to_owned(),
            shelf: RwLock::new(Shelf::Folder(folder.to_owned())),
            folder_problem: Mutex::default(),
            runs: RwLock::default(),
            update: Mutex::new(()),
            damaged: Mutex::default(),
        };
        index.refresh()?;
        Ok(index)
    }

    /// Why the cache folder is not used, if it is not.
    #[must_use]
    pub fn folder_problem(&self) -> Option<String> {
        self.folder_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn shelf(&self) -> Shelf {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Works on the runs; when the cache folder fails it, once more in memory. Losing a cache must not cost a backup or a restore.
    fn or_in_memory<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(error) if self.leaves_folder(&error) => work(),
            other => other,
        }
    }

    fn leaves_folder(&self, error: &Error) -> bool {
        let Error::Io { path, source, .. } = error else { return false };
        let mut shelf = self.shelf.write().unwrap_or_else(PoisonError::into_inner);
        let leaves = path.starts_with(&self.folder) && *shelf != Shelf::Memory;
        if leaves {
            *shelf = Shelf::Memory;
            let mut problem = self.folder_problem.lock().unwrap_or_else(PoisonError::into_inner);
            *problem = Some(format!("{error}: {source}"));
        }
        leaves
    }

    /// Takes in index files that appeared and forgets those that vanished.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn refresh(&self) -> Result<()> {
        self.or_in_memory(|| {
            let _update = self.hold()?;
            self.refresh_held()
        })
    }

    /// Goes on until nothing was lost on the way: merging may find a run damaged, which must then be read again.
    fn refresh_held(&self) -> Result<()> {
        while !self.refresh_from(self.load_runs()?)? {}
        Ok(())
    }

    /// Keeps those of the runs that are current and reads what they have not. Says whether all of it is there.
    fn refresh_from(&self, mut runs: Vec<Arc<Run>>) -> Result<bool> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let listed: HashSet<Id> = self.core.backend.list(FileKind::Index)?.into_iter().map(|(id, _)| id).collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.records));
        let (mut covered, mut kept) = (HashSet::new(), Vec::new());
        for run in runs {
            let current = run.indexes.iter().all(|id| listed.contains(id));
            if current && run.indexes.iter().any(|id| !covered.contains(id)) {
                covered.extend(run.indexes.iter().copied());
                kept.push(run);
            } else {
                discard(&run);
            }
        }
        let mut missing: Vec<Id> = listed.difference(&covered).copied().collect();
        missing.sort_unstable();
        self.read_index_files(&missing, &mut kept)?;
        self.install(kept)
    }

    /// Reads index files into runs. A damaged one is remembered and left out: its blobs are then unknown, and stored again when needed.
    fn read_index_files(&self, ids: &[Id], runs: &mut Vec<Arc<Run>>) -> Result<()> {
        let mut batch = Batch::default();
        for id in ids {
            let before = batch.len();
            match self.read_index_file(id, &mut batch) {
                Ok(()) => batch.complete(*id),
                Err(error) => {
                    batch.truncate(before);
                    self.damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(*id, error.to_string());
                }
            }
            if batch.len() >= BATCH_RECORDS {
                runs.push(Arc::new(batch.write(&self.shelf())?));
            }
        }
        if !batch.is_empty() {
            runs.push(Arc::new(batch.write(&self.shelf())?));
        }
        Ok(())
    }

    fn read_index_file(&self, id: &Id, batch: &mut Batch) -> Result<()> {
        let content = sealed_file::content(&*self.core.backend, &self.core.key, FileKind::Index, id)?;
        index_file::decode(content, &mut |pack, entry| batch.add(pack, entry)).map_err(|error| Error::damaged("index", id, error))
    }

    /// Takes in what an index file says that was just written.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub fn add(&self, index: Id, packs: &[PublishedPack]) -> Result<()> {
        self.or_in_memory(|| {
            let _update = self.hold()?;
            let mut batch = Batch::default();
            packs.iter().for_each(|pack| pack.blobs.iter().for_each(|entry| batch.add(pack.id, *entry)));
            batch.complete(index);
            let mut runs = self.view().runs.to_vec();
            runs.push(Arc::new(batch.write(&self.shelf())?));
            if self.install(runs)? { Ok(()) } else { self.refresh_held() }
        })
    }

    /// Makes these the runs, merged if there are too many. Half of them are merged at a time, the smallest, so that
    /// a record is rewritten a logarithmic number of times. Says whether all are still there.
    fn install(&self, mut runs: Vec<Arc<Run>>) -> Result<bool> {
        let mut complete = true;
        while runs.len() > RUNS_MAX {
            runs.sort_by_key(|run| std::cmp::Reverse(run.records));
            let small = runs.split_off(if runs.len() > 2 * RUNS_MAX { 0 } else { RUNS_MAX / 2 - 1 });
            let sources: Vec<&Run> = small.iter().map(|run| &**run).collect();
            match merge(&self.shelf(), &sources) {
                Ok(merged) => runs.push(Arc::new(merged)),
                // One of them is damaged: the next refresh reads the index files of all of them again.
                Err(Error::Damaged { .. }) => complete = false,
                Err(error) => return Err(error),
            }
            small.iter().for_each(|run| discard(run));
        }
        *self.runs.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(runs);
        Ok(complete)
    }

    /// All places of a blob.
    ///
    /// # Errors
    /// When the cache is damaged and cannot be rebuilt.
    pub fn find(&self, id: &Id, kind: BlobKind) -> Result<Vec<Place>> {
        let problem = match self.view().find(id, kind) {
            Ok(places) => return Ok(places),
            Err(problem) => problem,
        };
        self.rebuild()?;
        self.view().find(id, kind).map_err(|_| Error::damaged(INDEX_CACHE, self.folder.display(), problem))
    }

    /// All places of a blob, with numbers of records that belong to `view`.
    ///
    /// # Errors
    /// When the cache is damaged.
    pub fn find_in(&self, view: &View, id: &Id, kind: BlobKind) -> Result<Vec<Place>> {
        view.find(id, kind).map_err(|problem| Error::damaged(INDEX_CACHE, self.folder.display(), problem))
    }

    /// Throws everything away and reads the repository's index again.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn rebuild(&self) -> Result<()> {
        self.or_in_memory(|| {
            let _update = self.hold()?;
            self.load_runs()?.iter().for_each(|run| discard(run));
            if self.refresh_from(Vec::new())? { Ok(()) } else { self.refresh_held() }
        })
    }

    /// One run that stands for all, in which all places of a blob lie side by side.
    ///
    /// # Errors
    /// When the cache is damaged and cannot be rebuilt.
    pub fn whole(&self) -> Result<Arc<Run>> {
        match self.or_in_memory(|| self.merge_all()) {
            Err(Error::Damaged { kind: INDEX_CACHE, .. }) => {
                self.rebuild()?;
                self.or_in_memory(|| self.merge_all())
            }
            other => other,
        }
    }

    fn merge_all(&self) -> Result<Arc<Run>> {
        let _update = self.hold()?;
        let runs = self.view().runs;
        if let [run] = runs.as_slice() {
            return Ok(Arc::clone(run));
        }
        let sources: Vec<&Run> = runs.iter().map(|run| &**run).collect();
        let whole = Arc::new(merge(&self.shelf(), &sources)?);
        *self.runs.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(vec![Arc::clone(&whole)]);
        runs.iter().for_each(|run| discard(run));
        Ok(whole)
    }

    /// The runs as they are now.
    #[must_use]
    pub fn view(&self) -> View {
        View { runs: Arc::clone(&self.runs.read().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Whether what these index files say is known here.
    pub fn covers<'a>(&self, files: impl IntoIterator<Item = &'a Id>) -> bool {
        let view = self.view();
        let known: HashSet<&Id> = view.runs.iter().flat_map(|run| &run.indexes).collect();
        files.into_iter().all(|file| known.contains(file))
    }

    /// Index files that could not be read, and why.
    #[must_use]
    pub fn damaged(&self) -> Vec<(Id, String)> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = damaged.iter().map(|(id, problem)| (*id, problem.clone())).collect();
        list.sort_unstable();
        list
    }

    /// Opens every run in the folder; what cannot be opened, or was never finished, is removed.
    fn load_runs(&self) -> Result<Vec<Arc<Run>>> {
        if self.shelf() == Shelf::Memory {
            return Ok(self.view().runs.to_vec());
        }
        let failed = |error| Error::io("look into", &self.folder, error);
        let mut runs = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(RUN_SUFFIX) {
                match Run::open(&path) {
                    Ok(run) => runs.push(Arc::new(run)),
                    Err(_) => drop(fs::remove_file(&path)),
                }
            } else if name.ends_with(TEMPORARY_SUFFIX) {
                drop(fs::remove_file(&path));
            }
        }
        Ok(runs)
    }

    /// Only one process and thread at a time changes the folder.
    fn hold(&self) -> Result<Held<'_>> {
        let guard = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shelf() == Shelf::Memory {
            return Ok(Held { _thread: guard, _process: None });
        }
        let failed = |error| Error::io("create folder", &self.folder, error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        let path = self.folder.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| Error::io("lock", &path, error))?;
        Ok(Held { _thread: guard, _process: Some(file) })
    }
}

struct Held<'a> {
    _thread: MutexGuard<'a, ()>,
    _process: Option<File>,
}

/// Another process may still read it: its file stays open there.
fn discard(run: &Run) {
    if let Some(path) = &run.path {
        drop(fs::remove_file(path));
    }
}

#[cfg(test)]
mod tests;
