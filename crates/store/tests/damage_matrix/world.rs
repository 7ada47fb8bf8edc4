//! The repository that is damaged: two backups of one VM, of which the second shares most with the first, and one of another VM.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use keepmark_model::seam::Store as _;
use keepmark_model::{BackupId, VmIdentity};
use keepmark_store::Repository;

use crate::common::{EVENING, MORNING, Place, backup, backup_of, diff, noise, put_data, restore, vm};

/// Whose file it is: that which came with this backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// The VM's first backup.
    First,
    /// Its second, an incremental that takes most from the first.
    Second,
    /// The other VM's, which shares only zeros.
    Other,
}

pub const ALL: [Whose; 3] = [Whose::First, Whose::Second, Whose::Other];

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    Config,
    Key,
    Lock,
    Snapshot,
    Index,
    Data,
    Trees,
    CachedIndex,
    CachedBackups,
    CachedNeeds,
}

pub struct World {
    pub place: Place,
    pub backups: BTreeMap<Whose, (BackupId, Vec<u8>)>,
    /// Files below the place's folder, and an older version or another of the same kind for each.
    pub files: BTreeMap<(File, Whose), (PathBuf, Vec<u8>)>,
}

/// A disk of 4 MiB: chunks of noise, and at least one whole folder of zeros.
fn disk(seed: u64, noisy: usize) -> Vec<u8> {
    let mut disk = noise(seed, noisy);
    disk.resize(4 << 20, 0);
    disk
}

impl World {
    pub fn new() -> Self {
        let place = Place::in_memory();
        let repository = place.init();
        let first = disk(1, 1_500_000);
        // Into what was zero: so all of the first backup's data are needed by the second, too.
        let mut second = first.clone();
        second[2 << 20..(2 << 20) + 300_000].copy_from_slice(&noise(2, 300_000));
        let other = disk(3, 400_000);

        let (mut world, mut seen) = (Self { place, backups: BTreeMap::new(), files: BTreeMap::new() }, Vec::new());
        let id = backup(&repository, MORNING, &first, None, &put_data(&first)).unwrap();
        world.note(Whose::First, id.clone(), &first, &mut seen);
        drop(repository.backups(None).unwrap());
        let listed = fs::read(world.cached("backups-2").remove(0)).unwrap();
        let told = diff(&first, &second);
        let id = backup(&repository, EVENING, &second, Some(&id), &told).unwrap();
        world.note(Whose::Second, id, &second, &mut seen);
        let db = VmIdentity::new("db", None).unwrap();
        let id = backup_of(&db, &repository, MORNING, &other, None, &put_data(&other)).unwrap();
        world.note(Whose::Other, id, &other, &mut seen);
        world.add_lock(&repository);
        drop(repository);
        world.add_shared(listed);
        world.exchange();
        world
    }

    /// Files that appeared belong to the backup that was just made.
    fn note(&mut self, whose: Whose, id: BackupId, content: &[u8], seen: &mut Vec<PathBuf>) {
        self.backups.insert(whose, (id, content.to_vec()));
        let listed = |folder| self.place.files(folder).into_iter().filter(|path| !seen.contains(path)).collect::<Vec<_>>();
        let (snapshots, indexes, mut packs) = (listed("snapshots"), listed("index"), listed("data"));
        packs.sort_by_key(|path| fs::metadata(path).unwrap().len());
        let mut found = vec![(File::Snapshot, snapshots[0].clone()), (File::Index, indexes[0].clone())];
        found.extend([(File::Trees, packs[0].clone()), (File::Data, packs[1].clone())]);
        assert_eq!((snapshots.len(), indexes.len(), packs.len()), (1, 1, 2));
        seen.extend([snapshots, indexes, packs].concat());
        for (file, path) in found {
            let content = fs::read(&path).unwrap();
            self.files.insert((file, whose), (path, content));
        }
    }

    /// The cache's files with this in their names.
    fn cached(&self, part: &str) -> Vec<PathBuf> {
        let mut all = Vec::new();
        walk(&self.place.cache(), &mut all);
        all.retain(|path| path.file_name().unwrap().to_string_lossy().contains(part));
        all
    }

    /// A lock of another host, as it is while somebody works there.
    fn add_lock(&mut self, repository: &Repository) {
        let writer = repository.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
        let lock = self.place.files("locks").remove(0);
        let content = fs::read(&lock).unwrap();
        drop(writer);
        fs::write(&lock, &content).unwrap();
        self.files.insert((File::Lock, Whose::Other), (lock, content));
    }

    /// Files of which there is one; each is replaced by that of another repository.
    fn add_shared(&mut self, listed_at_first: Vec<u8>) {
        let stranger = Place::in_memory();
        drop(stranger.init());
        let one = |place: &Place, folder| place.files(folder).remove(0);
        let config = |place: &Place| place.repository().join("config");
        self.files.insert((File::Key, Whose::First), (one(&self.place, "keys"), fs::read(one(&stranger, "keys")).unwrap()));
        self.files.insert((File::Config, Whose::First), (config(&self.place), fs::read(config(&stranger)).unwrap()));
        drop(self.place.open().backups(None).unwrap());
        // The cache as it is in the end, and an older version to replace it by.
        self.files.insert((File::CachedBackups, Whose::First), (self.cached("backups-2").remove(0), listed_at_first));
        let mut runs = self.cached(".run");
        runs.sort_by_key(|path| fs::metadata(path).unwrap().len());
        self.files.insert((File::CachedIndex, Whose::First), (runs[runs.len() - 1].clone(), fs::read(&runs[0]).unwrap()));
        let needs = |whose: Whose| self.cached(self.backups[&whose].0.as_str()).remove(0);
        let (second, first) = (needs(Whose::Second), fs::read(needs(Whose::First)).unwrap());
        self.files.insert((File::CachedNeeds, Whose::Second), (second, first));
    }

    /// Gives each backup's file the content of another's.
    fn exchange(&mut self) {
        for file in [File::Snapshot, File::Index, File::Data, File::Trees] {
            let content = |whose| self.files[&(file, whose)].1.clone();
            let others = [content(Whose::Other), content(Whose::First), content(Whose::First)];
            for (whose, other) in ALL.into_iter().zip(others) {
                self.files.get_mut(&(file, whose)).unwrap().1 = other;
            }
        }
    }

    /// This world once more, to be changed apart from it.
    pub fn copy(&self) -> Self {
        let place = self.place.copy();
        let moved = |path: &Path| place.folder.path().join(path.strip_prefix(self.place.folder.path()).unwrap());
        let files = self.files.iter().map(|(key, (path, content))| (*key, (moved(path), content.clone()))).collect();
        Self { backups: self.backups.clone(), files, place }
    }

    pub fn restores(&self, repository: &Repository, whose: Whose) -> bool {
        let (id, content) = &self.backups[&whose];
        match restore(repository, id, "vda", content.len()) {
            Ok(restored) => {
                assert!(restored == *content, "a restore of {whose:?} gave other bytes");
                true
            }
            Err(_) => false,
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}
