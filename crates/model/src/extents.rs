//! Offsets, sizes and sorted sets of byte ranges with their algebra; every operation takes one pass.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! byte_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

byte_newtype!(
    /// A position on a disk, in bytes from its start.
    Offset
);
byte_newtype!(
    /// A number of bytes.
    Size
);
byte_newtype!(
    /// The number of a chunk on its disk; chunk `n` starts at `n * chunk size`.
    ChunkIndex
);

/// The fixed size of a disk's chunks: a power of two from 4 KiB to 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ChunkSize(u32);

/// A number that cannot be a chunk size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chunk size {bytes} must be a power of two from 4096 to 16777216")]
pub struct ChunkSizeError {
    /// The number as it came.
    pub bytes: u32,
}

impl TryFrom<u32> for ChunkSize {
    type Error = ChunkSizeError;

    fn try_from(bytes: u32) -> Result<Self, ChunkSizeError> {
        if bytes.is_power_of_two() && (4 << 10..=16 << 20).contains(&bytes) { Ok(Self(bytes)) } else { Err(ChunkSizeError { bytes }) }
    }
}

impl From<ChunkSize> for u32 {
    fn from(size: ChunkSize) -> Self {
        size.0
    }
}

impl ChunkSize {
    /// 256 KiB: larger chunks multiply what an incremental reads, smaller ones multiply the index.
    pub const DEFAULT: Self = Self(256 << 10);

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many chunks a disk of this size has.
    #[must_use]
    pub fn count(self, size: Size) -> u64 {
        size.0.div_ceil(self.bytes())
    }

    /// Where a chunk lies on a disk of this size; the last one may be short, one beyond the end is empty.
    #[must_use]
    pub fn extent(self, chunk: ChunkIndex, size: Size) -> Extent {
        let start = chunk.0.saturating_mul(self.bytes()).min(size.0);
        let end = start.saturating_add(self.bytes()).min(size.0);
        Extent { start, end }
    }

    /// Which chunk holds a byte.
    #[must_use]
    pub fn index(self, offset: u64) -> ChunkIndex {
        ChunkIndex(offset / self.bytes())
    }
}

/// The bytes from `start` up to, not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// One after the last byte.
    pub end: u64,
}

impl Extent {
    /// From `start` up to `end`; an inverted range is empty.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// `length` bytes from `start`, cut at the largest offset.
    #[must_use]
    pub fn at(start: u64, length: u64) -> Self {
        Self { start, end: start.saturating_add(length) }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }
}

/// A set of bytes of a disk: sorted extents, none empty, none touching another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Extents(Vec<Extent>);

impl Extents {
    /// No bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All bytes of a disk of this size.
    #[must_use]
    pub fn whole(size: Size) -> Self {
        Self::from_iter([Extent::new(0, size.0)])
    }

    /// Appends an extent that starts nowhere before the last one; what touches or overlaps becomes one.
    ///
    /// This is the way to build a set from a source that is sorted already. An extent that starts earlier than the last one
    /// is still taken in rightly, at the price of a merge.
    pub fn push(&mut self, extent: Extent) {
        if extent.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if extent.start < last.start => *self = self.union(&Self(vec![extent])),
            Some(last) if extent.start <= last.end => last.end = last.end.max(extent.end),
            _ => self.0.push(extent),
        }
    }

    /// The extents, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Extent> + DoubleEndedIterator + '_ {
        self.0.iter().copied()
    }

    /// Number of extents.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of bytes.
    #[must_use]
    pub fn total(&self) -> Size {
        Size(self.0.iter().map(|extent| extent.len()).sum())
    }

    /// Whether a byte is in it.
    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        let after = self.0.partition_point(|extent| extent.start <= offset);
        after > 0 && offset < self.0[after - 1].end
    }

    /// Bytes that are in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut merged = Self(Vec::with_capacity(self.0.len().max(other.0.len())));
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let Some(next) = match (left.peek(), right.peek()) {
            (Some(a), Some(b)) if a.start <= b.start => left.next(),
            (_, Some(_)) => right.next(),
            (_, None) => left.next(),
        } {
            merged.push(*next);
        }
        merged
    }

    /// Bytes that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut common = Self::new();
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            common.push(Extent::new(a.start.max(b.start), a.end.min(b.end)));
            if a.end <= b.end { i += 1 } else { j += 1 }
        }
        common
    }

    /// Bytes that are in this set and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = Self::new();
        let mut j = 0;
        for extent in &self.0 {
            let mut start = extent.start;
            while other.0.get(j).is_some_and(|gone| gone.end <= start) {
                j += 1;
            }
            let mut k = j;
            while let Some(gone) = other.0.get(k).filter(|gone| gone.start < extent.end) {
                rest.push(Extent::new(start, gone.start));
                start = start.max(gone.end);
                k += 1;
            }
            rest.push(Extent::new(start, extent.end));
        }
        rest
    }

    /// Every chunk of a disk of `size` that has a byte in this set, whole; the last chunk is cut at the size.
    #[must_use]
    pub fn round_out(&self, chunk: ChunkSize, size: Size) -> Self {
        let unit = chunk.bytes();
        let mut rounded = Self::new();
        for extent in &self.0 {
            let end = extent.end.min(size.0).div_ceil(unit).saturating_mul(unit).min(size.0);
            rounded.push(Extent::new((extent.start / unit * unit).min(size.0), end));
        }
        rounded
    }

    /// The bytes below `size`.
    #[must_use]
    pub fn clip(&self, size: Size) -> Self {
        self.intersection(&Self::whole(size))
    }

    /// The chunks of this set in order; it must be rounded to chunks.
    pub fn chunks(&self, chunk: ChunkSize) -> impl Iterator<Item = ChunkIndex> + '_ {
        let unit = chunk.bytes();
        self.0.iter().flat_map(move |extent| (extent.start / unit..extent.end.div_ceil(unit)).map(ChunkIndex))
    }
}

impl FromIterator<Extent> for Extents {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut sorted: Vec<Extent> = extents.into_iter().collect();
        sorted.sort_unstable();
        let mut set = Self::new();
        sorted.into_iter().for_each(|extent| set.push(extent));
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPACE: u64 = 200;

    fn set(pairs: &[(u64, u64)]) -> Extents {
        pairs.iter().map(|&(start, end)| Extent::new(start, end)).collect()
    }

    fn any_set() -> impl Strategy<Value = Extents> {
        proptest::collection::vec((0..SPACE, 0..30_u64), 0..12)
            .prop_map(|pairs| pairs.into_iter().map(|(start, len)| Extent::new(start, (start + len).min(SPACE))).collect())
    }

    fn bytes(set: &Extents) -> Vec<bool> {
        (0..SPACE).map(|offset| set.contains(offset)).collect()
    }

    fn is_canonical(set: &Extents) -> bool {
        set.0.iter().all(|extent| !extent.is_empty()) && set.0.windows(2).all(|pair| pair[0].end < pair[1].start)
    }

    proptest! {
        #[test]
        fn the_algebra_agrees_with_sets_of_bytes(a in any_set(), b in any_set()) {
            for (result, expected) in [
                (a.union(&b), |x: bool, y: bool| x || y),
                (a.intersection(&b), |x, y| x && y),
                (a.difference(&b), |x, y| x && !y),
            ] as [(Extents, fn(bool, bool) -> bool); 3] {
                let wanted: Vec<bool> = bytes(&a).into_iter().zip(bytes(&b)).map(|(x, y)| expected(x, y)).collect();
                prop_assert!(is_canonical(&result));
                prop_assert_eq!(bytes(&result), wanted);
            }
        }

        #[test]
        fn pushing_in_any_order_gives_the_union(pairs in proptest::collection::vec((0..SPACE, 0..30_u64), 0..12)) {
            let mut pushed = Extents::new();
            pairs.iter().for_each(|&(start, len)| pushed.push(Extent::at(start, len)));
            prop_assert_eq!(pushed, pairs.iter().map(|&(start, len)| Extent::at(start, len)).collect());
        }

        #[test]
        fn rounding_out_keeps_all_and_is_made_of_chunks(pairs in proptest::collection::vec((0..1_u64 << 20, 0..70_000_u64), 0..6), size in 1..1_u64 << 20) {
            let chunk = ChunkSize::try_from(4096).unwrap();
            let set: Extents = pairs.into_iter().map(|(start, len)| Extent::at(start, len)).collect();
            let rounded = set.round_out(chunk, Size(size));
            prop_assert!(is_canonical(&rounded));
            prop_assert!(set.clip(Size(size)).difference(&rounded).is_empty());
            let from_chunks: Extents = rounded.chunks(chunk).map(|index| chunk.extent(index, Size(size))).collect();
            prop_assert_eq!(from_chunks, rounded);
        }
    }

    #[test]
    fn touching_extents_become_one() {
        assert_eq!(set(&[(0, 10), (10, 20), (30, 30)]).iter().collect::<Vec<_>>(), [Extent::new(0, 20)]);
    }

    #[test]
    fn sets_are_counted_in_extents_and_in_bytes() {
        for (pairs, extents, bytes) in [(&[][..], 0, 0), (&[(5, 9)], 1, 4), (&[(0, 1), (2, 3), (10, 20)], 3, 12)] {
            let set = set(pairs);
            assert_eq!((set.count(), set.total(), set.is_empty()), (extents, Size(bytes), bytes == 0));
        }
        assert_eq!(set(&[(0, 5), (8, 20), (30, 31)]).clip(Size(10)), set(&[(0, 5), (8, 10)]));
        assert_eq!([1, 2, 3, 4, 6, 7].map(|offset| set(&[(2, 4), (6, 7)]).contains(offset)), [false, true, true, false, true, false]);
        assert!(!Extents::new().contains(0) && Extent::new(7, 3).is_empty() && !Extent::new(3, 7).is_empty());
        assert_eq!((Extent::new(3, 7).len(), Extent::at(3, 4)), (4, Extent::new(3, 7)));
    }

    #[test]
    fn bytes_and_chunks_find_each_other() {
        let chunk = ChunkSize::try_from(4096).unwrap();
        for (offset, index) in [(0, 0), (4095, 0), (4096, 1), (40_960, 10)] {
            assert_eq!(chunk.index(offset), ChunkIndex(index), "{offset}");
        }
        let size = Size(10_000);
        assert_eq!(
            [0, 2, 3].map(|index| chunk.extent(ChunkIndex(index), size)),
            [(0, 4096), (8192, 10_000), (10_000, 10_000)].map(|(start, end)| Extent::new(start, end))
        );
        assert_eq!(([0, 1, 8192, 8193].map(|size| chunk.count(Size(size))), u32::from(chunk)), ([0, 1, 2, 3], 4096));
    }

    #[test]
    fn extremes_neither_overflow_nor_panic() {
        let huge = set(&[(u64::MAX - 5, u64::MAX)]);
        assert_eq!(huge.round_out(ChunkSize::DEFAULT, Size(u64::MAX)).count(), 1);
        assert_eq!(Extent::at(u64::MAX - 1, 10).end, u64::MAX);
        assert!(ChunkSize::DEFAULT.extent(ChunkIndex(u64::MAX), Size(10)).is_empty());
    }

    #[test]
    fn chunk_sizes_are_powers_of_two_within_bounds() {
        for bad in [0, 1, 2048, 4097, 32 << 20] {
            assert_eq!(ChunkSize::try_from(bad), Err(ChunkSizeError { bytes: bad }));
        }
        assert_eq!(ChunkSize::DEFAULT.bytes(), 262_144);
        assert_eq!(ChunkSize::DEFAULT.count(Size(262_145)), 2);
    }
}
