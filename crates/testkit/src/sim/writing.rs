//! Disks of a simulated powered-off VM that are written in place: as a guest's writes, seen by the bitmaps.

use std::sync::Arc;

use keepmark_model::DiskName;
use keepmark_model::facts::Power;
use keepmark_model::seam::{FrozenDisk, Result};
use keepmark_model::writing::{Change, DiskChanges, WriteRequest, Writing};

use super::hypervisor::{SimFrozenDisk, SimVm, failed};
use super::image::ATOM;
use super::machine::FrozenCopy;
use super::store::decode;
use super::world::{Shared, lock};

/// Nothing guards them: whoever comes next derives from the bitmaps what is to be compared.
pub(super) struct SimWriting<'a> {
    vm: &'a SimVm,
    copies: Arc<Vec<FrozenCopy>>,
}

impl SimVm {
    pub(super) fn write(&self, request: &WriteRequest) -> Result<SimWriting<'_>> {
        let mut world = self.effect()?;
        let machine = &mut world.machines[self.machine];
        if machine.power != Power::Off {
            return Err(failed("a guest may mind its disks"));
        }
        let copies: Vec<FrozenCopy> = request.disks.iter().map(|wanted| machine.copy(wanted)).collect::<Result<_>>()?;
        let copies = Arc::new(copies);
        machine.opened = Some(true);
        machine.frozen = Some(Arc::clone(&copies));
        drop(world);
        Ok(SimWriting { vm: self, copies })
    }
}

impl Writing for SimWriting<'_> {
    fn disk(&mut self, name: &DiskName) -> Result<Box<dyn FrozenDisk>> {
        Ok(Box::new(SimFrozenDisk::open(self.vm, &self.copies, name)?))
    }

    fn changes(&mut self, name: &DiskName) -> Result<Box<dyn DiskChanges>> {
        let (world, machine) = (Arc::clone(&self.vm.world), self.vm.machine);
        Ok(Box::new(SimChanges { world, machine, process: self.vm.process, disk: name.clone() }))
    }

    fn unguarded(&self) -> Vec<String> {
        Vec::new()
    }

    fn finish(self: Box<Self>) -> Result<Vec<String>> {
        drop(self.vm.effect()?);
        Ok(Vec::new())
    }
}

impl Drop for SimWriting<'_> {
    fn drop(&mut self) {
        self.vm.undo(None, &[]);
    }
}

struct SimChanges {
    world: Shared,
    machine: usize,
    process: u32,
    disk: DiskName,
}

impl SimChanges {
    fn change(&self, change: &Change) -> Result<()> {
        let atom = |offset: u64| usize::try_from(offset / ATOM).unwrap_or_default();
        let mut world = lock(&self.world);
        world.effect()?;
        let machine = &mut world.machines[self.machine];
        let is_same = machine.process == self.process;
        let disk = machine.disks.iter_mut().find(|disk| disk.attached && disk.name == self.disk && is_same);
        let disk = disk.ok_or_else(|| failed("the disk is gone"))?;
        match change {
            Change::Zero(extent) => disk.write_zeros(atom(extent.start), atom(extent.end), true),
            Change::Data { offset, bytes } => {
                for (place, value) in decode(bytes)?.into_iter().enumerate() {
                    let at = atom(*offset) + place;
                    disk.write(at, at + 1, value);
                }
            }
        }
        Ok(())
    }
}

impl DiskChanges for SimChanges {
    fn apply(&mut self, changes: &mut dyn Iterator<Item = Change>) -> Result<()> {
        for change in changes {
            self.change(&change)?;
        }
        Ok(())
    }

    fn flush(&mut self, _: &dyn Fn() -> bool) -> Result<()> {
        lock(&self.world).effect()
    }
}
