//! Which store a repository is: its id, and the place where it had it. Two copies of one folder have one id, and must not both be used.

use jiff::Timestamp;
use keepmark_model::StoreId;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::identity::FileIdentity;
use crate::repository::backend::FileKind;
use crate::repository::core::Core;
use crate::repository::id::Id;
use crate::repository::lock::Environment;
use crate::repository::sealed_file;

/// Version of marks that we write, and the highest that we read.
const VERSION: u32 = 1;

/// A mark of the place as JSON has it. It is never changed, only replaced.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct PlaceMark {
    version: u32,
    /// The store's id: that of its `config`, unless it is a copy that got one of its own.
    id: StoreId,
    /// Of the folder in which the mark was written.
    folder: Option<FileIdentity>,
    /// When it was made, by its maker's clock.
    time: Timestamp,
}

/// What is known of the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPlace {
    /// The store's id.
    pub id: StoreId,
    /// Whether it is marked at all.
    pub is_marked: bool,
    /// Whether its mark was made in another folder: it is a copy, or was moved as one.
    pub is_copied: bool,
}

/// Looks; `config` is the id in the repository's configuration.
///
/// # Errors
/// When marks cannot be listed.
pub fn look(core: &Core, config: StoreId) -> Result<KnownPlace> {
    let here = core.backend.identity();
    let fits = |mark: &PlaceMark| here.zip(mark.folder).is_none_or(|(here, then)| here.can_be(&then));
    // Two are there if somebody died while he exchanged them.
    let newest = marks(core)?.into_iter().map(|(_, mark)| mark).max_by_key(|mark| (fits(mark), mark.time));
    let Some(mark) = newest else { return Ok(KnownPlace { id: config, is_marked: false, is_copied: false }) };
    Ok(KnownPlace { is_copied: !fits(&mark), id: mark.id, is_marked: true })
}

/// Writes down that the store of this id is here.
///
/// # Errors
/// When it cannot be written.
pub fn mark(core: &Core, environment: &Environment, id: &StoreId) -> Result<()> {
    let backend = &*core.backend;
    let old = marks(core)?;
    let write = |folder| {
        let mark = PlaceMark { version: VERSION, id: id.clone(), folder, time: (environment.now)() };
        sealed_file::write(backend, &core.key, FileKind::Place, &mark)
    };
    let first = backend.identity();
    let mut new = write(first)?;
    if let Some(made) = backend.identity().filter(|_| first.is_none()) {
        // The folder was made with its first file.
        let again = write(Some(made))?;
        backend.remove(FileKind::Place, &new)?;
        new = again;
    }
    old.iter().filter(|(id, _)| *id != new).try_for_each(|(id, _)| backend.remove(FileKind::Place, id))?;
    backend.settle(FileKind::Place)
}

fn marks(core: &Core) -> Result<Vec<(Id, PlaceMark)>> {
    let listed = core.backend.list(FileKind::Place)?;
    let read = |id: Id| Some((id, sealed_file::read::<PlaceMark>(&*core.backend, &core.key, FileKind::Place, &id).ok()?));
    Ok(listed.into_iter().filter_map(|(id, _)| read(id)).filter(|(_, mark)| mark.version <= VERSION).collect())
}
