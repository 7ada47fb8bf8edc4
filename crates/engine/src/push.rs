//! Push mode: the hypervisor writes what changed into the store's images itself; what it cannot is read and written by us as ever.
//!
//! Trust, growth and audit are those of pull mode: both read the same frozen moment.

use keepmark_model::manifest::Kind;
use keepmark_model::plan::DiskPlan;
use keepmark_model::seam::{BackupWriter, CannotPush, FrozenPoint, Hypervisor, Monitor, PushTarget, Result, Store};
use keepmark_model::{Failure, FailureClass};

use crate::capture::{Captured, Scope};
use crate::error::Error;

/// Who moves the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The hypervisor where store and hypervisor can, else we.
    #[default]
    Auto,
    /// We.
    Pull,
    /// The hypervisor.
    Push,
}

/// Whether the hypervisor moves the data.
///
/// # Errors
/// When that is asked for and cannot be.
pub fn chosen(mode: Mode, vm: &dyn Hypervisor, store: &dyn Store) -> Result<bool> {
    let why = match (mode, store.takes_pushes()) {
        (Mode::Pull, _) => return Ok(false),
        (_, false) => "its store is a repository, into which QEMU cannot write".to_owned(),
        (_, true) => match vm.can_push() {
            Ok(()) => return Ok(true),
            Err(error) => error.why,
        },
    };
    if mode == Mode::Auto {
        return Ok(false);
    }
    let failure = Failure::new(FailureClass::Usage, CannotPush { why });
    Err(failure.with_hint("leave --mode away, or say --mode pull"))
}

/// Whether a disk can be pushed: nothing is to be compared, and the bitmap covers all that may have changed.
pub fn is_pushable(plan: &DiskPlan, scope: &Scope) -> bool {
    match &plan.since {
        Some(base) => scope.base.as_ref() == Some(&base.backup) && base.size == plan.size,
        None => scope.kind == Kind::Full && scope.compare.is_none(),
    }
}

/// Pushes disks, all at once.
///
/// # Errors
/// When an image cannot be made or written, or the user interrupts.
pub fn push(
    point: &mut dyn FrozenPoint,
    disks: &[(&DiskPlan, Scope)],
    writer: &mut dyn BackupWriter,
    monitor: &dyn Monitor,
) -> Result<Vec<Captured>> {
    let target =
        |writer: &mut dyn BackupWriter, (plan, scope): &(&DiskPlan, Scope)| writer.push_target(&plan.name, plan.size, scope.base.as_ref());
    let targets = disks.iter().map(|disk| target(writer, disk)).collect::<Result<Vec<PushTarget>>>()?;
    let mut moved = vec![0; targets.len()];
    point.push(&targets, &mut |name, done, total| {
        monitor.progress(name.as_str(), done, total);
        if let Some(place) = targets.iter().position(|target| target.disk == *name) {
            moved[place] = total;
        }
        if monitor.interrupted() { Err(Error::Interrupted.into()) } else { Ok(()) }
    })?;
    let taken = |((target, (_, scope)), moved): ((&PushTarget, &(&DiskPlan, Scope)), u64)| {
        monitor.finished(target.disk.as_str());
        let stored = writer.pushed(target)?;
        Ok(Captured { reason: format!("{}; written by the hypervisor itself", scope.reason), ..scope.captured(moved, stored.stored_bytes) })
    };
    targets.iter().zip(disks).zip(moved).map(taken).collect()
}
