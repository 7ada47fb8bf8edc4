//! The steps to a simulated frozen moment, as the real driver goes them; others may act between any two.

use std::sync::Arc;
use std::time::Duration;

use keepmark_model::facts::Power;
use keepmark_model::manifest::Consistency;
use keepmark_model::moment::{MomentStep, steps};
use keepmark_model::seam::{Freeze, Moment, PointDisk, PointRequest, Result};
use keepmark_model::trust::recorded;
use keepmark_model::{CheckpointName, DiskName};

use super::hypervisor::{SimVm, disk_facts, failed, paths};
use super::image::{Bitmap, Format, Mask, SimDisk};
use super::machine::{Freezer, FrozenCopy, Machine};
use super::world::{Break, Run, World};

/// A device that gets a filter, and the active image that it had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Noted {
    disk: DiskName,
    image: u32,
}

impl SimVm {
    pub(super) fn fix(&self, request: &PointRequest, noted: &mut Vec<Noted>) -> Result<Moment> {
        self.prepare(request)?;
        self.look(request)?;
        let mut frozen: Vec<FrozenCopy> = Vec::new();
        let consistency = self.freeze_guest(request)?;
        for step in self.steps() {
            match step {
                MomentStep::NewBitmaps => self.start(request)?,
                MomentStep::Filters => self.filters(request, &mut frozen, noted)?,
                MomentStep::Merge => self.merge(request, &mut frozen)?,
            }
        }
        self.thaw_guest()?;
        self.last_look(request)?;
        self.export(request, frozen)?;
        let findings = Vec::new();
        Ok(Moment { pause: Duration::ZERO, frozen: None, consistency, findings, notes: Vec::new() })
    }

    fn steps(&self) -> [MomentStep; 3] {
        let merged_first = super::world::lock(&self.world).breaks(Break::MergeFirst);
        if merged_first { [MomentStep::NewBitmaps, MomentStep::Merge, MomentStep::Filters] } else { steps() }
    }

    fn prepare(&self, request: &PointRequest) -> Result<()> {
        let mut world = self.effect()?;
        world.machines[self.machine].leftovers.nodes = true;
        let since: Vec<(DiskName, CheckpointName)> =
            request.disks.iter().filter_map(|disk| Some((disk.name.clone(), disk.since.clone()?))).collect();
        world.note_contradictions(self.machine, &since);
        world.run.iter_mut().for_each(|run| (run.since, run.own) = (Clone::clone(&since), request.checkpoint.clone()));
        Ok(())
    }

    /// What was judged for the plan must still hold, and the images must be those that were reported.
    fn look(&self, request: &PointRequest) -> Result<()> {
        let mut world = self.instant()?;
        if world.breaks(Break::NoSecondLook) {
            return Ok(());
        }
        if let Some(mirrored) = world.machines[self.machine].attached().find(|disk| disk.device.mirror.is_some() && wants(request, disk))
            && !world.breaks(Break::IgnoreJobs)
        {
            return Err(failed(format!("a job works on disk {}", mirrored.name)));
        }
        self.judge_again(&mut world, request)
    }

    /// A snapshot may have come in between the look and the moment, and a bitmap may have been paused.
    fn last_look(&self, request: &PointRequest) -> Result<()> {
        let mut world = self.instant()?;
        if world.breaks(Break::NoLastLook) || world.breaks(Break::NoSecondLook) {
            return Ok(());
        }
        self.judge_again(&mut world, request)
    }

    fn judge_again(&self, world: &mut World, request: &PointRequest) -> Result<()> {
        let machine = &world.machines[self.machine];
        let is_as_reported = |disk: &SimDisk| self.reported.iter().any(|(name, images)| *name == disk.name && *images == paths(disk));
        let based = || machine.attached().filter_map(|disk| Some((disk, since(request, disk)?)));
        if !based().all(|(disk, _)| is_as_reported(disk)) {
            return Err(failed("the images of a disk are no longer those that were reported"));
        }
        if based().all(|(disk, since)| recorded(&disk_facts(disk), since).is_ok()) {
            return Ok(());
        }
        // That another tool paused the bitmap may show only now, by what a guest wrote since the plan; whatever else can show
        // only now has disturbed the run itself.
        let meddled = machine.bitmaps().any(|bitmap| bitmap.missed != 0);
        world.run.iter_mut().for_each(|run| run.disturbed |= meddled);
        Err(failed("the bitmaps of this checkpoint are no longer complete"))
    }

    fn freeze_guest(&self, request: &PointRequest) -> Result<Consistency> {
        let mut world = self.instant()?;
        let machine = &mut world.machines[self.machine];
        let is_possible = request.freeze != Freeze::Never && machine.agent && machine.power == Power::Running && machine.freezer.is_none();
        if is_possible {
            machine.freezer = Some(Freezer::Us);
        }
        Ok(if is_possible { Consistency::Application } else { Consistency::Crash })
    }

    fn thaw_guest(&self) -> Result<()> {
        let mut world = self.instant()?;
        world.thaw_guest(self.machine);
        Ok(())
    }

    /// One transaction over all disks. A powered-off VM's images are opened for writing for it.
    fn start(&self, request: &PointRequest) -> Result<()> {
        let mut world = self.instant()?;
        let Some(checkpoint) = request.checkpoint.as_ref().filter(|_| !world.breaks(Break::PointThenBitmap)) else { return Ok(()) };
        let machine = &mut world.machines[self.machine];
        if machine.power == Power::Off {
            machine.opened = Some(true);
        }
        machine.start_checkpoint(request, checkpoint)
    }

    /// The moment: the guest stands still while one disk after the other gets its filter.
    fn filters(&self, request: &PointRequest, frozen: &mut Vec<FrozenCopy>, noted: &mut Vec<Noted>) -> Result<()> {
        let was = self.stop()?;
        for (number, wanted) in request.disks.iter().enumerate() {
            let mut world = if number == 0 { self.effect()? } else { self.instant()? };
            let ignoring = world.breaks(Break::IgnoreJobs);
            let machine = &mut world.machines[self.machine];
            machine.frozen.get_or_insert_default();
            let disk = machine.disks.iter_mut().find(|disk| disk.attached && disk.name == wanted.name);
            let disk = disk.ok_or_else(|| failed("there is no such disk"))?;
            if disk.device.mirror.is_some() && !ignoring {
                return Err(failed(format!("a job works on disk {}", disk.name)));
            }
            disk.filter();
            noted.push(Noted { disk: disk.name.clone(), image: disk.layers[0].path });
            frozen.push(FrozenCopy { name: disk.name.clone(), cells: disk.content(), dirty: None, missed: 0, contradicted: false });
        }
        let stood_still = self.stood_still(was)?;
        self.resume()?;
        if stood_still || frozen.len() < 2 {
            Ok(())
        } else {
            Err(failed("somebody let the guest run while its disks were frozen one after the other"))
        }
    }

    /// Gives the writes of the guest so far.
    fn stop(&self) -> Result<u64> {
        let mut world = self.effect()?;
        let machine = &mut world.machines[self.machine];
        if machine.power == Power::Running {
            (machine.power, machine.leftovers.paused) = (Power::Paused, true);
        }
        Ok(machine.writes)
    }

    fn stood_still(&self, writes: u64) -> Result<bool> {
        let mut world = self.instant()?;
        let machine = &world.machines[self.machine];
        let is_torn = machine.writes != writes;
        if is_torn && world.breaks(Break::TornMoment) {
            world.run.iter_mut().for_each(|run| run.torn = true);
            return Ok(true);
        }
        Ok(!is_torn)
    }

    fn resume(&self) -> Result<()> {
        let mut world = self.effect()?;
        let resumes_others = world.breaks(Break::ResumesOthers);
        let machine = &mut world.machines[self.machine];
        if machine.leftovers.paused || resumes_others && machine.power == Power::Paused {
            (machine.power, machine.leftovers.paused) = (Power::Running, false);
        }
        Ok(())
    }

    fn merge(&self, request: &PointRequest, frozen: &mut Vec<FrozenCopy>) -> Result<()> {
        let world = self.instant()?;
        let (top_only, blind) = (world.breaks(Break::TopLayerOnly), world.breaks(Break::NoSecondLook));
        let machine = &world.machines[self.machine];
        for wanted in &request.disks {
            let disk = machine.disks.iter().find(|disk| disk.name == wanted.name).ok_or_else(|| failed("there is no such disk"))?;
            let Some(since) = &wanted.since else { continue };
            let (dirty, missed) = delta(disk, since, top_only, blind)?;
            let contradicted = disk.layers.iter().filter_map(|layer| layer.bitmap(since.as_str())).any(|bitmap| bitmap.contradicted);
            match frozen.iter_mut().find(|copy| copy.name == wanted.name) {
                Some(copy) => (copy.dirty, copy.missed, copy.contradicted) = (Some(dirty), missed, contradicted),
                None => frozen.push(FrozenCopy { name: wanted.name.clone(), cells: Vec::new(), dirty: Some(dirty), missed, contradicted }),
            }
        }
        Ok(())
    }

    /// The frozen content can be read from now on. QEMU has one server of exports, which may be another's.
    fn export(&self, request: &PointRequest, frozen: Vec<FrozenCopy>) -> Result<()> {
        let mut world = self.effect()?;
        let frozen = Arc::new(united(frozen));
        let machine = &mut world.machines[self.machine];
        if machine.others_server {
            return Err(failed("another program's exports are served by this QEMU"));
        }
        machine.frozen = Some(Arc::clone(&frozen));
        world.run.iter_mut().for_each(|run| run.moment = Some(Arc::clone(&frozen)));
        match request.checkpoint.as_ref().filter(|_| world.breaks(Break::PointThenBitmap)) {
            Some(checkpoint) => world.machines[self.machine].start_checkpoint(request, checkpoint),
            None => Ok(()),
        }
    }
}

/// A delta that was merged before its disk was frozen stands by itself.
fn united(copies: Vec<FrozenCopy>) -> Vec<FrozenCopy> {
    let mut all: Vec<FrozenCopy> = Vec::with_capacity(copies.len());
    for copy in copies {
        match all.iter_mut().find(|other| other.name == copy.name) {
            Some(other) => other.cells = copy.cells,
            None => all.push(copy),
        }
    }
    all
}

fn wants(request: &PointRequest, disk: &SimDisk) -> bool {
    request.disks.iter().any(|wanted| wanted.name == disk.name)
}

fn since<'r>(request: &'r PointRequest, disk: &SimDisk) -> Option<&'r CheckpointName> {
    request.disks.iter().find(|wanted| wanted.name == disk.name)?.since.as_ref()
}

/// What a checkpoint's bitmaps call changed, united over the images, and what silently changed besides.
fn delta(disk: &SimDisk, since: &CheckpointName, top_only: bool, blind: bool) -> Result<(Mask, Mask)> {
    let carriers: Vec<&Bitmap> = disk.layers.iter().filter_map(|layer| layer.bitmap(since.as_str())).collect();
    if carriers.is_empty() {
        return Err(failed("there is no bitmap of this checkpoint"));
    }
    if carriers.iter().any(|bitmap| bitmap.busy || bitmap.inconsistent && !blind) {
        return Err(failed("a bitmap is in use or inconsistent"));
    }
    let read = carriers.iter().take(if top_only { 1 } else { carriers.len() });
    let united = read.fold(0, |all, bitmap| all | bitmap.bits);
    let alike = disk.layers.iter().filter(|layer| layer.bitmap(since.as_str()).is_some()).all(|layer| layer.cells.len() == disk.atoms());
    let dirty = if alike || top_only { united } else { Mask::MAX };
    let is_sound = carriers.iter().all(|bitmap| bitmap.recording && !bitmap.inconsistent);
    Ok((dirty, if is_sound { carriers.iter().fold(0, |all, bitmap| all | bitmap.missed) } else { 0 }))
}

impl Machine {
    /// A disk as it is now, with what changed since a checkpoint.
    pub(super) fn copy(&self, wanted: &PointDisk) -> Result<FrozenCopy> {
        let disk = self.attached().find(|disk| disk.name == wanted.name).ok_or_else(|| failed("there is no such disk"))?;
        let delta = wanted.since.as_ref().map(|since| delta(disk, since, false, false)).transpose()?;
        let (dirty, missed) = (delta.map(|(dirty, _)| dirty), delta.map_or(0, |(_, missed)| missed));
        Ok(FrozenCopy { name: disk.name.clone(), cells: disk.content(), dirty, missed, contradicted: false })
    }

    fn start_checkpoint(&mut self, request: &PointRequest, checkpoint: &CheckpointName) -> Result<()> {
        let wanted = |disk: &SimDisk| disk.attached && wants(request, disk);
        if self.disks.iter().filter(|disk| wanted(disk)).any(|disk| disk.layers[0].bitmap(checkpoint.as_str()).is_some()) {
            return Err(failed("Bitmap already exists"));
        }
        for disk in self.disks.iter_mut().filter(|disk| wanted(disk)) {
            let persistent = disk.layers[0].format == Format::Qcow2;
            let bitmap = Bitmap::new(checkpoint.as_str(), persistent, disk.granularity);
            disk.layers[0].bitmaps.push(bitmap);
        }
        Ok(())
    }

    /// QEMU gives a device a node, asked or not.
    fn give_back(&self, noted: &Noted) -> Option<String> {
        let disk = self.disks.iter().find(|disk| disk.attached && disk.name == noted.disk)?;
        if disk.layers[0].path != noted.image {
            return Some(format!("disk {} is bound to another image than the one it uses", disk.name));
        }
        (!disk.device.filter).then(|| format!("QEMU aborts: disk {} is given the node that it has", disk.name))
    }
}

impl World {
    /// Takes keepmark out of a VM's devices. What is not its own filter any more is left alone.
    pub(super) fn let_go(&mut self, machine: usize, noted: &[Noted]) {
        let blind = self.breaks(Break::BlindRelease);
        let wrong = noted.iter().filter(|_| blind).find_map(|noted| self.machines[machine].give_back(noted));
        if let Some(wrong) = wrong {
            self.wrong(|| wrong);
        }
        if self.breaks(Break::StopsOthersServer) && std::mem::take(&mut self.machines[machine].others_server) {
            self.wrong(|| "another program's exports are gone".to_owned());
        }
        self.machines[machine].thaw();
    }

    /// A run that begins anew, and asks no more for what changed since a checkpoint, has seen that its bitmap lied.
    fn note_contradictions(&mut self, machine: usize, since: &[(DiskName, CheckpointName)]) {
        let Some(run) = self.run.as_ref().filter(|run| !run.disturbed) else { return };
        // Of several disks it cannot be told from here whose bitmap lied.
        if run.since.len() != 1 {
            return;
        }
        // A checkpoint that a copied manifest names is another store's, and stays.
        let store = self.stores.get(run.store).map(|store| store.id.clone());
        let is_own = |checkpoint: &CheckpointName| store.as_ref().is_some_and(|store| checkpoint.is_for(store));
        for (name, checkpoint) in run.since.iter().filter(|before| !since.contains(before) && is_own(&before.1)) {
            // Open: QEMU refuses the whole removal while somebody else's job holds the checkpoint on any disk. That is a finding, and until
            // the operator removes it the checkpoint stays.
            if self.machines[machine].bitmaps().any(|bitmap| bitmap.name == checkpoint.as_str() && bitmap.busy) {
                continue;
            }
            let disks = self.machines[machine].disks.iter_mut().filter(|disk| disk.name == *name);
            // One that an image below has cannot be removed, and comes to life again by a commit with bitmaps.
            let bitmaps = disks.filter_map(|disk| disk.layers.first_mut()).flat_map(|layer| &mut layer.bitmaps);
            bitmaps.filter(|bitmap| bitmap.name == checkpoint.as_str()).for_each(|bitmap| bitmap.contradicted = true);
        }
    }

    fn thaw_guest(&mut self, machine: usize) {
        let blind = self.breaks(Break::ThawsOthers);
        match self.machines[machine].freezer {
            Some(Freezer::Us) => self.machines[machine].freezer = None,
            Some(Freezer::Others) if blind => self.wrong(|| "another program's freeze was thawed".to_owned()),
            Some(Freezer::Others) | None => {}
        }
    }

    /// A checkpoint on an image that other VMs have below theirs is theirs.
    pub(super) fn check_removal(&mut self, machine: usize, names: &[CheckpointName]) {
        let shared = self.machines[machine].attached().flat_map(|disk| &disk.layers).filter(|layer| layer.shared);
        let found = shared.flat_map(|layer| &layer.bitmaps).find(|bitmap| names.iter().any(|name| name.as_str() == bitmap.name));
        if let Some(name) = found.map(|bitmap| bitmap.name.clone()) {
            self.wrong(|| format!("checkpoint {name} of another VM is to be removed"));
        }
        // Before there is a successor only what an audit has contradicted goes: on all disks, since a checkpoint is one of all.
        let is_condemned = |run: &Run| !run.published && names.iter().any(|name| Some(name) != run.own.as_ref());
        if self.run.as_ref().is_some_and(is_condemned) {
            self.machines[machine].lose_lineage(None);
            self.run.iter_mut().for_each(|run| run.condemned = true);
        }
    }
}
