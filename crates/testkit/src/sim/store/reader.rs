//! Reading a backup of a simulated store.

use keepmark_model::manifest::Manifest;
use keepmark_model::seam::{BackupReader, Piece, Result};
use keepmark_model::{ChunkIndex, DiskName, Extent, Extents};

use super::state::{Published, StoredDisk};
use super::{SimStore, decode, encode, failed};
use crate::sim::image::ATOM;
use crate::sim::world::lock;

pub(super) struct Reader<'a> {
    pub(super) store: &'a SimStore,
    pub(super) published: Published,
}

impl Reader<'_> {
    fn disk(&self, name: &DiskName) -> Result<&StoredDisk> {
        self.published.disks.iter().find(|disk| disk.name == *name).ok_or_else(|| failed(format!("the backup has no disk {name}")))
    }
}

impl BackupReader for Reader<'_> {
    fn manifest(&self) -> &Manifest {
        &self.published.backup.manifest
    }

    fn files(&self) -> Vec<String> {
        Vec::new()
    }

    fn file(&self, name: &str) -> Result<Vec<u8>> {
        Err(failed(format!("the backup has no file {name}")))
    }

    fn data(&self, disk: &DiskName, within: &Extents) -> Result<Extents> {
        lock(&self.store.world).effect()?;
        let disk = self.disk(disk)?;
        let unit = disk.unit as u64 * ATOM;
        let holding = disk.chunks.iter().enumerate().filter(|(_, chunk)| chunk.is_some());
        let size = disk.atoms as u64 * ATOM;
        let all: Extents = holding.map(|(place, _)| Extent::new(place as u64 * unit, ((place as u64 + 1) * unit).min(size))).collect();
        Ok(all.intersection(within))
    }

    fn is_same(&self, disk: &DiskName, chunk: ChunkIndex, bytes: &[u8]) -> Result<bool> {
        let disk = self.disk(disk)?;
        let world = lock(&self.store.world);
        let place = usize::try_from(chunk.0).unwrap_or(usize::MAX);
        let stored = disk.chunks.get(place).ok_or_else(|| failed("the backup has no such chunk"))?;
        let known = world.stores[self.store.place].chunk(*stored).ok_or_else(|| failed("the chunk is lost"))?;
        let length = disk.unit.min(disk.atoms - place * disk.unit);
        let atoms = decode(bytes)?;
        Ok(atoms.len() == length && atoms.iter().enumerate().all(|(place, value)| known.get(place).copied().unwrap_or(0) == *value))
    }

    fn read_disk(&self, disk: &DiskName, _: Option<&Extents>, sink: &(dyn Fn(Piece<'_>) -> Result<()> + Sync)) -> Result<()> {
        let content =
            lock(&self.store.world).stores[self.store.place].content(self.disk(disk)?).ok_or_else(|| failed("a chunk is lost"))?;
        sink(Piece::Data { offset: 0, bytes: &encode(content.iter().copied()) })
    }
}
