//! Push mode's words: who can write a store's images by himself, where, and how that goes with the moment.

use std::path::{Path, PathBuf};

use crate::extents::Size;
use crate::names::DiskName;

/// Where a hypervisor would write a VM's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushPlace {
    /// The VM's folder in the store; perhaps not made yet.
    pub folder: PathBuf,
    /// Whether another machine or a program answers for its file system: it may do so late, or never.
    pub is_remote: bool,
    /// Whether new images there are to be compressed.
    pub compress: bool,
}

/// How a hypervisor writes images by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushing {
    /// Out of a frozen moment that can be read as well: the guest waits for no image, and a disk that cannot be pushed is read.
    OfTheMoment,
    /// As the moment: its images are all there is of it, of all disks or none, and the guest may wait for them, or get their errors.
    /// So it is done for those who ask for it.
    AsTheMoment,
}

/// What is wanted of a frozen point in push mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push {
    /// Nothing is pushed.
    No,
    /// It will be, by `FrozenPoint::push`.
    Later,
    /// The moment consists of these images.
    AtOnce(Vec<PushTarget>),
}

/// An image that the hypervisor is to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushTarget {
    /// Which disk.
    pub disk: DiskName,
    /// Where; an empty file is there.
    pub image: PathBuf,
    /// Bytes.
    pub size: Size,
    /// What its header is to say lies below it, relative to its folder.
    pub backing: Option<String>,
    /// Whether its clusters are compressed.
    pub compress: bool,
}

impl PushTarget {
    /// The folder that the image is in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.image.parent().unwrap_or(&self.image)
    }
}

/// Push mode cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the VM's disks cannot be pushed: {why}")]
pub struct CannotPush {
    /// Why not, in words.
    pub why: String,
}

impl CannotPush {
    /// For this reason.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}
