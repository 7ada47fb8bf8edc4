//! One lock per VM: shared by those who write or open its backups, alone by whoever exchanges or removes images.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::folders::is_unwritable;
use crate::images::place::LOCK;

const SETTLING: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(5);

/// A lock on a VM's folder; the kernel frees it when its process dies.
#[derive(Debug)]
pub struct VmLock {
    _file: File,
}

impl VmLock {
    /// Waits until nobody exchanges images, and keeps others from it.
    pub fn shared(folder: &Path) -> Result<Self> {
        let file = open(folder)?;
        file.lock_shared().map_err(|error| Error::io("lock", folder, error))?;
        Ok(Self { _file: file })
    }

    /// As [`VmLock::shared`], or nothing where the store cannot be written: then nobody can exchange images from here either.
    pub fn for_reading(folder: &Path) -> Result<Option<Self>> {
        match Self::shared(folder) {
            Err(Error::Io { source, .. }) if is_unwritable(source.kind()) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Alone, if nobody else is there now. A program that is just being started by another thread has our locks for a moment, even
    /// those that were given up: hence a second look.
    pub fn alone(folder: &Path) -> Result<Option<Self>> {
        let (file, end) = (open(folder)?, Instant::now() + SETTLING);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self { _file: file })),
                Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", folder, error)),
            }
        }
    }
}

// Writable, since file servers lock only what is open for writing.
fn open(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    // A link in its place would make a file elsewhere.
    let stays = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).custom_flags(stays).open(&path);
    file.map_err(|error| Error::io("open", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_share_keep_out_whoever_wants_to_be_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (VmLock::shared(folder.path()).unwrap(), VmLock::for_reading(folder.path()).unwrap());
        assert!(VmLock::alone(folder.path()).unwrap().is_none());
        drop((one, other));
        let alone = VmLock::alone(folder.path()).unwrap();
        assert!(alone.is_some() && VmLock::alone(folder.path()).unwrap().is_none());
    }
}
