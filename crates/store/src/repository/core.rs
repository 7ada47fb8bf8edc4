//! What every part of an open repository needs: where its files are, and its key.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::repository::backend::{Backend, FileKind};
use crate::repository::blob::{BlobEntry, Opener, SealedBlob};
use crate::repository::crypto::Key;
use crate::repository::id::PackId;

/// Where an open repository's files are, and its key.
pub struct Core {
    /// Its files.
    pub backend: Arc<dyn Backend>,
    /// Its key.
    pub key: Key,
}

/// A thread's buffers for reading blobs.
pub struct Scratch {
    opener: Opener,
    sealed: Vec<u8>,
    /// The content of the blob read last.
    pub plain: Vec<u8>,
}

impl Scratch {
    /// Empty buffers.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new() -> Result<Self> {
        Ok(Self { opener: Opener::new()?, sealed: Vec::new(), plain: Vec::new() })
    }
}

impl Core {
    /// Reads a blob into `scratch.plain` and checks it against its id.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the pack.
    pub fn read_blob(&self, pack: &PackId, entry: &BlobEntry, scratch: &mut Scratch) -> Result<()> {
        self.read_sealed(pack, entry, scratch)?;
        self.open_sealed(pack, entry, scratch)
    }

    /// Reads a blob as it lies in its pack, checked against its id. What is sealed does not say where it lies: it can be moved.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the pack.
    pub fn read_movable(&self, pack: &PackId, entry: &BlobEntry, scratch: &mut Scratch) -> Result<SealedBlob> {
        self.read_sealed(pack, entry, scratch)?;
        let bytes = scratch.sealed.clone();
        self.open_sealed(pack, entry, scratch)?;
        Ok(SealedBlob { id: entry.id, kind: entry.kind, bytes, plain_length: entry.plain_length })
    }

    fn read_sealed(&self, pack: &PackId, entry: &BlobEntry, scratch: &mut Scratch) -> Result<()> {
        if entry.length > super::blob::BLOB_BYTES_MAX {
            return Err(damaged(pack, entry, "it is longer than any blob"));
        }
        scratch.sealed.resize(entry.length as usize, 0);
        let read = self.backend.read_at(FileKind::Pack, pack, u64::from(entry.offset), &mut scratch.sealed);
        read.map_err(|error| damaged(pack, entry, &reason(&error)))
    }

    fn open_sealed(&self, pack: &PackId, entry: &BlobEntry, scratch: &mut Scratch) -> Result<()> {
        let opened = scratch.opener.open(&self.key, entry, &mut scratch.sealed, &mut scratch.plain);
        opened.map_err(|problem| damaged(pack, entry, &problem))
    }
}

fn damaged(pack: &PackId, entry: &BlobEntry, problem: &str) -> Error {
    Error::damaged("pack", pack, format!("blob {} at {}: {problem}", entry.id, entry.offset))
}

/// What the operating system said, without the path that the pack's name tells already.
fn reason(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("cannot be read: {source}"),
        None => error.to_string(),
    }
}
