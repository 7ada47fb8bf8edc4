//! Packs: blobs one after the other, then a sealed table of them, then the table's length. The name is the hash of all.

use aws_lc_rs::digest::{Context, SHA256};

use crate::error::{Error, Result};
use crate::repository::backend::{Backend, FileKind, Upload};
use crate::repository::blob::{BlobEntry, SealedBlob};
use crate::repository::crypto::{Key, OVERHEAD};
use crate::repository::id::{BlobKind, ID_BYTES, Id, PackId};

/// A pack is closed when it has this many bytes.
pub const PACK_BYTES: u64 = 16 << 20;
/// Bytes of the table's length at a pack's end.
const TRAILER_BYTES: u64 = 4;
/// Largest table that is read, bytes; restic's own limit.
const HEADER_BYTES_MAX: u32 = 16 << 20;

/// A pack while it is being filled; streamed to where it will be, so that it needs no memory of its size.
pub struct OpenPack {
    upload: Box<dyn Upload>,
    hash: Context,
    length: u64,
    blobs: Vec<BlobEntry>,
}

/// A pack whose content is complete, but neither durable nor visible.
pub struct FullPack {
    upload: Box<dyn Upload>,
    /// Its name.
    pub id: PackId,
    /// What it has.
    pub blobs: Vec<BlobEntry>,
    /// Bytes.
    pub length: u64,
}

impl OpenPack {
    /// An empty pack.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn new(backend: &dyn Backend) -> Result<Self> {
        Ok(Self { upload: backend.upload()?, hash: Context::new(&SHA256), length: 0, blobs: Vec::new() })
    }

    /// Adds a blob to the pack that is open, or to a new one; gives it when it should be closed.
    ///
    /// # Errors
    /// When it cannot be written; the open pack is given up then.
    pub fn fill(open: &mut Option<Self>, backend: &dyn Backend, blob: &SealedBlob) -> Result<Option<Self>> {
        let mut pack = match open.take() {
            Some(pack) => pack,
            None => Self::new(backend)?,
        };
        pack.add(blob)?;
        if pack.length >= PACK_BYTES {
            return Ok(Some(pack));
        }
        *open = Some(pack);
        Ok(None)
    }

    /// Adds a blob.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, blob: &SealedBlob) -> Result<()> {
        let (offset, length) = (u32::try_from(self.length), u32::try_from(blob.bytes.len()));
        let (Ok(offset), Ok(length)) = (offset, length) else {
            return Err(Error::Refused { problem: "a pack grew beyond 4 GiB".to_owned() });
        };
        self.append(&blob.bytes)?;
        self.blobs.push(BlobEntry { id: blob.id, kind: blob.kind, offset, length, plain_length: blob.plain_length });
        Ok(())
    }

    /// Closes it: adds the table.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(mut self, key: &Key) -> Result<FullPack> {
        let table = key.seal(&encode_table(&self.blobs))?;
        let table_length = u32::try_from(table.len()).map_err(|error| Error::internal("close a pack", error))?;
        self.append(&table)?;
        self.append(&table_length.to_le_bytes())?;
        let id =
            Id::from_slice(self.hash.finish().as_ref()).ok_or_else(|| Error::internal("close a pack", "its hash has another length"))?;
        Ok(FullPack { upload: self.upload, id, blobs: self.blobs, length: self.length })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.upload.append(bytes)?;
        self.hash.update(bytes);
        self.length = self.length.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

impl FullPack {
    /// Makes the content durable and the pack visible; its name is durable after [`Backend::settle`].
    ///
    /// # Errors
    /// When that fails.
    pub fn publish(self) -> Result<PublishedPack> {
        self.upload.publish(FileKind::Pack, &self.id)?;
        Ok(PublishedPack { id: self.id, blobs: self.blobs })
    }
}

/// A pack that is there, and what an index must say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPack {
    /// Its name.
    pub id: PackId,
    /// What it has.
    pub blobs: Vec<BlobEntry>,
}

fn encode_table(blobs: &[BlobEntry]) -> Vec<u8> {
    let mut table = Vec::with_capacity(blobs.len().saturating_mul(41));
    for blob in blobs {
        let kind = match (blob.kind, blob.plain_length) {
            (BlobKind::Data, None) => 0_u8,
            (BlobKind::Tree, None) => 1,
            (BlobKind::Data, Some(_)) => 2,
            (BlobKind::Tree, Some(_)) => 3,
        };
        table.push(kind);
        table.extend_from_slice(&blob.length.to_le_bytes());
        if let Some(length) = blob.plain_length {
            table.extend_from_slice(&length.to_le_bytes());
        }
        table.extend_from_slice(&blob.id.0);
    }
    table
}

/// Reads the table of a pack of `size` bytes.
///
/// # Errors
/// [`Error::Damaged`] when there is none that makes sense.
pub fn read_table(backend: &dyn Backend, key: &Key, id: &PackId, size: u64) -> Result<Vec<BlobEntry>> {
    let damaged = |problem: &str| Error::damaged("pack", id, problem);
    let mut trailer = [0; 4];
    let trailer_at = size.checked_sub(TRAILER_BYTES).ok_or_else(|| damaged("it is too short for a pack"))?;
    backend.read_at(FileKind::Pack, id, trailer_at, &mut trailer)?;
    let length = u32::from_le_bytes(trailer);
    let table_at = trailer_at.checked_sub(u64::from(length)).filter(|_| length <= HEADER_BYTES_MAX);
    let table_at = table_at.ok_or_else(|| damaged("its table does not fit into it"))?;
    let mut sealed = vec![0; usize::try_from(length).map_err(|error| Error::internal("read a pack's table", error))?];
    backend.read_at(FileKind::Pack, id, table_at, &mut sealed)?;
    let table = key.open(&mut sealed).map_err(|error| damaged(&error.to_string()))?;
    decode_table(table).ok_or_else(|| damaged("its table makes no sense"))
}

fn decode_table(mut table: &[u8]) -> Option<Vec<BlobEntry>> {
    let (mut blobs, mut offset) = (Vec::new(), 0_u32);
    while let Some((kind, rest)) = table.split_first() {
        let (kind, compressed) = match kind {
            0 => (BlobKind::Data, false),
            1 => (BlobKind::Tree, false),
            2 => (BlobKind::Data, true),
            3 => (BlobKind::Tree, true),
            _ => return None,
        };
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (plain_length, rest) = if compressed {
            rest.split_first_chunk::<4>().map(|(length, rest)| (Some(u32::from_le_bytes(*length)), rest))?
        } else {
            (None, rest)
        };
        let (id, rest) = rest.split_first_chunk::<ID_BYTES>()?;
        let length = u32::from_le_bytes(*length);
        if length < OVERHEAD {
            return None;
        }
        blobs.push(BlobEntry { id: Id(*id), kind, offset, length, plain_length });
        offset = offset.checked_add(length)?;
        table = rest;
    }
    Some(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back_and_half_a_table_is_refused() {
        let blobs = vec![
            BlobEntry { id: Id([1; 32]), kind: BlobKind::Data, offset: 0, length: 100, plain_length: None },
            BlobEntry { id: Id([2; 32]), kind: BlobKind::Tree, offset: 100, length: 50, plain_length: Some(400) },
            BlobEntry { id: Id([3; 32]), kind: BlobKind::Data, offset: 150, length: 70, plain_length: Some(300) },
        ];
        let table = encode_table(&blobs);
        assert_eq!(table.len(), 37 + 41 + 41);
        assert_eq!(decode_table(&table).unwrap(), blobs);
        for cut in [1, 36, 38, 118] {
            assert_eq!(decode_table(&table[..cut]), None, "{cut}");
        }
        assert_eq!(decode_table(&[9; 41]), None);
    }
}
