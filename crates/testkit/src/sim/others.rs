//! What others do at any instant: people, managers, backup programs, another keepmark, a clock, somebody who copies a store.

use std::sync::Arc;

use keepmark_model::StoreId;
use keepmark_model::facts::Power;

use super::device::Device;
use super::event::{Event, EventKind, span};
use super::image::{Bitmap, Format, Layer, Mask, SimDisk};
use super::machine::{Freezer, Machine};
use super::world::{Break, World};

/// Longest backing chain.
const LAYERS_MAX: usize = 4;
/// Most stores.
const STORES_MAX: usize = 3;
/// What is added to a file's number for a copy of it.
const COPY: u32 = 0x4000_0000;

/// What others do between runs of keepmark, and at instants of one, too.
pub const BESIDE: &[EventKind] = &[
    EventKind::Cont,
    EventKind::Reset,
    EventKind::BeginMirror,
    EventKind::BeginMirror,
    EventKind::Pivot,
    EventKind::PlugOther,
    EventKind::Preallocate,
    EventKind::CutAndPreallocate,
    EventKind::CutAndPreallocate,
    EventKind::ShrinkAndGrow,
    EventKind::ManagedSnapshot,
    EventKind::Stream,
    EventKind::MergeIntoOurs,
    EventKind::RemakeOurs,
    EventKind::ClockAhead,
    EventKind::ClockBehind,
    EventKind::ServeOthers,
    EventKind::EndServing,
    EventKind::EndServing,
    EventKind::Agent,
    EventKind::FreezeByOthers,
    EventKind::ThawByOthers,
    EventKind::Remake,
    EventKind::CopyStore,
    EventKind::TwinStore,
    EventKind::LinkedClone,
    EventKind::Push,
];

/// What others do at instants of a run.
pub const MEANWHILE: &[EventKind] = &[
    EventKind::Cont,
    EventKind::Cont,
    EventKind::Reset,
    EventKind::Pause,
    EventKind::BeginMirror,
    EventKind::BeginMirror,
    EventKind::SnapshotMeanwhile,
    EventKind::SnapshotMeanwhile,
    EventKind::Snapshot,
    EventKind::ManagedSnapshot,
    EventKind::Unplug,
    EventKind::PlugOther,
    EventKind::OtherKeepmark,
    EventKind::OtherKeepmark,
    EventKind::ServeOthers,
    EventKind::FreezeByOthers,
    EventKind::ThawByOthers,
    EventKind::DisableOurs,
    EventKind::DisableOurs,
    EventKind::DisableOurs,
    EventKind::ClearOurs,
    EventKind::RemoveOurs,
    EventKind::Resize,
    EventKind::Commit,
    EventKind::Stream,
    EventKind::ClockAhead,
    EventKind::ClockBehind,
];

impl World {
    pub(super) fn happen_by_others(&mut self, machine: usize, event: Event) -> bool {
        self.happen_to_stores(machine, event) || self.happen_to_guest(machine, event) || self.happen_to_device(machine, event)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds happen to VMs and disks")]
    fn happen_to_stores(&mut self, machine: usize, event: Event) -> bool {
        let store = usize::from(event.disk) % self.stores.len();
        let days = i64::from(event.a) * if event.b & 1 == 0 { 1 } else { 8 };
        match event.kind {
            EventKind::ClockAhead => self.clock += days * 86_400,
            EventKind::ClockBehind => self.clock -= days * 86_400,
            EventKind::Push => self.stores[store].keeps_zeros = true,
            EventKind::CopyStore => return self.copy_store(store, false),
            EventKind::TwinStore => return self.copy_store(store, true),
            EventKind::LinkedClone => return self.link(machine),
            _ => return false,
        }
        self.set_back |= event.kind != EventKind::Push;
        true
    }

    fn copy_store(&mut self, store: usize, is_twin: bool) -> bool {
        if self.stores.len() >= STORES_MAX {
            return false;
        }
        let mut copy = self.stores[store].clone();
        if !is_twin {
            copy.id = StoreId::new("c");
        }
        self.twins |= is_twin;
        self.stores.push(copy);
        for machine in &mut self.machines {
            machine.smooth.push(Vec::new());
            machine.anchored.push(Vec::new());
        }
        true
    }

    /// A powered-off VM becomes the template of another, which has images above its own.
    fn link(&mut self, machine: usize) -> bool {
        let template = &self.machines[machine];
        let is_fit = |disk: &SimDisk| disk.layers[0].format == Format::Qcow2 && disk.layers.len() < LAYERS_MAX;
        if self.machines.len() > 1 || template.power != Power::Off || !template.is_free() || !template.attached().all(is_fit) {
            return false;
        }
        let mut disks: Vec<SimDisk> = template.attached().cloned().collect();
        for disk in &mut disks {
            disk.layers.iter_mut().for_each(|layer| layer.shared = true);
            let path = self.fresh();
            disk.layers.insert(0, Layer::new(path, Format::Qcow2, 1, disk.atoms()));
            disk.copies.clear();
        }
        self.machines[machine].is_template = true;
        self.machines.push(Machine { name: "clone", ..Machine::new(disks, self.stores.len()) });
        true
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds happen to stores and disks, or cannot happen now")]
    fn happen_to_guest(&mut self, machine: usize, event: Event) -> bool {
        let blind = self.breaks(Break::OtherLocks);
        let machine = &mut self.machines[machine];
        let runs = machine.power != Power::Off;
        match event.kind {
            EventKind::Cont if machine.power == Power::Paused => machine.power = Power::Running,
            EventKind::Reset => return runs,
            EventKind::Agent => machine.agent = true,
            EventKind::FreezeByOthers if runs && machine.agent && machine.freezer.is_none() => machine.freezer = Some(Freezer::Others),
            EventKind::ThawByOthers if machine.freezer.is_some() => machine.freezer = None,
            EventKind::ServeOthers if runs && machine.is_free() && !machine.leftovers.orphans => machine.others_server = true,
            EventKind::EndServing if machine.others_server => machine.others_server = false,
            // It sees the lock, and goes away.
            EventKind::OtherKeepmark if blind && machine.leftovers.nodes => machine.thaw(),
            EventKind::OtherKeepmark => return runs,
            _ => return false,
        }
        true
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds happen to stores and VMs, or cannot happen now")]
    fn happen_to_device(&mut self, index: usize, event: Event) -> bool {
        let (version, path) = (self.fresh(), self.fresh());
        let machine = &mut self.machines[index];
        let (live, free, attached) = (machine.power != Power::Off, machine.is_free(), machine.attached().count());
        let is_fixing = machine.frozen.is_some();
        let place = usize::from(event.disk) % machine.disks.len();
        let disk = &mut machine.disks[place];
        let name = disk.name.clone();
        let (live, cluster) = (live && disk.attached, 1 << (event.b % 3));
        let closed = (machine.power == Power::Off && free || !disk.attached) && disk.device == Device::default();
        let mut wrong = None;
        let done = match event.kind {
            EventKind::BeginMirror if live => disk.begin_mirror(path),
            EventKind::Pivot if live && disk.device.mirror.is_some() => {
                wrong = disk.pivot();
                true
            }
            EventKind::SnapshotMeanwhile if live && is_fixing && disk.device.mirror.is_none() => {
                let is_done = disk.snapshot(path, cluster, event.b & 4 != 0);
                // Below the filter, the moment cannot be read any more (QEMU 10.0.2).
                if is_done && event.b & 8 != 0 {
                    machine.frozen = Some(Arc::default());
                }
                is_done
            }
            EventKind::Unplug if live && attached > 1 && disk.device.mirror.is_none() => unplug(disk),
            EventKind::PlugOther if !disk.attached && (is_fixing || free) => {
                let (start, end) = span(event, disk.atoms());
                plug_other(disk, path);
                disk.write(start, end, version);
                true
            }
            EventKind::Preallocate if closed => {
                disk.preallocate();
                return true;
            }
            EventKind::CutAndPreallocate if closed => disk.cut_and_preallocate(usize::from(event.a), usize::from(event.b)),
            EventKind::ConvertOver if closed => disk.convert_over(path),
            EventKind::ConvertOlder if closed => disk.convert_older(path, event.a),
            EventKind::SnapshotAlike if live && free => disk.snapshot_alike(path, cluster),
            EventKind::Remake if closed => {
                remake(disk, path);
                true
            }
            EventKind::MergeIntoOurs | EventKind::RemakeOurs if live => meddle(&mut disk.layers[0], event),
            _ => false,
        };
        if done && event.kind != EventKind::BeginMirror {
            machine.lose_lineage(Some(&name));
        }
        if let Some(wrong) = wrong {
            self.wrong(|| wrong);
        }
        done
    }
}

fn unplug(disk: &mut SimDisk) -> bool {
    disk.close();
    disk.attached = false;
    true
}

fn plug_other(disk: &mut SimDisk, path: u32) {
    disk.layers = vec![Layer::new(path, Format::Qcow2, 1, disk.atoms())];
    disk.attached = true;
    disk.device = Device::default();
}

fn remake(disk: &mut SimDisk, file: u32) {
    let Some(old) = disk.layers.first() else { return };
    let mut new = Layer::new(old.path, old.format, old.cluster, disk.atoms());
    new.file = file;
    disk.layers = vec![new];
}

/// Another tool changes what one of our bitmaps says.
fn meddle(layer: &mut Layer, event: Event) -> bool {
    let ours = |bitmap: &&mut Bitmap| bitmap.name.starts_with("km1-") && !bitmap.busy && !bitmap.inconsistent;
    let others = layer.bitmaps.iter().filter(|bitmap| !bitmap.inconsistent).fold(0, |all, bitmap| all | bitmap.bits);
    let count = layer.bitmaps.iter_mut().filter(ours).count();
    let Some(bitmap) = layer.bitmaps.iter_mut().filter(ours).nth(usize::from(event.a) % count.max(1)) else { return false };
    if event.kind == EventKind::MergeIntoOurs {
        bitmap.bits |= super::image::round(others, bitmap.granularity);
    } else {
        let missed = bitmap.missed | bitmap.bits | if bitmap.recording { 0 } else { Mask::MAX };
        *bitmap = Bitmap { missed, ..Bitmap::new(&bitmap.name, bitmap.persistent, bitmap.granularity) };
    }
    true
}

impl SimDisk {
    /// Shrinks and grows back, or beyond; what is new is allocated and holds zeros.
    fn cut_and_preallocate(&mut self, a: usize, b: usize) -> bool {
        let atoms = self.atoms();
        let more = (atoms + if b & 1 == 0 { 0 } else { b % 16 }).min(super::image::ATOMS_MAX);
        let cut = 1 + a % atoms;
        if self.layers.len() > 1 || !self.resize(cut) || !self.resize(more) {
            return false;
        }
        self.allocate_from(cut);
        true
    }

    /// The active image, with its bitmaps, becomes the only one and takes the lowest one's place.
    fn convert_over(&mut self, file: u32) -> bool {
        let Some(lowest) = self.layers.last().filter(|lowest| self.layers.len() > 1 && !lowest.shared && lowest.is_told()) else {
            return false;
        };
        let (path, cluster) = (lowest.path, lowest.cluster);
        let bitmaps = self.kept_bitmaps();
        self.rewrite(path, Format::Qcow2, cluster, false);
        (self.layers[0].bitmaps, self.layers[0].file) = (bitmaps, file);
        true
    }

    /// As an internal snapshot's content is written over the image, with the bitmaps of today.
    fn convert_older(&mut self, file: u32, choice: u8) -> bool {
        let Some(copy) = self.copies.get(usize::from(choice) % self.copies.len().max(1)).cloned() else { return false };
        let older = SimDisk::new(self.name.clone(), copy, self.granularity);
        if self.layers.len() > 1 || self.layers[0].format != Format::Qcow2 || !self.layers[0].is_told() || older.atoms() != self.atoms() {
            return false;
        }
        let (path, cluster, bitmaps) = (self.layers[0].path, self.layers[0].cluster, self.kept_bitmaps());
        self.layers = older.layers;
        self.rewrite(path, Format::Qcow2, cluster, false);
        (self.layers[0].bitmaps, self.layers[0].file) = (bitmaps, file);
        true
    }

    fn kept_bitmaps(&self) -> Vec<Bitmap> {
        let kept = self.layers[0].bitmaps.iter().filter(|bitmap| bitmap.persistent && !bitmap.inconsistent && !bitmap.busy);
        kept.cloned().map(|bitmap| Bitmap { stored: true, ..bitmap }).collect()
    }

    /// Files of one name may lie in different folders.
    fn snapshot_alike(&mut self, path: u32, cluster: usize) -> bool {
        let is_told = self.layers.iter().all(Layer::is_told);
        is_told && self.snapshot(super::machine::FIRST_IMAGE + path, cluster, true)
    }
}

/// The copies of images are other files.
pub(super) fn other_files(layers: &mut [Layer]) {
    layers.iter_mut().for_each(|layer| layer.file ^= COPY);
}
