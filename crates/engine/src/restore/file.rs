//! A raw image file: sparse, complete before it has its name.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use keepmark_model::seam::Result;
use keepmark_model::{Extent, Size};

use super::target::{Partial, Target};
use crate::error::Error;

/// A new raw image.
pub struct RawFile {
    file: File,
    partial: Partial,
}

impl RawFile {
    /// Starts a file that reads as zeros all over.
    pub fn create(place: &Path, size: Size) -> Result<Self> {
        let partial = Partial::at(place)?;
        let create = || -> std::io::Result<File> {
            let file = File::create_new(partial.path())?;
            file.set_len(size.0)?;
            Ok(file)
        };
        let file = create().map_err(|source| Error::Io { doing: "create", path: partial.path().to_owned(), source })?;
        Ok(Self { file, partial })
    }

    fn io(&self, doing: &'static str, source: std::io::Error) -> Error {
        Error::Io { doing, path: self.partial.path().to_owned(), source }
    }
}

impl Target for RawFile {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(bytes, offset).map_err(|source| self.io("write", source))?)
    }

    fn zero(&self, _extent: Extent) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.file.sync_all().map_err(|source| self.io("sync", source))?;
        self.partial.publish()
    }
}
