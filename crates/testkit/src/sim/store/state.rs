//! What a simulated store holds: chunks in a pool, backups by their manifests, and the truth beside each.

use std::collections::HashMap;
use std::sync::Arc;

use keepmark_model::manifest::{Kind, ManifestDisk, StoredBackup};
use keepmark_model::{BackupId, ChunkSize, DiskName, Extent, Extents, StoreId, VmId};

use crate::sim::image::{ATOM, Mask, mask};

/// A chunk in the pool.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) atoms: Arc<[u32]>,
    pub(super) durable: bool,
    pub(super) lost: bool,
}

/// A disk of a backup: its chunks in the pool, none for zeros and for what a backup below it holds.
#[derive(Debug, Clone)]
pub struct StoredDisk {
    /// Which disk.
    pub name: DiskName,
    pub(super) atoms: usize,
    pub(super) unit: usize,
    pub(super) chunks: Vec<Option<usize>>,
    // In a store of chains: the backup that holds the chunks which are below.
    pub(super) parent: Option<BackupId>,
    pub(super) below: Vec<bool>,
    pub(super) truth: Vec<u32>,
    pub(super) excused: Mask,
    pub(super) inherited: Option<Inherited>,
}

/// What a disk took over from its base when it was begun; the base may be deleted before the disk is published.
#[derive(Debug, Clone)]
pub(super) struct Inherited {
    pub(super) excused: Mask,
    // For each chunk, whether it held data.
    pub(super) held: Vec<bool>,
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
#[derive(Debug, Clone)]
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
    /// Whether it keeps zeros that were written as data, as an image does that QEMU has pushed.
    pub keeps_zeros: bool,
    /// How often a deleted backup was merged into one that needed it.
    pub merged: u64,
    pub(super) pool: Vec<Chunk>,
    pub(super) known: HashMap<Arc<[u32]>, usize>,
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
            keeps_zeros: false,
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
    pub(super) fn remove(&mut self, place: usize) -> Published {
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
    pub(super) fn whole(&self, disk: &StoredDisk) -> Option<StoredDisk> {
        let mut whole = disk.clone();
        while whole.below.contains(&true) {
            let lower = self.find(whole.parent.as_ref()?)?;
            whole.take_over(lower.disks.iter().find(|lower| lower.name == disk.name)?);
        }
        Some(whole)
    }

    pub(super) fn intern(&mut self, atoms: &[u32]) -> usize {
        if let Some(&known) = self.known.get(atoms) {
            return known;
        }
        let atoms: Arc<[u32]> = atoms.into();
        self.pool.push(Chunk { atoms: Arc::clone(&atoms), durable: false, lost: false });
        self.known.insert(atoms, self.pool.len() - 1);
        self.pool.len() - 1
    }

    pub(super) fn chunk(&self, chunk: Option<usize>) -> Option<&[u32]> {
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
    pub(super) fn differing(&self, disk: &StoredDisk) -> Mask {
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
    pub(super) fn difference(&self, one: &StoredDisk, other: &StoredDisk) -> Option<Extents> {
        let unit = one.unit as u64 * ATOM;
        let size = one.atoms as u64 * ATOM;
        let unlike = one.chunks.iter().zip(&other.chunks).enumerate().filter(|(_, (one, other))| one != other);
        let place = |place: usize| Extent::new(place as u64 * unit, ((place as u64 + 1) * unit).min(size));
        (one.unit == other.unit && one.atoms == other.atoms).then(|| unlike.map(|(number, _)| place(number)).collect())
    }

    pub(super) fn find(&self, id: &BackupId) -> Option<&Published> {
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

    /// The checkpoints of a VM's disk that are to stay, as text: the newest, and the newest of those with which all of it was read.
    pub fn needed_checkpoints(&self, vm: &VmId, disk: &DiskName) -> impl Iterator<Item = &str> {
        let read_whole = |then: &ManifestDisk| matches!(then.kind, Kind::Full | Kind::Resync);
        self.newest_checkpoint(vm, disk, &|_| true).into_iter().chain(self.newest_checkpoint(vm, disk, &read_whole))
    }

    fn newest_checkpoint(&self, vm: &VmId, disk: &DiskName, counts: &dyn Fn(&ManifestDisk) -> bool) -> Option<&str> {
        let of_disk = |published: &&Published| published.backup.manifest.disk(disk).is_some_and(|then| then.checkpointed && counts(then));
        // In the order of publication: a clock may be wrong.
        let newest = self.backups.iter().rev().filter(|published| published.backup.manifest.vm_id() == *vm).find(of_disk);
        newest.and_then(|published| published.backup.manifest.checkpoint.as_ref()).map(|name| name.as_str())
    }
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
    pub(super) fn forget_what_is_below(&mut self) {
        for disk in &mut self.disks {
            disk.chunks.iter_mut().zip(&disk.below).filter(|(_, below)| **below).for_each(|(chunk, _)| *chunk = None);
        }
        self.backup.builds_on = parents(&self.disks);
    }
}
