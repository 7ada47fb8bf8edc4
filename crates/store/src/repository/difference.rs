//! Where two backups of a disk differ: equal trees are equal disks, so only what is unlike is looked at, and no chunk is read.

use std::ops::Range;
use std::sync::Mutex;

use keepmark_model::{BackupId, DiskName, Extent, Extents};

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::catalog::LoadedDisk;
use crate::repository::core::Scratch;
use crate::repository::disk_table::{StoredDisk, Trees};
use crate::repository::layout::{GROUP_DIRS, Layout};
use crate::repository::read::Loader;

impl Repository {
    /// The chunks in which two backups' contents of a disk differ, or nothing where they are not cut alike.
    ///
    /// # Errors
    /// When a backup is not there, has no such disk, or a tree is missing or damaged.
    pub fn difference_of(&self, one: &BackupId, other: &BackupId, disk: &DiskName) -> Result<Option<Extents>> {
        let _lease = self.reading_lease()?;
        let load = |id: &BackupId| self.load_backup(id)?.disk(disk.as_str());
        let trees = Loader { repository: self, scratch: Mutex::new(Scratch::new()?) };
        difference(&trees, &load(one)?, &load(other)?)
    }
}

fn difference(trees: &dyn Trees, one: &LoadedDisk, other: &LoadedDisk) -> Result<Option<Extents>> {
    if one.layout != other.layout {
        return Ok(None);
    }
    if one.tree == other.tree {
        return Ok(Some(Extents::new()));
    }
    let open = |disk: &LoadedDisk| StoredDisk::open(trees, &disk.tree, disk.layout);
    let mut walk = Walk { trees, one: open(one)?, other: open(other)?, found: Extents::new() };
    (0..one.layout.groups()).try_for_each(|group| walk.group(group))?;
    Ok(Some(walk.found))
}

struct Walk<'w> {
    trees: &'w dyn Trees,
    one: StoredDisk,
    other: StoredDisk,
    found: Extents,
}

impl Walk<'_> {
    fn layout(&self) -> Layout {
        self.one.layout
    }

    fn group(&mut self, group: u64) -> Result<()> {
        if self.one.group(group) == self.other.group(group) {
            return Ok(());
        }
        let first = group * GROUP_DIRS;
        (first..(first + GROUP_DIRS).min(self.layout().dirs())).try_for_each(|dir| self.dir(dir))
    }

    fn dir(&mut self, dir: u64) -> Result<()> {
        if self.one.dir(self.trees, dir)? == self.other.dir(self.trees, dir)? {
            return Ok(());
        }
        let range = self.layout().dir_range(dir);
        let (one, other) = (self.one.chunks(self.trees, dir)?, self.other.chunks(self.trees, dir)?);
        let count = range.end - range.start;
        if one.len() as u64 != count || other.len() as u64 != count {
            return Err(Error::internal("compare two tables of a disk", format!("folder {dir} should have {count} chunks")));
        }
        let differing: Vec<u64> =
            range.zip(one.iter().zip(other)).filter(|(_, (one, other))| one != other).map(|(chunk, _)| chunk).collect();
        differing.into_iter().for_each(|chunk| self.note(chunk..chunk + 1));
        Ok(())
    }

    fn note(&mut self, chunks: Range<u64>) {
        let layout = self.layout();
        self.found.push(Extent::at(chunks.start.saturating_mul(layout.chunk), layout.bytes(&chunks)));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::repository::disk_table::DiskTable;
    use crate::repository::id::{ChunkId, Id, TreeId};
    use crate::repository::layout::GROUP_CHUNKS;
    use crate::repository::tree::{Node, encode};

    const CHUNK: u64 = 4096;

    /// Trees in memory, which count how often one is looked at.
    #[derive(Default)]
    struct Memory {
        trees: RefCell<HashMap<TreeId, Vec<Node>>>,
        loads: RefCell<u64>,
    }

    impl Trees for Memory {
        fn load(&self, id: &TreeId) -> Result<Vec<Node>> {
            *self.loads.borrow_mut() += 1;
            Ok(self.trees.borrow()[id].clone())
        }

        fn store(&self, nodes: &[Node]) -> Result<TreeId> {
            let (id, _) = encode(nodes)?;
            self.trees.borrow_mut().insert(id, nodes.to_vec());
            Ok(id)
        }

        fn zeros(&self, bytes: u64) -> Result<ChunkId> {
            Ok(Id::of(&vec![0; usize::try_from(bytes).unwrap()]))
        }
    }

    impl Memory {
        /// A disk whose chunks hold `of(chunk)`.
        fn disk(&self, size: u64, of: impl Fn(u64) -> u64) -> LoadedDisk {
            let layout = Layout::new(size, CHUNK).unwrap();
            let mut table = DiskTable::new(self, layout, None);
            (0..layout.chunks()).for_each(|chunk| table.push(Id::of(&of(chunk).to_le_bytes())).unwrap());
            LoadedDisk { layout, tree: table.finish().unwrap() }
        }
    }

    proptest! {
        #[test]
        fn exactly_the_unlike_chunks_are_found(chunks in 1..700_u64, tail in 0..CHUNK, changed in proptest::collection::btree_set(0..700_u64, 0..20)) {
            let memory = Memory::default();
            let size = chunks * CHUNK - tail;
            let one = memory.disk(size, |chunk| chunk);
            let other = memory.disk(size, |chunk| if changed.contains(&chunk) { u64::MAX - chunk } else { chunk });
            let place = |chunk: &u64| Extent::new((chunk * CHUNK).min(size), ((chunk + 1) * CHUNK).min(size));
            let expected: Extents = changed.iter().map(place).collect();
            prop_assert_eq!(difference(&memory, &one, &other).unwrap(), Some(expected));
        }
    }

    #[test]
    fn what_is_alike_is_not_looked_at() {
        let memory = Memory::default();
        let size = 2 * GROUP_CHUNKS * CHUNK;
        let one = memory.disk(size, |chunk| chunk);
        let other = memory.disk(size, |chunk| if chunk == GROUP_CHUNKS { 0 } else { chunk });
        assert_eq!(difference(&memory, &one, &one).unwrap(), Some(Extents::new()));
        assert_eq!(*memory.loads.borrow(), 0);
        let found = difference(&memory, &one, &other).unwrap();
        assert_eq!(found, Some(Extents::from_iter([Extent::at(GROUP_CHUNKS * CHUNK, CHUNK)])));
        // Of each: the disk, one of two groups, one of 256 folders.
        assert_eq!(*memory.loads.borrow(), 6);
        let shorter = memory.disk(size - CHUNK, |chunk| chunk);
        assert_eq!(difference(&memory, &one, &shorter).unwrap(), None);
    }
}
