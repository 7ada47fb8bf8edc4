//! A blob on its way into a pack and out of it: compressed where that pays, sealed, bounded when it is unpacked.

use std::io::Cursor;

use zstd::bulk::{Compressor, Decompressor};

use crate::error::{Error, Result};
use crate::repository::crypto::{Key, NONCE_BYTES, OVERHEAD, OVERHEAD_BYTES};
use crate::repository::id::{BlobKind, Id};

/// Largest blob that is read, bytes: restic's chunker stays below 8 MiB, ours at the chunk size.
pub const BLOB_BYTES_MAX: u32 = 64 << 20;
/// zstd level: higher ones cost far more time than they save space on disk images.
const LEVEL: i32 = 1;

/// What an index says of a blob in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobEntry {
    /// What it is called: the hash of its plain content.
    pub id: Id,
    /// What it holds.
    pub kind: BlobKind,
    /// Where it begins in the pack, bytes.
    pub offset: u32,
    /// How long it is in the pack, bytes, sealed.
    pub length: u32,
    /// How long its content is, bytes, if it is compressed.
    pub plain_length: Option<u32>,
}

impl BlobEntry {
    /// Bytes of the content.
    #[must_use]
    pub fn content_length(&self) -> u32 {
        self.plain_length.unwrap_or_else(|| self.length.saturating_sub(OVERHEAD))
    }

    /// Where it ends in the pack, bytes.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}

/// A blob that is ready for a pack.
#[derive(Debug)]
pub struct SealedBlob {
    /// What it is called.
    pub id: Id,
    /// What it holds.
    pub kind: BlobKind,
    /// Its bytes in the pack.
    pub bytes: Vec<u8>,
    /// How long its content is, if it is compressed.
    pub plain_length: Option<u32>,
}

/// Compresses and seals; one per thread, because the compressor's memory is reused.
pub struct Sealer {
    compressor: Compressor<'static>,
}

impl Sealer {
    /// A new one.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> Result<Self> {
        Compressor::new(LEVEL).map(|compressor| Self { compressor }).map_err(|error| Error::internal("set up compression", error))
    }

    /// Packs one blob.
    ///
    /// # Errors
    /// When the blob is larger than we read back, or the libraries refuse.
    pub fn seal(&mut self, key: &Key, id: Id, kind: BlobKind, plain: &[u8]) -> Result<SealedBlob> {
        let length = u32::try_from(plain.len()).ok().filter(|length| *length <= BLOB_BYTES_MAX);
        let length =
            length.ok_or_else(|| Error::Refused { problem: format!("a blob of {} bytes is too large for a pack", plain.len()) })?;
        let compressed = self.compress(plain)?;
        let plain_length = compressed.is_some().then_some(length);
        let mut bytes = compressed.unwrap_or_else(|| {
            let mut bytes = Vec::with_capacity(plain.len().saturating_add(OVERHEAD_BYTES));
            bytes.resize(NONCE_BYTES, 0);
            bytes.extend_from_slice(plain);
            bytes
        });
        key.seal_in_place(&mut bytes)?;
        Ok(SealedBlob { id, kind, bytes, plain_length })
    }

    /// Room for the nonce, then the compressed content; nothing if that is not smaller. On random bytes zstd gives up so fast that
    /// trying a sample first would cost more than it saves.
    fn compress(&mut self, plain: &[u8]) -> Result<Option<Vec<u8>>> {
        let bound = zstd::zstd_safe::compress_bound(plain.len());
        let mut bytes = Vec::with_capacity(bound.saturating_add(OVERHEAD_BYTES));
        bytes.resize(NONCE_BYTES, 0);
        let mut room = Cursor::new(&mut bytes);
        room.set_position(NONCE_BYTES as u64);
        let length = self.compressor.compress_to_buffer(plain, &mut room).map_err(|error| Error::internal("compress", error))?;
        Ok((length < plain.len()).then_some(bytes))
    }
}

/// Opens blobs; one per thread.
pub struct Opener {
    decompressor: Decompressor<'static>,
}

impl Opener {
    /// A new one.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> Result<Self> {
        Decompressor::new().map(|decompressor| Self { decompressor }).map_err(|error| Error::internal("set up decompression", error))
    }

    /// Opens a blob's bytes from a pack into `plain` and checks that they hash to the blob's id; says what is wrong otherwise.
    ///
    /// # Errors
    /// In words: not authentic, not decompressible, or another content than its name says.
    pub fn open(&mut self, key: &Key, entry: &BlobEntry, sealed: &mut [u8], plain: &mut Vec<u8>) -> std::result::Result<(), String> {
        let opened = key.open(sealed).map_err(|error| error.to_string())?;
        plain.clear();
        match entry.plain_length {
            None => plain.extend_from_slice(opened),
            Some(length) => {
                plain.resize(usize::try_from(length.min(BLOB_BYTES_MAX)).map_err(|error| error.to_string())?, 0);
                let written = self
                    .decompressor
                    .decompress_to_buffer(opened, plain.as_mut_slice())
                    .map_err(|error| format!("it does not decompress: {error}"))?;
                plain.truncate(written);
            }
        }
        let is = Id::of(plain);
        if is == entry.id { Ok(()) } else { Err(format!("its content hashes to {is}")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> Key {
        Key::new(&[1; 32], &[2; 16], &[3; 16]).unwrap()
    }

    fn entry(blob: &SealedBlob) -> BlobEntry {
        BlobEntry {
            id: blob.id,
            kind: blob.kind,
            offset: 0,
            length: u32::try_from(blob.bytes.len()).unwrap(),
            plain_length: blob.plain_length,
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(plain in prop::collection::vec(any::<u8>(), 0..3000), times in 1..40_usize) {
            let plain = plain.repeat(times);
            let mut blob = Sealer::new().unwrap().seal(&key(), Id::of(&plain), BlobKind::Data, &plain).unwrap();
            let entry = entry(&blob);
            prop_assert_eq!(entry.content_length() as usize, plain.len());
            let mut out = Vec::new();
            Opener::new().unwrap().open(&key(), &entry, &mut blob.bytes, &mut out).unwrap();
            prop_assert_eq!(out, plain);
        }
    }

    #[test]
    fn random_bytes_are_not_compressed_and_text_is() {
        let mut random = vec![0; 256 << 10];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let mut sealer = Sealer::new().unwrap();
        assert_eq!(sealer.seal(&key(), Id::of(&random), BlobKind::Data, &random).unwrap().plain_length, None);
        let text = b"how now brown cow ".repeat(20_000);
        assert!(sealer.seal(&key(), Id::of(&text), BlobKind::Data, &text).unwrap().bytes.len() < 2000);
    }

    #[test]
    fn a_blob_that_unpacks_to_more_than_recorded_or_to_something_else_is_refused() {
        let plain = vec![7; 100_000];
        let mut blob = Sealer::new().unwrap().seal(&key(), Id::of(&plain), BlobKind::Data, &plain).unwrap();
        let mut short = entry(&blob);
        short.plain_length = Some(99_999);
        let mut other = entry(&blob);
        other.id = Id([9; 32]);
        let (mut opener, mut out, bytes) = (Opener::new().unwrap(), Vec::new(), blob.bytes.clone());
        assert!(opener.open(&key(), &short, &mut blob.bytes, &mut out).unwrap_err().contains("decompress"));
        assert!(opener.open(&key(), &other, &mut bytes.clone(), &mut out).unwrap_err().contains("hashes to"));
    }
}
