//! A simulated VM on its host: power, disks, what keepmark has in its QEMU, and what is known of its lineage.

use std::sync::Arc;

use keepmark_model::facts::Power;
use keepmark_model::{DiskName, Size};

use super::device::Device;
use super::image::{ATOM, Bitmap, Format, Layer, Mask, SimDisk};

/// Paths of the images that a VM is made with are not below this.
pub const FIRST_IMAGE: u32 = 1_000_000;

/// What a run of keepmark has in QEMU; gone with QEMU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Filters, scratch images, exports and temporary bitmaps.
    pub nodes: bool,
    /// The processors stand still because keepmark stopped them.
    pub paused: bool,
    /// Filters, scratch images and exports of a dead run, under names of their own.
    pub orphans: bool,
}

impl Leftovers {
    /// Whether there is anything.
    #[must_use]
    pub fn any(self) -> bool {
        self.nodes || self.paused || self.orphans
    }
}

/// One disk at a frozen moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenCopy {
    /// Which disk.
    pub name: DiskName,
    /// What it held, and where it was a hole.
    pub cells: Vec<(u32, bool)>,
    /// What its bitmaps called changed since the checkpoint that was asked for.
    pub dirty: Option<Mask>,
    /// What changed silently since then: only the audit can find it.
    pub missed: Mask,
    /// Whether an audit has contradicted those bitmaps before.
    pub contradicted: bool,
}

impl FrozenCopy {
    /// Bytes.
    #[must_use]
    pub fn size(&self) -> Size {
        Size(self.cells.len() as u64 * ATOM)
    }
}

/// Who has frozen a guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezer {
    /// keepmark.
    Us,
    /// Another backup program.
    Others,
}

/// A simulated VM.
#[derive(Debug, Clone)]
pub struct Machine {
    /// How it is called.
    pub name: &'static str,
    /// Whether others run on images above its own, so that it must not be started any more.
    pub is_template: bool,
    /// Whether its guest has an agent.
    pub agent: bool,
    /// Whose freeze its file systems are under.
    pub freezer: Option<Freezer>,
    /// Whether another program's exports are served by its QEMU.
    pub others_server: bool,
    /// Writes of its guest so far.
    pub writes: u64,
    /// Whether it runs.
    pub power: Power,
    /// Counts the processes that had its images open; a connection to an earlier one is dead.
    pub process: u32,
    /// Its disks, detached ones included.
    pub disks: Vec<SimDisk>,
    /// What keepmark has in it.
    pub leftovers: Leftovers,
    /// The moment that is readable now.
    pub frozen: Option<Arc<Vec<FrozenCopy>>>,
    /// Whether keepmark has the images of the powered-off VM open, and for writing.
    pub opened: Option<bool>,
    /// Per store, the disks whose next backup can be an incremental: nothing has happened since the last one that could cost a bitmap.
    pub smooth: Vec<Vec<DiskName>>,
    /// Per store, the disks whose next backup can be a differential: nothing has happened since all of it was read.
    pub anchored: Vec<Vec<DiskName>>,
}

impl Machine {
    /// A powered-off VM.
    #[must_use]
    pub fn new(disks: Vec<SimDisk>, stores: usize) -> Self {
        Self {
            name: "vm",
            is_template: false,
            agent: false,
            freezer: None,
            others_server: false,
            writes: 0,
            power: Power::Off,
            process: 0,
            disks,
            leftovers: Leftovers::default(),
            frozen: None,
            opened: None,
            smooth: vec![Vec::new(); stores],
            anchored: vec![Vec::new(); stores],
        }
    }

    /// Its disks.
    pub fn attached(&self) -> impl Iterator<Item = &SimDisk> {
        self.disks.iter().filter(|disk| disk.attached)
    }

    fn attached_mut(&mut self) -> impl Iterator<Item = &mut SimDisk> {
        self.disks.iter_mut().filter(|disk| disk.attached)
    }

    /// Whether a process has its images open for writing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.power != Power::Off || self.opened == Some(true)
    }

    /// Whether its block layer can be changed by others now.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.frozen.is_none() && self.opened.is_none()
    }

    /// QEMU starts.
    pub fn start(&mut self) {
        self.process += 1;
        self.power = Power::Running;
    }

    /// QEMU, or keepmark's own process for powered-off images, ends in order.
    pub fn close(&mut self) {
        if self.is_open() {
            self.attached_mut().for_each(SimDisk::close);
        }
        self.gone();
    }

    /// QEMU, or keepmark's own process for powered-off images, is killed.
    pub fn crash(&mut self) {
        if self.is_open() {
            self.attached_mut().for_each(SimDisk::crash);
            self.lose_lineage(None);
        }
        self.gone();
    }

    fn gone(&mut self) {
        self.process += 1;
        self.power = Power::Off;
        (self.leftovers, self.frozen, self.opened) = (Leftovers::default(), None, None);
        (self.freezer, self.others_server) = (None, false);
        self.disks.iter_mut().for_each(|disk| disk.device = Device::default());
    }

    /// keepmark is dead: its watchdog gives the guest back what it needs to run, its own process for powered-off images ends one way or the other.
    pub fn keepmark_died(&mut self, watchdog: bool, in_order: bool) {
        if watchdog && self.leftovers.paused {
            self.power = Power::Running;
            self.leftovers.paused = false;
        }
        if watchdog && self.freezer == Some(Freezer::Us) {
            self.freezer = None;
        }
        self.leftovers.orphans |= std::mem::take(&mut self.leftovers.nodes);
        match self.opened {
            Some(_) if in_order => self.close(),
            Some(_) => self.crash(),
            None => {}
        }
        self.frozen = None;
    }

    /// What was made for a frozen moment goes; what a dead run left does not.
    pub fn thaw(&mut self) {
        if self.leftovers.paused {
            self.power = Power::Running;
        }
        if self.freezer == Some(Freezer::Us) {
            self.freezer = None;
        }
        self.disks.iter_mut().for_each(|disk| disk.device.filter = false);
        let orphans = self.leftovers.orphans;
        (self.leftovers, self.frozen) = (Leftovers { orphans, ..Leftovers::default() }, None);
    }

    /// Something happened to a disk, or to all, that may cost an incremental.
    pub fn lose_lineage(&mut self, disk: Option<&DiskName>) {
        let lineages = self.smooth.iter_mut().chain(&mut self.anchored);
        lineages.for_each(|names| names.retain(|name| disk.is_some_and(|disk| name != disk)));
    }

    /// Raw disks lose their bitmaps with the process.
    pub fn lose_memory(&mut self) {
        let raw = |disk: &SimDisk| disk.layers.iter().any(|layer| layer.format == Format::Raw);
        let lost: Vec<DiskName> = self.disks.iter().filter(|disk| raw(disk)).map(|disk| disk.name.clone()).collect();
        lost.iter().for_each(|name| self.lose_lineage(Some(name)));
    }

    /// Every bitmap on an attached disk.
    pub fn bitmaps(&self) -> impl Iterator<Item = &Bitmap> {
        self.attached().flat_map(|disk| &disk.layers).flat_map(|layer: &Layer| &layer.bitmaps)
    }
}
