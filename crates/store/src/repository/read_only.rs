//! A place of which only is read, since what we write could not be read there by others.

use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::identity::FileIdentity;
use crate::repository::backend::{Backend, FileKind, Upload};
use crate::repository::id::Id;

/// A repository of version 1. Version 2 has compressed files, which restic does not expect in it: a single one of them, even a lock, keeps
/// restic from opening it.
pub struct ReadOnly(pub Arc<dyn Backend>);

impl ReadOnly {
    fn refuse<T>(&self) -> Result<T> {
        Err(Error::OldVersion { location: self.0.location() })
    }
}

impl Backend for ReadOnly {
    fn location(&self) -> String {
        self.0.location()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>> {
        self.0.list(kind)
    }

    fn size(&self, kind: FileKind, id: &Id) -> Result<Option<u64>> {
        self.0.size(kind, id)
    }

    fn written(&self, kind: FileKind, id: &Id) -> Result<Option<Timestamp>> {
        self.0.written(kind, id)
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.0.identity()
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>> {
        self.0.read(kind, id)
    }

    fn read_at(&self, kind: FileKind, id: &Id, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_at(kind, id, offset, buffer)
    }

    fn upload(&self) -> Result<Box<dyn Upload>> {
        self.refuse()
    }

    fn settle(&self, kind: FileKind) -> Result<()> {
        self.0.settle(kind)
    }

    fn lag(&self) -> Duration {
        self.0.lag()
    }

    fn remove(&self, _: FileKind, _: &Id) -> Result<()> {
        self.refuse()
    }

    fn sweep(&self, _: Option<Timestamp>) -> Result<()> {
        self.refuse()
    }
}
