//! Capture: one disk at its frozen moment into the store, chunk by chunk.

use keepmark_model::audit::AuditRecord;
use keepmark_model::failure::in_one_line;
use keepmark_model::manifest::Kind;
use keepmark_model::plan::DiskPlan;
use keepmark_model::rules::{Rule, broken};
use keepmark_model::seam::{BackupWriter, DiskContent, DiskWriter, FrozenDisk, Monitor, Result};
use keepmark_model::{BackupId, ChunkSize, Extent, Extents, Size};

use crate::audit::{Audit, Audited, audit};
use crate::error::{Error, is_damage};

/// One disk's backup, before it is written into the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// How it was captured in the end.
    pub kind: Kind,
    /// Why, in words.
    pub reason: String,
    /// The backup whose chunks were taken over.
    pub base: Option<BackupId>,
    /// Bytes called changed.
    pub dirty_bytes: u64,
    /// Bytes read from the VM.
    pub read_bytes: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Bytes called clean and read to check that.
    pub audited_bytes: u64,
    /// What the audit covered and proved.
    pub audit: Option<AuditRecord>,
}

/// What of a disk has to be looked at, and where the rest comes from.
pub struct Scope {
    /// How it is captured.
    pub kind: Kind,
    /// Why, in words.
    pub reason: String,
    /// Where the rest comes from.
    pub base: Option<BackupId>,
    /// What is most likely the same, where everything is looked at.
    pub compare: Option<BackupId>,
    /// Whether its bitmap was contradicted.
    pub is_contradicted: bool,
    dirty: Extents,
    audit: Option<(Option<AuditRecord>, u64)>,
}

/// Reads what is to be looked at of one disk and stores it.
///
/// # Errors
/// When anything cannot be read or stored, or the user interrupts.
pub fn capture(
    disk: &mut dyn FrozenDisk,
    plan: &DiskPlan,
    scope: &Scope,
    chunk: ChunkSize,
    writer: &mut dyn BackupWriter,
    monitor: &dyn Monitor,
) -> Result<Captured> {
    match store(disk, plan, scope, chunk, writer, monitor) {
        Err(failure) if scope.uses_another() && !monitor.interrupted() && is_base_unusable(&failure) => {
            store(disk, plan, &without_base(plan, &failure, monitor), chunk, writer, monitor)
        }
        result => result,
    }
}

/// What of a disk has to be looked at, audited.
///
/// # Errors
/// When anything cannot be read.
pub fn look(
    disk: &mut dyn FrozenDisk,
    plan: &DiskPlan,
    chunk: ChunkSize,
    auditing: Option<&Audit<'_>>,
    monitor: &dyn Monitor,
) -> Result<Scope> {
    check_size(disk, plan)?;
    match scope(disk, plan, chunk, auditing, monitor) {
        Err(failure) if is_base_unusable(&failure) => Ok(without_base(plan, &failure, monitor)),
        result => result,
    }
}

fn check_size(disk: &dyn FrozenDisk, plan: &DiskPlan) -> Result<()> {
    let size = disk.size();
    if size == plan.size || broken(Rule::SizeChanged) {
        return Ok(());
    }
    Err(Error::SizeChanged { disk: plan.name.to_string(), planned: plan.size.0, frozen: size.0 }.into())
}

/// Marks a failure of the store to read the base's tables.
#[derive(Debug, thiserror::Error)]
#[error("the tables of the base cannot be used")]
struct BaseUnusable(#[source] keepmark_model::Failure);

/// Damage in the store; of all that a backup reads there, only the base can have it. It may show late, since trees are read when
/// they are needed.
fn is_base_unusable(failure: &keepmark_model::Failure) -> bool {
    failure.is::<BaseUnusable>() || is_damage(failure)
}

fn scope(
    disk: &mut dyn FrozenDisk,
    plan: &DiskPlan,
    chunk: ChunkSize,
    auditing: Option<&Audit<'_>>,
    monitor: &dyn Monitor,
) -> Result<Scope> {
    let Some(base) = &plan.since else { return Ok(whole(plan, &plan.reason, plan.compare.clone())) };
    let grown = Extents::from_iter([Extent::new(base.size.0, plan.size.0)]);
    let recorded = disk.dirty()?;
    let dirty = if broken(Rule::Growth) { recorded } else { recorded.union(&grown) };
    let changed = dirty.round_out(chunk, plan.size);
    let audited = auditing.map(|auditing| audit(disk, &plan.name, &changed, chunk, auditing)).transpose()?;
    let audit = match audited {
        None => None,
        Some(Audited::Clean(record, bytes)) => Some((record, bytes)),
        Some(Audited::Contradiction(lie)) => {
            monitor.finding(&format!("disk {}: the bitmap cannot be believed, so everything is read: {lie}", plan.name));
            let compare = Some(base.backup.clone());
            let whole = whole(plan, &format!("the audit contradicts the bitmap: {lie}"), compare);
            return Ok(Scope { is_contradicted: true, ..whole });
        }
    };
    Ok(Scope {
        kind: plan.kind,
        reason: plan.reason.clone(),
        base: Some(base.backup.clone()),
        compare: None,
        is_contradicted: false,
        dirty,
        audit,
    })
}

/// Everything is looked at and stored, and it is said why.
fn without_base(plan: &DiskPlan, failure: &keepmark_model::Failure, monitor: &dyn Monitor) -> Scope {
    let why = in_one_line(failure);
    monitor.finding(&format!("disk {}: the base cannot be read, so the whole disk is stored anew: {why}", plan.name));
    whole(plan, "the last backup is damaged in the store", None)
}

/// Everything is looked at, and nothing is taken over unseen; what is the same as in `compare` need not be stored again.
pub fn whole(plan: &DiskPlan, reason: &str, compare: Option<BackupId>) -> Scope {
    let kind = if plan.kind == Kind::Full { Kind::Full } else { Kind::Resync };
    Scope { kind, reason: reason.to_owned(), base: None, compare, is_contradicted: false, dirty: Extents::whole(plan.size), audit: None }
}

fn store(
    disk: &mut dyn FrozenDisk,
    plan: &DiskPlan,
    scope: &Scope,
    chunk: ChunkSize,
    writer: &mut dyn BackupWriter,
    monitor: &dyn Monitor,
) -> Result<Captured> {
    let rounded = scope.dirty.round_out(chunk, plan.size);
    let changed = if broken(Rule::Rounding) { scope.dirty.clone() } else { rounded };
    let put = disk.data(&changed)?.round_out(chunk, plan.size).intersection(&changed);
    let zero = changed.difference(&put);
    let (base, compare) = (scope.base.clone(), scope.compare.clone());
    let content = DiskContent { name: plan.name.clone(), size: plan.size, chunk_size: chunk, base, compare, put, zero };
    let started = writer.disk(&content);
    let mut target = match scope.base.as_ref().or(scope.compare.as_ref()) {
        Some(_) => started.map_err(|failure| keepmark_model::Failure::new(failure.class(), BaseUnusable(failure)))?,
        None => started?,
    };
    pump(disk, &content, target.as_mut(), monitor)?;
    let stored = target.finish()?;
    Ok(scope.captured(content.put.total().0, stored.stored_bytes))
}

impl Scope {
    fn uses_another(&self) -> bool {
        self.base.is_some() || self.compare.is_some()
    }

    /// The plan of a disk that is to be read whole because an audit said so. The audit is not asked again: another sample may miss
    /// what this one has hit.
    pub fn plan(&self, disk: &DiskPlan) -> DiskPlan {
        DiskPlan { kind: self.kind, reason: self.reason.clone(), since: None, compare: self.compare.clone(), ..disk.clone() }
    }

    /// What the manifest is told of it.
    pub fn captured(&self, read_bytes: u64, stored_bytes: u64) -> Captured {
        Captured {
            kind: self.kind,
            reason: self.reason.clone(),
            base: self.base.clone(),
            dirty_bytes: self.dirty.total().0,
            read_bytes,
            stored_bytes,
            audited_bytes: self.audit.as_ref().map_or(0, |(_, bytes)| *bytes),
            audit: self.audit.as_ref().and_then(|(record, _)| record.clone()),
        }
    }
}

fn pump(disk: &mut dyn FrozenDisk, content: &DiskContent, target: &mut dyn DiskWriter, monitor: &dyn Monitor) -> Result<()> {
    let (chunk, size, name) = (content.chunk_size, content.size, content.name.as_str());
    let total = content.put.total().0;
    let recycler = disk.recycler();
    let mut done = 0;
    let mut wanted = content.put.chunks(chunk).map(|index| chunk.extent(index, size));
    monitor.progress(name, 0, total);
    disk.read(&mut wanted, &mut |extent, bytes| {
        let index = chunk.index(extent.start);
        check_is_chunk(name, extent, chunk.extent(index, size), bytes.len())?;
        done += extent.len();
        target.put(index, bytes, &recycler)?;
        monitor.progress(name, done, total);
        if monitor.interrupted() { Err(Error::Interrupted.into()) } else { Ok(()) }
    })?;
    monitor.finished(name);
    Ok(())
}

/// What was read must be the chunk that was asked for, all of it.
pub(crate) fn check_is_chunk(disk: &str, came: Extent, expected: Extent, bytes: usize) -> Result<()> {
    if came == expected && Size(bytes as u64) == Size(expected.len()) {
        return Ok(());
    }
    Err(Error::UnexpectedRead { disk: disk.to_owned(), start: came.start, end: came.end }.into())
}
