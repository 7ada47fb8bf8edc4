//! The restic format: our own writer and reader of packs, trees, index and snapshots.
//!
//! In reading order: [`layout`] and [`tree`] (what a backup looks like), [`blob`] and [`pack`] (how bytes are stored),
//! [`index`] (how they are found again), [`write`] and [`read`] (a backup), [`lock`], [`catalog`] (all backups), [`verify`].

pub mod backend;
pub mod blob;
pub mod cache_file;
pub mod catalog;
pub mod core;
pub mod crypto;
pub mod damaged_packs;
pub mod difference;
pub mod disk_table;
pub mod folder;
pub mod id;
pub mod index;
pub mod index_file;
pub mod layout;
pub mod lock;
pub mod mark;
pub mod pack;
pub mod place;
pub mod prune;
pub mod read;
mod read_only;
pub mod removal;
pub mod rustic;
pub mod sealed_file;
pub mod snapshot;
pub mod tree;
pub mod verify;
pub mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use jiff::Timestamp;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::seam::{self, Monitor, PruneRequest, Pruned, Store, Verification};
use keepmark_model::{BackupId, ChunkSize, DiskName, Extents, StoreId, VmId};

use crate::error::{Error, Result};
use crate::folders::is_unwritable;
use crate::repository::backend::Backend;
use crate::repository::core::{Core, Scratch};
use crate::repository::folder::Folder;
use crate::repository::id::{BlobKind, Id, TreeId};
use crate::repository::index::Index;
use crate::repository::lock::{Environment, Lease, Purpose};
use crate::repository::place::KnownPlace;
use crate::repository::read_only::ReadOnly;
use crate::repository::tree::Node;

/// How to open a repository, besides its place and password.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder for local caches of all repositories; made if it is missing. Its content can be deleted at any time.
    pub cache: PathBuf,
    /// Who we are.
    pub environment: Environment,
    /// Threads that hash and compress, or decrypt and decompress.
    pub workers: usize,
}

/// An open repository.
pub struct Repository {
    core: Arc<Core>,
    index: Arc<Index>,
    place: KnownPlace,
    chunk_size: ChunkSize,
    cache: PathBuf,
    environment: Environment,
    workers: usize,
    /// The leases that running work shares.
    leases: Mutex<Leases>,
}

/// The leases of those who write and of those who only read.
#[derive(Default)]
struct Leases {
    writing: Weak<Lease>,
    reading: Weak<Lease>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository({} at {})", self.place.id, self.core.backend.location())
    }
}

impl Repository {
    /// Makes a new repository in a folder that is empty or not there.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] when something is there.
    pub fn init(path: &Path, password: &str, chunk_size: ChunkSize, options: Options) -> Result<Self> {
        let (folder, undo) = Folder::create(path)?;
        let backend: Arc<dyn Backend> = Arc::new(folder);
        let Environment { hostname, username, now, .. } = options.environment.clone();
        let opened = rustic::init(&backend, password, chunk_size, &rustic::Maker { hostname, username, time: now() })?;
        undo.forget();
        let mut repository = Self::from_opened(backend, opened, options)?;
        repository.mark_place();
        Ok(repository)
    }

    /// Opens the repository in a folder.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::NotAStore`], [`Error::WrongPassword`].
    pub fn open(path: &Path, password: &str, options: Options) -> Result<Self> {
        let folder = Folder::new(path);
        folder.check()?;
        Self::open_at(Arc::new(folder), password, options)
    }

    /// Opens the repository that a backend has.
    ///
    /// # Errors
    /// [`Error::WrongPassword`], or whatever the backend says.
    pub fn open_at(backend: Arc<dyn Backend>, password: &str, options: Options) -> Result<Self> {
        let opened = rustic::open(&backend, password)?;
        Self::from_opened(backend, opened, options)
    }

    fn from_opened(backend: Arc<dyn Backend>, opened: rustic::Opened, options: Options) -> Result<Self> {
        let Options { cache, environment, workers } = options;
        let backend = match opened.version {
            1 => Arc::new(ReadOnly(backend)),
            2 => backend,
            version => return Err(Error::unusable(&*backend, format!("it has version {version}: a newer keepmark is needed"))),
        };
        let core = Arc::new(Core { backend, key: opened.key });
        let place = place::look(&core, StoreId::new(opened.id))?;
        let cache = cache.join(place.id.as_str());
        let index = Arc::new(Index::open(Arc::clone(&core), &cache.join("index"))?);
        let chunk_size = opened.chunk_size.unwrap_or(ChunkSize::DEFAULT);
        Ok(Self { core, index, place, chunk_size, cache, environment, workers: workers.max(1), leases: Mutex::default() })
    }

    /// Whether it lies elsewhere than where it was used before: then it is a copy whose original may be used, too.
    #[must_use]
    pub fn is_copied(&self) -> bool {
        self.place.is_copied
    }

    /// Without the mark a copy is not told from the original, and that is all.
    fn mark_place(&mut self) {
        self.place.is_marked = place::mark(&self.core, &self.environment, &self.place.id).is_ok();
    }

    /// Makes a copy a store of its own, by an id of its own.
    ///
    /// # Errors
    /// [`Error::NoCopy`], or when it cannot be written.
    pub fn adopt(self) -> Result<StoreId> {
        if !self.place.is_copied {
            return Err(Error::NoCopy { location: self.core.backend.location() });
        }
        let id = StoreId::new(hex::encode(rand::random::<[u8; 32]>()));
        let _lease = self.lease(false)?;
        place::mark(&self.core, &self.environment, &id).map(|()| id)
    }

    /// Why the local cache is not used, in words: then everything takes longer and more memory, and that is all.
    #[must_use]
    pub fn cache_problem(&self) -> Option<String> {
        self.index.folder_problem()
    }

    /// A lease for those who only read, or none where none can be had: getting data back must not depend on being able to write,
    /// nor on what became of others' locks. The price is that a prune may take away what is being read, which is then an error.
    fn reading_lease(&self) -> Result<Option<Arc<Lease>>> {
        match self.lease(false) {
            Ok(lease) => Ok(Some(lease)),
            Err(Error::LockUnreadable { .. } | Error::OldVersion { .. }) => Ok(None),
            Err(Error::Io { source, .. }) if is_unwritable(source.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A lease that keeps others from pruning; work that goes on at the same time shares one. Who reads beside a backup shares the backup's:
    /// another one would keep a prune waiting that the backup knows of.
    fn lease(&self, writing: bool) -> Result<Arc<Lease>> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = leases.writing.upgrade().or_else(|| if writing { None } else { leases.reading.upgrade() });
        if let Some(lease) = shared {
            return Ok(lease);
        }
        let purpose = if writing { Purpose::Write } else { Purpose::Read };
        let lease = Arc::new(Lease::take(&self.core, &self.environment, purpose)?);
        // Nobody in this process writes before there is a lease, and nobody else does if we are alone.
        if writing && lease.alone {
            self.core.backend.sweep(None)?;
        }
        let slot = if writing { &mut leases.writing } else { &mut leases.reading };
        *slot = Arc::downgrade(&lease);
        // Between opening and now someone may have pruned, or written. After the lease was taken and marks were read: what the index has
        // now and no mark names stays.
        self.index.refresh()?;
        Ok(lease)
    }

    /// The nodes of a tree, from whichever place has it undamaged.
    fn load_tree(&self, id: &TreeId, scratch: &mut Scratch) -> Result<Vec<Node>> {
        self.load_blob(id, BlobKind::Tree, scratch)?;
        tree::decode(id, &scratch.plain)
    }

    /// Reads a blob into `scratch.plain`, from whichever place has it undamaged. It may have been moved after the index was read.
    fn load_blob(&self, id: &Id, kind: BlobKind, scratch: &mut Scratch) -> Result<()> {
        self.load_known_blob(id, kind, scratch).or_else(|failure| {
            let is_moved = self.index.refresh().is_ok() && self.load_known_blob(id, kind, scratch).is_ok();
            if is_moved { Ok(()) } else { Err(failure) }
        })
    }

    fn load_known_blob(&self, id: &Id, kind: BlobKind, scratch: &mut Scratch) -> Result<()> {
        let mut failure = Error::Missing { kind: noun(kind), id: id.hex() };
        for place in self.index.find(id, kind)? {
            match self.core.read_blob(&place.pack, &place.entry, scratch) {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Writes an index file that says these packs are there, and takes it into the local index.
    ///
    /// Backups do this by themselves; it is public for tools that rebuild or synthesise an index.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_index(&self, packs: &[pack::PublishedPack]) -> Result<Id> {
        self.write_index_file(&index_file::IndexFile::of(packs), &|| Ok(()))
    }

    /// The same of a whole index file, if a condition holds.
    fn write_index_file(&self, file: &index_file::IndexFile, condition: &dyn Fn() -> Result<()>) -> Result<Id> {
        let id = sealed_file::write_if(&*self.core.backend, &self.core.key, backend::FileKind::Index, file, condition)?;
        self.index.add(id, &file.packs().collect::<Vec<_>>())?;
        Ok(id)
    }

    fn begin_backup(&self, vm: &VmId, time: Timestamp) -> Result<write::BackupWriter<'_>> {
        let lease = self.lease(true)?;
        if !self.place.is_marked {
            // Programs that wrote here before did not.
            drop(place::mark(&self.core, &self.environment, &self.place.id));
        }
        write::BackupWriter::new(self, lease, vm, time)
    }
}

fn noun(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::Data => "chunk",
        BlobKind::Tree => "tree",
    }
}

impl Store for Repository {
    fn id(&self) -> StoreId {
        self.place.id.clone()
    }

    fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    fn backups(&self, vm: Option<&VmId>) -> seam::Result<(Vec<StoredBackup>, Vec<String>)> {
        Ok(self.list(vm)?)
    }

    fn begin(&self, vm: &VmId, time: Timestamp) -> seam::Result<Box<dyn seam::BackupWriter + '_>> {
        Ok(Box::new(self.begin_backup(vm, time)?))
    }

    fn open(&self, id: &BackupId) -> seam::Result<Box<dyn seam::BackupReader + '_>> {
        Ok(Box::new(self.open_backup(id)?))
    }

    fn delete(&self, ids: &[BackupId], monitor: &dyn Monitor) -> seam::Result<()> {
        Ok(self.delete_backups(ids, monitor)?)
    }

    fn pin(&self, id: &BackupId, pinned: bool) -> seam::Result<()> {
        Ok(self.pin_backup(id, pinned)?)
    }

    fn prune(&self, request: &PruneRequest, monitor: &dyn Monitor) -> seam::Result<Pruned> {
        Ok(self.prune_packs(request, monitor)?)
    }

    fn difference(&self, one: &BackupId, other: &BackupId, disk: &DiskName) -> seam::Result<Option<Extents>> {
        Ok(self.difference_of(one, other, disk)?)
    }

    fn verify(&self, ids: &[BackupId], read_data: bool, progress: &dyn Fn(u64, u64)) -> seam::Result<Verification> {
        Ok(self.verify_backups(ids, read_data, progress)?)
    }
}
