//! A simulated store: chunks that are durable only after a sync, backups that exist by their manifest, and the truth beside each.

mod atoms;
mod reader;
mod state;
mod truth;
mod writer;

use std::sync::Arc;

use jiff::Timestamp;
use keepmark_model::manifest::{StoredBackup, in_order};
use keepmark_model::seam::{BackupReader, BackupWriter, Monitor, PruneRequest, Pruned, Result, Store, Verification};
use keepmark_model::{BackupId, ChunkSize, DiskName, Extents, Failure, FailureClass, StoreId, VmId};

pub use atoms::{decode, encode};
use reader::Reader;
pub use state::{Published, StoreState, StoredDisk};
use writer::Writer;

use super::world::{Shared, lock};

fn failed(why: impl Into<String>) -> Failure {
    Failure::new(FailureClass::Failed, why.into())
}

/// The store's side of the seam.
#[derive(Debug)]
pub struct SimStore {
    world: Shared,
    place: usize,
    id: StoreId,
    chunk: ChunkSize,
}

impl SimStore {
    /// One of the world's stores.
    #[must_use]
    pub fn new(world: &Shared, place: usize) -> Self {
        let (id, chunk) = {
            let state = &lock(world).stores[place];
            (state.id.clone(), state.chunk)
        };
        Self { world: Arc::clone(world), place, id, chunk }
    }
}

impl Store for SimStore {
    fn id(&self) -> StoreId {
        self.id.clone()
    }

    fn chunk_size(&self) -> ChunkSize {
        self.chunk
    }

    fn backups(&self, vm: Option<&VmId>) -> Result<(Vec<StoredBackup>, Vec<String>)> {
        let mut world = lock(&self.world);
        world.effect()?;
        let listed = world.stores[self.place].backups.iter().map(|published| &published.backup);
        let listed: Vec<StoredBackup> = listed.filter(|backup| vm.is_none_or(|vm| backup.manifest.vm_id() == *vm)).cloned().collect();
        Ok((in_order(listed), Vec::new()))
    }

    fn begin(&self, _: &VmId, _: Timestamp) -> Result<Box<dyn BackupWriter + '_>> {
        lock(&self.world).effect()?;
        let known = lock(&self.world).stores[self.place].pool.len();
        Ok(Box::new(Writer { store: self, disks: Vec::new(), known }))
    }

    fn open(&self, id: &BackupId) -> Result<Box<dyn BackupReader + '_>> {
        let mut world = lock(&self.world);
        world.effect()?;
        let state = &world.stores[self.place];
        let found = state.find(id).ok_or_else(|| failed(format!("there is no backup {id}")))?;
        let disks = found.disks.iter().map(|disk| state.whole(disk)).collect::<Option<Vec<StoredDisk>>>();
        let disks = disks.ok_or_else(|| failed("a backup below it is gone"))?;
        Ok(Box::new(Reader { store: self, published: Published { backup: found.backup.clone(), disks } }))
    }

    fn delete(&self, ids: &[BackupId], _monitor: &dyn Monitor) -> Result<()> {
        let mut world = lock(&self.world);
        let known = |id: &BackupId| world.stores[self.place].find(id).is_some_and(|found| !found.backup.pinned);
        if let Some(id) = ids.iter().find(|id| !known(id)) {
            return Err(failed(format!("backup {id} is not there, or pinned")));
        }
        for id in ids {
            world.effect()?;
            let state = &mut world.stores[self.place];
            if let Some(place) = state.backups.iter().position(|published| published.backup.id == *id) {
                state.remove(place);
            }
        }
        Ok(())
    }

    fn pin(&self, id: &BackupId, pinned: bool) -> Result<()> {
        let mut world = lock(&self.world);
        world.effect()?;
        let mut backups = world.stores[self.place].backups.iter_mut();
        let found = backups.find(|published| published.backup.id == *id).ok_or_else(|| failed(format!("there is no backup {id}")))?;
        found.backup.pinned = pinned;
        Ok(())
    }

    fn difference(&self, one: &BackupId, other: &BackupId, disk: &DiskName) -> Result<Option<Extents>> {
        let mut world = lock(&self.world);
        world.effect()?;
        let state = &world.stores[self.place];
        let stored = |id: &BackupId| state.find(id)?.disks.iter().find(|stored| stored.name == *disk);
        let (one, other) = stored(one).zip(stored(other)).ok_or_else(|| failed("a backup is gone, or has no such disk"))?;
        Ok(state.difference(one, other))
    }

    fn prune(&self, _request: &PruneRequest, _monitor: &dyn Monitor) -> Result<Pruned> {
        Ok(Pruned::default())
    }

    fn verify(&self, _: &[BackupId], _: bool, _: &dyn Fn(u64, u64)) -> Result<Verification> {
        Ok(Verification::default())
    }
}
