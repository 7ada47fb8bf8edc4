//! A checkpoint without a backup: a moment from which on changes are counted.

use keepmark_model::choice::DiskChoice;
use keepmark_model::facts::DiskFacts;
use keepmark_model::pushing::Push;
use keepmark_model::seam::{Freeze, Hypervisor, Moment, Monitor, PointDisk, PointRequest, Result};
use keepmark_model::{CheckpointName, StoreId};

use crate::backup::clean_up;
use crate::{Error, Surroundings};

/// In the place of the store that a checkpoint is for: no backup builds on it, and it goes by age as a lost store's does.
const NO_STORE: &str = "none";

/// Starts a checkpoint on all disks at one moment; a disk that can have none is a finding.
///
/// # Errors
/// When the VM refuses, or no disk of it can have one; then nothing is left.
pub fn create(vm: &mut dyn Hypervisor, freeze: Freeze, world: Surroundings<'_>, monitor: &dyn Monitor) -> Result<(CheckpointName, Moment)> {
    clean_up(vm, monitor)?;
    let facts = vm.facts()?;
    let disks = DiskChoice::All.of(&facts)?;
    let name = CheckpointName::make((world.now)(), &StoreId::new(NO_STORE), (world.random)());
    let request = PointRequest {
        disks: disks.into_iter().map(|disk| PointDisk { name: disk.name.clone(), since: None }).collect(),
        checkpoint: Some(name.clone()),
        run: world.run(),
        freeze,
        push: Push::No,
    };
    let point = vm.begin(&request)?;
    let moment = point.moment().clone();
    moment.notes.iter().for_each(|note| monitor.note(note));
    moment.findings.iter().for_each(|finding| monitor.finding(finding));
    point.release()?;
    let (with, without): (Vec<_>, Vec<_>) = vm.facts()?.disks.into_iter().partition(|disk| has(disk, &name));
    if with.is_empty() {
        return Err(Error::NoCheckpoint.into());
    }
    without.iter().for_each(|disk| monitor.finding(&format!("disk {} can have no checkpoint", disk.name)));
    Ok((name, moment))
}

fn has(disk: &DiskFacts, name: &CheckpointName) -> bool {
    disk.bitmaps().any(|bitmap| bitmap.name == name.as_str())
}
