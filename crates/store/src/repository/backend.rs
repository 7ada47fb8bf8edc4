//! Where a repository's files are: few verbs, so that a folder, an object store or a fault injector can be behind them.

use std::time::Duration;

use jiff::Timestamp;

use crate::error::Result;
use crate::identity::FileIdentity;
use crate::repository::id::Id;

/// The kinds of files in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// The configuration; there is one, its id is ignored.
    Config,
    /// A key, opened by a password.
    Key,
    /// A snapshot: a published backup.
    Snapshot,
    /// An index: which pack has which blobs.
    Index,
    /// A pack of blobs.
    Pack,
    /// A lock.
    Lock,
    /// A pin: an empty file that has the snapshot's name. Other programs do not look there.
    Pin,
    /// A mark: packs that nothing needs and that are about to go. Other programs do not look there.
    Mark,
    /// A note: packs that somebody has found damaged. Other programs do not look there.
    Damage,
    /// A mark of the place: which store this is, and where it was when that was written. Other programs do not look there.
    Place,
}

impl FileKind {
    /// Its folder; the configuration is a file of that name.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "keys",
            Self::Snapshot => "snapshots",
            Self::Index => "index",
            Self::Pack => "data",
            Self::Lock => "locks",
            Self::Pin => "keepmark/pins",
            Self::Mark => "keepmark/marks",
            Self::Damage => "keepmark/damaged",
            Self::Place => "keepmark/place",
        }
    }

    /// What it is called in messages.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "key",
            Self::Snapshot => "snapshot",
            Self::Index => "index",
            Self::Pack => "pack",
            Self::Lock => "lock",
            Self::Pin => "pin",
            Self::Mark => "mark",
            Self::Damage => "note of damage",
            Self::Place => "mark of the place",
        }
    }
}

/// A place for a repository's files. A file is there whole or not at all.
pub trait Backend: Send + Sync + 'static {
    /// Where it is, for people.
    fn location(&self) -> String;

    /// All files of a kind with their sizes in bytes; names that are no ids are left out.
    ///
    /// # Errors
    /// When the place cannot be listed.
    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>>;

    /// The size of a file in bytes, or nothing if it is not there.
    ///
    /// # Errors
    /// When the place does not tell.
    fn size(&self, kind: FileKind, id: &Id) -> Result<Option<u64>>;

    /// When a file was written, by the place's own clock; nothing if it is not there or the place does not tell.
    ///
    /// # Errors
    /// When the place cannot be asked.
    fn written(&self, _kind: FileKind, _id: &Id) -> Result<Option<Timestamp>> {
        Ok(None)
    }

    /// What a copy of this place does not keep; nothing where there is no such thing, or none is made yet.
    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    /// A whole file.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>>;

    /// Fills `buffer` from `offset` of a file.
    ///
    /// # Errors
    /// When the file is not there, is too short, or cannot be read.
    fn read_at(&self, kind: FileKind, id: &Id, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Begins a new file that nobody sees until it is published.
    ///
    /// # Errors
    /// When nothing can be written.
    fn upload(&self) -> Result<Box<dyn Upload>>;

    /// Makes it durable that files of this kind were published and removed.
    ///
    /// # Errors
    /// When the sync fails: then it is not known what is durable.
    fn settle(&self, kind: FileKind) -> Result<()>;

    /// Makes it durable that files of this kind were published and removed, whoever did it.
    ///
    /// # Errors
    /// When the sync fails.
    fn settle_all(&self, kind: FileKind) -> Result<()> {
        self.settle(kind)
    }

    /// How long what another host did may stay unseen here.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    fn remove(&self, kind: FileKind, id: &Id) -> Result<()>;

    /// Removes uploads that were never published: all, or those that were written last before a time of the place's clock. Only for a
    /// caller who knows that nobody is writing them any more, or that whoever is must not publish.
    ///
    /// # Errors
    /// When leftovers are there and cannot be removed.
    fn sweep(&self, before: Option<Timestamp>) -> Result<()>;

    /// Writes a small file: durable and visible when this returns.
    ///
    /// # Errors
    /// When it cannot be written. It is then not there, unless it cannot be removed after the last sync failed.
    fn write(&self, kind: FileKind, id: &Id, content: &[u8]) -> Result<()> {
        self.write_if(kind, id, content, &|| Ok(()))
    }

    /// The same if a condition holds. It is asked when the upload is there already: who makes it untrue and then sweeps uploads can be sure
    /// that the file is not published later.
    ///
    /// # Errors
    /// As for [`Backend::write`], and what the condition says.
    fn write_if(&self, kind: FileKind, id: &Id, content: &[u8], condition: &dyn Fn() -> Result<()>) -> Result<()> {
        let mut upload = self.upload()?;
        upload.append(content)?;
        condition()?;
        upload.publish(kind, id)?;
        self.settle(kind).inspect_err(|_| drop(self.remove(kind, id)))
    }
}

/// A file on its way into a place. Dropped unpublished, it leaves nothing.
pub trait Upload: Send {
    /// Adds bytes.
    ///
    /// # Errors
    /// When they cannot be written; the file can then only be dropped.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the content durable, then the file visible. The name is durable after [`Backend::settle`].
    /// The configuration is never replaced: publishing it where there is one fails.
    ///
    /// # Errors
    /// When any of that fails.
    fn publish(self: Box<Self>, kind: FileKind, id: &Id) -> Result<()>;
}
