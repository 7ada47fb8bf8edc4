//! Packs that are known to be damaged: backups take them for gone, and store again what they need of them; no prune counts on them.
//!
//! What is proved stands in the store, for every host: the pack's bytes do not hash to its name. What a verification only could not
//! read stands in the local cache: it may be this host's own trouble.

use std::collections::BTreeSet;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Core;
use crate::repository::id::{ID_BYTES, Id, PackId};
use crate::repository::{Repository, cache_file, sealed_file};

/// The cache's file name; another version has another name.
const CACHE_FILE: &str = "damaged-packs-1";
/// Version of notes that we write, and the highest that we read.
const VERSION: u32 = 1;
const PIECE_BYTES: usize = 1 << 20;

/// A note as JSON has it. It is never changed, only replaced when its packs are gone or whole again.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    version: u32,
    /// When it was made, by its maker's clock; for people.
    time: Timestamp,
    /// Host that made it.
    hostname: String,
    /// The packs.
    packs: Vec<PackId>,
}

/// The packs that are known to be damaged, here or anywhere.
///
/// # Errors
/// When the store's notes cannot be listed.
pub fn known(repository: &Repository) -> Result<BTreeSet<PackId>> {
    let mut packs = load(&repository.cache);
    packs.extend(notes(&repository.core)?.into_iter().flat_map(|(_, note)| note.packs));
    Ok(packs)
}

/// Remembers packs that could not be read: here, and for everybody those of which it is proved.
///
/// # Errors
/// When it cannot be written.
pub fn note(repository: &Repository, found: &BTreeSet<PackId>) -> Result<()> {
    let noted: BTreeSet<PackId> = notes(&repository.core)?.into_iter().flat_map(|(_, note)| note.packs).collect();
    let mut proved = Vec::new();
    for pack in found.difference(&noted) {
        if is_whole(&repository.core, pack).is_ok_and(|whole| whole == Some(false)) {
            proved.push(*pack);
        }
    }
    if proved.is_empty() { Ok(()) } else { write(repository, proved) }
}

/// Forgets what was noted of packs that are gone, and if `look` of those that are whole again.
///
/// # Errors
/// When notes cannot be read or exchanged.
pub fn tidy(repository: &Repository, look: bool) -> Result<()> {
    let core = &repository.core;
    let notes = notes(core)?;
    let noted: BTreeSet<PackId> = notes.iter().flat_map(|(_, note)| note.packs.iter().copied()).collect();
    let mut left = Vec::new();
    for pack in &noted {
        let is_over = match core.backend.size(FileKind::Pack, pack)? {
            None => true,
            Some(_) => look && is_whole(core, pack).is_ok_and(|whole| whole == Some(true)),
        };
        left.extend(Some(*pack).filter(|_| !is_over));
    }
    if left.len() == noted.len() {
        return Ok(());
    }
    if !left.is_empty() {
        write(repository, left)?;
    }
    notes.iter().try_for_each(|(id, _)| core.backend.remove(FileKind::Damage, id))?;
    core.backend.settle(FileKind::Damage)
}

fn write(repository: &Repository, packs: Vec<PackId>) -> Result<()> {
    let environment = &repository.environment;
    let note = Note { version: VERSION, time: (environment.now)(), hostname: environment.hostname.clone(), packs };
    sealed_file::write(&*repository.core.backend, &repository.core.key, FileKind::Damage, &note).map(drop)
}

/// The notes that can be read. Without the others it is as before somebody looked.
fn notes(core: &Core) -> Result<Vec<(Id, Note)>> {
    let listed = core.backend.list(FileKind::Damage)?;
    let read = |id: Id| Some((id, sealed_file::read::<Note>(&*core.backend, &core.key, FileKind::Damage, &id).ok()?));
    Ok(listed.into_iter().filter_map(|(id, _)| read(id)).filter(|(_, note)| note.version <= VERSION).collect())
}

/// Whether a pack's bytes hash to its name; nothing if it is not there.
fn is_whole(core: &Core, pack: &PackId) -> Result<Option<bool>> {
    let Some(size) = core.backend.size(FileKind::Pack, pack)? else { return Ok(None) };
    let (mut hash, mut piece, mut offset) = (Context::new(&SHA256), vec![0; PIECE_BYTES], 0);
    while offset < size {
        let length = usize::try_from(size - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let bytes = piece.get_mut(..length).unwrap_or_default();
        core.backend.read_at(FileKind::Pack, pack, offset, bytes)?;
        hash.update(bytes);
        offset = offset.saturating_add(length as u64);
    }
    let found = Id::from_slice(hash.finish().as_ref()).ok_or_else(|| Error::internal("hash a pack", "its hash has another length"))?;
    Ok(Some(found == *pack))
}

/// The packs that this host remembers.
fn load(cache: &Path) -> BTreeSet<PackId> {
    let bytes = cache_file::load(&cache.join(CACHE_FILE)).unwrap_or_default();
    bytes.chunks_exact(ID_BYTES).filter_map(Id::from_slice).collect()
}

/// Remembers packs here, also those of before, as long as they are there: other copies of what they had may be good now, so that nobody
/// looked at them.
///
/// # Errors
/// When the cache cannot be written.
pub fn remember(repository: &Repository, found: &BTreeSet<PackId>) -> std::io::Result<()> {
    let before = load(&repository.cache);
    let mut packs: BTreeSet<PackId> = before.union(found).copied().collect();
    packs.retain(|pack| !matches!(repository.core.backend.size(FileKind::Pack, pack), Ok(None)));
    if packs == before {
        return Ok(());
    }
    cache_file::save(&repository.cache.join(CACHE_FILE), &packs.iter().flat_map(|pack| pack.0).collect::<Vec<u8>>())
}
