//! Conformance of the `Hypervisor` seam: the same scenarios on every driver and on the simulation, and what they report compared as values.
//!
//! Read [`Bench`] (a place where scenarios are played), [`Play`] (what a scenario can do and see), [`scenarios`] (each a short list of
//! steps with what must come of them) and [`conform`] (plays them all, here and there). Benches: [`Simulated`] (the simulated hypervisor),
//! [`Machines`] (real QEMU and real images; the driver is passed in).
//!
//! Another driver joins by a [`Bench`] of its own, given to [`conform`] with [`Simulated::running`] as what it is compared with. What a
//! bench cannot do it says with [`Unable::NotHere`]; the report lists every scenario that was not played, with that reason.
//!
//! Everything is counted in *units*: the smallest thing that is written, [`Bench::unit`] bytes on a bench. Disks have at most 64 of them.

mod compare;
mod domains;
mod frozen;
mod images;
mod machines;
mod meddling;
mod observation;
mod play;
pub mod scenarios;
mod simulated;

use keepmark_model::seam::Hypervisor;

pub use compare::{Report, alone, conform};
pub use domains::{ConnectDomain, Domains};
pub use frozen::Frozen;
pub use machines::{Connect, Machines, Reach};
pub use observation::{Observation, SeenBitmap};
pub use play::{End, Play, Played};
pub use scenarios::libvirt::{OTHERWISE, Otherwise};
pub use scenarios::{SCENARIOS, Scenario};
pub use simulated::Simulated;

/// A place where scenarios are played: one VM at a time, its images, its guest, those who meddle with it, and keepmark's driver for it.
///
/// A fixture that cannot be made ends the test by a panic.
pub trait Bench {
    /// How it is called in the report.
    fn name(&self) -> &'static str;

    /// How keepmark meets the VM here.
    fn meets(&self) -> Meets;

    /// Bytes of a unit: a multiple of 1 KiB, and of what images of the smallest cluster (one unit) need.
    fn unit(&self) -> u64;

    /// Makes a new VM with these disks, empty; what was there before is gone. It runs if keepmark meets it so.
    fn make(&mut self, disks: &[DiskSpec]);

    /// Something happens to a disk. Where the VM is met powered off, what the guest does happens in a session of its own: the images are
    /// opened, written and closed in order.
    ///
    /// # Errors
    /// When the hypervisor refuses, or this bench cannot do it.
    fn change(&mut self, disk: &str, change: Change) -> Result<(), Unable>;

    /// Whether keepmark talks to the process that has the images open, and not to a manager that outlives it.
    fn is_direct(&self) -> bool {
        true
    }

    /// Something happens to the process that has the images open.
    ///
    /// # Errors
    /// When this bench cannot do it.
    fn process(&mut self, change: Process) -> Result<(), Unable>;

    /// Connects keepmark's driver. It is closed or dropped before [`Bench::make`] is called again, but may live while things change.
    fn connect(&mut self) -> Box<dyn Hypervisor>;

    /// All bytes the guest reads now, from a source that the driver has nothing to do with. Not asked while keepmark has a point.
    fn content(&mut self, disk: &str) -> Vec<u8>;

    /// What keepmark has in the hypervisor and in folders now, checkpoints apart; empty when it has no point.
    fn left(&mut self) -> Vec<String>;
}

/// How keepmark meets a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meets {
    /// It runs.
    Running,
    /// It is powered off; its images are opened by the driver.
    Off,
}

/// A disk to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its name.
    pub name: &'static str,
    /// Its size in units.
    pub units: u64,
    /// Whether it is raw instead of qcow2.
    pub raw: bool,
    /// Units of a qcow2 cluster: 1, 2, 4 or 8. New bitmaps have this granularity, but at most 4.
    pub cluster: u64,
}

/// A qcow2 disk of 16 units with clusters of one.
#[must_use]
pub const fn disk(name: &'static str) -> DiskSpec {
    DiskSpec { name, units: 16, raw: false, cluster: 1 }
}

/// What happens to a disk. Bitmaps are named as in [`bitmap_name`]; they are those of the active image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The guest writes a value into `1` units from `0` on.
    Write(u64, u64, u8),
    /// The guest writes zeros, and the space is not to be given back.
    WriteZeros(u64, u64),
    /// The guest discards.
    Discard(u64, u64),
    /// The disk gets another size.
    Resize(u64),
    /// An external snapshot is taken, the new image with clusters of so many units.
    Snapshot(u64),
    /// The same, and each recording bitmap goes on under its name in the new image, as libvirt does it.
    ManagedSnapshot(u64),
    /// The active image is merged into the one below.
    Commit,
    /// The images below are merged into the active one.
    Stream,
    /// The disk moves to a new image by QEMU's mirror.
    Mirror,
    /// The image is written anew by `qemu-img convert`, with its bitmaps or without; the VM is off meanwhile.
    Convert(bool),
    /// `qemu-img amend` makes it a version 2 image and back; the VM is off meanwhile.
    Amend,
    /// The host copies the active image's file as it is now.
    CopyFile,
    /// The copy comes back in place of the image; the VM is off meanwhile.
    PutBack,
    /// Somebody starts a bitmap.
    AddBitmap(&'static str),
    /// Somebody removes one.
    RemoveBitmap(&'static str),
    /// Somebody stops one from recording.
    DisableBitmap(&'static str),
    /// Somebody lets one record again.
    EnableBitmap(&'static str),
    /// Somebody empties one.
    ClearBitmap(&'static str),
    /// Somebody merges the second one into the first.
    MergeBitmap(&'static str, &'static str),
    /// Another job holds one.
    HoldBitmap(&'static str),
    /// That job is given up.
    LetGo,
}

/// What happens to the process that has the images open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// It ends in order and is started again. Of a VM that is met powered off: it is started and shut down.
    Restart,
    /// It is killed and started again. Of a VM that is met powered off: keepmark's own process if there is one, else one that was started.
    Kill,
    /// The user pauses the VM.
    Pause,
}

/// Why something did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unable {
    /// The hypervisor refused, in its words.
    Refused(String),
    /// This bench cannot do it, and why.
    NotHere(&'static str),
}

/// Why a change cannot happen to a VM that is powered off.
#[must_use]
#[expect(clippy::wildcard_enum_match_arm, reason = "all others can")]
pub fn only_while_running(change: Change) -> Option<&'static str> {
    match change {
        Change::Stream | Change::Mirror => Some("QEMU streams and mirrors while the VM runs"),
        Change::HoldBitmap(_) | Change::LetGo => Some("jobs hold bitmaps while the VM runs"),
        _ => None,
    }
}

/// The name of a bitmap: `c1` to `c9` are checkpoints of keepmark, everything else is somebody else's and called so.
#[must_use]
pub fn bitmap_name(label: &str) -> String {
    match label.strip_prefix('c').and_then(|number| number.parse::<u8>().ok()) {
        Some(number) => format!("km1-20261122T1800{number:02}Z-3f9a1c0d7be2"),
        None => label.to_owned(),
    }
}

/// The label of a bitmap's name.
fn label(name: &str) -> String {
    (1..10).map(|number| format!("c{number}")).find(|label| bitmap_name(label) == name).unwrap_or_else(|| name.to_owned())
}
