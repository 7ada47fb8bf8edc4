//! Atoms as keepmark sees them: bytes.

use keepmark_model::seam::Result;

use super::failed;
use crate::sim::image::ATOM;

/// Atoms as bytes: the number at both ends of each.
pub fn encode(atoms: impl ExactSizeIterator<Item = u32>) -> Vec<u8> {
    let unit = usize::try_from(ATOM).unwrap_or_default();
    let mut bytes = vec![0; atoms.len() * unit];
    for (space, atom) in bytes.chunks_exact_mut(unit).zip(atoms) {
        space[..4].copy_from_slice(&atom.to_le_bytes());
        space[unit - 4..].copy_from_slice(&atom.to_le_bytes());
    }
    bytes
}

/// Bytes as atoms.
pub fn decode(bytes: &[u8]) -> Result<Vec<u32>> {
    let unit = usize::try_from(ATOM).unwrap_or_default();
    let atom = |space: &[u8]| match (space.first_chunk::<4>(), space.last_chunk::<4>()) {
        (Some(head), Some(tail)) if head == tail && space.len() == unit => Ok(u32::from_le_bytes(*head)),
        _ => Err(failed("these are no whole atoms")),
    };
    bytes.chunks(unit).map(atom).collect()
}
