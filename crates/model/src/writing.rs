//! The seam's part for going back in place: disks of a VM that are written while no guest runs on them.
//!
//! What is written goes through QEMU, so that every recording bitmap sees it as the guest's own writes.

use crate::extents::Extent;
use crate::names::{BackupId, DiskName};
use crate::pushing::Push;
use crate::seam::{Freeze, FrozenDisk, PointDisk, PointRequest, Result};

/// Whether a VM's disks may be written now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    /// No guest runs on them.
    Resting {
        /// Whether keepmark shut the guest down itself, so that it is to be started again.
        by_us: bool,
    },
    /// A guest runs, which can be asked to power down.
    Running,
    /// A guest is in the middle of its work and cannot be asked; why, in words.
    Held(String),
}

/// A disk that a revert began to write and did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Which disk.
    pub disk: DiskName,
    /// The first characters of the backup's id to which it was being taken.
    pub backup: String,
}

/// What is wanted of disks that are to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteRequest {
    /// Disks, and the checkpoint whose delta is wanted of each.
    pub disks: Vec<PointDisk>,
    /// Part of every temporary name of this run; letters and digits.
    pub run: String,
    /// The backup to which they are taken; what is half written bears its name.
    pub backup: BackupId,
}

impl WriteRequest {
    /// The frozen point that would tell the same deltas.
    #[must_use]
    pub fn point(&self) -> PointRequest {
        PointRequest { disks: self.disks.clone(), checkpoint: None, run: self.run.clone(), freeze: Freeze::Never, push: Push::No }
    }
}

/// Disks of a resting VM, open for writing.
///
/// From before the first write until [`Writing::finish`], the disks are guarded against being started, where that can be done.
/// Dropped unfinished, the guard stays if anything was written, and nothing stays if nothing was.
pub trait Writing {
    /// Opens one disk for reading what it holds, and what was written since the checkpoint that was asked for.
    ///
    /// # Errors
    /// When the disk was not asked for or its server does not answer.
    fn disk(&mut self, name: &DiskName) -> Result<Box<dyn FrozenDisk>>;

    /// Opens one disk for changes, to be made beside the reads by another thread.
    ///
    /// # Errors
    /// As [`Writing::disk`].
    fn changes(&mut self, name: &DiskName) -> Result<Box<dyn DiskChanges>>;

    /// What keeps nobody from starting the VM while a disk is half written, in words; empty where all are guarded.
    fn unguarded(&self) -> Vec<String>;

    /// Closes the disks, all of them flushed before, and takes the guard away, last. Gives what is not as it should be, in words.
    ///
    /// # Errors
    /// When the guard cannot be taken away; the next revert does.
    fn finish(self: Box<Self>) -> Result<Vec<String>>;
}

/// Where one disk's changes go.
pub trait DiskChanges: Send {
    /// Makes changes that do not overlap, many at a time, in no particular order.
    ///
    /// # Errors
    /// When one cannot be made; which of the others were is unknown.
    fn apply(&mut self, changes: &mut dyn Iterator<Item = Change>) -> Result<()>;

    /// Returns when everything that was changed is durable, however long that takes, unless `interrupted` says to wait no longer.
    ///
    /// # Errors
    /// When it is not.
    fn flush(&mut self, interrupted: &dyn Fn() -> bool) -> Result<()>;
}

/// One change of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// New bytes.
    Data {
        /// Where they begin.
        offset: u64,
        /// What is to be there.
        bytes: Vec<u8>,
    },
    /// Zeros from now on.
    Zero(Extent),
}

impl Change {
    /// How many bytes it changes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data { bytes, .. } => bytes.len() as u64,
            Self::Zero(extent) => extent.len(),
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
