//! Marks: small files that name packs which nothing needed any more, so that new backups use nothing in them and they can go.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Core;
use crate::repository::id::{Id, PackId};
use crate::repository::sealed_file;

/// Version of marks that we write, and the highest that we read.
const VERSION: u32 = 1;

/// A mark as JSON has it. It is never changed, only removed when its packs are gone or needed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    version: u32,
    /// When it was made, by its maker's clock; for people.
    pub time: Timestamp,
    /// Host that made it.
    pub hostname: String,
    /// Bytes that were copied out of these packs: the space that they take twice until they go.
    #[serde(default)]
    pub copied_bytes: u64,
    /// Bytes of these packs.
    #[serde(default)]
    pub bytes: u64,
    /// The packs.
    pub packs: Vec<PackId>,
}

/// Marks by their names, and what is wrong with those that cannot be read.
pub type Marks = (Vec<(Id, Mark)>, Vec<(Id, Error)>);

impl Mark {
    /// A mark of these packs.
    #[must_use]
    pub fn new(time: Timestamp, hostname: &str, packs: Vec<PackId>, bytes: u64, copied_bytes: u64) -> Self {
        Self { version: VERSION, time, hostname: hostname.to_owned(), copied_bytes, bytes, packs }
    }

    /// Writes it; it is durable and everybody sees it when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, core: &Core) -> Result<Id> {
        sealed_file::write(&*core.backend, &core.key, FileKind::Mark, self)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is none, or of a newer version.
    pub fn read(core: &Core, id: &Id) -> Result<Self> {
        let mark: Self = sealed_file::read(&*core.backend, &core.key, FileKind::Mark, id)?;
        let known = mark.version <= VERSION;
        if known { Ok(mark) } else { Err(Error::damaged("mark", id, "a newer keepmark made it: a newer one is needed here")) }
    }

    /// All marks there are. One that goes meanwhile is left out: by then no index names its packs.
    ///
    /// # Errors
    /// When one cannot be read: who does not know what is marked must not write.
    pub fn all(core: &Core) -> Result<Vec<(Id, Self)>> {
        let (marks, damaged) = Self::all_readable(core)?;
        damaged.into_iter().next().map_or(Ok(marks), |(_, error)| Err(error))
    }

    /// All marks that can be read, and what is wrong with the others.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn all_readable(core: &Core) -> Result<Marks> {
        let (mut marks, mut damaged) = (Vec::new(), Vec::new());
        for (id, _) in core.backend.list(FileKind::Mark)? {
            match Self::read(core, &id) {
                Ok(mark) => marks.push((id, mark)),
                Err(_) if core.backend.size(FileKind::Mark, &id)?.is_none() => {}
                Err(error) => damaged.push((id, error)),
            }
        }
        Ok((marks, damaged))
    }
}
