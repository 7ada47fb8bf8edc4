//! Who uses an image or device that a restore is to replace or overwrite: QEMU's own lock, and the processes that have it open.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use keepmark_model::seam::Result;
use keepmark_qemu::holders;
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;

use crate::error::Error;

/// Refuses what somebody uses. While what is returned is held, a QEMU that locks its images does not begin to.
pub fn check(path: &Path) -> Result<Option<File>> {
    if std::fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    let holders = holders::of(path);
    let (opened, is_locked) = lock(path);
    if holders.is_empty() && !is_locked {
        return Ok(opened);
    }
    Err(Error::InUse { path: path.to_owned(), holders: holders::describe(&holders) }.into())
}

// QEMU locks single bytes of what it has open, which no lock of the whole file gets along with. What this user may not write cannot be asked.
fn lock(path: &Path) -> (Option<File>, bool) {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let device = (OFlags::NONBLOCK).bits().cast_signed();
    let flags = if super::device::is_block_device(path) { device } else { flags };
    let Ok(file) = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) else { return (None, false) };
    let locked = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    let is_locked = matches!(locked, Err(Errno::AGAIN | Errno::ACCESS));
    (Some(file), is_locked)
}
