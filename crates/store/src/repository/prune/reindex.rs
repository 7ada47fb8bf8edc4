//! Taking packs out of the index: new index files without them first, then the old ones go.

use std::collections::{BTreeSet, HashSet};

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::backend::FileKind;
use crate::repository::id::{Id, PackId};
use crate::repository::index_file::{self, IndexFile};
use crate::repository::lock::Lease;
use crate::repository::sealed_file;

/// An index file is written when it has so many blobs; restic's own limit.
const BLOBS_MAX: usize = 50_000;

/// What all index files say of packs.
struct Listed {
    /// Index files with packs that are to go.
    changing: Vec<Id>,
    /// Packs in the other ones.
    staying: HashSet<PackId>,
}

/// Makes the index name none of these packs. What stays is named by some file all the time.
///
/// # Errors
/// When an index file cannot be read (then nothing was changed), written or removed.
pub fn leave_out(repository: &Repository, leaving: &BTreeSet<PackId>, lease: &Lease) -> Result<()> {
    let mut listed = list(repository, leaving)?;
    let mut next = IndexFile::default();
    for id in &listed.changing {
        let file = read(repository, id)?;
        next.extend(file, |pack| leaving.contains(pack) || !listed.staying.insert(*pack));
        if next.blobs() >= BLOBS_MAX {
            repository.write_index_file(&std::mem::take(&mut next), &|| lease.check())?;
        }
    }
    if !next.is_empty() {
        repository.write_index_file(&next, &|| lease.check())?;
    }
    let backend = &repository.core.backend;
    for id in &listed.changing {
        lease.check()?;
        backend.remove(FileKind::Index, id)?;
    }
    // Durable before any pack goes: otherwise a power cut could leave an index that names packs which are gone.
    backend.settle(FileKind::Index)?;
    repository.index.refresh()
}

fn list(repository: &Repository, leaving: &BTreeSet<PackId>) -> Result<Listed> {
    let core = &repository.core;
    let mut listed = Listed { changing: Vec::new(), staying: HashSet::new() };
    for (id, _) in core.backend.list(FileKind::Index)? {
        let content = sealed_file::content(&*core.backend, &core.key, FileKind::Index, &id)?;
        let mut packs = HashSet::new();
        let note = &mut |pack, _| packs.extend([pack]);
        index_file::decode(content, note).map_err(|error| Error::damaged("index", id, error))?;
        if packs.iter().any(|pack| leaving.contains(pack)) {
            listed.changing.push(id);
        } else {
            listed.staying.extend(packs);
        }
    }
    Ok(listed)
}

/// The packs that rustic has marked in its own way: they are its own to remove.
///
/// # Errors
/// When an index file cannot be read.
pub fn marked_by_rustic(repository: &Repository) -> Result<HashSet<PackId>> {
    let mut marked = HashSet::new();
    for (id, _) in repository.core.backend.list(FileKind::Index)? {
        marked.extend(read(repository, &id)?.packs_to_delete());
    }
    Ok(marked)
}

fn read(repository: &Repository, id: &Id) -> Result<IndexFile> {
    let core = &repository.core;
    let content = sealed_file::content(&*core.backend, &core.key, FileKind::Index, id)?;
    IndexFile::read(content).map_err(|error| Error::damaged("index", id, error))
}
