//! A simulated store: chunks that are durable only after a sync, backups that exist by their manifest, and the truth beside each.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use keepmark_model::manifest::{Kind, Manifest, ManifestDisk, StoredBackup};
use keepmark_model::seam::{
    BackupReader, BackupWriter, DiskContent, DiskStored, DiskWriter, Monitor, Piece, PruneRequest, Pruned, Recycler, Result, SavedFile,
    Store, Verification,
};
use keepmark_model::{
    BackupId, CheckpointName, ChunkIndex, ChunkSize, DiskName, Extent, Extents, Failure, FailureClass, Size, StoreId, VmId,
};

use super::image::{ATOM, Mask, mask};
use super::machine::FrozenCopy;
use super::world::{Break, Shared, World, lock};

/// A chunk in the pool.
#[derive(Debug, Clone)]
struct Chunk {
    atoms: Arc<[u32]>,
    durable: bool,
    lost: bool,
}

/// A disk of a backup: its chunks in the pool, none for zeros and for what a backup below it holds.
#[derive(Debug, Clone)]
pub struct StoredDisk {
    /// Which disk.
    pub name: DiskName,
    atoms: usize,
    unit: usize,
    chunks: Vec<Option<usize>>,
    // In a store of chains: the backup that holds the chunks which are below.
    parent: Option<BackupId>,
    below: Vec<bool>,
    truth: Vec<u32>,
    excused: Mask,
    inherited: Option<Inherited>,
}

/// What a disk took over from its base when it was begun; the base may be deleted before the disk is published.
#[derive(Debug, Clone)]
struct Inherited {
    excused: Mask,
    // For each chunk, whether it held data.
    held: Vec<bool>,
}

impl StoredDisk {
    /// Whether it restores to the truth, and no silent edit excuses anything.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.excused == 0
    }

    /// Takes over what a lower one holds for it, and what is below that.
    fn take_over(&mut self, lower: &Self) {
        let held = lower.chunks.iter().zip(&lower.below);
        for ((chunk, below), (held, is_lower)) in self.chunks.iter_mut().zip(&mut self.below).zip(held) {
            if *below && !is_lower {
                (*chunk, *below) = (*held, false);
            }
        }
        self.parent = lower.parent.clone();
    }
}

/// A published backup.
#[derive(Debug, Clone)]
pub struct Published {
    /// What is listed.
    pub backup: StoredBackup,
    /// Its disks, with the truth.
    pub disks: Vec<StoredDisk>,
}

/// A store.
#[derive(Debug)]
pub struct StoreState {
    /// Its id.
    pub id: StoreId,
    /// Its chunk size.
    pub chunk: ChunkSize,
    /// What is listed, oldest first.
    pub backups: Vec<Published>,
    /// How many were ever published.
    pub published: u64,
    /// Whether a backup holds only what was put, and needs its base for the rest, as in an image store.
    pub chained: bool,
    /// How often a deleted backup was merged into one that needed it.
    pub merged: u64,
    pool: Vec<Chunk>,
    known: HashMap<Arc<[u32]>, usize>,
}

impl StoreState {
    /// An empty store.
    #[must_use]
    pub fn new(id: &str, chunk: ChunkSize) -> Self {
        Self {
            id: StoreId::new(id),
            chunk,
            backups: Vec::new(),
            published: 0,
            chained: false,
            merged: 0,
            pool: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// Its host loses what was not synced.
    pub fn lose_power(&mut self) {
        for chunk in self.pool.iter_mut().filter(|chunk| !chunk.durable && !chunk.lost) {
            chunk.lost = true;
            self.known.remove(&chunk.atoms);
        }
    }

    /// A backup is deleted.
    pub fn delete(&mut self, choice: u8) -> Option<Published> {
        let place = usize::from(choice) % self.backups.len().max(1);
        (place < self.backups.len()).then(|| self.remove(place))
    }

    /// Takes a backup away; those that need it get what it holds for them first.
    fn remove(&mut self, place: usize) -> Published {
        let gone = self.backups.remove(place);
        for other in &mut self.backups {
            for disk in other.disks.iter_mut().filter(|disk| disk.parent.as_ref() == Some(&gone.backup.id)) {
                if let Some(lower) = gone.disks.iter().find(|lower| lower.name == disk.name) {
                    disk.take_over(lower);
                    self.merged += 1;
                }
            }
            other.backup.builds_on = parents(&other.disks);
        }
        gone
    }

    /// A disk with all that the backups below it hold for it; nothing if one of them is not there.
    fn whole(&self, disk: &StoredDisk) -> Option<StoredDisk> {
        let mut whole = disk.clone();
        while whole.below.contains(&true) {
            let lower = self.find(whole.parent.as_ref()?)?;
            whole.take_over(lower.disks.iter().find(|lower| lower.name == disk.name)?);
        }
        Some(whole)
    }

    fn intern(&mut self, atoms: &[u32]) -> usize {
        if let Some(&known) = self.known.get(atoms) {
            return known;
        }
        let atoms: Arc<[u32]> = atoms.into();
        self.pool.push(Chunk { atoms: Arc::clone(&atoms), durable: false, lost: false });
        self.known.insert(atoms, self.pool.len() - 1);
        self.pool.len() - 1
    }

    fn chunk(&self, chunk: Option<usize>) -> Option<&[u32]> {
        let Some(place) = chunk else { return Some(&[]) };
        self.pool.get(place).filter(|chunk| !chunk.lost).map(|chunk| &*chunk.atoms)
    }

    /// What a disk restores to; nothing if a chunk is lost.
    #[must_use]
    pub fn content(&self, disk: &StoredDisk) -> Option<Vec<u32>> {
        let mut content = vec![0; disk.atoms];
        for (space, chunk) in content.chunks_mut(disk.unit).zip(&self.whole(disk)?.chunks) {
            let atoms = self.chunk(*chunk)?;
            space.get_mut(..atoms.len())?.copy_from_slice(atoms);
        }
        Some(content)
    }

    /// Atoms at which a disk would not restore to the truth.
    fn differing(&self, disk: &StoredDisk) -> Mask {
        let mut differing = 0;
        let Some(whole) = self.whole(disk) else { return Mask::MAX };
        for (number, (truth, chunk)) in disk.truth.chunks(disk.unit).zip(&whole.chunks).enumerate() {
            let Some(atoms) = self.chunk(*chunk) else {
                differing |= mask(number * disk.unit, number * disk.unit + truth.len());
                continue;
            };
            if atoms != truth {
                let wrong = truth.iter().enumerate().filter(|(place, value)| atoms.get(*place).copied().unwrap_or(0) != **value);
                differing = wrong.fold(differing, |all, (place, _)| all | 1 << (number * disk.unit + place));
            }
        }
        differing
    }

    /// Atoms of a disk that some backup restores wrongly by a silent edit.
    #[must_use]
    pub fn excused(&self, name: &DiskName) -> Mask {
        let disks = self.backups.iter().flat_map(|published| &published.disks).filter(|disk| disk.name == *name);
        disks.fold(0, |all, disk| all | disk.excused)
    }

    /// Where two backups of a disk differ, in bytes; nothing where they are not cut alike.
    fn difference(&self, one: &StoredDisk, other: &StoredDisk) -> Option<Extents> {
        let unit = one.unit as u64 * ATOM;
        let size = one.atoms as u64 * ATOM;
        let unlike = one.chunks.iter().zip(&other.chunks).enumerate().filter(|(_, (one, other))| one != other);
        let place = |place: usize| Extent::new(place as u64 * unit, ((place as u64 + 1) * unit).min(size));
        (one.unit == other.unit && one.atoms == other.atoms).then(|| unlike.map(|(number, _)| place(number)).collect())
    }

    fn find(&self, id: &BackupId) -> Option<&Published> {
        self.backups.iter().find(|published| published.backup.id == *id)
    }

    /// Compares every listed backup with the truth: the first that is wrong, in words, and how many disks were compared.
    #[must_use]
    pub fn check(&self) -> (Option<String>, u64) {
        let mut compared = 0;
        for published in &self.backups {
            for disk in &published.disks {
                compared += 1;
                let differing = self.differing(disk) & !disk.excused;
                if differing != 0 || disk.truth.len() != disk.atoms {
                    return (
                        Some(format!(
                            "backup {} does not restore disk {}: atoms {differing:#x} are not as they were",
                            published.backup.id, disk.name
                        )),
                        compared,
                    );
                }
            }
        }
        (None, compared)
    }

    /// The checkpoints of a disk that are to stay, as text: the newest, and the newest of those with which all of it was read.
    pub fn needed_checkpoints(&self, disk: &DiskName) -> impl Iterator<Item = &str> {
        let read_whole = |then: &ManifestDisk| matches!(then.kind, Kind::Full | Kind::Resync);
        self.newest_checkpoint(disk, &|_| true).into_iter().chain(self.newest_checkpoint(disk, &read_whole))
    }

    fn newest_checkpoint(&self, disk: &DiskName, counts: &dyn Fn(&ManifestDisk) -> bool) -> Option<&str> {
        let of_disk = |published: &&Published| published.backup.manifest.disk(disk).is_some_and(|then| then.checkpointed && counts(then));
        let newest =
            self.backups.iter().filter(of_disk).max_by_key(|published| (published.backup.manifest.time, published.backup.id.clone()));
        newest.and_then(|published| published.backup.manifest.checkpoint.as_ref()).map(|name| name.as_str())
    }
}

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
        let mut listed: Vec<StoredBackup> = listed.filter(|backup| vm.is_none_or(|vm| backup.manifest.vm_id() == *vm)).cloned().collect();
        listed.sort_by(|a, b| (a.manifest.time, &a.id).cmp(&(b.manifest.time, &b.id)));
        Ok((listed, Vec::new()))
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

struct Reader<'a> {
    store: &'a SimStore,
    published: Published,
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

/// Atoms as bytes: the number at both ends of each.
pub fn encode(atoms: impl ExactSizeIterator<Item = u32>) -> Vec<u8> {
    let unit = usize::try_from(ATOM).unwrap_or_default();
    let mut bytes = vec![0; atoms.len() * unit];
    for (space, atom) in bytes.chunks_exact_mut(unit).zip(atoms) {
        space[..4].copy_from_slice(&atom.to_le_bytes());
        space[unit - 4..].copy_from_slice(&atom.to_le_bytes());
    }
    bytes
}

/// Bytes as atoms.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<u32>> {
    let unit = usize::try_from(ATOM).unwrap_or_default();
    let atom = |space: &[u8]| match (space.first_chunk::<4>(), space.last_chunk::<4>()) {
        (Some(head), Some(tail)) if head == tail && space.len() == unit => Ok(u32::from_le_bytes(*head)),
        _ => Err(failed("these are no whole atoms")),
    };
    bytes.chunks(unit).map(atom).collect()
}

struct Writer<'a> {
    store: &'a SimStore,
    disks: Vec<StoredDisk>,
    // Chunks that were there before.
    known: usize,
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

/// The backups that disks need, each once.
fn parents(disks: &[StoredDisk]) -> Vec<BackupId> {
    let mut parents: Vec<BackupId> = disks.iter().filter_map(|disk| disk.parent.clone()).collect();
    parents.sort_unstable();
    parents.dedup();
    parents
}

impl Published {
    /// In a store of chains a backup has only what is its own.
    fn forget_what_is_below(&mut self) {
        for disk in &mut self.disks {
            disk.chunks.iter_mut().zip(&disk.below).filter(|(_, below)| **below).for_each(|(chunk, _)| *chunk = None);
        }
        self.backup.builds_on = parents(&self.disks);
    }
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
                let zero = atoms.iter().all(|value| *value == 0);
                *slot = Slot::Done((!zero).then(|| world.stores[self.writer.store.place].intern(&atoms)));
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

impl World {
    /// What no order of events in keepmark may lead to: the base's checkpoint goes, and nothing is published yet.
    fn remove_base(&mut self, place: usize, successor: Option<&CheckpointName>) {
        let machine = self.run.as_ref().map_or(0, |run| run.machine);
        let store = &self.stores[place].id;
        let layers = self.machines[machine].disks.iter_mut().flat_map(|disk| &mut disk.layers);
        let is_base = |name: &str| CheckpointName::parse(name).is_ok_and(|name| name.is_for(store) && Some(&name) != successor);
        layers.for_each(|layer| layer.bitmaps.retain(|bitmap| !is_base(&bitmap.name)));
    }

    /// The backup exists from now on; the truth of its moment goes beside it.
    fn publish(&mut self, place: usize, mut published: Published) {
        let Some(run) = &self.run else { return };
        let frozen = run.moment.clone().unwrap_or_default();
        let state = &self.stores[place];
        let mut wrong = None;
        let mut audit_only = 0;
        for disk in &mut published.disks {
            let Some(copy) = frozen.iter().find(|copy| copy.name == disk.name) else {
                wrong = Some(format!("disk {} was published without a moment", disk.name));
                continue;
            };
            disk.truth = copy.cells.iter().map(|(value, _)| *value).collect();
            let differing = if disk.truth.len() == disk.atoms { state.differing(disk) } else { Mask::MAX };
            let undetectable = disk.inherited.as_ref().map_or(0, |base| undetectable(copy, disk.unit, base, run.unaudited));
            // What is not durable yet is judged by the sync that follows, or by the power cut that comes first.
            if differing & !undetectable != 0 {
                let stored = state.content(disk);
                wrong = Some(format!(
                    "disk {} is published with atoms {:#x} not as they were\n     truth {:?}\n    stored {stored:?}",
                    disk.name,
                    differing & !undetectable,
                    copy.cells.iter().map(|(value, hole)| if *hole { -1 } else { i64::from(*value) }).collect::<Vec<_>>()
                ));
            }
            disk.excused = differing & undetectable;
            audit_only += u64::from(disk.excused != 0);
        }
        self.stats.audit_only += audit_only;
        for disk in &published.backup.manifest.disks {
            self.stats.count(disk);
        }
        if let Some(wrong) = wrong {
            self.wrong(|| wrong);
        }
        if self.is_telling() {
            let kinds: Vec<String> = published
                .backup
                .manifest
                .disks
                .iter()
                .map(|disk| format!("{}: {} ({})", disk.name, disk.kind.word(), disk.reason))
                .collect();
            self.tell(format!("backup {} exists in store {place}: {}", published.backup.id, kinds.join("; ")));
        }
        self.stores[place].backups.push(published);
        self.stores[place].published += 1;
    }
}

/// Where a backup may differ from the truth, since only the audit's sample can find it: an edit past QEMU, after the base's
/// bitmap began or inherited from the base, unless it made a hole of a whole clean chunk that held data in the base. That is a
/// contradiction that the allocation check sees every time, unless the user switched the audit off.
fn undetectable(copy: &FrozenCopy, unit: usize, base: &Inherited, unaudited: bool) -> Mask {
    let mut allowed = copy.missed | base.excused;
    for (number, cells) in copy.cells.chunks(unit).enumerate() {
        let held_data = base.held.get(number).is_some_and(|held| *held);
        if !unaudited && held_data && cells.iter().all(|(_, hole)| *hole) {
            allowed &= !mask(number * unit, (number + 1) * unit);
        }
    }
    allowed
}
