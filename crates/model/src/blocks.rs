//! What has to be changed in a range so that it holds what it held then: pure, in blocks finer than chunks.
//!
//! A chunk that differs differs in few places: blocks of a file system's own size keep the writes about as small as what was
//! written since.

use crate::extents::Extent;
use crate::writing::Change;

const BLOCK: usize = 4096;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The changes that take the range from `now` to `then`; none stands for zeros. Both are as long as the range.
#[must_use]
pub fn changes<'c>(range: Extent, now: Option<&'c [u8]>, then: Option<&'c [u8]>) -> Vec<Change> {
    let length = usize::try_from(range.len()).unwrap_or(usize::MAX);
    let mut found: Vec<Change> = Vec::new();
    for start in (0..length).step_by(BLOCK) {
        let end = length.min(start + BLOCK);
        let block = |bytes: Option<&'c [u8]>| -> &'c [u8] { bytes.map_or(&ZEROS[..end - start], |bytes| &bytes[start..end]) };
        if block(now) != block(then) {
            note(&mut found, range.start + start as u64, block(then));
        }
    }
    found
}

fn note(found: &mut Vec<Change>, at: u64, block: &[u8]) {
    let end = at + block.len() as u64;
    let is_zero = *block == ZEROS[..block.len()];
    match found.last_mut() {
        Some(Change::Zero(extent)) if is_zero && extent.end == at => extent.end = end,
        Some(Change::Data { offset, bytes }) if !is_zero && *offset + bytes.len() as u64 == at => bytes.extend_from_slice(block),
        _ if is_zero => found.push(Change::Zero(Extent::new(at, end))),
        _ => found.push(Change::Data { offset: at, bytes: block.to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(blocks: &[u8], tail: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = blocks.iter().flat_map(|value| vec![*value; BLOCK]).collect();
        bytes.extend(vec![9; tail]);
        bytes
    }

    #[test]
    fn only_what_differs_is_changed_in_runs() {
        let (now, then) = (content(&[1, 1, 2, 3, 4, 4], 0), content(&[1, 5, 6, 3, 0, 0], 0));
        let block = BLOCK as u64;
        let start = 10 * block;
        let expected = [
            Change::Data { offset: start + block, bytes: content(&[5, 6], 0) },
            Change::Zero(Extent::new(start + 4 * block, start + 6 * block)),
        ];
        assert_eq!(changes(Extent::at(start, 6 * block), Some(&now), Some(&then)), expected);
        assert_eq!(changes(Extent::at(0, 6 * block), Some(&now), Some(&now)), []);
        assert_eq!(changes(Extent::at(0, 6 * block), None, None), []);
        assert_eq!(
            changes(Extent::at(0, 2 * block), None, Some(&content(&[0, 7], 0))),
            [Change::Data { offset: block, bytes: content(&[7], 0) }]
        );
        assert_eq!(changes(Extent::at(0, 2 * block), Some(&content(&[0, 7], 0)), None), [Change::Zero(Extent::new(block, 2 * block))]);
    }

    proptest! {
        #[test]
        fn applied_they_give_what_was_then(now in proptest::collection::vec(0..3_u8, 8), then in proptest::collection::vec(0..3_u8, 8), tail in 0..BLOCK) {
            let (mut now, then) = (content(&now, tail), content(&then, tail));
            let mut last_end = 0;
            for change in changes(Extent::at(0, now.len() as u64), Some(&now.clone()), Some(&then)) {
                let (start, bytes) = match change {
                    Change::Data { offset, bytes } => (usize::try_from(offset).unwrap(), bytes),
                    Change::Zero(extent) => (usize::try_from(extent.start).unwrap(), vec![0; usize::try_from(extent.len()).unwrap()]),
                };
                prop_assert!(start >= last_end && !bytes.is_empty());
                last_end = start + bytes.len();
                now[start..last_end].copy_from_slice(&bytes);
            }
            prop_assert_eq!(now, then);
        }
    }
}
