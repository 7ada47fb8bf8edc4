//! What need not be stored again: blobs of this run, and blobs in the index whose packs are really there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Core;
use crate::repository::id::{BlobKind, Id, PackId};
use crate::repository::index::{Index, Place};
use crate::repository::noun;
use crate::repository::pack::{PublishedPack, read_table};
use crate::repository::write::needs::{Indexes, Needs};

/// What is known of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pack {
    /// It is not there, too short, or damaged.
    Useless,
    /// It is there and has so many bytes.
    There(u64),
    /// And its own table names a blob that was looked for: it is the pack that the index means, to its end.
    Sound(u64),
}

/// Decides who stores a blob.
pub struct Known {
    core: Arc<Core>,
    index: Arc<Index>,
    /// Blobs of this run that are in no index file yet. Bounded by what is stored between two index files.
    claimed: Mutex<HashSet<(BlobKind, Id)>>,
    /// What is known of packs; an index may name packs that are gone.
    packs: Mutex<HashMap<PackId, Pack>>,
    /// Packs that cannot be read, or are about to go: as good as gone.
    unusable: BTreeSet<PackId>,
    /// What the backup needs of what is there.
    needs: Mutex<Needs>,
}

impl Known {
    /// Knows what the index knows, except what is in these packs.
    #[must_use]
    pub fn new(core: Arc<Core>, index: Arc<Index>, unusable: BTreeSet<PackId>) -> Self {
        Self { core, index, claimed: Mutex::default(), packs: Mutex::default(), unusable, needs: Mutex::default() }
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
        let is_known = self.find(kind, &id)?.0;
        if is_known {
            self.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&(kind, id));
        }
        Ok(!is_known)
    }

    /// Notes that the backup needs a blob of its base.
    ///
    /// # Errors
    /// When it is not there.
    pub fn require(&self, kind: BlobKind, id: &Id) -> Result<()> {
        if self.claimed.lock().unwrap_or_else(PoisonError::into_inner).contains(&(kind, *id)) {
            return Ok(());
        }
        match self.find(kind, id)? {
            (true, _) => Ok(()),
            (false, Some(place)) => {
                Err(Error::damaged("pack", place.pack, format!("it is gone, about to go, cut or damaged and had {} {id}", noun(kind))))
            }
            (false, None) => Err(Error::Missing { kind: noun(kind), id: id.hex() }),
        }
    }

    /// Notes all that a base needs, if it is there.
    ///
    /// # Errors
    /// When the repository cannot be looked at.
    pub fn require_all(&self, base: &Needs) -> Result<bool> {
        match base.indexes_now(&*self.core.backend)? {
            Indexes::Same if self.index.covers(base.indexes.keys()) => {}
            Indexes::Same | Indexes::Gone => return Ok(false),
            Indexes::Damaged => {
                self.index.rebuild()?;
                return Ok(false);
            }
        }
        let mut whole = true;
        // All of them, so that whatever is stored anew then does not count on any that is damaged.
        for (pack, length) in &base.packs {
            whole &= self.has(pack, *length)?;
        }
        if !whole {
            return Ok(false);
        }
        self.needs.lock().unwrap_or_else(PoisonError::into_inner).extend(base);
        Ok(true)
    }

    /// What the backup needs, as far as it has come.
    #[must_use]
    pub fn needs(&self) -> Needs {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a blob is in a pack that is there, which is noted; else one of the places where it should be.
    fn find(&self, kind: BlobKind, id: &Id) -> Result<(bool, Option<Place>)> {
        let places = self.index.find(id, kind)?;
        for place in &places {
            if self.has(&place.pack, place.entry.end())? && self.is_sound(place)? {
                self.needs.lock().unwrap_or_else(PoisonError::into_inner).add(place);
                return Ok((true, Some(*place)));
            }
        }
        Ok((false, places.first().copied()))
    }

    /// Whether a pack is there, so long at least, and not known to be damaged. One that was too short once is believed no more.
    fn has(&self, pack: &PackId, length: u64) -> Result<bool> {
        let known = self.packs.lock().unwrap_or_else(PoisonError::into_inner).get(pack).copied();
        let found = match known {
            Some(known) => known,
            None if self.unusable.contains(pack) => Pack::Useless,
            None => self.core.backend.size(FileKind::Pack, pack)?.map_or(Pack::Useless, Pack::There),
        };
        let (has, now) = match found {
            Pack::There(size) | Pack::Sound(size) if length <= size => (true, found),
            Pack::There(_) | Pack::Sound(_) | Pack::Useless => (false, Pack::Useless),
        };
        if known != Some(now) {
            self.packs.lock().unwrap_or_else(PoisonError::into_inner).insert(*pack, now);
        }
        Ok(has)
    }

    /// Looks into a pack's own table before the first blob is taken for stored there: a few kilobytes read for 16 MiB not stored.
    fn is_sound(&self, place: &Place) -> Result<bool> {
        let known = self.packs.lock().unwrap_or_else(PoisonError::into_inner).get(&place.pack).copied();
        let Some(Pack::There(size)) = known else { return Ok(matches!(known, Some(Pack::Sound(_)))) };
        let now = match read_table(&*self.core.backend, &self.core.key, &place.pack, size) {
            Ok(table) if table.contains(&place.entry) => Pack::Sound(size),
            Ok(_) | Err(Error::Damaged { .. }) => Pack::Useless,
            Err(error) => return Err(error),
        };
        self.packs.lock().unwrap_or_else(PoisonError::into_inner).insert(place.pack, now);
        Ok(now != Pack::Useless)
    }

    /// These packs are in an index file now.
    ///
    /// # Errors
    /// When the local index cannot be written.
    pub fn indexed(&self, file: Id, packs: &[PublishedPack]) -> Result<()> {
        self.index.add(file, packs)?;
        let mut needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        packs.iter().for_each(|pack| pack.blobs.iter().for_each(|blob| needs.add_pack(pack.id, blob.end())));
        drop(needs);
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        for blob in packs.iter().flat_map(|pack| &pack.blobs) {
            claimed.remove(&(blob.kind, blob.id));
        }
        Ok(())
    }
}
