//! What can go wrong in a store.

use std::io;
use std::path::PathBuf;

use keepmark_model::names::NameError;
use keepmark_model::{Failure, FailureClass};

use crate::repository::backend::Backend;

/// Result of the store's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in a store; Display says what failed, the cause is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing is there.
    #[error("there is no store at {}", path.display())]
    NoStore {
        /// Where one was expected.
        path: PathBuf,
    },
    /// Something is there, but no repository.
    #[error("{} is no store", path.display())]
    NotAStore {
        /// Where one was expected.
        path: PathBuf,
    },
    /// A new store was wanted where something is already.
    #[error("cannot create a repository in {}: {why}", path.display())]
    NotEmpty {
        /// Where it was wanted.
        path: PathBuf,
        /// What is there.
        why: &'static str,
    },
    /// No key file opens with this password.
    #[error("wrong password for the repository at {location}")]
    WrongPassword {
        /// Where the repository is.
        location: String,
    },
    /// The repository's configuration is none we can use.
    #[error("cannot open the repository at {location}")]
    Unusable {
        /// Where the repository is.
        location: String,
        /// What the repository's code said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The repository has an old version of restic's format, which is not written.
    #[error("the repository at {location} has version 1 of restic's format: it is read, but not written")]
    OldVersion {
        /// Where the repository is.
        location: String,
    },
    /// A copy was to become a store of its own, and is none.
    #[error("the store at {location} is no copy: it lies where it was used before")]
    NoCopy {
        /// Where the store is.
        location: String,
    },
    /// Someone else holds the repository.
    #[error("the repository is locked by process {pid} on {hostname} since {since}")]
    Locked {
        /// Host of the holder.
        hostname: String,
        /// Its process.
        pid: u32,
        /// Since when, RFC 3339.
        since: String,
    },
    /// Someone else may hold the repository: a lock is there that cannot be read.
    #[error("the repository may be locked: lock {id} cannot be read: {problem}")]
    LockUnreadable {
        /// The lock's id.
        id: String,
        /// What is wrong, in words.
        problem: String,
    },
    /// No key file can be tried: there is none, or all are damaged.
    #[error("the repository at {location} has no key that can be used: {problem}")]
    NoKey {
        /// Where the repository is.
        location: String,
        /// What is wrong, in words.
        problem: String,
    },
    /// A file or blob is not what its name says.
    #[error("{kind} {id} is damaged: {problem}")]
    Damaged {
        /// `pack`, `index`, `snapshot`, `tree`, `chunk`, `manifest`, ...
        kind: &'static str,
        /// Its id.
        id: String,
        /// What is wrong, in words.
        problem: String,
    },
    /// A blob that is needed is in no index.
    #[error("{kind} {id} is in no index of the repository")]
    Missing {
        /// `tree` or `chunk`.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `sync`, ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
    /// Somebody else works on a VM's backups.
    #[error("somebody else works on the backups in {}", folder.display())]
    InUse {
        /// The VM's folder.
        folder: PathBuf,
    },
    /// QEMU's tools could not do something with an image.
    #[error("cannot {action} image {}", image.display())]
    Image {
        /// What was tried: `write`, `sync`, ...
        action: &'static str,
        /// On which.
        image: PathBuf,
        /// What the server of it said.
        #[source]
        source: Box<keepmark_nbd::Error>,
    },
    /// Our lock was taken for that of a dead process and removed: what it protected may be gone.
    #[error("our lock on the repository was removed by somebody else")]
    LeaseLost,
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// An earlier write failed; nothing more is written.
    #[error("an earlier write to the store failed, nothing more is written")]
    Poisoned,
    /// There is no backup of that id.
    #[error("there is no backup {id}")]
    NoSuchBackup {
        /// The id.
        id: String,
    },
    /// A backup was to be deleted that is to stay.
    #[error("backup {id} is pinned")]
    Pinned {
        /// The id.
        id: String,
    },
    /// A backup has no such disk or file.
    #[error("backup {backup} has no {what} {name:?}")]
    NoSuchPart {
        /// Which backup.
        backup: String,
        /// `disk` or `file`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The caller of a writer broke the rules: a chunk is missing, came twice, or has a wrong length.
    #[error("disk {disk:?}: {problem}")]
    Content {
        /// Which disk.
        disk: String,
        /// What is wrong, in words.
        problem: String,
    },
    /// The caller's own function failed, or a file name is not acceptable.
    #[error("{problem}")]
    Refused {
        /// What is wrong, in words.
        problem: String,
    },
    /// What the caller's sink returned.
    #[error(transparent)]
    Sink(#[from] Failure),
    /// Something that should work on any machine did not.
    #[error("cannot {action}")]
    Internal {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.into(), source: source.into() }
    }

    pub(crate) fn damaged(kind: &'static str, id: impl ToString, problem: impl ToString) -> Self {
        Self::Damaged { kind, id: id.to_string(), problem: problem.to_string() }
    }

    pub(crate) fn unusable(backend: &dyn Backend, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unusable { location: backend.location(), source: source.into() }
    }

    /// A name that cannot be a file's.
    pub(crate) fn name(error: &NameError) -> Self {
        Self::Refused { problem: error.to_string() }
    }

    pub(crate) fn internal(action: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal { action, source: source.into() }
    }

    /// What this means to whoever called the program.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NoStore { .. } | Self::NotAStore { .. } => FailureClass::NoStore,
            Self::WrongPassword { .. } => FailureClass::WrongPassword,
            Self::Interrupted => FailureClass::Interrupted,
            Self::Locked { .. } | Self::LockUnreadable { .. } | Self::InUse { .. } => FailureClass::Locked,
            Self::NoSuchBackup { .. } | Self::NoSuchPart { .. } | Self::Pinned { .. } | Self::NoCopy { .. } => FailureClass::Usage,
            Self::Sink(failure) => failure.class(),
            Self::NotEmpty { .. }
            | Self::Unusable { .. }
            | Self::OldVersion { .. }
            | Self::NoKey { .. }
            | Self::Damaged { .. }
            | Self::Missing { .. }
            | Self::Io { .. }
            | Self::Poisoned
            | Self::Image { .. }
            | Self::LeaseLost
            | Self::Content { .. }
            | Self::Refused { .. }
            | Self::Internal { .. } => FailureClass::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoStore { path } | Self::NotAStore { path } => Some(format!("keepmark init {}", path.display())),
            Self::OldVersion { location } => Some(format!("restic -r {location} migrate upgrade_repo_v2")),
            Self::Locked { .. } => Some("wait until it is done; a lock whose owner is gone is removed by `restic unlock`".to_owned()),
            Self::LockUnreadable { .. } => Some(
                "it expires half an hour after it was written; if nobody works on the repository: restic unlock --remove-all".to_owned(),
            ),
            Self::Pinned { id } => Some(format!("keepmark unpin {id}")),
            Self::NoKey { .. } => Some("put a copy of the key file back: without any, nobody can read the repository".to_owned()),
            Self::Damaged { kind: "mark", .. } => Some("keepmark prune removes it: then backups go on".to_owned()),
            Self::Damaged { .. } | Self::Missing { .. } => {
                Some("keepmark verify --read-data names what is damaged and which backups it hits".to_owned())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make space and run it again: what was stored so far is not stored twice".to_owned())
            }
            Self::LeaseLost => Some("run it again: what was stored is not stored twice".to_owned()),
            Self::NotEmpty { .. }
            | Self::NoCopy { .. }
            | Self::Interrupted
            | Self::WrongPassword { .. }
            | Self::Unusable { .. }
            | Self::Io { .. }
            | Self::Poisoned
            | Self::Image { .. }
            | Self::InUse { .. }
            | Self::NoSuchBackup { .. }
            | Self::NoSuchPart { .. }
            | Self::Content { .. }
            | Self::Refused { .. }
            | Self::Sink(_)
            | Self::Internal { .. } => None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (class, hint) = (error.class(), error.hint());
        if let Error::Sink(failure) = error {
            return failure;
        }
        let failure = Failure::new(class, error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}
