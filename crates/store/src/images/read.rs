//! Reading a backup: each disk's chain is opened when it is asked for, and read over NBD by several threads.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use keepmark_model::images::ImageTools;
use keepmark_model::manifest::{Manifest, ManifestDisk};
use keepmark_model::seam::{self, Piece};
use keepmark_model::{BackupId, ChunkIndex, DiskName, Extents, Size};
use keepmark_nbd::{BufferPool, Request};

use crate::error::{Error, Result};
use crate::images::lock::VmLock;
use crate::images::medium::{Medium, Reader, pieces};
use crate::images::shelf::Shelf;
use crate::images::{durable, place};

const THREADS: usize = 3;
const IN_FLIGHT: usize = 8;
const FILE_BYTES_MAX: u64 = 1 << 30;

/// A published backup, open for reading.
pub struct BackupReader {
    id: BackupId,
    manifest: Manifest,
    shelf: Shelf,
    tools: Arc<dyn ImageTools>,
    disks: Mutex<HashMap<DiskName, Arc<OpenDisk>>>,
}

/// One of its disks.
struct OpenDisk {
    facts: ManifestDisk,
    // Before the image, so that all connections are closed when it is.
    idle: Mutex<Vec<Reader>>,
    medium: Medium,
}

impl BackupReader {
    /// Opens a backup; its images are opened when they are needed.
    pub fn open(tools: &Arc<dyn ImageTools>, shelf: Shelf, id: &BackupId) -> Result<Self> {
        let manifest = shelf.manifest(id)?;
        Ok(Self { id: id.clone(), manifest, shelf, tools: Arc::clone(tools), disks: Mutex::default() })
    }

    fn disk(&self, name: &DiskName) -> Result<Arc<OpenDisk>> {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = disks.get(name) {
            return Ok(Arc::clone(open));
        }
        let facts = self.manifest.disk(name);
        let facts = facts.ok_or_else(|| Error::NoSuchPart { backup: self.id.short().to_owned(), what: "disk", name: name.to_string() })?;
        let open = Arc::new(self.open_disk(facts)?);
        disks.insert(name.clone(), Arc::clone(&open));
        Ok(open)
    }

    // While it is being opened nobody may exchange an image of the chain; once it is open they stay as they are.
    fn open_disk(&self, facts: &ManifestDisk) -> Result<OpenDisk> {
        let _lock = VmLock::for_reading(self.shelf.folder())?;
        let chain = self.shelf.chain(&self.id, &facts.name)?;
        let top = chain.first().map_or(0, |layer| layer.size);
        if top < facts.size.0 {
            let problem = format!("the image of disk {} has {top} bytes and the disk {}", facts.name, facts.size);
            return Err(Error::damaged("backup", &self.id, problem));
        }
        Ok(OpenDisk { facts: facts.clone(), idle: Mutex::default(), medium: Medium::read(&*self.tools, &chain)? })
    }

    fn read_file(&self, name: &str) -> Result<Vec<u8>> {
        let missing = || Error::NoSuchPart { backup: self.id.short().to_owned(), what: "file", name: name.to_owned() };
        let path = place::saved_path(&self.shelf.folder_of(&self.id), name).map_err(|_| missing())?;
        match durable::read(&path, FILE_BYTES_MAX) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Err(missing()),
            other => other,
        }
    }

    fn file_names(&self) -> Vec<String> {
        let entries: Vec<PathBuf> = place::entries(&self.shelf.folder_of(&self.id)).unwrap_or_default();
        let names = entries.iter().filter(|path| path.is_file() && !path.is_symlink()).filter_map(|path| path.file_name()?.to_str());
        let mut names: Vec<String> =
            names.filter(|name| *name == place::MANIFEST || place::is_free_name(name)).map(str::to_owned).collect();
        names.sort();
        names
    }
}

impl OpenDisk {
    fn with<T>(&self, work: impl FnOnce(&mut Reader) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut reader = idle.map_or_else(|| self.medium.client(), Ok)?;
        let result = work(&mut reader)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        Ok(result)
    }

    fn size(&self) -> Size {
        self.facts.size
    }

    /// The chunks within some ranges that are not zero.
    fn data(&self, within: &Extents) -> Result<Extents> {
        let within = within.clip(self.size());
        self.with(|reader| Ok(reader.data(&within)?.round_out(self.facts.chunk_size, self.size())))
    }

    fn is_same(&self, chunk: ChunkIndex, bytes: &[u8]) -> Result<bool> {
        let extent = self.facts.chunk_size.extent(chunk, self.size());
        // A chunk that is longer now was followed by nothing then.
        let inside = usize::try_from(extent.len()).unwrap_or(usize::MAX).min(bytes.len());
        if bytes[inside..].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        let mut then = vec![0; inside];
        self.with(|reader| reader.fill(extent.start, &mut then))?;
        Ok(then == bytes[..inside])
    }

    fn read(&self, within: Option<&Extents>, sink: &(dyn Fn(Piece<'_>) -> seam::Result<()> + Sync)) -> Result<()> {
        let whole = Extents::whole(self.size());
        let within = within.map_or(whole.clone(), |within| within.round_out(self.facts.chunk_size, self.size()));
        let data = self.data(&within)?.intersection(&within);
        for extent in within.difference(&data).iter() {
            sink(Piece::Zero(extent))?;
        }
        let pieces = Mutex::new(data.iter().flat_map(pieces).collect::<Vec<_>>().into_iter());
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    if let Err(error) = self.with(|reader| read_pieces(reader, &pieces, &failure, sink)) {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Reads pieces as long as there are any and nobody has failed.
fn read_pieces(
    reader: &mut Reader,
    pieces: &Mutex<std::vec::IntoIter<Request>>,
    failure: &Mutex<Option<Error>>,
    sink: &(dyn Fn(Piece<'_>) -> seam::Result<()> + Sync),
) -> Result<()> {
    let goes_on = || failure.lock().unwrap_or_else(PoisonError::into_inner).is_none();
    let mut next = std::iter::from_fn(|| if goes_on() { pieces.lock().unwrap_or_else(PoisonError::into_inner).next() } else { None });
    let pool = BufferPool::new(IN_FLIGHT * 2);
    reader.read_each(&mut next, IN_FLIGHT, &pool, &mut |request, bytes| Ok(sink(Piece::Data { offset: request.offset, bytes })?))
}

impl seam::BackupReader for BackupReader {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn files(&self) -> Vec<String> {
        self.file_names()
    }

    fn file(&self, name: &str) -> seam::Result<Vec<u8>> {
        Ok(self.read_file(name)?)
    }

    fn data(&self, disk: &DiskName, within: &Extents) -> seam::Result<Extents> {
        Ok(self.disk(disk)?.data(within)?)
    }

    fn is_same(&self, disk: &DiskName, chunk: ChunkIndex, bytes: &[u8]) -> seam::Result<bool> {
        Ok(self.disk(disk)?.is_same(chunk, bytes)?)
    }

    fn read_disk(
        &self,
        disk: &DiskName,
        within: Option<&Extents>,
        sink: &(dyn Fn(Piece<'_>) -> seam::Result<()> + Sync),
    ) -> seam::Result<()> {
        Ok(self.disk(disk)?.read(within, sink)?)
    }
}
