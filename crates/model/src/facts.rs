//! What a hypervisor reports about a VM: values only, as they were seen at one moment.

use serde::{Deserialize, Serialize};

use crate::extents::Size;
use crate::names::{DiskName, VmIdentity};

/// Whether the VM's processors run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// The guest runs.
    Running,
    /// A QEMU process exists, its processors are stopped (paused, prelaunch, I/O error); keepmark leaves it so.
    Paused,
    /// There is no QEMU process; the images were opened by keepmark itself.
    Off,
}

/// One VM as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFacts {
    /// Who it is.
    pub identity: VmIdentity,
    /// Whether it runs.
    pub power: Power,
    /// Driver and version, for people: `qemu 10.0.2`.
    pub hypervisor: String,
    /// Disks that can be backed up, in the hypervisor's order.
    pub disks: Vec<DiskFacts>,
    /// What was left out, and why (cdrom, read-only, empty).
    pub skipped: Vec<SkippedDisk>,
    /// Whether a guest agent is configured.
    pub agent: bool,
}

/// A device that is not backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedDisk {
    /// Its name.
    pub name: String,
    /// Why, in words.
    pub why: String,
}

/// One disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// How it is called.
    pub name: DiskName,
    /// What the guest sees, bytes.
    pub size: Size,
    /// Format of the active image: `qcow2`, `raw`, ...
    pub format: String,
    /// Cluster size of the active image, bytes, where the format has one.
    pub cluster_size: Option<u64>,
    /// Where the active image is, as the hypervisor says it.
    pub image: String,
    /// Whether bitmaps of the active image outlive the process that has it open.
    pub persistence: Persistence,
    /// The active image first, then its backing images.
    pub layers: Vec<LayerFacts>,
}

impl DiskFacts {
    /// The bitmaps of all its images, the active one's first.
    pub fn bitmaps(&self) -> impl Iterator<Item = &BitmapFacts> {
        self.layers.iter().flat_map(|layer| &layer.bitmaps)
    }

    /// The bitmaps of the image that it writes to: what may be made known as its own, and removed.
    ///
    /// An image below may be the template of other VMs, with their bitmaps on it, and one of this VM's own carries a bitmap that is of
    /// use only if the image above goes on with one of the same name. So what is below alone is nobody's here: it is read, and left.
    pub fn own_bitmaps(&self) -> impl Iterator<Item = &BitmapFacts> {
        self.layers.iter().take(1).flat_map(|layer| &layer.bitmaps)
    }
}

/// Whether a disk's bitmaps outlive the process that has the image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Persistence {
    /// They are stored in the image when it is closed.
    Stored,
    /// They live in memory only; `why` says it in words (`raw images cannot hold bitmaps`).
    MemoryOnly {
        /// The reason, in words.
        why: String,
    },
}

/// One image of a disk's backing chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFacts {
    /// Where it is.
    pub image: String,
    /// Which file it is, where that can be told.
    pub id: Option<ImageId>,
    /// Its named bitmaps, everyone's.
    pub bitmaps: Vec<BitmapFacts>,
}

/// Which file an image is: the same for as long as it is this file wherever it is moved, and another one for every copy of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(String);

impl ImageId {
    /// Of what a driver knows of a file. Only equality of two has a meaning.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// One named bitmap as QEMU reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapFacts {
    /// Its name.
    pub name: String,
    /// Whether writes are being recorded.
    pub recording: bool,
    /// Whether a job or an export holds it.
    pub busy: bool,
    /// Whether QEMU died while the image was open: worthless.
    pub inconsistent: bool,
    /// Whether it is stored with the image.
    pub persistent: bool,
    /// Bytes per bit.
    pub granularity: u64,
    /// Bytes marked dirty.
    pub dirty: Size,
}
