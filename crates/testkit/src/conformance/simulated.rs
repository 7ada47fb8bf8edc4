//! The bench of the simulated hypervisor, running or powered off.

use std::sync::{Arc, Mutex, MutexGuard};

use keepmark_model::DiskName;
use keepmark_model::facts::Power;
use keepmark_model::seam::Hypervisor;

use super::{Bench, Change, DiskSpec, Meets, Process, Unable, bitmap_name, only_while_running};
use crate::OrFail;
use crate::sim::hypervisor::SimVm;
use crate::sim::image::{ATOM, Bitmap, Format, Layer, SimDisk, round};
use crate::sim::machine::{FIRST_IMAGE, Machine};
use crate::sim::store::encode;
use crate::sim::world::{Shared, World, lock};

/// The simulated hypervisor.
#[derive(Debug)]
pub struct Simulated {
    meets: Meets,
    world: Shared,
}

impl Simulated {
    /// Its VM is met running.
    #[must_use]
    pub fn running() -> Self {
        Self::new(Meets::Running)
    }

    /// Its VM is met powered off.
    #[must_use]
    pub fn off() -> Self {
        Self::new(Meets::Off)
    }

    fn new(meets: Meets) -> Self {
        let world = World::new(Machine::new(Vec::new(), 0), Vec::new(), None, false);
        Self { meets, world: Arc::new(Mutex::new(world)) }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }
}

impl Bench for Simulated {
    fn name(&self) -> &'static str {
        match self.meets {
            Meets::Running => "simulation, running",
            Meets::Off => "simulation, powered off",
        }
    }

    fn meets(&self) -> Meets {
        self.meets
    }

    fn unit(&self) -> u64 {
        ATOM
    }

    fn make(&mut self, disks: &[DiskSpec]) {
        let disks = (0..).zip(disks).map(|(number, spec)| made(number, spec)).collect();
        let mut machine = Machine::new(disks, 0);
        if self.meets == Meets::Running {
            machine.start();
        }
        self.world().machines = vec![machine];
    }

    fn change(&mut self, disk: &str, change: Change) -> Result<(), Unable> {
        if let Some(why) = only_while_running(change).filter(|_| self.meets == Meets::Off) {
            return Err(Unable::NotHere(why));
        }
        let mut world = self.world();
        let path = world.fresh();
        let machine = &mut world.machines[0];
        let was_on = machine.power != Power::Off;
        let must_be_on = !on_files(change) && change != Change::CopyFile || was_on && change == Change::CopyFile;
        match (was_on, must_be_on) {
            (true, false) => machine.close(),
            (false, true) => machine.start(),
            _ => {}
        }
        let done = in_machine(machine, disk, change, path);
        match (was_on, must_be_on) {
            (true, false) => machine.start(),
            (false, true) => machine.close(),
            _ => {}
        }
        if done { Ok(()) } else { Err(Unable::Refused("the simulation refuses".to_owned())) }
    }

    fn process(&mut self, change: Process) -> Result<(), Unable> {
        let mut world = self.world();
        let machine = &mut world.machines[0];
        match (change, self.meets) {
            (Process::Pause, Meets::Running) => machine.power = Power::Paused,
            (Process::Pause, Meets::Off) => return Err(Unable::NotHere("a VM that is off is not paused")),
            (Process::Restart | Process::Kill, meets) => {
                if machine.power == Power::Off && machine.opened.is_none() {
                    machine.start();
                }
                if change == Process::Kill {
                    machine.crash()
                } else {
                    machine.close()
                }
                if meets == Meets::Running {
                    machine.start();
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Box<dyn Hypervisor> {
        Box::new(SimVm::connect(&self.world, 0))
    }

    fn content(&mut self, disk: &str) -> Vec<u8> {
        let world = self.world();
        let disk = world.machines[0].disks.iter().find(|one| one.name.as_str() == disk).or_fail("no such disk");
        encode(disk.content().iter().map(|(value, _)| *value))
    }

    fn left(&mut self) -> Vec<String> {
        let world = self.world();
        let machine = &world.machines[0];
        let is_left = machine.leftovers.any() || machine.frozen.is_some();
        is_left.then(|| format!("{:?}", machine.leftovers)).into_iter().collect()
    }
}

fn made(number: u32, spec: &DiskSpec) -> SimDisk {
    let (units, cluster) = (place(spec.units), place(spec.cluster));
    let format = if spec.raw { Format::Raw } else { Format::Qcow2 };
    // QEMU takes at most 64 KiB, and that where there are no clusters: four units of a bench of real images.
    let granularity = if spec.raw { 4 } else { cluster.min(4) };
    let name = DiskName::new(spec.name).or_fail("a disk's name");
    let layers = vec![Layer::new(FIRST_IMAGE + number, format, cluster, units)];
    SimDisk::new(name, layers, granularity)
}

fn place(units: u64) -> usize {
    usize::try_from(units).or_fail("a disk is small")
}

fn on_files(change: Change) -> bool {
    matches!(change, Change::Convert(_) | Change::Amend | Change::PutBack)
}

/// Lets it happen by the simulation's own rules; whether it could.
fn in_machine(machine: &mut Machine, disk: &str, change: Change, path: u32) -> bool {
    let (free, open) = (machine.is_free(), machine.is_open());
    let disk = machine.disks.iter_mut().find(|one| one.name.as_str() == disk).or_fail("no such disk");
    let end = |start: u64, length: u64| place(start + length);
    match change {
        Change::Write(start, length, value) => disk.write(place(start), end(start, length), value.into()),
        Change::WriteZeros(start, length) => disk.write_zeros(place(start), end(start, length), false),
        Change::Discard(start, length) => disk.discard(place(start), end(start, length)),
        Change::Resize(units) => return free && disk.resize(place(units)),
        Change::Snapshot(cluster) => return free && disk.snapshot(path, place(cluster), false),
        Change::ManagedSnapshot(cluster) => return free && disk.snapshot(path, place(cluster), true),
        Change::Commit => return free && disk.commit(false),
        Change::Stream => return free && disk.stream(),
        Change::Mirror if !free => return false,
        Change::Mirror | Change::Convert(false) => disk.rewrite(path, Format::Qcow2, disk.layers[0].cluster, false),
        Change::Convert(true) => disk.rewrite(path, Format::Qcow2, disk.layers[0].cluster, true),
        Change::Amend => disk.layers[0].bitmaps.clear(),
        Change::CopyFile => disk.copies.push(disk.copied(open)),
        Change::PutBack => disk.layers = disk.copies.pop().or_fail("there is no copy"),
        Change::AddBitmap(label) => {
            let persistent = disk.layers[0].format == Format::Qcow2;
            disk.layers[0].bitmaps.push(Bitmap::new(&bitmap_name(label), persistent, disk.granularity));
        }
        Change::MergeBitmap(label, other) => {
            let bits = disk.layers[0].bitmap(&bitmap_name(other)).or_fail("no such bitmap").bits;
            let into = disk.layers[0].bitmaps.iter_mut().find(|bitmap| bitmap.name == bitmap_name(label)).or_fail("no such bitmap");
            into.bits |= round(bits, into.granularity);
        }
        Change::LetGo => disk.layers[0].bitmaps.iter_mut().for_each(Bitmap::let_go),
        Change::RemoveBitmap(label)
        | Change::DisableBitmap(label)
        | Change::EnableBitmap(label)
        | Change::ClearBitmap(label)
        | Change::HoldBitmap(label) => return meddle(&mut disk.layers[0], &bitmap_name(label), change),
    }
    true
}

#[expect(clippy::wildcard_enum_match_arm, reason = "only five changes meddle")]
fn meddle(layer: &mut Layer, name: &str, change: Change) -> bool {
    let at = layer.bitmaps.iter().position(|bitmap| bitmap.name == name).or_fail("no such bitmap");
    let bitmap = &mut layer.bitmaps[at];
    if bitmap.busy || bitmap.inconsistent && !matches!(change, Change::RemoveBitmap(_)) {
        return false;
    }
    match change {
        Change::RemoveBitmap(_) => drop(layer.bitmaps.remove(at)),
        Change::DisableBitmap(_) => bitmap.recording = false,
        Change::EnableBitmap(_) => bitmap.recording = true,
        Change::ClearBitmap(_) => bitmap.bits = 0,
        _ => bitmap.busy = true,
    }
    true
}
