//! Deleting and pinning backups: a backup is deleted by removing its snapshot; what it alone needed stays until a prune.

use keepmark_model::BackupId;
use keepmark_model::seam::Monitor;

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::backend::FileKind;
use crate::repository::id::Id;

impl Repository {
    /// Deletes backups. All are looked up before the first goes.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`], [`Error::Pinned`] (then none went), or when a snapshot cannot be removed.
    pub fn delete_backups(&self, ids: &[BackupId], monitor: &dyn Monitor) -> Result<()> {
        let files = ids.iter().map(|id| self.deletable(id)).collect::<Result<Vec<Id>>>()?;
        let _lease = self.lease(false)?;
        for (done, file) in files.iter().enumerate() {
            monitor.progress("delete", done as u64, files.len() as u64);
            self.core.backend.remove(FileKind::Snapshot, file)?;
        }
        monitor.finished("delete");
        // Otherwise a power cut could bring a snapshot back after a prune took what it needs.
        self.core.backend.settle(FileKind::Snapshot)
    }

    /// Pins a backup, or takes its pin away.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`], or when the pin cannot be written or removed.
    pub fn pin_backup(&self, id: &BackupId, pinned: bool) -> Result<()> {
        let file = self.snapshot_of(id)?;
        if pinned {
            return self.core.backend.write(FileKind::Pin, &file, &[]);
        }
        self.core.backend.remove(FileKind::Pin, &file)?;
        self.core.backend.settle(FileKind::Pin)
    }

    fn deletable(&self, id: &BackupId) -> Result<Id> {
        let file = self.snapshot_of(id)?;
        match self.core.backend.size(FileKind::Pin, &file)? {
            None => Ok(file),
            Some(_) => Err(Error::Pinned { id: id.to_string() }),
        }
    }

    fn snapshot_of(&self, id: &BackupId) -> Result<Id> {
        let missing = || Error::NoSuchBackup { id: id.to_string() };
        let file = Id::parse(id.as_str()).ok_or_else(missing)?;
        self.core.backend.size(FileKind::Snapshot, &file)?.map(|_| file).ok_or_else(missing)
    }
}
