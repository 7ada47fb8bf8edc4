//! Push mode: the hypervisor writes what changed into the store's images itself; what it cannot is read and written by us as ever.
//!
//! Trust, growth and audit are those of pull mode: both read the same frozen moment.

use std::sync::atomic::{AtomicBool, Ordering};

use keepmark_model::manifest::Kind;
use keepmark_model::plan::DiskPlan;
use keepmark_model::pushing::{CannotPush, PushPlace, PushTarget, Pushing};
use keepmark_model::seam::{BackupWriter, FrozenPoint, Hypervisor, Monitor, Result};
use keepmark_model::{Failure, FailureClass};

use crate::capture::{Captured, Scope};
use crate::error::Error;

/// Who moves the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The hypervisor where store and hypervisor can at no price for the guest, else we.
    #[default]
    Auto,
    /// We.
    Pull,
    /// The hypervisor.
    Push,
}

/// Who moves the data of one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// We; why not the hypervisor, where it would have been asked for.
    Pull(Option<String>),
    /// The hypervisor.
    Push(Pushing),
}

/// Chooses who does; `place` is where the hypervisor would write, in stores where it can.
///
/// # Errors
/// When push mode is asked for and cannot be.
pub fn chosen(mode: Mode, vm: &mut dyn Hypervisor, place: Option<&PushPlace>, disks: &[DiskPlan]) -> Result<Way> {
    let pushing = vm.pushing();
    if mode == Mode::Pull || (mode == Mode::Auto && pushing == Pushing::AsTheMoment) {
        return Ok(Way::Pull(None));
    }
    let asked =
        place.map_or_else(|| Err(CannotPush::new("its store is a repository, into which QEMU cannot write")), |place| vm.can_push(place));
    match (asked, pushing) {
        (Ok(()), Pushing::AsTheMoment) => Ok(disks.iter().find_map(to_be_read).map_or(Way::Push(pushing), |why| Way::Pull(Some(why)))),
        (Ok(()), Pushing::OfTheMoment) => Ok(Way::Push(pushing)),
        (Err(error), _) if mode == Mode::Auto => Ok(Way::Pull(place.is_some().then_some(error.why))),
        (Err(error), _) => Err(refused(error)),
    }
}

/// Push mode that was asked for and cannot be had.
pub fn refused(error: CannotPush) -> Failure {
    Failure::new(FailureClass::Usage, error).with_hint("leave --mode away, or say --mode pull")
}

/// Why a disk has to be read, as far as the plan tells.
fn to_be_read(plan: &DiskPlan) -> Option<String> {
    let says = |what: &str| Some(format!("disk {} {what}", plan.name));
    match &plan.since {
        Some(base) if base.size != plan.size => says("has grown since its base"),
        Some(_) => None,
        None if plan.kind == Kind::Full && plan.compare.is_none() => None,
        None => says("is to be compared with its last backup"),
    }
}

/// Whether an audit leaves a disk that need not be read as planned: on its base, or on nothing.
pub fn is_pushable(plan: &DiskPlan, scope: &Scope) -> bool {
    to_be_read(plan).is_none() && scope.base.as_ref() == plan.since.as_ref().map(|base| &base.backup)
}

/// Where a disk is pushed to; nothing where it has to be read, as far as can be known before it is audited.
///
/// # Errors
/// When no image can be made.
pub fn target(plan: &DiskPlan, writer: &mut dyn BackupWriter) -> Result<Option<PushTarget>> {
    if to_be_read(plan).is_some() {
        return Ok(None);
    }
    let base = plan.since.as_ref().map(|base| &base.backup);
    match writer.push_target(&plan.name, plan.size, base) {
        // Reading says what is wrong with the base, and does without it.
        Err(_) if base.is_some() => Ok(None),
        target => target.map(Some),
    }
}

/// Has the hypervisor write images, until they are written in vain; gives the bytes that it moved for each.
pub fn write(point: &mut dyn FrozenPoint, targets: &[PushTarget], is_vain: &AtomicBool, monitor: &dyn Monitor) -> Result<Vec<u64>> {
    let mut moved = vec![0; targets.len()];
    point.push(targets, &mut |name, done, total| {
        monitor.progress(name.as_str(), done, total);
        if let Some(place) = targets.iter().position(|target| target.disk == *name) {
            moved[place] = total;
        }
        if monitor.interrupted() || is_vain.load(Ordering::Relaxed) { Err(Error::Interrupted.into()) } else { Ok(()) }
    })?;
    targets.iter().for_each(|target| monitor.finished(target.disk.as_str()));
    Ok(moved)
}

/// What the manifest is told of an image that the hypervisor has written.
pub fn taken_over(target: &PushTarget, scope: &Scope, moved: u64, writer: &mut dyn BackupWriter) -> Result<Captured> {
    let stored = writer.pushed(target)?;
    Ok(Captured { reason: format!("{}; written by the hypervisor itself", scope.reason), ..scope.captured(moved, stored.stored_bytes) })
}
