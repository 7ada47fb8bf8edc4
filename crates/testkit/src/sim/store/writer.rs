//! Writing a backup into a simulated store: durable after a sync, there by its manifest.

use keepmark_model::manifest::{Manifest, StoredBackup};
use keepmark_model::seam::{BackupWriter, DiskContent, DiskStored, DiskWriter, Recycler, Result, SavedFile};
use keepmark_model::{BackupId, ChunkIndex, Size};

use super::state::{Inherited, Published, StoreState, StoredDisk};
use super::{SimStore, decode, failed};
use crate::sim::image::ATOM;
use crate::sim::world::{Break, lock};

pub(super) struct Writer<'a> {
    pub(super) store: &'a SimStore,
    pub(super) disks: Vec<StoredDisk>,
    // Chunks that were there before.
    pub(super) known: usize,
}

impl BackupWriter for Writer<'_> {
    fn disk(&mut self, content: &DiskContent) -> Result<Box<dyn DiskWriter + '_>> {
        let (chunks, inherited) = {
            let mut world = lock(&self.store.world);
            world.effect()?;
            let base = base(&world.stores[self.store.place], content)?;
            let base = base.as_ref();
            let held = |base: &StoredDisk| base.chunks.iter().map(Option::is_some).collect();
            (declared(base, content)?, base.map(|base| Inherited { excused: base.excused, held: held(base) }))
        };
        Ok(Box::new(Disk { writer: self, content: content.clone(), chunks, inherited }))
    }

    fn publish(self: Box<Self>, manifest: &Manifest, _: &[SavedFile]) -> Result<BackupId> {
        let Self { store, disks, known } = *self;
        let mut world = lock(&store.world);
        world.effect()?;
        if world.breaks(Break::BaseGoesFirst) {
            world.remove_base(store.place, manifest.checkpoint.as_ref());
        }
        let (early, trusting) = (world.breaks(Break::PublishBeforeSync), world.breaks(Break::TrustUnsynced));
        let id = BackupId::new(format!("{:08x}", world.fresh()));
        let mut published = Some(Published { backup: StoredBackup::new(id.clone(), manifest.clone()), disks });
        let used: Vec<usize> =
            published.iter().flat_map(|published| &published.disks).flat_map(|disk| disk.chunks.iter().flatten().copied()).collect();
        published.iter_mut().for_each(Published::forget_what_is_below);
        if early && let Some(published) = published.take() {
            world.publish(store.place, published);
        }
        world.effect()?;
        let state = &mut world.stores[store.place];
        if used.iter().any(|place| state.pool[*place].lost) {
            return Err(failed("the store lost chunks of this backup"));
        }
        used.iter().filter(|place| !trusting || **place >= known).for_each(|place| state.pool[*place].durable = true);
        world.effect()?;
        if let Some(published) = published {
            if !published.backup.builds_on.iter().all(|id| world.stores[store.place].find(id).is_some()) {
                return Err(failed("what it builds on is gone"));
            }
            world.publish(store.place, published);
        }
        // A refusal here is an answer that got lost: the backup exists, and keepmark does not know.
        world.effect()?;
        Ok(id)
    }
}

fn base(state: &StoreState, content: &DiskContent) -> Result<Option<StoredDisk>> {
    let Some(id) = &content.base else { return Ok(None) };
    let published = state.find(id).ok_or_else(|| failed(format!("there is no base {id}")))?;
    let disk = published.disks.iter().find(|disk| disk.name == content.name).ok_or_else(|| failed("the base has no such disk"))?;
    state.whole(disk).map(Some).ok_or_else(|| failed("what the base builds on is gone"))
}

/// Where each chunk of a disk comes from: to be put, zero, or the base's.
fn declared(base: Option<&StoredDisk>, content: &DiskContent) -> Result<Vec<Slot>> {
    let unit = content.chunk_size.bytes();
    for extent in content.put.iter().chain(content.zero.iter()) {
        if extent.start % unit != 0 || extent.end % unit != 0 && extent.end != content.size.0 {
            return Err(failed("a range is not made of chunks"));
        }
    }
    let slot = |number: u64| -> Result<Slot> {
        let extent = content.chunk_size.extent(ChunkIndex(number), content.size);
        if content.put.contains(extent.start) {
            return Ok(Slot::Awaited);
        }
        if content.zero.contains(extent.start) {
            return Ok(Slot::Done(None));
        }
        let base = base.ok_or_else(|| failed("a chunk is neither put, zero nor in the base"))?;
        let then = content.chunk_size.extent(ChunkIndex(number), Size(base.atoms as u64 * ATOM));
        let place = usize::try_from(number).unwrap_or(usize::MAX);
        match base.chunks.get(place) {
            Some(chunk) if then == extent && base.unit as u64 * ATOM == unit => Ok(Slot::Below(*chunk)),
            _ => Err(failed("the base has no such chunk")),
        }
    };
    (0..content.chunk_size.count(content.size)).map(slot).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Awaited,
    Done(Option<usize>),
    Below(Option<usize>),
}

struct Disk<'a, 'b> {
    writer: &'a mut Writer<'b>,
    content: DiskContent,
    chunks: Vec<Slot>,
    inherited: Option<Inherited>,
}

impl DiskWriter for Disk<'_, '_> {
    fn put(&mut self, chunk: ChunkIndex, data: Vec<u8>, recycler: &Recycler) -> Result<()> {
        let atoms = decode(&data)?;
        recycler(data);
        let mut world = lock(&self.writer.store.world);
        world.effect()?;
        let place = usize::try_from(chunk.0).unwrap_or(usize::MAX);
        let expected = self.content.chunk_size.extent(chunk, self.content.size).len();
        match self.chunks.get_mut(place) {
            Some(slot) if *slot == Slot::Awaited && atoms.len() as u64 * ATOM == expected => {
                let state = &mut world.stores[self.writer.store.place];
                let is_kept = state.keeps_zeros || atoms.iter().any(|value| *value != 0);
                *slot = Slot::Done(is_kept.then(|| state.intern(&atoms)));
                Ok(())
            }
            _ => Err(failed("a chunk that was not awaited")),
        }
    }

    fn finish(self: Box<Self>) -> Result<DiskStored> {
        let Self { writer, content, chunks, inherited } = *self;
        let chained = {
            let mut world = lock(&writer.store.world);
            world.effect()?;
            world.stores[writer.store.place].chained
        };
        let below = chunks.iter().map(|slot| chained && matches!(slot, Slot::Below(_))).collect();
        let done = |slot: &Slot| match slot {
            Slot::Done(chunk) | Slot::Below(chunk) => Ok(*chunk),
            Slot::Awaited => Err(failed("a chunk is missing")),
        };
        let chunks: Vec<Option<usize>> = chunks.iter().map(done).collect::<Result<_>>()?;
        let atoms = usize::try_from(content.size.0 / ATOM).unwrap_or_default();
        let unit = usize::try_from(content.chunk_size.bytes() / ATOM).unwrap_or(1);
        let parent = content.base.filter(|_| chained);
        let (truth, excused) = (Vec::new(), 0);
        writer.disks.push(StoredDisk { name: content.name, atoms, unit, chunks, parent, below, truth, excused, inherited });
        Ok(DiskStored::default())
    }
}
