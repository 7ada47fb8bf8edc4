//! The builder against plain lists of chunks, over disks that grow, shrink, and have zeros; and what it loads and stores.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::repository::tree;

const CHUNK: u64 = 16;

/// Trees in memory, counting.
#[derive(Default)]
struct Memory {
    trees: RefCell<BTreeMap<TreeId, Vec<Node>>>,
    loaded: RefCell<u64>,
    stored: RefCell<u64>,
}

impl Trees for Memory {
    fn load(&self, id: &TreeId) -> Result<Vec<Node>> {
        *self.loaded.borrow_mut() += 1;
        self.trees.borrow().get(id).cloned().ok_or_else(|| Error::Missing { kind: "tree", id: id.hex() })
    }

    fn store(&self, nodes: &[Node]) -> Result<TreeId> {
        *self.stored.borrow_mut() += 1;
        let (id, _) = tree::encode(nodes)?;
        self.trees.borrow_mut().insert(id, nodes.to_vec());
        Ok(id)
    }

    fn zeros(&self, bytes: u64) -> Result<ChunkId> {
        Ok(zero_id(bytes))
    }
}

fn zero_id(bytes: u64) -> ChunkId {
    Id::of(&vec![0; usize::try_from(bytes).unwrap()])
}

fn data_id(number: u64) -> ChunkId {
    Id::of(format!("chunk {number}").as_bytes())
}

fn read_all(memory: &Memory, root: &TreeId, layout: Layout) -> Vec<ChunkId> {
    let mut stored = StoredDisk::open(memory, root, layout).unwrap();
    (0..layout.dirs()).flat_map(|dir| stored.chunks(memory, dir).unwrap().to_vec()).collect()
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Data,
    Zero,
    Base,
}

fn parts() -> impl Strategy<Value = Vec<(Part, u64)>> {
    let part = prop_oneof![Just(Part::Data), Just(Part::Zero), Just(Part::Base)];
    prop::collection::vec((part, prop_oneof![1..20_u64, 200..600_u64, Just(DIR_CHUNKS), 60_000..140_000_u64]), 1..12)
}

/// Builds a disk from parts; what asks for a base chunk that is not there gets data.
fn build(
    memory: &Memory,
    layout: Layout,
    parts: &[(Part, u64)],
    salt: u64,
    base: Option<(&TreeId, Layout, &[ChunkId])>,
) -> (TreeId, Vec<ChunkId>) {
    let stored = base.map(|(root, layout, _)| StoredDisk::open(memory, root, layout).unwrap());
    let mut table = DiskTable::new(memory, layout, stored);
    let mut expected = Vec::new();
    let whole = [(Part::Data, 3), (Part::Zero, u64::MAX)];
    for (part, length) in parts.iter().chain(&whole) {
        let (start, end) = (table.next(), table.next().saturating_add(*length).min(layout.chunks()));
        let range = start..end;
        match (part, base) {
            (Part::Base, Some((_, old, chunks))) if !range.is_empty() && old.same_extent(&layout, &range) => {
                table.fill(end, Fill::Base).unwrap();
                expected.extend_from_slice(&chunks[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()]);
            }
            (Part::Zero, _) => {
                table.fill(end, Fill::Zero).unwrap();
                expected.extend(range.map(|chunk| zero_id(layout.bytes(&(chunk..chunk + 1)))));
            }
            (Part::Data | Part::Base, _) => {
                for chunk in range {
                    table.push(data_id(chunk + salt)).unwrap();
                    expected.push(data_id(chunk + salt));
                }
            }
        }
    }
    (table.finish().unwrap(), expected)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_disk_reads_back_as_it_was_built(first in parts(), second in parts(), sizes in (0..150_000 * CHUNK, 0..150_000 * CHUNK)) {
        let memory = Memory::default();
        let (old, new) = (Layout::new(sizes.0, CHUNK).unwrap(), Layout::new(sizes.1, CHUNK).unwrap());
        let (root, chunks) = build(&memory, old, &first, 0, None);
        prop_assert_eq!(&read_all(&memory, &root, old), &chunks);
        let (next, expected) = build(&memory, new, &second, 1 << 40, Some((&root, old, &chunks)));
        prop_assert_eq!(read_all(&memory, &next, new), expected);
    }
}

#[test]
fn an_unchanged_disk_loads_one_tree_and_is_the_same() {
    let memory = Memory::default();
    let layout = Layout::new(200_000 * CHUNK + 3, CHUNK).unwrap();
    let (root, _) = build(&memory, layout, &[(Part::Data, 200_000)], 0, None);
    *memory.loaded.borrow_mut() = 0;
    let stored = StoredDisk::open(&memory, &root, layout).unwrap();
    let mut table = DiskTable::new(&memory, layout, Some(stored));
    table.fill(layout.chunks(), Fill::Base).unwrap();
    assert_eq!(table.finish().unwrap(), root);
    assert_eq!(*memory.loaded.borrow(), 1);
}

#[test]
fn of_a_larger_base_only_what_the_disk_has_is_taken() {
    let memory = Memory::default();
    let old = Layout::new(200_000 * CHUNK, CHUNK).unwrap();
    let (root, chunks) = build(&memory, old, &[(Part::Data, 200_000)], 0, None);
    for count in [1, 255, 256, 257, 429, 65_535, 65_536, 65_537, 199_999] {
        let new = Layout::new(count * CHUNK, CHUNK).unwrap();
        let (next, expected) = build(&memory, new, &[(Part::Base, count)], 1 << 40, Some((&root, old, &chunks)));
        assert_eq!(read_all(&memory, &next, new), expected, "{count}");
    }
}

#[test]
fn one_changed_chunk_touches_one_folder_of_each_level() {
    let memory = Memory::default();
    let layout = Layout::new(200_000 * CHUNK, CHUNK).unwrap();
    let (root, _) = build(&memory, layout, &[(Part::Data, 200_000)], 0, None);
    (*memory.loaded.borrow_mut(), *memory.stored.borrow_mut()) = (0, 0);
    let stored = StoredDisk::open(&memory, &root, layout).unwrap();
    let mut table = DiskTable::new(&memory, layout, Some(stored));
    table.fill(100_000, Fill::Base).unwrap();
    table.push(data_id(7)).unwrap();
    table.fill(layout.chunks(), Fill::Base).unwrap();
    table.finish().unwrap();
    assert_eq!((*memory.loaded.borrow(), *memory.stored.borrow()), (3, 3));
}

#[test]
fn a_huge_empty_disk_is_a_handful_of_trees() {
    let memory = Memory::default();
    let layout = Layout::new(1 << 49, 1 << 18).unwrap();
    let mut table = DiskTable::new(&memory, layout, None);
    table.fill(layout.chunks(), Fill::Zero).unwrap();
    let root = table.finish().unwrap();
    assert_eq!(*memory.stored.borrow(), 3);
    let names = ZeroNames::new(1 << 18).unwrap();
    let stored = StoredDisk::open(&memory, &root, layout).unwrap();
    assert_eq!(stored.group(17), Some(names.group));
}

#[test]
fn trees_that_are_no_disk_are_refused() {
    let memory = Memory::default();
    let layout = Layout::new(5 * CHUNK, CHUNK).unwrap();
    for nodes in [
        vec![],
        vec![Node::file("0000", 0, vec![])],
        vec![Node::dir("0001", Id([1; 32]))],
        vec![Node::dir("0000", Id([1; 32])), Node::dir("0001", Id([1; 32]))],
    ] {
        let root = memory.store(&nodes).unwrap();
        assert!(matches!(StoredDisk::open(&memory, &root, layout), Err(Error::Damaged { .. })));
    }
}
