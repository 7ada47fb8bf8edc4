//! Fixed-width records of the local index, and the blocks with checksums that they lie in.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use aws_lc_rs::digest::{Context, SHA256};

use crate::repository::blob::BlobEntry;
use crate::repository::id::{BlobKind, ID_BYTES, Id};

/// Bytes of a block in a run.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a block without its checksum.
pub const PAYLOAD_BYTES: usize = BLOCK_BYTES - ID_BYTES;
/// Bytes of a record.
pub const RECORD_BYTES: usize = 48;
/// Records in a block.
pub const BLOCK_RECORDS: usize = PAYLOAD_BYTES / RECORD_BYTES;
/// Pack ids in a block.
pub const BLOCK_PACKS: usize = PAYLOAD_BYTES / ID_BYTES;
/// Packs that one run can name; the bit above them says that the blob is a tree.
pub const PACKS_MAX: u32 = TREE_BIT;
const TREE_BIT: u32 = 1 << 31;

/// Where one blob is: its entry, and the number of its pack in the run's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What the index says of it.
    pub entry: BlobEntry,
    /// Number of its pack.
    pub pack: u32,
}

impl Record {
    /// Sorts by id; the rest makes equal records neighbours.
    #[must_use]
    pub fn sort_key(&self) -> (Id, u32, u32) {
        (self.entry.id, self.pack, self.entry.offset)
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let pack = self.pack | if self.entry.kind == BlobKind::Tree { TREE_BIT } else { 0 };
        let numbers = [pack, self.entry.offset, self.entry.length, self.entry.plain_length.unwrap_or(0)];
        let mut bytes = [0; RECORD_BYTES];
        let (id, rest) = bytes.split_at_mut(ID_BYTES);
        id.copy_from_slice(&self.entry.id.0);
        for (slot, number) in rest.chunks_exact_mut(4).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// From its bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk::<ID_BYTES>()?;
        let mut numbers = rest.chunks_exact(4).filter_map(|slot| slot.try_into().ok().map(u32::from_le_bytes));
        let (pack, offset, length, plain) = (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?);
        let kind = if pack & TREE_BIT == 0 { BlobKind::Data } else { BlobKind::Tree };
        let entry = BlobEntry { id: Id(*id), kind, offset, length, plain_length: (plain != 0).then_some(plain) };
        Some(Self { entry, pack: pack & !TREE_BIT })
    }
}

/// The checksum of block `number`: of its number and content, so that no block can stand in for another.
#[must_use]
pub fn checksum(number: u64, payload: &[u8]) -> [u8; ID_BYTES] {
    let mut hash = Context::new(&SHA256);
    hash.update(&number.to_le_bytes());
    hash.update(payload);
    let mut sum = [0; ID_BYTES];
    sum.copy_from_slice(hash.finish().as_ref());
    sum
}

/// Reads a block and checks it; the payload is what it holds.
///
/// # Errors
/// In words, when it cannot be read or is not what was written.
pub fn read_block(file: &File, number: u64, block: &mut [u8; BLOCK_BYTES]) -> Result<(), String> {
    file.read_exact_at(block, number.saturating_mul(BLOCK_BYTES as u64)).map_err(|error| error.to_string())?;
    let (payload, sum) = block.split_at(PAYLOAD_BYTES);
    if checksum(number, payload) == *sum { Ok(()) } else { Err(format!("block {number} does not fit its checksum")) }
}
