//! A block device as the target of a restore: every byte of the disk is written or zeroed, the rest of the device is left alone.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keepmark_model::seam::Result;
use keepmark_model::{Extent, Size};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::target::Target;
use crate::error::Error;

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Whether a path is a block device.
pub fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// An open block device.
pub struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    /// Opens a device exclusively: one that is mounted or otherwise in use is refused by the kernel.
    pub fn open(path: &Path, size: Size) -> Result<Self> {
        let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or(0);
        let opened = OpenOptions::new().write(true).custom_flags(exclusive).open(path);
        let mut file = opened.map_err(|source| Error::Io { doing: "open", path: path.to_owned(), source })?;
        let capacity = file.seek(SeekFrom::End(0)).map_err(|source| Error::Io { doing: "measure", path: path.to_owned(), source })?;
        if capacity < size.0 {
            let why = format!("it has {capacity} bytes, the disk has {size}");
            return Err(Error::Target { path: path.to_owned(), why }.into());
        }
        Ok(Self { file, path: path.to_owned() })
    }

    fn write_zeros(&self, extent: Extent) -> std::io::Result<()> {
        let step = ZEROS.len();
        (extent.start..extent.end).step_by(step).try_for_each(|start| {
            let length = usize::try_from(extent.end - start).unwrap_or(step).min(step);
            self.file.write_all_at(&ZEROS[..length], start)
        })
    }

    fn io(&self, doing: &'static str, source: std::io::Error) -> Error {
        Error::Io { doing, path: self.path.clone(), source }
    }
}

impl Target for Device {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(bytes, offset).map_err(|source| self.io("write", source))?)
    }

    /// The kernel zeroes a punched hole on a block device; where it cannot, zeros are written.
    fn zero(&self, extent: Extent) -> Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, punch, extent.start, extent.len()) {
            Ok(()) => Ok(()),
            Err(_) => Ok(self.write_zeros(extent).map_err(|source| self.io("write", source))?),
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(self.file.sync_all().map_err(|source| self.io("sync", source))?)
    }
}
