//! A backup whose moment consists of the images that the hypervisor writes: nothing of it can be read, so a moment before it is audited.
//!
//! A bitmap only grows, unless somebody cuts the disk: what it calls clean at the moment that counts, it called clean just before. So a
//! readable moment without a checkpoint is audited as ever, and when nothing contradicts the bitmaps the push begins. An audit afterwards
//! would not do: what the guest overwrites meanwhile is dirty then, whatever the bitmap said of it when it was not pushed.

use std::sync::atomic::AtomicBool;

use keepmark_model::facts::BitmapFacts;
use keepmark_model::plan::DiskPlan;
use keepmark_model::pushing::{CannotPush, Push, PushTarget};
use keepmark_model::seam::{BackupWriter, Freeze, Hypervisor, Moment, Result};
use keepmark_model::{CheckpointName, Failure, FailureClass};

use crate::backup::{Outlook, Run, Taken};
use crate::capture::{Captured, Scope, whole};
use crate::error::Error;
use crate::push;

/// The images would lack something of a disk: the backup is pulled after all, and all of this disk is read.
#[derive(Debug, thiserror::Error)]
#[error("disk {}: it is not pushed, and everything is read", .plan.name)]
pub struct Contradicted {
    plan: DiskPlan,
}

impl Contradicted {
    /// What is to be done now.
    pub fn instead(&self, outlook: &Outlook) -> Outlook {
        let mut outlook = outlook.clone();
        (outlook.plan.kind, outlook.plan.reason) = (self.plan.kind, self.plan.reason.clone());
        outlook.plan.disks.iter_mut().filter(|disk| disk.name == self.plan.name).for_each(|disk| *disk = self.plan.clone());
        outlook
    }
}

impl Run<'_> {
    pub(super) fn push_at_once(
        &self,
        vm: &mut dyn Hypervisor,
        checkpoint: Option<&CheckpointName>,
        audited: &[Scope],
        writer: &mut dyn BackupWriter,
    ) -> Result<Taken> {
        let disks = &self.outlook.plan.disks;
        let target = |disk: &DiskPlan| writer.push_target(&disk.name, disk.size, disk.since.as_ref().map(|base| &base.backup));
        let targets = disks.iter().map(target).collect::<Result<Vec<PushTarget>>>()?;
        let (moment, moved, left) = self.written(vm, checkpoint, &targets)?;
        let captured = disks.iter().zip(&targets).zip(audited).zip(moved).map(|(((disk, target), scope), moved)| {
            let moved = if moved == 0 { self.due(disk) } else { moved };
            let captured = push::taken_over(target, scope, moved, writer)?;
            // At the audit's moment less had changed.
            Ok(Captured { dirty_bytes: moved, ..captured })
        });
        Ok(Taken { moment, captured: captured.collect::<Result<Vec<_>>>()?, left })
    }

    pub(super) fn audited_before(&self, vm: &mut dyn Hypervisor) -> Result<Vec<Scope>> {
        let disks = &self.outlook.plan.disks;
        let without_base = |disk: &DiskPlan| whole(disk, &disk.reason, None);
        let mut request = self.point_request(None, Push::No);
        request.disks.retain(|disk| disk.since.is_some());
        request.freeze = Freeze::Never;
        if request.disks.is_empty() {
            return Ok(disks.iter().map(without_base).collect());
        }
        let mut point = vm.begin(&request)?;
        let mut scopes = Vec::with_capacity(disks.len());
        for disk in disks {
            if self.monitor.interrupted() {
                return Err(Error::Interrupted.into());
            }
            if disk.since.is_none() {
                scopes.push(without_base(disk));
                continue;
            }
            let mut frozen = point.disk(&disk.name)?;
            let scope = self.scope_of(frozen.as_mut(), disk)?;
            if !scope.is_contradicted && !push::is_pushable(disk, &scope) {
                return Err(Failure::new(FailureClass::Failed, Contradicted { plan: scope.plan(disk) }));
            }
            scopes.push(scope);
        }
        point.release()?;
        self.check_believed(&scopes)?;
        Ok(scopes)
    }

    fn written(
        &self,
        vm: &mut dyn Hypervisor,
        checkpoint: Option<&CheckpointName>,
        targets: &[PushTarget],
    ) -> Result<(Moment, Vec<u64>, Option<Failure>)> {
        let request = self.point_request(checkpoint, Push::AtOnce(targets.to_vec()));
        let mut point = vm.begin(&request).map_err(not_begun)?;
        let moved = push::write(point.as_mut(), targets, &AtomicBool::new(false), self.monitor)?;
        Ok((point.moment().clone(), moved, point.release().err()))
    }

    /// What was due when the VM was looked at, for a job that was over before anybody asked.
    fn due(&self, disk: &DiskPlan) -> u64 {
        let Some(base) = &disk.since else { return disk.size.0 };
        let facts = self.outlook.facts.disks.iter().find(|facts| facts.name == disk.name);
        let is_bases = |bitmap: &&BitmapFacts| bitmap.name == base.checkpoint.as_str();
        facts.map_or(0, |facts| facts.bitmaps().filter(is_bases).map(|bitmap| bitmap.dirty.0).sum())
    }
}

fn not_begun(failure: Failure) -> Failure {
    match failure.get::<CannotPush>() {
        Some(reason) => push::refused(reason.clone()),
        None => failure,
    }
}
