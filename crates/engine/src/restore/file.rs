//! A raw image file: sparse, complete before it has its name.

use std::os::unix::fs::FileExt;
use std::path::Path;

use keepmark_model::seam::Result;
use keepmark_model::{Extent, Size};

use super::target::{Partial, Target};
use crate::error::Error;

/// A new raw image.
pub struct RawFile {
    partial: Partial,
}

impl RawFile {
    /// Starts a file that reads as zeros all over.
    pub fn create(place: &Path, size: Size, replace: bool) -> Result<Self> {
        let made = Self { partial: Partial::at(place, replace)? };
        made.partial.file().set_len(size.0).map_err(|source| made.io("create", source))?;
        Ok(made)
    }

    fn io(&self, doing: &'static str, source: std::io::Error) -> Error {
        Error::Io { doing, path: self.partial.path().to_owned(), source }
    }
}

impl Target for RawFile {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.partial.file().write_all_at(bytes, offset).map_err(|source| self.io("write", source))?)
    }

    fn zero(&self, _extent: Extent) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>, _: &dyn Fn() -> bool) -> Result<()> {
        self.partial.file().sync_all().map_err(|source| self.io("sync", source))?;
        self.partial.publish()
    }
}
