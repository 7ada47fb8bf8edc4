//! Ranges made fit for a server: rounded outward to its minimum block size, cut at its maximum.

use crate::info::BlockSizes;

/// Longer requests gain nothing and would hold that much memory each, whatever a server allows.
const PIECE_MAX: u32 = 32 << 20;

/// A range of an export in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Span {
    pub(crate) fn new(offset: u64, length: u64) -> Span {
        Span { offset, length }
    }

    /// Rounded outward to the blocks that the server insists on, but not beyond the export's end: `size` need not
    /// be a multiple. The span must lie within `size`.
    pub(crate) fn rounded(self, sizes: BlockSizes, size: u64) -> Span {
        let mask = u64::from(sizes.minimum) - 1;
        let start = self.offset & !mask;
        let end = self.offset + self.length;
        let end = end.checked_add(mask).map_or(size, |e| e & !mask).min(size.max(end));
        Span::new(start, end - start)
    }

    pub(crate) fn is_aligned(self, sizes: BlockSizes, size: u64) -> bool {
        self.rounded(sizes, size) == self
    }

    /// Cut into pieces of at most `piece_max` bytes.
    pub(crate) fn pieces(self, piece_max: u64) -> Pieces {
        Pieces { rest: self, piece_max }
    }
}

/// A span in pieces, in order.
#[derive(Debug)]
pub(crate) struct Pieces {
    rest: Span,
    piece_max: u64,
}

impl Iterator for Pieces {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let Span { offset, length } = self.rest;
        let taken = length.min(self.piece_max);
        self.rest = Span::new(offset + taken, length - taken);
        (taken > 0).then_some(Span::new(offset, taken))
    }
}

/// The longest read or write for this server.
pub(crate) fn piece_max(sizes: BlockSizes) -> u64 {
    u64::from(sizes.maximum.min(PIECE_MAX) & !(sizes.minimum - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_the_span_in_order(offset in 0_u64..1 << 40, length in 0_u64..1 << 20, max in 1_u64..1 << 16) {
            prop_assume!(length / max < 10_000);
            let mut position = offset;
            for piece in Span::new(offset, length).pieces(max) {
                prop_assert_eq!(piece.offset, position);
                prop_assert!(piece.length > 0 && piece.length <= max);
                position += piece.length;
            }
            prop_assert_eq!(position, offset + length);
        }

        #[test]
        fn rounding_goes_outward_within_the_export(size in 1_u64..1 << 40, a in any::<u64>(), b in any::<u64>(), bits in 0_u32..17) {
            let sizes = BlockSizes { minimum: 1 << bits, ..BlockSizes::DEFAULT };
            let offset = a % size;
            let length = b % (size - offset) + 1;
            let rounded = Span::new(offset, length).rounded(sizes, size);
            let (start, end) = (rounded.offset, rounded.offset + rounded.length);
            prop_assert!(start <= offset && end >= offset + length && end <= size);
            prop_assert_eq!(start % (1 << bits), 0);
            prop_assert!(end % (1 << bits) == 0 || end == size);
            prop_assert!(rounded.is_aligned(sizes, size));
        }
    }

    #[test]
    fn pieces_respect_the_server() {
        let sizes = |minimum, maximum| BlockSizes { minimum, preferred: minimum, maximum };
        assert_eq!(piece_max(sizes(1, u32::MAX)), 32 << 20);
        assert_eq!(piece_max(sizes(512, 65_536)), 65_536);
        assert_eq!(piece_max(sizes(4096, 10_000)), 8192);
    }
}
