//! A place that counts what changes the repository and fails from the N-th change on, as a full disk does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use keepmark_store::repository::backend::{Backend, FileKind, Upload};
use keepmark_store::repository::folder::Folder;
use keepmark_store::repository::id::Id;
use keepmark_store::{Error, Repository, Result};

use crate::common::{PASSWORD, Place};

/// Counts what changes the repository, and fails from the N-th on, as a full disk does.
pub struct Failing {
    inner: Folder,
    state: Arc<State>,
}

pub struct State {
    pub operations: AtomicU64,
    pub fail_from: AtomicU64,
    /// Whether only one operation fails and those after it work again.
    once: bool,
}

impl State {
    pub fn new(fail_from: u64, once: bool) -> Arc<Self> {
        Arc::new(Self { operations: AtomicU64::new(0), fail_from: AtomicU64::new(fail_from), once })
    }

    fn step(&self) -> Result<()> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        let from = self.fail_from.load(Ordering::SeqCst);
        let fails = if self.once { number == from } else { number >= from };
        let error = || Error::Io { action: "write", path: "injected".into(), source: io::Error::from(io::ErrorKind::StorageFull) };
        if fails { Err(error()) } else { Ok(()) }
    }
}

impl Backend for Failing {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>> {
        self.inner.list(kind)
    }

    fn size(&self, kind: FileKind, id: &Id) -> Result<Option<u64>> {
        self.inner.size(kind, id)
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>> {
        self.inner.read(kind, id)
    }

    fn read_at(&self, kind: FileKind, id: &Id, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_at(kind, id, offset, buffer)
    }

    fn upload(&self) -> Result<Box<dyn Upload>> {
        self.state.step()?;
        Ok(Box::new(FailingUpload { inner: self.inner.upload()?, state: Arc::clone(&self.state) }))
    }

    fn settle(&self, kind: FileKind) -> Result<()> {
        self.state.step()?;
        self.inner.settle(kind)
    }

    fn settle_all(&self, kind: FileKind) -> Result<()> {
        self.state.step()?;
        self.inner.settle_all(kind)
    }

    fn written(&self, kind: FileKind, id: &Id) -> Result<Option<Timestamp>> {
        self.inner.written(kind, id)
    }

    /// Locks of the dead are swept by themselves; what matters is what is removed of the rest.
    fn remove(&self, kind: FileKind, id: &Id) -> Result<()> {
        if kind != FileKind::Lock {
            self.state.step()?;
        }
        self.inner.remove(kind, id)
    }

    fn sweep(&self, before: Option<Timestamp>) -> Result<()> {
        self.inner.sweep(before)
    }
}

struct FailingUpload {
    inner: Box<dyn Upload>,
    state: Arc<State>,
}

impl Upload for FailingUpload {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.state.step()?;
        self.inner.append(bytes)
    }

    fn publish(self: Box<Self>, kind: FileKind, id: &Id) -> Result<()> {
        self.state.step()?;
        self.inner.publish(kind, id)
    }
}

/// Opens a place's repository so.
pub fn open_failing(place: &Place, state: &Arc<State>) -> Repository {
    let backend = Failing { inner: Folder::new(&place.repository()), state: Arc::clone(state) };
    Repository::open_at(Arc::new(backend), PASSWORD, place.options()).unwrap()
}
