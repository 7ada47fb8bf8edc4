//! What can fail in the engine itself; failures of drivers and stores pass through as they are.

use std::path::PathBuf;

use keepmark_model::{Failure, FailureClass};

/// A failure of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The target of a restore exists.
    #[error("{} exists already", path.display())]
    TargetExists {
        /// Where.
        path: PathBuf,
    },
    /// Somebody uses what a restore is to replace or overwrite.
    #[error("{} is in use by {holders}", path.display())]
    InUse {
        /// What.
        path: PathBuf,
        /// Who, in words.
        holders: String,
    },
    /// The target of a restore is in the wrong place or of the wrong kind.
    #[error("cannot restore to {}: {why}", path.display())]
    Target {
        /// Where.
        path: PathBuf,
        /// Why not, in words.
        why: String,
    },
    /// The target of a restore cannot be written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried: `create`, `write`, ...
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// No disk of the VM can hold a bitmap where one was to begin.
    #[error("no disk of the VM can have a checkpoint")]
    NoCheckpoint,
    /// The backup has no such disk.
    #[error("the backup has no disk {name} (it has: {known})")]
    UnknownDisk {
        /// As asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The hypervisor read what was not asked for.
    #[error("disk {disk}: bytes {start} to {end} came, which are no chunk that was asked for")]
    UnexpectedRead {
        /// Which disk.
        disk: String,
        /// First byte.
        start: u64,
        /// One after the last byte.
        end: u64,
    },
    /// A backup gave not all of what was to be compared.
    #[error("disk {disk}: the backup gave {compared} of {wanted} bytes")]
    NotAll {
        /// Which disk.
        disk: String,
        /// Bytes that came.
        compared: u64,
        /// Bytes that were wanted.
        wanted: u64,
    },
    /// The thread that writes a disk is gone.
    #[error("disk {disk}: writing ended")]
    WriterEnded {
        /// Which disk.
        disk: String,
    },
    /// Disks cannot be reverted under a guest.
    #[error("the guest runs: its disks cannot be reverted under its feet")]
    GuestRuns,
    /// Disks cannot be reverted under a guest, and it cannot be asked to power down.
    #[error("the guest is in the middle of its work ({why}): its disks cannot be reverted under its feet")]
    GuestHeld {
        /// How, in words.
        why: String,
    },
    /// The disk's size at the frozen moment differs from the plan's.
    #[error("disk {disk} changed its size from {planned} to {frozen} bytes while the backup began")]
    SizeChanged {
        /// Which disk.
        disk: String,
        /// Before.
        planned: u64,
        /// At the frozen moment.
        frozen: u64,
    },
}

impl Error {
    fn class(&self) -> FailureClass {
        match self {
            Self::Interrupted => FailureClass::Interrupted,
            Self::InUse { .. } => FailureClass::Locked,
            Self::UnknownDisk { .. } | Self::Target { .. } | Self::NoCheckpoint | Self::GuestRuns | Self::GuestHeld { .. } => {
                FailureClass::Usage
            }
            Self::NotAll { .. }
            | Self::WriterEnded { .. }
            | Self::TargetExists { .. }
            | Self::Io { .. }
            | Self::UnexpectedRead { .. }
            | Self::SizeChanged { .. } => FailureClass::Failed,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::TargetExists { .. } => Some("choose another place, or overwrite it with --force"),
            Self::InUse { .. } => Some(
                "a VM that runs on it would lose what it writes from now on: 'keepmark revert VM BACKUP --shutdown' takes its disks back in place; or \
                 choose another place",
            ),
            Self::SizeChanged { .. } => Some("run the backup again"),
            Self::NoCheckpoint => Some("convert an image to qcow2 (compat=1.1); 'keepmark doctor VM' tells of each disk"),
            Self::GuestRuns => Some("--shutdown powers it down, reverts, and starts it again"),
            Self::GuestHeld { .. } => Some("let it go on and shut it down first, or discard what it was in the middle of"),
            Self::NotAll { .. }
            | Self::WriterEnded { .. }
            | Self::Interrupted
            | Self::Target { .. }
            | Self::Io { .. }
            | Self::UnknownDisk { .. }
            | Self::UnexpectedRead { .. } => None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (class, hint) = (error.class(), error.hint());
        let failure = Self::new(class, error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

/// Whether something in the store is damaged or missing.
pub(crate) fn is_damage(failure: &Failure) -> bool {
    use keepmark_store::Error::{Damaged, Missing};
    failure.get::<keepmark_store::Error>().is_some_and(|error| matches!(error, Damaged { .. } | Missing { .. }))
}
