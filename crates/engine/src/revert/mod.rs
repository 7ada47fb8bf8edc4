//! Going back in place: the disks of a resting VM are taken to a backup's content, and only what differs is written.
//!
//! Order is what makes it safe: look and refuse; back the VM up as it is; find where it can differ; open the disks, guarded
//! against being started; compare and write; make it durable; take the guard away, last. Dying anywhere before the last step
//! leaves a disk that says so, or one that the next revert compares again. The sequence goes on as if the guest had written.

mod compare;
mod scope;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use keepmark_model::audit::AuditWish;
use keepmark_model::facts::VmFacts;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::revert::{RevertDisk, RevertPlan, Scope, Wish, plan};
use keepmark_model::seam::{BackupReader, Hypervisor, Monitor, PointDisk, Result, Store};
use keepmark_model::writing::{Change, DiskChanges, Rest, Unfinished, WriteRequest, Writing};
use keepmark_model::{BackupId, DiskName};

use crate::backup::{BackupJob, backup, clean_up, millis};
use crate::error::Error;
use crate::surroundings::Surroundings;
use compare::Comparison;
use scope::{Basis, Found, Scoping};

pub use crate::report::{RevertReport, RevertedDisk};

/// Changes that wait to be written; each is at most a chunk.
const WAITING_MAX: usize = 32;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevertJob {
    /// The backup to go back to.
    pub target: StoredBackup,
    /// Which disks, and how.
    pub wish: Wish,
    /// How the VM is backed up before; none goes without.
    pub safety: Option<BackupJob>,
}

/// What a VM and a store tell before a revert.
struct Look {
    facts: VmFacts,
    unfinished: Vec<Unfinished>,
    plan: RevertPlan,
}

fn look(vm: &mut dyn Hypervisor, store: &dyn Store, job: &RevertJob) -> Result<Look> {
    let (unfinished, facts) = (vm.unfinished()?, vm.facts()?);
    let (sequence, _) = store.backups(Some(&facts.identity.id()))?;
    let plan = plan(&facts, &sequence, &job.target, &job.wish, &unfinished)?;
    Ok(Look { facts, unfinished, plan })
}

/// Refuses what does not fit, before a guest is shut down for it; says in words what else will be otherwise then.
///
/// # Errors
/// When the backup does not fit the VM, or either cannot be looked at.
pub fn check(vm: &mut dyn Hypervisor, store: &dyn Store, job: &RevertJob) -> Result<Vec<String>> {
    let look = look(vm, store, job)?;
    next_start(vm, &look.plan)
}

fn next_start(vm: &mut dyn Hypervisor, plan: &RevertPlan) -> Result<Vec<String>> {
    vm.before_power_down(&plan.disks.iter().map(|disk| disk.name.clone()).collect::<Vec<_>>())
}

/// Says what a revert would write and why, by comparing. It writes no disk; a checkpoint that is contradicted goes, since the next backup
/// would build on it.
///
/// # Errors
/// When the backup does not fit the VM, or either cannot be read.
pub fn preview(
    vm: &mut dyn Hypervisor,
    store: &dyn Store,
    job: &RevertJob,
    world: Surroundings<'_>,
    monitor: &dyn Monitor,
) -> Result<RevertReport> {
    let started = (world.elapsed)();
    clean_up(vm, monitor)?;
    let Look { facts, unfinished, plan } = look(vm, store, job)?;
    next_start(vm, &plan)?.iter().for_each(|text| monitor.note(text));
    let scoping = Scoping::new(store, &job.target.id, &facts, AuditWish::Default, monitor);
    let disks = compared(vm, &scoping, &plan, world);
    scoping.remove_contradicted(vm);
    Ok(RevertReport { event: "plan", ..report(job, Look { facts, unfinished, plan }, disks?, world, started) })
}

fn compared(vm: &mut dyn Hypervisor, scoping: &Scoping<'_>, plan: &RevertPlan, world: Surroundings<'_>) -> Result<Vec<RevertedDisk>> {
    let backup = scoping.store.open(scoping.target)?;
    let request = WriteRequest { disks: point_disks(plan), run: world.run(), backup: scoping.target.clone() };
    let mut point = vm.begin(&request.point())?;
    let mut disks = Vec::new();
    for disk in &plan.disks {
        let mut now = point.disk(&disk.name)?;
        let found = scoping.of(disk, now.as_mut(), scoping.basis(disk)?.as_ref(), world.seed())?;
        let counted = Counted::default();
        let comparison = Comparison { disk, backup: backup.as_ref(), monitor: scoping.monitor };
        comparison.run(now.as_mut(), &found.candidates, &|change| {
            counted.count(&change);
            Ok(())
        })?;
        disks.push(counted.report(disk, found));
    }
    point.release()?;
    Ok(disks)
}

/// Takes a VM's disks back to a backup.
///
/// # Errors
/// When the VM is not at rest, the backup does not fit it, or something cannot be read or written. A disk that is half written
/// then stays guarded, and the monitor is told.
pub fn revert(
    vm: &mut dyn Hypervisor,
    store: &dyn Store,
    job: &RevertJob,
    world: Surroundings<'_>,
    monitor: &dyn Monitor,
) -> Result<RevertReport> {
    let started = (world.elapsed)();
    clean_up(vm, monitor)?;
    check_rest(vm)?;
    let first = look(vm, store, job)?;
    // Open from here on, so that nobody prunes it away.
    let target = store.open(&job.target.id)?;
    for left in &first.unfinished {
        monitor.note(&format!("disk {} was left half reverted to {}; this goes on from there", left.disk, left.backup));
    }
    // What is half written is worth no backup; the one from before it is in the store.
    let safety = job.safety.as_ref().filter(|_| first.unfinished.is_empty());
    let safety = safety.map(|job| backup(vm, store, job, world, monitor)).transpose()?.map(|report| report.backup);
    let Look { facts, unfinished, plan } = if safety.is_some() { look(vm, store, job)? } else { first };
    // The safety backup has audited its bitmaps just now.
    let audit = if safety.is_some() { AuditWish::Off } else { AuditWish::Default };
    let scoping = Scoping::new(store, &job.target.id, &facts, audit, monitor);
    let run = Run { scoping, target: target.as_ref(), world };
    let written = run.write(vm, &plan);
    run.scoping.remove_contradicted(vm);
    let disks = written.inspect_err(|_| tell_half(vm, safety.as_ref(), monitor))?;
    Ok(RevertReport { safety_backup: safety, ..report(job, Look { facts, unfinished, plan }, disks, world, started) })
}

/// Of a revert that is finished, without a safety backup.
fn report(job: &RevertJob, look: Look, disks: Vec<RevertedDisk>, world: Surroundings<'_>, started: Duration) -> RevertReport {
    RevertReport {
        event: "finished",
        vm: look.facts.identity.name,
        backup: job.target.id.clone(),
        time: job.target.manifest.time,
        safety_backup: None,
        resumed: !look.unfinished.is_empty(),
        disks,
        kept: look.plan.kept,
        duration_ms: millis((world.elapsed)().saturating_sub(started)),
    }
}

fn check_rest(vm: &mut dyn Hypervisor) -> Result<()> {
    match vm.rest()? {
        Rest::Resting { .. } => Ok(()),
        Rest::Running => Err(Error::GuestRuns.into()),
        Rest::Held(why) => Err(Error::GuestHeld { why }.into()),
    }
}

/// The user's way out of a revert that failed in the middle.
fn tell_half(vm: &mut dyn Hypervisor, safety: Option<&BackupId>, monitor: &dyn Monitor) {
    let names = |left: Vec<Unfinished>| left.into_iter().map(|left| left.disk.to_string()).collect::<Vec<_>>().join(", ");
    let half = vm.unfinished().map(names).unwrap_or_default();
    if !half.is_empty() {
        let back = safety.map_or_else(String::new, |id| format!(", or go back to {}, which was made just before", id.short()));
        monitor.finding(&format!("half reverted, and not to be started: {half}; run the revert again to finish it{back}"));
    }
}

fn point_disks(plan: &RevertPlan) -> Vec<PointDisk> {
    let since = |disk: &RevertDisk| match &disk.scope {
        Scope::Since(base) => Some(base.checkpoint.clone()),
        Scope::Whole(_) => None,
    };
    plan.disks.iter().map(|disk| PointDisk { name: disk.name.clone(), since: since(disk) }).collect()
}

struct Run<'a> {
    scoping: Scoping<'a>,
    target: &'a dyn BackupReader,
    world: Surroundings<'a>,
}

impl Run<'_> {
    fn write(&self, vm: &mut dyn Hypervisor, plan: &RevertPlan) -> Result<Vec<RevertedDisk>> {
        let monitor = self.scoping.monitor;
        // Whatever the store can refuse, it refuses before anything is written.
        let bases: Vec<Option<Basis<'_>>> = plan.disks.iter().map(|disk| self.scoping.basis(disk)).collect::<Result<_>>()?;
        let request = WriteRequest { disks: point_disks(plan), run: self.world.run(), backup: self.scoping.target.clone() };
        let mut writing = vm.begin_writing(&request)?;
        let unguarded = writing.unguarded();
        unguarded.iter().for_each(|text| monitor.note(text));
        let written = plan.disks.iter().zip(&bases).map(|(disk, basis)| self.write_disk(writing.as_mut(), disk, basis.as_ref()));
        let disks = written.collect::<Result<_>>().inspect_err(|_| unguarded.iter().for_each(|text| monitor.finding(text)))?;
        writing.finish()?.iter().for_each(|text| monitor.finding(text));
        Ok(disks)
    }

    /// Compares in this thread and in the store's, writes in another; durable when it returns.
    fn write_disk(&self, writing: &mut dyn Writing, disk: &RevertDisk, basis: Option<&Basis<'_>>) -> Result<RevertedDisk> {
        let mut now = writing.disk(&disk.name)?;
        let mut changes = writing.changes(&disk.name)?;
        let found = self.scoping.of(disk, now.as_mut(), basis, self.world.seed())?;
        let counted = Counted::default();
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let (compared, written) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut all = receiver.into_iter().inspect(|change| counted.count(change));
                write_all(changes.as_mut(), &mut all, &|| self.scoping.monitor.interrupted())
            });
            let comparison = Comparison { disk, backup: self.target, monitor: self.scoping.monitor };
            let give = |change| sender.send(change).map_err(|_| ended(&disk.name).into());
            let compared = comparison.run(now.as_mut(), &found.candidates, &give);
            drop(sender);
            (compared, writer.join().unwrap_or_else(|_| Err(ended(&disk.name).into())))
        });
        // A writer that failed made the comparing fail; what it says is the reason.
        written.and(compared)?;
        Ok(counted.report(disk, found))
    }
}

fn write_all(changes: &mut dyn DiskChanges, all: &mut dyn Iterator<Item = Change>, interrupted: &dyn Fn() -> bool) -> Result<()> {
    changes.apply(all)?;
    changes.flush(interrupted)
}

fn ended(disk: &DiskName) -> Error {
    Error::WriterEnded { disk: disk.to_string() }
}

/// Bytes that were changed.
#[derive(Default)]
struct Counted {
    written: AtomicU64,
    zeroed: AtomicU64,
}

impl Counted {
    fn count(&self, change: &Change) {
        let counter = if matches!(change, Change::Zero(_)) { &self.zeroed } else { &self.written };
        counter.fetch_add(change.len(), Ordering::Relaxed);
    }

    fn report(self, disk: &RevertDisk, found: Found) -> RevertedDisk {
        RevertedDisk {
            name: disk.name.to_string(),
            size: disk.size.0,
            reason: found.reason,
            compared_bytes: found.candidates.total().0,
            written_bytes: self.written.into_inner(),
            zeroed_bytes: self.zeroed.into_inner(),
        }
    }
}
