//! Verification stub.
use keepmark_model::BackupId;
use keepmark_model::seam::Verification;

use crate::error::Result;
use crate::repository::Repository;

impl Repository {
    /// Stub.
    ///
    /// # Errors
    /// None.
    pub fn verify_backups(&self, _ids: &[BackupId], _read_data: bool, _progress: &dyn Fn(u64, u64)) -> Result<Verification> {
        Ok(Verification::default())
    }
}
