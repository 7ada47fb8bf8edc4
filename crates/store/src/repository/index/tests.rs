//! The local index against a map in memory: the same answers after any sequence of adding, vanishing, merging and damage.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::repository::crypto::Key;
use crate::repository::folder::Folder;
use crate::repository::index_file::IndexFile;

struct World {
    _folder: tempfile::TempDir,
    core: Arc<Core>,
    cache: PathBuf,
    files: BTreeMap<Id, Vec<PublishedPack>>,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let (backend, undo) = Folder::create(&folder.path().join("repository")).unwrap();
    undo.forget();
    let core = Arc::new(Core { backend: Arc::new(backend), key: Key::new(&[1; 32], &[2; 16], &[3; 16]).unwrap() });
    World { core, cache: folder.path().join("cache"), _folder: folder, files: BTreeMap::new() }
}

fn id(number: u64) -> Id {
    Id::of(&number.to_le_bytes())
}

fn pack(number: u64, blobs: impl Iterator<Item = u64>) -> PublishedPack {
    let entry = |(place, blob): (u32, u64)| BlobEntry {
        id: id(blob),
        kind: if blob % 5 == 0 { BlobKind::Tree } else { BlobKind::Data },
        offset: place * 100,
        length: 99,
        plain_length: (blob % 2 == 0).then_some(500),
    };
    PublishedPack { id: id(1 << 40 | number), blobs: (0..).zip(blobs).map(entry).collect() }
}

impl World {
    fn write(&mut self, packs: Vec<PublishedPack>) -> Id {
        let file = sealed_file::write(&*self.core.backend, &self.core.key, FileKind::Index, &IndexFile::of(&packs)).unwrap();
        self.files.insert(file, packs);
        file
    }

    fn open(&self) -> Index {
        Index::open(Arc::clone(&self.core), &self.cache).unwrap()
    }

    fn expected(&self, blob: u64) -> BTreeSet<(PackId, u32)> {
        let packs = self.files.values().flatten();
        packs
            .flat_map(|pack| pack.blobs.iter().map(move |entry| (pack.id, *entry)))
            .filter(|(_, entry)| entry.id == id(blob))
            .map(|(pack, entry)| (pack, entry.offset))
            .collect()
    }

    fn compare(&self, index: &Index, blobs: impl Iterator<Item = u64>) {
        for blob in blobs {
            let kind = if blob % 5 == 0 { BlobKind::Tree } else { BlobKind::Data };
            let found = index.find(&id(blob), kind).unwrap();
            assert_eq!(
                found.iter().map(|place| (place.pack, place.entry.offset)).collect::<BTreeSet<_>>(),
                self.expected(blob),
                "blob {blob}"
            );
            let other = if kind == BlobKind::Tree { BlobKind::Data } else { BlobKind::Tree };
            assert!(index.find(&id(blob), other).unwrap().is_empty());
        }
    }

    fn runs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.cache).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_string_lossy().ends_with(RUN_SUFFIX)).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Another host writes an index file.
    Foreign(Vec<u64>),
    /// We write one.
    Own(Vec<u64>),
    /// One vanishes.
    Prune(prop::sample::Index),
    Reopen,
    /// A byte of the cache changes.
    Damage(prop::sample::Index, prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blobs = || prop::collection::vec(0..300_u64, 0..120);
    let step = prop_oneof![
        1 => blobs().prop_map(Step::Foreign),
        4 => blobs().prop_map(Step::Own),
        1 => any::<prop::sample::Index>().prop_map(Step::Prune),
        1 => Just(Step::Reopen),
        1 => (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(run, byte)| Step::Damage(run, byte)),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_index_answers_like_a_map(steps in steps()) {
        let mut world = world();
        let mut index = world.open();
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Foreign(blobs) => {
                    world.write(vec![pack(number, blobs.into_iter())]);
                    index.refresh().unwrap();
                }
                Step::Own(blobs) => {
                    let packs = vec![pack(number, blobs.iter().copied()), pack(1000 + number, blobs.into_iter().take(3))];
                    let file = world.write(packs.clone());
                    index.add(file, &packs).unwrap();
                }
                Step::Prune(which) => {
                    if let Some(file) = world.files.keys().nth(which.index(world.files.len().max(1))).copied() {
                        world.files.remove(&file);
                        world.core.backend.remove(FileKind::Index, &file).unwrap();
                        index.refresh().unwrap();
                    }
                }
                Step::Reopen => index = world.open(),
                Step::Damage(run, byte) => {
                    let runs = world.runs();
                    if !runs.is_empty() {
                        let path = &runs[run.index(runs.len())];
                        let mut bytes = fs::read(path).unwrap();
                        let at = byte.index(bytes.len());
                        bytes[at] ^= 1;
                        fs::write(path, bytes).unwrap();
                    }
                }
            }
            prop_assert!(index.view().runs.len() <= RUNS_MAX);
        }
        index.refresh().unwrap();
        world.compare(&index, 0..300);
    }
}

#[test]
fn many_blobs_over_many_blocks_are_all_found() {
    let mut world = world();
    for number in 0..20_u64 {
        world.write((0..5).map(|part| pack(number * 5 + part, (0..400).map(|blob| (number * 5 + part) * 400 + blob))).collect());
    }
    let index = world.open();
    let everything: BTreeMap<Id, (PackId, u32)> =
        world.files.values().flatten().flat_map(|pack| pack.blobs.iter().map(|entry| (entry.id, (pack.id, entry.offset)))).collect();
    for blob in 0..40_000 {
        let kind = if blob % 5 == 0 { BlobKind::Tree } else { BlobKind::Data };
        let found = index.find(&id(blob), kind).unwrap();
        assert_eq!(found.iter().map(|place| (place.pack, place.entry.offset)).collect::<Vec<_>>(), [everything[&id(blob)]]);
    }
    assert!(index.find(&id(40_001), BlobKind::Data).unwrap().is_empty());
}

#[test]
fn a_damaged_index_file_is_left_out_and_told() {
    let mut world = world();
    let good = world.write(vec![pack(1, 0..10)]);
    let bad = world.write(vec![pack(2, 10..20)]);
    let path = PathBuf::from(world.core.backend.location()).join("index").join(bad.hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    world.files.remove(&bad);
    let index = world.open();
    world.compare(&index, 0..20);
    assert_eq!(index.damaged().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [bad]);
    assert!(world.files.contains_key(&good));
}
