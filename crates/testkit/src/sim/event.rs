//! What happens to VMs, their images and the stores besides keepmark: guests, crashes, other managers, careless people.

use keepmark_model::DiskName;
use keepmark_model::facts::Power;

use super::device::Device;
use super::image::{ATOMS_MAX, Bitmap, Cell, Format, Layer, SimDisk, mask};
use super::machine::{FIRST_IMAGE, Machine};
use super::others::other_files;
use super::world::World;

pub use super::kinds::{EVENTS, EventKind};

/// An event with its choices, each taken modulo what there is to choose from: every event fits every state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What happens.
    pub kind: EventKind,
    /// To which VM.
    pub machine: u8,
    /// To which disk, or store.
    pub disk: u8,
    /// A first choice: where, which.
    pub a: u8,
    /// A second choice: how much.
    pub b: u8,
}

impl World {
    /// Lets an event happen. Gives whether it could.
    pub fn happen(&mut self, event: Event) -> bool {
        let machine = usize::from(event.machine) % self.machines.len();
        let done = self.happen_to_store(event)
            || self.happen_to_machine(machine, event)
            || self.happen_to_disk(machine, event)
            || self.happen_by_others(machine, event);
        if done && self.is_telling() {
            let disks = &self.machines[machine].disks;
            let disk = disks.get(usize::from(event.disk) % disks.len()).map_or("", |disk| disk.name.as_str());
            self.tell(format!("{} (VM {machine}, {disk}, {}, {})", event.kind.words(), event.a, event.b));
        }
        done
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds happen to VMs and disks")]
    fn happen_to_store(&mut self, event: Event) -> bool {
        let store = usize::from(event.disk) % self.stores.len();
        match event.kind {
            EventKind::CutStore => self.stores[store].lose_power(),
            EventKind::DeleteBackup => {
                let Some(deleted) = self.stores[store].delete(event.a) else { return false };
                let names: Vec<DiskName> = deleted.disks.iter().map(|disk| disk.name.clone()).collect();
                for machine in &mut self.machines {
                    let lineages = [&mut machine.smooth[store], &mut machine.anchored[store]];
                    lineages.into_iter().for_each(|lineage| lineage.retain(|name| !names.contains(name)));
                }
            }
            EventKind::ClockBack => {
                // Which of two bitmaps is the younger one can no longer be told: a doubt, and a resync.
                self.clock -= 500 + i64::from(event.a) * 100;
                self.set_back = true;
            }
            _ => return false,
        }
        true
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds happen to stores and disks")]
    fn happen_to_machine(&mut self, index: usize, event: Event) -> bool {
        if event.kind == EventKind::Clone {
            return self.clone_machine(index);
        }
        let machine = &mut self.machines[index];
        match event.kind {
            EventKind::PowerOn if machine.power == Power::Off && machine.opened.is_none() && !machine.is_template => machine.start(),
            EventKind::PowerOff if machine.power != Power::Off && machine.frozen.is_none() => {
                machine.lose_memory();
                machine.close();
            }
            EventKind::KillQemu if machine.power != Power::Off => machine.crash(),
            EventKind::PowerCut => {
                machine.crash();
                self.keepmark_dies(index);
            }
            EventKind::Pause if machine.power == Power::Running => machine.power = Power::Paused,
            EventKind::Resume if machine.power == Power::Paused && !machine.leftovers.paused => machine.power = Power::Running,
            EventKind::ReleaseOurs => {
                machine.disks.iter_mut().flat_map(|disk| &mut disk.layers).flat_map(|layer| &mut layer.bitmaps).for_each(Bitmap::let_go)
            }
            EventKind::Swap => return machine.swap(),
            _ => return false,
        }
        true
    }

    fn clone_machine(&mut self, index: usize) -> bool {
        let origin = &self.machines[index];
        if self.machines.len() > 1 || origin.opened.is_some() {
            return false;
        }
        let mut clone = Machine::new(origin.disks.clone(), self.stores.len());
        for disk in clone.disks.iter_mut() {
            disk.layers = disk.copied(disk.attached && origin.is_open());
            disk.device = Device::default();
            other_files(&mut disk.layers);
        }
        self.machines.push(clone);
        true
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other kinds happen to stores and VMs, or cannot happen now")]
    fn happen_to_disk(&mut self, index: usize, event: Event) -> bool {
        let (version, path) = (self.fresh(), self.fresh());
        let content = if event.kind == EventKind::Restore { self.old_content(index, event) } else { None };
        let machine = &mut self.machines[index];
        let place = usize::from(event.disk) % machine.disks.len();
        let sibling = &machine.disks[(place + 1) % machine.disks.len()];
        let sibling = sibling.copied(sibling.attached && machine.is_open());
        let (power, free, attached) = (machine.power, machine.is_free(), machine.attached().count());
        let is_quiet = machine.freezer.is_some();
        let disk = &mut machine.disks[place];
        let name = disk.name.clone();
        let is_shared = disk.layers.get(1).is_some_and(|below| below.shared);
        let closed = power == Power::Off && free || !disk.attached;
        let (start, end) = span(event, disk.atoms());
        let cluster = 1 << (event.b % 3);
        let guest = disk.attached && power == Power::Running && !is_quiet;
        let free = free && disk.device.mirror.is_none();
        let closed = closed && disk.device.mirror.is_none();
        let live = disk.attached && power != Power::Off;
        let smooth = match event.kind {
            EventKind::Write if guest => {
                disk.write(start, end, version);
                true
            }
            EventKind::WriteZeros if guest => {
                disk.write_zeros(start, end, event.b & 64 != 0);
                true
            }
            EventKind::Discard if guest => {
                disk.discard(start, end);
                true
            }
            EventKind::Restore if guest && content.is_some() => {
                restore(disk, content.as_deref().unwrap_or_default());
                true
            }
            EventKind::Resize if free => {
                let atoms = 8 + usize::from(event.a) % (ATOMS_MAX - 8);
                let grows = atoms >= disk.atoms();
                if !disk.resize(atoms) {
                    return false;
                }
                grows && disk.layers.len() == 1
            }
            EventKind::ShrinkAndGrow if free => {
                let atoms = disk.atoms();
                let more = if event.b & 1 == 0 { atoms } else { (atoms + usize::from(event.b) % 16).min(ATOMS_MAX) };
                if !disk.resize(1 + usize::from(event.a) % atoms) || !disk.resize(more) {
                    return false;
                }
                false
            }
            EventKind::Snapshot | EventKind::ManagedSnapshot if free => {
                if !disk.snapshot(path, cluster, event.kind == EventKind::ManagedSnapshot) {
                    return false;
                }
                false
            }
            EventKind::Commit | EventKind::ManagedCommit if free && !is_shared => {
                if !disk.commit(event.kind == EventKind::ManagedCommit) {
                    return false;
                }
                false
            }
            EventKind::Stream if free => {
                if !disk.stream() {
                    return false;
                }
                false
            }
            EventKind::Mirror if free && live => {
                disk.rewrite(path, Format::Qcow2, cluster, false);
                false
            }
            EventKind::Convert | EventKind::ConvertWithBitmaps if closed => {
                // The new file takes the old one's name.
                // Where nothing tells files apart but their names, exchanged ones of one name cannot be told: a stated limit (decision 3).
                let is_told = disk.layers.iter().all(super::image::Layer::is_told);
                let path = if is_told { 2 * FIRST_IMAGE + path } else { path };
                disk.rewrite(path, Format::Qcow2, cluster, event.kind == EventKind::ConvertWithBitmaps);
                false
            }
            EventKind::Copy if free => {
                let copy = disk.copied(live);
                disk.copies.push(copy);
                true
            }
            EventKind::Rollback if closed && !disk.copies.is_empty() => {
                disk.layers = disk.copies[usize::from(event.a) % disk.copies.len()].clone();
                false
            }
            EventKind::EditFile if closed => {
                disk.edit_silently(0, start, end, Cell::Data(version));
                false
            }
            EventKind::PunchFile if closed => {
                disk.edit_silently(0, start, end, Cell::Zero);
                false
            }
            EventKind::EditBacking if closed => {
                disk.edit_silently(1, start, end, Cell::Data(version));
                false
            }
            EventKind::DropBitmaps if closed => {
                disk.layers[0].bitmaps.clear();
                false
            }
            EventKind::AddForeign if disk.attached => {
                let persistent = disk.layers[0].format == Format::Qcow2;
                if persistent || live {
                    disk.layers[0].bitmaps.push(Bitmap { stored: !live, ..Bitmap::new(&format!("other-{path}"), persistent, 4) });
                }
                true
            }
            EventKind::RemoveOurs | EventKind::DisableOurs | EventKind::EnableOurs | EventKind::ClearOurs | EventKind::HoldOurs
                if free || live =>
            {
                if !meddle(disk, live, event) {
                    return false;
                }
                false
            }
            EventKind::Detach if free && disk.attached && attached > 1 => {
                disk.close();
                disk.attached = false;
                false
            }
            EventKind::Attach if free && !disk.attached => {
                disk.attached = true;
                false
            }
            EventKind::Replace if closed => {
                disk.layers = vec![Layer::new(path, Format::Qcow2, cluster, disk.atoms())];
                disk.write(start, end, version);
                false
            }
            EventKind::CopyOverSibling if closed && sibling.len() == 1 && sibling[0].path != disk.layers[0].path => {
                let (path, file) = (disk.layers[0].path, disk.layers[0].file);
                disk.layers = sibling;
                (disk.layers[0].path, disk.layers[0].file) = (path, file);
                disk.miss(mask(0, ATOMS_MAX));
                false
            }
            _ => return false,
        };
        machine.writes += u64::from(guest);
        if !smooth {
            machine.lose_lineage(Some(&name));
        }
        true
    }

    fn old_content(&self, index: usize, event: Event) -> Option<Vec<u32>> {
        let disks = &self.machines[index].disks;
        let name = &disks[usize::from(event.disk) % disks.len()].name;
        let store = &self.stores[usize::from(event.b) % self.stores.len()];
        let backup = store.backups.get(usize::from(event.a) % store.backups.len().max(1))?;
        backup.disks.iter().find(|disk| disk.name == *name).map(|disk| store.content(disk).unwrap_or_default())
    }
}

pub(super) fn span(event: Event, atoms: usize) -> (usize, usize) {
    let start = usize::from(event.a) % atoms.max(1);
    (start, (start + 1 + usize::from(event.b % 8)).min(atoms))
}

fn restore(disk: &mut SimDisk, content: &[u32]) {
    for (atom, value) in content.iter().enumerate().take(disk.atoms()) {
        if disk.at(atom).0 != *value {
            disk.write(atom, atom + 1, *value);
        }
    }
}

/// Another tool touches one of our bitmaps: on the active image, or on any image while none is open.
#[expect(clippy::wildcard_enum_match_arm, reason = "only five kinds meddle")]
fn meddle(disk: &mut SimDisk, live: bool, event: Event) -> bool {
    // With several images below, one in the middle is the interesting one.
    let layer = if live { 0 } else { usize::from(event.b) % disk.layers.len().min(2) };
    let Layer { bitmaps, removed, .. } = &mut disk.layers[layer];
    let ours: Vec<usize> = (0..bitmaps.len()).filter(|&place| bitmaps[place].name.starts_with("km1-")).collect();
    let Some(&place) = ours.get(usize::from(event.a) % ours.len().max(1)) else { return false };
    let bitmap = &mut bitmaps[place];
    match event.kind {
        EventKind::RemoveOurs if !bitmap.busy => removed.push(bitmaps.remove(place)),
        EventKind::DisableOurs if !bitmap.busy && !bitmap.inconsistent => bitmap.recording = false,
        EventKind::EnableOurs if !bitmap.busy && !bitmap.inconsistent => bitmap.recording = true,
        EventKind::ClearOurs if !bitmap.busy && !bitmap.inconsistent => {
            bitmap.missed |= bitmap.bits;
            bitmap.bits = 0;
        }
        EventKind::HoldOurs if live => bitmap.busy = true,
        _ => return false,
    }
    true
}

impl Machine {
    /// Two disks change places: their images, not their names.
    fn swap(&mut self) -> bool {
        if self.disks.len() < 2 || self.power != Power::Off || !self.is_free() {
            return false;
        }
        let (first, second) = self.disks.split_at_mut(1);
        std::mem::swap(&mut first[0].layers, &mut second[0].layers);
        std::mem::swap(&mut first[0].copies, &mut second[0].copies);
        self.lose_lineage(None);
        true
    }
}
