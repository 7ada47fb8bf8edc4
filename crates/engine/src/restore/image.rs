//! A qcow2 image, made by QEMU's own tools and written through them, complete before it has its name.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use keepmark_model::opening::ImageFormat;
use keepmark_model::seam::Result;
use keepmark_model::{Extent, Size};
use keepmark_qemu::{ImageWriter, WriterHandle, image};

use super::target::{Partial, Target};

/// A new qcow2 image; each thread that writes borrows a connection of its own.
pub struct Qcow2Image {
    writer: Mutex<ImageWriter>,
    idle: Mutex<Vec<WriterHandle>>,
    partial: Partial,
}

impl Qcow2Image {
    /// Starts an image that reads as zeros all over; sockets go under `run_dir`.
    pub fn create(place: &Path, size: Size, run_dir: &Path, replace: bool) -> Result<Self> {
        let partial = Partial::at(place, replace)?;
        image::create(partial.file(), ImageFormat::Qcow2, size)?;
        let writer = ImageWriter::of(partial.file(), partial.path(), ImageFormat::Qcow2, run_dir)?;
        Ok(Self { writer: Mutex::new(writer), idle: Mutex::default(), partial })
    }

    fn borrow(&self) -> Result<WriterHandle> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(handle) => Ok(handle),
            None => Ok(self.writer.lock().unwrap_or_else(PoisonError::into_inner).handle()?),
        }
    }
}

impl Target for Qcow2Image {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut handle = self.borrow()?;
        handle.write(offset, bytes)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        Ok(())
    }

    fn zero(&self, _extent: Extent) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>, interrupted: &dyn Fn() -> bool) -> Result<()> {
        drop(self.idle);
        self.writer.into_inner().unwrap_or_else(PoisonError::into_inner).finish(interrupted)?;
        self.partial.publish()
    }
}
