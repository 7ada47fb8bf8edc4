//! One backup, from looking at the VM to publication.
//!
//! Order is what makes it safe: look and plan; fix the moment and start the checkpoint in one step; read and store; give the
//! moment up; publish; only then remove the checkpoints that nothing builds on any more. Dying anywhere before publication
//! leaves no backup and, at worst, a checkpoint that no manifest names: the next run removes it.

mod at_once;
pub(crate) mod doubted;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use keepmark_model::audit::AuditWish;
use keepmark_model::clock;
use keepmark_model::facts::{Power, VmFacts};
use keepmark_model::failure::in_one_line;
use keepmark_model::manifest::{Kind, MANIFEST_VERSION, Manifest, ManifestDisk, StoredBackup};
use keepmark_model::moment::Overtaken;
use keepmark_model::plan::{DiskPlan, Hold, Plan, Request, obsolete_checkpoints, plan};
use keepmark_model::pushing::{Push, PushTarget, Pushing};
use keepmark_model::scheme::Standing;
use keepmark_model::seam::{
    BackupWriter, Freeze, FrozenDisk, FrozenPoint, Hypervisor, Moment, Monitor, PointDisk, PointRequest, Result, SavedFile, Store,
};
use keepmark_model::{BackupId, CheckpointName, ChunkSize, Extent, Failure, VmId};

use crate::audit::Audit;
use crate::backup::at_once::Contradicted;
use crate::backup::doubted::Doubted;
use crate::capture::{Captured, Scope, capture, look};
use crate::error::Error;
use crate::push::{self, Mode, Way};
use crate::report::BackupReport;
use crate::surroundings::Surroundings;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupJob {
    /// Kind, checkpoint and disks.
    pub request: Request,
    /// Whether the guest's file systems are quiesced.
    pub freeze: Freeze,
    /// Who moves the data.
    pub mode: Mode,
    /// How much of what the bitmaps call clean is looked at again.
    pub audit: AuditWish,
    /// How long a store that is not at hand keeps its checkpoints; none waits for ever.
    pub hold_checkpoints: Option<Duration>,
    /// Words of the user's, by which retention can keep it.
    pub tags: Vec<String>,
    /// Program name and version for the manifest.
    pub program: String,
}

/// What a backup would do, and what it was derived from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// The VM as it is.
    pub facts: VmFacts,
    /// Its backups in this store, oldest first.
    pub sequence: Vec<StoredBackup>,
    /// What would be done.
    pub plan: Plan,
}

/// Looks and plans; changes nothing.
///
/// # Errors
/// When the VM or the store does not answer, or the request fits the VM not.
pub fn outlook(vm: &mut dyn Hypervisor, store: &dyn Store, request: &Request, now: Timestamp, monitor: &dyn Monitor) -> Result<Outlook> {
    let facts = vm.facts()?;
    let (sequence, damaged) = store.backups(Some(&facts.identity.id()))?;
    damaged.iter().for_each(|text| monitor.finding(text));
    clock::finding(&sequence, now).iter().for_each(|text| monitor.finding(text));
    let plan = plan(&facts, &sequence, request, now)?;
    Ok(Outlook { facts, sequence, plan })
}

/// Removes what a dead run has left in a VM, and says so.
pub(crate) fn clean_up(vm: &mut dyn Hypervisor, monitor: &dyn Monitor) -> Result<()> {
    vm.clean_up()?.iter().for_each(|removed| monitor.note(&format!("left over by an earlier run, removed: {removed}")));
    Ok(())
}

/// Backs a VM up.
///
/// # Errors
/// When anything cannot be read or stored; then no backup is listed and the VM is as before.
pub fn backup(
    vm: &mut dyn Hypervisor,
    store: &dyn Store,
    job: &BackupJob,
    world: Surroundings<'_>,
    monitor: &dyn Monitor,
) -> Result<BackupReport> {
    let started = (world.elapsed)();
    clean_up(vm, monitor)?;
    let outlook = outlook(vm, store, &job.request, (world.now)(), monitor)?;
    let run = Run { outlook: &outlook, job, store, world, monitor, started };
    let way = run.way(vm)?;
    let result = run.attempt(vm, &way).or_else(|failure| match (failure.get::<Doubted>(), failure.get::<Contradicted>()) {
        (Some(doubted), _) => {
            // A push that was broken off may have left something.
            clean_up(vm, monitor)?;
            let again = if way == Way::Push(Pushing::AsTheMoment) { Way::Pull(None) } else { way };
            Run { outlook: &doubted.instead(&outlook), ..run }.attempt(vm, &again)
        }
        (None, Some(found)) => {
            monitor.note(&format!("pulled, not pushed: {failure}"));
            Run { outlook: &found.instead(&outlook), ..run }.attempt(vm, &Way::Pull(None))
        }
        (None, None) => Err(failure),
    });
    result.map(|(id, manifest)| BackupReport::new(id, &manifest))
}

/// What somebody did to the moment says why it could not be read to its end.
fn explained(failure: Failure, left: Option<&Failure>) -> Failure {
    match left.filter(|left| left.is::<Overtaken>()) {
        Some(left) => failure.with_hint(format!("{left}; run the backup again")),
        None => failure,
    }
}

fn said_of(left: &Failure) -> String {
    let text = in_one_line(left);
    if left.is::<Overtaken>() { text } else { format!("something could not be removed from the VM; the next run tries again: {text}") }
}

#[derive(Clone, Copy)]
struct Run<'a> {
    outlook: &'a Outlook,
    job: &'a BackupJob,
    store: &'a dyn Store,
    world: Surroundings<'a>,
    monitor: &'a dyn Monitor,
    started: Duration,
}

/// What was taken of a moment.
struct Taken {
    moment: Moment,
    captured: Vec<Captured>,
    /// Why something of it could not be removed from the VM.
    left: Option<Failure>,
}

impl Run<'_> {
    fn way(&self, vm: &mut dyn Hypervisor) -> Result<Way> {
        let Outlook { facts, plan, .. } = self.outlook;
        let way = push::chosen(self.job.mode, vm, self.store.push_place(&facts.identity.id()).as_ref(), &plan.disks)?;
        if let Way::Pull(Some(why)) = &way
            && facts.power != Power::Off
        {
            self.monitor.note(&format!("pulled, not pushed: {why}"));
        }
        Ok(way)
    }

    /// One try: published, or nothing is left of it.
    fn attempt(&self, vm: &mut dyn Hypervisor, way: &Way) -> Result<(BackupId, Manifest)> {
        // It may take long, and the moment is afterwards.
        let audited = if *way == Way::Push(Pushing::AsTheMoment) { self.audited_before(vm) } else { Ok(Vec::new()) };
        let audited = audited.inspect_err(|failure| self.condemn(vm, failure))?;
        let name = || CheckpointName::make((self.world.now)(), &self.store.id(), (self.world.random)());
        let checkpoint = self.outlook.plan.checkpoint.then(name);
        let result = self.capture_and_publish(vm, checkpoint.as_ref(), way, &audited);
        match (&result, &checkpoint) {
            (Ok((id, manifest)), _) => self.remove_obsolete(vm, id, manifest),
            (Err(failure), Some(name)) => {
                self.condemn(vm, failure);
                self.remove_unpublished(vm, name);
            }
            (Err(failure), None) => self.condemn(vm, failure),
        }
        result
    }

    fn capture_and_publish(
        &self,
        vm: &mut dyn Hypervisor,
        checkpoint: Option<&CheckpointName>,
        way: &Way,
        audited: &[Scope],
    ) -> Result<(BackupId, Manifest)> {
        let id: VmId = self.outlook.facts.identity.id();
        let definition = vm.definition()?;
        let time = (self.world.now)();
        let mut writer = self.store.begin(&id, time)?;
        let Taken { moment, captured, left } = match way {
            Way::Push(Pushing::AsTheMoment) => self.push_at_once(vm, checkpoint, audited, writer.as_mut()),
            Way::Push(Pushing::OfTheMoment) => self.take(vm, checkpoint, Push::Later, writer.as_mut()),
            Way::Pull(_) => self.take(vm, checkpoint, Push::No, writer.as_mut()),
        }?;
        moment.notes.iter().for_each(|note| self.monitor.note(note));
        let mut findings = definition.findings;
        findings.extend(moment.findings.iter().cloned());
        findings.extend(left.as_ref().map(said_of));
        findings.iter().for_each(|finding| self.monitor.finding(finding));
        let manifest = self.manifest(time, checkpoint, &moment, captured, findings);
        self.publish(writer, manifest, &definition.files)
    }

    /// Fixes a moment and stores what is in it.
    fn take(
        &self,
        vm: &mut dyn Hypervisor,
        checkpoint: Option<&CheckpointName>,
        push: Push,
        writer: &mut dyn BackupWriter,
    ) -> Result<Taken> {
        let is_pushed = push != Push::No;
        let mut point = vm.begin(&self.point_request(checkpoint, push))?;
        let captured = if is_pushed { self.push_all(point.as_mut(), writer) } else { self.capture_all(point.as_mut(), writer) };
        let captured = captured.and_then(|captured| point.check().map(|()| captured));
        let moment = point.moment().clone();
        let left = point.release().err();
        let captured = captured.map_err(|failure| explained(failure, left.as_ref()))?;
        Ok(Taken { moment, captured, left })
    }

    fn point_request(&self, checkpoint: Option<&CheckpointName>, push: Push) -> PointRequest {
        let point_disk =
            |disk: &DiskPlan| PointDisk { name: disk.name.clone(), since: disk.since.as_ref().map(|base| base.checkpoint.clone()) };
        PointRequest {
            disks: self.outlook.plan.disks.iter().map(point_disk).collect(),
            checkpoint: checkpoint.cloned(),
            run: self.world.run(),
            freeze: self.job.freeze,
            push,
        }
    }

    fn capture_all(&self, point: &mut dyn FrozenPoint, writer: &mut dyn BackupWriter) -> Result<Vec<Captured>> {
        let disks = &self.outlook.plan.disks;
        let mut frozen = disks.iter().map(|disk| point.disk(&disk.name)).collect::<Result<Vec<_>>>()?;
        let scopes = self.audited_all(&mut frozen)?;
        self.check_believed(&scopes)?;
        let mut captured = Vec::with_capacity(disks.len());
        for ((disk, scope), mut frozen) in disks.iter().zip(&scopes).zip(frozen) {
            self.check_interrupted()?;
            captured.push(self.capture_disk(frozen.as_mut(), disk, scope, writer)?);
        }
        Ok(captured)
    }

    fn check_interrupted(&self) -> Result<()> {
        if self.monitor.interrupted() { Err(Error::Interrupted.into()) } else { Ok(()) }
    }

    /// What can be pushed is, and audited meanwhile. The rest is read, and so is what the audit throws away.
    fn push_all(&self, point: &mut dyn FrozenPoint, writer: &mut dyn BackupWriter) -> Result<Vec<Captured>> {
        let disks = &self.outlook.plan.disks;
        let mut frozen = disks.iter().map(|disk| point.disk(&disk.name)).collect::<Result<Vec<_>>>()?;
        let targets = disks.iter().map(|disk| push::target(disk, writer)).collect::<Result<Vec<_>>>()?;
        let is_vain = AtomicBool::new(false);
        let (moved, scopes) = thread::scope(|threads| {
            let audits = threads.spawn(|| {
                let scopes = self.audited_all(&mut frozen);
                is_vain.store(scopes.as_ref().is_ok_and(|scopes| self.check_believed(scopes).is_err()), Ordering::Relaxed);
                scopes
            });
            let due: Vec<PushTarget> = targets.iter().flatten().cloned().collect();
            let moved = push::write(point, &due, &is_vain, self.monitor);
            (moved, audits.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let scopes = scopes?;
        self.check_believed(&scopes)?;
        let mut moved = moved?.into_iter();
        let mut captured = Vec::with_capacity(disks.len());
        for (((disk, frozen), target), scope) in disks.iter().zip(&mut frozen).zip(&targets).zip(scopes) {
            let moved = target.as_ref().and_then(|_| moved.next());
            captured.push(match (target, moved) {
                (Some(target), Some(moved)) if push::is_pushable(disk, &scope) => push::taken_over(target, &scope, moved, writer)?,
                _ => self.capture_disk(frozen.as_mut(), disk, &scope, writer)?,
            });
        }
        Ok(captured)
    }

    /// What is to be looked at of each disk, audited, before anything of any is stored.
    fn audited_all(&self, frozen: &mut [Box<dyn FrozenDisk>]) -> Result<Vec<Scope>> {
        let audited = |(disk, frozen): (&DiskPlan, &mut Box<dyn FrozenDisk>)| {
            self.check_interrupted()?;
            self.scope_of(frozen.as_mut(), disk)
        };
        self.outlook.plan.disks.iter().zip(frozen).map(audited).collect()
    }

    fn scope_of(&self, frozen: &mut dyn FrozenDisk, disk: &DiskPlan) -> Result<Scope> {
        self.audited(disk, |disk, chunk, audit| look(frozen, disk, chunk, audit, self.monitor))
    }

    fn capture_disk(&self, frozen: &mut dyn FrozenDisk, disk: &DiskPlan, scope: &Scope, writer: &mut dyn BackupWriter) -> Result<Captured> {
        capture(frozen, disk, scope, self.chunk_size(disk), writer, self.monitor)
    }

    /// Does `work` with what an audit of the disk needs; with another plan where the base cannot be opened.
    fn audited<T>(&self, disk: &DiskPlan, work: impl FnOnce(&DiskPlan, ChunkSize, Option<&Audit<'_>>) -> Result<T>) -> Result<T> {
        let (mut disk, chunk) = (disk.clone(), self.chunk_size(disk));
        let base = match disk.since.as_ref().map(|base| self.store.open(&base.backup)).transpose() {
            Ok(base) => base,
            Err(failure) => {
                self.monitor.finding(&format!("disk {}: the last backup cannot be opened: {}", disk.name, in_one_line(&failure)));
                disk.since = None;
                disk.reason = "the last backup is damaged in the store".to_owned();
                disk.kind = Kind::Resync;
                None
            }
        };
        let audit = base.as_deref().map(|base| Audit {
            base,
            last: self.last_window(&disk),
            cluster: self.cluster_size(&disk),
            wish: self.job.audit,
            seed: self.world.seed(),
            monitor: self.monitor,
        });
        work(&disk, chunk, audit.as_ref())
    }

    /// The part of the disk that was checked last, whatever its backup built on: the next part is due now.
    fn last_window(&self, disk: &DiskPlan) -> Option<Extent> {
        let then = self.outlook.sequence.iter().rev().filter_map(|backup| backup.manifest.disk(&disk.name));
        then.filter_map(|then| then.audit.as_ref()).map(|audit| audit.allocation_checked).next()
    }

    fn cluster_size(&self, disk: &DiskPlan) -> u64 {
        let facts = self.outlook.facts.disks.iter().find(|facts| facts.name == disk.name);
        facts.and_then(|facts| facts.cluster_size).unwrap_or(1)
    }

    /// A disk keeps its base's chunk size, so that chunks can be taken over.
    fn chunk_size(&self, disk: &DiskPlan) -> ChunkSize {
        let newest = self.outlook.sequence.iter().rev().find_map(|backup| backup.manifest.disk(&disk.name));
        let base = disk.since.as_ref().and_then(|base| self.outlook.sequence.iter().find(|backup| backup.id == base.backup));
        let from = base.and_then(|backup| backup.manifest.disk(&disk.name)).or(newest);
        from.map_or(self.store.chunk_size(), |then| then.chunk_size)
    }

    fn manifest(
        &self,
        time: Timestamp,
        checkpoint: Option<&CheckpointName>,
        moment: &Moment,
        captured: Vec<Captured>,
        findings: Vec<String>,
    ) -> Manifest {
        let facts = &self.outlook.facts;
        let planned = &self.outlook.plan;
        let disks: Vec<ManifestDisk> = planned
            .disks
            .iter()
            .zip(captured)
            .filter_map(|(disk, captured)| self.manifest_disk(disk, captured, checkpoint.is_some()))
            .collect();
        let turned = planned.disks.iter().zip(&disks).find(|(planned, done)| planned.kind != done.kind);
        let mut manifest = Manifest {
            version: MANIFEST_VERSION,
            program: self.job.program.clone(),
            vm: facts.identity.clone(),
            number: next_number(&self.outlook.sequence),
            time,
            kind: if turned.is_some() { Kind::Resync } else { planned.kind },
            wanted: Some(planned.due.role),
            standing: Standing::default(),
            tags: self.job.tags.clone(),
            reason: turned.map_or_else(|| planned.reason.clone(), |(_, done)| done.reason.clone()),
            checkpoint: checkpoint.cloned(),
            consistency: moment.consistency,
            pause_ms: millis(moment.pause),
            freeze_ms: moment.frozen.map(millis),
            duration_ms: millis((self.world.elapsed)().saturating_sub(self.started)),
            power: facts.power,
            hypervisor: facts.hypervisor.clone(),
            disks,
            left_out: planned.left_out.clone(),
            skipped: facts.skipped.clone(),
            findings,
        };
        let standing = Standing::of(&self.outlook.sequence, time);
        manifest.standing = if manifest.is_complete() { standing.with(manifest.role(), time) } else { standing };
        manifest
    }

    fn manifest_disk(&self, planned: &DiskPlan, captured: Captured, checkpointed: bool) -> Option<ManifestDisk> {
        let facts = self.outlook.facts.disks.iter().find(|disk| disk.name == planned.name)?;
        Some(ManifestDisk {
            name: planned.name.clone(),
            size: planned.size,
            kind: captured.kind,
            reason: captured.reason,
            format: facts.format.clone(),
            cluster_size: facts.cluster_size,
            image: facts.image.clone(),
            image_id: facts.layers.first().and_then(|active| active.id.clone()),
            backing: facts.layers.iter().skip(1).map(|below| below.image.clone()).collect(),
            chunk_size: self.chunk_size(planned),
            checkpointed,
            base: captured.base,
            dirty_bytes: captured.dirty_bytes,
            read_bytes: captured.read_bytes,
            stored_bytes: captured.stored_bytes,
            audited_bytes: captured.audited_bytes,
            audit: captured.audit,
        })
    }

    fn publish(&self, writer: Box<dyn BackupWriter + '_>, mut manifest: Manifest, files: &[SavedFile]) -> Result<(BackupId, Manifest)> {
        manifest.duration_ms = millis((self.world.elapsed)().saturating_sub(self.started));
        let id = writer.publish(&manifest, files)?;
        Ok((id, manifest))
    }

    fn remove_obsolete(&self, vm: &mut dyn Hypervisor, id: &BackupId, manifest: &Manifest) {
        let mut sequence = self.outlook.sequence.clone();
        sequence.push(StoredBackup::new(id.clone(), manifest.clone()));
        let hold = Hold { now: (self.world.now)(), longest: self.job.hold_checkpoints };
        let removed = vm.facts().and_then(|facts| {
            let names = obsolete_checkpoints(&facts, &self.store.id(), &sequence, &hold);
            if names.is_empty() { Ok(()) } else { vm.remove_checkpoints(&names) }
        });
        if let Err(failure) = removed {
            self.monitor.finding(&format!("old checkpoints could not be removed; the next run tries again: {}", in_one_line(&failure)));
        }
    }

    fn remove_unpublished(&self, vm: &mut dyn Hypervisor, name: &CheckpointName) {
        if let Err(failure) = vm.remove_checkpoints(std::slice::from_ref(name)) {
            self.monitor.note(&format!("checkpoint {name} stays until the next run removes it: {}", in_one_line(&failure)));
        }
    }
}

/// After all that there are, whatever their clocks said.
fn next_number(sequence: &[StoredBackup]) -> u64 {
    sequence.iter().map(|backup| backup.manifest.number).max().unwrap_or(0).saturating_add(1)
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
