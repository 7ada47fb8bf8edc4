//! What a folder must look like, by its place in a backup.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::repository::disk_table::{ZeroNames, dir_chunks, folders};
use crate::repository::id::{BlobKind, ChunkId, Id, TreeId};
use crate::repository::layout::{GROUP_DIRS, Layout, dir_name, group_name};
use crate::repository::tree::{Node, segments};

/// The part that a folder plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// None of a disk's: whatever is in it is fine.
    Plain,
    /// A whole disk.
    Disk(Layout),
    /// A group of a disk, by its number.
    Group(Layout, u64),
    /// A folder of chunks, by its number on the disk.
    Dir(Layout, u64),
}

/// All that the looks of a folder depend on: level, chunk size and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Form(u8, u64, u64);

impl Role {
    /// Folders of one form look alike.
    #[must_use]
    pub fn form(&self) -> Form {
        match *self {
            Self::Plain => Form(0, 0, 0),
            Self::Disk(layout) => Form(1, layout.chunk, layout.size),
            Self::Group(layout, group) => Form(2, layout.chunk, layout.bytes(&layout.group_range(group))),
            Self::Dir(layout, dir) => Form(3, layout.chunk, layout.bytes(&layout.dir_range(dir))),
        }
    }

    /// The part that its subfolder of this number plays.
    #[must_use]
    pub fn child(&self, number: u64) -> Self {
        match *self {
            Self::Disk(layout) => Self::Group(layout, number),
            Self::Group(layout, group) => Self::Dir(layout, group.saturating_mul(GROUP_DIRS).saturating_add(number)),
            Self::Plain | Self::Dir(..) => Self::Plain,
        }
    }

    /// Whether it has what it must have, in order, named and sized so.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it has not.
    pub fn check(&self, id: &TreeId, nodes: &[Node]) -> Result<()> {
        match *self {
            Self::Plain => Ok(()),
            Self::Disk(layout) => folders(id, nodes, layout.groups(), group_name).map(drop),
            Self::Group(layout, group) => {
                let dirs = layout.dirs().saturating_sub(group.saturating_mul(GROUP_DIRS)).min(GROUP_DIRS);
                folders(id, nodes, dirs, dir_name).map(drop)
            }
            Self::Dir(layout, dir) => {
                let range = layout.dir_range(dir);
                let chunks = dir_chunks(id, nodes, range.end.saturating_sub(range.start))?;
                let sizes = |nodes: &[Node]| nodes.iter().map(|node| node.size).collect::<Vec<_>>();
                let fits = sizes(nodes) == sizes(&segments(&chunks, layout.chunk, layout.bytes(&range)));
                if fits { Ok(()) } else { Err(Error::damaged("tree", id, "its files are not as long as segments of a disk")) }
            }
        }
    }

    /// Bytes of its chunk of this number, where that is fixed.
    #[must_use]
    pub fn chunk_length(&self, number: u64) -> Option<u64> {
        let (layout, chunk) = self.chunk(number)?;
        Some(layout.bytes(&chunk))
    }

    fn chunk(&self, number: u64) -> Option<(Layout, Range<u64>)> {
        let Self::Dir(layout, dir) = *self else { return None };
        let chunk = layout.dir_range(dir).start.saturating_add(number);
        Some((layout, chunk..chunk.saturating_add(1)))
    }

    /// Whether a restore takes its chunk of this number for zeros by its name, without reading it.
    #[must_use]
    pub fn is_zero_chunk(&self, number: u64, id: &ChunkId, zero: &ZeroNames) -> bool {
        let Some((layout, chunk)) = self.chunk(number) else { return false };
        let short = usize::try_from(layout.size % layout.chunk).unwrap_or(0);
        *id == zero.chunk || (chunk.end == layout.chunks() && short > 0 && *id == Id::of(&vec![0; short]))
    }

    /// If a restore takes it for zeros by its name, without reading it: the blobs that other programs need in its place.
    #[must_use]
    pub fn zeros(&self, id: &TreeId, zero: &ZeroNames) -> Option<Vec<(BlobKind, Id)>> {
        let dir = [(BlobKind::Data, zero.chunk), (BlobKind::Tree, zero.dir)];
        match self {
            Self::Group(..) if *id == zero.group => Some([&dir[..], &[(BlobKind::Tree, zero.group)]].concat()),
            Self::Dir(..) if *id == zero.dir => Some(dir.to_vec()),
            Self::Plain | Self::Disk(_) | Self::Group(..) | Self::Dir(..) => None,
        }
    }

    /// The disk's chunk size, bytes, if it is of a disk.
    #[must_use]
    pub fn chunk_size(&self) -> Option<u64> {
        match self {
            Self::Plain => None,
            Self::Disk(layout) | Self::Group(layout, _) | Self::Dir(layout, _) => Some(layout.chunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4096;

    /// A folder of 20 chunks whose last is short, at the end of a disk.
    fn dir() -> (Role, Vec<Node>) {
        let layout = Layout::new(256 * CHUNK + 19 * CHUNK + 5, CHUNK).unwrap();
        let chunks: Vec<ChunkId> = (0..20).map(|number| Id([number; 32])).collect();
        (Role::Dir(layout, 1), segments(&chunks, CHUNK, 19 * CHUNK + 5))
    }

    #[test]
    fn a_folder_of_chunks_is_exactly_what_its_place_says() {
        type Change = fn(&mut Vec<Node>);
        let (role, right) = dir();
        assert!(role.check(&Id([0; 32]), &right).is_ok());
        let wrong: [Change; 7] = [
            |nodes| nodes.swap(0, 1),
            |nodes| nodes.truncate(1),
            |nodes| nodes[1].content.truncate(3),
            |nodes| nodes[0].name = "5".to_owned(),
            |nodes| nodes[1].size += 1,
            |nodes| {
                let moved = nodes[0].content.pop().unwrap();
                nodes[1].content.insert(0, moved);
            },
            |nodes| nodes.push(Node::file("2", 0, vec![])),
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            let mut nodes = right.clone();
            change(&mut nodes);
            assert!(role.check(&Id([0; 32]), &nodes).is_err(), "change {number}");
        }
    }

    #[test]
    fn groups_and_disks_have_all_their_folders_in_order() {
        let layout = Layout::new(3 * 256 * CHUNK, CHUNK).unwrap();
        let named = |names: &[&str]| names.iter().map(|name| Node::dir(*name, Id([1; 32]))).collect::<Vec<_>>();
        let is_fine = |role: Role, names: &[&str]| role.check(&Id([0; 32]), &named(names)).is_ok();
        assert!(is_fine(Role::Disk(layout), &["0000"]) && is_fine(Role::Group(layout, 0), &["00", "01", "02"]));
        for wrong in [&["00", "01"][..], &["00", "02", "01"], &["00", "01", "02", "03"], &[]] {
            assert!(!is_fine(Role::Group(layout, 0), wrong) && !is_fine(Role::Disk(layout), wrong), "{wrong:?}");
        }
        assert!(is_fine(Role::Plain, &["whatever"]));
    }

    #[test]
    fn chunks_have_the_length_of_their_place_and_zeros_are_known_by_name() {
        let (role, _) = dir();
        assert_eq!([role.chunk_length(0), role.chunk_length(19), Role::Plain.chunk_length(0)], [Some(CHUNK), Some(5), None]);
        let zero = ZeroNames::new(CHUNK).unwrap();
        let short = Id::of(&[0; 5]);
        let is_zero = |number, id: &Id| role.is_zero_chunk(number, id, &zero);
        assert!(is_zero(0, &zero.chunk) && is_zero(19, &short));
        assert!(!is_zero(18, &short) && !is_zero(0, &Id([7; 32])));
        assert!(!Role::Plain.is_zero_chunk(0, &zero.chunk, &zero));
    }

    #[test]
    fn zeros_are_taken_for_zeros_only_where_a_restore_does_so() {
        let zero = ZeroNames::new(CHUNK).unwrap();
        let layout = Layout::new(1 << 40, CHUNK).unwrap();
        let count = |role: Role, id: &Id| role.zeros(id, &zero).map(|blobs| blobs.len());
        assert_eq!([count(Role::Group(layout, 3), &zero.group), count(Role::Dir(layout, 3), &zero.dir)], [Some(3), Some(2)]);
        assert_eq!(
            [count(Role::Dir(layout, 3), &zero.group), count(Role::Plain, &zero.dir), count(Role::Disk(layout), &zero.group)],
            [None; 3]
        );
    }
}
