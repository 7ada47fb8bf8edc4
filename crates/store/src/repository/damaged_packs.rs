//! Packs that a verification could not read: the next backup takes them for gone, and so stores again what it needs of them.

use std::collections::BTreeSet;
use std::path::Path;

use crate::repository::cache_file;
use crate::repository::id::{ID_BYTES, Id, PackId};

/// The cache's file name; another version has another name.
const CACHE_FILE: &str = "damaged-packs-1";

/// The packs that are remembered as damaged.
#[must_use]
pub fn load(cache: &Path) -> BTreeSet<PackId> {
    let bytes = cache_file::load(&cache.join(CACHE_FILE)).unwrap_or_default();
    bytes.chunks_exact(ID_BYTES).filter_map(Id::from_slice).collect()
}

/// Remembers these packs and no others.
///
/// # Errors
/// When the cache cannot be written.
pub fn save(cache: &Path, packs: &BTreeSet<PackId>) -> std::io::Result<()> {
    if *packs == load(cache) {
        return Ok(());
    }
    cache_file::save(&cache.join(CACHE_FILE), &packs.iter().flat_map(|pack| pack.0).collect::<Vec<u8>>())
}
