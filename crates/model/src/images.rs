//! What an image store needs of QEMU's own tools: qcow2 images made, opened and checked by them, never by us.
//!
//! Nothing here does I/O. A chain of images is always given whole, the one that is meant first, each a qcow2 image: no tool follows
//! a backing name by itself, since images in a store may have been changed by anybody.

use std::path::{Path, PathBuf};

use crate::extents::Size;
use crate::seam::Result;

/// QEMU's tools. Every method blocks.
pub trait ImageTools: Send + Sync {
    /// Makes an empty image, whose header says that it lies on `backing` (a name relative to the image's folder, not looked at). What is
    /// there is overwritten.
    ///
    /// # Errors
    /// When the tool fails.
    fn create(&self, image: &Path, size: Size, backing: Option<&str>) -> Result<()>;

    /// Opens the first image of a chain on the others and serves it over NBD.
    ///
    /// # Errors
    /// When an image of it cannot be opened, or is in use by somebody.
    fn open(&self, chain: &[PathBuf], access: Access) -> Result<Box<dyn OpenImage>>;

    /// Checks an image's own tables, without the images below it.
    ///
    /// # Errors
    /// When it cannot be checked; what is wrong with it is no error but told.
    fn check(&self, image: &Path) -> Result<ImageCheck>;
}

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing the first one.
    Write,
    /// Writing whole clusters of the first one, compressed. Its size must be a multiple of [`CLUSTER_BYTES`].
    WriteCompressed,
}

/// Bytes of a cluster of an image in a store: also the chunk size of what is in it.
pub const CLUSTER_BYTES: u64 = 64 << 10;

/// An open image, served over NBD until it is closed.
pub trait OpenImage: Send + Sync {
    /// The server's unix socket.
    fn socket(&self) -> &Path;

    /// The export's name.
    fn export(&self) -> &str;

    /// Closes it. Clients must be done; what they wrote is durable if they flushed it.
    ///
    /// # Errors
    /// When it cannot be closed in order.
    fn close(self: Box<Self>) -> Result<()>;
}

/// What the tables of an image are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageCheck {
    /// Mistakes that lose content.
    pub corruptions: u64,
    /// Clusters that nothing names: of a new image, a table that was not written.
    pub leaks: u64,
    /// Whether it has compressed clusters.
    pub compressed: bool,
    /// Where the last cluster ends that its tables know, bytes.
    pub end: u64,
}
