//! What need not be stored again: blobs of this run, and blobs in the index whose packs are really there.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::repository::backend::FileKind;
use crate::repository::core::Core;
use crate::repository::id::{BlobKind, Id, PackId};
use crate::repository::index::{Index, Place};
use crate::repository::pack::PublishedPack;

/// Decides who stores a blob.
pub struct Known {
    core: Arc<Core>,
    index: Arc<Index>,
    /// Blobs of this run that are in no index file yet. Bounded by what is stored between two index files.
    claimed: Mutex<HashSet<(BlobKind, Id)>>,
    /// Sizes of the packs that were looked for; an index may name packs that are gone.
    packs: Mutex<HashMap<PackId, Option<u64>>>,
}

impl Known {
    /// Knows what the index knows.
    #[must_use]
    pub fn new(core: Arc<Core>, index: Arc<Index>) -> Self {
        Self { core, index, claimed: Mutex::default(), packs: Mutex::default() }
    }

    /// Whether the caller must store this blob; whoever asks after it need not.
    ///
    /// # Errors
    /// When the index or the packs cannot be looked at.
    pub fn claim(&self, kind: BlobKind, id: Id) -> Result<bool> {
        // Claimed first, looked up then: what leaves the claims is in the index by then.
        if !self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert((kind, id)) {
            return Ok(false);
        }
        for place in self.index.find(&id, kind)? {
            if self.is_there(&place)? {
                self.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&(kind, id));
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_there(&self, place: &Place) -> Result<bool> {
        let known = self.packs.lock().unwrap_or_else(PoisonError::into_inner).get(&place.pack).copied();
        let size = match known {
            Some(size) => size,
            None => {
                let size = self.core.backend.size(FileKind::Pack, &place.pack)?;
                self.packs.lock().unwrap_or_else(PoisonError::into_inner).insert(place.pack, size);
                size
            }
        };
        Ok(size.is_some_and(|size| place.entry.end() <= size))
    }

    /// These packs are in an index file now.
    ///
    /// # Errors
    /// When the local index cannot be written.
    pub fn indexed(&self, file: Id, packs: &[PublishedPack]) -> Result<()> {
        self.index.add(file, packs)?;
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        for blob in packs.iter().flat_map(|pack| &pack.blobs) {
            claimed.remove(&(blob.kind, blob.id));
        }
        Ok(())
    }
}
