//! What a restore writes to, and the temporary name under which a new file grows.

use std::path::{Path, PathBuf};

use keepmark_model::Extent;
use keepmark_model::seam::Result;

use crate::error::Error;

/// A disk while it is being written, from several threads. Dropped without `finish`, it leaves nothing under its name.
pub trait Target: Sync {
    /// Writes bytes at an offset.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Makes a range read as zeros.
    fn zero(&self, extent: Extent) -> Result<()>;
    /// Makes everything durable and gives the file its name.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A file beside its final place that is removed unless it is published.
pub struct Partial {
    temporary: PathBuf,
    place: PathBuf,
    published: bool,
}

impl Partial {
    /// Takes a temporary name in the place's folder; what a dead restore left there is removed.
    pub fn at(place: &Path) -> Result<Self> {
        let mut name = place.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let temporary = place.with_file_name(name);
        match std::fs::remove_file(&temporary) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { doing: "remove", path: temporary, source }.into())
            }
            _ => Ok(Self { temporary, place: place.to_owned(), published: false }),
        }
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the file its name, durably; it must be synced already.
    pub fn publish(mut self) -> Result<()> {
        let io = |doing, path: &Path, source| Error::Io { doing, path: path.to_owned(), source };
        std::fs::rename(&self.temporary, &self.place).map_err(|source| io("rename to", &self.place, source))?;
        self.published = true;
        let folder = self.place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| io("sync", folder, source).into())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published && std::fs::remove_file(&self.temporary).is_err() {
            // Never created, or gone already: there is nothing left to tidy up either way.
        }
    }
}
