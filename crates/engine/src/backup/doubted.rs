//! What becomes of a checkpoint that what a disk holds contradicts: it goes at once, before anything is stored, and everything is read.
//!
//! The audit that saw it drew a sample; the next one may draw another and see nothing. So the contradiction must not depend on whether
//! this run gets as far as publishing.

use keepmark_model::facts::VmFacts;
use keepmark_model::failure::in_one_line;
use keepmark_model::manifest::Kind;
use keepmark_model::plan::{DiskPlan, condemned};
use keepmark_model::rules::{Rule, broken};
use keepmark_model::seam::{Hypervisor, Monitor, Result};
use keepmark_model::{DiskName, Failure, FailureClass, StoreId};

use crate::backup::{Outlook, Run};
use crate::capture::Scope;

/// An audit contradicted bitmaps: the moment is given up, their checkpoints go, and the backup begins anew without them.
#[derive(Debug, thiserror::Error)]
#[error("the bitmaps of disk {} cannot be believed", .0.iter().map(|plan| plan.name.as_str()).collect::<Vec<_>>().join(", "))]
pub struct Doubted(Vec<DiskPlan>);

impl Doubted {
    /// What is to be done now: a checkpoint is one of all disks, so none of them can build on it any more.
    pub fn instead(&self, outlook: &Outlook) -> Outlook {
        let mut outlook = outlook.clone();
        let plan = &mut outlook.plan;
        plan.disks.iter_mut().for_each(|disk| *disk = self.of(disk));
        if let Some(first) = self.0.first() {
            (plan.kind, plan.reason) = (first.kind, first.reason.clone());
        }
        outlook
    }

    fn of(&self, disk: &DiskPlan) -> DiskPlan {
        match (self.0.iter().find(|contradicted| contradicted.name == disk.name), &disk.since) {
            (Some(contradicted), _) => contradicted.clone(),
            (None, Some(base)) => {
                let reason = format!("{self}, and the checkpoint that they share with this one was removed");
                DiskPlan { kind: Kind::Resync, reason, compare: Some(base.backup.clone()), since: None, ..disk.clone() }
            }
            (None, None) => disk.clone(),
        }
    }
}

impl Run<'_> {
    /// Fails if any bitmap was contradicted.
    pub(super) fn check_believed(&self, scopes: &[Scope]) -> Result<()> {
        let disks = self.outlook.plan.disks.iter().zip(scopes).filter(|(_, scope)| scope.is_contradicted);
        let plans: Vec<DiskPlan> = disks.map(|(disk, scope)| scope.plan(disk)).collect();
        if plans.is_empty() { Ok(()) } else { Err(Failure::new(FailureClass::Failed, Doubted(plans))) }
    }

    /// Removes the checkpoints that this failure condemns, if it does.
    pub(super) fn condemn(&self, vm: &mut dyn Hypervisor, failure: &Failure) {
        if let Some(Doubted(plans)) = failure.get::<Doubted>().filter(|_| !broken(Rule::Condemned)) {
            let names: Vec<DiskName> = plans.iter().map(|plan| plan.name.clone()).collect();
            remove_condemned(vm, &self.outlook.facts, &self.store.id(), &names, self.monitor);
        }
    }
}

/// Removes the checkpoints that bitmaps of these disks belong to.
pub(crate) fn remove_condemned(vm: &mut dyn Hypervisor, facts: &VmFacts, store: &StoreId, disks: &[DiskName], monitor: &dyn Monitor) {
    for name in condemned(facts, store, disks) {
        match vm.remove_checkpoints(std::slice::from_ref(&name)) {
            Ok(()) => monitor.note(&format!("checkpoint {name} was removed, since its bitmaps cannot be believed")),
            Err(failure) => monitor.finding(&format!(
                "checkpoint {name} cannot be believed and could not be removed ('keepmark checkpoint delete' does it): {}",
                in_one_line(&failure)
            )),
        }
    }
}
