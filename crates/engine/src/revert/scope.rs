//! Where a disk can differ from the backup to which it goes back: bitmap, audit and the two backups' tables, asked in this order.

use std::cell::RefCell;

use keepmark_model::audit::AuditWish;
use keepmark_model::facts::VmFacts;
use keepmark_model::failure::in_one_line;
use keepmark_model::revert::{RevertDisk, Scope};
use keepmark_model::seam::{BackupReader, FrozenDisk, Hypervisor, Monitor, Result, Store};
use keepmark_model::{BackupId, DiskName, Extents};

use crate::audit::{Audit, Audited, audit};
use crate::backup::doubted::remove_condemned;
use crate::error::{Error, is_damage};

/// What the places are derived from.
pub(super) struct Scoping<'a> {
    /// Where the backups are.
    pub(super) store: &'a dyn Store,
    /// The backup to go back to.
    pub(super) target: &'a BackupId,
    /// The VM as it is.
    pub(super) facts: &'a VmFacts,
    /// How much of what the bitmaps call clean is looked at.
    pub(super) audit: AuditWish,
    /// Who hears of it.
    pub(super) monitor: &'a dyn Monitor,
    contradicted: RefCell<Vec<DiskName>>,
}

/// The backup that a disk's bitmap is about.
pub(super) struct Basis<'a> {
    backup: Box<dyn BackupReader + 'a>,
    difference: Option<Extents>,
}

/// What is to be compared of a disk.
pub(super) struct Found {
    /// Whole chunks.
    pub(super) candidates: Extents,
    /// Why these, in words.
    pub(super) reason: String,
}

impl<'a> Scoping<'a> {
    pub(super) fn new(store: &'a dyn Store, target: &'a BackupId, facts: &'a VmFacts, audit: AuditWish, monitor: &'a dyn Monitor) -> Self {
        Self { store, target, facts, audit, monitor, contradicted: RefCell::default() }
    }

    /// Removes the checkpoints of bitmaps that were contradicted, however the rest went: whoever comes next need not be as lucky to see it.
    pub(super) fn remove_contradicted(&self, vm: &mut dyn Hypervisor) {
        remove_condemned(vm, self.facts, &self.store.id(), &self.contradicted.take(), self.monitor);
    }

    /// What the store knows of a disk's base; nothing where there is none, or it cannot be read: then all is compared.
    pub(super) fn basis(&self, disk: &RevertDisk) -> Result<Option<Basis<'a>>> {
        let Scope::Since(base) = &disk.scope else { return Ok(None) };
        let difference = |backup| Ok(Basis { backup, difference: self.store.difference(&base.backup, self.target, &disk.name)? });
        match self.store.open(&base.backup).and_then(difference) {
            Ok(basis) => Ok(Some(basis)),
            Err(failure) if self.monitor.interrupted() => Err(failure),
            Err(failure) => {
                self.doubt(disk, &format!("the last backup cannot be read: {}", in_one_line(&failure)));
                Ok(None)
            }
        }
    }

    /// Asks the disk, and looks whether its bitmap lies.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub(super) fn of(&self, disk: &RevertDisk, now: &mut dyn FrozenDisk, basis: Option<&Basis<'_>>, seed: u64) -> Result<Found> {
        if now.size() != disk.size {
            return Err(Error::SizeChanged { disk: disk.name.to_string(), planned: disk.size.0, frozen: now.size().0 }.into());
        }
        let whole = |reason: String| Found { candidates: Extents::whole(disk.size), reason };
        let (Scope::Since(_), Some(basis)) = (&disk.scope, basis) else { return Ok(whole(disk.scope.to_string())) };
        let written = disk.written(&now.dirty()?);
        if let Some(lie) = self.lie(disk, now, &written, basis, seed)? {
            self.doubt(disk, &lie);
            return Ok(whole(format!("compared whole: {lie}")));
        }
        let candidates = disk.candidates(&written, basis.difference.as_ref());
        Ok(Found { candidates, reason: disk.scope.to_string() })
    }

    /// As before a backup that would build on the bitmap: a disk that was cut and grown again shows there.
    fn lie(&self, disk: &RevertDisk, now: &mut dyn FrozenDisk, written: &Extents, basis: &Basis<'_>, seed: u64) -> Result<Option<String>> {
        let Some(then) = basis.backup.manifest().disk(&disk.name) else { return Ok(Some("the last backup has no such disk".to_owned())) };
        let facts = self.facts.disks.iter().find(|facts| facts.name == disk.name);
        let auditing = Audit {
            base: basis.backup.as_ref(),
            last: then.audit.as_ref().map(|audit| audit.allocation_checked),
            cluster: facts.and_then(|facts| facts.cluster_size).unwrap_or(1),
            wish: self.audit,
            seed,
            monitor: self.monitor,
        };
        let changed = written.round_out(then.chunk_size, disk.size);
        match audit(now, &disk.name, &changed, then.chunk_size, &auditing) {
            Ok(Audited::Clean(..)) => Ok(None),
            Ok(Audited::Contradiction(lie)) => {
                self.contradicted.borrow_mut().push(disk.name.clone());
                Ok(Some(lie))
            }
            Err(failure) if is_damage(&failure) => Ok(Some(format!("the last backup cannot be read: {}", in_one_line(&failure)))),
            Err(failure) => Err(failure),
        }
    }

    fn doubt(&self, disk: &RevertDisk, why: &str) {
        self.monitor.finding(&format!("disk {}: its bitmap cannot be believed, so the whole disk is compared: {why}", disk.name));
    }
}
