//! Which bytes of a read have arrived: chunks may come in any order, each byte exactly once.

use crate::wire::Violation;

/// Separate pieces that are remembered at most. Servers send in order or nearly so; only a hostile one needs more.
const PIECES_MAX: usize = 4096;

/// The bytes of a request of `length` bytes that have arrived.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// Start and end, sorted, neither touching nor overlapping.
    pieces: Vec<(u64, u64)>,
}

impl Coverage {
    /// Records `start..end`, relative to the request.
    pub(crate) fn add(&mut self, start: u64, end: u64) -> Result<(), Violation> {
        let next = self.pieces.partition_point(|piece| piece.0 < start);
        let overlaps_previous = next > 0 && self.pieces[next - 1].1 > start;
        let overlaps_next = self.pieces.get(next).is_some_and(|piece| piece.0 < end);
        if overlaps_previous || overlaps_next {
            return Err(Violation::Overlap { start });
        }
        self.insert(next, start, end)
    }

    fn insert(&mut self, next: usize, start: u64, end: u64) -> Result<(), Violation> {
        let joins_previous = next > 0 && self.pieces[next - 1].1 == start;
        let joins_next = self.pieces.get(next).is_some_and(|piece| piece.0 == end);
        match (joins_previous, joins_next) {
            (true, true) => self.pieces[next - 1].1 = self.pieces.remove(next).1,
            (true, false) => self.pieces[next - 1].1 = end,
            (false, true) => self.pieces[next].0 = start,
            (false, false) if self.pieces.len() == PIECES_MAX => return Err(Violation::Fragmented),
            (false, false) => self.pieces.insert(next, (start, end)),
        }
        Ok(())
    }

    /// Whether all of `length` bytes have arrived.
    pub(crate) fn is_complete(&self, length: u64) -> bool {
        length == 0 || self.pieces == [(0, length)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The same answers as one flag per byte.
        #[test]
        fn like_a_flag_per_byte(chunks in prop::collection::vec((0_usize..40, 1_usize..9), 0..40)) {
            let mut coverage = Coverage::default();
            let mut flags = [false; 48];
            for (start, length) in chunks {
                let range = &mut flags[start..start + length];
                let fresh = !range.contains(&true);
                let added = coverage.add(start as u64, (start + length) as u64).is_ok();
                prop_assert_eq!(added, fresh);
                if fresh {
                    range.fill(true);
                }
                let filled = flags.iter().take_while(|f| **f).count();
                let exact = flags[filled..].iter().all(|f| !f);
                prop_assert_eq!(coverage.is_complete(filled as u64), exact || filled == 0);
            }
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut coverage = Coverage::default();
        let refused = (0..1_000_000).find(|i| coverage.add(i * 2, i * 2 + 1).is_err());
        assert_eq!(refused, Some(PIECES_MAX as u64));
    }
}
