//! How a disk lies in a backup's tree: chunks in segments in folders in groups, names in disk order.

use std::ops::Range;

/// Chunks in a segment, which is a file.
pub const SEGMENT_CHUNKS: u64 = 16;
/// Segments in a folder.
pub const DIR_SEGMENTS: u64 = 16;
/// Chunks in a folder: 64 MiB at the default chunk size.
pub const DIR_CHUNKS: u64 = SEGMENT_CHUNKS * DIR_SEGMENTS;
/// Folders in a group.
pub const GROUP_DIRS: u64 = 256;
/// Chunks in a group: 16 GiB at the default chunk size.
pub const GROUP_CHUNKS: u64 = DIR_CHUNKS * GROUP_DIRS;
/// Groups that fit the four digits of their names.
pub const GROUPS_MAX: u64 = 1 << 16;

/// Size and chunk size of one disk, and what follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes on the disk.
    pub size: u64,
    /// Bytes in a chunk, not 0.
    pub chunk: u64,
}

impl Layout {
    /// A layout that fits the names.
    #[must_use]
    pub fn new(size: u64, chunk: u64) -> Option<Self> {
        let fits = chunk > 0 && size.div_ceil(chunk) <= GROUPS_MAX * GROUP_CHUNKS;
        fits.then_some(Self { size, chunk })
    }

    /// Chunks on the disk; the last may be short.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.size.div_ceil(self.chunk)
    }

    /// Folders on the disk.
    #[must_use]
    pub fn dirs(&self) -> u64 {
        self.chunks().div_ceil(DIR_CHUNKS)
    }

    /// Groups on the disk.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.chunks().div_ceil(GROUP_CHUNKS)
    }

    /// Bytes in these chunks.
    #[must_use]
    pub fn bytes(&self, chunks: &Range<u64>) -> u64 {
        let at = |chunk: u64| chunk.saturating_mul(self.chunk).min(self.size);
        at(chunks.end).saturating_sub(at(chunks.start))
    }

    /// The chunks of a folder, counted over the whole disk.
    #[must_use]
    pub fn dir_range(&self, dir: u64) -> Range<u64> {
        self.cut(dir, DIR_CHUNKS)
    }

    /// The chunks of a group.
    #[must_use]
    pub fn group_range(&self, group: u64) -> Range<u64> {
        self.cut(group, GROUP_CHUNKS)
    }

    fn cut(&self, index: u64, each: u64) -> Range<u64> {
        let start = index.saturating_mul(each).min(self.chunks());
        start..start.saturating_add(each).min(self.chunks())
    }

    /// Whether these chunks hold the same bytes of a disk in both layouts.
    #[must_use]
    pub fn same_extent(&self, other: &Self, chunks: &Range<u64>) -> bool {
        self.chunk == other.chunk && self.bytes(chunks) == other.bytes(chunks)
    }
}

/// Name of a group's folder.
#[must_use]
pub fn group_name(group: u64) -> String {
    format!("{group:04x}")
}

/// Name of a folder in its group.
#[must_use]
pub fn dir_name(dir: u64) -> String {
    format!("{:02x}", dir % GROUP_DIRS)
}

/// Name of a segment in its folder.
#[must_use]
pub fn segment_name(segment: u64) -> String {
    format!("{:x}", segment % DIR_SEGMENTS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn folders_and_groups_cover_the_disk_exactly(size in 0..1_u64 << 46, chunk in prop::sample::select(vec![1_u64 << 16, 1 << 18, 1 << 20])) {
            let layout = Layout::new(size, chunk).unwrap();
            let last = layout.dirs().saturating_sub(1);
            prop_assert_eq!(layout.bytes(&(0..layout.chunks())), size);
            prop_assert_eq!(layout.dir_range(last).end, layout.chunks());
            prop_assert_eq!(layout.group_range(layout.groups().saturating_sub(1)).end, layout.chunks());
            prop_assert!(layout.dir_range(last + 1).is_empty());
            let tail: u64 = layout.bytes(&layout.dir_range(last));
            prop_assert_eq!(last * DIR_CHUNKS * chunk + tail, size);
        }
    }

    #[test]
    fn names_sort_as_the_disk_runs() {
        assert_eq!((group_name(0x1f), dir_name(0x1ff), segment_name(0x1a)), ("001f".to_owned(), "ff".to_owned(), "a".to_owned()));
        assert!(Layout::new(u64::MAX, 1 << 18).is_none());
        assert!(Layout::new(1, 0).is_none());
    }
}
