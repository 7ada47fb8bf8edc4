//! A block device as the target of a restore: every byte of the disk is written or zeroed, the rest of the device is left alone.
//!
//! What the disk begins with is written last; until then the device begins with words that say so, and with zeros where a
//! partition table or a file system would be found. So half of a disk is neither booted nor mounted by mistake.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use keepmark_model::seam::Result;
use keepmark_model::{Extent, Size};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::target::Target;
use crate::error::Error;

/// How much is held back: more than partition tables, boot loaders, LVM and file systems need to be recognised.
const HEAD_BYTES: u64 = 1 << 20;
const UNFINISHED: &[u8] = b"keepmark: the restore to this device is not finished; run it again\n";

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Whether a path is a block device.
pub fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// An open block device.
pub struct Device {
    file: File,
    path: PathBuf,
    /// The disk's first bytes, in memory.
    head: Mutex<Vec<u8>>,
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
        let head = vec![0; usize::try_from(size.0.min(HEAD_BYTES)).unwrap_or_default()];
        let device = Self { file, path: path.to_owned(), head: Mutex::default() };
        device.write_head(&[&UNFINISHED[..UNFINISHED.len().min(head.len())], &head[UNFINISHED.len().min(head.len())..]].concat())?;
        Ok(Self { head: Mutex::new(head), ..device })
    }

    /// Keeps what belongs to the head; gives how many bytes that were.
    fn hold_back(&self, offset: u64, bytes: &[u8]) -> usize {
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(head.len());
        let count = bytes.len().min(head.len() - start);
        head[start..start + count].copy_from_slice(&bytes[..count]);
        count
    }

    /// Durably, before or after everything else.
    fn write_head(&self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, 0).map_err(|source| self.io("write", source))?;
        Ok(self.file.sync_all().map_err(|source| self.io("sync", source))?)
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
        let held_back = self.hold_back(offset, bytes);
        let rest = &bytes[held_back..];
        Ok(self.file.write_all_at(rest, offset + held_back as u64).map_err(|source| self.io("write", source))?)
    }

    /// The kernel zeroes a punched hole on a block device; where it cannot, zeros are written. The head is zeros already.
    fn zero(&self, extent: Extent) -> Result<()> {
        let extent = Extent::new(extent.start.max(HEAD_BYTES).min(extent.end), extent.end);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if extent.is_empty() {
            return Ok(());
        }
        match fallocate(&self.file, punch, extent.start, extent.len()) {
            Ok(()) => Ok(()),
            Err(_) => Ok(self.write_zeros(extent).map_err(|source| self.io("write", source))?),
        }
    }

    fn finish(self: Box<Self>, _: &dyn Fn() -> bool) -> Result<()> {
        self.file.sync_all().map_err(|source| self.io("sync", source))?;
        let head = std::mem::take(&mut *self.head.lock().unwrap_or_else(PoisonError::into_inner));
        self.write_head(&head)
    }
}
