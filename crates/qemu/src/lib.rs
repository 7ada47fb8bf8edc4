//! One QEMU: QMP, guest agent, bitmaps, frozen points and exports, for running VMs and, through qemu-storage-daemon, powered-off images.
//!
//! Reading order: [`Live`] is a running VM; `point` makes the frozen moment of several disks and takes it back; `disks` turns
//! QEMU's replies into facts; [`qmp`] talks. What keepmark puts into QEMU is named in `temporary` and found again by `leftovers`.

pub mod agent;
mod bitmaps;
mod capabilities;
mod changes;
pub mod claim;
mod definition;
mod disk;
pub mod disks;
mod error;
pub mod exported;
pub mod folder;
mod hazards;
pub mod holders;
pub mod identity;
pub mod image;
mod images;
mod leftovers;
mod live;
mod offline;
mod opening;
mod point;
mod program;
pub mod qmp;
mod reading;
pub mod space;
pub mod temporary;
pub mod watchdog;
pub mod workspace;

pub use error::{Error, Result};
pub use image::{ImageWriter, WriterHandle};
pub use images::QemuImages;
pub use live::{Live, LiveOptions};
pub use offline::{Offline, OfflineOptions, Said};
pub use point::Point;
pub use point::scratch::make_images;
pub use watchdog::WatchdogCommand;
